"""The pipeline as a user has it: tiny studies in copies of the repository, killed and changed."""

import hashlib
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import BIN, commit, copy_repository, run

SEEDS = [0, 1]


def shrink(folder: Path, **changes):
    """A study of seconds: two experiments, two seeds, 120 steps; the first checkpoint comes
    after a twelfth of them.
    """
    path = folder / "params.yaml"
    p = yaml.safe_load(path.read_text())
    p |= {
        "seeds": SEEDS,
        "run": ["baseline", "mla_lru_adaptive"],
        "contrast": {"control": "baseline", "treatment": "mla_lru_adaptive"},
    }
    p["problems"] |= {"train": 2000, "validation": 50}
    p["model"] |= {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "kv_latent_dim": 16,
        "rope_head_dim": 4,
    }
    p["training"] |= {
        "steps": 120,
        "batch_size": 8,
        "warmup_steps": 5,
        "evaluate_every": 10,
        "halting_from": 60,
    }
    for e in p["experiments"].values():
        for key in ("lru_intermediate_size", "lru_num_heads"):
            e.get("model", {}).pop(key, None)
    path.write_text(yaml.safe_dump(p | changes, sort_keys=False))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())
    # test_report.py runs the others
    stages["stages"]["analysis"]["matrix"]["notebook"] = ["accuracy"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    commit(folder, "small")


def study(folder: Path, check: bool = True) -> subprocess.CompletedProcess:
    return run("zeromodel", "study", "run", cwd=folder, check=check)


def ran(done: subprocess.CompletedProcess) -> set[str]:
    """The stages that DVC ran."""
    return {
        line.split("'")[1]
        for line in (done.stdout + done.stderr).splitlines()
        if line.startswith("Running stage")
    }


def weights(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted((folder / "runs").rglob("model/model.safetensors"))
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, benchmark) -> dict[str, str]:
    """The weights of a small study whose training was never interrupted."""
    folder = copy_repository(tmp_path_factory.mktemp("unbroken") / "copy", benchmark)
    shrink(folder)
    run("dvc", "repro", "train", cwd=folder)
    return weights(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, benchmark):
    """A small study that was killed in training and run again to the report: its folder, what
    it printed, and its weights.
    """
    folder = copy_repository(tmp_path_factory.mktemp("study") / "copy", benchmark)
    shrink(folder)
    if Path("/proc").exists():
        kill_in_training(folder, "zeromodel study run", "both")
    return folder, study(folder), weights(folder)


def edit(folder: Path, name: str, old: str, new: str):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_reaches_the_report(finished):
    folder, done, trained = finished
    assert len(trained) == 4 and len(set(trained.values())) == 4  # other seeds, other weights
    assert "Verdict:" in done.stdout and "baseline" in done.stdout
    page = (folder / "reports/nano/index.html").read_text()
    for source in ("figures/accuracy_by_depth.png", "baseline/runs.json"):
        assert source in page and (folder / "reports/nano" / source).exists()


def test_only_what_depends_on_a_change_runs_again(finished):
    folder, _, trained = finished
    lock = folder / "dvc.lock"
    locked = lock.read_bytes()
    assert ran(study(folder)) == set()
    edit(
        folder,
        "zeromodel/model/lru.py",
        '"Causal multi-head attention over latents',
        '"Attention over latents',
    )
    # a docstring: looked at, nothing rerun, nothing to commit
    assert ran(study(folder)) == set()
    assert ran(run("dvc", "repro", cwd=folder)) == {"code"}
    assert run("dvc", "status", cwd=folder).stdout.split() == ["code:", "always", "changed"]
    assert lock.read_bytes() == locked
    edit(folder, "zeromodel/study/report.py", 'f"{x:.3f}"', 'f"{x:.4f}"')
    assert ran(run("dvc", "repro", cwd=folder)) == {"code", "analysis@accuracy", "report"}
    assert lock.read_bytes() != locked
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["experiments"]["baseline"]["training"] = {"learning_rate": 0.002}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    again = ran(study(folder))
    assert {"configs", "train@baseline", "evaluate@baseline", "report"} <= again
    assert not {"problems", "train@mla_lru_adaptive", "evaluate@mla_lru_adaptive"} & again
    changed = {name for name, digest in weights(folder).items() if trained[name] != digest}
    assert changed == {name for name in trained if "/baseline/" in name}


def processes_in(folder: Path) -> dict[int, bytes]:
    """The command lines of the living processes that work in `folder`."""
    found = {}
    for p in Path("/proc").iterdir():
        try:
            if (
                p.name.isdigit()
                and os.readlink(p / "cwd") == str(folder)
                and "Z" not in (p / "stat").read_text().rpartition(")")[2].split()[0]
            ):
                found[int(p.name)] = (p / "cmdline").read_bytes()
        except OSError:
            pass
    return found


def killed_in_training(folder: Path, command: str, victim: str, within: float) -> bool:
    """Start `command` and SIGKILL `victim` at a random moment `within` so many seconds of the
    first checkpoint of its last experiment; whether that was before the end. No process is left.
    """
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    env.pop("SHELL", None)  # DVC then takes /bin/sh, which stays between it and a stage
    pipeline = subprocess.Popen(
        command.split(),
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while (
        not list(folder.glob("runs/nano/train/mla_lru_adaptive/*/checkpoints"))
        and pipeline.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.02)
    time.sleep(within * random.random())
    trainers = [
        pid
        for pid, c in processes_in(folder).items()
        if pid != pipeline.pid and (b"zeromodel\0train\0" in c or b"zeromodel\0study\0run" in c)
    ]
    alive = pipeline.poll() is None
    for pid in {"trainer": trainers, "dvc": [pipeline.pid], "both": [*trainers, pipeline.pid]}[
        victim
    ]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pipeline.wait(60)
    deadline = time.time() + 20
    while processes_in(folder) and time.time() < deadline:
        time.sleep(0.1)
    assert processes_in(folder) == {}
    return bool(trainers) and alive and len(weights(folder)) < 4


def kill_in_training(folder: Path, command: str, victim: str):
    """`killed_in_training`, again from nothing when a fast machine was done before."""
    for within in (0.3, 0.1, 0):
        if killed_in_training(folder, command, victim, within):
            return
        run("git", "clean", "-qfdx", "runs", "reports", ".dvc/cache", cwd=folder)
        run("git", "checkout", "-q", ".", cwd=folder)
    pytest.fail("training was over before it could be killed, three times")


needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for orphans in /proc")


@needs_proc
@pytest.mark.parametrize(
    "command, victim", [("zeromodel study run", "trainer"), ("dvc repro", "dvc")]
)
def test_killed_and_run_again(copy, unbroken, command, victim):
    """SIGKILL in training: no orphan is left, and the next run ends with the weights of an
    unbroken one.
    """
    shrink(copy)
    kill_in_training(copy, command, victim)
    run("dvc", "repro", "train", cwd=copy)
    assert weights(copy) == unbroken


@needs_proc
def test_killed_and_run_again_to_the_report(finished, unbroken):
    """The trainer and the pipeline are killed together."""
    assert finished[2] == unbroken


@pytest.mark.parametrize(
    "path, change, expected",
    [
        (
            "training",
            {"learning_rat": 1},
            "training.learning_rat: no such key; did you mean training.learning_rate?",
        ),
        (
            "model",
            {"hidden_size": -64},
            "model.hidden_size=-64: must be a whole number of at least 1",
        ),
        ("", {"run": ["baseline", "mla_onli"]}, "run='mla_onli': must be one of"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(copy, path, change, expected):
    params = yaml.safe_load((copy / "params.yaml").read_text())
    (params[path] if path else params).update(change)
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    before = run("git", "status", "--porcelain", "--ignored", cwd=copy).stdout.split()
    done = study(copy, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert expected in done.stderr
    written = set(run("git", "status", "--porcelain", "--ignored", cwd=copy).stdout.split()) - set(
        before
    )
    assert all("__pycache__" in name for name in written - {"!!"}), written
