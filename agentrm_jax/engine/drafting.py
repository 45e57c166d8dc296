"""Prompt lookup: what followed the last tokens when they were said before is proposed to follow them again.

Agents repeat names and formats, so a forward pass that verifies some proposed tokens often yields several. Nothing about a sample
changes by it: each of its tokens is drawn as ever, by its own uniform number from what the model says there, and a proposal only
saves a step where it happens to be what was drawn.

Letters: r samples, t known tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

NGRAM = 3  # tokens at most that have to agree with the last ones
_AGAIN = 24  # calls after which the slower way is tried once more
_FORGET = 0.8  # weight of all earlier calls beside a new one


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
    """Whether proposals pay in the batches of one shape: both ways are timed, the faster is taken and the other tried at times.

    Attributes:
      tokens, seconds: of recent calls without and with proposals, older ones counting less.
    """

    tokens: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    seconds: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    _calls: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    _since: int = 0

    def choose(self) -> bool:
        """Whether the next call makes proposals."""
        untimed = [way for way in (True, False) if self._calls[way] < 2]
        if untimed:
            return untimed[0]
        best = self.tokens[True] * self.seconds[False] >= self.tokens[False] * self.seconds[True]
        return best if self._since < _AGAIN else not best

    def record(self, drafting: bool, tokens: int, seconds: float) -> None:
        """Records what a call has brought. The first one of either way may have been compiled, so it is not timed."""
        best = self.tokens[True] * self.seconds[False] >= self.tokens[False] * self.seconds[True]
        self._since = self._since + 1 if drafting == best else 0
        self._calls[drafting] += 1
        if self._calls[drafting] > 1:
            self.tokens[drafting] = _FORGET * self.tokens[drafting] + tokens
            self.seconds[drafting] = _FORGET * self.seconds[drafting] + seconds
