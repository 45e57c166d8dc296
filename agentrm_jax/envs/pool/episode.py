"""One episode: an environment's engine plus the accounting that every environment shares.

The engine knows commands; the episode knows assistant turns, budgets and what counts as success.

It is also the border for text. Whatever a policy writes and an engine answers passes here once: control characters and lone surrogates
are replaced in both directions, and lengths are bounded. So no engine is handed text that is none, and nothing behind the pool sees it.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any

from agentrm_jax.envs.spec import EnvSpec, Options, whole
from agentrm_jax.replies import parse_action
from agentrm_jax.text import clean
from agentrm_jax.types import EngineStep, Environment, Outcome, Start, Task, UserError

OBSERVATION_LIMIT = 20_000  # characters, some 5,000 tokens; option `observation_limit` of an environment changes it
COMMAND_LIMIT = 10_000  # characters; a longer command is answered without the engine


class GarbageError(Exception):
    """An engine answered something that is no observation, reward or progress."""


class TransientError(Exception):
    """An engine failed for a reason that is likely to pass, such as a network. The pool tries again more often, with growing pauses."""


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """The counters of an episode: turns used, and the engine's word on reward and progress (never falling) so far."""

    turns: int = 0
    reward: float = 0.0
    progress: float = 0.0
    done: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of an episode that any episode of the same environment in the same process can be put into."""

    task: Task
    engine: Any
    progress: Counters


class Episode:
    """Turns assistant turns into outcomes.

    A turn from which no command can be read, or one of more than `COMMAND_LIMIT` characters, costs a step and does not touch the
    engine. `done` means that the engine is over or the task's `max_steps` turns are used; `success` that the reward reached the
    spec's threshold, done or not.

    Args:
      environment: the engine.
      spec: of the environment.
      observation_limit: characters of goal and of an observation with its prefix; of a longer one head and tail are kept.
    """

    def __init__(self, environment: Environment, spec: EnvSpec, observation_limit: int = OBSERVATION_LIMIT):
        self.environment = environment
        self.spec = spec
        self.observation_limit = observation_limit
        self.task: Task | None = None
        self.progress = Counters()

    def reset(self, task: Task) -> Start:
        """Starts `task` afresh, whatever happened before."""
        self.task, self.progress = task, Counters()
        start = self.environment.reset(task)
        if not (isinstance(start, Start) and isinstance(start.goal, str) and isinstance(start.observation, str)):
            raise GarbageError(f"reset answered {start!r:.200}, which is no Start")
        return Start(clean(start.goal, self.observation_limit), clean(start.observation, self.observation_limit))

    def step(self, turn: str) -> Outcome:
        """Executes one assistant turn.

        Raises:
          GarbageError: the engine's answer makes no sense. Whatever the engine raises passes through.
        """
        if self.task is None or self.progress.done:
            raise ValueError("the episode is over or was never reset")
        spec, before = self.spec, self.progress
        command = parse_action(clean(turn), multiline=spec.multiline).command
        if command is not None and len(command) > COMMAND_LIMIT:
            refusal = (
                f"The command has {len(command)} characters; at most {COMMAND_LIMIT} are read. Write a shorter one."
            )
            answer, command = EngineStep(refusal, before.reward, before.progress, False, False), None
        elif command is None:
            answer = EngineStep(spec.invalid_format, before.reward, before.progress, False, False)
        else:
            answer = _checked(self.environment.step(command))
        turns = before.turns + 1
        exhausted = turns >= self.task.max_steps and not answer.over
        reward = 0.0 if exhausted and spec.exhausted_reward == "zero" else answer.reward
        self.progress = Counters(turns, reward, max(before.progress, answer.progress), answer.over or exhausted)
        return Outcome(
            observation=clean(spec.observation_prefix + answer.observation, self.observation_limit),
            reward=reward,
            progress=self.progress.progress,
            done=self.progress.done,
            success=reward >= spec.success_threshold,
            valid=answer.valid,
            parsed=command,
        )

    def snapshot(self) -> Snapshot:
        """The present state. Raises NotImplementedError if the engine cannot be copied."""
        assert self.task is not None
        return Snapshot(self.task, self.environment.snapshot(), self.progress)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to `snapshot`, any number of times; it may stem from another episode of the same environment."""
        self.task, self.progress = snapshot.task, snapshot.progress
        self.environment.restore(snapshot.engine)

    def close(self) -> None:
        self.environment.close()


def observation_limit(options: Options) -> int:
    """Option `observation_limit`, characters. Raises UserError unless it is a whole number of at least 100."""
    limit = whole(options, "observation_limit", OBSERVATION_LIMIT)
    if limit < 100:
        raise UserError(f"option observation_limit must be at least 100 characters, not {limit}")
    return limit


def _checked(answer: EngineStep) -> EngineStep:
    """`answer` with reward and progress as plain floats; rounding errors outside [0, 1] are clipped."""
    if not (isinstance(answer, EngineStep) and isinstance(answer.observation, str)):
        raise GarbageError(f"step answered {answer!r:.200}, which is no EngineStep with a text")
    reward, progress = _unit("reward", answer.reward), _unit("progress", answer.progress)
    return EngineStep(answer.observation, reward, progress, bool(answer.over), bool(answer.valid))


def _unit(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise GarbageError(f"{name} is {value!r:.100}, which is no number") from None
    if math.isnan(number) or not -1e-6 <= number <= 1 + 1e-6:
        raise GarbageError(f"{name} is {number}, which is not in [0, 1]")
    return min(1.0, max(0.0, number))


def start_key(task: Task) -> str:
    """Key of the state that `task` starts in: depends on the task alone."""
    text = json.dumps([task.key, task.max_steps, dict(task.args)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def next_key(key: str, turn: str) -> str:
    """Key of the state after `turn` in the state `key`: depends on the task and all turns since its start."""
    text = key.encode() + turn.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()
