"""The table of keys for people: `--help` of the mains, and the page docs/config.md.

python -m agentrm_jax.run.reference docs/config.md      writes the page anew
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentrm_jax.files import write_atomically
from agentrm_jax.run import command, flags, keys, stages
from agentrm_jax.run.checks import show
from agentrm_jax.run.key import Key
from agentrm_jax.types import UserError

_PAGE = """# Every key of a config

`python MAIN.py --config=FILE[:SIZE] [--workdir=DIR] [--config.KEY=VALUE ...]`; a value that does not fit is refused before anything is
written. A default is that of the size nano, with the configs it is for where they differ. The last column says what becomes of a key in a
workdir that has begun: *fixed* means that another value is refused, because it would change results; *free* that the run goes on
with the new value; *may be raised* that it goes on and says what that does. Changes are noted in the workdir's `config_changes.jsonl`.

This page is made by `python -m agentrm_jax.run.reference docs/config.md`.
"""


def configs(main: str = "") -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of every shipped config of a main (of both, if none is named) -> (its docstring, its values at size nano)."""
    found = {}
    for path in sorted((stages.home() / "configs").glob("*.py")):
        if path.stem in stages.STAGES and main in ("", stages.STAGES[path.stem].main):
            values = keys.flatten(flags.load_module(path).get_config())
            found[path.stem] = (ast.get_docstring(ast.parse(path.read_text())) or "", values)
    return found


def usage(main: str) -> str:
    """The text of `--help`: the configs of a main, and their keys."""
    found = configs(main)
    lines = [
        f"usage: {stages.spoken(main)} --config=configs/NAME.py[:SIZE] [--workdir=DIR] [--config.KEY=VALUE ...]",
        "",
    ]
    width = max(map(len, found))
    lines += [f"  configs/{f'{name}.py':<{width + 4}} {doc.splitlines()[0]}" for name, (doc, _) in found.items()]
    lines += ["", "keys, with defaults at size nano; docs/config.md says which may change in a run that has begun:"]
    for title, rows in _sections({name: values for name, (_, values) in found.items()}):
        lines += ["", title]
        for key, defaults in rows:
            of = _owners(defaults)
            lines += [
                f"  --config.{key.name}={_defaults(defaults)}" + ("" if of in (main, "all") else f"   [{of}]"),
                f"      {_meaning(key)}; must be {key.range.words()}",
            ]
    return "\n".join(lines)


def page() -> str:
    """The content of docs/config.md."""
    found = {name: values for name, (_, values) in configs().items()}
    lines = [_PAGE]
    for title, rows in _sections(found):
        lines += [
            f"## {title}",
            "",
            "| key | of | default | must be | meaning | in a run |",
            "|---|---|---|---|---|---|",
        ]
        for key, defaults in rows:
            cells = (
                f"`{key.name}`",
                _owners(defaults),
                _defaults(defaults),
                key.range.words(),
                _meaning(key),
                _fate(key),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sections(
    found: Mapping[str, Mapping[str, Any]],
) -> Iterable[tuple[str, list[tuple[Key, dict[str, Any]]]]]:
    """Title of a section -> its keys, each with config -> default. Left out: keys that no config has, or that say which it is."""
    for title, section in keys.SECTIONS.items():
        rows = []
        for key in section:
            if key.identity:  # not set, but chosen with the file
                continue
            own = {name: values for name, values in found.items() if keys.roles(values) & set(key.of)}
            if own:
                rows.append((key, {name: values.get(key.name, "") for name, values in own.items()}))
        if rows:
            yield title, rows


def _defaults(defaults: Mapping[str, Any]) -> str:
    """The default, or the defaults with the configs that have them."""
    names: dict[str, list[str]] = {}
    for config, value in defaults.items():
        text = (show(value).lower() if isinstance(value, bool) else show(value)) or "(empty)"
        names.setdefault(text, []).append(config)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{text} ({', '.join(of)})" for text, of in names.items())


def _owners(defaults: Mapping[str, Any]) -> str:
    """The configs that have a key; the main, if all of its configs do."""
    for main in stages.MAINS:
        if {stage.name for stage in stages.STAGES.values() if stage.main == main} == set(defaults):
            return main
    return ", ".join(defaults) if set(defaults) != set(stages.STAGES) else "all"


def _meaning(key: Key) -> str:
    return f"{key.meaning} ({key.unit})" if key.unit and key.unit not in key.meaning else key.meaning


def _fate(key: Key) -> str:
    return "free" if key.steady else "may be raised" if key.raised else "fixed"


def _main() -> None:
    if len(sys.argv) != 2:
        raise UserError("usage: python -m agentrm_jax.run.reference FILE")
    write_atomically(Path(sys.argv[1]), page())


if __name__ == "__main__":
    command.run(_main)
