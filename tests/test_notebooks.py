"""The tool that executes notebooks: it saves the same bytes twice, and it sees what is wrong."""

import json
import shutil
from pathlib import Path

import notebooks
import pytest
from conftest import ROOT

FIGURE = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1, 2])"
TABLE = "import pandas as pd\npd.DataFrame({'a': [1]}).style.format('{:.1f}')"


def write(path: Path, *sources: str) -> Path:
    """A notebook with these code cells."""
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{i:02d}",
            "metadata": {},
            "outputs": [],
            "source": source.splitlines(keepends=True),
        }
        for i, source in enumerate(sources)
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))
    return path


def outputs(path: Path) -> list[list[dict]]:
    return [cell["outputs"] for cell in json.loads(path.read_text())["cells"]]


def problems(*paths: Path, save: bool = False) -> dict[str, str]:
    """What went wrong in each notebook."""
    return {p.stem: problem for p, problem, _ in notebooks.execute_all(paths, save, workers=2)}


def test_outputs_are_the_same_bytes_twice(tmp_path):
    loud = "import sys, tqdm\nprint('on error', file=sys.stderr)\nprint(object())"
    paths = [
        write(tmp_path / "drawn.ipynb", FIGURE, TABLE, "print({'a', 'b'} == {'b', 'a'})"),
        write(
            tmp_path / "flags.ipynb", loud, "#| hide\nprint(1)", "#| eval: false\nno", "1 + 1", "2;"
        ),
    ]
    assert set(problems(*paths, save=True).values()) == {""}
    first = [path.read_bytes() for path in paths]
    assert set(problems(*paths, save=True).values()) == {""}
    assert [path.read_bytes() for path in paths] == first
    drawn, flags = map(outputs, paths)
    assert [sorted(o["data"]) for o in drawn[0]] == [["image/png", "text/plain"], ["text/plain"]]
    assert flags[0] == [{"name": "stdout", "output_type": "stream", "text": ["<object object>\n"]}]
    assert flags[1] == flags[2] == flags[4] == []
    assert flags[3][0]["data"] == {"text/plain": ["2"]}
    assert set(problems(*paths).values()) == {""}  # what was saved is what is there
    for path, text in zip(paths, first, strict=True):
        notebooks.clean(path)
        assert path.read_bytes() == text


def test_what_is_wrong_is_seen(tmp_path):
    """An error, a changed, a missing and an additional output, a process that dies."""
    paths = {
        name: write(tmp_path / f"{name}.ipynb", source)
        for name, source in {
            "error": "1 / 0",
            "changed": "print('old', 0.25)",
            "additional": "x = 1",
            "large": "import numpy as np\nimport matplotlib.pyplot as plt\n"
            "plt.imshow(np.random.default_rng(0).random((400, 400, 3)))\n"
            "plt.gcf().set_size_inches(9, 9)",
        }.items()
    }
    problems(paths["changed"], paths["additional"], save=True)
    for name, old, new in (("changed", "old", "new"), ("additional", "x = 1", "print(1)")):
        text = paths[name].read_text()
        source = json.dumps(json.loads(text)["cells"][0]["source"])
        changed = source.replace(old, new)
        notebook = json.loads(text)
        notebook["cells"][0]["source"] = json.loads(changed)
        paths[name].write_text(json.dumps(notebook))
    paths["missing"] = write(tmp_path / "missing.ipynb", "print(1)")
    paths["dies"] = write(tmp_path / "dies.ipynb", "import os\nos._exit(3)")
    found = problems(*paths.values())
    assert "ZeroDivisionError" in found["error"] and "cell 0" in found["error"]
    assert "old 0.25" in found["changed"] and "new 0.25" in found["changed"]
    assert "make outputs" in found["missing"] and "make outputs" in found["additional"]
    assert "ended before" in found["dies"]
    assert "a figure of" in found["large"]


@pytest.mark.parametrize(
    "old, new, equal",
    [
        ("loss 0.25", "loss  0.26", True),  # one in the last digit; blanks
        ("loss 0.25", "loss 0.27", False),
        ("loss 0.25", "lost 0.25", False),
        ("1.0e-05", "1.1e-05", True),
        ("1.0e-05", "1.0e-04", False),
        ("3 of 4", "4 of 4", False),  # whole numbers are exact
        ("0.5", "0.5 0.5", False),
        ("-0.5", "0.5", False),
    ],
)
def test_outputs_are_compared(old, new, equal):
    assert notebooks.same(old, new) == equal


def test_where_outputs_are_committed(tmp_path):
    """Notebooks of the report and the index carry none, and cleaning removes them."""
    assert notebooks.has_outputs(ROOT / "nbs/2_model/03_positions.ipynb")
    for name in ("nbs/index.ipynb", "nbs/analysis/accuracy.ipynb"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
        notebook = json.loads(path.read_text())
        code = {"cell_type": "code", "execution_count": 3, "id": "x", "source": ["1"]}
        notebook["cells"].append(code | {"metadata": {"tags": ["parameters"]}, "outputs": [{}]})
        path.write_text(json.dumps(notebook))
        notebooks.clean(path)
        cleaned = json.loads(path.read_text())["cells"][-1]
        assert cleaned == code | {
            "execution_count": None,
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
        }
