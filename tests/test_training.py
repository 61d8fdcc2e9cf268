"""Training across modules: all experiments, one batch in pieces and on several devices, runs
that are torn, runs that diverge.
"""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, run
from two_steps import two_steps

from zeromodel.evaluation.param_counter import count_flops, count_parameters
from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.study.config import StudyError, compose, model_config, origins, read_study, resolve
from zeromodel.study.stages import encoded, save_arrays
from zeromodel.tasks.causal_loop.encoding import make_tokenizer, typical_length
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.training import run as runs
from zeromodel.training import trainer
from zeromodel.training.config import Curriculum, Iterations
from zeromodel.training.losses import LossWeights

MAIN, GROUPS = "mla_lru_adaptive", ["baseline", "mla_only", "mla_lru_fixed", "mla_lru_adaptive"]
LOSSES = "training.losses."
# a cell that does not see other positions by itself
MLP = {"lru_cell": "mlp", "lru_update": "residual"}
ALWAYS_AS_MANY = [
    "looped",
    "mla_lru_fixed",
    "mla_lru_iter_2",
    "mla_lru_iter_4",
    "mla_lru_iter_8",
    "mla_lru_iter_16",
]
DIFFERENCES = {  # from the main experiment, as the names say
    "mla_lru_adaptive": {},
    "mla_only": {"use_lru": False},
    "mla_lru_fixed": {"lru_halting": "fixed"},
    "mla_lru_no_pos_mix": MLP,
    "mla_lru_no_global_halt": {"lru_global_halt": False},
    "mla_lru_minimal": MLP | {"lru_global_halt": False},
    **{
        f"mla_lru_iter_{n}": {"lru_halting": "fixed", "lru_max_iterations": n}
        for n in (2, 4, 8, 16)
    },
    "mla_lru_no_stability": {LOSSES + "stability": 0.0},
    "mla_lru_high_stability": {LOSSES + "stability": 5.0},
    "mla_lru_no_ponder": {LOSSES + "ponder": 0.0},
    "mla_lru_high_ponder": {LOSSES + "ponder": 0.01},
    "mla_lru_ce_only": {
        LOSSES + "stability": 0.0,
        LOSSES + "sparsity": 0.0,
        LOSSES + "ponder": 0.0,
    },
    "mla_lru_attention": MLP | {"lru_mixing": "attention"},
    "mla_lru_attention_base": MLP | {"lru_mixing": "attention_base"},
    "halt_confidence": {"lru_halting": "confidence"},
    "halt_ponder": {"lru_halting": "ponder"},
    "halt_convergence": {"lru_halting": "convergence"},
    "mla_lru_plain": {
        "lru_cell": "gru",
        "lru_update": "gru",
        "lru_mixing": "conv",
        "lru_direct_readout": False,
        "lru_state_scale": 1.0,
        "lru_start_as_copy": False,
        "training.around_unit": 1.0,
    },
}
PLAIN = {"attention": "gqa", "use_lru": False}
CONTROLS = {  # sizes that are solved for or scaled left out
    "baseline": PLAIN,
    "baseline_matched": PLAIN,
    "baseline_deep": PLAIN,
    "baseline_wide": PLAIN,
    "looped": PLAIN | {"num_loops": 3},
    "cot": PLAIN | {"training.format": "cot"},
    **{
        f"baseline_{size}": PLAIN for size in ("half", "three_quarters", "one_and_a_half", "double")
    },
}
SIZES = {"hidden_size", "intermediate_size", "num_hidden_layers"}


@pytest.fixture(scope="module", params=["nano", "micro", "paper"])
def study(request, tmp_path_factory):
    """A ready study, and the resolved configurations of all experiments that it runs."""
    file = tmp_path_factory.mktemp(request.param) / "params.yaml"
    file.write_text(compose(request.param, ROOT / "studies"))
    return read_study(file)[0]


def test_params_are_a_ready_study_or_one_that_was_changed():
    """The committed params.yaml is `nano`, so that what a fresh clone runs is what the report
    shows.
    """
    assert (ROOT / "params.yaml").read_text() == compose("nano", ROOT / "studies")
    with pytest.raises(
        StudyError, match="no such study; there are longer, micro, nano, paper, seeds, sizes"
    ):
        compose("nan", ROOT / "studies")


@pytest.mark.parametrize(
    "name, differs",
    [
        ("seeds", {"study", "seeds"}),
        ("sizes", {"study", "seeds", "run", "contrast.control"}),
        (
            "longer",
            {
                "study",
                "seeds",
                "run",
                "problems.train",
                "training.steps",
                "training.evaluate_every",
                "training.halting_from",
            },
        ),
    ],
)
def test_studies_of_the_size_of_nano(name, differs):
    """What is said about them is that they are `nano` but for this."""

    def flat(study):
        return {
            f"{k}.{i}" if isinstance(v, dict) else k: w
            for k, v in study.items()
            for i, w in (v.items() if isinstance(v, dict) else [("", v)])
        }

    nano, other = (
        flat(yaml.safe_load(compose(which, ROOT / "studies"))) for which in ("nano", name)
    )
    assert {k for k in nano.keys() | other.keys() if nano.get(k) != other.get(k)} == differs


def test_experiments_differ_in_what_their_names_say(study):
    assert (
        set(study.experiments) == {*DIFFERENCES, *CONTROLS}
        and len(DIFFERENCES) + len(CONTROLS) == 31
    )
    main = {k: v for k, (v, _) in origins(study, MAIN).items()}
    for name, wanted in (DIFFERENCES | CONTROLS).items():
        other = {k: v for k, (v, _) in origins(study, name).items()}
        found = {
            k.removeprefix("model."): other.get(k)
            for k in main.keys() | other.keys()
            if main.get(k) != other.get(k)
        }
        if name in CONTROLS:
            found = {k: v for k, v in found.items() if k not in SIZES}
        # a study may have four iterations to begin with
        expected = {
            k: v for k, v in wanted.items() if main.get(k if k in main else f"model.{k}") != v
        }
        # not drawn
        if "training.iterations.low" in main and name in ALWAYS_AS_MANY:
            expected |= {f"training.iterations.{k}": None for k in ("low", "high", "aligned")}
        assert found == expected, name


def test_matched_baselines_are_matched_and_counted(study):
    def size(name):
        return model_config(study, name, resolve(study, name).model)

    def work(name):
        return count_flops(size(name), typical_length(SUITES[study.problems.suite]))

    assert (
        abs(count_parameters(size("baseline_matched")) / count_parameters(size(MAIN)) - 1) <= 0.01
    )
    for name in ("baseline_deep", "baseline_wide", "looped"):
        assert abs(work(name) / work(MAIN) - 1) <= 0.02, name
    family = [
        count_parameters(size(f"baseline{s}"))
        for s in ("_half", "_three_quarters", "", "_one_and_a_half", "_double")
    ]
    assert family == sorted(family) and family[-1] > 6 * family[0]
    for name in study.experiments:
        with torch.device("meta"):
            assert DeepSeekMLAForCausalLM(
                DeepSeekMLAConfig(**vars(size(name)))
            ).num_parameters() == count_parameters(size(name)), name


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """The micro study and its problems, in all formats."""
    folder = tmp_path_factory.mktemp("micro")
    (folder / "params.yaml").write_text(compose("micro", ROOT / "studies"))
    study, configs = read_study(folder / "params.yaml")
    suite, formats = SUITES[study.problems.suite], ["cot", "generative", "parallel"]
    tokenizer = make_tokenizer(suite.modulus, suite.num_names)
    save_arrays(
        folder / "problems.npz",
        encoded(study, "train", study.problems.train, tokenizer, formats)
        | encoded(study, "validation", study.problems.validation, tokenizer, formats),
    )
    return folder, study, configs


def trained(folder: Path, config, name: str, seed: int = 0, **options) -> dict:
    torch.set_num_threads(1)
    return runs.train(
        config,
        seed,
        folder / "problems.npz",
        folder / name / config.experiment / str(seed),
        folder / name / "report",
        **options,
    )


def weights(folder: Path, config, name: str, seed: int = 0) -> bytes:
    return (folder / name / config.experiment / str(seed) / "model/model.safetensors").read_bytes()


def changed(config, **training):
    return replace(config, training=replace(config.training, **training))


@pytest.mark.parametrize("name", [*DIFFERENCES, *CONTROLS])
def test_every_experiment_learns(micro, name):
    folder, _, configs = micro
    manifest = trained(folder, configs[name], f"all_{name}")
    curve = [
        float(line.split("\t")[1])
        for line in (
            (folder / f"all_{name}/report/plots/metrics/loss/prediction.tsv")
            .read_text()
            .splitlines()[1:]
        )
    ]
    assert manifest["status"] == "finished" and len(curve) == 3 and np.isfinite(curve).all()
    assert curve[-1] < curve[0], curve


def test_two_devices_are_one(tmp_path):
    """The same weights and logs after a step without halting and one with it, from one process
    and from two that exchange gradients.
    """
    two_steps(str(tmp_path / "one.pt"))
    run(
        "torchrun",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "tests/two_steps.py"),
        str(tmp_path / "two.pt"),
        cwd=ROOT,
    )
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in ("one", "two"))
    for k, w in one["weights"].items():
        assert (w - two["weights"][k]).abs().max() < 1e-12, k
    for ours, theirs in zip(one["logs"], two["logs"], strict=True):
        for k, v in ours.items():
            if k.startswith("loss"):
                assert abs(v - theirs[k]) < 1e-6, k


class Torn(Exception):
    pass


def test_torn_ten_times(micro):
    """Sampled iterations, curriculum, late halting and averaged weights: torn at ten random
    steps and resumed each time, the weights are those of the unbroken run.
    """
    folder, _, configs = micro
    config = changed(
        configs[MAIN],
        steps=80,
        evaluate_every=4,
        halting_from=30,
        iterations=Iterations(1, 5),
        curriculum=Curriculum(0, 0.3),
        ema_decay=0.9,
        losses=LossWeights(warmup_steps=30),
    )
    trained(folder, config, "whole")
    for last in sorted(random.sample(range(1, 80), 10)):

        def tear(step, accuracy, last=last):
            if step == last:
                raise Torn

        with pytest.raises(Torn):
            trained(folder, config, "torn", progress=tear)
    assert trained(folder, config, "torn")["status"] == "finished"
    assert weights(folder, config, "torn") == weights(folder, config, "whole")


def poison(monkeypatch, at: int):
    """Make a weight of the unit no number before step `at`."""
    real = trainer.LatentTrainer.training_step

    def step(self, model, *args, **kwargs):
        if self.state.global_step == at:
            self.units[0].cell.blocks[0].mlp.down_proj.weight.data[0, 0] = torch.nan
        return real(self, model, *args, **kwargs)

    monkeypatch.setattr(trainer.LatentTrainer, "training_step", step)


def test_a_planted_nan_is_named(micro, monkeypatch):
    folder, _, configs = micro
    poison(monkeypatch, at=20)
    manifest = trained(folder, configs[MAIN], "poisoned")
    assert manifest["status"] == "failed"
    assert (
        manifest["error"]
        == "the loss is nan at step 20, first in layer 0, iteration 1; not finite:"
        " model.layers.0.self_attn.lru.cell.blocks.0.mlp.down_proj.weight"
    )
    assert [p.name for p in (folder / f"poisoned/{MAIN}/0/checkpoints").iterdir()] == [
        "checkpoint-16"
    ]


class Learned(Exception):
    pass


@pytest.mark.parametrize("name", GROUPS)
def test_sixty_four_problems_are_learned_by_heart(micro, name):
    folder, _, configs = micro
    with np.load(folder / "problems.npz") as file:
        few = {k: v[:64] for k, v in file.items() if k.startswith("parallel/train/")}
    save_arrays(
        folder / "few.npz", few | {k.replace("/train/", "/validation/"): v for k, v in few.items()}
    )
    config = changed(
        configs[name],
        steps=300,
        batch_size=64,
        evaluate_every=20,
        halting_from=100,
        warmup_steps=10,
    )

    def stop(step, accuracy):
        if step > config.training.halting_from and accuracy == 1.0:
            raise Learned

    with pytest.raises(Learned):
        runs.train(
            config,
            0,
            folder / "few.npz",
            folder / "heart" / name / "0",
            folder / "heart/report" / name,
            progress=stop,
        )


def test_a_base_model_is_converted_and_trained_on_words(micro, tiny_model):
    """A Qwen2 checkpoint gets the attention and the unit of the experiment and keeps its own
    sizes and tokenizer.
    """
    folder, study, configs = micro
    config = replace(
        configs[MAIN],
        base_model=str(tiny_model),
        model=configs[MAIN].model | {"lru_layers": None},
        training=replace(
            configs[MAIN].training,
            steps=2,
            batch_size=2,
            warmup_steps=1,
            halting_from=1,
            evaluate_every=2,
            format="words",
        ),
    )
    tokenizer = runs.tokenizer_of(config)
    save_arrays(
        folder / "words.npz",
        encoded(study, "train", 4, tokenizer, ["words"])
        | encoded(study, "validation", 2, tokenizer, ["words"]),
    )
    manifest = runs.train(
        config, 0, folder / "words.npz", folder / "words" / MAIN / "0", folder / "words/report"
    )
    assert manifest["status"] == "finished" and manifest["steps"] == 2
    model = DeepSeekMLAForCausalLM.from_pretrained(folder / "words" / MAIN / "0/model")
    assert (model.config.use_lru, model.config.kv_latent_dim, model.config.hidden_size) == (
        True,
        configs[MAIN].model["kv_latent_dim"],
        16,
    )
