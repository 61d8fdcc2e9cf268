"""What the experiments of the active study cost, all of them or those that are named:
parameters, FLOPs, time and memory of a training step; and the optimiser beside PyTorch's. On the
GPU where there is one. `make bench`
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from zeromodel.evaluation.param_counter import count_flops, count_parameters
from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.study.config import model_config, read_study, resolve
from zeromodel.tasks.causal_loop.encoding import typical_length
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.training.losses import LatentReasoningLoss
from zeromodel.training.optimizers import MuonWithAdamW

REPEAT, DEVICE = 15, "cuda" if torch.cuda.is_available() else "cpu"


def mebibytes() -> float:
    """The most memory this process has held: on the GPU that of its tensors."""
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if DEVICE == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def milliseconds(call) -> float:
    """How long `call` takes until the device has done it."""
    began = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)


def cost(name: str) -> dict:
    """One experiment, in a process of its own, so that its peak of memory is its own."""
    torch.set_num_threads(1)
    study, _ = read_study()
    run, length = resolve(study, name), typical_length(SUITES[study.problems.suite])
    size, t = model_config(study, name, run.model), run.training
    before = mebibytes()
    model = DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**vars(size))).to(DEVICE)
    model.criterion = LatentReasoningLoss(t.losses)
    optimizer = MuonWithAdamW(model, t.learning_rate, t.weight_decay, t.adam_beta2)
    ids = torch.randint(0, size.vocab_size, (t.batch_size, length), device=DEVICE)

    def step():
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=t.bf16):
            loss = model(ids, torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()

    times = [milliseconds(step) for _ in range(REPEAT)][2:]
    return {
        "experiment": name,
        "parameters (counted)": count_parameters(size),
        "parameters (built)": model.num_parameters(),
        "forward FLOPs a token": count_flops(size, length),
        "step, ms (median)": round(statistics.median(times), 1),
        "peak memory, MiB": round(mebibytes() - before),
    }


def optimisers() -> pd.DataFrame:
    """A step of Muon for the matrices of the main model, ours and PyTorch's in turn."""
    torch.set_num_threads(1)
    study, configs = read_study()
    model = DeepSeekMLAForCausalLM(
        DeepSeekMLAConfig(
            **vars(
                model_config(
                    study, study.contrast.treatment, configs[study.contrast.treatment].model
                )
            )
        )
    ).to(DEVICE)
    ours = MuonWithAdamW(model, 0.01, 0.1, 0.98).parts[0]
    theirs = torch.optim.Muon(
        ours.param_groups[0]["params"], lr=0.01, adjust_lr_fn="match_rms_adamw"
    )
    for p in ours.param_groups[0]["params"]:
        p.grad = torch.randn_like(p)
    times = [(milliseconds(ours.step), milliseconds(theirs.step)) for _ in range(REPEAT)][2:]
    return pd.DataFrame(
        {
            "optimiser": ["ours, in batches", "torch.optim.Muon"],
            "step, ms (median)": [round(statistics.median(x), 2) for x in zip(*times, strict=True)],
            "ratio to ours (median of pairs)": [
                1.0,
                round(statistics.median(b / a for a, b in times), 1),
            ],
        }
    )


def main(names: list[str], out: Path = Path("reports/bench")):
    rows, study = [], read_study()[0]
    for name in names or study.experiments:
        done = subprocess.run(
            [sys.executable, __file__, "--alone", name], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "one thread"
    precision = "bf16 mixed precision" if study.training.get("bf16") else "float32"
    head = (
        f"Study `{study.study}`, a batch of {study.training['batch_size']} problems of"
        f" {typical_length(SUITES[study.problems.suite])} tokens, {where}, {precision}, torch"
        f" {torch.__version__}. FLOPs with all iterations made; memory: what a process grew by."
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"experiments-{study.study}-{DEVICE}.md").write_text(
        "# What the experiments"
        f" cost\n\n{head}\n\n{pd.DataFrame(rows).to_markdown(index=False)}\n\n# A step of the"
        f" optimiser\n\n{optimisers().to_markdown(index=False)}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(cost(sys.argv[2])))
    else:
        main(sys.argv[1:])
