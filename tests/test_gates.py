"""What a commit must satisfy, and the proof that each gate can close."""

import filecmp
import json
import shutil
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, copy_repository, run
from packaging.specifiers import SpecifierSet

from zeromodel.study.stages import PipelineError, check_benchmark


def out_of_step(folder: Path) -> list[str]:
    """Files of the package and the README that differ from what the notebooks say."""
    before = folder.with_name("before")
    shutil.copytree(folder, before)
    run("nbdev_export", cwd=folder)
    run(
        "jupyter",
        "nbconvert",
        "--log-level",
        "ERROR",
        "--to",
        "markdown",
        "--output-dir",
        ".",
        "--output",
        "README",
        "nbs/index.ipynb",
        cwd=folder,
    )
    files = {
        p.relative_to(f).as_posix()
        for f in (folder, before)
        for p in [*(f / "zeromodel").rglob("*.py"), f / "README.md"]
    }
    return sorted(
        f
        for f in files
        if not (
            (folder / f).exists()
            and (before / f).exists()
            and filecmp.cmp(folder / f, before / f, shallow=False)
        )
    )


def unclean(folder: Path) -> list[str]:
    """Notebooks with outputs or other traces of having been run."""
    before = {p: p.read_text() for p in (folder / "nbs").rglob("*.ipynb")}
    run("nbdev_clean", cwd=folder)
    return [p.name for p, text in before.items() if p.read_text() != text]


def test_package_and_readme_are_exported(copy):
    assert out_of_step(copy) == []


def test_export_gate_closes(copy):
    module = copy / "zeromodel/model/positions.py"
    module.write_text(module.read_text().replace("position_ids", "positions"))
    assert out_of_step(copy) == ["zeromodel/model/positions.py"]


def test_notebooks_are_clean(copy):
    assert unclean(copy) == []


def test_clean_gate_closes(copy):
    path = copy / "nbs/2_model/03_positions.ipynb"
    notebook = json.loads(path.read_text())
    cell = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    cell["outputs"], cell["execution_count"] = (
        [{"name": "stdout", "output_type": "stream", "text": ["hello\n"]}],
        1,
    )
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    assert unclean(copy) == ["rope.ipynb"]


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


def test_sizes():
    """Notebooks that can be read in one go, modules too."""
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text())["cells"]
        assert len(cells) <= 60, path
        for c in cells:
            lines = [line for line in "".join(c["source"]).splitlines() if line.strip()]
            assert c["cell_type"] != "code" or len(lines) <= 25, f"{path}: {lines[0:2]}"
    for path in (ROOT / "zeromodel").rglob("*.py"):
        assert (
            path.name == "_modidx.py"
            or sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 250
        ), path
