"""Prefill: new tokens of many histories, as trees, read against what is cached of each.

New tokens are attended to at once, cached ones block by block, so that the program is the same however long histories are and
costs what the longest of a batch costs.

Letters: u tiles, w tokens of a tile, r new and s cached tokens of a history, k key/value heads, g query heads per key/value head,
h head dim, d model. Where heads and tiles share an axis it is [k * u], heads first: on a mesh each device holds whole heads.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.histories import InPlace
from agentrm_jax.engine.memory import MASK_VALUE, Entries, Weights, embed, gather, token_logprobs, window
from agentrm_jax.engine.paged import join
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import Block, rms_norm
from agentrm_jax.models.rope import Rotation, rotation
from agentrm_jax.models.transformer import finished_values

Array = jax.Array | np.ndarray
BLOCK = 256  # cached tokens that are attended to at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefillBatch:
    """New tokens in u tiles of w; a history's new tokens (a token tree) fill as many tiles as they need.

    Attributes:
      tokens, positions: int32[u, w].
      query: int32[u, w], a token's index among its history's new tokens; -1 for padding.
      previous: int32[u, w], where among all u * w the token before lies on its path; -1 if it is not in this batch.
      context, context_length: int32[u, s] pool slots of each tile's history, int32[u].
      new: int32[u, r], where among all u * w the new tokens of each tile's history are.
      subtree_end: int32[u, r] of these.
    """

    tokens: Array
    positions: Array
    query: Array
    previous: Array
    context: Array
    context_length: Array
    new: Array
    subtree_end: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenFacts:
    """float32[u, w] of every token: the value head's output (0 without one), and log p given the path before it (or None).

    The outputs of several value heads are [u, w, e].
    A log-probability means nothing where the token before was not in the batch.
    """

    value: Array
    logprob: Array | None


def prefill(
    weights: Weights, config: ModelConfig, pool: Entries, batch: PrefillBatch, *, logprobs: bool, in_place: str = ""
) -> tuple[TokenFacts, Entries]:
    """Reads a batch; its tokens' keys and values are [u, w, k * h] a layer.

    Args:
      logprobs: whether log-probabilities are computed, which costs the vocabulary map.
      in_place: the kernel that reads histories where they lie in the pool (see `histories`); empty to copy them for every layer.
    """
    (u, w), r = batch.tokens.shape, batch.subtree_end.shape[1]
    histories = None
    if in_place:
        histories = InPlace(in_place, jnp.asarray(batch.context), jnp.asarray(batch.context_length))
    kv, h, g = config.num_kv_heads, config.head_dim, config.num_heads // config.num_kv_heads
    positions, index = jnp.asarray(batch.positions), jnp.asarray(batch.new)
    query = jnp.asarray(batch.query)[:, :, None]
    seen = (jnp.arange(r) <= query) & (query < jnp.asarray(batch.subtree_end)[:, None])
    back = positions[:, :, None] - positions.reshape(-1)[index][:, None, :]

    x = embed(weights, jnp.asarray(batch.tokens))
    entries: Entries = []

    @functools.partial(jax.jit, static_argnums=0)  # so that it is traced once, not for every layer
    def layer(limit: int | None, turned: Rotation | None, block: Block, x: jax.Array, cached: Any) -> Any:
        entry: Any = None

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal entry
            k, v = jax.lax.optimization_barrier((k, v))  # or the rotation would be computed again for every use
            entry = k.reshape(u, w, -1), v.reshape(u, w, -1)
            keys, vals = (gather(x.reshape(u * w, -1), index, kv) for x in (k, v))
            q_kuqh = (q * h**-0.5).reshape(u, w, kv, g, h).transpose(2, 0, 1, 3, 4).reshape(kv * u, w * g, h)
            part = _attend(q_kuqh, keys, vals, seen if limit is None else seen & (back < limit))
            if histories is None:
                part = _attend_to_history(part, q_kuqh, cached, batch, limit)
            out, lse = (x.reshape(kv, u, w, g, -1).transpose(1, 2, 0, 3, 4) for x in part.finished())
            out = out.reshape(u, w, config.num_heads, h)
            if histories is not None:
                parts = histories.attend(q, cached, positions, limit)
                out = join([*parts, (out, lse.reshape(u, w, config.num_heads))])
            return out.astype(q.dtype)

        return block(x, positions, attend, turned), entry

    for l, block in enumerate(weights.layers):
        x, entry = layer(window(config, l), rotation(config, l), block, x, pool[l])
        entries.append(entry)
    hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
    value = jnp.zeros((u, w), jnp.float32)
    if weights.value_d is not None:
        raw = jnp.einsum("uwd,d...->uw...", hidden.astype(jnp.float32), weights.value_d)
        value = finished_values(config, raw)
    logprob = None
    if logprobs:
        before = hidden.reshape(u * w, -1)[jnp.maximum(batch.previous, 0).reshape(-1)]
        logprob = token_logprobs(weights, config, before, jnp.asarray(batch.tokens).reshape(-1)).reshape(u, w)
    return TokenFacts(value, logprob), entries


class _Part(NamedTuple):
    """Attention to some of the keys: the highest score [k * u, q, 1], and relative to it the sum of weights and of values."""

    high: jax.Array
    total: jax.Array
    sums: jax.Array

    def __add__(self, other: "_Part") -> "_Part":  # type: ignore[override]
        """Attention to the keys of both, by log-sum-exp."""
        high = jnp.maximum(self.high, other.high)
        a, b = jnp.exp(self.high - high), jnp.exp(other.high - high)
        return _Part(high, a * self.total + b * other.total, a * self.sums + b * other.sums)

    def finished(self) -> tuple[jax.Array, jax.Array]:
        """Attention [k * u, q, h] and the log-sum-exp of the scores [k * u, q, 1]."""
        return self.sums / self.total, self.high + jnp.log(self.total)


def _attend(q: jax.Array, keys_uskh: jax.Array, vals_uskh: jax.Array, seen_uws: jax.Array) -> _Part:
    """Attention of the queries [k * u, w * g, h] of tiles to keys of their own."""
    u, s, kv, h = keys_uskh.shape
    keys, vals = keys_uskh.transpose(2, 0, 3, 1).reshape(-1, h, s), vals_uskh.transpose(2, 0, 1, 3).reshape(-1, s, h)
    scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32).reshape(kv, u, seen_uws.shape[1], -1, s)
    scores = jnp.where(seen_uws[:, :, None], scores, MASK_VALUE).reshape(*q.shape[:2], s)
    high = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - high)
    sums = jnp.matmul(weights.astype(vals.dtype), vals, preferred_element_type=jnp.float32)
    return _Part(high, weights.sum(-1, keepdims=True), sums)


def _attend_to_history(
    part: _Part, q: jax.Array, pool: tuple[jax.Array, jax.Array], batch: PrefillBatch, limit: int | None
) -> _Part:
    """`part` and attention to what is cached, block by block as far as the longest history goes: cost follows lengths."""
    kv = q.shape[0] // len(batch.context)
    size = min(BLOCK, batch.context.shape[1])
    context = jnp.pad(jnp.asarray(batch.context), ((0, 0), (0, -batch.context.shape[1] % size)))
    length, positions = jnp.asarray(batch.context_length)[:, None, None], jnp.asarray(batch.positions)[:, :, None]
    begin = jnp.int32(0)
    if limit is not None:
        first = jnp.where(batch.query >= 0, batch.positions, length.max()).min()
        begin = jnp.maximum(first - limit + 1, 0) // size

    def add(block: jax.Array, part: _Part) -> _Part:
        slots = jax.lax.dynamic_slice_in_dim(context, block * size, size, axis=1)
        column = block * size + jnp.arange(size)
        seen = jnp.broadcast_to(column < length, (*positions.shape[:2], size))
        if limit is not None:
            seen &= positions - column < limit
        keys, vals = (gather(x, slots, kv) for x in pool)
        return part + _attend(q, keys, vals, seen)

    return jax.lax.fori_loop(begin, -(-length.max() // size), add, part)
