"""A text game small enough to solve by hand: write a word letter by letter, be paid by its checksum.

A state is the word so far, over the letters a, b, c; at the horizon the episode ends and pays
`crc32(prefix + word) % 1000 / 1000`. The task `h3` (horizon 3, no prefix) is the tree of the golden vectors for Monte-Carlo
tree search. No engine, no dependency, microseconds a step: the whole tree can be enumerated (`words`, `optimum`), so search
can be checked against the truth.

    from agentrm_jax.testing import toy_env
    EnvironmentPool({"agentrm_jax.testing.toy_env": {}}, workers=1)

Options: `snapshot` (default true; false makes the environment refuse snapshots), `delay` (seconds slept in every step).
"""

import itertools
import time
import zlib
from collections.abc import Iterator
from typing import Any

from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import EngineStep, Environment, Message, Start, Task

LETTERS = "abc"
SUCCESS = 0.9
_FIRST_SEED = {"train": 100, "dev": 200, "test": 300}
_PER_SPLIT = 16


def word_reward(task: Task, word: str) -> float:
    """What the complete word pays, in [0, 0.999]; 0 for a word shorter than the horizon."""
    if len(word) < task.args.get("horizon", 3):
        return 0.0
    return zlib.crc32((task.args.get("prefix", "") + word).encode()) % 1000 / 1000


def words(task: Task) -> Iterator[str]:
    """Every complete word of the task in alphabetical order: 3 ** horizon of them."""
    return ("".join(w) for w in itertools.product(LETTERS, repeat=task.args.get("horizon", 3)))


def optimum(task: Task, start: str = "") -> tuple[str, float]:
    """The best complete word that begins with `start`, and its reward; the first one if there are several."""
    best = max((w for w in words(task) if w.startswith(start)), key=lambda w: word_reward(task, w))
    return best, word_reward(task, best)


def make_task(horizon: int = 3, prefix: str = "", *, split: str = "test", max_steps: int | None = None) -> Task:
    """A task of any size; `max_steps` is horizon + 2 unless told, which leaves room for two wasted turns."""
    name = f"h{horizon}" + (f"-{prefix}" if prefix else "")
    steps = horizon + 2 if max_steps is None else max_steps
    return Task("toy", name, split, steps, {"horizon": horizon, "prefix": prefix})


def tasks(split: str, options: Options) -> list[Task]:
    """16 tasks a split with horizons 3 to 5, each with an optimum that counts as success; `test` begins with `h3`."""
    chosen = [make_task()] if split == "test" else []
    seed = _FIRST_SEED[split]
    while len(chosen) < _PER_SPLIT:
        task = make_task(3 + seed % 3, str(seed), split=split)
        if optimum(task)[1] >= SUCCESS:
            chosen.append(task)
        seed += 1
    return chosen


class ToyEnv:
    """The game itself; its whole state is one string, so a snapshot is a copy."""

    def __init__(self, options: Options):
        self.options = options
        self.task = make_task()
        self.word = ""

    def reset(self, task: Task) -> Start:
        self.task, self.word = task, ""
        horizon = task.args.get("horizon", 3)
        return Start(f"Write the best word of {horizon} letters.", self._observation())

    def step(self, command: str) -> EngineStep:
        if self.options.get("delay"):
            time.sleep(self.options["delay"])
        valid = command in LETTERS and len(command) == 1
        if valid:
            self.word += command
        horizon = self.task.args.get("horizon", 3)
        over = len(self.word) >= horizon
        observation = self._observation() if valid else "Nothing happens."
        return EngineStep(observation, word_reward(self.task, self.word), len(self.word) / horizon, over, valid)

    def snapshot(self) -> Any:
        if not self.options.get("snapshot", True):
            raise NotImplementedError
        return self.task, self.word

    def restore(self, snapshot: Any) -> None:
        self.task, self.word = snapshot

    def close(self) -> None:
        pass

    def _observation(self) -> str:
        return f'The word is "{self.word}".'


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """Writes the best word."""
    for i, letter in enumerate(optimum(task)[0]):
        yield f"Letter {i + 1} of the best word is {letter}.", letter


SPEC = EnvSpec(
    name="toy",
    make=ToyEnv,
    tasks=tasks,
    instruction="You write a word, one letter a turn. Commands: a, b, c.\nReply with\nThought: <why>\nAction: <letter>",
    rm_instruction="Somebody writes a word, one letter a turn. Goal: {goal}",
    expert=expert,
    example=(
        Message("user", 'Goal: Write the best word of 1 letters.\nThe word is "".'),
        Message("assistant", "Thought: I try the second letter.\nAction: b", loss=True),
        Message("user", 'Observation: The word is "b".'),
    ),
    success_threshold=SUCCESS,
    engine="none",
    licence="Apache-2.0",
)
