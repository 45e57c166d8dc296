"""The words everything else is written in: tasks, states, actions, outcomes, and the protocols between rooms.

Imports nothing of ours. All records are immutable; a `State` is a linked path that shares its past with its siblings,
so forking an episode (best-of-n, beam, tree search) copies nothing.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

JSON = Any  # a value that `json` writes and reads back unchanged


class UserError(Exception):
    """Input a user can mend: the mains print its one line and exit with code 2."""


class TaskFailure(Exception):
    """One task (or sample, or row) cannot go on, for the reason given; the others can."""


class EnvironmentFault(TaskFailure):
    """An environment could not be brought to a state (it hung, died or diverged, also after being replaced)."""


class TooLong(TaskFailure):
    """A prompt and one turn alone are longer than what the model may read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One item of an environment: what to reset to, and how long an episode may take.

    Attributes:
      env: name of the environment, `SPEC.name`, e.g. `babyai`; not the import path of a user's module.
      id: unique within the environment and split-independent, e.g. `GoToLocal-1234`.
      split: `train`, `dev` or `test`.
      max_steps: assistant turns an episode may take.
      args: what the environment needs to reset to it; JSON values only.
    """

    env: str
    id: str
    split: str
    max_steps: int
    args: Mapping[str, JSON] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        return f"{self.env}/{self.id}"


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """One assistant turn as the policy wrote it (thought and action).

    Attributes:
      text: the whole turn, without header and end-of-turn token.
      tokens: ids exactly as sampled, end-of-turn included; empty if the policy does not give them.
      logprob: sum over `tokens` of log pi(token) at temperature 1 (nats); NaN if unknown.
      finish: `stop` (end-of-turn was written), `length` (budget ran out) or `error`.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprob: float = math.nan
    finish: Literal["stop", "length", "error"] = "stop"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the environment answered to an action (or, at the root, to the reset).

    Attributes:
      observation: text shown to the agent next.
      reward: in [0, 1]; what the episode is worth if it ended here (see each environment's table); it is the
        episode's outcome reward once `done`.
      progress: in [0, 1]; progress rate so far, never falling.
      done: the episode has ended (solved, failed for good, or out of steps).
      success: `reward` reached the environment's success threshold; never just `done`.
      valid: the action was well formed and the environment accepted it.
      parsed: the command that was given to the engine, or None if none could be read from the turn.
    """

    observation: str
    reward: float = 0.0
    progress: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    parsed: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """A history: the task's start, then actions and their outcomes. Compared by identity.

    Attributes:
      task: the item being worked on.
      goal: the goal in words, as the environment gave it at reset.
      parent: the state before `action`; None at the root.
      action: the last assistant turn; None at the root.
      outcome: answer to `action`; None while the action has been proposed but not executed.
      depth: number of actions on the path.
      key: identifies the environment state within its pool (set by whoever executed the action).
    """

    task: Task
    goal: str
    parent: "State | None" = None
    action: Action | None = None
    outcome: Outcome | None = None
    depth: int = 0
    key: str = ""

    def propose(self, action: Action) -> "State":
        """The state after `action`, not executed yet."""
        return State(self.task, self.goal, self, action, None, self.depth + 1)

    @property
    def done(self) -> bool:
        return self.outcome is not None and self.outcome.done

    def path(self) -> "list[State]":
        """States from the root to this one, both included."""
        states: list[State] = []
        node: State | None = self
        while node is not None:
            states.append(node)
            node = node.parent
        return states[::-1]


Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One chat message.

    Attributes:
      loss: marks an assistant turn that imitation learns (an opening "OK" is not).
      more: further fields that chat templates read: `tool_calls`, `reasoning_content`, `tool_call_id`, `name`.
    """

    role: Role
    content: str
    loss: bool = False
    more: Mapping[str, JSON] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """What an environment says at reset: the goal in words and the first observation (which need not repeat it)."""

    goal: str
    observation: str


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStep:
    """What an environment's engine answers to one command, before budgets and parsing are accounted for.

    `reward` and `progress` as in `Outcome`. `over` means that nothing further can happen in the engine.
    """

    observation: str
    reward: float
    progress: float
    over: bool = False
    valid: bool = True


class Environment(Protocol):
    """One running episode of one engine; lives in a worker process, single-threaded, knows nothing of models.

    `step` takes the bare command (`go to red ball 1`), not the assistant turn. `snapshot` returns an opaque object that `restore`
    accepts any number of times, also after later steps, in the same process; an environment that cannot do that raises
    NotImplementedError from `snapshot`, and the pool replays commands instead, checking every observation.
    """

    def reset(self, task: Task) -> Start: ...
    def step(self, command: str) -> EngineStep: ...
    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...
    def close(self) -> None: ...


class Expert(Protocol):
    """Yields (thought, command) pairs that solve the episode `env` was just reset to; the caller steps `env` between them."""

    def __call__(self, env: Environment, task: Task) -> Iterator[tuple[str, str]]: ...


class Environments(Protocol):
    """Many episodes at once. Stepping is functional: any earlier state can be stepped again, at any time."""

    async def reset(self, task: Task) -> State: ...
    async def step(self, state: State, action: Action) -> State:
        """Execute `action` after `state`; returns the successor with its outcome. Raises `EnvironmentFault`."""
        ...


class Policy(Protocol):
    """Proposes actions. `seed` makes proposals reproducible, whatever else is in flight."""

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        """`n` independent samples for the turn after `state`; temperature 0 is greedy decoding."""
        ...


class RewardModel(Protocol):
    """Scores states for ranking. A state's score is read after its last action; the outcome of that action is not seen."""

    async def score(self, states: Sequence[State]) -> list[float]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One executed turn of a finished record."""

    action: Action
    outcome: Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode as it is written to disk: start, executed steps, and where it came from.

    Attributes:
      task, goal: as in `State`.
      observation: the first observation.
      steps: executed turns in order.
      meta: provenance; JSON values (policy, method, sample index, scores, seed, ...).
    """

    task: Task
    goal: str
    observation: str
    steps: tuple[Step, ...]
    meta: Mapping[str, JSON] = dataclasses.field(default_factory=dict)

    @property
    def last(self) -> Outcome:
        return self.steps[-1].outcome if self.steps else Outcome(self.observation)


def trajectory_of(state: State, **meta: JSON) -> Trajectory:
    """The record of the path that ends in `state`; an unexecuted last action is left out."""
    root, *rest = state.path()
    steps = tuple(Step(s.action, s.outcome) for s in rest if s.action is not None and s.outcome is not None)
    assert root.outcome is not None
    return Trajectory(state.task, state.goal, root.outcome.observation, steps, meta)


@dataclasses.dataclass(frozen=True, slots=True)
class TreeNode:
    """One explored state of a search tree, with the statistics of all simulation returns at or below it.

    Attributes:
      parent: index of the parent in `SearchTree.nodes`, which precedes it; -1 at the root.
      action, outcome: the turn that led here and its answer; the root has no action, its outcome is the start.
      visits: number N of simulation returns at or below this node.
      return_sum, return_sq_sum, return_min, return_max: of those returns (0, 0, 0, 0 if there are none).
      multiplicity: how many sampled proposals were this very command (merged into one child).
      expanded: children were proposed here (otherwise it is a leaf, or lies on a cached rollout).
      closed: nothing below is left to explore.
    """

    parent: int
    action: Action | None
    outcome: Outcome
    visits: int
    return_sum: float
    return_sq_sum: float
    return_min: float
    return_max: float
    multiplicity: int = 1
    expanded: bool = False
    closed: bool = False

    @property
    def value(self) -> float:
        """Mean return V; 0 if nothing was simulated here."""
        return self.return_sum / self.visits if self.visits else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class SearchTree:
    """A finished exploration of one task. `nodes[0]` is the root; parents come before children."""

    task: Task
    goal: str
    nodes: tuple[TreeNode, ...]
    meta: Mapping[str, JSON] = dataclasses.field(default_factory=dict)
