"""Measures this program against named baselines and against other programs, side by side in one run.

    python -m benchmarks.run [NAME ...] [--seconds 10] [--write docs/results.md] [--resume]

NAME is any of matmul, decode, scoring, training, environments (against baselines in the same process; `--seconds` is the budget of each
comparison after compilation), engine, search and weights (against vLLM, llama.cpp and transformers); all by default. Other programs live in
environments of their own, and are left out, with the reason, where their variable is not set:

    AGENTRM_VLLM_PYTHON    a Python with vllm
    AGENTRM_LLAMA_PYTHON   a Python with llama-cpp-python
    AGENTRM_TORCH_PYTHON   a Python with torch, transformers and peft

`--write` replaces, after every row, the table of each NAME between its two markers of a Markdown file. `--resume` keeps what
runs/benchmarks/NAME.json has of a run of engine or search that was stopped. Figures of different runs do not compare.
"""

import argparse
import importlib
import json
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from agentrm_jax.run.devices import accelerator
from agentrm_jax.types import UserError
from benchmarks import measure, side_by_side, workloads
from benchmarks.measure import NANO_SIZE, TOY_SIZE, Row, machine
from benchmarks.options import SystemOptions
from benchmarks.side_by_side import Comparison

BASELINES = ("matmul", "decode", "scoring", "training", "environments")
PROGRAMS = ("engine", "search", "weights")
NAMES = (*BASELINES, *PROGRAMS)


def main(argv: Sequence[str] | None = None) -> int:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__, formatter_class=text)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="budget of each comparison with a baseline")
    parser.add_argument("--size", choices=("nano", "toy"), default="nano", help="of comparisons with baselines")
    parser.add_argument("--workload", default="full", help="of engine and search: full, short or toy (workloads.json)")
    parser.add_argument("--repeats", type=int, help="of engine and search, instead of the workload's")
    parser.add_argument("--case-seconds", type=float, default=45.0, help="no third repetition that would end later")
    parser.add_argument(
        "--systems", default="", help="programs to compare with, by the beginnings of their names: vllm,llama"
    )
    parser.add_argument(
        "--cases", default="", help="cases of engine and search, by the beginnings of their names: decode,beam"
    )
    parser.add_argument("--resume", action="store_true", help="measures only what NAME.json does not have")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks"), help="folder of NAME.json, weights and logs"
    )
    parser.add_argument("--write", type=Path, help="Markdown file whose tables are replaced")
    arguments = parser.parse_args(argv)
    names = arguments.names or NAMES
    try:
        if unknown := set(names) - set(NAMES):
            raise UserError(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
        workload = workloads.load(arguments.workload)
        for name in names if arguments.write is not None else ():
            _marked(arguments.write, name)  # better now than after the work
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that peers are ended
    accelerator()
    for name in names:
        file = arguments.out / f"{name}.json"
        rows: list[Any] = []
        if name in PROGRAMS:
            rows = _known(file) if arguments.resume else []
            done = frozenset(row.case for row in rows)
            source = importlib.import_module(f"benchmarks.{name}").run(_options(arguments, workload, done))
        else:
            size = {"nano": NANO_SIZE, "toy": TOY_SIZE}[arguments.size]
            source = importlib.import_module(f"benchmarks.{name}").run(size, arguments.seconds)
        settings = (
            f"{arguments.workload} workload" if name in PROGRAMS else f"{arguments.size} size, {arguments.seconds:g} s"
        )
        for row in source:
            rows.append(row)
            print(side_by_side.line(row) if name in PROGRAMS else measure.table([row]).splitlines()[-1], flush=True)
            _save(file, rows, settings)
            if arguments.write is not None:
                _write(arguments.write, name, rows, settings)
        print(f"{name}: written to {file}" if rows else f"{name}: nothing was measured", flush=True)
    return 0


def _options(arguments: argparse.Namespace, workload: dict[str, Any], done: frozenset[str]) -> SystemOptions:
    return SystemOptions(
        workload,
        arguments.repeats,
        arguments.case_seconds,
        _listed(arguments.systems),
        _listed(arguments.cases),
        done,
        arguments.out / workload["model"],
        arguments.out / "logs",
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _table(name: str) -> Callable[[list[Any]], str]:
    return side_by_side.table if name in PROGRAMS else measure.table


def _known(file: Path) -> list[Comparison]:
    return [Comparison.from_json(row) for row in json.loads(file.read_text())["rows"]] if file.exists() else []


def _save(file: Path, rows: Sequence[Row | Comparison], settings: str) -> None:
    found = {"machine": machine(), "settings": settings, "rows": [row.to_json() for row in rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(found, indent=1) + "\n")
    draft.replace(file)


def _write(page: Path, name: str, rows: list[Any], settings: str) -> None:
    head, begin, end, tail = _marked(page, name)
    described = ", ".join(f"{k} {v}" for k, v in machine().items())
    page.write_text(
        f"{head}{begin}\n{date.today().isoformat()}, {settings}; {described}.\n\n{_table(name)(rows)}\n{end}{tail}"
    )


def _marked(page: Path, name: str) -> tuple[str, str, str, str]:
    """What stands before the marked table of a benchmark, its two markers, and what stands after it."""
    begin_, end_ = (f"<!-- benchmarks.run {name}: {side} -->" for side in ("begin", "end"))
    text = page.read_text() if page.exists() else ""
    head, begin, rest = text.partition(begin_)
    _, end, tail = rest.partition(end_)
    if not begin or not end:
        raise UserError(f"{page} has no table of {name}; put the lines {begin_} and {end_} where it belongs")
    return head, begin, end, tail


if __name__ == "__main__":
    sys.exit(main())
