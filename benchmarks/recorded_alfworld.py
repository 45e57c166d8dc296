"""Episodes that others played on the original ALFWorld engine, played again on ours: every observation and outcome is compared.

    python -m benchmarks.recorded_alfworld [--data ../shared/data] [--rows N]

The data folder holds `external/knowagent/*.jsonl.xz` (KnowAgent's logs: 510 official training games, two runs of each) and the
official games (`alfworld/train.jsonl.xz`). Prints a line per file with what differed; exit code 1 if anything did.
"""

import argparse
import dataclasses
import json
import lzma
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentrm_jax.envs.alfworld import environment
from agentrm_jax.types import Task, UserError

_ARRIVING = "You arrive at "  # up to the end of this sentence, the recorder cut it off


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One episode of a log: the game's name, (command, observation) in order, and whether the game was won (None: cut off)."""

    game: str
    turns: tuple[tuple[str, str], ...]
    won: bool | None


def read(path: Path, most: int | None = None) -> Iterator[Recorded]:
    """The episodes of a log file, at most `most`."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number == most:
                return
            row = json.loads(line)
            won = row["result"] if isinstance(row["result"], bool) else None
            yield Recorded(row["name"], tuple(turns(row["traj"])), won)


def turns(text: str) -> Iterator[tuple[str, str]]:
    """(command, observation) of every executed turn of a log: `> command`, then lines until the next one.

    Thoughts and notes are written as commands, too, but the engine never saw them: nothing follows them.
    """
    for block in text.split("\n> ")[1:]:
        command, _, observation = block.partition("\n")
        if observation.strip():
            yield command.strip(), observation.strip()


def play(env: environment.Alfworld, task: Task, episode: Recorded) -> tuple[int, int, bool]:
    """Plays an episode again: observations compared, of these equal, and whether it was won."""
    env.reset(task)
    equal, won = 0, False
    for command, observation in episode.turns:
        done = env.step(command)
        said = done.observation
        if said.startswith(_ARRIVING):
            said = said.partition(". ")[2]
        equal += said.strip() == observation
        won = done.reward == 1.0
    return len(episode.turns), equal, won


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, help="episodes of each file; all by default")
    arguments = parser.parse_args(argv)
    logs = sorted((arguments.data / "external" / "knowagent").glob("*.jsonl.xz"))
    if not logs:
        raise UserError(f"no recorded episodes in {arguments.data}/external/knowagent; name their folder with --data")
    options = {"data": str(arguments.data)}
    tasks = {task.id: task for task in environment.tasks("train", options)}
    env = environment.Alfworld(options)
    differ = 0
    for log in logs:
        begin, episodes, seen, same, outcomes = time.monotonic(), 0, 0, 0, 0
        for episode in read(log, arguments.rows):
            compared, equal, won = play(env, tasks[episode.game], episode)
            episodes, seen, same = episodes + 1, seen + compared, same + equal
            outcomes += won == bool(episode.won)
        differ += seen - same + episodes - outcomes
        print(
            f"{log.name}: {episodes} episodes, {same} of {seen} observations equal, {outcomes} outcomes equal, "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )
    return int(differ > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
