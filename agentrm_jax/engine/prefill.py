"""Prefill: new tokens of many histories, as trees, read against what is cached of each.

Letters: u tiles, w tokens of a tile, r new and s cached tokens of a history, k key/value heads, g query heads per key/value head,
h head dim, d model. Where heads and tiles share an axis it is [k * u], heads first: on a mesh each device holds whole heads.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.memory import MASK_VALUE, Entries, Weights, embed, gather, rotates, token_logprobs, window
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import rms_norm

Array = jax.Array | np.ndarray


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

    A log-probability means nothing where the token before was not in the batch.
    """

    value: Array
    logprob: Array | None


def prefill(
    weights: Weights, config: ModelConfig, pool: Entries, batch: PrefillBatch, *, logprobs: bool
) -> tuple[TokenFacts, Entries]:
    """Reads a batch; its tokens' keys and values are [u, w, k * h] a layer. Log-probabilities cost the vocabulary map, so
    they are computed only if asked for.
    """
    (u, w), s, r = batch.tokens.shape, batch.context.shape[1], batch.subtree_end.shape[1]
    kv, h, g = config.num_kv_heads, config.head_dim, config.num_heads // config.num_kv_heads
    query = jnp.asarray(batch.query)[:, :, None]
    positions, context = jnp.asarray(batch.positions), jnp.asarray(batch.context)
    new = (jnp.arange(r) <= query) & (query < jnp.asarray(batch.subtree_end)[:, None])
    old = jnp.broadcast_to((jnp.arange(s)[None] < batch.context_length[:, None])[:, None], (u, w, s))
    seen = jnp.concatenate([old, new], axis=2)
    key_position = jnp.concatenate([jnp.broadcast_to(jnp.arange(s), (u, s)), positions.reshape(-1)[batch.new]], axis=1)

    x = embed(weights, jnp.asarray(batch.tokens))
    entries: Entries = []
    for l, block in enumerate(weights.layers):
        mask = seen
        if limit := window(config, l):
            mask = seen & (positions[:, :, None] - key_position[:, None, :] < limit)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, l=l, mask=mask) -> jax.Array:
            k, v = jax.lax.optimization_barrier((k, v))  # or the rotation would be computed again for every use
            entries.append((k.reshape(u, w, -1), v.reshape(u, w, -1)))
            both = [
                jnp.concatenate(
                    [gather(cached, context, kv), gather(x.reshape(u * w, -1), jnp.asarray(batch.new), kv)], 1
                )
                for cached, x in zip(pool[l], (k, v), strict=True)
            ]
            keys = both[0].transpose(2, 0, 3, 1).reshape(kv * u, h, s + r)
            vals = both[1].transpose(2, 0, 1, 3).reshape(kv * u, s + r, h)
            q = (q * h**-0.5).reshape(u, w, kv, g, h).transpose(2, 0, 1, 3, 4).reshape(kv * u, w * g, h)
            scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32).reshape(kv, u, w, g, s + r)
            scores = jnp.where(mask[:, :, None], scores, MASK_VALUE)
            shares = jax.nn.softmax(scores, axis=-1).astype(vals.dtype).reshape(kv * u, w * g, s + r)
            out = (shares @ vals).reshape(kv, u, w, g, h)
            return out.transpose(1, 2, 0, 3, 4).reshape(u, w, config.num_heads, h)

        x = block(x, positions, attend, rotates(config, l))
    hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
    value = jnp.zeros((u, w), jnp.float32)
    if weights.value_d is not None:
        value = jnp.einsum("uwd,d->uw", hidden.astype(jnp.float32), weights.value_d)
    logprob = None
    if logprobs:
        before = hidden.reshape(u * w, -1)[jnp.maximum(batch.previous, 0).reshape(-1)]
        logprob = token_logprobs(weights, config, before, jnp.asarray(batch.tokens).reshape(-1)).reshape(u, w)
    return TokenFacts(value, logprob), entries
