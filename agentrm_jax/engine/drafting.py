"""Prompt lookup: what followed the last tokens when they were said before is proposed to follow them again.

Agents repeat names and formats, so a forward pass that verifies some proposed tokens often yields several. Nothing about a sample
changes by it: each of its tokens is drawn as ever, by its own uniform number from what the model says there, and a proposal only
saves a step where it happens to be what was drawn.

Letters: r samples, t known tokens.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

NGRAM = 3  # tokens at most that have to agree with the last ones
_UNTIMED, _TRIAL = 1, 3  # calls of a way that may have been compiled, and those by which it is judged
_FORGET = 0.9  # weight of an earlier call beside the next one
_STALE = 1.02  # by how much a cost grows with every call that does not confirm it
_PAUSE, _LONGEST_PAUSE = 64, 512  # calls before the slower way is tried again, twice as many whenever that was in vain


def propose(known_rt: jax.Array, length_r: jax.Array, count: int) -> jax.Array:
    """int32[r, count]: what followed the latest of the longest runs (of up to `NGRAM` tokens) that end as the known tokens do.

    What would follow the end itself is taken to be the same again. -1 where the last token was not said before.
    """
    r, t = known_rt.shape
    last = length_r - 1
    index = jnp.arange(t)
    agree = index[None] < last[:, None]
    size = jnp.zeros((r, t), jnp.int32)
    for back in range(NGRAM):
        token = jnp.take_along_axis(known_rt, jnp.maximum(last - back, 0)[:, None], axis=1)
        before = jnp.pad(known_rt, ((0, 0), (back, 0)), constant_values=-1)[:, :t]
        agree &= (before == token) & (last >= back)[:, None]
        size += agree
    at = jnp.argmax(size * t + index, axis=1)
    found = size.max(axis=1) > 0
    step = jnp.arange(count) % jnp.maximum(last - at, 1)[:, None]
    follow = jnp.take_along_axis(known_rt, jnp.minimum(at[:, None] + 1 + step, t - 1), axis=1)
    return jnp.where(found[:, None], follow, -1)


@dataclasses.dataclass
class Pace:
    """Whether proposals pay in the batches of one shape: whether they bring more tokens a step, by as much as such a step costs more.

    Both ways are tried for some calls; then the faster one is taken, and the other tried again after ever longer pauses.

    Attributes:
      drafting: whether the next call makes proposals.
      tokens, reads: tokens that calls with proposals brought of late, and steps of samples that it took; older calls count less.
      cost: seconds of a step without and with proposals, the least of late: whatever else a machine does makes it longer only.
    """

    drafting: bool = True
    tokens: float = 0.0
    reads: float = 0.0
    cost: list[float] = dataclasses.field(default_factory=lambda: [math.inf, math.inf])
    _best: bool | None = None  # None until both ways have been tried
    _untimed: list[int] = dataclasses.field(default_factory=lambda: [_UNTIMED, _UNTIMED])
    _left: int = _TRIAL  # calls before the way is chosen anew
    _pause: int = _PAUSE

    def record(self, steps: int, reads: int, accepted: int, seconds: float) -> None:
        """Records a call: how many samples its steps continued, all told, and how many proposed tokens were right."""
        way = self.drafting
        if self._untimed[way]:
            self._untimed[way] -= 1
            return
        self.cost[way] = min(_STALE * self.cost[way], seconds / max(steps, 1))
        if way:
            self.tokens = _FORGET * self.tokens + reads + accepted
            self.reads = _FORGET * self.reads + reads
        self._left -= 1
        if way != self._best:  # a trial
            if not self._left:
                self._try(not way) if math.inf in self.cost else self._settle()
        elif way and not self._pays:
            self._settle()
        elif not self._left:
            self._try(not way)

    @property
    def _pays(self) -> bool:
        return self.tokens * self.cost[False] >= self.reads * self.cost[True]

    def _settle(self) -> None:
        """Takes the way that is faster by what is known."""
        before, self._best = self._best, self._pays
        self._pause = _PAUSE if self._best != before else min(2 * self._pause, _LONGEST_PAUSE)
        self.drafting, self._left = self._best, self._pause

    def _try(self, way: bool) -> None:
        """Tries a way for some calls, by which alone it is judged."""
        self.drafting, self._left, self.cost[way] = way, _TRIAL, math.inf
        if way:
            self.tokens = self.reads = 0.0
