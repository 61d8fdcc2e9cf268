"""What is exported is what the trainers and the evaluation harness read: loaded back with their
own loaders, and used by them.
"""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from zeromodel.tasks.causal_loop.export import SCHEMAS, write_parquet
from zeromodel.tasks.causal_loop.generator.stream import problems
from zeromodel.tasks.causal_loop.problem import parse, sample, settle
from zeromodel.tasks.causal_loop.reward import causal_loop_reward, compute_score
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.tasks.causal_loop.templates import (
    HELD_OUT,
    TRAIN,
    ideal_response,
    parse_text,
    statement,
)


def draw_samples(suite: str = "standard", split: str = "train", n: int = 80) -> list[dict]:
    return [
        sample(p, level, f"{split}-{i}")
        for i, (level, p) in enumerate(
            problems(SUITES[suite], split, {1: 1, 2: 1, 3: 1, 4: 1}, n, seed=3)
        )
    ]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(path: Path):
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
    )


@pytest.mark.parametrize("format", SCHEMAS)
@pytest.mark.parametrize("templates", [TRAIN, HELD_OUT])
def test_every_row_reads_back_and_can_be_answered(format, templates, tmp_path, offline):
    samples, path = draw_samples(), tmp_path / "train.parquet"
    assert write_parquet(samples, path, format, "train", templates, group_size=33) == len(samples)
    rows = load(path)
    assert rows.column_names == SCHEMAS[format].names and len(rows) == len(samples)
    used = set()
    for i, (row, s) in enumerate(zip(rows, samples, strict=True)):
        info = row["extra_info"] if format == "verl" else row
        problem, template = parse_text(statement(row["prompt"]))
        assert (str(problem), template.name, info["index"], info["id"], info["split"]) == (
            s["text"],
            info["template"],
            i,
            s["id"],
            "train",
        )
        used.add(template.name)
        truth = row["reward_model"]["ground_truth"] if format == "verl" else row["ground_truth"]
        assert truth == str(settle(problem).values[problem.query[0]])
        if format == "verl":  # as verl's reward manager calls it
            result = compute_score(
                data_source=row["data_source"],
                solution_str=ideal_response(problem),
                ground_truth=truth,
                extra_info=row["extra_info"],
            )
            assert (
                result == {"score": 1.0, "acc": 1.0, "formatted": 1.0}
                and row["reward_model"]["style"] == "rule"
                and row["data_source"] == f"causal_loop/level-{s['level']}"
            )
        else:
            assert causal_loop_reward(
                prompts=[row["prompt"]], completions=[row["completion"]], ground_truth=[truth]
            ) == [1.0]
    assert used == set(templates)


def test_same_bytes_and_same_templates_for_twins(tmp_path):
    samples = draw_samples()
    twins = [
        sample(replace(p, rules=p.rules[::-1]), s["level"], s["id"])
        for s in samples
        for p in [parse(s["text"])]
    ]
    for name, rows in {"a": samples, "b": iter(samples), "twins": twins}.items():
        write_parquet(rows, tmp_path / name, "trl")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    a, twins = (pq.read_table(tmp_path / name).to_pylist() for name in ("a", "twins"))
    assert [r["template"] for r in a] == [r["template"] for r in twins] and all(
        r["prompt"] != t["prompt"] for r, t in zip(a, twins, strict=True)
    )


def test_interrupted_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(draw_samples(n=8), path)
    before = path.read_bytes()

    def interrupted():
        yield from draw_samples(n=8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(interrupted(), path, group_size=4)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["train.parquet"]


def test_reward_file_can_be_given_to_verl_by_its_path():
    spec = importlib.util.spec_from_file_location(
        "custom_module", ROOT / "zeromodel/tasks/causal_loop/reward.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (
        module.compute_score(
            data_source="causal_loop",
            solution_str="</think><answer>4</answer>",
            ground_truth="4",
            extra_info=None,
        )["score"]
        == 1
    )


def test_trl_trains_on_it(tiny_model, tmp_path, offline):
    """One step of supervised fine-tuning and one of GRPO, by TRL itself, with our reward."""
    trl = pytest.importorskip("trl")
    path = tmp_path / "train.parquet"
    write_parquet(draw_samples("nano", n=8), path, "trl")
    common = dict(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    rewarded = []

    def reward(completions, ground_truth, **columns):
        rewarded.append(
            (len(completions), completions[0][0]["role"], ground_truth[0], sorted(columns))
        )
        return causal_loop_reward(completions, ground_truth, **columns)

    trl.SFTTrainer(
        str(tiny_model), args=trl.SFTConfig(**common, max_length=4096), train_dataset=load(path)
    ).train()
    trl.GRPOTrainer(
        str(tiny_model),
        reward_funcs=[reward, causal_loop_reward],
        args=trl.GRPOConfig(**common, num_generations=2, max_completion_length=8),
        train_dataset=load(path),
    ).train()
    ((count, role, truth, columns),) = rewarded
    assert (
        (count, role) == (2, "assistant")
        and truth
        and {"level", "depth", "template", "prompts"} <= set(columns)
    )
