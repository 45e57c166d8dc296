"""How much of a conversation a model reads: the one place that leaves out turns, and counts them."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from agentrm_jax import tree
from agentrm_jax.tree import Segment
from agentrm_jax.types import TooLong


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A path of segments to read in one pass, and where its steps end.

    Attributes:
      segments: the path.
      ends: int[w] index of the last token of every step to be scored here.
      dropped_turns: oldest turns that were left out of the path.
    """

    segments: list[Segment]
    ends: np.ndarray
    dropped_turns: int

    @property
    def tokens(self) -> np.ndarray:
        """int32[t]."""
        return np.concatenate([s.tokens for s in self.segments])


@dataclasses.dataclass
class Window:
    """Conversations within `limit` tokens: the oldest turns (an action and its observation) are left out, never the prompt.

    Attributes:
      dropped_turns: turns left out so far, by the name given to `path` (a task's key).
    """

    limit: int
    dropped_turns: Counter[str] = dataclasses.field(default_factory=Counter)

    def path(self, segments: Sequence[Segment], name: str = "") -> np.ndarray:
        """int32[t] tokens of a conversation, t <= limit.

        Raises:
          TooLong: prompt and last turn alone are longer than the limit.
        """
        kept, dropped = self._fit(segments)
        if dropped:
            self.dropped_turns[name] += dropped
        return np.concatenate([s.tokens for s in kept])

    def steps(self, segments: Sequence[Segment]) -> list[Reading]:
        """How to read every step (segment with loss) of a conversation: one path for all that end within the limit, and one path
        for each later step, without the oldest turns, as a search would read it.

        Raises:
          TooLong: a step cannot be read with the prompt within the limit.
        """
        ends = np.cumsum([len(s.tokens) for s in segments])
        steps = [i for i, s in enumerate(segments) if s.loss]
        near = [i for i in steps if ends[i] <= self.limit]
        readings = [Reading(list(segments[: near[-1] + 1]), ends[near] - 1, 0)] if near else []
        for i in steps[len(near) :]:
            kept, dropped = self._fit(segments[: i + 1])
            readings.append(Reading(kept, np.array([sum(len(s.tokens) for s in kept) - 1]), dropped))
        return readings

    def _fit(self, segments: Sequence[Segment]) -> tuple[list[Segment], int]:
        try:
            return tree.truncate(segments, self.limit)
        except ValueError as error:
            raise TooLong(str(error)) from error
