"""The generator as a user has it: exact, the same everywhere, and clean when something goes
wrong.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import BIN, ROOT

from zeromodel.tasks.causal_loop.generator.stream import problems, tables
from zeromodel.tasks.causal_loop.problem import (
    Problem,
    canonical_hash,
    depths,
    parse,
    relevant,
    sample,
    solve,
)
from zeromodel.tasks.causal_loop.suites import (
    SPLITS,
    SUITES,
    splits_of,
    suite_named,
    variants,
)

# compared in the test of the two oracles
NUMBER_OF_PROBLEMS = int(os.environ.get("ORACLE_PROBLEMS", 40_000))
NAMES = [*SUITES, *(f"{base}/{variant}" for base in SUITES for variant in variants(base))]


def levels_of(name: str) -> dict[int, float]:
    return dict.fromkeys(
        {"deeper": (1, 3), "slower": (2, 4), "k_laps": (2, 4)}.get(
            name.partition("/")[2], (1, 2, 3, 4)
        ),
        1.0,
    )


def disagreements(name: str, split: str, n: int) -> list[str]:
    """Texts of `n` problems whose record, in any field, is not the one that plain Python makes
    of the text.
    """
    wrong, suite = [], suite_named(name)
    for part in tables(
        suite, split, levels_of(name), n, seed=1, forward=0.3, distinct=False, threads=1
    ):
        for made in part.to_pylist():
            plain = parse(made["text"])
            if made != sample(plain, made["level"], made["id"]) or not splits_of(plain, suite) <= {
                split
            }:
                wrong.append(made["text"])
    return wrong


def test_the_two_oracles_agree():
    """Every field of every record, over all levels, splits and suites.

    ORACLE_PROBLEMS=1000000 compares a million.
    """
    jobs = [(name, split) for name in NAMES for split in SPLITS]
    each = -(-NUMBER_OF_PROBLEMS // len(jobs))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for job, wrong in zip(
            jobs, pool.map(disagreements, *zip(*jobs, strict=True), [each] * len(jobs)), strict=True
        ):
            assert wrong == [], (job, wrong[:3])


def disguised(problem: Problem, shift: int) -> Problem:
    """The same question with other names, its rules in another order, operands of + and *
    swapped and the distractors gone.
    """
    needed = relevant(problem, problem.query)
    letters = sorted({r.target for r in problem.rules})
    name = dict(zip(letters, letters[shift:] + letters[:shift], strict=True))

    def rewrite(r):
        left, right = (name.get(x, x) for x in (r.left, r.right))
        return (
            r._replace(target=name[r.target], left=right, right=left)
            if r.operator in ("+", "*") and isinstance(right, str)
            else r._replace(target=name[r.target], left=left, right=right)
        )

    return Problem(
        problem.modulus,
        tuple(rewrite(r) for r in problem.rules if r.target in needed)[::-1],
        tuple(name[v] for v in problem.query),
        problem.laps,
    )


@pytest.mark.parametrize("name", SUITES)
def test_no_question_is_in_two_splits_however_disguised(name):
    suite, found = SUITES[name], {}
    for split in SPLITS:
        for i, (_, problem) in enumerate(
            problems(suite, split, dict.fromkeys((1, 2, 3, 4), 1.0), 400, seed=4)
        ):
            twin = disguised(problem, 1 + i % 5)
            assert canonical_hash(twin) == canonical_hash(problem) and splits_of(twin, suite) <= {
                split
            }
            assert [solve(twin).values[v] for v in twin.query] == [
                solve(problem).values[v] for v in problem.query
            ]
            assert found.setdefault(canonical_hash(twin), split) == split


def zeromodel(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        ["zeromodel", *arguments],
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_same_bytes_from_the_command(tmp_path):
    written = []
    for _i, threads in enumerate("12"):
        assert (
            zeromodel(
                "data",
                "--num-samples",
                "30000",
                "--out",
                str(tmp_path / threads),
                "--threads",
                threads,
                "--fields",
                "id,text,answer,hash",
            ).wait()
            == 0
        )
        written.append({p.name: p.read_bytes() for p in (tmp_path / threads).iterdir()})
    assert written[0] == written[1] and set(written[0]) == {
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
    }


def test_interrupted_and_started_again(tmp_path):
    out = tmp_path / "new" / "data"
    command = zeromodel(
        "data", "--num-samples", "20000000", "--levels", "1", "--splits", "train", "--out", str(out)
    )
    deadline = time.time() + 120
    while not list(tmp_path.rglob("*.jsonl.partial")) and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=60)
    assert (
        command.returncode == 130
        and error.strip().endswith("stopped; unfinished files were deleted")
        and "Traceback" not in error
    )
    assert list(tmp_path.iterdir()) == []
    assert (
        zeromodel(
            "data", "--num-samples", "100", "--levels", "1", "--splits", "train", "--out", str(out)
        ).wait()
        == 0
    )
    assert [p.name for p in out.iterdir()] == ["train.jsonl"]


# what a full disk does, at 200 kB
def full():
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow", "verl"])
def test_a_full_disk(tmp_path, format):
    command = zeromodel(
        "data",
        "--num-samples",
        "6000",
        "--levels",
        "1",
        "--format",
        format,
        "--out",
        str(tmp_path / "new"),
        preexec_fn=full,
    )
    _, error = command.communicate()
    assert (
        command.returncode == 2
        and error.strip().splitlines()[-1].startswith("zeromodel: ")
        and "File too large" in error
        and "Traceback" not in error
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "data", Path("/proc/data")):
        command = zeromodel("data", "--num-samples", "10", "--out", str(out))
        _, error = command.communicate()
        assert (
            command.returncode == 2 and len(error.strip().splitlines()) == 1 and str(out) in error
        )
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("level, n", [(1, 16), (2, 1), (3, 16)])
def test_the_plain_generator_makes_the_same_kind_of_problems(level, n, monkeypatch):
    """What `make bench` compares with: in the split, as difficult as asked for."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from naive_generator import naive_problems

    suite = SUITES["standard"]
    made = list(naive_problems(suite, "train", level, n, seed=0, distinct=True))
    fast = [p for _, p in problems(suite, "train", {level: 1}, n, seed=0)]
    for p, f in zip(made, fast, strict=True):
        assert splits_of(p, suite) == {"train"} and (
            len(p.rules),
            len(p.initial),
            len(p.seeds),
        ) == (len(f.rules), len(f.initial), len(f.seeds))
        assert solve(p).tau == 1 if level == 2 else depths(p)[p.query[0]] == depths(f)[f.query[0]]
