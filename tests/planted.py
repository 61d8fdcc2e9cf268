"""Folders of reports in which the truth is known."""

from pathlib import Path

from zeromodel.evaluation.metrics import COLUMNS, FILE_COLUMNS
from zeromodel.io import write_json
from zeromodel.study.stages import write_answers

TINY = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, attention="gqa"
)
UNIT = TINY | dict(
    attention="mla",
    kv_latent_dim=8,
    rope_head_dim=4,
    use_lru=True,
    lru_max_iterations=2,
    lru_num_heads=2,
)


def answers(seed: int, accuracy: float, forced: int = 0, n: int = 1000, **keys) -> list[list[int]]:
    """Counts of `n` questions of the deepest depth, so many of them right."""
    row = (
        dict.fromkeys(COLUMNS, 0)
        | dict(seed=seed, forced=forced, level=1, forward=1, depth=3, iterations=forced or 2)
        | keys
    )
    return [
        [
            (row | {"correct": c, "n": round(n * (accuracy if c else 1 - accuracy))})[k]
            for k in FILE_COLUMNS
        ]
        for c in (0, 1)
    ]


def plant(
    report: Path,
    accuracy: dict[str, list[float | str]],
    models: dict[str, dict] | None = None,
    contrast: tuple[str, str] = ("a", "b"),
    forced: bool = False,
    seeds: list[int] | None = None,
) -> Path:
    """`accuracy`: for each experiment a value for each seed, or 'failed' or 'missing'; `models`:
    keys over a tiny baseline. No checkpoint, no data.
    """
    study = {
        "run": list(accuracy),
        "suite": "nano",
        "modulus": 5,
        "num_names": 6,
        "length": 40,
        "contrast": {"control": contrast[0], "treatment": contrast[1], "smallest_effect": 0.05},
        "problems": {"levels": {"1": 1.0}, "forward": 1.0},
    }
    write_json(report / "study.json", study)
    for name, values in accuracy.items():
        write_json(
            report / name / "config.json",
            {
                "seeds": seeds or list(range(len(values))),
                "config": {
                    "model": TINY | (models or {}).get(name, {}),
                    "training": {"steps": 9, "batch_size": 8},
                },
            },
        )
        runs, rows, reports = [], [], {}
        for seed, a in zip(seeds or range(len(values)), values, strict=True):
            if a == "missing":
                continue
            ended = (
                {"status": "failed", "error": "the loss is nan at step 7"}
                if a == "failed"
                else {"status": "finished", "parameters": 1000, "steps": 9, "seconds": 1.5}
            )
            runs.append({"experiment": name, "seed": seed} | ended)
            if a == "failed":
                continue
            rows += answers(seed, a) + answers(seed, 1.0, depth=1)
            reports[str(seed)] = {"lru": {"convergence_ratio": 0.25}}
            if forced:
                rows += [r for k in (1, 2, 3, 4) for r in answers(seed, a * k / 4, k)]
        write_json(report / name / "runs.json", runs)
        write_answers(report / name / "answers.parquet", rows, reports)
        write_json(report / name / "closeups.json", {"seed": None, "closeups": []})
    return report
