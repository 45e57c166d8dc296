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
_UNTIMED, _FIRST = 1, 3  # calls of either way that may have been compiled, and those by which they are first compared
_FORGET = 0.7  # weight of an earlier call beside the next one
_STALE = 1.02  # by how much a cost grows with every call that does not confirm it
_PAUSE, _LONGEST_PAUSE = 32, 512  # calls before the slower way is tried again, twice as many whenever that was in vain


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

    Attributes:
      tokens, reads: of recent calls with proposals, tokens that they brought and steps of samples that took; older calls count less.
      cost: seconds of a step without and with proposals, the least of late: whatever else a machine does makes it longer only.
    """

    tokens: float = 0.0
    reads: float = 0.0
    cost: list[float] = dataclasses.field(default_factory=lambda: [math.inf, math.inf])
    _calls: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    _since: list[int] = dataclasses.field(default_factory=lambda: [0, 0])  # calls since the last of either way
    _pause: int = _PAUSE

    @property
    def pays(self) -> bool:
        return self.tokens * self.cost[False] >= self.reads * self.cost[True]

    def choose(self) -> bool:
        """Whether the next call makes proposals: the faster way, at times the other one to see."""
        for way in (True, False):
            if self._calls[way] < _UNTIMED + _FIRST:
                return way
        return self._since[False] < _PAUSE if self.pays else self._since[True] >= self._pause

    def record(self, drafting: bool, steps: int, reads: int, accepted: int, seconds: float) -> None:
        """Records a call: how many samples its steps continued, all told, and how many proposed tokens were right."""
        paid = self.pays
        self._calls[drafting] += 1
        self._since = [count + 1 for count in self._since]
        self._since[drafting] = 0
        if self._calls[drafting] > _UNTIMED and steps:
            self.cost[drafting] = min(_STALE * self.cost[drafting], seconds / steps)
        if drafting:
            self.tokens = _FORGET * self.tokens + reads + accepted
            self.reads = _FORGET * self.reads + reads
            self._pause = _PAUSE if self.pays else min(2 * self._pause, _LONGEST_PAUSE) if not paid else self._pause
