"""`make demo`: the whole loop at nano size, as the commands a user would type, then one report of everything.

The reward model is trained with three seeds, and all of them rank the same samples: what a method earns is then known beyond the chance
of one training run. Its beam is narrower than the paper's 5 x 5, to leave time for that. `python -m agentrm_jax.demo --readme` puts the
figures of a finished demo where README.md and docs/results.md have room for them.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.evaluation import markdown
from agentrm_jax.run import command, reports, stages, workdirs
from agentrm_jax.run.logs import format_seconds
from agentrm_jax.types import UserError

SIZE = "nano"
SEEDS = (1, 2)  # of further reward models; the first has seed 0
PAGES, MARK = ("README.md", "docs/results.md"), "demo"


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of the demo: a stage, in its default workdir or another of that name, with flags of its own."""

    stage: str
    name: str
    purpose: str
    flags: tuple[str, ...] = ()

    @property
    def workdir(self) -> Path:
        return stages.workdir_of(self.name, SIZE)

    @property
    def arguments(self) -> list[str]:
        """Its command line, without the interpreter."""
        own = self.workdir if self.name != self.stage else None
        return [*stages.arguments_of(self.stage, SIZE, own), *self.flags]


def steps() -> list[Step]:
    """The commands in order."""

    def plain(name: str) -> Step:
        return Step(name, name, stages.STAGES[name].purpose)

    def trained(seed: int) -> Step:
        return Step("explicit", f"explicit-{seed}", f"the same with seed {seed}", (f"--config.seed={seed}",))

    def ranked(seed: int) -> Step:
        flags = (f"--config.reward_model={trained(seed).workdir}", f"--config.samples={plain('best_of_n').workdir}")
        return Step(
            "best_of_n", f"best_of_n-{seed}", f"the same samples, ranked by the reward model of seed {seed}", flags
        )

    beam = Step(
        "beam", "beam-3x3", "held-out tasks: a beam of 3 x 3", ("--config.search.width=3", "--config.search.branch=3")
    )
    first = [plain(name) for name in ("sft", "mcts", "explicit")]
    tested = [plain("greedy"), plain("best_of_n"), *map(ranked, SEEDS), beam]
    return [*first, *map(trained, SEEDS), *tested]


def main(argv: Sequence[str]) -> None:
    """Command line. Raises UserError."""
    parser = command.Parser(
        prog="python -m agentrm_jax.demo",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"It goes on where it was stopped; its runs lie in runs/{SIZE}.",
    )
    parser.add_argument(
        "--readme", action="store_true", help=f"write the figures of a finished demo into {' and '.join(PAGES)}"
    )
    begin, todo = time.monotonic(), steps()
    if parser.parse_args(argv).readme:
        figures(todo)
        return
    for number, step in enumerate(todo, 1):
        print(f"\n[{number}/{len(todo)}] {step.purpose}\n$ {stages.shown(step.arguments)}", flush=True)
        if code := stages.run(step.arguments):
            raise UserError(
                f"the demo stopped at {step.name} (exit code {code}); run make demo again to continue there"
            )
    runs = [step.workdir for step in todo]
    page = reports.page(
        [r for r in runs if (r / "results.json").exists()],
        stages.workdir_of("report", SIZE) / "index.html",
        title="AgentRM at nano size",
        training=[r for r in runs if (r / "metrics.jsonl").exists()],
    )
    print("\n" + reports.show(*_answers(todo)))
    print(f"\ndone in {format_seconds(time.monotonic() - begin)}; report: {page}")


def figures(todo: Sequence[Step]) -> None:
    """Writes the tables of a finished demo into the pages that have room for them. Raises UserError if it is not finished."""
    if left := [step.name for step in todo if not workdirs.is_finished(step.workdir)]:
        raise UserError(f"the demo is not finished ({', '.join(left)} left); run make demo first")
    text = reports.markdown(*_answers(todo))
    for page in PAGES:
        markdown.put(stages.home() / page, MARK, text)
        print(f"wrote the figures into {page}")


def _answers(todo: Sequence[Step]) -> list[Path]:
    return [step.workdir for step in todo if stages.STAGES[step.stage].main == "search.py" and step.stage != "mcts"]


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]), kept="make demo goes on where it was")
