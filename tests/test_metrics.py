"""Metrics against a slow computation, the design document's example, interrupted evaluations."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeromodel.evaluation import evaluator
from zeromodel.evaluation.evaluator import (
    answers,
    evaluate,
    evaluate_whole,
    iteration_grid,
    read_evaluation,
)
from zeromodel.evaluation.metrics import (
    EvaluationReport,
    MetricsCollector,
    accuracy_metrics,
    compute_difficulty_curve,
    lru_metrics,
    samples_to_reach,
)
from zeromodel.evaluation.param_counter import ModelCost
from zeromodel.evaluation.speed import measure_speed
from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.tasks.causal_loop.encoding import make_tokenizer
from zeromodel.tasks.causal_loop.generator.stream import problems
from zeromodel.tasks.causal_loop.problem import parse, sample
from zeromodel.tasks.causal_loop.suites import SUITES

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
SAMPLES = [
    sample(p, level, str(i))
    for i, (level, p) in enumerate(problems(SUITES["nano"], "test", {1: 3, 2: 1, 3: 1}, 40, seed=0))
]
TOKENIZER = make_tokenizer(SUITES["nano"].modulus, SUITES["nano"].num_names)


def halting_model(seed: int = 0, **keys) -> DeepSeekMLAForCausalLM:
    """A small random model in which positions halt at different steps."""
    torch.manual_seed(seed)
    base = dict(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        kv_latent_dim=16,
        rope_head_dim=4,
        use_lru=True,
        lru_max_iterations=4,
        lru_halt_bias=-1.5,
        initializer_range=0.3,
    )
    model = DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**base | keys)).eval()
    for name, p in model.named_parameters():
        if "halting" in name and p.dim() > 1:
            torch.nn.init.normal_(p, std=0.6)
    return model


# ---------------------------------------------------------------- the design document's example

DOCUMENT = """
from verl.utils.evaluation_metrics import (
    MetricsCollector,
    EvaluationReport,
    compute_difficulty_curve,
    compare_experiments,
)

collector = MetricsCollector(max_iterations=8)

for batch in eval_dataloader:
    outputs = model(batch)

    collector.add_batch(
        predictions=outputs.predictions,
        targets=batch.targets,
        correct=outputs.correct,
        metadata=[{
            'level': m['level'],
            'num_vars': m['num_vars'],
            'num_steps': m['num_steps'],
        } for m in batch.metadata],
        lru_outputs=[{
            'avg_iterations': o.avg_iterations,
            'converged': o.converged,
        } for o in outputs.lru_outputs],
    )

accuracy = collector.compute_accuracy_metrics()
lru = collector.compute_lru_metrics()
efficiency = collector.compute_efficiency_metrics()

report = EvaluationReport(
    experiment_name="mla_lru_adaptive",
    accuracy=accuracy,
    lru=lru,
    efficiency=efficiency,
)
print(report)

report.to_json("results/eval_report.json")

curve = compute_difficulty_curve(accuracy.accuracy_by_level)
print(f"Accuracy slope: {curve['slope']:.4f} (per level)")
print(f"Difficulty resilience: {curve['difficulty_resilience']:.4f}")
"""


@pytest.mark.parametrize("of", ["units", "samples"])
def test_the_documents_example_runs_with_only_the_import_changed(of, tmp_path, monkeypatch, capsys):
    """`lru_outputs` are those of the units of our model, or one for each sample."""
    monkeypatch.chdir(tmp_path)
    network = halting_model()

    def model(batch):
        out = network(batch.ids)
        predictions = out.logits[:, -1].argmax(-1)
        each = [
            SimpleNamespace(avg_iterations=float(i), converged=bool(c))
            for i, c in zip(
                sum(u.avg_iterations for u in out.lru_outputs) / 2,
                out.lru_outputs[0].converged & out.lru_outputs[1].converged,
                strict=True,
            )
        ]
        return SimpleNamespace(
            predictions=predictions,
            correct=predictions == batch.targets,
            lru_outputs=out.lru_outputs if of == "units" else each,
        )

    loader = [
        SimpleNamespace(
            ids=torch.randint(len(TOKENIZER), (4, 9), generator=torch.Generator().manual_seed(i)),
            targets=torch.arange(4),
            metadata=[dict(level=1 + j % 2, num_vars=3, num_steps=j) for j in range(4)],
        )
        for i in range(3)
    ]
    space = dict(eval_dataloader=loader, model=model)
    exec(DOCUMENT.replace("verl.utils.evaluation_metrics", "zeromodel.evaluation.metrics"), space)
    out = capsys.readouterr().out
    for name in (
        "overall_accuracy",
        "accuracy_by_level",
        "accuracy_by_num_vars",
        "accuracy_by_num_steps",
        "avg_iterations",
        "convergence_ratio",
        "early_halt_ratio",
        "ponder_cost",
        "flops_reduction",
        "speedup_vs_fixed",
        "kv_compression_ratio",
        "Accuracy slope:",
        "Difficulty resilience:",
    ):
        assert name in out
    units = [u for b in loader for u in [network(b.ids).lru_outputs]]
    assert space["lru"].avg_iterations == pytest.approx(
        np.mean([u.num_iterations.float().mean() for pair in units for u in pair])
    )
    assert (
        EvaluationReport.from_json("results/eval_report.json").lru.avg_iterations
        == space["lru"].avg_iterations
    )


# ---------------------------------------------------------------- against slow code

row = st.fixed_dictionaries(
    dict(
        level=st.integers(1, 4),
        num_vars=st.integers(2, 5),
        num_steps=st.integers(1, 4),
        depth=st.integers(0, 4),
        tau=st.integers(0, 2),
        iterations=st.integers(1, 8),
        correct=st.integers(0, 1),
    )
)


def slow_ranks(x: list) -> list:
    """Return the rank of each value; equal values share their mean rank."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def slow_spearman(x: list, y: list) -> float:
    a, b = slow_ranks(x), slow_ranks(y)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    scale = math.sqrt(sum((p - mean_a) ** 2 for p in a) * sum((q - mean_b) ** 2 for q in b))
    return covariance / scale if scale else math.nan


@quick
@given(st.lists(row, min_size=1, max_size=25))
def test_metrics_are_those_of_a_slow_count(rows):
    accuracy = accuracy_metrics(pd.DataFrame(rows))
    lru = lru_metrics(pd.DataFrame(rows), max_iterations=8)
    assert accuracy.overall_accuracy == pytest.approx(sum(r["correct"] for r in rows) / len(rows))
    for key in ("level", "num_vars", "num_steps", "depth", "tau"):
        slow = {v: [r["correct"] for r in rows if r[key] == v] for v in {r[key] for r in rows}}
        assert getattr(accuracy, f"accuracy_by_{key}") == pytest.approx(
            {v: sum(c) / len(c) for v, c in slow.items()}
        )
    iterations = [r["iterations"] for r in rows]
    mean = sum(iterations) / len(rows)
    assert lru.avg_iterations == pytest.approx(mean)
    assert lru.ponder_cost == pytest.approx(mean / 8)
    early, converged = sum(i <= 2 for i in iterations), sum(i < 8 for i in iterations)
    assert lru.early_halt_ratio == pytest.approx(early / len(rows))
    assert lru.converged_ratio == pytest.approx(converged / len(rows))
    assert lru.depth_correlation == pytest.approx(
        slow_spearman(iterations, [r["depth"] for r in rows]), nan_ok=True
    )


@quick
@given(st.lists(row, min_size=1, max_size=20), st.integers(1, 20))
def test_batches_order_and_counting_do_not_matter(rows, cut):
    def collected(*batches):
        collector = MetricsCollector(8)
        for b in batches:
            if b:
                collector.add_batch(
                    [r["correct"] for r in b],
                    [1] * len(b),
                    metadata=[
                        {k: r[k] for k in ("level", "num_vars", "num_steps", "depth", "tau")}
                        for r in b
                    ],
                    lru_outputs=[
                        dict(avg_iterations=r["iterations"], converged=r["iterations"] < 8)
                        for r in b
                    ],
                )
        return str(
            EvaluationReport(
                "x",
                collector.compute_accuracy_metrics(),
                collector.compute_lru_metrics(),
                collector.compute_efficiency_metrics(),
            )
        )

    assert collected(rows) == collected(rows[:cut], rows[cut:]) == collected(rows[::-1])
    table = pd.DataFrame(rows)
    assert accuracy_metrics(table.value_counts().rename("n").reset_index()) == accuracy_metrics(
        table
    )


@quick
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.floats(0, 1)),
        min_size=1,
        max_size=8,
        unique_by=lambda t: t[0],
    ),
    st.floats(0, 1),
)
def test_the_curve_stays_at_the_threshold_from_the_returned_sample_on(points, threshold):
    n, a = zip(*sorted(points), strict=True)
    reached = samples_to_reach(n, a, threshold)
    grid = np.linspace(n[0], n[-1], 200)
    assert all(np.interp(x, n, a) >= threshold - 1e-9 for x in grid if x >= reached)
    assert (
        reached == math.inf
        or reached == n[0]
        or np.interp(reached, n, a) == pytest.approx(threshold)
    )
    assert (reached == math.inf) == (a[-1] < threshold)


def test_answers_are_those_of_the_model_question_by_question():
    model, expected = halting_model(), []
    with torch.no_grad():
        for i, s in enumerate(SAMPLES):
            ids = TOKENIZER(
                str(parse(s["text"])) + TOKENIZER.eos_token,
                return_tensors="pt",
                return_token_type_ids=False,
            )["input_ids"]
            out = model(ids)
            places = [p for p, t in enumerate(TOKENIZER.convert_ids_to_tokens(ids[0])) if t == "=?"]
            for place, true, depth in zip(places, s["answer"], s["query_depth"], strict=True):
                p = place - 1
                ratios = []
                for u in out.lru_outputs:
                    moved = [
                        u.residuals[k, 0, p].item() for k in range(int(u.num_iterations[0, p]))
                    ]
                    ratios.append(moved[-1] / moved[0])
                predicted = TOKENIZER.convert_ids_to_tokens([int(out.logits[0, p].argmax())])[0]
                expected.append(
                    dict(
                        sample=i,
                        level=s["level"],
                        forward=int(s["forward"]),
                        num_vars=s["num_vars"],
                        num_steps=len(s["rules"]),
                        tau=s["tau"],
                        depth=depth,
                        correct=int(predicted == str(true)),
                        iterations=sum(int(u.num_iterations[0, p]) for u in out.lru_outputs),
                        ponder_cost=np.mean([u.ponder_cost[0, p].item() for u in out.lru_outputs]),
                        convergence_ratio=np.mean(ratios),
                    )
                )
    expected, found = pd.DataFrame(expected), answers(model, TOKENIZER, SAMPLES, batch_size=7)
    assert found.iterations.nunique() > 2
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False, atol=1e-5)
    assert evaluate(model, TOKENIZER, SAMPLES).equals(
        evaluate(model, TOKENIZER, SAMPLES, batch_size=7)
    )


def test_forced_exits_reach_twice_the_trained_maximum():
    grid = iteration_grid(halting_model(), TOKENIZER, SAMPLES)
    # of two units
    assert grid.groupby("forced").iterations.unique().map(list).to_dict() == {
        k: [2 * k] for k in range(1, 9)
    }
    assert iteration_grid(halting_model(use_lru=False), TOKENIZER, SAMPLES).empty
    looped = halting_model(use_lru=False, num_loops=2)
    loops = {}
    for k, rows in iteration_grid(looped, TOKENIZER, SAMPLES).groupby("forced"):
        loops[k] = rows[rows.correct == 1].n.sum()
    assert list(loops) == [1, 2, 3, 4]
    assert loops[2] == evaluate(looped, TOKENIZER, SAMPLES).query("correct == 1").n.sum()


# ---------------------------------------------------------------- files


@pytest.fixture
def trained(tmp_path) -> Path:
    """Two seeds of a model with a unit, and a seed that failed."""
    for seed in (0, 2):
        halting_model(seed, lru_max_iterations=2, num_hidden_layers=1).save_pretrained(
            tmp_path / f"trained/{seed}/model"
        )
        TOKENIZER.save_pretrained(tmp_path / f"trained/{seed}/model")
    return tmp_path / "trained"


def contents(folder: Path) -> dict[str, bytes]:
    return {f"small.{end}": (folder / f"small.{end}").read_bytes() for end in ("json", "parquet")}


def test_an_interrupted_evaluation_gives_the_same_file(trained, tmp_path, monkeypatch):
    """It is stopped before every part in turn; each part is computed once."""
    evaluate_whole("small", trained, [0, 1, 2], SAMPLES, tmp_path / "unbroken")
    calls, interrupted_at = [], []

    def interrupted_answers(*args, **model_arguments):
        if len(calls) not in interrupted_at:
            interrupted_at.append(len(calls))
            raise KeyboardInterrupt
        calls.append(model_arguments)
        return answers(*args, **model_arguments)

    monkeypatch.setattr(evaluator, "answers", interrupted_answers)
    num_parts = 2 * (1 + 4)
    for _ in range(num_parts):
        with pytest.raises(KeyboardInterrupt):
            evaluate_whole("small", trained, [0, 1, 2], SAMPLES, tmp_path / "broken")
        assert not (tmp_path / "broken/small.json").exists()
    evaluate_whole("small", trained, [0, 1, 2], SAMPLES, tmp_path / "broken")
    assert len(calls) == num_parts
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")
    # no NaN, which is not JSON
    json.loads((tmp_path / "broken/small.json").read_text(), parse_constant=pytest.fail)


def test_other_weights_or_questions_are_computed_again(trained, tmp_path):
    first = evaluate_whole("small", trained, [0], SAMPLES, tmp_path / "out")
    halting_model(5, lru_max_iterations=2, num_hidden_layers=1).save_pretrained(trained / "0/model")
    second = evaluate_whole("small", trained, [0], SAMPLES, tmp_path / "out")
    assert not first.equals(second) and second.equals(
        evaluate_whole("small", trained, [0], SAMPLES, tmp_path / "new")
    )
    assert evaluate_whole("small", trained, [0], SAMPLES[:9], tmp_path / "out").n.sum() == 5 * sum(
        len(s["query"]) for s in SAMPLES[:9]
    )


def test_the_files_say_what_they_are(trained, tmp_path):
    table = evaluate_whole("small", trained, [0, 1, 2], SAMPLES, tmp_path, most_exits=1)
    for end in ("json", "parquet"):
        assert read_evaluation(tmp_path / f"small.{end}").equals(table)
    free = table[table.forced == 0].drop(columns="forced").reset_index(drop=True)
    assert list(free.seed.unique()) == [0, 2] and set(table.forced) == {0, 1}
    found = json.loads((tmp_path / "small.json").read_text())
    for seed in (0, 2):
        report = EvaluationReport.from_dict(found["reports"][str(seed)])
        counts = free[free.seed == seed]
        assert report.accuracy == accuracy_metrics(counts)
        by_depth = lru_metrics(counts, 2).iterations_by_depth
        assert report.lru.iterations_by_depth == pytest.approx(by_depth)
        assert report.efficiency.kv_compression_ratio > 0
        assert 0 <= report.efficiency.flops_reduction < 1
    (tmp_path / "small.json").write_text(json.dumps(found | {"version": 99}))
    with pytest.raises(ValueError, match="not zeromodel.evaluation version 1"):
        read_evaluation(tmp_path / "small.json")


# ---------------------------------------------------------------- measured speed, missing numbers


def test_speed_is_measured_on_the_same_inputs():
    model, ids = halting_model(), torch.randint(len(TOKENIZER), (3, 20))
    found = measure_speed(model, ids, torch.ones_like(ids), repeats=6, decode_tokens=2)
    for name in (
        "adaptive_seconds",
        "fixed_seconds",
        "speedup_vs_fixed",
        "tokens_per_second",
        "decode_tokens_per_second",
    ):
        assert 0 < found[f"{name}_lower"] <= found[name] <= found[f"{name}_upper"] < math.inf
    assert found["cache_bytes"] == ModelCost(model.config).kv_cache_bytes(
        20, batch_size=3, bytes_per_number=4
    )
    assert found["peak_bytes"] >= 4 * 3 * 20 * len(TOKENIZER)  # the logits at least
    names = {
        k: found[k] for k in ("speedup_vs_fixed", "tokens_per_second", "peak_bytes", "cache_bytes")
    }
    collector = MetricsCollector(4)
    collector.add_batch([1], [1], lru_outputs=[dict(avg_iterations=2, converged=True)])
    assert collector.compute_efficiency_metrics(names).speedup_vs_fixed == found["speedup_vs_fixed"]


@pytest.mark.parametrize(
    "curve, slope, resilience",
    [
        ({}, math.nan, math.nan),
        ({1: 0.5}, math.nan, 1),
        ({1: 0, 2: 0.5}, 0.5, math.nan),
        ({3: 0.4, 1: 0.8}, -0.2, 0.5),
    ],
)
def test_difficulty_curves(curve, slope, resilience):
    found = compute_difficulty_curve(curve)
    assert (found["slope"], found["difficulty_resilience"]) == pytest.approx(
        (slope, resilience), nan_ok=True
    )


def test_metrics_of_nothing_are_nan():
    empty = MetricsCollector()
    report = EvaluationReport(
        "empty",
        empty.compute_accuracy_metrics(),
        empty.compute_lru_metrics(),
        empty.compute_efficiency_metrics(),
    )
    assert (
        math.isnan(report.accuracy.overall_accuracy)
        and math.isnan(report.lru.avg_iterations)
        and math.isnan(report.efficiency.flops_reduction)
    )
    assert str(
        EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    ) == str(report)
