"""Ensembles: several opinions on a state, a score that is careful where they differ, and how much they do.

The opinions are those of the value heads of one model (`--config.heads`), of several reward models (`--config.reward_model=a,b,c`),
or of all heads of several models.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentrm_jax.models.card import card_of
from agentrm_jax.types import JSON, RewardModel, State


class Pessimism:
    """The score mean - k * standard deviation, and how large the standard deviation was (of all opinions: divided by their number).

    Args:
      k: 0 gives the mean. Best of many candidates by a noisy score is often one whose noise is high; where opinions that were trained
        on different tasks differ, the score is less sure.
    """

    def __init__(self, k: float = 0.0):
        self.k = k
        self._spread: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # task key -> states, sum of deviations

    def score(self, opinions: Sequence[float] | np.ndarray, task: str) -> float:
        """The score of a state of a task; NaN if an opinion is missing."""
        values = np.asarray(opinions, np.float64)
        if not np.isfinite(values).all():
            return math.nan
        deviation = float(values.std())
        self._spread[task][0] += 1
        self._spread[task][1] += deviation
        return float(values.mean()) - self.k * deviation

    def notes(self, task: str) -> dict[str, JSON]:
        """`{"disagreement": {"states", "deviation"}}` of a task: how many states were scored, and the sum of their deviations."""
        if task not in self._spread:
            return {}
        states, deviation = self._spread[task]
        return {"disagreement": {"states": states, "deviation": deviation}}


class EnsembleRewardModel:
    """Implements `RewardModel`: several of them, asked at once. `tokens` are those of all.

    A member that has several opinions of its own (a coroutine `opinions`: states -> one array of them for each) gives them all, each
    as weighty as the only one of another member.

    Raises:
      ValueError: there are no members.
    """

    def __init__(self, members: Sequence[RewardModel], k: float = 0.0):
        if not members:
            raise ValueError("an ensemble has members")
        self._members, self._pessimism = tuple(members), Pessimism(k)
        self.card = card_of(members[0])
        self.notes = self._pessimism.notes

    @property
    def tokens(self) -> int:
        return sum(getattr(member, "tokens", 0) for member in self._members)

    @property
    def dropped_turns(self) -> Mapping[str, int]:
        """Task key -> the most oldest turns that a member did not read."""
        found: dict[str, int] = {}
        for member in self._members:
            dropped: Mapping[str, Any] = getattr(member, "dropped_turns", {})
            for task, count in dropped.items():
                found[task] = max(found.get(task, 0), count)
        return found

    async def score(self, states: Sequence[State]) -> list[float]:
        """float[len(states)]: mean - k * standard deviation over all opinions; NaN where one is missing."""
        found = await asyncio.gather(*(_opinions(member, states) for member in self._members))
        return [
            self._pessimism.score(np.concatenate(of_state), state.task.key)
            for of_state, state in zip(zip(*found, strict=True), states, strict=True)
        ]

    async def aclose(self) -> None:
        """Ends what its members have open."""
        for member in self._members:
            if close := getattr(member, "aclose", None):
                await close()


async def _opinions(member: Any, states: Sequence[State]) -> list[np.ndarray]:
    """What a reward model says of each state: float[e], NaN where it says nothing."""
    if ask := getattr(member, "opinions", None):
        return list(await ask(states))
    return [np.array([math.nan if v is None else v], np.float64) for v in await member.score(states)]
