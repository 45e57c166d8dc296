"""Files that are written whole or not at all, and that say in one line when what is read back is broken."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from agentrm_jax.types import JSON, UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a draft beside `path`, which takes its place when the block ends well and is removed when it does not.

    The folder is made if it is missing. A process that is killed leaves the old file as it was.
    """
    path = path.resolve()  # the file that a link points to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_new_folder(path: Path) -> None:
    """Raises UserError if `path` is a file, or a folder that holds something."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is {'not empty' if path.is_dir() else 'a file'}; name a new folder")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty draft of a folder, which becomes `path` when the block ends well and is removed when it does not.

    Raises: UserError, as `check_new_folder`.
    """
    check_new_folder(path)
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file at once: whoever reads it, also after a kill, sees the old content or the new one.

    Raises: OSError.
    """
    with replacing(path) as draft:
        draft.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, value: JSON, *, indent: int | None = 2) -> None:
    """Writes a JSON file at once; numbers that JSON lacks (NaN, infinities) become null. Raises: OSError."""
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode(errors="replace") + b"\n")


def read_json(path: Path, kind: type | None = dict) -> JSON:
    """The content of a JSON file, which must be of the given kind (an object, unless said otherwise).

    Raises:
      UserError: there is no such file, it cannot be read, it is empty or damaged, or it holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        size = path.stat().st_size
        state = "is empty" if not size else f"is no JSON, or only half of it ({error})"
        raise UserError(f"{path} {state}; put a good copy back, or remove it") from error
    if kind is not None and not isinstance(value, kind):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not a {kind.__name__}; put a good copy back")
    return value


def finite(value: JSON) -> JSON:
    """The same JSON value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value
