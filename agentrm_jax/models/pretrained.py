"""Opening a pretrained model by name or path: a Hugging Face folder, PEFT adapters, a GGUF file, or the preset `smollm2`."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrm_jax.models.classifiers import good_label, value_bias, value_source
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.families import OPENRLHF, Head, config_from_hf, head_from_hf, labels_from_hf
from agentrm_jax.models.folder import (
    CONFIG,
    TOKENIZER_FILES,
    has_weights,
    open_safetensors,
    read_object,
    refuse_pointer,
)
from agentrm_jax.models.gguf import GGUF, smollm2_file
from agentrm_jax.models.gguf_tokenizer import load_gguf_tokenizer
from agentrm_jax.models.peft import ADAPTER_CONFIG, PeftAdapter, read_peft
from agentrm_jax.models.weights import Source, some
from agentrm_jax.tokenizer import load_tokenizer
from agentrm_jax.types import UserError

EXAMPLE_SCORES = "example_scores.json"  # a file of folders that were exported here


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model on disk; weights are read by `agentrm_jax.models.weights.load_params(p.source(), p.config, abstract)`.

    Attributes:
      head: what the file was made for; a reward model is one of the classification heads.
      source: opens the weights; a classifier's are those of one value head.
      tokenizer: loads the `transformers` tokenizer.
      graded: opens the weights to say how values follow from the value head (`value_bias` and `value_probability` of `config`).
    """

    config: ModelConfig
    head: Head
    source: Callable[[], Source]
    tokenizer: Callable[[], Any]
    graded: Callable[[], ModelConfig] | None = None


def open_pretrained(name: str | Path) -> Pretrained:
    """Reads the configuration and leaves the rest for when it is asked for.

    Raises:
      UserError: nothing is there, or it is damaged or not supported.
    """
    try:
        path = smollm2_file() if name == "smollm2" else Path(name).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            file = GGUF(path)
            return Pretrained(file.config, "CausalLM", file.source, functools.partial(load_gguf_tokenizer, file))
        if (path / ADAPTER_CONFIG).is_file() and not ((path / CONFIG).is_file() and has_weights(path)):
            return _open_adapter(path, read_peft(path))
        if not (path / CONFIG).is_file():
            raise UserError(_why_no_model(str(name), path))
        return _open_folder(path)
    except (OSError, RuntimeError) as error:  # no permission, no such home folder
        raise UserError(f"{name} cannot be read: {error}") from None


def _open_folder(path: Path) -> Pretrained:
    fields, origin = read_object(path / CONFIG), str(path / CONFIG)
    if "model_type" not in fields:
        hint = "; a workdir needs its model.json" if (path / "metrics.jsonl").exists() else ""
        raise UserError(f"{path} is no Hugging Face model folder: its config.json has no model_type{hint}")
    config, head = config_from_hf(fields, origin), head_from_hf(fields, origin)
    tokenizer = functools.partial(_load_tokenizer, path)
    if OPENRLHF in (fields.get("architectures") or ()):
        return Pretrained(
            config, head, lambda: _rename_head(open_safetensors(path), fields.get("value_head_prefix")), tokenizer
        )
    labels = labels_from_hf(fields, head, origin)
    if not labels:
        return Pretrained(config, head, lambda: open_safetensors(path), tokenizer)
    good = good_label(fields, origin) if labels == 2 else 0

    def graded() -> ModelConfig:
        bias = value_bias(open_safetensors(path), labels, good)
        return dataclasses.replace(config, value_bias=bias, value_probability=labels == 2)

    return Pretrained(config, head, lambda: value_source(open_safetensors(path), labels, good), tokenizer, graded)


def _open_adapter(path: Path, adapter: PeftAdapter) -> Pretrained:
    """A base with the adapters of a PEFT folder added to it, tensor by tensor as they are read."""
    place = next((p for p in (Path(adapter.base).expanduser(), path / adapter.base) if p.exists()), Path(adapter.base))
    try:
        if (place / ADAPTER_CONFIG).is_file():
            raise UserError("it holds adapters too; merge those into their own base first")
        base = open_pretrained("smollm2" if adapter.base == "smollm2" else place)
    except UserError as error:
        raise UserError(
            f"{path} holds PEFT adapters for {adapter.base}, which cannot be opened ({error}); put its folder on this "
            f"machine and write the path as base_model_name_or_path into {path / ADAPTER_CONFIG}"
        ) from None
    has_tokenizer = any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = functools.partial(_load_tokenizer, path) if has_tokenizer else base.tokenizer
    head = adapter.head or base.head

    def merged() -> Source:
        return adapter.add_to(base.source(), tied=base.config.tie_embeddings)

    if head == "CausalLM":
        return Pretrained(base.config, head, merged, tokenizer)
    most = 2 if head == "TokenClassification" else 1  # labels without names: the second of two means good

    def labels(source: Source) -> int:
        return min(most, source.shapes.get("score.weight", (1,))[0])

    def graded() -> ModelConfig:
        source = merged()
        bias, two = value_bias(source, labels(source)), labels(source) == 2
        return dataclasses.replace(base.config, value_bias=bias, value_probability=two)

    def source() -> Source:
        found = merged()
        return value_source(found, labels(found))

    return Pretrained(base.config, head, source, tokenizer, graded)


def _load_tokenizer(folder: Path) -> Any:
    refuse_pointer(*(folder / name for name in TOKENIZER_FILES))
    return load_tokenizer(folder)


def _rename_head(source: Source, prefix: str | None) -> Source:
    """The tensors of an OpenRLHF reward model with its value head under the name `score.weight`."""
    names = [f"{prefix}.weight"] if prefix else ["score.weight", "value_head.weight"]
    head = next((n for n in names if n in source.shapes), None)
    if head is None:
        raise UserError(f"{source.origin} lacks {' and '.join(names)}, the value head of a {OPENRLHF}")
    stored = {name: name for name in source.shapes if name != head} | {"score.weight": head}
    shapes = {name: source.shapes[at] for name, at in stored.items()}
    return Source(source.origin, shapes, lambda name, index: source.read(stored[name], index))


def _why_no_model(name: str, path: Path) -> str:
    """What is wrong with a place that holds none of the forms that are read."""
    if path.is_dir():
        if files := [p.name for p in path.glob("*.gguf")]:
            return f"{path} has no {CONFIG}; name the GGUF file itself: {some(files)}"
        if (path / "params.json").exists():
            return f"{path} has params.json, not {CONFIG}: its makers' own form; take the one for Hugging Face transformers"
        if (path / "results.json").exists() or (path / "trajectories.jsonl").exists():
            return f"{path} is the workdir of a search, not a model"
    hub = "; names on the Hugging Face hub are not taken: download the model and give its folder"
    return f"no model at {path}: neither a .gguf file, nor a folder with {CONFIG}, nor the name smollm2" + (
        hub if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
    )
