"""Decode: some tokens of every sample a step, some steps a call.

A step reads the last token of every sample and, where tokens are drafted, those that are proposed to follow it; of the tokens
that it draws, it keeps those whose path is the one that was read.

Letters: u rows, n samples of a row, p tokens of each that a step reads, d model, v vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention import Columns, attend
from agentrm_jax.engine.batch import STEPS, DecodeShape, DecodeState, RowState, Steps, Trunk
from agentrm_jax.engine.drafting import propose
from agentrm_jax.engine.histories import InPlace
from agentrm_jax.engine.memory import Entries, Weights, embed, everywhere, logits, window
from agentrm_jax.engine.paged import join
from agentrm_jax.engine.requests import SamplingParams
from agentrm_jax.engine.sampling import Shaping, most_likely, sample
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import Block, rms_norm
from agentrm_jax.models.rope import Rotation, rotation

_Pair = tuple[jax.Array, jax.Array]  # keys and values of one layer


def decode(
    weights: Weights,
    config: ModelConfig,
    shape: DecodeShape,
    drafting: bool,
    pool: Entries,
    state: DecodeState,
    trunk: Trunk | None,
    stopped: jax.Array,
    most: jax.Array,
) -> tuple[DecodeState, Steps]:
    """Continues all samples by up to `most` (at most `STEPS`) steps, or until all are done. Donate the state.

    A row that has no room for more steps is done as well: `count` says that it is below its limit.

    Args:
      pool: read for histories that are not copied.
      drafting: steps verify `shape.draft` proposed tokens of every sample.
      stopped: bool[u, n] samples that are done from now on.
    """
    p = shape.draft + 1 if drafting else 1
    columns = Columns(shape, state, trunk)
    histories = None
    if state.table is not None:  # of a row that is over nothing is read
        length = jnp.where((state.rows.done | stopped).all(1), 0, state.rows.context_length)
        histories = InPlace(shape.in_place, state.table, length, trunk)
    windows = {window(config, l) for l in range(config.num_layers)}
    begin = state.rows.count

    def more(carry: tuple[DecodeState, Steps]) -> jax.Array:
        state, steps = carry
        return (steps.ran < most) & ~jnp.all(state.rows.done)

    def body(carry: tuple[DecodeState, Steps]) -> tuple[DecodeState, Steps]:
        state, steps = carry
        rows = state.rows
        offset = columns.offset(rows.count, p)
        positions = columns.position(offset)
        read = jnp.asarray(rows.token)[:, None]
        if drafting:
            read = jnp.concatenate([read, _proposed(rows, positions[:, 0] + 1, p - 1)], axis=1)
        written = columns.mark(state.offset, jnp.where(rows.done[:, None], -1, offset), state.at)
        biases = {w: columns.bias(offset, written, w) for w in windows}
        x = embed(weights, jnp.maximum(read, 0).reshape(shape.rows, -1))
        caches: Entries = []

        @functools.partial(jax.jit, static_argnums=0)  # so that it is traced once, not for every layer
        def layer(
            limit: int | None,
            turned: Rotation | None,
            block: Block,
            x: jax.Array,
            cache: _Pair,
            cached: _Pair | None,
            shared: _Pair | None,
        ) -> tuple[jax.Array, _Pair]:
            def look(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                nonlocal cache
                cache = columns.put(cache, k, v, state.at)
                bias, trunk_bias = biases[limit]
                if histories is not None and cached is not None:
                    parts = histories.attend(q, cached, positions.reshape(shape.rows, -1), limit)
                    return join([*parts, attend(q, *cache, None, bias, None)]).astype(q.dtype)
                return attend(q, *cache, shared, bias, trunk_bias)[0]

            return block(x, positions.reshape(shape.rows, -1), look, turned), cache

        for l, block in enumerate(weights.layers):
            cached = pool[l] if histories is not None else None
            shared = trunk.caches[l] if trunk is not None and trunk.caches else None
            x, cache = layer(window(config, l), rotation(config, l), block, x, state.caches[l], cached, shared)
            caches.append(cache)
        hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
        scores = logits(weights, config, hidden).reshape(read.size, -1)
        chosen, logprob = _draw(scores, rows, p)

        room = columns.room(state.at + p)[:, None]
        rows, gained = _settle(rows, read, chosen, room)
        kept = jnp.arange(p)[:, None] < gained[:, None]
        written = columns.mark(written, jnp.where(kept, offset, -1), state.at)
        state = DecodeState(caches, state.table, state.at + p, state.joined, written, rows)
        if rows.known is not None:
            at = (positions[:, 0] + 1)[..., None]
            known = _put(rows.known, jnp.arange(shape.known), chosen[..., None], kept[..., None], at)
            rows = dataclasses.replace(rows, known=known)
        return dataclasses.replace(state, rows=rows), _report(steps, rows, begin, scores, read, chosen, logprob, kept)

    rows = dataclasses.replace(state.rows, done=state.rows.done | stopped)
    state = dataclasses.replace(state, at=-(-state.at // p) * p, rows=rows)
    state, steps = jax.lax.while_loop(more, body, (state, _no_steps(shape, p, rows)))
    small, steps = jax.tree.map(everywhere, (dataclasses.replace(state, caches=[]), steps))
    return dataclasses.replace(small, caches=state.caches), steps


def _proposed(rows: RowState, length: jax.Array, count: int) -> jax.Array:
    """int32[u, count, n]: what is proposed to follow samples whose paths have `length` [u, n] tokens."""
    known = jnp.asarray(rows.known)
    drafts = propose(known.reshape(-1, known.shape[-1]), length.reshape(-1), count)
    return drafts.reshape(*length.shape, count).transpose(0, 2, 1)


def _draw(scores: jax.Array, rows: RowState, p: int) -> tuple[jax.Array, jax.Array]:
    """[u, p, n] tokens and log-probabilities: each token by the number of its own place in the sample."""
    size = rows.count.shape[0], p, rows.count.shape[1]
    temperature = jnp.broadcast_to(jnp.asarray(rows.temperature)[:, None, None], size)
    seeds = jnp.broadcast_to(jnp.asarray(rows.seeds)[:, None], size)
    place = rows.count[:, None] + jnp.arange(p)[:, None]
    shaping = None if rows.shaping is None else _by_sample(rows.shaping, size[2])
    token, logprob = sample(scores, temperature.reshape(-1), seeds.reshape(-1), place.reshape(-1), shaping)
    return token.reshape(size), logprob.reshape(size)


def _settle(rows: RowState, read: jax.Array, chosen: jax.Array, room: jax.Array) -> tuple[RowState, jax.Array]:
    """Rows with what was drawn, and int32[u, n] how many tokens of `chosen` [u, p, n] that is.

    A token was drawn rightly if all that was read before it is what was drawn there; nothing follows one that ends the sample.
    """
    ends = (chosen[..., None] == jnp.asarray(rows.stops)[:, None, None]).any(-1)
    right = (chosen[:, :-1] == read[:, 1:]) & ~ends[:, :-1]
    gained = jnp.minimum(1 + jnp.cumprod(right, axis=1).sum(1), rows.limit - rows.count)
    gained = jnp.where(rows.done, 0, gained)
    last = jnp.maximum(gained - 1, 0)[:, None]
    token = jnp.where(rows.done, rows.token, jnp.take_along_axis(chosen, last, axis=1)[:, 0])
    count = rows.count + gained
    done = rows.done | jnp.take_along_axis(ends, last, axis=1)[:, 0] | (count >= rows.limit) | ~room
    shaping = rows.shaping
    if shaping is not None:
        u, n = token.shape
        seen = jnp.asarray(shaping.seen).at[jnp.arange(u)[:, None], jnp.arange(n)[None], token].set(True)
        shaping = dataclasses.replace(shaping, seen=jnp.where(rows.done[..., None], shaping.seen, seen))
    return dataclasses.replace(rows, token=token, count=count, done=done, shaping=shaping), gained


def _no_steps(shape: DecodeShape, p: int, rows: RowState) -> Steps:
    u, n = shape.rows, shape.samples
    nothing, zero = jnp.zeros((STEPS * p, u, n), jnp.int32), jnp.int32(0)
    top = None
    if shape.shaped:
        few = SamplingParams.MOST_LOGPROBS
        top = jnp.zeros((STEPS, u, n, few), jnp.int32), jnp.zeros((STEPS, u, n, few), jnp.float32)
    return Steps(nothing, nothing.astype(jnp.float32), top, rows.count, rows.done, zero, zero, zero, zero)


def _report(
    steps: Steps,
    rows: RowState,
    begin: jax.Array,
    scores: jax.Array,
    read: jax.Array,
    chosen: jax.Array,
    logprob: jax.Array,
    kept: jax.Array,
) -> Steps:
    """`steps` and one more, of which the tokens `kept` count; samples had `begin` tokens before the first of them."""
    top = steps.top
    if top is not None:
        few = top[0].shape[-1]
        most = (jnp.pad(x, ((0, 0), (0, few - x.shape[1]))) for x in most_likely(scores, few))
        a, b = (x.reshape(*rows.token.shape, few) for x in most)
        top = top[0].at[steps.ran].set(a), top[1].at[steps.ran].set(b)
    index, at = jnp.arange(steps.tokens.shape[0])[:, None, None], rows.count - kept.sum(1) - begin
    drafted = (kept[:, :1] & (read[:, 1:] >= 0)).sum(dtype=jnp.int32)
    return Steps(
        _put(steps.tokens, index, chosen, kept, at),
        _put(steps.logprobs, index, logprob, kept, at),
        top,
        rows.count,
        rows.done,
        steps.ran + 1,
        steps.read + kept[:, 0].sum(dtype=jnp.int32),
        steps.drafted + drafted,
        steps.accepted + kept[:, 1:].sum(dtype=jnp.int32),
    )


def _put(old: jax.Array, index: jax.Array, new: jax.Array, valid: jax.Array, at: jax.Array) -> jax.Array:
    """`old` with the valid ones of `new` [u, p, ...] at `at`, `at + 1`, ... of its axis that `index` counts: no scatter."""
    for i in range(new.shape[1]):
        old = jnp.where((index == at + i) & valid[:, i], new[:, i], old)
    return old


def _by_sample(shaping: Shaping, n: int) -> Shaping:
    """The shaping of rows for each of their samples, [u * n]."""
    top_k, top_p, min_p, penalty = (
        jnp.repeat(x, n) for x in (shaping.top_k, shaping.top_p, shaping.min_p, shaping.penalty)
    )
    return Shaping(top_k, top_p, min_p, penalty, shaping.seen.reshape(-1, shaping.seen.shape[-1]))
