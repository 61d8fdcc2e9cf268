"""The doctor sees each fault that a first hour with the project can bring, and make says it in
one line.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run
from typer.testing import CliRunner

from zeromodel import doctor
from zeromodel.doctor import GB, Accelerator, Finding


def findings(check, *args, **kwargs) -> list[Finding]:
    """What a check says, always as a list; every finding is one line."""
    found = check(*args, **kwargs)
    found = [found] if isinstance(found, Finding) else list(found)
    assert all("\n" not in str(f) for f in found)
    return found


# a machine that is broken in one way: the check, what it is given, the worst finding, what that
# says and advises
FAULTS = {
    "wrong Python": (
        doctor.check_python,
        ((3, 9, 18),),
        "problem",
        "Python 3.9.18 is too old",
        "make PYTHON=python3.11",
    ),
    "newer Python": (
        doctor.check_python,
        ((3, 13, 0),),
        "note",
        "Python 3.13.0",
        "use Python 3.11",
    ),
    "no compiler": (
        doctor.check_compiler,
        (None,),
        "note",
        "no C and C++ compiler",
        "torch.compile only",
    ),
    "CUDA build without a GPU": (
        doctor.check_gpu,
        (Accelerator("13.0", error="Found no NVIDIA driver on your system. Please check"),),
        "note",
        "there is no NVIDIA driver",
        "--gpus all",
    ),
    "CUDA build, no device": (
        doctor.check_gpu,
        (Accelerator("13.0", error="No CUDA GPUs are available"),),
        "note",
        "No CUDA GPUs are available",
        "CUDA_VISIBLE_DEVICES",
    ),
    "CPU build": (doctor.check_gpu, (Accelerator(),), "note", "built without CUDA", "INSTALL.md"),
    "old driver": (
        doctor.check_gpu,
        (
            Accelerator(
                "13.0",
                error=(
                    "The NVIDIA driver on your system is too old (found version 12020). Please"
                    " update"
                ),
            ),
        ),
        "problem",
        "knows CUDA 12.2",
        "update the driver",
    ),
    "old GPU": (
        doctor.check_attention,
        (Accelerator("13.0", ("T4",), (7, 5)), "2.8.3"),
        "note",
        "7.5 is below 8.0",
        "'sdpa'",
    ),
    "full disk": (doctor.check_room, (GB // 10, 16 * GB, 2), "problem", "0.1 GB free", "dvc gc"),
    "little memory": (
        doctor.check_room,
        (100 * GB, 2 * GB, 2),
        "note",
        "2.0 GB of memory",
        "--at-once 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault):
    check, args, state, what, todo = FAULTS[fault]
    worst = [f for f in findings(check, *args) if f.state != "ok"]
    assert (
        len(worst) == 1
        and worst[0].state == state
        and what in worst[0].what
        and todo in worst[0].todo
    ), worst


def test_packages_and_interrupted_install(tmp_path):
    missing = findings(
        doctor.check_packages, ["torch", "numba"], {}, {"torch": "2.13.0", "numba": ""}.get
    )
    assert (
        [f.state for f in missing] == ["ok", "problem"]
        and "numba" in missing[1].what
        and "make .venv/bin/.installed" in missing[1].todo
    )
    (tmp_path / ".venv/bin").mkdir(parents=True)
    assert [f.state for f in findings(doctor.check_install, tmp_path, str(tmp_path / ".venv"))] == [
        "problem"
    ]
    (tmp_path / ".venv/bin/.installed").touch()
    assert not findings(doctor.check_install, tmp_path, str(tmp_path / ".venv"))
    assert (
        findings(
            doctor.check_packages, doctor.required(), doctor.read_pins(ROOT / "constraints.txt")
        )[0].state
        == "ok"
    )


def test_working_folder(tmp_path):
    assert doctor.check_folder(ROOT).state == "ok"
    assert doctor.check_folder(ROOT / "nbs/1_tasks").todo == f"cd {ROOT}"
    assert doctor.check_folder(tmp_path).state == "problem"


def test_stale_lock(tmp_path):
    """A lock of a process that has ended is a problem, one of a living process is not; removed
    as advised, the problem is gone.
    """
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/config").touch()
    lock, ended = tmp_path / ".dvc/tmp/rwlock", subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, problem in ((ended.pid, True), (os.getpid(), False)):
        lock.write_text(
            json.dumps({"write": {"runs/nano": {"pid": pid, "cmd": "dvc repro"}}, "read": {}})
        )
        assert (
            any(
                f.state == "problem" and "rm .dvc/tmp/rwlock" in f.todo
                for f in findings(doctor.check_dvc, tmp_path)
            )
            is problem
        )
    lock.unlink()
    assert [f.state for f in findings(doctor.check_dvc, tmp_path)] == ["note"]


def test_edited_benchmark(copy):
    assert doctor.check_data(copy).state == "ok"
    suite = copy / "data/nano/test.jsonl"
    suite.write_text(suite.read_text().replace('"tau":1', '"tau":2', 1))
    found = doctor.check_data(copy)
    assert (
        found.state == "problem"
        and "delete data/ and run again" in found.todo
        and "\n" not in str(found)
    )
    shutil.rmtree(copy / "data")
    assert doctor.check_data(copy).state == "note"


def test_command(monkeypatch):
    """`zeromodel doctor` prints the findings and exits with 1 when there is a problem, 0
    otherwise.
    """
    from zeromodel.cli import app

    for state, code in (("problem", 1), ("note", 0)):
        monkeypatch.setattr(
            doctor,
            "examine",
            lambda root, quick=False, state=state: iter(
                [Finding("ok", "Python"), Finding(state, "disk", "free some")]
            ),
        )
        result = CliRunner().invoke(app, ["doctor"])
        assert (result.exit_code, result.output.splitlines()[1]) == (
            code,
            f"{state:<9}disk: free some",
        )


def test_works_without_the_packages(tmp_path):
    """With the standard library alone, as after an install that did not end, the doctor still
    speaks, and only of what is missing.
    """
    shutil.copytree(
        ROOT / "zeromodel", tmp_path / "zeromodel", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-S", "-m", "zeromodel.doctor"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "not installed: torch" in done.stdout and all(
        line[:8].strip() in ("ok", "note", "problem") for line in done.stdout.splitlines()
    )


def fake(folder: Path, name: str, body: str) -> Path:
    """An executable that runs `body`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def make(folder: Path, python: Path | str) -> subprocess.CompletedProcess:
    """`make .venv/bin/.installed` with another Python, in a folder with nothing but what the
    rule depends on.
    """
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return run("make", ".venv/bin/.installed", f"PYTHON={python}", cwd=folder, check=False)


@pytest.mark.parametrize("python", ["no-such-python", "old"])
def test_make_names_the_wrong_python_in_one_line(tmp_path, python):
    # what `assert sys.version_info >= (3, 11)` does there
    if python == "old":
        python = fake(tmp_path, "python3.9", "exit 1")
    done = make(tmp_path, python)
    assert (
        done.returncode == 2
        and len(done.stderr.splitlines()) == 1
        and f"'{python}'" in done.stderr
        and "make PYTHON=" in done.stderr
    )
    assert not (tmp_path / ".venv").exists()


PIP = (
    'echo "$*" >> "$(dirname "$0")/../../calls"; case "$*" in *editable*) exit $(cat "$(dirname'
    ' "$0")/../../fails");; esac'
)


def test_make_resumes_an_interrupted_install(tmp_path):
    """An install that failed leaves no mark and one line; the next make installs again in the
    same environment; one whose pip is gone is made anew.
    """
    venv = fake(
        tmp_path,
        "python3",
        'case "$*" in *venv*) mkdir -p .venv/bin;'
        f' cp "{tmp_path}/inner" .venv/bin/python; echo made >> calls;; esac',
    )
    fake(tmp_path, "inner", PIP)
    (tmp_path / "fails").write_text("1")
    done = make(tmp_path, venv)
    assert (
        done.returncode == 2
        and "make again goes on" in done.stdout
        and not (tmp_path / ".venv/bin/.installed").exists()
    )
    (tmp_path / "fails").write_text("0")
    assert make(tmp_path, venv).returncode == 0 and (tmp_path / ".venv/bin/.installed").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.count("made") == 1 and sum("--editable" in c for c in calls) == 2
    (tmp_path / ".venv/bin/.installed").unlink()
    fake(tmp_path, ".venv/bin/python", "exit 1")  # interrupted while it was made: no pip
    assert make(tmp_path, venv).returncode == 0
    assert (tmp_path / "calls").read_text().splitlines().count("made") == 2
