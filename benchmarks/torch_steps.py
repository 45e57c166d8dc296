"""PyTorch's training step as a baseline, in an environment of its own that `AGENTRM_TORCH_PYTHON` names."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrm_jax.models.config import ModelConfig
from benchmarks.measure import jax_cores

VARIABLE = "AGENTRM_TORCH_PYTHON"


def missing() -> str | None:
    """Why there is no PyTorch to compare with; None if there is."""
    python = os.environ.get(VARIABLE)
    if not python:
        return f"{VARIABLE} names no Python with torch, transformers and peft"
    try:
        found = subprocess.run([python, "-c", "import torch, transformers, peft"], capture_output=True, text=True)
    except OSError as error:
        return f"{VARIABLE}={python}: {error.strerror}"
    return f"{VARIABLE}={python}: {found.stderr.strip().splitlines()[-1]}" if found.returncode else None


class Steps:
    """A process that does one update step whenever it is asked to.

    Attributes:
      peak: the most memory (bytes) that it has needed.
    """

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self.peak = 0

    def step(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.peak = int(self._process.stdout.readline())


@contextlib.contextmanager
def started(model: ModelConfig, **job: Any) -> Iterator[Steps]:
    """Steps on a model of this shape; `job` says kind (`imitation`, `adapters` or `values`), tokens and the like."""
    shape = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_length,
        "tie_word_embeddings": model.tie_embeddings,
    }
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}  # it waits without work while the other side is measured
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps({"model": shape, "threads": jax_cores(), **job}))
        command = [os.environ[VARIABLE], str(Path(__file__).with_name("torch_worker.py")), str(file)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                if line == "ready\n":
                    break
            yield Steps(process)
            process.stdin.close()
