"""The worked examples of the README, carried out: a new halting rule, from notebook to verdict;
a new position mixing; a new task.
"""

import json
import os
from pathlib import Path

import yaml
from conftest import ROOT, commit, run

from zeromodel.study.config import compose, merge

README = (ROOT / "README.md").read_text()


def insert(folder: Path, notebook: str, old: str, new: str):
    """Put `new`, which the README tells, in the place of or before `old` in a cell of a
    notebook.
    """
    path = folder / f"nbs/{notebook}.ipynb"
    cells = json.loads(path.read_text())
    found = [c for c in cells["cells"] if old in "".join(c["source"])]
    assert len(found) == 1, (notebook, old)
    found[0]["source"] = "".join(found[0]["source"]).replace(old, new, 1).splitlines(keepends=True)
    path.write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n")


def export(folder: Path):
    """The package from the notebooks.

    What did not change keeps its time, so that the compiled generator is not compiled anew.
    """
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (folder / "zeromodel").rglob("*.py")
    }
    run("nbdev_export", cwd=folder)
    for path, (text, time) in before.items():
        if path.read_bytes() == text:
            os.utime(path, ns=(time, time))


def small_study(folder: Path, notebook: str, **changes):
    """The micro study with these changes, and with one analysis notebook."""
    params = merge(yaml.safe_load(compose("micro", folder / "studies")), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())
    stages["stages"]["analysis"]["matrix"]["notebook"] = [notebook]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))


def test_a_new_halting_rule(copy):
    name, rule, experiment = (
        '"convergence", "steady"',
        (
            'if kind == "steady": return torch.zeros_like(p), change <='
            " self.config.convergence_tolerance"
        ),
        (
            "halt_steady: {model: {lru_halting: steady, lru_global_halt: false,"
            " lru_convergence_tolerance: 0.3}}"
        ),
    )
    told = (
        "run: [mla_lru_adaptive, halt_steady]\ncontrast: {control: mla_lru_adaptive, treatment:"
        " halt_steady, smallest_effect: 0.05}\n"
    )
    for text in (name, rule, experiment, told):
        assert text in README
    insert(copy, "model/parts", '"convergence"\n', f"{name}\n")
    insert(
        copy,
        "model/halting",
        '        if kind == "convergence": enough',
        f'        {rule}\n        if kind == "convergence": enough',
    )
    export(copy)
    experiments = copy / "studies/experiments.yaml"
    experiments.write_text(experiments.read_text() + f"  {experiment}\n")
    small_study(copy, "halting", **yaml.safe_load(told))
    commit(copy, "a new halting rule")
    done = run("zeromodel", "study", "run", cwd=copy)
    assert "Verdict: halt_steady better than mla_lru_adaptive" in done.stdout
    stops = {
        row[8]
        for row in json.loads((copy / "reports/micro/evaluation/halt_steady.json").read_text())[
            "rows"
        ]
        if row[1] == 0
    }
    assert stops and stops <= {1, 2, 3}  # the column `iterations`, where nothing was forced


def test_a_new_position_mixing(copy):
    name, whether, what = (
        '"attention_base", "shift"',
        'self.shift = "shift" in config.mixing',
        (
            'if self.shift: x = x + past.tail(f"shift{step}", x, 1)[:, :-1] * (1 if layout.reach is'
            " None else (layout.reach >= 1)[..., None])"
        ),
    )
    for line in (name, whether, what):
        assert line in README
    insert(copy, "model/parts", '"attention_base"   ', f"{name}   ")
    insert(
        copy,
        "model/mixing",
        '        self.attention = LatentAttention(config) if "attention"',
        f'        {whether}\n        self.attention = LatentAttention(config) if "attention"',
    )
    insert(
        copy,
        "model/mixing",
        "        if self.conv is not None:\n            taps",
        f"        {what}\n        if self.conv is not None:\n            taps",
    )
    export(copy)
    # causal, the same told one by one, the same for a subset: every combination
    run("nbdev_test", "--path", "nbs/2_model/06_lru.ipynb", cwd=copy)
    # the position after it instead: the checks must see that
    insert(copy, "model/mixing", 'past.tail(f"shift{step}", x, 1)[:, :-1]', "x.roll(-1, 1)")
    export(copy)
    assert (
        run("nbdev_test", "--path", "nbs/2_model/06_lru.ipynb", cwd=copy, check=False).returncode
        != 0
    )


def test_a_new_task(copy):
    suite, size = (
        (
            '"seven": Suite(modulus=7, num_vars=5, num_names=26, depths=(1, 2), taus={2: (1, 2), 4:'
            " (1, 3)}, holdout_depth=2, apart=False, order_matters=False),"
        ),
        '"seven": {1: 300, 3: 300},',
    )
    for line in (suite, size, "dvc add data", "git add data.dvc"):
        assert line in README
    insert(copy, "tasks/suites", '    "standard": Suite(', f'    {suite}\n    "standard": Suite(')
    insert(copy, "tasks/files", '    "standard": {1: 800', f'    {size}\n    "standard": {{1: 800')
    # the other files have the same problems as ever, and take minutes
    insert(
        copy,
        "tasks/files",
        "for name in FROZEN_SIZES:\n            with",
        'for name in ("nano", "seven"):\n            with',
    )
    export(copy)
    small_study(
        copy,
        "accuracy",
        run=["baseline", "mla_lru_adaptive"],
        contrast={"control": "baseline"},
        problems={"suite": "seven"},
    )
    commit(copy, "a new task")
    run("rm", "-rf", "data", cwd=copy)
    stopped = run("zeromodel", "study", "prepare", cwd=copy, check=False)
    # the hash is never rewritten unasked
    assert stopped.returncode == 2 and "dvc add data" in stopped.stderr
    run("dvc", "add", "data", cwd=copy)
    run("git", "add", "data.dvc", cwd=copy)
    run("zeromodel", "study", "prepare", cwd=copy)
    run("zeromodel", "train", "baseline", cwd=copy)
    run("zeromodel", "evaluate", "baseline", cwd=copy)
    rows = json.loads((copy / "reports/micro/evaluation/baseline.json").read_text())["rows"]
    assert {row[2] for row in rows} == {1, 3}  # the column `level`: what was frozen
