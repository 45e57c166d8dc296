"""From the scores of steps to the score of a trajectory, and from scores to a choice. Pure functions."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from agentrm_jax.types import UserError

Aggregator = Literal["last", "min", "mean", "sum", "prod", "max"]


def check(how: str) -> None:
    """Raises UserError if `how` is no aggregator."""
    if how not in get_args(Aggregator):
        raise UserError(f"no aggregator named {how!r}; use one of {', '.join(get_args(Aggregator))}")


def aggregate(step_scores: Sequence[float | None], how: str = "last") -> float:
    """Score of a trajectory from the scores of its steps, in order.

    `last` is the default because the value of a state is already an expected outcome (paper 1.6); `sum` of the step
    rewards of an implicit reward model is the `last` of its accumulated ones. `prod` takes scores for the probabilities that
    expected outcomes are, so each is clipped to [0, 1] first: otherwise two bad steps (-0.9, -0.9) would make a good
    trajectory. It says nothing about scores of another kind (logits, log-ratios). NaN if there are no steps or a score that is
    needed is missing.
    """
    check(how)
    scores = [math.nan if s is None else float(s) for s in step_scores]
    used = scores[-1:] if how == "last" else scores
    if not used or any(math.isnan(s) for s in used):
        return math.nan
    if how == "min":
        return min(used)
    if how == "max":
        return max(used)
    if how == "prod":
        return math.prod(min(max(s, 0.0), 1.0) for s in used)
    total = sum(used)
    return total / len(used) if how == "mean" else total


def rank(scores: Sequence[float | None]) -> list[int]:
    """Indices from best to worst: highest score first, ties by lowest index, missing scores (None, NaN) last."""

    def order(i: int) -> tuple[bool, float]:
        score = scores[i]
        missing = score is None or math.isnan(score)
        return missing, 0.0 if score is None or missing else -score

    return sorted(range(len(scores)), key=order)


def missing(scores: Sequence[float | None]) -> int:
    """How many scores are None or NaN."""
    return sum(s is None or math.isnan(s) for s in scores)
