"""Counting what a search costs, by wrapping the three protocols.

The wrappers implement the protocols themselves, so a method does not notice them. Costs are kept per task (every
call names one) and summed; they may be shared by coroutines and by threads.
"""

import dataclasses
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from agentrm_jax.types import Action, Environments, Policy, RewardModel, State, Task


@dataclasses.dataclass(slots=True)
class Cost:
    """What was spent.

    Attributes:
      policy_calls, policy_turns, policy_tokens: requests, turns proposed, tokens sampled (0 for policies that neither give
        tokens nor have an attribute `usage`).
      policy_prompt_tokens: tokens of the histories that were sent to a policy with an attribute `usage` (task key -> tokens given,
        `prompt`, and written, `completion`), as its server counts them.
      reward_calls, reward_states, reward_tokens: requests, states scored, tokens computed (see `Meter`).
      env_resets, env_steps: as asked for by the search; replays inside a pool are its own affair.
      policy_dropped_turns, reward_dropped_turns: oldest turns that were left out of what a model read, because all of it was too
        long, summed over readings; for models with an attribute `dropped_turns` (task key -> how many).
      seconds: wall time from the first request to the last answer.
    """

    policy_calls: int = 0
    policy_turns: int = 0
    policy_tokens: int = 0
    policy_prompt_tokens: int = 0
    reward_calls: int = 0
    reward_states: int = 0
    reward_tokens: int = 0
    env_resets: int = 0
    env_steps: int = 0
    policy_dropped_turns: int = 0
    reward_dropped_turns: int = 0
    seconds: float = 0.0


class Meter:
    """Costs per task (`tasks`, by `Task.key`) and in all (`total()`).

    Tokens of the reward model are only known to it: a model with an attribute `tokens`, the number of tokens it has computed so
    far, is charged what that grows by. Requests of several tasks share a batch, so whenever one is answered, what was computed
    since the last answer is divided among the tasks with requests in flight, in proportion to their states.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Cost] = defaultdict(Cost)
        self._spans: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def policy(self, policy: Policy) -> Policy:
        """`policy`, counted."""
        return _CountedPolicy(policy, self)

    def reward_model(self, reward_model: RewardModel) -> RewardModel:
        """`reward_model`, counted."""
        return _CountedRewardModel(reward_model, self)

    def environments(self, envs: Environments) -> Environments:
        """`envs`, counted."""
        return _CountedEnvironments(envs, self)

    def total(self) -> Cost:
        """The sum over tasks; `seconds` from the first request of any to the last answer of any."""
        with self._lock:
            costs, spans = list(self.tasks.values()), list(self._spans.values())
        fields = {f.name: sum(getattr(c, f.name) for c in costs) for f in dataclasses.fields(Cost)}
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

    def note(self, task: Task, **amounts: int) -> None:
        """Sets amounts of a task's cost that somebody else adds up."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self.tasks[task.key], name, amount)

    def divide(self, reward_tokens: int, states: Mapping[str, int]) -> None:
        """Charges tokens to the tasks (by key) that have states in flight, in proportion to their number; the sum is exact."""
        done, given = 0, 0
        with self._lock:
            for key, count in states.items():
                done += count
                share = reward_tokens * done // sum(states.values()) - given
                self.tasks[key].reward_tokens += share
                given += share


def _dropped(model: object, task: Task) -> int:
    return int(getattr(model, "dropped_turns", {}).get(task.key, 0))


class _CountedPolicy:
    def __init__(self, inner: Policy, meter: Meter):
        self.inner, self.meter = inner, meter
        usage = getattr(inner, "usage", None) or {}
        self._before = {name: (used.prompt, used.completion) for name, used in usage.items()}

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        begin, name = time.perf_counter(), state.task.key
        actions = await self.inner.propose(state, n, temperature=temperature, seed=seed)
        self.meter.charge(state.task, begin, policy_calls=1, policy_turns=len(actions))
        if (used := self._used(name)) is None:
            self.meter.charge(state.task, begin, policy_tokens=sum(len(a.tokens) for a in actions))
        else:
            given, written = (now - before for now, before in zip(used, self._before.get(name, (0, 0)), strict=True))
            self.meter.note(state.task, policy_prompt_tokens=given, policy_tokens=written)
        self.meter.note(state.task, policy_dropped_turns=_dropped(self.inner, state.task))
        return actions

    def _used(self, name: str) -> tuple[int, int] | None:
        """Tokens given and written for a task so far, of a policy that says so."""
        usage = getattr(self.inner, "usage", None)
        return (usage[name].prompt, usage[name].completion) if usage and name in usage else None


class _CountedRewardModel:
    def __init__(self, inner: RewardModel, meter: Meter):
        self._inner, self._meter = inner, meter
        self._settled = self._tokens()
        self._in_flight: Counter[str] = Counter()  # states, by task
        self._lock = threading.Lock()

    async def score(self, states: Sequence[State]) -> list[float]:
        begin = time.perf_counter()
        mine = Counter(state.task.key for state in states)
        with self._lock:
            self._in_flight += mine
        try:
            scores = await self._inner.score(states)
        finally:
            self._settle(mine)
        for task in {state.task.key: state.task for state in states}.values():
            self._meter.charge(task, begin, reward_calls=1, reward_states=mine[task.key])
            self._meter.note(task, reward_dropped_turns=_dropped(self._inner, task))
        return scores

    def _settle(self, answered: Counter[str]) -> None:
        """Charges what was computed since the last answer, and takes the answered states out of flight."""
        with self._lock:
            computed = self._tokens()
            self._meter.divide(computed - self._settled, self._in_flight)
            self._settled = computed
            self._in_flight -= answered

    def _tokens(self) -> int:
        return int(getattr(self._inner, "tokens", 0))


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
