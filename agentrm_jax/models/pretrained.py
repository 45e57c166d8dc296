"""Opening a pretrained model by name or path: a Hugging Face folder, a GGUF file, or the preset `smollm2`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.families import Head, config_from_hf, head_from_hf
from agentrm_jax.models.gguf import GGUF, smollm2_file
from agentrm_jax.models.weights import Source, open_safetensors
from agentrm_jax.tokenizer import load_tokenizer
from agentrm_jax.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model on disk; weights are read by `agentrm_jax.models.weights.load_params(p.source(), p.config, abstract)`.

    Attributes:
      head: what the file was made for; a reward model is one of the classification heads.
      source: opens the weights.
      tokenizer: loads the `transformers` tokenizer.
    """

    config: ModelConfig
    head: Head
    source: Callable[[], Source]
    tokenizer: Callable[[], Any]


def open_pretrained(name: str | Path) -> Pretrained:
    """Reads the configuration and leaves the rest for when it is asked for.

    Raises:
      UserError: nothing is there, or it is not supported.
    """
    path = smollm2_file() if name == "smollm2" else Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        file = GGUF(path)
        return Pretrained(file.config, "CausalLM", file.source, file.tokenizer)
    if not (path / "config.json").is_file():
        raise UserError(
            f"no model at {path}: neither a .gguf file, nor a folder with config.json, nor the name smollm2"
        )
    try:
        fields = json.loads((path / "config.json").read_text())
    except ValueError as e:
        raise UserError(f"{path / 'config.json'} is not valid JSON: {e}") from None
    return Pretrained(
        config_from_hf(fields), head_from_hf(fields), lambda: open_safetensors(path), lambda: load_tokenizer(path)
    )
