"""What must be exactly true of the model, over mixing x halting x cell x (padding, packing, early
halts), in float64; and the proof that these tests can fail.

Each property is a function of a model that returns an error, or several: the largest absolute
difference between two ways to compute the same thing. `MUTATIONS` breaks the model in the ways in
which such models are broken in practice and says which property notices it.
"""

import os
from itertools import combinations, product
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch
import yaml
from transformers import DynamicCache, StaticCache

from zeromodel.model import cache, halting, lru, parts
from zeromodel.model.cache import measured_bytes
from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.model.config import HALTING_RULES, MIXINGS, LRUConfig
from zeromodel.model.costs import cache_bytes, parameter_counts, unit_parameters
from zeromodel.model.mla import RMSNorm

BAR, VOCABULARY, N = 1e-12, 23, 3
DEVICE = os.environ.get("ZEROMODEL_TEST_DEVICE", "cpu")  # cuda: all of this on a GPU
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    kv_latent_dim=8,
    rope_head_dim=4,
    initializer_range=0.3,
    use_lru=True,
    lru_max_iterations=N,
    lru_num_heads=2,
    lru_intermediate_size=8,
)
ALL_MIXINGS = [m for n in range(4) for m in combinations(MIXINGS, n)]
IDS = torch.randint(0, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(3)).to(DEVICE)


@pytest.fixture(autouse=True)
def inference():
    """As in evaluation and generation; halted positions are skipped only where no gradient is
    recorded.
    """
    with torch.no_grad(), torch.device(DEVICE):
        yield


def lively(**keys) -> DeepSeekMLAForCausalLM:
    """A model whose positions halt at different steps, its norms in float64: rounding to
    float32, as published models do, would hide small errors.
    """
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = (
            DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**SIZES | keys))
            .double()
            .eval()
            .requires_grad_(False)
            .to(DEVICE)
        )
    for norm in (m for m in model.modules() if isinstance(m, RMSNorm)):
        norm.forward = MethodType(torch.nn.RMSNorm.forward, norm)
    for unit in (m for m in model.modules() if isinstance(m, lru.LatentReasoningUnit)):
        torch.nn.init.normal_(unit.halting.proj.weight, std=0.5)
        torch.nn.init.constant_(unit.halting.proj.bias, -1.0)
        unit.config.convergence_tolerance = 10.0
        # half of them are sure enough after two steps; none is on the edge, where rounding would
        # decide
        if unit.config.halting_rule().needs_readout:
            sure = model(IDS, early_exit=False).lru_outputs[0].halt_probs[1].flatten().sort().values
            unit.config.halt_threshold = sure[6:8].mean().item()
    return model


def difference(a, b) -> float:
    return (a - b).abs().max().item()


def told_in_pieces(model, ids, cuts, past=None, **keys) -> torch.Tensor:
    """Logits of all tokens, the text told in pieces with a cache; what has a token dimension is
    cut likewise.
    """
    past, pieces = past if past is not None else DynamicCache(), []
    for a, b in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        here = {
            k: (
                v[:, :b]
                if k == "attention_mask"
                else v[:, a:b]
                if isinstance(v, torch.Tensor)
                else v
            )
            for k, v in keys.items()
        }
        pieces.append(model(ids[:, a:b], past_key_values=past, **here).logits)
    return torch.cat(pieces, 1)


# ---- the properties ----


def causality(model):
    """Changing tokens after t changes nothing up to t: exactly nothing when nothing is skipped."""
    later = IDS.clone()
    later[:, 4:] = (later[:, 4:] + 1) % VOCABULARY
    dense, skipping = (
        difference(model(IDS, early_exit=e).logits[:, :4], model(later, early_exit=e).logits[:, :4])
        for e in (False, True)
    )
    return {"causality": float(dense != 0), "causality, skipping": skipping}


def decoding(model):
    """Token by token, or in pieces, is the same as one pass."""
    whole = model(IDS, early_exit=False).logits
    return {
        f"decoding {cuts}": difference(told_in_pieces(model, IDS, cuts, early_exit=e), whole)
        for cuts, e in (((1, 2, 3, 4, 5, 6), None), ((3, 4, 6), False))
    }


def static_decoding(model):
    past = StaticCache(config=model.config, max_cache_len=9)
    return {
        "static cache": difference(told_in_pieces(model, IDS, (3, 5, 6), past), model(IDS).logits)
    }


def padding(model):
    """Left-padded in a batch is the same as alone, in one pass and in decoding."""
    ids, mask = torch.cat([torch.full((2, 3), 5), IDS], 1), torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    alone = model(IDS[:1]).logits
    return {
        "padding": difference(model(ids, mask).logits[:1, 3:], alone),
        "padded decoding": difference(
            told_in_pieces(model, ids, (5, 6, 8, 9), attention_mask=mask)[:1, 3:], alone
        ),
    }


def packing(model):
    """Two documents in one row are the same as each alone, in one pass and in decoding."""
    ids, positions, alone = (
        IDS.reshape(1, 14),
        torch.arange(7).repeat(2)[None],
        model(IDS).logits.reshape(1, 14, -1),
    )
    return {
        "packing": difference(model(ids, position_ids=positions).logits, alone),
        "packed decoding": difference(
            told_in_pieces(model, ids, (5, 6, 9, 12), position_ids=positions), alone
        ),
    }


def early_exit(model):
    """Skipping halted positions for real changes nothing."""
    return {
        "early exit": difference(
            model(IDS, early_exit=True).logits, model(IDS, early_exit=False).logits
        )
    }


def weights(model):
    """The weights of the steps sum to one."""
    return {
        "weights": max(
            difference(out.weights.sum(0), torch.ones(IDS.shape).double())
            for out in model(IDS).lru_outputs
        )
    }


def cache_size(model):
    past = model(IDS, use_cache=True).past_key_values
    return {
        "cache size": (
            0.0
            if measured_bytes(past)
            == cache_bytes(model.config, 7, batch_size=2, bytes_per_number=8)
            else 1.0
        )
    }


def beams(model):
    """Rows of the cache that are reordered go on as if they had been told so."""
    past, order = DynamicCache(), torch.tensor([1, 1])
    model(IDS[:, :5], past_key_values=past)
    past.reorder_cache(order)
    return {
        "beams": difference(
            model(IDS[:, 5:], past_key_values=past).logits,
            model(torch.cat([IDS[order, :5], IDS[:, 5:]], 1)).logits[:, 5:],
        )
    }


PROPERTIES = (
    causality,
    decoding,
    static_decoding,
    padding,
    packing,
    early_exit,
    weights,
    cache_size,
    beams,
)


@pytest.mark.parametrize("halts", HALTING_RULES)
@pytest.mark.parametrize(
    "cell, update", [("gru", "gru"), ("mlp", "residual"), ("block", "residual"), ("block", "sum")]
)
def test_everything_is_exact(cell, update, halts):
    for m in ALL_MIXINGS if update != "sum" else [()]:
        model = lively(
            lru_mixing=m,
            lru_cell=cell,
            lru_update=update,
            lru_halting=halts,
            lru_halt_threshold=0.7,
        )
        assert (len(model(IDS).lru_outputs[0].num_iterations.unique()) > 1) == HALTING_RULES[
            halts
        ].can_halt, m
        for check in PROPERTIES:
            for name, error in check(model).items():
                assert error < BAR, f"{name}, mixing {m}: {error:.2g}"


@pytest.mark.parametrize(
    "keys",
    [
        dict(num_hidden_layers=2, lru_direct_readout=True, lru_halting="confidence"),
        dict(num_hidden_layers=3, lru_layers=[1], q_latent_dim=12),
        dict(num_loops=2, num_key_value_heads=1, v_head_dim=6),
        dict(use_lru=False, rope_interleave=False),
        dict(
            use_lru=False, num_loops=3, attention="gqa", num_hidden_layers=2, num_key_value_heads=1
        ),
        dict(lru_global_halt=False, lru_conv_kernel_size=1),
        dict(lru_cell="block"),
        dict(
            use_lru=False,
            rope_parameters=dict(
                rope_type="yarn", factor=4.0, original_max_position_embeddings=8, mscale_all_dim=1.0
            ),
        ),
        dict(attention_bias=True, latent_norm=False, tie_word_embeddings=True),
    ],
)
def test_other_models_are_exact(keys):
    model = lively(**keys)
    for check in PROPERTIES:
        if check is weights and not model.config.use_lru:
            continue
        for name, error in check(model).items():
            assert error < BAR, f"{name}: {error:.2g}"


STUDY = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
EXPERIMENTS = {
    name: {"use_lru": False} | STUDY["model"] | e.get("model", {})
    for name, e in STUDY["experiments"].items()
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_exact(name):
    keys = {k: v for k, v in EXPERIMENTS[name].items() if k == "use_lru" or k not in SIZES}
    model = lively(**keys, num_hidden_layers=max(keys.get("lru_layers") or [0]) + 1)
    for check in PROPERTIES:
        if check is weights and not model.config.use_lru:
            continue
        for error_name, error in check(model).items():
            assert error < BAR, f"{error_name}: {error:.2g}"


# ---- what it costs ----


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_the_size_that_was_computed(name, tied):
    config = DeepSeekMLAConfig(
        **EXPERIMENTS[name] | {"vocab_size": 40, "tie_word_embeddings": tied}
    )
    with torch.device("meta"):
        model = DeepSeekMLAForCausalLM(config)
    assert sum(parameter_counts(config).values()) == sum(p.numel() for p in model.parameters())
    past = (
        DeepSeekMLAForCausalLM(config)
        .eval()(torch.zeros(2, 5, dtype=torch.long), use_cache=True)
        .past_key_values
    )
    assert measured_bytes(past) == cache_bytes(config, 5, batch_size=2)


@pytest.mark.parametrize(
    "keys",
    [
        dict(cell=c, mixing=m, global_halt=g)
        for c, m, g in product(("gru", "mlp", "block"), ALL_MIXINGS, (False, True))
    ],
    ids=lambda k: "-".join(map(str, k.values())),
)
def test_every_unit_has_the_size_that_was_computed(keys):
    config = LRUConfig(latent_dim=8, num_heads=2, **keys)
    assert unit_parameters(config) == sum(
        p.numel() for p in lru.LatentReasoningUnit(config).parameters()
    )


# ---- and the tests can fail ----


def mean_of_the_whole(h, layout, past=cache.NO_PAST, name="sum"):
    return h.mean(1, keepdim=True).expand_as(h)


def mean_without_padding_rule(h, layout, past=cache.NO_PAST, name="sum"):
    sums = h.cumsum(1) + past.carried(name, h[:, 0])[:, None]
    past.carry(name, sums[:, -1])
    return sums / (layout.index + 1)[..., None]


def no_tail_for_the_halted(self, x, prepared, layout, past, step, active):
    return None if active.empty else MIX(self, x, prepared, layout, past, step, active)


def without_reach(self, weights, x, layout, *args):
    return OBSERVE(self, weights, x, SimpleNamespace(reach=None), *args)


def not_frozen(self, h, running, *args):
    return ITERATE(self, h, torch.ones_like(running), *args)


def part_of_the_remainder(self):
    return 0.5 * (1 - self.total)


MIX = lru.PositionMixing.forward
OBSERVE = parts.CausalConv.observe
ITERATE = lru.LatentReasoningUnit.iterate
MUTATIONS = {  # what is done wrong: where, with what, and the property that fails
    "the mean of the prefix looks at the whole text": (
        lru,
        "prefix_mean",
        mean_of_the_whole,
        causality,
    ),
    "the mean of the prefix counts padding": (
        lru,
        "prefix_mean",
        mean_without_padding_rule,
        padding,
    ),
    "the mean of the prefix counts other documents": (
        lru,
        "prefix_mean",
        mean_without_padding_rule,
        packing,
    ),
    "frozen states are not written into the tails of later iterations": (
        lru.PositionMixing,
        "forward",
        no_tail_for_the_halted,
        decoding,
    ),
    "halted positions go on in one pass": (
        lru.LatentReasoningUnit,
        "iterate",
        not_frozen,
        early_exit,
    ),
    "the convolution reaches into padding": (parts.CausalConv, "observe", without_reach, padding),
    "the convolution reaches into other documents": (
        parts.CausalConv,
        "observe",
        without_reach,
        packing,
    ),
    "the last step counts for half of the remainder": (
        halting.HaltingProgress,
        "left",
        part_of_the_remainder,
        weights,
    ),
    "beams leave the past of the unit where it was": (
        cache.PastLayer,
        "change_rows",
        lambda self, change: None,
        beams,
    ),
    "the sum of the states is not carried on": (
        cache.Past,
        "carry",
        lambda self, name, value: None,
        decoding,
    ),
    "every iteration uses the tail of the first": (
        cache.Past,
        "tail",
        lambda self, name, x, width: cache.NO_PAST.tail(name, x, width),
        decoding,
    ),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_the_tests_can_fail(mistake, monkeypatch):
    where, name, wrong, check = MUTATIONS[mistake]
    model = lively(
        lru_mixing=["conv"], lru_halting="act", lru_halt_threshold=0.6, lru_max_iterations=5
    )
    assert max(check(model).values()) < BAR
    monkeypatch.setattr(where, name, wrong)
    assert max(check(model).values()) > 1e-4
