"""One trajectory from the policy alone."""

import math

from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.search.turns import is_live, turn_seed
from agentrm_jax.types import Environments, Policy, State, Task


async def rollout(
    start: Task | State,
    policy: Policy,
    envs: Environments,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    sample: int = 0,
    max_turns: int | None = None,
) -> State:
    """Lets the policy act until the episode is over; returns the last state.

    Args:
      start: a task (which is reset) or the executed state to go on from.
      seed, sample: name the trajectory; sample i is the same however many others are drawn.
      max_turns: stop after so many turns at the latest.

    A turn that was cut off (`finish` is `length`) goes to the environment as it is, like any other text.
    Raises EnvironmentFault.
    """
    state = await envs.reset(start) if isinstance(start, Task) else start
    end = state.task.max_steps if max_turns is None else state.depth + max_turns
    while is_live(state) and state.depth < end:
        [action] = await policy.propose(state, 1, temperature=temperature, seed=turn_seed(state, seed, sample))
        state = await envs.step(state, action)
    return state


async def greedy(task: Task, policy: Policy, envs: Environments, *, temperature: float = 0.0, seed: int = 0) -> Result:
    """The policy's own trajectory; temperature 0 is the greedy baseline (paper 1.6). Raises TaskFailure."""
    state = await rollout(task, policy, envs, temperature=temperature, seed=seed)
    return Result((Candidate(state, math.nan),), 0)
