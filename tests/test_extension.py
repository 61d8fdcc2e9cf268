"""Extending the project: a halting rule, a position mixing, a cell, an update, and a task family
are one class each.
"""

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

from zeromodel.evaluation.evaluator import closeup, evaluate, load
from zeromodel.evaluation.param_counter import ModelCost, count_parameters
from zeromodel.io import read_jsonl
from zeromodel.model.cache import measured_bytes
from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.model.config import (
    CELLS,
    HALTING_RULES,
    MIXINGS,
    UPDATES,
    LRUConfig,
    ModelSizes,
)
from zeromodel.model.halting import HaltingDecision, HaltingRule
from zeromodel.model.mla import RMSNorm
from zeromodel.model.parts import (
    Cached,
    Cell,
    InterpolatingUpdate,
    LinearWeights,
    Mixing,
    Work,
)
from zeromodel.study.config import Study, StudyError, build, compose, merge, resolve
from zeromodel.study.stages import encoded
from zeromodel.tasks.task import (
    FAMILIES,
    QUESTION,
    SPECIAL,
    TaskFamily,
    families,
    frozen_file,
    mix,
    register,
    split_of,
)
from zeromodel.training.run import build_model, train

SMALL = dict(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    kv_latent_dim=8,
    rope_head_dim=4,
    initializer_range=0.3,
    use_lru=True,
    lru_max_iterations=4,
    lru_num_heads=2,
)


@pytest.fixture
def registries():
    """The registries as they were, after the test."""
    before = {
        registry: dict(registry.classes) for registry in (HALTING_RULES, MIXINGS, CELLS, UPDATES)
    }
    yield
    for registry, classes in before.items():
        registry.classes = classes


def check_extension(**keys) -> DeepSeekMLAForCausalLM:
    """A model with these keys is counted, caches what is computed, and decodes exactly."""
    config, cost = DeepSeekMLAConfig(**SMALL, **keys), ModelCost(ModelSizes(**SMALL, **keys))
    torch.manual_seed(0)
    model = DeepSeekMLAForCausalLM(config).double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, RMSNorm):  # in float64, so that small errors are seen
            module.forward = torch.nn.RMSNorm.forward.__get__(module)
        if hasattr(module, "halting"):
            torch.nn.init.normal_(module.halting.proj.weight, std=0.5)
            torch.nn.init.constant_(module.halting.proj.bias, -1.0)
    assert cost.total == sum(p.numel() for p in model.parameters())
    assert sum(cost.flops_per_token(8).values()) > 0 and cost.activation_bytes(8) > 0
    ids = torch.randint(0, 23, (2, 8))
    whole = model(ids, early_exit=False)
    past, pieces = None, []
    for i in range(8):
        out = model(ids[:, i : i + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        pieces.append(out.logits)
    assert (torch.cat(pieces, 1) - whole.logits).abs().max() < 1e-12
    assert (model(ids, early_exit=True).logits - whole.logits).abs().max() < 1e-12
    assert measured_bytes(past) == cost.kv_cache_bytes(8, batch_size=2, bytes_per_number=8)
    # padding and packed documents
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[:, :2] = 0
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1)
    assert (model(padded, mask).logits[:, 2:] - whole.logits).abs().max() < 1e-12
    places = torch.arange(8).repeat(2)[None]
    packed = model(ids.reshape(1, 16), position_ids=places).logits.reshape_as(whole.logits)
    assert (packed - whole.logits).abs().max() < 1e-12
    # and it learns
    pupil = DeepSeekMLAForCausalLM(config)
    pupil(ids, labels=ids).loss.backward()
    weights = [p for name, p in pupil.named_parameters() if "lru" in name and p.grad is not None]
    assert weights and all(p.grad.isfinite().all() for p in weights)
    return model


def test_a_new_halting_rule(registries):
    @HALTING_RULES.register("steady")
    class Steady(HaltingRule):
        """Halt when the state has nearly stopped to change."""

        def step(self, progress, probability):
            return HaltingDecision(0.0, progress.residual <= self.config.convergence_tolerance)

    with pytest.raises(ValueError, match=r"halting='stedy': .*did you mean steady\?"):
        LRUConfig(64, halting="stedy")
    with pytest.raises(ValueError, match="'act': is already the name of AdaptiveComputationTime"):
        HALTING_RULES.register("act")(Steady)
    model = check_extension(lru_halting="steady", lru_convergence_tolerance=0.25)
    steps = model(torch.randint(0, 23, (4, 20))).lru_outputs[0].num_iterations
    assert len(steps.unique()) > 1  # positions halt, and not all at once


def test_a_new_averaging_rule_with_a_head(registries):
    @HALTING_RULES.register("even")
    class Even(HaltingRule):
        """Every step counts the same; halt when the head is certain."""

        needs_head = True
        averages_states = True

        def step(self, progress, probability):
            weight = (1 - progress.total) / 4
            return HaltingDecision(weight, probability > 0.4)

    model = check_extension(lru_halting="even")
    out = model(torch.randint(0, 23, (4, 20))).lru_outputs[0]
    assert len(out.num_iterations.unique()) > 1
    assert (out.weights.sum(0) - 1).abs().max() < 1e-12


def test_a_new_position_mixing(registries):
    @MIXINGS.register("shift")
    class Shift(Mixing):
        """Each position sees the state of the one before it, through a matrix."""

        def weights(self):
            return {"matrix": LinearWeights(self.config.latent_dim, self.config.latent_dim)}

        def observe(self, weights, x, layout, past, name):
            before = past.tail(name, x, 1)[:, :-1]
            return before if layout.reach is None else before * (layout.reach >= 1)[..., None]

        def forward(self, weights, x, seen, layout, active):
            return weights.matrix(active.take(seen))

        def cached(self, num_iterations):
            return Cached(per_sequence=num_iterations * self.config.latent_dim)

    with pytest.raises(ValueError, match=r"mixing='shft': .*did you mean shift\?"):
        LRUConfig(64, mixing="shft")
    for mixing in (["shift"], ["shift", "conv"], ["attention", "shift", "attention_base"]):
        check_extension(lru_mixing=mixing)
    assert LRUConfig(8, mixing="shift").parts()["shift"].multiplications(5) == Work(each=64)
    model = check_extension(lru_mixing=["shift"])
    names = [name for name, _ in model.model.layers[0].self_attn.lru.mixing.named_parameters()]
    assert names == ["shift.matrix.weight"]
    # reads the position after it instead: the checks must find that
    Shift.observe = lambda self, weights, x, layout, past, name: x.roll(-1, 1)
    with pytest.raises(AssertionError):
        check_extension(lru_mixing=["shift"])


def test_a_new_cell_and_a_new_update(registries):
    @CELLS.register("linear")
    class LinearCell(Cell):
        """The candidate is linear in the mixed state and the latent."""

        def weights(self):
            dc = self.config.latent_dim
            return {
                "from_state": LinearWeights(dc, dc),
                "from_latent": LinearWeights(dc, dc, bias=True, hoisted=True),
            }

        def inject(self, weights, c):
            return (weights.from_latent(c),)

        def candidate(self, weights, m, injected, layout, past, step):
            return weights.from_state(m) + injected[0]

    @UPDATES.register("half")
    class HalfUpdate(InterpolatingUpdate):
        """The mean of the state and the candidate, without a gate."""

        gated = False

        def next_state(self, h, z, n):
            return (h + n) / 2

    for keys in (
        dict(lru_cell="linear"),
        dict(lru_cell="linear", lru_update="half"),
        dict(lru_cell="block", lru_update="half", lru_mixing="attention"),
    ):
        check_extension(**keys)
    cost = LRUConfig(8, cell="linear").parts()["cell"].multiplications(5)
    assert cost == Work(once=64, each=64)


class RunningSums(TaskFamily):
    """The sums modulo 3 of the first 1, 2, ... of six digits."""

    frozen_sizes = {"sums": {1: 20}}

    def suites(self):
        return ("sums",)

    def num_answers(self, suite):
        return 3

    def vocabulary(self, suite):
        return [*SPECIAL.values(), "0", "1", "2", QUESTION]

    def typical_length(self, suite):
        return 2 * 6 + 1

    def draw(self, suite, split, levels, n, *, seed, forward=0.0, distinct=True):
        order = np.random.default_rng(seed).permutation(3**6).tolist()
        numbers = [i for i in order if split_of(mix(i)) == split]
        for i in numbers[:n]:
            yield 1, " ".join(f"{digit} {QUESTION}" for digit in np.base_repr(i, 3).zfill(6))

    def sample(self, problem, level, id):
        digits = problem.split()[::2]
        depths = list(range(1, 7))
        return {
            "family": self.name,
            "id": id,
            "level": level,
            "depth": 6,
            "forward": True,
            "text": problem,
            "query": [f"first {k}" for k in depths],
            "answer": [sum(map(int, digits[:k])) % 3 for k in depths],
            "query_depth": depths,
            "hash": f"{mix(int(''.join(digits), 3)):016x}",
        }


@pytest.fixture
def running_sums():
    """The family `RunningSums`, registered for one test."""
    before = dict(families())
    register("running_sums")(RunningSums)
    yield FAMILIES["running_sums"]
    FAMILIES.clear()
    FAMILIES.update(before)


def study_of_sums(**changes):
    """The micro study with the suite of `RunningSums` in place of the benchmark."""
    params = merge(
        yaml.safe_load(compose("micro", ROOT / "studies")),
        {"problems": {"suite": "sums", "train": 300, "validation": 20}},
    )
    return build(Study, merge(params, changes))


def test_a_new_task_is_configured(running_sums):
    for changes, message in (
        ({"problems": {"suite": "sum"}}, "did you mean sums?"),
        ({"problems": {"levels": {2: 1.0}}}, "must be some of 1"),
    ):
        with pytest.raises(StudyError) as error:
            study_of_sums(**changes)
        assert message in str(error.value)
    study = study_of_sums()
    with pytest.raises(StudyError, match="format='cot': must be one of parallel"):
        resolve(study, "cot")  # the family has the parallel format only
    sizes = ModelSizes(vocab_size=7, **resolve(study, "mla_lru_adaptive").model)
    model = build_model(resolve(study, "mla_lru_adaptive"), running_sums.tokenizer("sums"))
    assert count_parameters(sizes) == model.num_parameters()
    matched = ModelSizes(vocab_size=7, **resolve(study, "baseline_matched").model)
    assert abs(count_parameters(matched) / count_parameters(sizes) - 1) < 0.01


def test_a_new_task_is_trained_and_evaluated(running_sums, tmp_path):
    study = study_of_sums()
    tokenizer = running_sums.tokenizer("sums")
    arrays = {}
    for split, n in (("train", 300), ("validation", 20)):
        arrays |= encoded(study, split, n, tokenizer, ["parallel"])
    np.savez(tmp_path / "problems.npz", **arrays)
    config = resolve(study, "mla_lru_adaptive")
    manifest = train(
        config, 0, tmp_path / "problems.npz", tmp_path / "runs/x/0", tmp_path / "report"
    )
    assert manifest["status"] == "finished"
    running_sums.write_frozen(tmp_path / "data")
    samples = read_jsonl(tmp_path / "data" / frozen_file("sums"))
    model, tokenizer = load(tmp_path / "runs/x/0/model")
    table = evaluate(model, tokenizer, samples)
    assert table.n.sum() == 20 * 6 and set(table.depth) == set(range(1, 7))
    assert set(table.tau) == {-1}  # a field that the records do not have
    # the first digit is its own sum
    first = table[table.depth == 1]
    assert first[first.correct == 1].n.sum() / first.n.sum() > running_sums.chance("sums")
    seen = closeup(model, tokenizer, samples[0])
    assert seen["target"] == [str(answer) for answer in samples[0]["answer"]]
