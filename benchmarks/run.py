"""Measures this program against named baselines, side by side in one run.

    python -m benchmarks.run [NAME ...] [--seconds 10] [--json FILE] [--write docs/results.md]

NAME is any of decode, scoring, engine, training, environments, matmul; all by default. `--seconds` is the budget of each comparison
after compilation. `training` is set beside PyTorch too where AGENTRM_TORCH_PYTHON names a Python with torch, transformers and peft.
`--write` replaces the table between the two markers of a Markdown file. Figures of different runs do not compare: the
matrix-product column says how fast the machine was while a row was measured.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from agentrm_jax.run.devices import accelerator
from agentrm_jax.types import UserError
from benchmarks.measure import NANO_SIZE, TOY_SIZE, Row, machine, table

NAMES = ("matmul", "decode", "scoring", "engine", "training", "environments")
BEGIN, END = "<!-- benchmarks.run: begin -->", "<!-- benchmarks.run: end -->"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="budget of each comparison, after compilation")
    parser.add_argument("--size", choices=("nano", "toy"), default="nano")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/run.json"))
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced")
    arguments = parser.parse_args(argv)
    try:
        if unknown := set(arguments.names) - set(NAMES):
            raise UserError(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
        if arguments.write is not None:
            _marked(arguments.write)  # better now than after the work
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    accelerator()
    size = {"nano": NANO_SIZE, "toy": TOY_SIZE}[arguments.size]
    rows: list[Row] = []
    for name in arguments.names or NAMES:
        for row in importlib.import_module(f"benchmarks.{name}").run(size, arguments.seconds):
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    about = machine()
    found = {"machine": about, "size": size.name, "seconds": arguments.seconds, "rows": [r.to_json() for r in rows]}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.write is not None:
        head, tail = _marked(arguments.write)
        described = ", ".join(f"{k} {v}" for k, v in about.items())
        text = f"{date.today().isoformat()}, {size.name} size; {described}.\n\n{table(rows)}"
        arguments.write.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
    print(f"written to {arguments.json}")
    return 0


def _marked(path: Path) -> tuple[str, str]:
    """What stands before and after the marked table."""
    text = path.read_text() if path.exists() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path} has no table to replace; put the lines {BEGIN} and {END} where it belongs")
    return head, tail


if __name__ == "__main__":
    sys.exit(main())
