"""Files of a Hugging Face folder: each is read whole, or refused in one line that names the file and the remedy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from agentrm_jax.files import read_json
from agentrm_jax.models.weights import Source, some
from agentrm_jax.types import JSON, UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
_FLOATS = {"F64", "F32", "F16", "BF16"}
_POINTER = b"version https://git-lfs"


def refuse_pointer(*paths: Path) -> None:
    """Refuses git-lfs pointers: small text files that stand for large ones which were never fetched.

    Raises:
      UserError: one of the paths is a pointer; all that lie beside it are named.
    """
    for path in paths:
        if path.is_file() and _is_pointer(path):
            names = sorted(p.name for p in path.parent.iterdir() if p.is_file() and _is_pointer(p))
            raise UserError(
                f"{path.parent} holds git-lfs pointers in place of {some(names)}; fetch the files themselves with "
                "`git lfs pull` in that folder, or download them again"
            )


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def read_object(path: Path) -> dict[str, JSON]:
    """The JSON object in a file.

    Raises:
      UserError: the file is missing or unreadable, a git-lfs pointer, or holds something else.
    """
    refuse_pointer(path)
    return read_json(path)


def has_weights(folder: Path) -> bool:
    """Whether the folder names safetensors weights, whole or not."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def open_safetensors(folder: Path) -> Source:
    """The tensors of a Hugging Face folder: `model.safetensors`, or shards with their index.

    Raises:
      UserError: there are none, the index names files that are missing, or a file is damaged.
    """
    files = _shards(folder / INDEX) if (folder / INDEX).exists() else [WEIGHTS]
    if absent := [f for f in files if not (folder / f).exists()]:
        hint = "download them again"
        if not has_weights(folder) and (list(folder.glob("*.bin")) or list(folder.glob("*.pt*"))):
            hint = "only safetensors weights are read, so convert those that are there (`save_pretrained` writes them)"
        raise UserError(f"{folder} has no {some(absent)}; {hint}")
    return open_tensors([folder / f for f in files], str(folder))


def _shards(index: Path) -> list[str]:
    """The names of the files in which an index says the tensors lie."""
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; download it again")
    return sorted(set(names.values()))


def open_tensors(paths: Sequence[Path], origin: str) -> Source:
    """The tensors of safetensors files, as one source.

    Raises:
      UserError: a file is missing, a git-lfs pointer, damaged, or holds numbers that are not floating-point weights.
    """
    if absent := [p.name for p in paths if not p.exists()]:
        raise UserError(f"{origin} has no {some(absent)}; only safetensors weights are read")
    refuse_pointer(*paths)
    where: dict[str, Any] = {}
    for path in paths:
        try:
            handle = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no whole safetensors file ({error}); copy or download it again") from None
        where |= {name: handle for name in handle.keys()}  # noqa: SIM118  (not a dict)
    parts = {name: handle.get_slice(name) for name, handle in where.items()}
    if other := [f"{name} ({part.get_dtype()})" for name, part in parts.items() if part.get_dtype() not in _FLOATS]:
        raise UserError(f"{origin} has weights of other types than {', '.join(sorted(_FLOATS))}: {some(other)}")
    shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    return Source(origin, shapes, lambda name, index: parts[name][index])
