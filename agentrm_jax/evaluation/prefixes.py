"""What a reward model knows before an episode is over: its score of an unfinished state against what became of the episode.

Whole samples differ in length, and where success ends an episode their length gives their outcome away. Among episodes that are all still
going after k steps it says nothing, so this is where a value shows what it has learned.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from agentrm_jax.evaluation import metrics, statistics
from agentrm_jax.types import JSON

LEAST = 8  # tasks (or states of either outcome) that an estimate must rest on


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """A sampled episode with the score of every step; `reward` and `success` are those it ended with."""

    task: str
    env: str
    step_scores: Sequence[float]
    reward: float
    success: bool


def measure(episodes: Sequence[Scored], *, resamples: int = statistics.RESAMPLES, seed: int = 0) -> JSON:
    """`{environment: {"by_step": [...], "to_go": [...]}}` of episodes of which every step was scored; None if there are none.

    by_step  for every k, over tasks with two or more samples that go on after step k: {step, tasks, states, chosen, random, gain, auc,
             concordance}. `chosen` is the final reward of the sample with the best score at step k (ties at random), `random` the mean
             over those samples, `gain` their paired difference with its interval, {score, ci95}. `auc` is the chance that a state of
             an episode that will succeed outscores one that will not (over all tasks), `concordance` the same within a task, over pairs
             of different final reward; null where not defined.
    to_go    {steps, states, successes, auc}: `auc` by how many steps the episode had still to go.

    Points that rest on fewer than `LEAST` tasks, or states of either outcome, are left out.
    """
    usable = _complete(episodes)
    environments = list(dict.fromkeys(e.env for e in usable))
    found: dict[str, JSON] = {}
    for env in environments:
        members = [e for e in usable if e.env == env]
        longest = max(len(e.step_scores) for e in members)
        points = [_at(members, k, resamples, seed) for k in range(1, longest)]
        ahead = [_to_go(members, k) for k in range(1, longest)]
        found[env] = {"by_step": [p for p in points if p], "to_go": [p for p in ahead if p]}
    return found or None


def _at(episodes: Sequence[Scored], k: int, resamples: int, seed: int) -> dict[str, JSON] | None:
    """The point of step k, among episodes that go on after it."""
    by_task: dict[str, list[Scored]] = {}
    for e in episodes:
        if len(e.step_scores) > k:
            by_task.setdefault(e.task, []).append(e)
    several = [found for found in by_task.values() if len(found) > 1]
    if len(several) < LEAST:
        return None
    chosen, chance = [], []
    for found in several:
        gains = [e.reward for e in found]
        chosen.append(float(statistics.best_of_n([e.step_scores[k - 1] for e in found], gains, [len(found)])[0]))
        chance.append(float(np.mean(gains)))
    gain = statistics.paired_difference(chosen, chance, resamples=resamples, seed=seed)
    states = [e for found in several for e in found]
    scores = [e.step_scores[k - 1] for e in states]
    pairs, _ = metrics.pairwise_accuracy(
        scores, [e.reward for e in states], [e.task for e in states], min_difference=0.0
    )
    return {
        "step": k,
        "tasks": len(several),
        "states": len(states),
        "chosen": float(np.mean(chosen)),
        "random": float(np.mean(chance)),
        "gain": {"score": gain.mean, "ci95": [gain.lo, gain.hi]},
        "auc": _or_none(metrics.auc(scores, [e.success for e in states])),
        "concordance": _or_none(pairs),
    }


def _to_go(episodes: Sequence[Scored], steps: int) -> dict[str, JSON] | None:
    """The point of so many steps to go."""
    states = [(e.step_scores[-1 - steps], e.success) for e in episodes if len(e.step_scores) > steps]
    wins = sum(won for _, won in states)
    if min(wins, len(states) - wins) < LEAST:
        return None
    value = metrics.auc([score for score, _ in states], [won for _, won in states])
    return {"steps": steps, "states": len(states), "successes": wins, "auc": _or_none(value)}


def curves(episodes: Sequence[Scored], *, points: int = 11) -> Mapping[str, JSON]:
    """Mean score along episodes that succeeded and that did not: `{environment: {"solved" | "failed": [[part, score, n]]}}`.

    `part` runs from 0 (first step) to 1 (last), so that episodes of different length can be averaged; an episode of one step counts
    at 1 only.
    """
    episodes = _complete(episodes)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for env in dict.fromkeys(e.env for e in episodes):
        for name, won in (("solved", True), ("failed", False)):
            members = [e for e in episodes if e.env == env and e.success == won and len(e.step_scores) > 1]
            if len(members) >= LEAST:
                parts = np.linspace(0, 1, points)
                lines = np.array(
                    [np.interp(parts, np.linspace(0, 1, len(e.step_scores)), e.step_scores) for e in members]
                )
                mean = lines.mean(axis=0)
                found.setdefault(env, {})[name] = [
                    [float(p), float(m), len(members)] for p, m in zip(parts, mean, strict=True)
                ]
    return found


def _complete(episodes: Sequence[Scored]) -> list[Scored]:
    return [e for e in episodes if e.step_scores and not any(map(math.isnan, e.step_scores))]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
