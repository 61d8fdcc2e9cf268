"""What a commit must satisfy, and the proof that each gate can close."""

import filecmp
import hashlib
import json
import shutil
from importlib.metadata import distributions
from pathlib import Path

import notebooks
import pytest
import yaml
from conftest import ROOT, copy_repository, run
from packaging.specifiers import SpecifierSet

from zeromodel.study.stages import PipelineError, check_benchmark
from zeromodel.tasks.causal_loop.generator.stream import problems
from zeromodel.tasks.causal_loop.suites import SUITES

SMALL_DRAW = "67376186d3b1c4ef4a93995a73c4a2b09962e56c39ba658f577b30d96154582d"


def export(folder: Path):
    """Make the package and the README from the notebooks here, in `folder`."""
    shutil.copytree(ROOT / "nbs", folder / "nbs")
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder)
    for path in (ROOT / "zeromodel").rglob("__init__.py"):  # the only modules written by hand
        copied = folder / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied)
    run("nbdev_export", cwd=folder)
    convert = "jupyter nbconvert --log-level ERROR --to markdown --output-dir . --output README"
    run(*convert.split(), "nbs/index.ipynb", cwd=folder)


def exported_files(folder: Path) -> set[str]:
    paths = [*(folder / "zeromodel").rglob("*.py"), folder / "README.md"]
    return {path.relative_to(folder).as_posix() for path in paths}


def out_of_step(folder: Path, exported: Path) -> list[str]:
    """Files of the package and the README that differ from what the notebooks say."""
    files = exported_files(folder) | exported_files(exported)
    _, differ, absent = filecmp.cmpfiles(folder, exported, files, shallow=False)
    return sorted(differ + absent)


def test_package_and_readme_are_exported(tmp_path):
    """The committed files are what the notebooks make; a changed, an additional and a missing
    module are seen.
    """
    export(tmp_path / "exported")
    assert out_of_step(ROOT, tmp_path / "exported") == []
    package = tmp_path / "exported/zeromodel"
    module = package / "model/positions.py"
    module.write_text(module.read_text().replace("position_ids", "positions"))
    (package / "additional.py").touch()
    (package / "io.py").unlink()
    assert out_of_step(ROOT, tmp_path / "exported") == [
        "zeromodel/additional.py",
        "zeromodel/io.py",
        "zeromodel/model/positions.py",
    ]


def unclean(folder: Path) -> list[str]:
    """Notebooks with traces of an execution, or with outputs where none are committed."""
    found = []
    for path in sorted((folder / "nbs").rglob("*.ipynb")):
        before = path.read_text()
        notebooks.clean(path)
        if path.read_text() != before:
            found.append(path.relative_to(folder).as_posix())
    return found


def test_notebooks_are_clean(tmp_path):
    """They are; and an execution count is seen, and an output in a notebook of the report."""
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    assert unclean(tmp_path) == []
    counted, with_output = "nbs/2_model/03_positions.ipynb", "nbs/analysis/accuracy.ipynb"
    output = {"name": "stdout", "output_type": "stream", "text": ["hello\n"]}
    for name, change in (
        (counted, {"execution_count": 1}),
        (with_output, {"outputs": [output]}),
    ):
        notebook = json.loads((tmp_path / name).read_text())
        next(c for c in notebook["cells"] if c["cell_type"] == "code").update(change)
        (tmp_path / name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    assert unclean(tmp_path) == [counted, with_output]


def test_the_same_problems_are_drawn():
    """A small draw of each suite has the hash that it always had. The next test compares the
    whole benchmark.
    """
    drawn = [
        f"{level} {problem}\n"
        for suite in ("nano", "standard")
        for level, problem in problems(SUITES[suite], "test", dict.fromkeys((1, 2, 3), 1), 60, 0)
    ]
    assert hashlib.sha256("".join(drawn).encode()).hexdigest() == SMALL_DRAW


@pytest.mark.slow
def test_benchmark_is_the_frozen_one(tmp_path, monkeypatch):
    """Generated anew it has the committed hash; with one byte changed, or another hash,
    everything stops and the hash stays.
    """
    monkeypatch.chdir(copy_repository(tmp_path / "copy"))
    committed = Path("data.dvc").read_text()
    check_benchmark()
    suite = Path("data/nano/test.jsonl")
    good = suite.read_text()
    suite.write_text(good.replace('"tau":1', '"tau":2', 1))
    with pytest.raises(PipelineError, match="not the one that data.dvc names"):
        check_benchmark()
    assert Path("data.dvc").read_text() == committed
    suite.write_text(good)
    check_benchmark()
    Path("data.dvc").write_text(committed.replace("md5: ", "md5: 0", 1))
    with pytest.raises(PipelineError, match="data.dvc differs from the committed one"):
        check_benchmark()


def test_dvc_runs_the_notebooks_that_exist():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(stages["analysis"]["matrix"]["notebook"]) == {
        p.stem for p in (ROOT / "nbs/analysis").glob("*.ipynb")
    }


def test_any_python_of_3_11_can_install_it():
    """Debian 12 has 3.11.2: none of the packages that the tests run with asks for a later one."""
    asks = {d.metadata["Name"]: d.metadata["Requires-Python"] or "" for d in distributions()}
    assert (
        len(asks) > 100
        and [name for name, wanted in asks.items() if not SpecifierSet(wanted).contains("3.11.0")]
        == []
    )
