"""`make demo`: the whole loop at nano size, as the commands a user would type, then one report of everything."""

import sys
import time

from agentrm_jax.run import command, reports, stages
from agentrm_jax.run.logs import format_seconds
from agentrm_jax.types import UserError

SIZE = "nano"
NAMES = ("sft", "mcts", "explicit", "greedy", "best_of_n", "beam")
COMPARED = ("greedy", "best_of_n", "beam")


def main() -> None:
    begin = time.monotonic()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(
            f"usage: python -m agentrm_jax.demo\n\n{__doc__}\nIt goes on where it was stopped; its runs lie in runs/{SIZE}."
        )
        return
    if len(sys.argv) > 1:
        raise UserError("the demo takes no arguments; its stages do: python train.py --help, python search.py --help")
    for number, name in enumerate(NAMES, 1):
        arguments = stages.arguments_of(name, SIZE)
        purpose = stages.STAGES[name].purpose
        print(f"\n[{number}/{len(NAMES)}] {purpose}\n$ {stages.shown(arguments)}", flush=True)
        if code := stages.run(arguments):
            raise UserError(f"the demo stopped at {name} (exit code {code}); run make demo again to continue there")
    runs = [stages.workdir_of(name, SIZE) for name in NAMES]
    page = reports.page(
        [r for r in runs if (r / "results.json").exists()],
        stages.workdir_of("report", SIZE) / "index.html",
        title="AgentRM at nano size",
        training=[r for r in runs if (r / "metrics.jsonl").exists()],
    )
    print("\n" + reports.show(*(stages.workdir_of(name, SIZE) for name in COMPARED)))
    print(f"\ndone in {format_seconds(time.monotonic() - begin)}; report: {page}")


if __name__ == "__main__":
    command.run(main, kept="make demo goes on where it was")
