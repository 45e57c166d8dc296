"""Sampling alone: trajectories to learn from, no choice among them (paper 3.2.2)."""

import math

from agentrm_jax.search.best_of_n import sample as draw
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.types import Environments, Policy, Task, TaskFailure, UserError


async def sample(
    task: Task, policy: Policy, envs: Environments, *, n: int = 16, temperature: float = 1.0, seed: int = 0
) -> Result:
    """Draws `n` trajectories, those that `best_of_n` with the same seed and temperature draws; the result is the first of them.

    Samples that are lost are left out and counted as `faults`.

    Raises:
      UserError: n is less than 1.
      TaskFailure: all were lost.
    """
    if n < 1:
        raise UserError(f"sampling needs n of at least 1, got {n}")
    root = await envs.reset(task)
    states = await draw(root, range(n), policy, envs, temperature=temperature, seed=seed)
    if not states:
        raise TaskFailure(f"all {n} samples of {task.key} were lost to environment faults, or grew too long")
    candidates = tuple(Candidate(state, math.nan, sample=i) for i, state in states.items())
    return Result(candidates, 0, {"faults": n - len(candidates)})
