"""Copies of the repository that a test may spoil."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from zeromodel.tasks.causal_loop.datasets import FROZEN_SIZES, write_frozen_suites

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    """Run a tool of this environment in `cwd`, with the package of `cwd` and not the installed
    one.
    """
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(cwd),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **kwargs)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def copy_repository(folder: Path, benchmark: Path | None = None) -> Path:
    """A committed copy of what git tracks here and of what it would track, without the reports
    on studies; with this `benchmark` when it is given.
    """
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file() and (
            not name.startswith("reports/") or name.endswith("audit.json")
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # numba takes them while the time of the source is the same
    for compiled in (ROOT / "zeromodel").rglob("__pycache__/*.nb[ic]"):
        (folder / compiled.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, folder / compiled.relative_to(ROOT))
    if benchmark:
        shutil.copytree(benchmark / "data", folder / "data")
        shutil.copy2(benchmark / "data.dvc", folder)
    run("git", "init", "-q", cwd=folder)
    commit(folder, "copy")
    return folder


def commit(folder: Path, message: str):
    run("git", "add", "-A", cwd=folder)
    run(
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "commit",
        "-qm",
        message,
        cwd=folder,
    )


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory) -> Path:
    """A folder with `data`, every frozen suite with a twentieth of its problems, and the
    `data.dvc` that names it.
    """
    folder = tmp_path_factory.mktemp("benchmark")
    small = {
        name: {level: n // 20 for level, n in levels.items()}
        for name, levels in FROZEN_SIZES.items()
    }
    with patch.dict(FROZEN_SIZES, small):
        write_frozen_suites(folder / "data")
    run("dvc", "init", "--no-scm", "--quiet", cwd=folder)
    run("dvc", "add", "--quiet", "data", cwd=folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path, benchmark: Path) -> Path:
    return copy_repository(tmp_path / "copy", benchmark)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if"
    " add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random Qwen2 of a few thousand parameters that reads bytes, in a local folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("tiny")
    symbols = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
    ]
    core = Tokenizer(models.BPE({s: i for i, s in enumerate(symbols)}, []))
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    set_seed(0)
    sizes = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
    )
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(symbols), eos_token_id=2, pad_token_id=0, bos_token_id=None, **sizes
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
