"""Adaptive best-of-n: samples are drawn in waves, and no more of them once the scores say so."""

import dataclasses
import math

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.best_of_n import best_of, judge, sample
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.types import Environments, Policy, RewardModel, Task, UserError


async def adaptive(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    n: int = 5,
    wave: int = 1,
    threshold: float = 0.9,
    patience: int = 0,
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
) -> Result:
    """Best-of-n that draws at most `n` trajectories, `wave` at a time, and stops early on an easy or a hopeless task.

    Sample i is best-of-n's sample i, so with m samples drawn the result is that of best-of-n with n = m. Decisions:

    - It stops as soon as the best score so far is at least `threshold`. The score is taken as it is, so the threshold
      is on the reward model's scale: the expected outcome, for one that was trained on outcomes.
    - It stops after `patience` waves in a row that did not raise the best score; 0 means never. The first wave is none
      of them.
    - Every wave is scored by itself. Scores of different waves are compared, so they must not depend on what else was
      scored in the same call, as those of a listwise judge do.
    - A missing score neither reaches the threshold nor raises the best.
    - Larger waves fill batches better and may draw up to `wave` - 1 samples too many.

    Its counts also hold `drawn`, the samples that were drawn, and `saved`, those that were not.

    Samples that are lost are left out and counted; raises TaskFailure if all of the drawn are, which is then n of them.
    """
    agg.check(aggregate)
    if min(n, wave) < 1:
        raise UserError(f"adaptive best-of-n needs n and wave of at least 1, got {n} and {wave}")
    root = await envs.reset(task)
    candidates: list[Candidate] = []
    best, drawn, in_vain = -math.inf, 0, -1
    while drawn < n and best < threshold and not (patience and in_vain >= patience):
        now = range(drawn, min(drawn + wave, n))
        states = await sample(root, now, policy, envs, temperature=temperature, seed=seed)
        new = await judge(states, reward_model, aggregate)
        drawn += len(now)
        candidates += new
        highest = max((c.score for c in new if not math.isnan(c.score)), default=-math.inf)
        in_vain = 0 if highest > best else in_vain + 1
        best = max(best, highest)
    result = best_of(candidates, drawn, task)
    return dataclasses.replace(result, counts={**result.counts, "drawn": drawn, "saved": n - drawn})
