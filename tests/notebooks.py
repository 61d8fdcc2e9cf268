"""Execute the notebooks, each in a process of its own, and compare or save their outputs.

    python tests/notebooks.py             execute all; fail on an error or another text output
    python tests/notebooks.py --save      execute all and save what the cells print and draw
    python tests/notebooks.py --clean     execute nothing; remove traces of an execution

Names of notebooks after the options replace "all". Flags are those of nbdev: a cell with
`#| eval: false` or with a flag of `tst_flags` (settings.ini) is not executed and keeps its outputs.
A cell with `#| hide` or `#| hide_output` is executed, and its outputs are neither saved nor
compared. Standard error, progress bars and widgets are left out.
"""

import argparse
import base64
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The same in every execution. Read when Python or a library starts, so they are set before that.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the order of sets
    "OMP_NUM_THREADS": "1",  # the order of sums; and as many processes as cores use them all
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "COLUMNS": "100",
    "LINES": "40",
    "NO_COLOR": "1",
    "MPLBACKEND": "agg",
}
# The longest begin, so that no process is left with one of them at the end.
LONGEST = ("datasets", "ablation", "runner", "recipe", "stages", "cli")
LIBRARIES = (
    "execnb.shell",
    "matplotlib.pyplot",
    "nbdev.process",
    "pandas",
    "scipy.stats",
    "torch",
    "transformers",
)
IMAGE_BYTES, DPI = 100_000, 80
NUMBER = re.compile(r"[-+]?\d*\.\d+(?:e[-+]?\d+)?|[-+]?\d+e[-+]?\d+", re.I)
STYLED = re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)")


def has_outputs(path: Path) -> bool:
    """Whether outputs are committed: not for the index, which becomes the README, nor for the
    notebooks of the report, which the pipeline executes.
    """
    return path.name != "index.ipynb" and "analysis" not in path.parts


def notebooks(names: list[str]) -> list[Path]:
    """These notebooks, or all that nbdev_test would execute; the longest first."""
    paths = [Path(name).resolve() for name in names] or [
        path
        for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts and not (path.parent / ".notest").exists()
    ]
    return sorted(paths, key=lambda path: not path.stem.endswith(LONGEST))


def text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def tidy(outputs: list[dict], cell_id: str) -> list[dict]:
    """Outputs without standard error, widgets and what differs between executions."""
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or any("widget" in kind for kind in data):
            continue
        for image in (data[kind] for kind in data if kind == "image/png"):
            if (size := len(base64.b64decode(image))) > IMAGE_BYTES:
                raise ValueError(f"a figure of {size:,} bytes; at most {IMAGE_BYTES:,} are kept")
        if "text/html" in data:  # a styled table has a random identifier
            data["text/html"] = STYLED.sub(f"T_{cell_id}", text(data["text/html"])).splitlines(True)
        kept.append(output)
    return kept


def text_outputs(outputs: list[dict]) -> str:
    """What a cell says in words: streams and plain text."""
    parts = [text(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs]
    return "\n".join(part.rstrip("\n") for part in parts if part.strip())


def same(old: str, new: str) -> bool:
    """Whether two outputs say the same.

    Numbers with a fraction may differ by one in the last digit, since another processor adds in
    another order; how many blanks stand between words does not count.
    """
    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
        return False
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        mantissa, _, exponent = a.lower().partition("e")
        digits = len(mantissa.partition(".")[2])
        if abs(float(a) - float(b)) > 1.01 * 10.0 ** (int(exponent or 0) - digits):
            return False
    return True


def new_shell(path: Path):
    """A shell with an empty namespace; its figures are PNG of a modest size."""
    from execnb.shell import CaptureShell
    from matplotlib_inline.config import InlineBackend

    shell = CaptureShell(path, mpl_format="png")
    InlineBackend.instance(parent=shell).print_figure_kwargs = {
        "bbox_inches": "tight",
        "dpi": DPI,
        "metadata": {"Software": None},
    }
    return shell


def remove_traces(notebook):
    """What nbdev_clean does: execution counts, memory addresses and other metadata go."""
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    keys = get_config(path=ROOT).get("allowed_cell_metadata_keys").split()
    clean_nb(notebook, allowed_cell_metadata_keys=keys, clean_ids=True)


def execute(path: Path, save: bool) -> str:
    """Execute a notebook and save its outputs, or compare them; what went wrong, or nothing."""
    from execnb.nbio import read_nb, write_nb
    from nbdev.config import get_config
    from nbdev.process import extract_directives

    os.chdir(path.parent)
    sys.path.insert(0, str(ROOT))
    os.environ["IN_TEST"] = "1"  # as under nbdev_test
    notebook, shell, found = read_nb(path), new_shell(path), []
    not_executed = set(get_config(path=ROOT).tst_flags.split())
    committed = [text_outputs(cell.get("outputs", [])) for cell in notebook.cells]
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        directives = extract_directives(cell, remove=False)
        evaluate = directives.get("eval:", ["true"])[0].lower() != "false"
        if not_executed & directives.keys() or not evaluate:
            continue
        outputs = shell.run(cell.source)
        if shell.exc:
            message = "".join(traceback.format_exception(shell.exc))
            return f"cell {index}:\n{cell.source}\n\n{message}"
        cell.outputs = []
        if has_outputs(path) and not directives.keys() & {"hide", "hide_output"}:
            try:
                cell.outputs = tidy(outputs, cell.id)
            except ValueError as error:
                return f"cell {index}: {error}"
    remove_traces(notebook)
    if save:
        write_nb(notebook, path)
        return ""
    for index, (cell, old) in enumerate(zip(notebook.cells, committed, strict=True)):
        new = text_outputs(cell.get("outputs", []))
        if not same(old, new):
            found.append(f"cell {index}: committed output:\n{old}\n\noutput now:\n{new}\n")
    if found:
        found.append("If the outputs of now are right, save them: make outputs")
    return "\n".join(found)


def child(path: Path, save: bool, connection):
    """Execute a notebook and send what went wrong."""
    try:
        problem = execute(path, save)
    except BaseException:
        problem = traceback.format_exc()
    connection.send(problem)


def execute_all(paths: list[Path], save: bool, workers: int) -> Iterator[tuple[Path, str, float]]:
    """Execute notebooks side by side; yields each with what went wrong and its seconds.

    Every notebook has a fresh process. It is forked from this one, which has imported the large
    libraries, so that they are imported once.
    """
    for name in LIBRARIES:
        import_module(name)
    context, queue, running = multiprocessing.get_context("fork"), list(paths), {}
    while queue or running:
        while queue and len(running) < workers:
            path = queue.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(path, save, sender))
            process.start()
            sender.close()
            running[receiver] = (path, process, time.time())
        for receiver in wait(list(running)):
            path, process, start = running.pop(receiver)
            try:
                problem = receiver.recv()
            except EOFError:
                problem = "the process ended before the notebook did"
            process.join()
            yield path, problem, time.time() - start


def clean(path: Path):
    """Remove traces of an execution; outputs too where none are committed."""
    from execnb.nbio import read_nb, write_nb

    notebook = read_nb(path)
    if not has_outputs(path):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
    remove_traces(notebook)
    write_nb(notebook, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="notebook", help="all when none is given")
    parser.add_argument("--save", action="store_true", help="save the outputs")
    parser.add_argument("--clean", action="store_true", help="only remove traces of an execution")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count(), 8))
    options = parser.parse_args()
    if options.clean:
        every = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
        for path in [Path(name).resolve() for name in options.names] or every:
            clean(path)
        return
    paths, failed, seconds = notebooks(options.names), [], {}
    for path, problem, took in execute_all(paths, options.save, options.workers):
        seconds[path] = took
        if problem:
            failed.append(path)
            print(f"FAILED {os.path.relpath(path)}: {problem}\n", flush=True)
    slow = sorted(seconds, key=seconds.get, reverse=True)[:10]
    print("slowest: " + ", ".join(f"{path.stem} {seconds[path]:.0f} s" for path in slow))
    print(f"{len(paths) - len(failed)} notebooks executed, {len(failed)} failed")
    for path in failed:
        print(f"  {os.path.relpath(path)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    main()
