"""One page and one table of search runs and of the training they rest on, finished or not.

python -m agentrm_jax.report runs/nano/greedy runs/nano/beam runs/nano/explicit --out report.html
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.run import command, reports
from agentrm_jax.types import UserError


def main(argv: Sequence[str]) -> None:
    """Command line. Raises UserError."""
    parser = command.Parser(prog="python -m agentrm_jax.report", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="workdir of a search or training run")
    parser.add_argument("--out", type=Path, help="HTML file (default: RUN/report/index.html of the first search)")
    parser.add_argument("--title", default="Test-time search with a reward model")
    args = parser.parse_args(argv)
    if missing := [run for run in args.runs if not run.is_dir()]:
        raise UserError(f"{missing[0]} is no folder; name workdirs of runs")
    training = [run for run in args.runs if (run / "metrics.jsonl").exists()]
    searches = [run for run in args.runs if run not in training]
    if not searches:
        raise UserError("none of these is a search run; name at least one, e.g. runs/nano/beam")
    if args.out and (args.out.is_dir() or not args.out.resolve().parent.is_dir()):
        raise UserError(f"--out={args.out}: not a file in an existing folder")
    out = args.out or searches[0] / "report" / "index.html"
    table = reports.show(*searches)
    reports.page(searches, out, title=args.title, training=training)
    print(table)
    print(f"report: {out}")


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))
