"""The compiled work of the engine: read new tokens against cached ones, and continue them by sampling.

Letters: u rows (distinct histories), t new tokens of a row, s cached tokens of a row, c = s + t, n samples of a row,
m sampled tokens, k key/value heads, g query heads per key/value head, h head dim, d model, v vocabulary, p pool slots.
The pool holds, for every layer, keys and values of all cached tokens: a pair of [p, k * h] arrays.

Attention is written as plain batched matrix products over [u * k] with keys as [.., h, c] and values as [.., c, h]: XLA's CPU
backend runs these 2 to 7 times faster than the einsum with the axes where they happen to lie.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import Block, rms_norm
from agentrm_jax.models.transformer import Transformer

Pool = list[tuple[jax.Array, jax.Array]]
_BLOCK = 64  # vocabulary entries whose probabilities are summed first when sampling


class Weights(nnx.Pytree):
    """A transformer laid out for inference: layers one by one, so that no step slices a stack."""

    def __init__(self, model: Transformer, dtype: jnp.dtype):
        def cast(x: jax.Array) -> jax.Array:
            return x.astype(dtype)

        self.embed_vd = nnx.data(cast(model.embed_vd[...]))
        self.layers = nnx.data([jax.tree.map(cast, block) for block in model.unstacked()])
        self.final_norm_d = nnx.data(model.final_norm_d[...])
        self.head_dv = nnx.data(cast(model.head_dv[...]) if hasattr(model, "head_dv") else None)
        self.value_d = nnx.data(model.value_d[...] if hasattr(model, "value_d") else None)


def empty_pool(config: ModelConfig, slots: int, dtype: jnp.dtype) -> Pool:
    shape = (
        slots,
        config.num_kv_heads * config.head_dim,
    )  # one flat row a token: gathers of 2-d rows are memory copies
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)]


def extend(
    weights: Weights, config: ModelConfig, pool: Pool, batch: dict[str, jax.Array]
) -> tuple[jax.Array, Pool, list[tuple[jax.Array, jax.Array]]]:
    """Reads new tokens (a token tree a row) after cached prefixes.

    Args:
      batch: `tokens`, `positions`, `subtree_end` int32[u, t] as in `tree.FlatTree`; `context` int32[u, s] pool slots of the
        prefix, in order, and `context_length` int32[u]; `slots` int32[u, t] where the new tokens' keys and values go
        (an index past the pool drops them).

    Returns:
      Final hidden states [u, t, d], the pool with the new entries, and per layer keys [u * k, h, c] and values [u * k, c, h].
    """
    tokens, positions = batch["tokens"], batch["positions"]
    u, t = tokens.shape
    s = batch["context"].shape[1]
    kv, h = config.num_kv_heads, config.head_dim
    index = jnp.arange(t)
    new = (index[None, :] <= index[:, None])[None] & (index[None, :, None] < batch["subtree_end"][:, None, :])
    old = jnp.broadcast_to((jnp.arange(s)[None] < batch["context_length"][:, None])[:, None], (u, t, s))
    seen = jnp.concatenate([old, new], axis=2)
    key_position = jnp.concatenate([jnp.broadcast_to(jnp.arange(s), (u, s)), positions], axis=1)

    x = weights.embed_vd[tokens]
    caches: list[tuple[jax.Array, jax.Array]] = []
    out_pool: Pool = []
    for l, block in enumerate(weights.layers):
        pool_k, pool_v = pool[l]
        mask = seen
        if window := _window(config, l):
            mask = seen & (positions[:, :, None] - key_position[:, None, :] < window)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, pool_k=pool_k, pool_v=pool_v, mask=mask) -> jax.Array:
            keys = jnp.concatenate([_gather(pool_k, batch["context"], kv), k], axis=1)
            vals = jnp.concatenate([_gather(pool_v, batch["context"], kv), v], axis=1)
            keys = keys.transpose(0, 2, 3, 1).reshape(u * kv, h, s + t)
            vals = vals.transpose(0, 2, 1, 3).reshape(u * kv, s + t, h)
            caches.append((keys, vals))
            out_pool.append((_scatter(pool_k, batch["slots"], k), _scatter(pool_v, batch["slots"], v)))
            g = config.num_heads // kv
            q = (q * h**-0.5).reshape(u, t, kv, g, h).transpose(0, 2, 1, 3, 4).reshape(u * kv, t * g, h)
            scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32).reshape(u, kv, t, g, s + t)
            scores = jnp.where(mask[:, None, :, None], scores, -1e30)
            weights = jax.nn.softmax(scores, axis=-1).astype(vals.dtype).reshape(u * kv, t * g, s + t)
            out = (weights @ vals).reshape(u, kv, t, g, h)
            return out.transpose(0, 2, 1, 3, 4).reshape(u, t, config.num_heads, h)

        x = block(x, positions, attend, _rotates(config, l))
    return rms_norm(x, weights.final_norm_d, config.norm_eps), out_pool, caches


def score(weights: Weights, config: ModelConfig, pool: Pool, batch: dict[str, jax.Array]) -> tuple[jax.Array, Pool]:
    """Values [u, t] at every new token (zeros for a model without value head), and the pool with their keys and values."""
    hidden, pool, _ = extend(weights, config, pool, batch)
    if weights.value_d is None:
        return jnp.zeros(hidden.shape[:2], jnp.float32), pool
    return jnp.einsum("utd,d->ut", hidden.astype(jnp.float32), weights.value_d), pool


def generate(
    weights: Weights, config: ModelConfig, pool: Pool, batch: dict[str, jax.Array], *, max_new: int, end_id: int
) -> tuple[dict[str, jax.Array], Pool]:
    """Reads new tokens, then continues every row with n samples of up to `max_new` tokens.

    The shared history of a row is read once per step for all its samples; what a sample wrote itself is kept apart.

    Args:
      batch: as for `extend` (new tokens are paths, not trees), and `length` int32[u] new tokens of the row (>= 1),
        `temperature` float32[u] (0: greedy), `seeds` uint32[u, n], `new_slots` int32[u, n, m] pool slots for sampled tokens.

    Returns:
      `tokens` int32[u, n, m], `length` int32[u, n] (end-of-turn included), `logprob` float32[u, n] (sum at temperature 1),
      and the pool with the sampled tokens' keys and values (a sample's last token has none: it was never read).
    """
    hidden, pool, caches = extend(weights, config, pool, batch)
    u, n = batch["seeds"].shape
    k, h = config.num_kv_heads, config.head_dim
    s = batch["context"].shape[1]
    t = batch["tokens"].shape[1]
    last = jnp.take_along_axis(hidden, (batch["length"] - 1)[:, None, None], axis=1)  # [u, 1, d]
    slot = jnp.arange(s + t)[None]
    seen = jnp.where(slot < s, slot < batch["context_length"][:, None], slot - s < batch["length"][:, None])  # [u, c]
    base = batch["context_length"] + batch["length"]
    slot_position = jnp.where(slot < s, slot, batch["context_length"][:, None] + slot - s)
    own_dtype = caches[0][0].dtype
    own = [(jnp.zeros((max_new, u, n, k, h), own_dtype), jnp.zeros((max_new, u, n, k, h), own_dtype)) for _ in caches]

    def pick(hidden_und: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = _logits(weights, config, hidden_und).reshape(u * n, -1)
        temperature = jnp.repeat(batch["temperature"], n)
        token, logprob = sample(scores, temperature, batch["seeds"].reshape(-1), step)
        return token.reshape(u, n), logprob.reshape(u, n)

    token, logprob = pick(jnp.broadcast_to(last, (u, n, last.shape[-1])), jnp.int32(0))
    out = jnp.zeros((max_new, u, n), jnp.int32).at[0].set(token)
    done = token == end_id
    start = (jnp.int32(1), token, out, jnp.ones((u, n), jnp.int32), logprob, done, own)

    def more(state: Any) -> jax.Array:
        step, *_, done, _ = state
        return (step < max_new) & ~jnp.all(done)

    def body(state: Any) -> Any:
        step, token, out, length, total, done, own = state
        at = step - 1  # index of `token` among the sampled ones
        positions = jnp.broadcast_to((base + at)[:, None], (u, n))
        x = weights.embed_vd[token]
        fresh = []
        for l, block in enumerate(weights.layers):
            x, cache = _decode_layer(block, config, l, x, positions, caches[l], (seen, slot_position), own[l], at)
            fresh.append(cache)
        hidden_und = rms_norm(x, weights.final_norm_d, config.norm_eps)
        new, logprob = pick(hidden_und, step)
        new = jnp.where(done, end_id, new)
        out = out.at[step].set(new)
        length = jnp.where(done, length, length + 1)
        total = jnp.where(done, total, total + logprob)
        return step + 1, new, out, length, total, done | (new == end_id), fresh

    _, _, out, length, total, _, own = jax.lax.while_loop(more, body, start)
    new_slots = batch["new_slots"].transpose(2, 0, 1)
    pool = [(_scatter(a, new_slots, x), _scatter(b, new_slots, y)) for (a, b), (x, y) in zip(pool, own, strict=True)]
    return {"tokens": out.transpose(1, 2, 0), "length": length, "logprob": total}, pool


def _decode_layer(
    block: Block,
    config: ModelConfig,
    l: int,
    x_und: jax.Array,
    positions_un: jax.Array,
    shared: tuple[jax.Array, jax.Array],
    shared_mask: tuple[jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array],
    at: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer of one decoding step; returns its output and the samples' own cache with this token written at `at`."""
    u, n, _ = x_und.shape
    shared_k, shared_v = shared
    seen, slot_position = shared_mask
    max_new = own[0].shape[0]
    written: list[tuple[jax.Array, jax.Array]] = []

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        own_k = jax.lax.dynamic_update_index_in_dim(own[0], k, at, 0)
        own_v = jax.lax.dynamic_update_index_in_dim(own[1], v, at, 0)
        written.append((own_k, own_v))
        kv, h = config.num_kv_heads, config.head_dim
        g, c = config.num_heads // kv, shared_k.shape[-1]
        q = (q * h**-0.5).reshape(u, n, kv, g, h)
        mask, own_mask = seen[:, None], (jnp.arange(max_new) <= at)[None, None]
        if window := _window(config, l):
            mask = mask & (positions_un[:, :, None] - slot_position[:, None] < window)
            own_mask = own_mask & (at - jnp.arange(max_new) < window)[None, None]
        rows = q.transpose(0, 2, 1, 3, 4).reshape(u * kv, n * g, h)
        past = jnp.matmul(rows, shared_k, preferred_element_type=jnp.float32).reshape(u, kv, n, g, c)
        past = jnp.where(mask[:, None, :, None], past, -1e30)
        mine = jnp.einsum("unkgh,munkh->unkgm", q, own_k, preferred_element_type=jnp.float32)
        mine = jnp.where(own_mask[:, :, None, None], mine, -1e30).transpose(0, 2, 1, 3, 4)
        high = jnp.maximum(past.max(-1), mine.max(-1))[..., None]
        past, mine = jnp.exp(past - high), jnp.exp(mine - high)
        total = past.sum(-1) + mine.sum(-1)
        out = (past.astype(shared_v.dtype).reshape(u * kv, n * g, c) @ shared_v).reshape(u, kv, n, g, h)
        out = out.transpose(0, 2, 1, 3, 4)
        out += jnp.einsum("unkgm,munkh->unkgh", mine.transpose(0, 2, 1, 3, 4).astype(own_v.dtype), own_v)
        out = out / total.transpose(0, 2, 1, 3)[..., None]
        return out.reshape(u, n, config.num_heads, h).astype(x_und.dtype)

    x = block(x_und, positions_un, attend, _rotates(config, l))
    return x, written[0]


def sample(
    logits_rv: jax.Array, temperature_r: jax.Array, seeds_r: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row, and its log-probability at temperature 1.

    Inverse transform of one uniform number that depends on the row's seed and the step alone: first a block of the
    vocabulary, then a token in it. Temperature 0 takes the highest logit (lowest index on ties).
    """
    r, v = logits_rv.shape
    best = jnp.argmax(logits_rv, axis=-1)
    high = jnp.max(logits_rv, axis=-1, keepdims=True)
    norm = jnp.log(jnp.sum(jnp.exp(logits_rv - high), axis=-1)) + high[:, 0]
    greedy = temperature_r <= 0
    scaled = (logits_rv - high) / jnp.where(greedy, 1.0, temperature_r)[:, None]
    mass = jnp.pad(jnp.exp(scaled), ((0, 0), (0, -v % _BLOCK))).reshape(r, -1, _BLOCK)
    uniform = jax.vmap(lambda seed: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step)))(seeds_r)
    blocks = mass.sum(-1)
    before = _running_sum(blocks)
    target = uniform * before[:, -1]
    block = jnp.argmax(before > target[:, None], axis=-1)
    inside = jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0]
    offset = jnp.take_along_axis(before - blocks, block[:, None], axis=1)
    crossed = offset + _running_sum(inside) > target[:, None]
    crossed &= inside > 0
    drawn = block * _BLOCK + jnp.argmax(crossed, axis=-1)
    token = jnp.where(greedy | ~crossed.any(-1), best, drawn).astype(jnp.int32)
    return token, jnp.take_along_axis(logits_rv, token[:, None], axis=1)[:, 0] - norm


def _running_sum(x_ri: jax.Array) -> jax.Array:
    """Cumulative sum along the last axis as a product with a triangle: fast on every platform for a few hundred entries."""
    size = x_ri.shape[-1]
    return x_ri @ jnp.triu(jnp.ones((size, size), x_ri.dtype))


def _logits(weights: Weights, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    if config.tie_embeddings:
        return jnp.einsum("...d,vd->...v", hidden, weights.embed_vd, preferred_element_type=jnp.float32)
    return jnp.einsum("...d,dv->...v", hidden, weights.head_dv, preferred_element_type=jnp.float32)


def _gather(pool: jax.Array, slots_us: jax.Array, kv: int) -> jax.Array:
    """[u, s, k, h]: keys or values of cached tokens."""
    u, s = slots_us.shape
    return pool.at[slots_us.reshape(-1)].get(mode="clip").reshape(u, s, kv, -1)


def _scatter(pool: jax.Array, slots: jax.Array, new: jax.Array) -> jax.Array:
    """The pool with new keys or values [*slots.shape, k, h] written; slots past the end are dropped."""
    return pool.at[slots.reshape(-1)].set(new.reshape(-1, pool.shape[1]), mode="drop")


def _window(config: ModelConfig, l: int) -> int | None:
    return config.sliding_window if not config.window_layers or config.window_layers[l] else None


def _rotates(config: ModelConfig, l: int) -> bool:
    return not config.rope_layers or config.rope_layers[l]
