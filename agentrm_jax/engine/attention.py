"""How decode reads the cache: which columns a sample sees, and attention over them.

Letters: u rows, n samples of a row, p places of a step, t = p * n queries of a row, b blocks of w columns, s columns of a trunk,
k key/value heads, g query heads per key/value head, h head dim. Attention is written as plain batched matrix products over key
blocks of about 64 columns, [b, h, w]: XLA's CPU backend multiplies a few rows by such blocks twice as fast as by one wide matrix.
"""

import jax
import jax.numpy as jnp

from agentrm_jax.engine.batch import DecodeShape, DecodeState, Trunk
from agentrm_jax.engine.memory import MASK_VALUE, by_heads
from agentrm_jax.engine.paged import Part


class Columns:
    """What lies in which column of a row: its history first, then the ring, n columns a place, one for each sample.

    A step reads p tokens of every sample, place by place: t = p * n queries a row.
    """

    def __init__(self, shape: DecodeShape, state: DecodeState, trunk: Trunk | None):
        self._shape, self._base, self._joined = shape, jnp.asarray(state.rows.base), state.joined
        self._length = jnp.asarray(state.rows.context_length)
        self._before = jnp.asarray(trunk.length) if trunk is not None else jnp.int32(0)
        history = jnp.arange(shape.history_blocks * shape.width)
        self._history_position = self._before + history
        self._past = history < self._length[:, None]
        self._sample = jnp.arange(shape.samples)

    def offset(self, count: jax.Array, places: int) -> jax.Array:
        """int32[u, p, n]: offsets of the tokens that are read next, of samples with `count` [u, n] tokens."""
        return (count - self._base)[:, None] + jnp.arange(places)[:, None]

    def position(self, offset: jax.Array) -> jax.Array:
        """int32[u, p, n]: where tokens stand in their paths."""
        return self._before + self._length[:, None, None] + offset

    def room(self, at: jax.Array) -> jax.Array:
        """bool[u]: whether a row has room for another call whose first place is `at`."""
        return at - self._joined < self._shape.ring - self._shape.spare

    def bias(self, offset: jax.Array, written: jax.Array, limit: int | None) -> tuple[jax.Array, jax.Array | None]:
        """float32[u, b, t, w] for a row's columns, and [1 or u, 1 or t, s] for the trunk's: 0 where a query sees one.

        Args:
          offset: int32[u, p, n] of the queries.
          written: int32[u, ring * n] of the ring's columns.
          limit: how far back is seen, or None.
        """
        s = self._shape
        (u, p, n), blocks = offset.shape, s.history_blocks + s.ring_blocks
        own = written.reshape(u, 1, 1, s.ring, n)
        seen = (self._sample == self._sample[:, None])[:, None] & (own >= 0) & (own <= offset[..., None, None])
        past = jnp.broadcast_to(self._past[:, None], (u, p * n, self._past.shape[1]))
        column = jnp.arange(s.trunk)
        shared = (column < self._before)[None, None]
        if limit is not None:
            now = self.position(offset).reshape(u, p * n, 1)
            seen &= offset[..., None, None] - own < limit
            past &= now - self._history_position < limit
            shared = shared & (now - column < limit)
        seen = jnp.concatenate([past, seen.reshape(u, p * n, -1)], axis=-1)
        bias = jnp.where(seen, 0.0, MASK_VALUE).reshape(u, p * n, blocks, s.width).transpose(0, 2, 1, 3)
        return bias, jnp.where(shared, 0.0, MASK_VALUE) if s.trunk else None

    def mark(self, written: jax.Array, offset: jax.Array, at: jax.Array) -> jax.Array:
        """`written` with offsets [u, p, n] in the places from `at` on."""
        column = at % self._shape.ring * self._shape.samples
        return jax.lax.dynamic_update_slice(written, offset.reshape(len(offset), -1), (jnp.int32(0), column))

    def put(
        self, cache: tuple[jax.Array, jax.Array], k: jax.Array, v: jax.Array, at: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The cache with the keys and values [u, t, k, h] of the places from `at` on."""
        keys, vals = cache
        u, t, kv, h = k.shape
        width, n = self._shape.width, self._shape.samples
        column = at % self._shape.ring * n
        zero, block, inside = jnp.int32(0), self._shape.history_blocks + column // width, column % width
        k, v = k.transpose(2, 0, 3, 1).reshape(kv * u, 1, h, t), v.transpose(2, 0, 1, 3).reshape(kv * u, t, h)
        keys = jax.lax.dynamic_update_slice(keys, k, (zero, block, zero, inside))
        vals = jax.lax.dynamic_update_slice(vals, v, (zero, block * width + inside, zero))
        return by_heads(keys, kv, 0), by_heads(vals, kv, 0)


def attend(
    q_utxh: jax.Array,
    keys: jax.Array,
    vals: jax.Array,
    trunk: tuple[jax.Array, jax.Array] | None,
    bias: jax.Array,
    trunk_bias: jax.Array | None,
) -> Part:
    """Attention of t queries a row over keys [k * u, b, h, w] and values [k * u, b * w, h], and over a trunk: [u, t, heads, h].

    Beside it stands the log-sum-exp of the scores, for what is read elsewhere (`histories`). Shapes are those of the caches: a
    reshape of what was just written would make XLA copy it.
    """
    u, t, heads, h = q_utxh.shape
    _, blocks, _, width = keys.shape
    kv = keys.shape[0] // u
    g = heads // kv
    q = (q_utxh * h**-0.5).reshape(u, t, kv, g, h).transpose(2, 0, 1, 3, 4)
    wide = jnp.broadcast_to(q.reshape(kv * u, 1, t * g, h), (kv * u, blocks, t * g, h))
    scores = jnp.matmul(wide, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(kv, u, blocks, t, g, width) + bias[:, :, :, None]
    high = scores.max((2, 5), keepdims=True)
    if trunk is not None and trunk_bias is not None:
        shared = jnp.matmul(q.reshape(kv, u * t * g, h), trunk[0], preferred_element_type=jnp.float32)
        shared = (shared.reshape(kv, u, t, g, -1) + trunk_bias[:, :, None]).reshape(kv, u, t * g, -1)
        high = jnp.maximum(high, shared.max(-1).reshape(kv, u, 1, t, g, 1))
        shared = jnp.exp(shared - high.reshape(kv, u, t * g, 1))
    scores = jnp.exp(scores - high)
    total = scores.sum((2, 5)).reshape(kv * u, t * g, 1)
    rows = scores.astype(vals.dtype).transpose(0, 1, 3, 4, 2, 5).reshape(kv * u, t * g, blocks * width)
    out = jnp.matmul(rows, vals)
    if trunk is not None and trunk_bias is not None:
        total += shared.sum(-1).reshape(total.shape)
        common = jnp.matmul(shared.astype(vals.dtype).reshape(kv, u * t * g, -1), trunk[1])
        out += common.reshape(out.shape)
    out = out / total
    lse = (high.reshape(kv, u, t, g) + jnp.log(total).reshape(kv, u, t, g)).transpose(1, 2, 0, 3).reshape(u, t, heads)
    return out.reshape(kv, u, t, g, h).transpose(1, 2, 0, 3, 4).reshape(u, t, heads, h).astype(q_utxh.dtype), lse
