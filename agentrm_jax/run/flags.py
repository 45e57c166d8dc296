"""Command lines of the mains: `--config=FILE[:SIZE] --workdir=DIR --config.KEY=VALUE`.

A config file is Python: `MAIN` says which main it is for, `get_config(size)` returns an `ml_collections.ConfigDict`, and its docstring
says the command and what to expect. Every mistake ends in one line that names it and what to do.
"""

import ast
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from agentrm_jax.run import keys, stages
from agentrm_jax.types import UserError


def parse(argv: Sequence[str], main: str = "") -> tuple[ml_collections.ConfigDict, Path]:
    """The config and the workdir that a command line names. The default workdir is `runs/SIZE/NAME` for `configs/NAME.py:SIZE`.

    Args:
      main: the main that is to run the config, `train.py` or `search.py`; empty if any will do.

    Raises:
      UserError: a flag, key, value, size or path is wrong, or the config is for another main.
    """
    usage = f"usage: {stages.spoken(main or 'MAIN.py')} --config=configs/NAME.py[:SIZE] [--workdir=DIR] [--config.KEY=VALUE ...]"
    source, workdir, overrides = "", None, []
    for arg in joined(argv):
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not equals:
            raise UserError(f"cannot read {arg!r}; {usage}")
        if name == "config":
            source = value
        elif name == "workdir":
            workdir = _folder(value)
        elif name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        else:
            raise UserError(f"unknown flag --{name}; {usage}")
    if not source:
        raise UserError(f"--config is missing; {usage}")
    name, _, size = source.partition(":")
    file = _find(name)
    module = load_module(file)
    if main and main != module.MAIN:
        raise UserError(f"--config={source} is for {module.MAIN}: {stages.spoken(module.MAIN)} --config={source}")
    config = _made(module, file, size)
    for key, value in overrides:
        if (known := keys.find(key, keys.roles(config))) and known.identity:
            raise UserError(f"--config.{key} is what the config file is; choose another with --config=FILE[:SIZE]")
        override(config, key, value)
    stages.start_from_nothing(config, [key for key, _ in overrides])
    config.lock()
    place = workdir or stages.workdir_of(file.stem, config.size)
    if (
        place.is_absolute() and not place.parent.is_dir()
    ):  # below the current folder, folders are made as for the default
        raise UserError(f"--workdir={place}: the folder {place.parent} does not exist; create it first")
    return config, place


def _folder(text: str) -> Path:
    """A workdir, which lies on a disk: journals are appended to and locked, which object stores do not do."""
    if scheme := re.match(r"\w+://", text):
        raise UserError(
            f"--workdir={text}: an object store ({scheme[0]}) cannot be a workdir; name a folder on a disk that all hosts see, "
            "and copy finished runs"
        )
    return Path(text)


def joined(argv: Sequence[str], switches: Collection[str] = ()) -> list[str]:
    """`--name value` as `--name=value`; `switches` are flags that take no value."""
    out: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        bare = word.startswith("--") and "=" not in word and word not in switches
        if bare and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        out.append(word)
    return out


def _find(name: str) -> Path:
    """A config file: from the current folder, or from that of the mains."""
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    there = stages.home() / path
    return there if there.is_file() else path


def load_module(path: Path) -> ModuleType:
    """A config file as a module, with `MAIN` and `get_config`.

    Raises:
      UserError: there is no such file, it is not a config, or its code fails.
    """
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else stages.home() / path.parent
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.py")], 1, 0.4)
        raise UserError(f"--config={path}: no such file" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path}: a config is a Python file, e.g. configs/sft.py")
    module = importlib.util.module_from_spec(spec)
    beside = [str(path.resolve().parent), str(path.resolve().parent.parent)]  # configs import what stands beside them
    sys.path[:0] = beside
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # it is the user's code
        raise UserError(f"--config={path} fails: {_where(error, path)}") from error
    finally:
        del sys.path[: len(beside)]
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} defines no get_config(size)")
    if getattr(module, "MAIN", None) not in stages.MAINS:
        raise UserError(f'{path} does not say which main it is for; write MAIN = "train.py" or "search.py" in it')
    return module


def _made(module: ModuleType, file: Path, size: str) -> ml_collections.ConfigDict:
    try:
        config = module.get_config(size) if size else module.get_config()
    except UserError:
        raise
    except Exception as error:  # it is the user's code
        raise UserError(f"--config={file}:{size} fails: {_where(error, file)}") from error
    if not isinstance(config, ml_collections.ConfigDict) or not isinstance(config.get("size"), str):
        raise UserError(f"{file}: get_config must return an ml_collections.ConfigDict with a size, such as 'nano'")
    return config


def _where(error: Exception, file: Path) -> str:
    """An error with the line of the file that it came from."""
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file.resolve()
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets `a.b.c` to the value written in `text`, which must fit the type of what is there.

    Below a key named `options` new keys may be made: environments define their own.
    """
    node, parts = config, key.split(".")
    for i, part in enumerate(parts[:-1]):
        free = "options" in parts[: i + 1]
        if part not in node and free:
            with node.unlocked():
                node[part] = ml_collections.ConfigDict()
        _known(node, part, key)
        node = node[part]
        if not isinstance(node, ml_collections.ConfigDict):
            raise UserError(f"--config.{key}: {'.'.join(parts[: i + 1])} is a value, not a group of keys")
    last = parts[-1]
    if "options" in parts[:-1] and last not in node:
        with node.unlocked():
            node[last] = _literal(text)
        return
    _known(node, last, key)
    old = node[last]
    if isinstance(old, ml_collections.ConfigDict):
        raise UserError(f"--config.{key} is a group of keys: {', '.join(old)}; set one of them")
    with node.ignore_type():
        node[last] = _convert(old, text, key)


def _known(node: ml_collections.ConfigDict, part: str, key: str) -> None:
    if part not in node:
        near = difflib.get_close_matches(part, list(node), 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(node)}"
        raise UserError(f"unknown config key --config.{key}; {hint}")


def _convert(old: Any, text: str, key: str) -> Any:
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    if isinstance(old, tuple):
        kinds[tuple] = "a list like " + (",".join(map(str, old[:2])) or "a,b")
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(old, int):
            return int(text)
        if isinstance(old, float):
            return float(text)
        if isinstance(old, tuple):
            value = _literal(text)
            items = value if isinstance(value, list | tuple) else [t.strip() for t in text.split(",") if t.strip()]
            new = tuple(_literal(t) if isinstance(t, str) else t for t in items)
            if {type(v) for v in new} - {type(v) for v in old} and old:
                raise ValueError
            return new
        return _literal(text) if old is None else text
    except (KeyError, ValueError):
        raise UserError(f"--config.{key}={text}: must be {kinds.get(type(old), 'a value')}") from None


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
