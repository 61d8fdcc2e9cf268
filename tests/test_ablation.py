"""Part of a study by hand: planned, interrupted, failed, continued.

The studies are tiny, and so is the test suite that they answer.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_study import weights
from typer.testing import CliRunner

from zeromodel.cli import app
from zeromodel.study import ablation as module
from zeromodel.study.runner import train_experiments
from zeromodel.study.stages import write_problems
from zeromodel.tasks.causal_loop.datasets import write_dataset

RUNS = Path("runs/nano/train")


def tiny(folder: Path) -> Path:
    """A study of seconds: two experiments, two seeds, twenty steps; a third experiment cannot be
    trained, and the suite has a few questions.
    """
    p = yaml.safe_load((ROOT / "params.yaml").read_text())
    p |= {
        "seeds": [0, 1],
        "run": ["baseline", "mla_lru_adaptive"],
        "contrast": {"control": "baseline", "treatment": "mla_lru_adaptive"},
    }
    p["problems"] |= {"train": 200, "validation": 20}
    p["model"] |= {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "kv_latent_dim": 16,
        "rope_head_dim": 4,
        "lru_intermediate_size": 16,
        "lru_num_heads": 2,
    }
    p["training"] |= {
        "steps": 20,
        "batch_size": 8,
        "warmup_steps": 2,
        "evaluate_every": 10,
        "halting_from": 10,
    }
    p["experiments"] = {
        "baseline": {"model": {"attention": "gqa", "use_lru": False}},
        "mla_lru_adaptive": {},
        "mla_only": {
            "model": {"use_lru": False},
            "training": {
                "learning_rate": 1e30,
                "optimizer": "adamw",
                "around_unit": 1.0,
                "warmup_steps": 0,
            },
        },
        "cot": {"model": {"attention": "gqa", "use_lru": False}, "training": {"format": "cot"}},
    }
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(p, sort_keys=False))
    write_dataset(folder / "data/nano/test.jsonl", "nano", "test", {1: 1.0}, 40, 0, forward=1.0)
    return folder


@pytest.fixture
def ablation(monkeypatch):
    """The command in a folder that is no repository."""
    monkeypatch.setattr(module, "check_benchmark", lambda: None)

    def call(folder: Path, *args: str, code: int = 0):
        monkeypatch.chdir(folder)
        done = CliRunner().invoke(app, ["ablation", *args])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done

    return call


def plan(done) -> dict[str, tuple[str, str]]:
    """What --dry-run says of each cell: train or keep, and why."""
    return {
        line.split()[0]: (line.split()[1], line.split("  ")[-1].strip())
        for line in done.stdout.splitlines()[1:]
    }


def files(folder: Path) -> dict[str, float]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file()
    }


def record(folder: Path) -> dict:
    return json.loads((folder / "reports/nano/ablation.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """One seed of two experiments trained, the third one failed; and what was said."""
    folder, here = tiny(tmp_path_factory.mktemp("ablation") / "study"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_benchmark", lambda: None)
        patch.chdir(folder)
        done = CliRunner().invoke(
            app,
            [
                "ablation",
                "--experiments",
                "baseline",
                "mla_lru_adaptive",
                "mla_only",
                "--seeds",
                "0",
                "--at-once",
                "2",
            ],
        )
    assert done.exit_code == 0 and Path.cwd() == here, done.output + repr(done.exception)
    return folder, done.output


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained[0], tmp_path / "study"))


def test_dry_run_of_nothing_lists_everything_and_writes_nothing(tmp_path, ablation):
    before = files(tiny(folder := tmp_path / "study"))
    assert plan(ablation(folder, "--dry-run")) == {
        f"{name}/{seed}": ("train", "new")
        for name in ("baseline", "mla_lru_adaptive")
        for seed in (0, 1)
    }
    assert list(
        plan(ablation(folder, "--dry-run", "--experiments", "mla_only,baseline", "--seeds", "1"))
    ) == ["baseline/1", "mla_only/1"]
    assert files(folder) == before


def test_what_is_there_is_kept_and_what_failed_is_shown(finished, trained, ablation):
    assert (
        "mla_only/0 failed: the loss is" in trained[1]
        and "Verdict:" in trained[1]
        and "(holm)" in trained[1]
    )
    before, every = (
        files(finished),
        ("--dry-run", "--experiments", "baseline,mla_lru_adaptive,mla_only"),
    )
    found = plan(ablation(finished, *every))
    assert {name for name, (what, _) in found.items() if what == "train"} == {
        "baseline/1",
        "mla_lru_adaptive/1",
        "mla_only/1",
    }
    assert (
        found["baseline/0"] == ("keep", "exists")
        and found["baseline/1"][1] == "new"
        and found["mla_only/0"][1].startswith("failed before: the loss is")
    )
    assert plan(ablation(finished, *every, "--retry-failed"))["mla_only/0"][0] == "train"
    assert files(finished) == before
    page = (finished / "reports/nano/index.html").read_text()
    assert "failed: the loss is" in page and "missing" in page


def test_the_same_cells_as_the_pipeline(finished, ablation):
    """What was trained by hand the pipeline's stage does not train again, and the other way
    round.
    """
    ablation(finished, "--dry-run")
    stamp, mine = (
        (finished / "runs/nano/train/baseline/0/model/model.safetensors").stat().st_mtime_ns,
        weights(finished),
    )
    train_experiments("nano", ["baseline"])
    assert len(weights(finished)) == len(mine) + 1 and mine.items() <= weights(finished).items()
    assert (
        finished / "runs/nano/train/baseline/0/model/model.safetensors"
    ).stat().st_mtime_ns == stamp
    found = plan(ablation(finished, "--dry-run"))
    assert found["baseline/1"] == ("keep", "exists") and found["mla_lru_adaptive/1"] == (
        "train",
        "new",
    )


def test_contrasts_are_declared_before_and_never_changed(finished, ablation):
    first = record(finished)["contrasts"]
    assert [(c["role"], c["control"], c["treatment"], c["seen_before"]) for c in first] == [
        ("primary", "baseline", "mla_lru_adaptive", []),
        ("ablation", "mla_only", "mla_lru_adaptive", []),
    ]
    params = yaml.safe_load((finished / "params.yaml").read_text())
    params["contrast"]["smallest_effect"] = 0.01
    (finished / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    said = ablation(finished, "--seeds", "0").stdout
    assert record(finished)["contrasts"][:2] == first and record(finished)["contrasts"][2][
        "seen_before"
    ] == ["baseline/0", "mla_lru_adaptive/0"]
    assert "declared when 2 of its cells had been seen" in said


def test_a_failed_cell_is_tried_again_only_when_asked(finished, ablation):
    manifest, mine = finished / RUNS / "mla_only/0/manifest.json", weights(finished)
    before, select = manifest.stat().st_mtime_ns, ("--experiments", "mla_only", "--seeds", "0")
    assert (
        "mla_only/0 failed" in ablation(finished, *select).stderr
        and manifest.stat().st_mtime_ns == before
    )
    ablation(finished, *select, "--retry-failed")
    assert manifest.stat().st_mtime_ns > before and weights(finished) == mine
    assert [
        len(c["failures"])
        for c in record(finished)["cells"].values()
        if c["experiment"] == "mla_only" and c["seed"] == 0
    ] == [1]


def interrupted(folder: Path, how: signal.Signals) -> int:
    """Start the ablation and stop it as soon as one cell is finished; the exit code."""
    command = (
        "from zeromodel.study import ablation; ablation.check_benchmark = lambda: None; from"
        " zeromodel.cli import app; app(['ablation', '--at-once', '1'])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while (
        not list((folder / RUNS).glob("*/*/manifest.json"))
        and process.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.02)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        os.kill(process.pid, how)
    return process.wait(60)


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_and_continued(tmp_path, ablation, monkeypatch, how, code):
    """A finished cell is left as it is; the others are trained."""
    monkeypatch.chdir(tiny(folder := tmp_path / "study"))
    write_problems()  # compiling the generator takes longer than all the rest
    assert interrupted(folder, how) == code
    time.sleep(1.5)  # who lost its parent notices within half a second
    mine, stamps = weights(folder), files(folder)
    assert "runs/nano/train/baseline/0/model/model.safetensors" in mine and len(mine) < 4
    assert record(folder)["contrasts"]  # written before anything was trained
    done = ablation(folder)
    assert f"of {4 - len(mine)} cells" in done.stderr and "Verdict:" in done.stdout
    assert len(weights(folder)) == 4 and all(files(folder)[name] == stamps[name] for name in mine)
    assert {c["state"] for c in record(folder)["cells"].values()} == {"finished"}


def test_a_folder_of_its_own_has_what_belongs_to_it(finished, ablation):
    """With --output-dir: a whole report elsewhere, and nothing that is of other settings."""
    path = finished / RUNS / "mla_only/0/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "of another run"}))
    ablation(
        finished,
        "--experiments",
        "baseline",
        "mla_lru_adaptive",
        "--seeds",
        "0",
        "--output-dir",
        "elsewhere/report",
    )
    out = finished / "elsewhere/report"
    assert (
        (out / "index.html").exists()
        and (out / "ablation.json").exists()
        and not (out / "mla_only").exists()
    )
    assert [m["seed"] for m in json.loads((out / "baseline/runs.json").read_text())] == [0]


@pytest.mark.parametrize(
    "args, expected",
    [
        (["--experiments", "baselin"], "did you mean baseline?"),
        (["--seeds", "7"], "has the seeds 0, 1"),
        (["--seeds", "one"], "expected whole numbers"),
        (["--experiments", "cot"], "format cot"),
        (["--config", "studies/nanoo.yaml"], "no such file"),
    ],
)
def test_mistakes_end_in_one_line(finished, ablation, args, expected):
    for more in ([], ["--dry-run"]):
        done = ablation(finished, *args, *more, code=2)
        assert expected in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
