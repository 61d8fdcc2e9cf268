"""The tasks of lm-evaluation-harness, run by the harness itself on the frozen test suites,
offline.
"""

import pytest
from conftest import ROOT

from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.tasks.causal_loop.templates import (
    HELD_OUT,
    TRAIN,
    ideal_response,
    parse_text,
    statement,
)

lm_eval = pytest.importorskip("lm_eval")
SEPARATOR = "=== next problem ==="


@pytest.fixture
def evaluate(benchmark, tmp_path, monkeypatch):
    """Evaluate a model on some documents of a task, in a folder where `data` is a frozen
    benchmark.
    """
    from lm_eval.tasks import TaskManager

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(benchmark / "data")
    manager = TaskManager(include_path=str(ROOT / "integrations/lm_eval"), include_defaults=False)

    def run(model, task, limit=12, **options):
        done = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            **options,
        )
        return {k.removesuffix(",none"): v for k, v in done["results"][task].items()}, done[
            "samples"
        ][task]

    return run


def oracle(respond=ideal_response):
    """A model that reads the problem in its prompt, whatever the words, and answers with
    `respond`.
    """
    from lm_eval.api.model import LM

    class Oracle(LM):
        prompts = []

        def loglikelihood(self, requests):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

        def generate_until(self, requests):
            self.prompts += [r.args[0] for r in requests]
            return [
                respond(parse_text(statement(r.args[0].split(SEPARATOR)[-1].lstrip("\n"))).problem)
                for r in requests
            ]

    return Oracle()


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("held_out", ["", "_held_out"])
def test_the_oracle_scores_one(evaluate, suite, held_out):
    model = oracle()
    scores, samples = evaluate(model, f"causal_loop_{suite}{held_out}", limit=40)
    assert scores["acc"] == scores["formatted"] == 1 and len(samples) == 40
    assert {parse_text(statement(p)).template.name for p in model.prompts} <= set(
        HELD_OUT if held_out else TRAIN
    )
    for level in {s["doc"]["level"] for s in samples}:
        assert scores[f"acc_level_{level}"] == 1


def test_wrong_answers_score_nothing(evaluate):
    scores, _ = evaluate(
        oracle(lambda p: f"<think></think><answer>{p.modulus}</answer>"), "causal_loop_standard"
    )
    assert (scores["acc"], scores["formatted"]) == (0, 1)
    assert evaluate(oracle(lambda p: "no idea"), "causal_loop_standard")[0]["formatted"] == 0


def test_examples_come_from_training(evaluate):
    model = oracle()
    scores, samples = evaluate(model, "causal_loop_standard", num_fewshot=2, limit=4)
    assert scores["acc"] == 1
    for prompt, s in zip(model.prompts, samples, strict=True):
        *shots, last = prompt.split(SEPARATOR)
        assert (
            len(shots) == 2
            and all("</think><answer>" in shot for shot in shots)
            and str(parse_text(statement(last.lstrip("\n"))).problem) == s["doc"]["text"]
        )


@pytest.mark.parametrize("chat", [False, True])
def test_a_local_model_runs(evaluate, tiny_model, chat):
    scores, samples = evaluate(
        "hf",
        "causal_loop_nano",
        limit=2,
        model_args=f"pretrained={tiny_model},dtype=float32",
        device="cpu",
        batch_size=1,
        apply_chat_template=chat,
        gen_kwargs="max_gen_toks=16",
    )
    assert 0 <= scores["acc"] <= 1 and len(samples) == 2
    assert samples[0]["arguments"][0][0].startswith("<|im_start|>user") == chat
