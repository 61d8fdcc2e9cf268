"""Two steps of gradient descent in float64, of one process or of several: `torchrun
--nproc-per-node 2 tests/two_steps.py FILE` writes the weights and what was logged.
"""

import sys
import tempfile
from pathlib import Path

import torch

from zeromodel.model.causal_lm import DeepSeekMLAConfig, DeepSeekMLAForCausalLM
from zeromodel.tasks.causal_loop.encoding import encode_as, make_tokenizer
from zeromodel.tasks.causal_loop.generator.stream import problems
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.training.config import Curriculum
from zeromodel.training.losses import LatentReasoningLoss
from zeromodel.training.run import training_arguments
from zeromodel.training.trainer import EncodedProblems, LatentTrainer, TrainingConfig

BATCH = 8


def two_steps(file: str):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(5, SUITES["nano"].num_names)
    # rows of different length and with different numbers of graded questions, so that a mean of
    # means would show
    mixed = [p for _, p in problems(SUITES["nano"], "train", {1: 1, 2: 1}, BATCH, seed=0)]
    sizes = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        kv_latent_dim=16,
        rope_head_dim=4,
        use_lru=True,
        lru_max_iterations=3,
    )
    model = DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**sizes)).double()
    config = TrainingConfig(
        steps=2,
        batch_size=BATCH,
        learning_rate=1.0,
        warmup_steps=0,
        evaluate_every=1,
        halting_from=1,
        max_grad_norm=1e9,
        curriculum=Curriculum(start=1),
    )
    model.criterion = LatentReasoningLoss(config.losses)
    # as in a run, but with plain gradient descent, so that a wrong factor is not hidden
    args = training_arguments(config, Path(tempfile.mkdtemp()), 0)
    args.optim, args.lr_scheduler_type, args.eval_strategy, args.save_strategy, args.use_cpu = (
        "sgd",
        "constant",
        "no",
        "no",
        True,
    )
    trainer = LatentTrainer(
        model,
        config,
        args,
        tokenizer,
        train_dataset=EncodedProblems(encode_as("parallel", mixed, tokenizer)),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"weights": model.state_dict(), "logs": trainer.state.log_history[:2]}, file)
    # a process that ends while the other's threads still talk to it is aborted now and then
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    two_steps(sys.argv[1])
