"""Best-of-n: whole trajectories, one chosen by the reward model (paper 1.6)."""

import math

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.greedy import rollout
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.search.turns import scored
from agentrm_jax.types import Environments, Policy, RewardModel, State, Task, TaskFailure, UserError


async def best_of_n(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    n: int = 5,
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
    all_steps: bool = False,
) -> Result:
    """Draws `n` trajectories and picks the one with the highest score.

    Args:
      aggregate: from step scores to a trajectory's score, see `aggregate.py`; `last` scores final states only.
      all_steps: score every step also when `aggregate` is `last`, for reports.

    Samples that are lost (environment faults, histories that grew too long) are left out and counted; raises TaskFailure if all are.
    A missing score never wins; ties go to the lowest sample.
    """
    agg.check(aggregate)
    if n < 1:
        raise UserError(f"best-of-n needs n of at least 1, got {n}")
    root = await envs.reset(task)
    states = await together(
        attempt(rollout(root, policy, envs, temperature=temperature, seed=seed, sample=i)) for i in range(n)
    )
    samples = [(i, state) for i, state in enumerate(states) if state is not None]
    if not samples:
        raise TaskFailure(f"all {n} samples of {task.key} were lost to environment faults, or grew too long")
    every = all_steps or aggregate != "last"
    paths = [_steps(state) if every else _steps(state)[-1:] for _, state in samples]
    flat = iter(await scored(reward_model, [state for path in paths for state in path]))
    candidates = []
    for (i, state), path in zip(samples, paths, strict=True):
        step_scores = tuple(next(flat) for _ in path)
        candidates.append(Candidate(state, agg.aggregate(step_scores, aggregate), step_scores, i))
    counts = {
        "faults": n - len(samples),
        "unscored": sum(math.isnan(s) for c in candidates for s in c.step_scores),
    }
    return Result(tuple(candidates), agg.rank([c.score for c in candidates])[0], counts)


def _steps(state: State) -> list[State]:
    return state.path()[1:]
