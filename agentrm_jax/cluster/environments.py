"""Environments on nodes of their own: a pool of worker processes as an actor, and what steps in it from an engine's node."""

import asyncio
import collections
from collections.abc import Callable, Mapping
from typing import Any

import ray

from agentrm_jax.cluster import nodes
from agentrm_jax.envs.pool.episode import next_key, start_key
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.spec import Options
from agentrm_jax.types import Action, Outcome, State, Task, Trajectory, state_of, trajectory_of

_KEPT = 4096  # states that an actor knows by their keys; others are sent to it as a whole
_LOSSES = 8  # actors in a row that a request may lose: a node that dies is offered for some seconds more


class Pool:
    """The actor: an `EnvironmentPool`, whose states are named by their keys.

    Args:
      folder: where the run was started, in which users' modules and data are looked for.
      options, workers, step_timeout: of the pool.
    """

    def __init__(self, folder: str, options: Mapping[str, Options], workers: int, step_timeout: float):
        self._folder = folder
        self._pool = EnvironmentPool(options, workers, step_timeout)
        self._states: collections.OrderedDict[str, State] = collections.OrderedDict()

    async def open(self) -> None:
        """Raises UserError: this node does not see the folder."""
        nodes.enter(self._folder)

    async def reset(self, task: Task) -> tuple[str, Outcome]:
        """The goal, and the outcome at the root."""
        state = await self._pool.reset(task)
        return state.goal, self._kept(state)

    async def step(self, key: str, turn: str, past: Trajectory | None) -> Outcome | None:
        """The outcome of a turn after the state of this key; None if the state is not known here and its past was not sent."""
        state = self._states.get(key) or (state_of(past) if past else None)
        return None if state is None else self._kept(await self._pool.step(state, Action(turn)))

    def _kept(self, state: State) -> Outcome:
        self._states[state.key] = state
        if len(self._states) > _KEPT:
            self._states.popitem(last=False)
        assert state.outcome is not None
        return state.outcome


class RemoteEnvironments:
    """Implements `Environments` in an actor. When its node dies, another one is started, which replays what is needed, comparing
    every answer with what was recorded.

    Args:
      start: makes a handle of a new actor `Pool`.
    """

    def __init__(self, start: Callable[[], Any]):
        self._start, self._actor = start, start()
        self._running: set[Any] = set()  # the actor, once it is known to run

    async def ready(self) -> None:
        """Waits until the actor runs; one that is lost before it does is replaced.

        Raises:
          NoRoom: no node has room for it.
          UserError: its node does not see the folder of the run.
        """
        await self._ask(lambda actor: actor.open.remote())

    async def reset(self, task: Task) -> State:
        """The root state of `task`. Raises EnvironmentFault, NoRoom, or UserError if the environment cannot be built."""
        goal, outcome = await self._ask(lambda actor: actor.reset.remote(task))
        return State(task, goal, None, None, outcome, 0, start_key(task))

    async def step(self, state: State, action: Action) -> State:
        """Executes `action` after `state`, which may have been stepped before.

        Raises:
          EnvironmentFault: the environment could not be brought to `state` or did not answer.
          NoRoom: the actor is lost, and no node has room for another.
          ValueError: `state` has ended or was never executed.
        """
        if state.outcome is None or state.done:
            raise ValueError(f"{state.task.key}: only an executed state of an episode that is not over can be stepped")
        asked = (state.key, action.text)
        outcome = await self._ask(lambda actor: actor.step.remote(*asked, None))
        if outcome is None:
            past = trajectory_of(state)
            outcome = await self._ask(lambda actor: actor.step.remote(*asked, past))
        return State(state.task, state.goal, state, action, outcome, state.depth + 1, next_key(*asked))

    async def _ask(self, request: Callable[[Any], Any]) -> Any:
        """The answer of the actor, or of the one that is there after it; each may take `nodes.PATIENCE` seconds to be there."""
        for _ in range(_LOSSES):
            actor = self._actor
            try:
                if actor not in self._running:
                    await asyncio.wait_for(nodes.answer(actor.open.remote()), nodes.PATIENCE)
                    self._running = {actor}
                return await nodes.answer(request(actor))
            except TimeoutError:
                raise nodes.NoRoom("no node has CPUs left for its environments") from None
            except ray.exceptions.RayActorError:
                if self._actor is actor:  # the first to notice
                    self._actor = self._start()
                await asyncio.sleep(nodes.PAUSE)
        raise nodes.NoRoom(f"its environments were lost {_LOSSES} times")
