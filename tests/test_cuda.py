"""The model and its training on a GPU against the same on a processor; skipped where there is no
GPU. The exactness tests themselves run there with ZEROMODEL_TEST_DEVICE=cuda.
"""

import copy
from dataclasses import replace
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.model.config import HALTING_RULES
from zeromodel.model.mla import RMSNorm, attention
from zeromodel.model.positions import lay_out
from zeromodel.study.config import read_study
from zeromodel.tasks.causal_loop.encoding import vocabulary
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.training import run as runs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
STUDY, CONFIGS = read_study(Path(__file__).parents[1] / "params.yaml")
SUITE = SUITES[STUDY.problems.suite]
WORDS = len(vocabulary(SUITE.modulus, SUITE.num_names))


def batch(rows: int = 8, length: int = 32) -> dict[str, torch.Tensor]:
    """Random texts, half of them shorter and padded on the left."""
    ids, mask = (
        torch.randint(5, WORDS, (rows, length), generator=torch.Generator().manual_seed(1)),
        torch.ones(rows, length, dtype=torch.long),
    )
    mask[: rows // 2, : length // 4] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def made(model_keys: dict, **keys) -> DeepSeekMLAForCausalLM:
    torch.manual_seed(0)
    return DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(vocab_size=WORDS, pad_token_id=0, **model_keys | keys)
    )


def computed(model, inputs, bf16=False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of real tokens and the gradient of the loss, on the processor in float64."""
    device, kept = next(model.parameters()).device, inputs["attention_mask"].bool()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        out = model(**{k: v.to(device) for k, v in inputs.items()})
    out.loss.backward()
    return out.logits.detach().cpu().double()[kept], torch.cat(
        [p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None]
    )


def apart(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("halts", HALTING_RULES)
def test_a_gpu_computes_the_same(name, halts):
    """Logits and gradients: float64 but for the float32 table of rotary angles, of which a GPU
    may get the last bit of a cosine differently; float32 and bf16 mixed precision to theirs.
    """
    model = made(CONFIGS[name].model, lru_halting=halts)
    here = copy.deepcopy(model).double()
    for norm in (m for m in here.modules() if isinstance(m, RMSNorm)):
        norm.forward = MethodType(torch.nn.RMSNorm.forward, norm)
    exact = computed(here, batch())
    for there, bf16, bar in (
        (copy.deepcopy(here), False, 1e-7),
        (copy.deepcopy(model), False, 1e-3),
        (model, True, 0.1),
    ):
        there.zero_grad()
        for ours, theirs in zip(computed(there.cuda(), batch(), bf16), exact, strict=True):
            assert apart(ours, theirs) < bar


@pytest.mark.parametrize("name", CONFIGS)
def test_made_where_it_will_be(name):
    with torch.device("cuda"):
        model = made(CONFIGS[name].model)
    assert {p.device.type for p in model.parameters()} == {"cuda"} and all(
        p.isfinite().all() for p in model.parameters()
    )


@pytest.mark.parametrize("halts", HALTING_RULES)
def test_halting_stays_in_float32(halts):
    model = made(CONFIGS["mla_lru_adaptive"].model, lru_halting=halts).cuda()
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        (out,) = (o for o in model(batch()["input_ids"].cuda()).lru_outputs if o is not None)
    assert out.weights.dtype == out.halt_probs.dtype == torch.float32
    assert (out.weights.sum(0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    "backend",
    [
        SDPBackend.MATH,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
    ],
    ids=lambda b: b.name,
)
@pytest.mark.parametrize("value_dim", [48, 32])
def test_every_kernel_of_attention(backend, value_dim):
    """In bf16, values as wide as keys and narrower: the kernel is the one that was asked for,
    and gives what float64 gives, gradients too.
    """

    def make(d):
        return torch.randn(2, 4, 64, d, generator=torch.Generator().manual_seed(d)).requires_grad_()

    q, k, v = make(48), (make(48) * 0.5).detach().requires_grad_(), make(value_dim)

    def run(dtype, device, **how):
        moved = [x.detach().to(device, dtype).requires_grad_() for x in (q, k, v)]
        out = attention(*moved, lay_out((2, 64), device), 48**-0.5, **how)
        out.square().sum().backward()
        return [x.detach().cpu().double() for x in (out, *(m.grad for m in moved))]

    with sdpa_kernel(backend):
        ours = run(torch.bfloat16, "cuda")
    for mine, exact in zip(ours, run(torch.float64, "cpu", backend="eager"), strict=True):
        assert apart(mine, exact) < 0.02


def problems(file: Path, rows: int = 256) -> Path:
    inputs = batch(rows)
    asked = torch.full_like(inputs["labels"], -1)
    asked[:, -1] = 1
    arrays = {k: v.numpy().astype(np.int16) for k, v in (inputs | {"query_depth": asked}).items()}
    np.savez(
        file,
        **{
            f"parallel/{split}/{k}": v
            for split in ("train", "validation")
            for k, v in arrays.items()
        },
    )
    return file


class Torn(Exception):
    pass


@pytest.mark.parametrize(
    "name, bf16",
    [
        ("baseline", False),
        ("mla_lru_fixed", False),
        ("mla_lru_adaptive", False),
        ("mla_lru_adaptive", True),
    ],
)
def test_a_torn_run_goes_on_as_if_it_had_not_been(tmp_path, name, bf16):
    """Trained on random texts on the GPU, torn in the middle: weights, as far as deterministic
    kernels go, are those of the unbroken run.
    """
    file, short = (
        problems(tmp_path / "problems.npz"),
        dict(steps=12, batch_size=16, warmup_steps=2, evaluate_every=4, halting_from=6, bf16=bf16),
    )
    config = replace(CONFIGS[name], training=replace(CONFIGS[name].training, **short))

    def train(folder, **how):
        return runs.train(
            config, 0, file, tmp_path / folder / name / "0", tmp_path / folder / "report", **how
        )

    def tear(step, accuracy):
        if step == 7:
            raise Torn

    with pytest.raises(Torn):
        train("torn", progress=tear)
    for folder in ("whole", "torn"):
        manifest = train(folder)
        assert manifest["status"] == "finished" and "NVIDIA" in manifest["hardware"]["device"]
    whole, torn = (
        DeepSeekMLAForCausalLM.from_pretrained(tmp_path / folder / name / "0/model").state_dict()
        for folder in ("whole", "torn")
    )
    for k in whole:
        assert (whole[k] - torn[k]).abs().max() < 1e-6, k
