"""Policies and reward models that are no models, and environments that are no games: for tests, examples and smoke runs.

They write turns the way environments read them (`Thought: ...`, `Action: command`), and count on nothing but the text.
"""

import asyncio
import hashlib
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence

from agentrm_jax.testing.toy_env import optimum
from agentrm_jax.types import Action, EnvironmentFault, Environments, Outcome, Policy, RewardModel, State, Task


def turn(command: str, thought: str = "") -> Action:
    """An assistant turn; its `tokens` are the bytes of the text, so that budgets have something to count."""
    text = f"Thought: {thought}\nAction: {command}" if thought else f"Action: {command}"
    return Action(text, tokens=tuple(text.encode()))


def commands_of(state: State) -> list[str]:
    """The commands on the way to `state`, a proposed one included, as `turn` writes them."""
    actions = [s.action for s in state.path() if s.action is not None]
    return [a.text.rpartition("Action: ")[2] for a in actions]


def word_of(state: State) -> str:
    """The commands on the way to `state` as one word; the commands of crafted cases are letters."""
    return "".join(commands_of(state))


def walk(state: State, text: str, observation: str, tokens: tuple[int, ...] = ()) -> State:
    """The state after a turn that was answered with `observation`."""
    proposed = state.propose(Action(text, tokens))
    return State(state.task, state.goal, state, proposed.action, Outcome(observation), proposed.depth)


class ScriptedPolicy(Policy):
    """Proposes the commands that `choose(state, n, temperature, seed)` returns."""

    def __init__(self, choose: Callable[[State, int, float, int], Sequence[str]]):
        self.choose = choose

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        await asyncio.sleep(0)
        return [turn(c) for c in self.choose(state, n, temperature, seed)]


def listing_policy(commands: Sequence[str]) -> ScriptedPolicy:
    """Sample i is command i (starting over when there are more samples); the greedy turn is the first command."""

    def choose(state: State, n: int, temperature: float, seed: int) -> list[str]:
        return [commands[0 if temperature == 0 else i % len(commands)] for i in range(n)]

    return ScriptedPolicy(choose)


def uniform_policy(commands: Sequence[str]) -> ScriptedPolicy:
    """Samples commands uniformly, by seed, sample index and history; the greedy turn depends on the history alone."""

    def choose(state: State, n: int, temperature: float, seed: int) -> list[str]:
        history = commands_of(state)
        names = [("greedy", *history) if temperature == 0 else (seed, i, *history) for i in range(n)]
        return [_random(state.task.key, *name).choice(commands) for name in names]

    return ScriptedPolicy(choose)


class ScriptedRewardModel(RewardModel):
    """Scores a state by `value(state)`. The state's last action need not have been executed."""

    def __init__(self, value: Callable[[State], float]):
        self.value = value

    async def score(self, states: Sequence[State]) -> list[float]:
        await asyncio.sleep(0)
        return [self.value(s) for s in states]


def word_reward_model(scores: Mapping[str, float], default: float = 0.0) -> ScriptedRewardModel:
    """Scores states by the letters written so far; `default` for words that are not named."""
    return ScriptedRewardModel(lambda state: scores.get(word_of(state), default))


def constant_reward(score: float = 0.5) -> ScriptedRewardModel:
    """Knows nothing: all scores are equal."""
    return ScriptedRewardModel(lambda state: score)


def random_reward(seed: int = 0) -> ScriptedRewardModel:
    """Scores in [0, 1) that depend on seed and history only."""
    return ScriptedRewardModel(lambda state: _random(seed, state.task.key, *commands_of(state)).random())


def outcome_reward() -> ScriptedRewardModel:
    """The environment's own reward as score, of executed states; NaN for proposed ones. Best-of-n's oracle."""
    return ScriptedRewardModel(lambda state: state.outcome.reward if state.outcome else math.nan)


def optimum_reward() -> ScriptedRewardModel:
    """The exact value of a state of the toy environment: the best reward that can still be reached (`toy_env.optimum`)."""
    return ScriptedRewardModel(lambda state: optimum(state.task, word_of(state))[1])


class ScriptedEnvironments(Environments):
    """Crafted cases: commands are letters, any word in `ends` is finished, any word in `broken` cannot be reached.

    `executed` holds the words that were reached, in order. Nothing pays.
    """

    def __init__(self, ends: Collection[str], broken: Collection[str] = ()):
        self.ends, self.broken = ends, broken
        self.executed: list[str] = []

    async def reset(self, task: Task) -> State:
        return State(task, "goal", outcome=Outcome(""))

    async def step(self, state: State, action: Action) -> State:
        new = state.propose(action)
        word = word_of(new)
        if word in self.broken:
            raise EnvironmentFault(word)
        self.executed.append(word)
        done = word in self.ends or new.depth >= state.task.max_steps
        return State(state.task, "goal", state, action, Outcome(word, done=done), new.depth)


def _random(*name: object) -> random.Random:
    return random.Random(hashlib.blake2b(repr(name).encode(), digest_size=8).digest())
