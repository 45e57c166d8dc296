"""How decode reads the cache: which columns a sample sees, and attention over them.

Letters: u rows, n samples of a row, b blocks of w columns, s columns of a trunk, k key/value heads, g query heads per key/value
head, h head dim. Attention is written as plain batched matrix products over key blocks of about 64 columns, [b, h, w]: XLA's CPU
backend multiplies a few rows by such blocks twice as fast as by one wide matrix.
"""

import jax
import jax.numpy as jnp

from agentrm_jax.engine.batch import DecodeShape, DecodeState, Trunk
from agentrm_jax.engine.memory import MASK_VALUE, by_heads
from agentrm_jax.engine.paged import Part


class Columns:
    """What lies in which column of a row: its history first, then the ring, n columns a step, one for each sample."""

    def __init__(self, shape: DecodeShape, state: DecodeState, trunk: Trunk | None):
        self._shape, self._joined = shape, state.joined
        self._length = jnp.asarray(state.rows.context_length)
        self._before = trunk.length if trunk is not None else jnp.int32(0)
        index = jnp.arange((shape.history_blocks + shape.ring_blocks) * shape.width)
        own = index - shape.history_blocks * shape.width
        self._place = jnp.where(own >= 0, own // shape.samples, -1)  # in the ring
        self._owner = own % shape.samples
        self._index = index
        self._past = (own < 0) & (index < self._length[:, None])

    def age(self, at: jax.Array) -> jax.Array:
        """int32[u]: steps that a row has run before step `at`."""
        return at - self._joined

    def position(self, at: jax.Array) -> jax.Array:
        """int32[u]: where in its path the token of step `at` stands."""
        return self._before + self._length + self.age(at)

    def bias(self, at: jax.Array, limit: int | None) -> tuple[jax.Array, jax.Array | None]:
        """float32[u, b, n, w] for a row's columns at step `at`, and [1 or u, 1, s] for the trunk's: 0 where a sample sees one."""
        s = self._shape
        u, n, blocks = s.rows, s.samples, s.history_blocks + s.ring_blocks
        back = (at - self._place) % s.ring
        mine = (self._owner == jnp.arange(n)[:, None])[None] & (self._place >= 0)
        seen = self._past[:, None] | (mine & (back <= self.age(at)[:, None, None]))
        column = jnp.arange(s.trunk)
        shared = (column < self._before)[None]
        if limit is not None:
            now = self.position(at)[:, None]
            key_position = jnp.where(self._place >= 0, now - back, self._before + self._index)
            seen &= (now - key_position < limit)[:, None]
            shared = shared & (now - column < limit)
        bias = jnp.where(seen, 0.0, MASK_VALUE).reshape(u, n, blocks, s.width).transpose(0, 2, 1, 3)
        return bias, jnp.where(shared, 0.0, MASK_VALUE)[:, None] if s.trunk else None

    def put(
        self, cache: tuple[jax.Array, jax.Array], k: jax.Array, v: jax.Array, at: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The cache with the keys and values [u, n, k, h] that step `at` has written."""
        keys, vals = cache
        u, n, kv, h = k.shape
        width, steps = self._shape.width, self._shape.width // n
        place = at % self._shape.ring
        zero, block, inside = jnp.int32(0), self._shape.history_blocks + place // steps, place % steps * n
        k, v = k.transpose(2, 0, 3, 1).reshape(kv * u, 1, h, n), v.transpose(2, 0, 1, 3).reshape(kv * u, n, h)
        keys = jax.lax.dynamic_update_slice(keys, k, (zero, block, zero, inside))
        vals = jax.lax.dynamic_update_slice(vals, v, (zero, block * width + inside, zero))
        return by_heads(keys, kv, 0), by_heads(vals, kv, 0)


def attend(
    q_unxh: jax.Array,
    keys: jax.Array,
    vals: jax.Array,
    trunk: tuple[jax.Array, jax.Array] | None,
    bias: jax.Array,
    trunk_bias: jax.Array | None,
) -> Part:
    """Attention of n samples a row over keys [k * u, b, h, w] and values [k * u, b * w, h], and over a trunk: [u, n, heads, h].

    Beside it stands the log-sum-exp of the scores, for what is read elsewhere (`histories`). Shapes are those of the caches: a
    reshape of what was just written would make XLA copy it.
    """
    u, n, heads, h = q_unxh.shape
    _, blocks, _, width = keys.shape
    kv = keys.shape[0] // u
    g = heads // kv
    q = (q_unxh * h**-0.5).reshape(u, n, kv, g, h).transpose(2, 0, 1, 3, 4)
    wide = jnp.broadcast_to(q.reshape(kv * u, 1, n * g, h), (kv * u, blocks, n * g, h))
    scores = jnp.matmul(wide, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(kv, u, blocks, n, g, width) + bias[:, :, :, None]
    high = scores.max((2, 5), keepdims=True)
    if trunk is not None and trunk_bias is not None:
        shared = jnp.matmul(q.reshape(kv, u * n * g, h), trunk[0], preferred_element_type=jnp.float32)
        shared = shared.reshape(kv, u, n * g, -1) + trunk_bias
        high = jnp.maximum(high, shared.max(-1).reshape(kv, u, 1, n, g, 1))
        shared = jnp.exp(shared - high.reshape(kv, u, n * g, 1))
    scores = jnp.exp(scores - high)
    total = scores.sum((2, 5)).reshape(kv * u, n * g, 1)
    rows = scores.astype(vals.dtype).transpose(0, 1, 3, 4, 2, 5).reshape(kv * u, n * g, blocks * width)
    out = jnp.matmul(rows, vals)
    if trunk is not None and trunk_bias is not None:
        total += shared.sum(-1).reshape(total.shape)
        common = jnp.matmul(shared.astype(vals.dtype).reshape(kv, u * n * g, -1), trunk[1])
        out += common.reshape(out.shape)
    out = out / total
    lse = (high.reshape(kv, u, n, g) + jnp.log(total).reshape(kv, u, n, g)).transpose(1, 2, 0, 3).reshape(u, n, heads)
    return out.reshape(kv, u, n, g, h).transpose(1, 2, 0, 3, 4).reshape(u, n, heads, h).astype(q_unxh.dtype), lse
