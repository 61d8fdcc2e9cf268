"""The model beside others: DeepSeek-V3 of transformers, the examples of the design document, the
trainer's gradients, torch.compile; and what is refused.
"""

import pytest
import torch
from torch import nn
from torch.fx.experimental import _config as fx_config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV3RotaryEmbedding,
)

from zeromodel.model import (
    DeepSeekMLAConfig,
    DeepSeekMLAForCausalLM,
    LatentReasoningUnit,
    LRUConfig,
    MLAAttention,
    MLAConfig,
)
from zeromodel.model.config import HALTING_RULES
from zeromodel.model.lru import confidence

YARN = dict(
    rope_type="yarn",
    rope_theta=100.0,
    factor=4.0,
    original_max_position_embeddings=16,
    mscale=1.0,
    mscale_all_dim=0.7,
)
BARS = {torch.float64: 1e-12, torch.float32: 2e-5}


def theirs_and_ours(rope, q_rank, interleave, num_layers=2):
    """A dense DeepSeek-V3 with every weight random, norms too, and our configuration for it."""
    torch.manual_seed(0)
    theirs = DeepseekV3Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        first_k_dense_replace=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=q_rank,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        rope_interleave=interleave,
        rope_parameters=rope and dict(rope),
        max_position_embeddings=64,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    ours = DeepSeekMLAConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        kv_latent_dim=16,
        q_latent_dim=q_rank,
        rope_head_dim=8,
        head_dim=8,
        v_head_dim=12,
        rope_interleave=interleave,
        rope_parameters=rope and dict(rope),
        rms_norm_eps=1e-5,
        pad_token_id=0,
        eos_token_id=1,
    )
    return theirs, ours


def shake_norms(model: nn.Module):
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 2.0)


PAIRS = [
    (None, None, True),
    (None, 24, True),
    (None, 24, False),
    (YARN, 24, True),
    (YARN, None, False),
]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("rope, q_rank, interleave", PAIRS)
def test_deepseek_attention(rope, q_rank, interleave, dtype):
    their_config, our_config = theirs_and_ours(rope, q_rank, interleave)
    theirs = DeepseekV3Attention(their_config, 0).requires_grad_(False)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    shake_norms(theirs)
    ours = MLAAttention(our_config.mla()).requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    theirs, ours, x = (
        theirs.to(dtype).eval(),
        ours.to(dtype).eval(),
        torch.randn(2, 9, 32, dtype=dtype),
    )
    expected = theirs(x, DeepseekV3RotaryEmbedding(their_config)(x, torch.arange(9)[None]), None)[0]
    for path in ("expand", "absorb"):
        assert (ours(x, path=path)[0] - expected).abs().max() < BARS[dtype]


@pytest.mark.parametrize("rope, q_rank, interleave", PAIRS)
def test_deepseek_language_model(rope, q_rank, interleave):
    their_config, our_config = theirs_and_ours(rope, q_rank, interleave)
    theirs = DeepseekV3ForCausalLM(their_config).eval().requires_grad_(False)
    shake_norms(theirs)
    ours = DeepSeekMLAForCausalLM(our_config).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(2, 60, (2, 9))
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 9])
    padded = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for dtype, bar in BARS.items():
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < bar
        assert (ours(ids, **padded).logits - theirs(ids, **padded).logits)[:, 2:].abs().max() < bar
    ours, theirs = ours.double(), theirs.double()
    for keys in ({}, dict(attention_mask=mask), dict(num_beams=3)):
        said = [m.generate(ids, max_new_tokens=6, do_sample=False, **keys) for m in (theirs, ours)]
        assert torch.equal(*said)


# ---- the examples of the design document, as they stand but for the import ----


def test_document_attention():
    config = MLAConfig(
        hidden_size=2048,
        num_attention_heads=16,
        kv_latent_dim=512,
        q_latent_dim=1536,
        rope_head_dim=64,
    )
    hidden_states, position_ids = torch.randn(1, 3, 2048), torch.arange(3)[None]

    mla = MLAAttention(config, layer_idx=0)
    output, attn_weights, past_kv = mla(hidden_states, position_ids=position_ids)

    assert output.shape == (1, 3, 2048) and attn_weights is None and past_kv is None


def test_document_unit():
    lru_config = LRUConfig(
        latent_dim=512,
        max_iterations=8,
        halt_threshold=0.99,
    )
    latent_kv = torch.randn(1, 3, 512)

    lru = LatentReasoningUnit(lru_config)
    refined_latent, lru_output = lru(latent_kv)

    assert refined_latent.shape == latent_kv.shape
    assert lru_output.halt_probs.shape == (
        8,
        1,
        3,
    ) and lru_output.ponder_cost.shape == lru_output.num_iterations.shape == (1, 3)


def test_document_model(monkeypatch):
    """At its full size of more than a billion parameters, as shapes without numbers."""
    monkeypatch.setattr(fx_config, "meta_nonzero_assume_all_nonzero", True)
    with torch.device("meta"):
        config = DeepSeekMLAConfig(
            vocab_size=32000,
            hidden_size=2048,
            num_hidden_layers=24,
            use_lru=True,
            lru_max_iterations=8,
        )
        input_ids = labels = torch.zeros(2, 5, dtype=torch.long)

        model = DeepSeekMLAForCausalLM(config)
        outputs = model(input_ids, labels=labels)

    assert (
        outputs.logits.shape == (2, 5, 32000)
        and outputs.loss.shape == ()
        and len(outputs.lru_outputs) == 24
    )
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in repr(config)


def test_document_preset():
    """The document's Qwen-0.5B sizes: head 64, rotary 64 on top of it."""
    config = DeepSeekMLAConfig(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        kv_latent_dim=256,
        q_latent_dim=512,
        rope_head_dim=64,
    )
    assert config.mla().head_dim == 64


# ---- backends ----


def flash_stand_in(
    q,
    k,
    v,
    attention_mask,
    query_length,
    is_causal,
    dropout=0.0,
    softmax_scale=None,
    cu_seq_lens_q=None,
    attn_implementation=None,
    **_,
):
    """What the kernel of flash attention computes, by its contract: no mask, texts cut at
    `cu_seq_lens_q`; q, k, v [B,S,H or G,d] of one width.
    """
    assert (
        attention_mask is None
        and is_causal
        and q.shape[-1] == v.shape[-1]
        and attn_implementation == "flash_attention_2"
    )

    def flat(x):
        return x.repeat_interleave(q.shape[2] // x.shape[2], 2).flatten(0, 1).transpose(0, 1)

    cuts = (
        range(0, q.shape[0] * query_length + 1, query_length)
        if cu_seq_lens_q is None
        else cu_seq_lens_q.tolist()
    )
    parts = [
        nn.functional.scaled_dot_product_attention(
            *(flat(x)[:, a:b] for x in (q, k, v)), is_causal=True, scale=softmax_scale
        )
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    return torch.cat(parts, 1).transpose(0, 1).unflatten(0, q.shape[:2])


@pytest.mark.parametrize(
    "keys",
    [
        {},
        dict(attention="gqa", num_key_value_heads=2),
        dict(use_lru=True, lru_max_iterations=2, lru_num_heads=2),
    ],
)
def test_backends_agree(keys, monkeypatch):
    """In one pass, padded, packed, and generating; flash attention itself needs a GPU, so its
    kernel is replaced by its contract, and all around it is transformers' own.
    """
    monkeypatch.setattr(
        "transformers.integrations.flash_attention._flash_attention_forward", flash_stand_in
    )
    torch.manual_seed(0)
    model = (
        DeepSeekMLAForCausalLM(
            DeepSeekMLAConfig(
                vocab_size=30,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                kv_latent_dim=8,
                rope_head_dim=4,
                initializer_range=0.2,
                **keys,
            )
        )
        .double()
        .eval()
        .requires_grad_(False)
    )
    ids, mask = torch.randint(0, 30, (2, 8)), torch.tensor([[0, 0, 0] + [1] * 5, [1] * 8])
    inputs = (
        {},
        dict(attention_mask=mask),
        dict(position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]] * 2)),
    )
    expected, said = (
        [model(ids, **i).logits for i in inputs],
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False),
    )
    for backend in ("eager", "flash_attention_2"):
        model.config._attn_implementation = backend
        for i, e in zip(inputs, expected, strict=True):
            assert (model(ids, **i).logits - e)[:, 3:].abs().max() < 1e-12
        assert torch.equal(
            model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False), said
        )


def test_weights_of_attention_can_be_looked_at():
    model = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            kv_latent_dim=8,
            rope_head_dim=4,
        )
    ).double()
    out = model(torch.randint(0, 30, (2, 8)), output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in out.attentions] == [(2, 4, 8, 8)] * 2 and len(out.hidden_states) == 3
    assert (torch.stack(out.attentions).sum(-1) - 1).abs().max() < 1e-12 and torch.stack(
        out.attentions
    ).triu(1).abs().max() == 0


# ---- training ----


@pytest.mark.parametrize("halts", HALTING_RULES)
def test_bfloat16_stays_finite(halts):
    """200 steps on random data under autocast, N = 16."""
    torch.manual_seed(0)
    model = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            kv_latent_dim=8,
            rope_head_dim=4,
            use_lru=True,
            lru_max_iterations=16,
            lru_halting=halts,
            lru_num_heads=2,
            lru_mixing="conv" if halts == "act" else "attention",
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = 200 if halts == "act" else 20
    for _ in range(steps):
        ids = torch.randint(0, 20, (4, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(ids, labels=ids)
        assert out.lru_outputs[0].halt_probs.dtype == torch.float32
        (out.loss + 1e-2 * out.lru_outputs[0].ponder_cost.mean()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        assert out.loss.isfinite() and norm.isfinite()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())


def test_halting_is_the_same_in_training_and_in_evaluation():
    """And its arithmetic is float32 whatever the dtype of the model."""
    torch.manual_seed(0)
    model = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            kv_latent_dim=8,
            rope_head_dim=4,
            use_lru=True,
            lru_num_heads=2,
            lru_halt_bias=-1.0,
        )
    )
    nn.init.normal_(model.model.layers[0].self_attn.lru.halting.proj.weight)
    ids = torch.randint(0, 30, (2, 8))
    training = model.double().train()(ids)
    with torch.no_grad():
        evaluation = model.eval()(ids)
    assert (training.logits - evaluation.logits).abs().max() < 1e-12 and torch.equal(
        training.lru_outputs[0].num_iterations, evaluation.lru_outputs[0].num_iterations
    )
    half = model.bfloat16()(ids)
    assert (
        half.logits.dtype == torch.bfloat16 and half.lru_outputs[0].weights.dtype == torch.float32
    )
    assert (half.lru_outputs[0].weights.sum(0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("halts", HALTING_RULES)
def test_the_rule_can_be_changed_without_new_weights(halts, tmp_path):
    """Trained with fixed steps, asked to stop early: same file, another key."""
    torch.manual_seed(0)
    trained = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            kv_latent_dim=8,
            rope_head_dim=4,
            use_lru=True,
            lru_num_heads=2,
            lru_halting="fixed",
            lru_max_iterations=4,
        )
    )
    trained.save_pretrained(tmp_path)
    loaded = DeepSeekMLAForCausalLM.from_pretrained(
        tmp_path, lru_halting=halts, lru_halt_threshold=1e-3, lru_convergence_tolerance=10.0
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    steps = loaded(torch.randint(0, 30, (2, 8))).lru_outputs[0].num_iterations
    assert (steps < 4).any() if HALTING_RULES[halts].can_halt else (steps == 4).all()


def test_ponder_cost_reaches_the_halting_head():
    with_head = [name for name in HALTING_RULES if HALTING_RULES[name].needs_head]
    assert with_head == ["act", "ponder"]
    for halts in with_head:
        unit = LatentReasoningUnit(LRUConfig(latent_dim=8, halting=halts)).double()
        unit(torch.randn(2, 5, 8, dtype=torch.float64))[1].ponder_cost.sum().backward()
        assert all(p.grad.abs().max() > 0 for p in unit.halting.parameters())


def test_gradient_of_the_direct_readout():
    model = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            kv_latent_dim=4,
            rope_head_dim=2,
            use_lru=True,
            lru_max_iterations=2,
            lru_num_heads=1,
            lru_direct_readout=True,
            initializer_range=0.5,
        )
    ).double()
    attention, latent = (
        model.model.layers[0].self_attn,
        torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(attention.write, latent)
    assert torch.autograd.gradcheck(
        lambda w: torch.nn.functional.linear(attention.lru(latent)[0], w), attention.readout.weight
    )
    # a decision, not a loss
    assert not confidence(model.lm_head(attention.write(latent))).requires_grad


@pytest.mark.parametrize(
    "keys",
    [
        {},
        dict(cell="block", mixing="attention"),
        dict(halting="ponder", cell="mlp", update="residual"),
    ],
)
def test_compiles_to_one_graph(keys):
    """The masked loop of training has no breaks."""
    unit, c = (
        LatentReasoningUnit(LRUConfig(latent_dim=8, max_iterations=2, **keys)),
        torch.randn(2, 5, 8),
    )
    compiled = torch.compile(lambda x: unit(x)[0], fullgraph=True, backend="eager")
    assert torch.allclose(compiled(c), unit(c)[0], atol=1e-6)


# ---- what is refused ----


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MLAConfig(64, 4, rope_head_dim=7), "rope_head_dim=7: must be even"),
        (lambda: MLAConfig(63, 4), "hidden_size=63: must be divisible by num_attention_heads=4"),
        (
            lambda: MLAConfig(64, 4, num_key_value_heads=3),
            "num_key_value_heads=3: must divide num_attention_heads=4",
        ),
        (lambda: LRUConfig(latent_dim=0), "latent_dim=0: must be a whole number of at least 1"),
        (
            lambda: LRUConfig(latent_dim=8, max_iterations=0),
            "max_iterations=0: must be a whole number of at least 1",
        ),
        (lambda: LRUConfig(latent_dim=8, mixing="convolution"), "did you mean conv?"),
        (lambda: LRUConfig(latent_dim=8, halting="pondering"), "did you mean ponder?"),
        (lambda: DeepSeekMLAConfig(use_lru=True, lru_max_iterations=0), "lru_max_iterations=0"),
        (
            lambda: LatentReasoningUnit(LRUConfig(latent_dim=8))(
                torch.zeros(1, 2, 8), num_iterations=0
            ),
            "num_iterations=0: must be at least 1",
        ),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make()


@pytest.mark.parametrize("mask", [[[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
def test_a_row_of_padding_is_defined(mask):
    model = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            vocab_size=9,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            kv_latent_dim=8,
            rope_head_dim=4,
            use_lru=True,
            lru_num_heads=2,
            lru_mixing=["conv", "attention"],
        )
    )
    ids, labels = torch.zeros(2, 4, dtype=torch.long), torch.tensor([[-100] * 4, [1, 2, 3, 4]])
    out = model(ids, torch.tensor(mask), labels=labels)
    out.loss.backward()
    assert out.logits.isfinite().all() and all(
        p.grad is None or p.grad.isfinite().all() for p in model.parameters()
    )
