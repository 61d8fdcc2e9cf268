"""Measure what the experiments of the active study cost: parameters, FLOPs, a training step.

Also compares a step of our optimiser with PyTorch's. Runs on the GPU where there is one. Started
by `make bench`, or with the names of some experiments as arguments.
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

REPEATS = 15
WARMUP = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def mebibytes() -> float:
    """Return the peak memory of this process; on the GPU, of its tensors there."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def milliseconds(call) -> float:
    """Return the time until the device has finished `call`."""
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def measure_experiment(name: str) -> dict:
    """Measure one experiment; needs a fresh process, because peak memory counts from its start."""
    torch.set_num_threads(1)
    study, _ = read_study()
    run = resolve(study, name)
    training = run.training
    sizes = model_config(study, name, run.model)
    length = typical_length(SUITES[study.problems.suite])
    before = mebibytes()
    model = DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**vars(sizes))).to(DEVICE)
    model.criterion = LatentReasoningLoss(training.losses)
    optimizer = MuonWithAdamW(
        model, training.learning_rate, training.weight_decay, training.adam_beta2
    )
    ids = torch.randint(0, sizes.vocab_size, (training.batch_size, length), device=DEVICE)

    def step():
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=training.bf16):
            loss = model(ids, torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()

    times = [milliseconds(step) for _ in range(REPEATS)][WARMUP:]
    return {
        "experiment": name,
        "parameters (counted)": count_parameters(sizes),
        "parameters (built)": model.num_parameters(),
        "forward FLOPs a token": count_flops(sizes, length),
        "step, ms (median)": round(statistics.median(times), 1),
        "peak memory, MiB": round(mebibytes() - before),
    }


def measure_optimisers() -> pd.DataFrame:
    """Measure a step of Muon for the matrices of the main model, ours and PyTorch's in turn."""
    torch.set_num_threads(1)
    study, configs = read_study()
    name = study.contrast.treatment
    sizes = model_config(study, name, configs[name].model)
    model = DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**vars(sizes))).to(DEVICE)
    ours = MuonWithAdamW(model, 0.01, 0.1, 0.98).parts[0]
    matrices = ours.param_groups[0]["params"]
    theirs = torch.optim.Muon(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw")
    for p in matrices:
        p.grad = torch.randn_like(p)
    times = [(milliseconds(ours.step), milliseconds(theirs.step)) for _ in range(REPEATS)][WARMUP:]
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
    """Measure the experiments and write the tables to `out`."""
    study, _ = read_study()
    rows = []
    for name in names or study.experiments:
        command = [sys.executable, __file__, "--measure", name]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(result.stdout))
        print(rows[-1], flush=True)
    hardware = torch.cuda.get_device_name() if DEVICE == "cuda" else "one thread"
    precision = "bf16 mixed precision" if study.training.get("bf16") else "float32"
    length = typical_length(SUITES[study.problems.suite])
    text = f"""# What the experiments cost

Study `{study.study}`, batches of {study.training["batch_size"]} problems of {length} tokens, \
{hardware}, {precision}, torch {torch.__version__}. FLOPs: with all iterations. Memory: the growth \
of the process.

{pd.DataFrame(rows).to_markdown(index=False)}

# A step of the optimiser

{measure_optimisers().to_markdown(index=False)}
"""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"experiments-{study.study}-{DEVICE}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure_experiment(sys.argv[2])))
    else:
        main(sys.argv[1:])
