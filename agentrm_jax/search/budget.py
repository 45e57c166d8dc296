"""Counting what a search costs, by wrapping the three protocols.

The wrappers implement the protocols themselves, so a method does not notice them. Costs are kept per task (every
call names one) and summed; they may be shared by coroutines and by threads.
"""

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

from agentrm_jax.types import Action, Environments, Policy, RewardModel, State, Task


@dataclasses.dataclass(slots=True)
class Cost:
    """What was spent.

    Attributes:
      policy_calls, policy_turns, policy_tokens: requests, turns proposed, tokens sampled (0 for policies that give no
        tokens).
      reward_calls, reward_states, reward_tokens: requests, states scored, tokens computed (see `Meter`).
      env_resets, env_steps: as asked for by the search; replays inside a pool are its own affair.
      seconds: wall time from the first request to the last answer.
    """

    policy_calls: int = 0
    policy_turns: int = 0
    policy_tokens: int = 0
    reward_calls: int = 0
    reward_states: int = 0
    reward_tokens: int = 0
    env_resets: int = 0
    env_steps: int = 0
    seconds: float = 0.0


class Meter:
    """Costs per task (`tasks`, by `Task.key`) and in all (`total()`).

    Tokens of the reward model are only known to it: a model that has an attribute `tokens`, the number of tokens it
    has computed so far, is charged what that grew since it was wrapped, in the total only, because requests of
    several tasks share a batch.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Cost] = defaultdict(Cost)
        self._spans: dict[str, tuple[float, float]] = {}
        self._reward_models: list[tuple[RewardModel, int]] = []
        self._lock = threading.Lock()

    def policy(self, policy: Policy) -> Policy:
        """`policy`, counted."""
        return _CountedPolicy(policy, self)

    def reward_model(self, reward_model: RewardModel) -> RewardModel:
        """`reward_model`, counted."""
        self._reward_models.append((reward_model, _tokens(reward_model)))
        return _CountedRewardModel(reward_model, self)

    def environments(self, envs: Environments) -> Environments:
        """`envs`, counted."""
        return _CountedEnvironments(envs, self)

    def total(self) -> Cost:
        """The sum over tasks; `seconds` from the first request of any to the last answer of any."""
        with self._lock:
            costs, spans = list(self.tasks.values()), list(self._spans.values())
            fields = {f.name: sum(getattr(c, f.name) for c in costs) for f in dataclasses.fields(Cost)}
        fields["reward_tokens"] += sum(_tokens(model) - before for model, before in self._reward_models)
        fields["seconds"] = max(end for _, end in spans) - min(begin for begin, _ in spans) if spans else 0.0
        return Cost(**fields)

    def charge(self, task: Task, begin: float, **amounts: int) -> None:
        """Adds amounts (fields of `Cost`) to a task's; `begin` is when the request was made (`time.perf_counter`)."""
        end = time.perf_counter()
        with self._lock:
            cost = self.tasks[task.key]
            for name, amount in amounts.items():
                setattr(cost, name, getattr(cost, name) + amount)
            first = min(begin, self._spans.get(task.key, (begin, end))[0])
            self._spans[task.key] = first, end
            cost.seconds = end - first


def _tokens(reward_model: RewardModel) -> int:
    return int(getattr(reward_model, "tokens", 0))


@dataclasses.dataclass(frozen=True)
class _CountedPolicy:
    inner: Policy
    meter: Meter

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        begin = time.perf_counter()
        actions = await self.inner.propose(state, n, temperature=temperature, seed=seed)
        tokens = sum(len(a.tokens) for a in actions)
        self.meter.charge(state.task, begin, policy_calls=1, policy_turns=len(actions), policy_tokens=tokens)
        return actions


@dataclasses.dataclass(frozen=True)
class _CountedRewardModel:
    inner: RewardModel
    meter: Meter

    async def score(self, states: Sequence[State]) -> list[float]:
        begin = time.perf_counter()
        scores = await self.inner.score(states)
        by_task: dict[str, list[State]] = {}
        for state in states:
            by_task.setdefault(state.task.key, []).append(state)
        for group in by_task.values():
            self.meter.charge(group[0].task, begin, reward_calls=1, reward_states=len(group))
        return scores


@dataclasses.dataclass(frozen=True)
class _CountedEnvironments:
    inner: Environments
    meter: Meter

    async def reset(self, task: Task) -> State:
        begin = time.perf_counter()
        state = await self.inner.reset(task)
        self.meter.charge(task, begin, env_resets=1)
        return state

    async def step(self, state: State, action: Action) -> State:
        begin = time.perf_counter()
        successor = await self.inner.step(state, action)
        self.meter.charge(state.task, begin, env_steps=1)
        return successor
