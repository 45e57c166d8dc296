"""Choices among the samples of a task that need no reward model: what a reward model must beat to be worth anything."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Sample(NamedTuple):
    """One episode among those a method chose from.

    Attributes:
      score: what it was ranked by; NaN ranks last.
      reward, success, progress: of its last outcome.
      steps: its turns; None in records that do not say.
      ended: it was over before its step limit.
      answer: what it came to, as votes are counted (`EnvSpec.answer`); None if it gave none.
    """

    score: float
    reward: float
    success: bool
    progress: float = 0.0
    steps: int | None = None
    ended: bool = False
    answer: str | None = None


Rule = Callable[
    [Sequence[Sample]], Sequence[Sample]
]  # from all samples of a task to those it leaves to choose from at random


def rules(tasks: Sequence[Sequence[Sample]]) -> Mapping[str, Rule]:
    """The rules that these samples (of each task) say enough for, by name.

    `random`: any sample. Where records say how long samples are, `shortest` and `longest` (ties at random), which are nearly the oracle
    and its opposite where success ends an episode; `ended`: the first that was over before its step limit, else the first. Where
    samples gave answers, `majority` (`majority`).
    """
    every = [sample for samples in tasks for sample in samples]
    found: dict[str, Rule] = {"random": lambda samples: samples}
    if all(sample.steps is not None for sample in every):
        found |= {"shortest": _shortest, "longest": _longest, "ended": _first_ended}
    if any(sample.answer is not None for sample in every):
        found["majority"] = majority
    return found


def majority(samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose answer most samples gave (self-consistency, arXiv 2203.11171); of several such answers, those of all.

    A sample without an answer has no vote; if none has one, any sample is as good.
    """
    votes = collections.Counter(s.answer for s in samples if s.answer is not None)
    most = max(votes.values(), default=0)
    return [s for s in samples if s.answer is not None and votes[s.answer] == most] or list(samples)


def _shortest(samples: Sequence[Sample]) -> list[Sample]:
    least = min(s.steps or 0 for s in samples)
    return [s for s in samples if (s.steps or 0) == least]


def _longest(samples: Sequence[Sample]) -> list[Sample]:
    most = max(s.steps or 0 for s in samples)
    return [s for s in samples if (s.steps or 0) == most]


def _first_ended(samples: Sequence[Sample]) -> list[Sample]:
    return [next((s for s in samples if s.ended), samples[0])]
