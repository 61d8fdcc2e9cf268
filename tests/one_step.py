"One step of gradient descent in float64, of one process or of several: `torchrun --nproc-per-node 2 tests/one_step.py FILE` writes the weights and what was logged."
import sys
import tempfile

import torch
from transformers import TrainingArguments

from zeromodel.model.causal_lm import DeepSeekMLAForCausalLM
from zeromodel.model.config import DeepSeekMLAConfig
from zeromodel.tasks.answers import encode_as
from zeromodel.tasks.generate import problems
from zeromodel.tasks.suites import SUITES
from zeromodel.tasks.tokens import make_tokenizer
from zeromodel.training.losses import LatentReasoningLoss
from zeromodel.training.schedules import Curriculum
from zeromodel.training.trainer import EncodedProblems, LatentTrainer, TrainingConfig

BATCH = 8


def one_step(file: str, devices: int):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(5, SUITES["nano"].num_names)
    # rows of different length and with different numbers of graded questions, so that a mean of means would show
    mixed = [p for _, p in problems(SUITES["nano"], "train", {1: 1, 2: 1}, BATCH, seed=0)]
    sizes = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, kv_latent_dim=16, rope_head_dim=4, use_lru=True, lru_max_iterations=3)
    model = DeepSeekMLAForCausalLM(DeepSeekMLAConfig(**sizes)).double()
    config = TrainingConfig(steps=1, batch_size=BATCH, learning_rate=1., warmup_steps=0, evaluate_every=1, curriculum=Curriculum(start=1))
    model.criterion = LatentReasoningLoss(config.losses)
    args = TrainingArguments(output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=BATCH // devices, lr_scheduler_type="constant", max_grad_norm=0, optim="sgd", learning_rate=1., use_cpu=True,
                             report_to=[], disable_tqdm=True, remove_unused_columns=False, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", log_level="error", ddp_find_unused_parameters=False)
    trainer = LatentTrainer(model, config, args, tokenizer, train_dataset=EncodedProblems(encode_as("parallel", mixed, tokenizer)))
    trainer.train()
    if trainer.is_world_process_zero(): torch.save({"weights": model.state_dict(), "log": trainer.state.log_history[0]}, file)


if __name__ == "__main__":
    import os
    one_step(sys.argv[1], int(os.environ.get("WORLD_SIZE", 1)))
