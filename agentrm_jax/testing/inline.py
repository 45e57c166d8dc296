"""Environments in this very process: for tests and small tools, where a pool of workers is more than is needed."""

import asyncio
import contextlib
import itertools
import weakref

from agentrm_jax.envs.pool.episode import Episode, Snapshot
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import Action, EnvironmentFault, Environments, Outcome, State, Task


class InlineEnvironments(Environments):
    """Implements the protocol with one engine that is put into the state asked for before every step.

    By snapshot where the engine can (they live as long as their states), by checked replay otherwise. Whatever the
    engine raises, and a replay that diverges, is an `EnvironmentFault`. Steps block the event loop. `resets`, `steps`
    and `replayed` (steps repeated to get to a state) count them.
    """

    def __init__(self, spec: EnvSpec, options: Options | None = None):
        self.resets = self.steps = self.replayed = 0
        self._episode = Episode(spec.make(options or {}), spec)
        self._snapshots: weakref.WeakKeyDictionary[State, Snapshot] = weakref.WeakKeyDictionary()
        self._keys = itertools.count()

    async def reset(self, task: Task) -> State:
        await asyncio.sleep(0)
        self.resets += 1
        try:
            start = self._episode.reset(task)
        except Exception as error:
            raise EnvironmentFault(f"{task.key} cannot be reset: {error}") from error
        return self._keep(State(task, start.goal, outcome=Outcome(start.observation), key=self._key()))

    async def step(self, state: State, action: Action) -> State:
        await asyncio.sleep(0)
        if state.outcome is None or state.done:
            raise ValueError(f"{state.task.key}: only an executed state of an episode that is not over can be stepped")
        self.steps += 1
        try:
            self._go_to(state)
            outcome = self._episode.step(action.text)
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(f"{state.task.key} cannot be stepped: {error}") from error
        return self._keep(State(state.task, state.goal, state, action, outcome, state.depth + 1, self._key()))

    def _key(self) -> str:
        return str(next(self._keys))

    def _keep(self, state: State) -> State:
        with contextlib.suppress(NotImplementedError):
            self._snapshots[state] = self._episode.snapshot()
        return state

    def _go_to(self, state: State) -> None:
        if state in self._snapshots:
            self._episode.restore(self._snapshots[state])
            return
        root, *rest = state.path()
        start = self._episode.reset(state.task)
        same = root.outcome is not None and start.observation == root.outcome.observation
        for known in rest:
            assert known.action is not None
            same = same and self._episode.step(known.action.text) == known.outcome
            self.replayed += 1
            if not same:
                break
        if not same:
            raise EnvironmentFault(f"{state.task.key} went another way when it was replayed")
