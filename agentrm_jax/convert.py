"""Turns trajectories of any layout into another one, and names whatever the other has no place for.

    python -m agentrm_jax.convert rollouts.jsonl out.jsonl --to messages

IN is what `agentrm_jax.score` reads (files, folders, `hf:NAME`); OUT ends in .jsonl, .json or .parquet. A row that would lose something
ends the command before anything is written; `--lossy` writes it all the same and says what was lost. Every written row is read again
to find out.
"""

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.data import files, labels, writing
from agentrm_jax.envs import catalogue
from agentrm_jax.files import replacing
from agentrm_jax.run import command
from agentrm_jax.types import JSON, UserError

_SUFFIXES = (".jsonl", ".json", ".parquet")
_NAMES = (
    "ids",
    "tasks",
    "splits",
)  # of rows: what is learned does not depend on them; they are said, and no reason to refuse


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (2 for what the user can mend)."""
    parser = command.Parser(prog="python -m agentrm_jax.convert", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trajectories", metavar="IN", help="files, folders or hf:NAME in any layout of docs/data.md")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new file: .jsonl, .json or .parquet")
    parser.add_argument("--to", required=True, help=f"layout: {', '.join(writing.WRITERS)}")
    parser.add_argument("--lossy", action="store_true", help="write rows that lose something, too")
    parser.add_argument("--on-bad-row", choices=("error", "skip"), default="error", help="skip counts unreadable rows")
    parser.add_argument(
        "--env", action="append", default=[], metavar="MODULE", help="your own environment of our records"
    )
    return command.exit_code(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    if args.out.suffix not in _SUFFIXES:
        raise UserError(f"{args.out}: name a file that ends in {', '.join(_SUFFIXES)}")
    if args.out.exists():
        raise UserError(f"{args.out} exists; name a new file")
    specs = {spec.name: spec for spec in map(catalogue.find, [*catalogue.names(), *args.env])}
    skipped = files.Skipped()
    lost: dict[str, list[str]] = collections.defaultdict(list)
    rows: list[dict[str, JSON]] = []
    for row in labels.read(args.trajectories, specs, files.refuse if args.on_bad_row == "error" else skipped):
        written = writing.write(row, args.to)
        for name in written.lost:
            if name not in _NAMES and not args.lossy:
                raise UserError(f"{row.origin}: a row of {args.to!r} has no place for {name}; --lossy leaves it out")
            lost[name].append(row.origin)
        rows += written.rows
    if not rows:
        raise UserError(f"{args.trajectories}: there is nothing to convert")
    try:
        with replacing(args.out) as draft:
            _save(rows, draft, args.out.suffix)
    except OSError as error:
        raise UserError(f"{args.out} cannot be written: {error.strerror or error}") from error
    for name, origins in lost.items():
        print(f"{name}: not carried over for {len(origins)} rows, the first {origins[0]}", file=sys.stderr)
    if skipped.count:
        print(f"{skipped.count} rows left out; the first: {skipped.first}", file=sys.stderr)
    print(f"{len(rows)} rows of {args.to} in {args.out}", file=sys.stderr)
    return 0


def _save(rows: Sequence[dict[str, JSON]], path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UserError("Parquet needs the package pyarrow; write .jsonl") from error
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
        try:
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise UserError(f"rows of different shapes fit no table ({error}); write .jsonl") from error
        return
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if suffix == ".jsonl" else "[" + ",\n ".join(lines) + "]"
    path.write_bytes((text + "\n").encode(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())
