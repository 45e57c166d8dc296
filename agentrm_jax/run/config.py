"""Command lines of the mains: `--config=FILE[:SIZE] --workdir=DIR --config.key=value`.

A config file is Python: `get_config(size)` returns an `ml_collections.ConfigDict`, its docstring says the command and what to expect.
Every mistake ends in one line that names it and what to do.
"""

import ast
import difflib
import importlib.util
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import ml_collections

from agentrm_jax.types import UserError

_USAGE = "usage: python {main} --config=configs/NAME.py[:SIZE] [--workdir=DIR] [--config.KEY=VALUE ...]"


def run(main: Callable[[ml_collections.ConfigDict, Path], None]) -> NoReturn:
    """Runs a main with the config and workdir of the command line; turns what the user can mend into exit code 2."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        config, workdir = parse(sys.argv[1:])
        main(config, workdir)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        os._exit(130)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # background threads of a broken run must not keep it alive
    sys.exit(0)


def parse(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, Path]:
    """The resolved config and the workdir. The default workdir is `runs/SIZE/NAME` for `configs/NAME.py:SIZE`.

    Raises:
      UserError: a flag, key, value, size or path is wrong.
    """
    source, workdir, overrides = None, None, []
    if any(a in ("-h", "--help") for a in argv):
        print(_USAGE.format(main=sys.argv[0]))
        for path in sorted(Path("configs").glob("*.py")):
            if doc := ast.get_docstring(ast.parse(path.read_text())):
                print(f"  {path}: {doc.splitlines()[0]}")
        sys.exit(0)
    for arg in argv:
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not equals:
            raise UserError(f"cannot read {arg!r}; {_USAGE.format(main=sys.argv[0])}")
        if name == "config":
            source = value
        elif name == "workdir":
            workdir = Path(value)
        elif name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        else:
            raise UserError(f"unknown flag --{name}; {_USAGE.format(main=sys.argv[0])}")
    if source is None:
        raise UserError(f"--config is missing; {_USAGE.format(main=sys.argv[0])}")
    file, _, size = source.partition(":")
    module = load_module(Path(file))
    config = module.get_config(size) if size else module.get_config()
    for key, value in overrides:
        override(config, key, value)
    config.lock()
    place = workdir or Path("runs") / config.size / Path(file).stem
    if not place.parent.is_dir() and workdir is not None:
        raise UserError(f"--workdir={place}: the folder {place.parent} does not exist; create it first")
    return config, place


def load_module(path: Path) -> ModuleType:
    """A config file as a module.

    Raises:
      UserError: there is no such file, or it defines no get_config.
    """
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.py")], 1, 0.4)
        raise UserError(f"--config={path}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UserError(f"--config={path}: a config is a Python file, e.g. configs/sft.py")
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    beside = [str(path.resolve().parent), str(path.resolve().parent.parent)]  # configs import what stands beside them
    sys.path[:0] = beside
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.path[: len(beside)]
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} defines no get_config(size)")
    return module


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


def begin(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes the workdir and writes `config.json`; refuses to mix two experiments in one folder.

    Raises:
      UserError: the folder cannot be made, or was made by another config.
    """
    resolved = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = sorted(k for k in before.keys() | resolved.keys() if before.get(k) != resolved.get(k))
        if changed:
            raise UserError(
                f"{workdir} was made with another config (differs in: {', '.join(changed)}); choose another --workdir"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(resolved, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def read(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a run was made with; empty where the folder holds none."""
    path = workdir / "config.json"
    return ml_collections.ConfigDict(json.loads(path.read_text()) if path.exists() else {})


def _fail(line: str) -> NoReturn:
    print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
