"""Best-of-n: whole trajectories, one chosen by the reward model (paper 1.6)."""

import math
from collections.abc import Mapping, Sequence

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
    states = await sample(root, range(n), policy, envs, temperature=temperature, seed=seed)
    return await rank(task, states, reward_model, n=n, aggregate=aggregate, all_steps=all_steps)


async def rank(
    task: Task,
    states: Mapping[int, State],
    reward_model: RewardModel,
    *,
    n: int,
    aggregate: str = "last",
    all_steps: bool = False,
) -> Result:
    """Best-of-n among trajectories that were drawn before: the last states of those of `n` samples that were not lost, by sample."""
    agg.check(aggregate)
    return best_of(await judge(states, reward_model, aggregate, all_steps=all_steps), n, task)


async def sample(
    root: State, samples: Sequence[int], policy: Policy, envs: Environments, *, temperature: float, seed: int
) -> dict[int, State]:
    """The last states of some trajectories, by sample, drawn at once; those that are lost are left out."""
    ends = await together(
        attempt(rollout(root, policy, envs, temperature=temperature, seed=seed, sample=i)) for i in samples
    )
    return {i: end for i, end in zip(samples, ends, strict=True) if end is not None}


async def judge(
    states: Mapping[int, State], reward_model: RewardModel, aggregate: str, *, all_steps: bool = False
) -> list[Candidate]:
    """Candidates of whole trajectories, given by sample, scored in one call; only their last steps, where that will do."""
    every = all_steps or aggregate != "last"
    paths = [state.path()[1:] if every else state.path()[1:][-1:] for state in states.values()]
    flat = iter(await scored(reward_model, [state for path in paths for state in path]))
    candidates = []
    for (i, state), path in zip(states.items(), paths, strict=True):
        step_scores = tuple(next(flat) for _ in path)
        candidates.append(Candidate(state, agg.aggregate(step_scores, aggregate), step_scores, i))
    return candidates


def best_of(candidates: Sequence[Candidate], drawn: int, task: Task) -> Result:
    """The best score among candidates that were left of `drawn` samples. Raises TaskFailure if none were."""
    if not candidates:
        raise TaskFailure(f"all {drawn} samples of {task.key} were lost to environment faults, or grew too long")
    counts = {
        "faults": drawn - len(candidates),
        "unscored": sum(math.isnan(s) for c in candidates for s in c.step_scores),
    }
    return Result(tuple(candidates), agg.rank([c.score for c in candidates])[0], counts)
