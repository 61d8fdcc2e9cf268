"""The counter beside the models that it counts: torch's parameters, torch's FLOPs, the bytes of
the cache, and transformers' own models.
"""

import contextlib
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from zeromodel.evaluation.param_counter import (
    ModelCost,
    compare_configurations,
    count_flops,
    count_mla_lru_params,
    count_mla_params,
    count_parameters,
    count_standard_transformer_params,
    design_matched_baseline,
    match_flops,
    match_sizes,
)
from zeromodel.model.cache import measured_bytes
from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.model.config import CELLS, HALTING_RULES, ModelSizes
from zeromodel.model.costs import activation_bytes, cache_bytes
from zeromodel.study.config import model_config, read_study, resolve

STUDY, _ = read_study(ROOT / "params.yaml")
EXPERIMENTS = {name: resolve(STUDY, name).model for name in STUDY.experiments}


def built(config) -> DeepSeekMLAForCausalLM:
    """The model without numbers."""
    with torch.device("meta"):
        return DeepSeekMLAForCausalLM(config)


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops(config, length: int, decode: bool, num_iterations: int | None = None) -> float:
    """For one token, by torch."""
    told, counter = (
        dict(early_exit=False, num_iterations=num_iterations),
        FlopCounterMode(display=False),
    )
    with torch.device("meta"), torch.no_grad():
        model, ids = DeepSeekMLAForCausalLM(config), torch.zeros(1, length, dtype=torch.long)
        past = model(ids[:, :-1], use_cache=True, **told).past_key_values if decode else None
        with counter:
            model(ids[:, -1:] if decode else ids, past_key_values=past, **told)
    return counter.get_total_flops() / (1 if decode else length)


@st.composite
def configurations(draw) -> dict:
    """Keys of small valid models of every kind."""

    def pick(*options):
        return draw(st.sampled_from(options))

    attention, heads = pick("mla", "gqa"), pick(1, 2, 4)
    keys = dict(
        vocab_size=draw(st.integers(5, 40)),
        hidden_size=8 * draw(st.integers(1, 4)),
        intermediate_size=pick(None, 1, 20),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_loops=pick(1, 1, 2),
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([g for g in (1, 2, 4) if heads % g == 0])),
        head_dim=pick(None, 4, 6),
        attention=attention,
        attention_bias=pick(False, True),
        tie_word_embeddings=pick(False, True),
    )
    if attention == "gqa":
        return keys
    unit = dict(
        lru_direct_readout=pick(False, True),
        lru_max_iterations=draw(st.integers(1, 3)),
        lru_halting=pick(*HALTING_RULES),
        lru_global_halt=pick(False, True),
        lru_cell=pick(*CELLS),
        lru_intermediate_size=pick(None, 7),
        lru_sub_blocks=pick(1, 2),
        lru_update=pick("gru", "residual"),
        lru_conv_kernel_size=draw(st.integers(1, 4)),
        lru_num_heads=pick(1, 2),
        lru_mixing=draw(
            st.lists(st.sampled_from(["conv", "attention", "attention_base"]), unique=True)
        ),
        lru_layers=pick(None, [0]),
    )
    if unit["lru_cell"] == "block" and pick(False, True):
        unit |= dict(lru_update="sum", lru_mixing=[])
    mla = dict(
        v_head_dim=pick(None, 3, 20),
        kv_latent_dim=8 * draw(st.integers(1, 3)),
        q_latent_dim=pick(None, 5),
        latent_norm=pick(False, True),
        rope_head_dim=pick(2, 4),
    )
    return keys | mla | (unit | {"use_lru": True} if pick(False, True, True) else {})


# ---------------------------------------------------------------- the counter is the model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_of_the_study(name, tied):
    config = DeepSeekMLAConfig(
        **vars(model_config(STUDY, name, EXPERIMENTS[name] | {"tie_word_embeddings": tied}))
    )
    plain = ModelSizes(vocab_size=config.vocab_size, **EXPERIMENTS[name], tie_word_embeddings=tied)
    assert ModelCost(plain).total == count_parameters(config) == parameters(built(config))
    for length, decode in () if tied else ((40, False), (40, True)):
        assert count_flops(plain, length, decode=decode) == pytest.approx(
            flops(config, length, decode), rel=0.01
        )
    model = DeepSeekMLAForCausalLM(config)
    assert measured_bytes(
        model(torch.zeros(2, 9, dtype=torch.long), use_cache=True).past_key_values
    ) == ModelCost(plain).kv_cache_bytes(9, batch_size=2, bytes_per_number=4)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(configurations())
def test_random_configurations_have_the_size_that_was_computed(keys):
    config, plain = DeepSeekMLAConfig(**keys), ModelSizes(**keys)
    cost, model = ModelCost(plain), built(config)
    assert (
        cost.total == sum(cost.breakdown.values()) == count_parameters(config) == parameters(model)
    )
    assert sum(cost.lru.values()) + cost.breakdown["attention"] == sum(
        parameters(layer.self_attn) for layer in model.model.layers
    )


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(configurations(), st.integers(2, 20), st.booleans(), st.sampled_from([None, 1, 5]))
def test_random_configurations_take_the_operations_that_were_computed(
    keys, length, decode, num_iterations
):
    assert count_flops(ModelSizes(**keys), length, num_iterations, decode) == pytest.approx(
        flops(DeepSeekMLAConfig(**keys), length, decode, num_iterations), rel=0.01
    )


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(configurations(), st.integers(1, 9), st.integers(1, 3))
def test_random_configurations_remember_the_bytes_that_were_computed(keys, length, batch):
    config = DeepSeekMLAConfig(**keys)
    with torch.no_grad():
        past = DeepSeekMLAForCausalLM(config)(
            torch.zeros(batch, length, dtype=torch.long), use_cache=True
        ).past_key_values
    assert measured_bytes(past) == cache_bytes(ModelSizes(**keys), length, batch)


def kept_for_backward(config, length: int, batch: int) -> int:
    """Bytes of all tensors that autograd keeps, those of the model itself left out; a storage
    counts once.
    """
    model = DeepSeekMLAForCausalLM(config)
    own, kept = (
        {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]},
        {},
    )

    def pack(x):
        # kept alive, so that no address is used twice
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.randint(config.vocab_size, (batch, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(ids, labels=ids, output_states=False)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(configurations(), st.booleans())
def test_training_remembers_about_what_was_computed(keys, again):
    """Wide enough that single numbers for a token do not matter; several heads, whose outputs
    are copied together; values no wider than keys, for which SDPA needs its scores.
    """
    wide = {
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 96,
        "kv_latent_dim": 48,
        "num_attention_heads": 4,
        "head_dim": 16,
        "v_head_dim": 24 if keys.get("v_head_dim") else 16,
        "rope_head_dim": 8,
        "lru_intermediate_size": 56,
    }
    wide |= {"q_latent_dim": 40} if keys.get("q_latent_dim") else {}
    keys |= wide | ({"lru_checkpoint_iterations": again} if keys.get("use_lru") else {})
    assert activation_bytes(ModelSizes(**keys), 40, 3) == pytest.approx(
        kept_for_backward(DeepSeekMLAConfig(**keys), 40, 3), rel=0.06
    )


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2_as_transformers_has_it(tied):
    sizes = dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_attention_heads=14)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(
            Qwen2Config(
                **sizes, num_hidden_layers=24, num_key_value_heads=2, tie_word_embeddings=tied
            )
        )
    assert count_standard_transformer_params(
        **sizes, num_layers=24, num_kv_heads=2, qkv_bias=True, tie_word_embeddings=tied
    ).total == parameters(model)


@pytest.mark.parametrize("rank, tied", [(None, False), (96, False), (96, True)])
def test_deepseek_v3_as_transformers_has_it(rank, tied):
    """With dense MLPs: mixtures of experts are no subject here."""
    sizes = dict(vocab_size=1000, hidden_size=128, intermediate_size=300, num_attention_heads=4)
    config = DeepseekV3Config(
        **sizes,
        num_hidden_layers=3,
        first_k_dense_replace=3,
        num_key_value_heads=4,
        q_lora_rank=rank,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        v_head_dim=24,
        qk_rope_head_dim=16,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config)
    assert count_mla_params(
        **sizes,
        num_layers=3,
        kv_latent_dim=64,
        q_latent_dim=rank,
        rope_head_dim=16,
        head_dim=32,
        v_head_dim=24,
        tie_word_embeddings=tied,
    ).total == parameters(model)


# ---------------------------------------------------------------- the document's example

DOCUMENT = """
from verl.utils.param_counter import (
    count_standard_transformer_params,
    count_mla_params,
    count_mla_lru_params,
    design_matched_baseline,
    compare_configurations,
)

baseline = count_standard_transformer_params(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_attention_heads=14,
    num_kv_heads=2,
)
print(f"Baseline: {baseline.total:,} params")

mla_lru = count_mla_lru_params(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_attention_heads=14,
    num_kv_heads=2,
    kv_latent_dim=256,
    q_latent_dim=512,
    rope_head_dim=64,
)
print(f"MLA+LRU: {mla_lru.total:,} params")

target_params = mla_lru.total
intermediate_size, matched = design_matched_baseline(
    target_params=target_params,
    vocab_size=151936,
    hidden_size=896,
    num_layers=24,
    num_attention_heads=14,
    num_kv_heads=2,
)
print(f"Matched baseline (intermediate_size={intermediate_size}): {matched.total:,} params")

configs = {
    "baseline": baseline,
    "mla_lru": mla_lru,
    "matched": matched,
}
print(compare_configurations(configs, reference="mla_lru"))
"""
QWEN = dict(
    vocab_size=151936, hidden_size=896, num_layers=24, num_attention_heads=14, num_kv_heads=2
)


def test_the_documents_example_runs_with_only_the_import_changed(capsys):
    space = {}
    exec(DOCUMENT.replace("verl.utils.param_counter", "zeromodel.evaluation.param_counter"), space)
    out = capsys.readouterr().out
    assert "Baseline: 630,139,776 params" in out and "mla_lru" in out and "+0.0%" in out
    mla = dict(kv_latent_dim=256, q_latent_dim=512, rope_head_dim=64)
    keys = dict(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    )
    assert space["baseline"].total == parameters(built(DeepSeekMLAConfig(**keys, attention="gqa")))
    assert space["mla_lru"].total == parameters(
        built(DeepSeekMLAConfig(**keys, **mla, use_lru=True))
    )
    assert abs(space["matched"].total / space["mla_lru"].total - 1) < 0.01


def test_without_torch_or_transformers():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        heavy = 'torch', 'pandas', 'transformers', 'huggingface_hub', 'scipy', 'tokenizers'
        if name.split('.')[0] in heavy: raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from zeromodel.evaluation.param_counter import *
costs = example_costs()
assert 'mla' in compare_configurations(costs, 'mla').to_text()
assert compare_configurations(costs).to_latex()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- matched baselines


def test_equal_flops_baselines():
    """The MLP alone, or the depth coarsely and the MLP finely, within 2% of the operations of
    the recurrent model.
    """
    mla_lru = count_mla_lru_params(
        intermediate_size=4864, **QWEN, kv_latent_dim=256, rope_head_dim=64
    )
    target = sum(mla_lru.flops_per_token(512).values())
    size, cost = design_matched_baseline(target_flops=target, length=512, **QWEN)
    assert (
        abs(sum(cost.flops_per_token(512).values()) / target - 1) <= 0.02
        and cost.config.intermediate_size == size
    )
    base = dict(
        attention="gqa",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    )
    deep = match_sizes(
        target,
        base,
        ["num_hidden_layers", "intermediate_size"],
        lambda c: count_flops(c, 512),
        0.02,
        "FLOPs",
    )
    assert (
        deep["num_hidden_layers"] > 24
        and abs(count_flops(ModelSizes(**base | deep), 512) / target - 1) <= 0.02
    )
    assert (
        abs(
            count_flops(
                ModelSizes(**base | {"intermediate_size": match_flops(target, base, 512)}), 512
            )
            / target
            - 1
        )
        <= 0.02
    )


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    configurations(),
    st.sampled_from(["intermediate_size", "hidden_size", "num_hidden_layers"]),
    st.floats(1, 30),
)
def test_no_valid_neighbour_is_nearer(keys, key, factor):
    keys = {k: v for k, v in keys.items() if k != "intermediate_size"} | {"intermediate_size": 20}
    target = factor * count_parameters(ModelSizes(**keys))
    size = match_sizes(target, keys, [key], count_parameters, 10, "parameters")[key]
    off = {}
    for n in range(max(1, size - 12), size + 13):
        with contextlib.suppress(ValueError):
            off[n] = abs(count_parameters(ModelSizes(**{**keys, key: n})) - target)
    assert off[size] == min(off.values())


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: design_matched_baseline(1000, **QWEN),
            "no size comes within 1% of 1,000 parameters",
        ),
        (lambda: design_matched_baseline(**QWEN), "exactly one of"),
        (lambda: design_matched_baseline(1, target_flops=1, **QWEN), "exactly one of"),
        (
            lambda: match_sizes(
                1e6,
                dict(
                    vocab_size=9,
                    hidden_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    rope_head_dim=2,
                ),
                ["rope_theta"],
                count_parameters,
                0.1,
                "parameters",
            ),
            "rope_theta",
        ),
        (lambda: compare_configurations({}, reference="x"), "reference='x'"),
        (lambda: count_standard_transformer_params(10, 30, 8, 1, 4), "hidden_size=30"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
