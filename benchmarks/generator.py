"""How many problems a second? The fast generator beside a plain one and beside reasoning_gym, in
one run, text written to disk. `make bench`
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from naive_generator import naive_problems

from zeromodel.tasks.causal_loop.datasets import write_dataset
from zeromodel.tasks.causal_loop.generator.arrow import FIELDS
from zeromodel.tasks.causal_loop.problem import settle
from zeromodel.tasks.causal_loop.suites import LEVELS, SUITES

SUITE = SUITES["standard"]
TEXT = ("id", "level", "depth", "tau", "text", "query", "answer", "hash")
PEER = """
import json, sys, time, reasoning_gym
name, n, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = reasoning_gym.create_dataset(name, size=n, seed=0)
began = time.perf_counter()
with open(path, "w") as file:
    for x in data:
        line = json.dumps({"question": x["question"], "answer": x["answer"]})
        file.write(line + "\\n")
print(time.perf_counter() - began)
"""


def seconds(work: Callable) -> float:
    """How long `work()` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ours(
    folder: Path,
    level: int,
    n: int,
    *,
    threads: int = 2,
    fields: tuple[str, ...] = TEXT,
    format: str = "parquet",
    **options,
) -> float:
    """Problems a second of our generator, written to disk."""

    def write(count):
        return write_dataset(
            folder / "x",
            "standard",
            "train",
            {level: 1.0},
            count,
            0,
            format,
            fields,
            threads=threads,
            **options,
        )

    write(1000)  # compiled, catalogue made
    return n / seconds(lambda: write(n))


def naive(folder: Path, level: int, n: int) -> float:
    """Problems a second of the plain generator, written to disk as JSON lines."""
    began, written = time.perf_counter(), 0
    with (folder / "x").open("w") as file:
        for p in naive_problems(SUITE, "train", level, n, seed=0, distinct=True):
            answer = [settle(p).values[v] for v in p.query]
            file.write(json.dumps({"text": str(p), "query": p.query, "answer": answer}) + "\n")
            written += 1
    return written / (time.perf_counter() - began)


def peer(folder: Path, python: str, name: str, n: int) -> float:
    """Problems a second of task `name` of reasoning_gym, run by `python`."""
    done = subprocess.run(
        [python, "-c", PEER, name, str(n), str(folder / "x")],
        capture_output=True,
        text=True,
        check=True,
    )
    return n / float(done.stdout)


def best(speed: Callable[[], float], repeat: int = 3) -> float:
    """The best of some runs; the others are slower because the machine was busy."""
    return max(speed() for _ in range(repeat))


def measure_level(folder: Path, level: int, n: int) -> dict:
    """One row of the table: problems a second of one level."""

    def speed(count: int, **options) -> float:
        return best(partial(ours, folder, level, count, **options))

    few = {1: 2000, 2: 20, 3: 2000, 4: 4}[level]
    return {
        "what": f"level {level}, {LEVELS[level]}, {SUITE.num_vars} variables",
        "text": speed(n),
        "text, duplicates allowed": speed(n, distinct=False),
        "text as Arrow": speed(n, format="arrow"),
        "text as Arrow, duplicates allowed": speed(n, format="arrow", distinct=False),
        "text as JSON lines": speed(n // 2, format="jsonl"),
        "whole samples": speed(n // 3, fields=FIELDS),
        "text, one thread": speed(n // 2, threads=1),
        "plain Python": best(partial(naive, folder, level, few), repeat=1),
    }


def measure(python: str, scale: float = 1.0) -> list[dict]:
    """All rows of the table."""
    rows, sizes = [], {1: 3_000_000, 2: 600_000, 3: 600_000, 4: 300_000}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for level, n in sizes.items():
            rows.append(measure_level(folder, level, int(n * scale)))
            print(rows[-1], file=sys.stderr)
        for name in ("chain_sum", "basic_arithmetic"):
            speed = best(partial(peer, folder, python, name, int(20_000 * scale)))
            rows.append({"what": f"reasoning_gym {name}", "text": speed})
    return rows


def peak_memory(n: int) -> float:
    """Peak memory in gigabytes while `n` problems of all levels are written by a new process.

    On Linux a process starts with the peak of its parent, so this is measured before anything else.
    """
    code = f"""
import resource, tempfile
from pathlib import Path
from zeromodel.tasks.causal_loop.generator.arrow import FIELDS
from zeromodel.tasks.causal_loop.datasets import write_dataset
levels = dict.fromkeys((1, 2, 3, 4), 1.0)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "x"
    write_dataset(file, "standard", "train", levels, {n}, 0, "parquet", {TEXT!r}, threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 2**20


def machine() -> str:
    """The processor, the number of cores and the version of Python."""
    try:
        model = next(
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def as_markdown(rows: list[dict], memory: dict[int, float]) -> str:
    """The table and what must be known to read it."""
    columns = list(dict.fromkeys(c for r in rows for c in r))
    peers = [r["text"] for r in rows if r["what"].startswith("reasoning_gym")]
    against_peers = rows[0]["text"] / max(peers)
    against_plain = rows[0]["text"] / rows[0]["plain Python"]

    def cell(x):
        if x is None or isinstance(x, str):
            return x or ""
        return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"

    lines = [
        (
            "Samples a second, best of three, written to disk (parquet unless it says otherwise)"
            " without duplicates by canonical hash, two threads unless it says otherwise;"
            f" {machine()}."
        ),
        "",
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(cell(r.get(c)) for c in columns) + " |" for r in rows),
        "",
        (
            "Columns are measured one after the other on a shared machine, whose speed changes by"
            " up to a factor of two within minutes. Duplicates need not be faster: in level 3"
            " problems of depth 1 take the longest to find, and without duplicates all of them are"
            " soon drawn."
        ),
        "",
        (
            f"Level 1 is written {against_peers:,.0f} times as fast as the faster task of"
            f" reasoning_gym, and {against_plain:,.0f} times as fast as by plain Python."
        ),
        "",
        (
            "Plain Python is measured on few problems; of level 4 only on the easiest, which settle"
            " at lap 1 to 4, as many as come in half a minute. Plain Python and reasoning_gym write"
            " JSON lines with one thread."
        ),
        "",
        *(
            f"Memory while {n:,} problems of all levels are written: {gigabytes:.2f} GB at most."
            for n, gigabytes in memory.items()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    python, out = sys.argv[1], Path("reports/bench")
    memory = {n: peak_memory(n) for n in (1_000_000, 10_000_000)}
    rows = measure(python)
    out.mkdir(parents=True, exist_ok=True)
    (out / "generator.json").write_text(
        json.dumps(
            {"machine": machine(), "samples_per_second": rows, "peak_gigabytes": memory}, indent=1
        )
        + "\n"
    )
    (out / "generator.md").write_text(as_markdown(rows, memory))
    print((out / "generator.md").read_text())
