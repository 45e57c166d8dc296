"""Particle filtering: trajectories step together and are resampled by their scores (arXiv 2502.01618)."""

import bisect
import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.result import Candidate, Result, settle
from agentrm_jax.search.turns import derive, is_live, scored, turn_seed
from agentrm_jax.types import Environments, Policy, RewardModel, State, Task, UserError

Resampling = Literal["systematic", "multinomial"]


async def particle(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    particles: int = 5,
    weight_temperature: float = 0.25,
    resampling: str = "systematic",
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
) -> Result:
    """Particle filtering: `particles` trajectories take a turn each, and are resampled by weight, until all have ended.

    A particle's weight is exp(score / `weight_temperature`), so a better one is likely, not certain, to have more
    successors: a beam drops what one wrong score ranks low, a filter keeps some of it. Decisions:

    - Turns are executed before they are scored, so it costs what best-of-n with n = `particles` costs and every score
      of every step besides; reward models that read the last observation can be used.
    - Published filters take the logit of a score, a probability, instead of score / temperature. Scores here are
      expected outcomes and may lie outside [0, 1], where there is no logit; around one half the default temperature
      gives the weights that it would. At temperature 0 the best share all weight; the higher it is, the more the
      filter is like best-of-n.
    - `resampling`: with `systematic` a particle of weight w (of a sum of 1) gets w x `particles` successors, rounded up
      or down; equal weights leave everything as it is. `multinomial` draws every place by itself, with more noise.
    - A finished particle keeps its place and is not copied: a copy of what is over would find nothing new. The others
      are resampled among themselves into the places that are left.
    - A particle whose turn cannot be taken is lost, and the others are resampled into its place too. If all that were
      still going are lost in the same turn, they stay where they were, unfinished.
    - A missing score weighs nothing; if all are missing, all weigh the same.
    - Copies go on with seeds of their own places, so they part at the next turn. Place i draws as sample i of
      best-of-n does, and one particle is plain sampling.
    - The final pick is the best score among the finished.

    Its counts also hold `copies`, the places that were given to another particle's copy.
    """
    agg.check(aggregate)
    if particles < 1:
        raise UserError(f"particle filtering needs at least 1 particle, got {particles}")
    if resampling not in get_args(Resampling):
        raise UserError(f"no resampling named {resampling!r}; use one of {', '.join(get_args(Resampling))}")
    counts: Counter[str] = Counter(faults=0, unscored=0, copies=0)

    async def move(state: State, place: int) -> State:
        turn = turn_seed(state, seed, place)
        [action] = await policy.propose(state, 1, temperature=temperature, seed=turn)
        return await envs.step(state, action)

    root = Candidate(await envs.reset(task), math.nan)
    places = [root] * particles
    going = list(range(particles)) if is_live(root.state) else []
    while going:
        states = await together(attempt(move(places[i].state, i)) for i in going)
        moved = [(i, state) for i, state in zip(going, states, strict=True) if state is not None]
        scores = await scored(reward_model, [state for _, state in moved])
        counts["faults"] += len(going) - len(moved)
        counts["unscored"] += agg.missing(scores)
        ended = set()
        sources: list[int] = []
        for (i, state), score in zip(moved, scores, strict=True):
            places[i] = dataclasses.replace(places[i], state=state).scored(score, aggregate)
            if is_live(state):
                sources.append(i)
            else:
                ended.add(i)
        if not sources:
            break
        going = [i for i in going if i not in ended]
        draw = random.Random(derive(seed, "resample", task.key, places[sources[0]].state.depth))
        weights = softmax([places[i].score for i in sources], weight_temperature)
        chosen = [sources[j] for j in resample(weights, len(going), resampling, draw)]
        counts["copies"] += len(chosen) - len(set(chosen))
        for i, copied in zip(going, [places[j] for j in chosen], strict=True):
            places[i] = copied
    return settle(places, counts)


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """Weights in proportion to exp(score / temperature), the largest being 1; temperature 0 is the limit.

    A missing score (NaN) weighs 0; if all are missing, all weigh 1.
    """
    best = max((s for s in scores if not math.isnan(s)), default=None)
    if best is None:
        return [1.0] * len(scores)
    if temperature == 0:
        return [float(s == best) for s in scores]
    return [0.0 if math.isnan(s) else math.exp((s - best) / temperature) for s in scores]


def resample(weights: Sequence[float], count: int, how: str, draw: random.Random) -> list[int]:
    """`count` indices in proportion to `weights` (not all 0), in ascending order; see `particle`."""
    cumulative = list(itertools.accumulate(weights))
    if how == "systematic":
        offset = draw.random()
        points = [(i + offset) / count for i in range(count)]
    else:
        points = sorted(draw.random() for _ in range(count))
    last = max(i for i, w in enumerate(weights) if w > 0)  # where rounding puts a point beyond the sum
    return [min(bisect.bisect_right(cumulative, p * cumulative[-1]), last) for p in points]
