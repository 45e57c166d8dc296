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

    def path(self, segments: Sequence[Segment], name: str = "", closing: Segment | None = None) -> np.ndarray:
        """int32[t] tokens of a conversation, t <= limit, with `closing` at its end.

        Raises:
          TooLong: prompt and last turn alone are longer than the limit.
        """
        last = [closing.tokens] if closing is not None else []
        kept, dropped = self._fit(segments, sum(map(len, last)))
        if dropped:
            self.dropped_turns[name] += dropped
        return np.concatenate([*(s.tokens for s in kept), *last])

    def steps(self, segments: Sequence[Segment], closing: Segment | None = None) -> list[Reading]:
        """How to read every step (segment with loss) of a conversation: one path for all that end within the limit, and one path
        for each later step, without the oldest turns, as a search would read it.

        Args:
          closing: tokens that follow a step where it ends the conversation; a step is then read at the last of them.

        Raises:
          TooLong: a step cannot be read with the prompt within the limit.
        """
        after = closing.tokens if closing is not None else np.zeros(0, np.int32)
        ends = np.cumsum([len(s.tokens) for s in segments]) + len(after)
        steps = [i for i, s in enumerate(segments) if s.loss]
        near = [i for i in steps if ends[i] <= self.limit]
        inner = near[:-1]
        if not all(np.array_equal(segments[i + 1].tokens[: len(after)], after) for i in inner):
            near = near[:1]  # what follows is written otherwise there: every step is read by itself
        last = [closing] if closing is not None and len(after) else []
        readings = [Reading([*segments[: near[-1] + 1], *last], ends[near] - 1, 0)] if near else []
        for i in steps[len(near) :]:
            kept, dropped = self._fit(segments[: i + 1], len(after))
            kept = [*kept, *last]
            readings.append(Reading(kept, np.array([sum(len(s.tokens) for s in kept) - 1]), dropped))
        return readings

    def _fit(self, segments: Sequence[Segment], after: int = 0) -> tuple[list[Segment], int]:
        try:
            return tree.truncate(segments, self.limit - after)
        except ValueError as error:
            raise TooLong(str(error)) from error
