"""What tests of the pool share: ways to play the toy game through it, and what is true of it."""

import asyncio
import functools
import os
import random

from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.testing import toy_env
from agentrm_jax.types import Action, Outcome, State

TOY = "agentrm_jax.testing.toy_env"
TASK = toy_env.make_task()
TASKS = toy_env.tasks("train", {})[:6]


def turn(letter):
    return Action(f"Thought: hm\nAction: {letter}")


async def play(pool, word, state=None):
    """The state after the letters of `word`, from `state` or a reset of TASK."""
    state = state or await pool.reset(TASK)
    for letter in word:
        state = await pool.step(state, turn(letter))
    return state


async def explore(pool, task, turns=12):
    """Steps random earlier states of a task; all states in order. The choices depend on the task only."""
    rng = random.Random(task.id)
    states = [await pool.reset(task)]
    for _ in range(turns):
        parent = rng.choice([s for s in states if not s.done])
        states.append(await pool.step(parent, turn(rng.choice("abcx"))))
    return states


class InProcess:
    """The truth: every step is a fresh episode in this process, played from its start."""

    async def reset(self, task):
        start = Episode(toy_env.ToyEnv({}), toy_env.SPEC).reset(task)
        return State(task, start.goal, outcome=Outcome(start.observation))

    async def step(self, state, action):
        episode = Episode(toy_env.ToyEnv({}), toy_env.SPEC)
        episode.reset(state.task)
        for past in state.path()[1:]:
            episode.step(past.action.text)
        return State(state.task, state.goal, state, action, episode.step(action.text))


async def explore_all(pool, tasks=TASKS):
    return await asyncio.gather(*(explore(pool, task) for task in tasks))


def outcomes(explored):
    return [[state.outcome for state in states] for states in explored]


@functools.cache
def truth():
    return outcomes(asyncio.run(explore_all(InProcess())))


def run(coroutine_of_pool, options=None, **arguments):
    async def go():
        async with EnvironmentPool({TOY: options or {}}, **{"workers": 1, **arguments}) as pool:
            return await coroutine_of_pool(pool)

    return asyncio.run(go())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
