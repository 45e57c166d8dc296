"""The compiled work of the engine: read new tokens against cached ones, and continue histories by sampling.

Letters: u rows (histories, or tiles of new tokens), w tokens of a tile, r new and s cached tokens of a history, n samples of a
row, m sampled tokens, k key/value heads, g query heads per key/value head, h head dim, d model, v vocabulary; in decoding c
columns of the cache, cut into b blocks of w columns.
Where heads and rows share an axis it is [k * u], heads first: on a mesh each device holds whole heads (`_by_heads`).
The pool holds, for every layer, keys and values of all cached tokens: a pair of [slots, k * h] arrays. It is written by a
program of its own (`write`): a program that also read it would be compiled with a copy of the whole pool.

Attention is written as plain batched matrix products. While decoding, keys lie in blocks of about 64 columns, [b, h, w]: XLA's
CPU backend multiplies a few rows by such blocks twice as fast as by one wide matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import rms_norm
from agentrm_jax.models.transformer import Transformer

Entries = list[tuple[jax.Array, jax.Array]]  # keys and values of every layer
State = dict[str, Any]
_BLOCK = 64  # columns of a key block, and vocabulary entries that are summed first when sampling
_HIDDEN = -1e30


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


def empty_pool(config: ModelConfig, slots: int, dtype: jnp.dtype) -> Entries:
    """Room for `slots` tokens; one flat row a token, so that gathers of rows are memory copies."""
    shape = (slots, config.num_kv_heads * config.head_dim)
    kv = config.num_kv_heads
    return [
        (_by_heads(jnp.zeros(shape, dtype), kv, 1), _by_heads(jnp.zeros(shape, dtype), kv, 1))
        for _ in range(config.num_layers)
    ]


def write(pool: Entries, slots: jax.Array, entries: Entries) -> Entries:
    """The pool with `entries` ([*slots.shape, k * h] a layer) at `slots`; slots past the end are dropped. Donate the pool."""
    at = slots.reshape(-1)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[at].set(new.reshape(-1, old.shape[1]), mode="drop")

    return [(put(a, x), put(b, y)) for (a, b), (x, y) in zip(pool, entries, strict=True)]


def read(
    weights: Weights, config: ModelConfig, pool: Entries, batch: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], Entries]:
    """Reads new tokens after cached histories. They come in u tiles of w tokens; a history's new tokens (a token tree) fill as
    many tiles as they need, so that little is padding.

    Args:
      batch: `tokens`, `positions` int32[u, w]; `query` int32[u, w] a token's index among its history's new tokens, -1 for
        padding; of each tile's history `context` int32[u, s] pool slots and `context_length` int32[u], `new` int32[u, r]
        where among all u * w its new tokens are, and their `subtree_end` int32[u, r]; `last` int32[u] any u of the u * w.

    Returns:
      `hidden` [u, d], the final hidden states at `last`, and `value` float32[u, w] (zeros for a model without value head); and
      the new tokens' keys and values, [u, w, k * h] a layer.
    """
    tokens, positions, query, end = (batch[k] for k in ("tokens", "positions", "query", "subtree_end"))
    (u, w), s, r = tokens.shape, batch["context"].shape[1], end.shape[1]
    kv, h, g = config.num_kv_heads, config.head_dim, config.num_heads // config.num_kv_heads
    new = (jnp.arange(r) <= query[:, :, None]) & (query[:, :, None] < end[:, None])
    old = jnp.broadcast_to((jnp.arange(s)[None] < batch["context_length"][:, None])[:, None], (u, w, s))
    seen = jnp.concatenate([old, new], axis=2)
    key_position = jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(s), (u, s)), positions.reshape(-1)[batch["new"]]], axis=1
    )

    x = weights.embed_vd[tokens]
    entries: Entries = []
    for l, block in enumerate(weights.layers):
        mask = seen
        if window := _window(config, l):
            mask = seen & (positions[:, :, None] - key_position[:, None, :] < window)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, l=l, mask=mask) -> jax.Array:
            k, v = jax.lax.optimization_barrier((k, v))  # or the rotation would be computed again for every use
            entries.append((k.reshape(u, w, -1), v.reshape(u, w, -1)))
            both = [
                jnp.concatenate(
                    [_gather(cached, batch["context"], kv), _gather(x.reshape(u * w, -1), batch["new"], kv)], 1
                )
                for cached, x in zip(pool[l], (k, v), strict=True)
            ]
            keys = both[0].transpose(2, 0, 3, 1).reshape(kv * u, h, s + r)
            vals = both[1].transpose(2, 0, 1, 3).reshape(kv * u, s + r, h)
            q = (q * h**-0.5).reshape(u, w, kv, g, h).transpose(2, 0, 1, 3, 4).reshape(kv * u, w * g, h)
            scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32).reshape(kv, u, w, g, s + r)
            scores = jnp.where(mask[:, :, None], scores, _HIDDEN)
            seen_weights = jax.nn.softmax(scores, axis=-1).astype(vals.dtype).reshape(kv * u, w * g, s + r)
            out = (seen_weights @ vals).reshape(kv, u, w, g, h)
            return out.transpose(1, 2, 0, 3, 4).reshape(u, w, config.num_heads, h)

        x = block(x, positions, attend, _rotates(config, l))
    hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
    value = jnp.zeros((u, w), jnp.float32)
    if weights.value_d is not None:
        value = jnp.einsum("uwd,d->uw", hidden.astype(jnp.float32), weights.value_d)
    return {"hidden": hidden.reshape(u * w, -1)[batch["last"]], "value": value}, entries


def start(
    weights: Weights, config: ModelConfig, pool: Entries, batch: dict[str, jax.Array], *, max_new: int, end_id: int
) -> State:
    """Collects the caches of histories and samples the first token of every continuation.

    A row's samples are siblings in a token tree: they share the columns of their history, and each token they write is one
    more column that only its own sample sees.

    Args:
      batch: `context` int32[u, s] slots of the history, `context_length` int32[u], `hidden` [u, d] at its last token,
        `temperature` float32[u] (0: greedy), `seeds` uint32[u, n], `wanted` bool[u, n] (others are not continued).

    Returns:
      The state of `decode`: its `tokens` int32[m, u, n], `length` int32[u, n] (end-of-turn included), `logprob` float32[u, n]
      (sum at temperature 1) and `done` bool[u, n] are results.
    """
    u, n = batch["seeds"].shape
    kv, h = config.num_kv_heads, config.head_dim
    s = batch["context"].shape[1]
    width = _width(n)
    blocks = -(-s // width) + -(-max_new // (width // n))
    pad = blocks * width - s

    def collect(pool_k: jax.Array, pool_v: jax.Array) -> tuple[jax.Array, jax.Array]:
        k, v = (jnp.pad(_gather(a, batch["context"], kv), ((0, 0), (0, pad), (0, 0), (0, 0))) for a in (pool_k, pool_v))
        keys = k.reshape(u, blocks, width, kv, h).transpose(3, 0, 1, 4, 2).reshape(kv * u, blocks, h, width)
        vals = v.transpose(2, 0, 1, 3).reshape(kv * u, blocks * width, h)
        return _by_heads(keys, kv, 0), _by_heads(vals, kv, 0)

    hidden = jnp.broadcast_to(batch["hidden"][:, None], (u, n, batch["hidden"].shape[-1]))
    token, logprob = _pick(weights, config, hidden, batch["temperature"], batch["seeds"], jnp.int32(0))
    return {
        "caches": [collect(*layer) for layer in pool],
        "step": jnp.int32(1),
        "token": token,
        "tokens": jnp.zeros((max_new, u, n), jnp.int32).at[0].set(token),
        "length": jnp.ones((u, n), jnp.int32),
        "logprob": logprob,
        "done": (token == end_id) | ~batch["wanted"],
        "context_length": batch["context_length"],
        "temperature": batch["temperature"],
        "seeds": batch["seeds"],
    }


def decode(
    weights: Weights, config: ModelConfig, state: State, until: jax.Array, *, columns: int, end_id: int
) -> State:
    """Continues all samples up to `until` tokens, or until all are done. Donate the state.

    `columns` is the s that `start` was given.
    """
    u, n = state["seeds"].shape
    fixed = {k: state[k] for k in ("context_length", "temperature", "seeds")}
    layout = _Columns(state["caches"][0][0].shape[1], n, columns, state["context_length"])

    def more(state: State) -> jax.Array:
        return (state["step"] < until) & ~jnp.all(state["done"])

    def body(state: State) -> State:
        at = state["step"] - 1  # index of `token` among the sampled ones
        positions = jnp.broadcast_to((fixed["context_length"] + at)[:, None], (u, n))
        biases = {w: layout.bias(at, w) for w in {_window(config, l) for l in range(config.num_layers)}}
        x = weights.embed_vd[state["token"]]
        caches = []
        for l, block in enumerate(weights.layers):

            def attend(q: jax.Array, k: jax.Array, v: jax.Array, l=l) -> jax.Array:
                cache = layout.put(state["caches"][l], k, v, at)
                caches.append(cache)
                return _attend_blocks(q, *cache, biases[_window(config, l)])

            x = block(x, positions, attend, _rotates(config, l))
        hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
        token, logprob = _pick(weights, config, hidden, fixed["temperature"], fixed["seeds"], state["step"])
        done = state["done"]
        token = jnp.where(done, end_id, token)
        return {
            "caches": caches,
            "step": state["step"] + 1,
            "token": token,
            "tokens": state["tokens"].at[state["step"]].set(token),
            "length": jnp.where(done, state["length"], state["length"] + 1),
            "logprob": jnp.where(done, state["logprob"], state["logprob"] + logprob),
            "done": done | (token == end_id),
        }

    changing = {k: v for k, v in state.items() if k not in fixed}
    return jax.lax.while_loop(more, body, changing) | fixed


def keep_rows(state: State, rows: jax.Array) -> State:
    """The state of some rows only: int32[fewer] indices."""
    by_row = ("context_length", "temperature", "seeds", "token", "length", "logprob", "done")
    u = len(state["length"])

    def take(x: jax.Array) -> jax.Array:
        kv = x.shape[0] // u
        return _by_heads(x.reshape(kv, u, *x.shape[1:])[:, rows].reshape(-1, *x.shape[1:]), kv, 0)

    out = {k: state[k][rows] for k in by_row}
    return out | {
        "caches": jax.tree.map(take, state["caches"]),
        "step": state["step"],
        "tokens": state["tokens"][:, rows],
    }


def sampled_entries(config: ModelConfig, state: State, *, columns: int) -> Entries:
    """Keys and values of the sampled tokens: [u, n, m, k * h] a layer (a sample's last token has none: it was never read)."""
    u, n = state["seeds"].shape
    max_new = state["tokens"].shape[0]
    kv, h, width = config.num_kv_heads, config.head_dim, _width(n)
    first = -(-columns // width)

    def own(keys: jax.Array, vals: jax.Array) -> tuple[jax.Array, jax.Array]:
        k = keys[:, first:].reshape(kv, u, -1, h, width).transpose(1, 2, 4, 0, 3).reshape(u, -1, n, kv * h)
        v = vals[:, first * width :].reshape(kv, u, -1, h).transpose(1, 2, 0, 3).reshape(u, -1, n, kv * h)
        return k.transpose(0, 2, 1, 3)[:, :, :max_new], v.transpose(0, 2, 1, 3)[:, :, :max_new]

    return [own(*cache) for cache in state["caches"]]


def store(config: ModelConfig, pool: Entries, slots: jax.Array, state: State, *, columns: int) -> Entries:
    """The pool with the sampled tokens' keys and values at `slots` int32[u, n, m]. Donate the pool."""
    return write(pool, slots, sampled_entries(config, state, columns=columns))


class _Columns:
    """What lies in which column of a decoding cache: the history first, then n columns a step, one for each sample."""

    def __init__(self, blocks: int, n: int, columns: int, context_length: jax.Array):
        u, width = len(context_length), _width(n)
        self._shape = (u, blocks, n, width)
        self._n, self._width, self._first = n, width, -(-columns // width)
        index = jnp.arange(blocks * width)
        own = index - self._first * width
        self._step = jnp.where(own >= 0, own // n, -1)  # of sampled tokens
        self._owner = own % n
        self._length = context_length
        past = jnp.broadcast_to(index, (u, blocks * width))
        self._position = jnp.where(own >= 0, context_length[:, None] + self._step, past)
        self._past = (own < 0) & (past < context_length[:, None])

    def bias(self, at: jax.Array, window: int | None) -> jax.Array:
        """float32[u, b, n, w]: 0 where a sample sees a column after `at` earlier tokens of its own, else very negative."""
        u, blocks, n, width = self._shape
        mine = (self._owner == jnp.arange(n)[:, None]) & (self._step >= 0) & (self._step <= at)
        seen = self._past[:, None] | mine[None]
        if window is not None:
            seen &= ((self._length + at)[:, None] - self._position < window)[:, None]
        return jnp.where(seen, 0.0, _HIDDEN).reshape(u, n, blocks, width).transpose(0, 2, 1, 3)

    def put(
        self, cache: tuple[jax.Array, jax.Array], k: jax.Array, v: jax.Array, at: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The cache with the keys and values [u, n, k, h] of every sample's token `at`."""
        keys, vals = cache
        u, n, kv, h = k.shape
        steps = self._width // n
        zero, block, inside = jnp.int32(0), self._first + at // steps, at % steps * n
        k, v = k.transpose(2, 0, 3, 1).reshape(kv * u, 1, h, n), v.transpose(2, 0, 1, 3).reshape(kv * u, n, h)
        keys = jax.lax.dynamic_update_slice(keys, k, (zero, block, zero, inside))
        vals = jax.lax.dynamic_update_slice(vals, v, (zero, block * self._width + inside, zero))
        return _by_heads(keys, kv, 0), _by_heads(vals, kv, 0)


def _width(n: int) -> int:
    """Columns of a key block: whole steps of n samples."""
    return n * max(_BLOCK // n, 1)


def _attend_blocks(q_unxh: jax.Array, keys: jax.Array, vals: jax.Array, bias: jax.Array) -> jax.Array:
    """Attention of n samples a row over keys [k * u, b, h, w] and values [k * u, b * w, h]: [u, n, heads, h].

    Shapes are those of the caches: a reshape of what was just written would make XLA copy it.
    """
    u, n, heads, h = q_unxh.shape
    _, blocks, _, width = keys.shape
    kv = keys.shape[0] // u
    g = heads // kv
    q = (q_unxh * h**-0.5).reshape(u, n, kv, g, h).transpose(2, 0, 1, 3, 4).reshape(kv * u, 1, n * g, h)
    q = jnp.broadcast_to(q, (kv * u, blocks, n * g, h))
    scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(kv, u, blocks, n, g, width) + bias[:, :, :, None]
    scores = jnp.exp(scores - scores.max((2, 5), keepdims=True))
    total = scores.sum((2, 5)).reshape(kv * u, n * g, 1)
    rows = scores.astype(vals.dtype).transpose(0, 1, 3, 4, 2, 5).reshape(kv * u, n * g, blocks * width)
    out = jnp.matmul(rows, vals) / total
    return out.reshape(kv, u, n, g, h).transpose(1, 2, 0, 3, 4).reshape(u, n, heads, h).astype(q_unxh.dtype)


def _pick(
    weights: Weights,
    config: ModelConfig,
    hidden_und: jax.Array,
    temperature_u: jax.Array,
    seeds_un: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    u, n = seeds_un.shape
    scores = _logits(weights, config, hidden_und).reshape(u * n, -1)
    token, logprob = sample(scores, jnp.repeat(temperature_u, n), seeds_un.reshape(-1), step)
    return token.reshape(u, n), logprob.reshape(u, n)


def sample(
    logits_rv: jax.Array, temperature_r: jax.Array, seeds_r: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row, and its log-probability at temperature 1.

    Inverse transform of one uniform number that depends on the row's seed and the step alone: first a block of the
    vocabulary, then a token in it. Temperature 0 takes the highest logit (lowest index on ties).
    """
    r, v = logits_rv.shape
    cut = jnp.pad(logits_rv, ((0, 0), (0, -v % _BLOCK)), constant_values=-jnp.inf).reshape(r, -1, _BLOCK)
    highs = cut.max(-1)
    high = highs.max(-1, keepdims=True)
    norm = jnp.log(jnp.sum(jnp.exp(logits_rv - high), axis=-1)) + high[:, 0]
    best_block = jnp.argmax(highs == high, axis=-1)
    best = best_block * _BLOCK + jnp.argmax(_row_block(cut, best_block) == high, axis=-1)

    greedy = temperature_r <= 0
    mass = jnp.exp((cut - high[..., None]) / jnp.where(greedy, 1.0, temperature_r)[:, None, None])
    uniform = jax.vmap(lambda seed: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step)))(seeds_r)
    blocks = mass.sum(-1)
    before = _running_sum(blocks)
    target = uniform[:, None] * before[:, -1:]
    block = jnp.argmax(before > target, axis=-1)
    inside = _row_block(mass, block)
    offset = jnp.take_along_axis(before - blocks, block[:, None], axis=1)
    crossed = (offset + _running_sum(inside) > target) & (inside > 0)
    drawn = block * _BLOCK + jnp.argmax(crossed, axis=-1)
    token = jnp.where(greedy | ~crossed.any(-1), best, drawn).astype(jnp.int32)
    return token, jnp.take_along_axis(logits_rv, token[:, None], axis=1)[:, 0] - norm


def _row_block(x_rbi: jax.Array, block_r: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_rbi, block_r[:, None, None], axis=1)[:, 0]


def _running_sum(x_ri: jax.Array) -> jax.Array:
    """Cumulative sum along the last axis as a product with a triangle: fast on every platform for a few hundred entries."""
    size = x_ri.shape[-1]
    return jnp.matmul(x_ri, jnp.triu(jnp.ones((size, size), x_ri.dtype)), precision=jax.lax.Precision.HIGHEST)


def _logits(weights: Weights, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    if config.tie_embeddings:
        return jnp.einsum("...d,vd->...v", hidden, weights.embed_vd, preferred_element_type=jnp.float32)
    return jnp.einsum("...d,dv->...v", hidden, weights.head_dv, preferred_element_type=jnp.float32)


def _gather(pool: jax.Array, slots_us: jax.Array, kv: int) -> jax.Array:
    """[u, s, k, h]: keys or values of cached tokens."""
    u, s = slots_us.shape
    return pool.at[slots_us.reshape(-1)].get(mode="clip").reshape(u, s, kv, pool.shape[1] // kv)


def _by_heads(x: jax.Array, kv: int, axis: int) -> jax.Array:
    """`x`, whose `axis` begins with key/value heads, split by heads over the mesh axis `tensor`; as it is without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or kv % mesh.shape["tensor"]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * axis, "tensor"))


def _window(config: ModelConfig, l: int) -> int | None:
    return config.sliding_window if not config.window_layers or config.window_layers[l] else None


def _rotates(config: ModelConfig, l: int) -> bool:
    return not config.rope_layers or config.rope_layers[l]
