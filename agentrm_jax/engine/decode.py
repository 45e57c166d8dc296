"""Decode: one token of every sample a step, some steps a call.

Letters: u rows, n samples of a row, d model, v vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention import Columns, attend
from agentrm_jax.engine.batch import STEPS, DecodeShape, DecodeState, Steps, Trunk
from agentrm_jax.engine.memory import Entries, Weights, embed, everywhere, logits, rotates, window
from agentrm_jax.engine.requests import SamplingParams
from agentrm_jax.engine.sampling import Shaping, most_likely, sample
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import rms_norm


def decode(
    weights: Weights,
    config: ModelConfig,
    shape: DecodeShape,
    state: DecodeState,
    trunk: Trunk | None,
    stopped: jax.Array,
    most: jax.Array,
) -> tuple[DecodeState, Steps]:
    """Continues all samples by up to `most` (at most `STEPS`) tokens, or until all are done. Donate the state.

    A row that has no room for more steps is done as well: `count` says that it is below its limit.

    Args:
      stopped: bool[u, n] samples that are done from now on.
    """
    u, n = shape.rows, shape.samples
    fixed = state.rows
    columns = Columns(shape, state, trunk)
    windows = {window(config, l) for l in range(config.num_layers)}
    few = SamplingParams.MOST_LOGPROBS if shape.shaped else 0

    def more(carry: tuple) -> jax.Array:
        _, _, _, done, _, steps, _ = carry
        return (steps.ran < most) & ~jnp.all(done)

    def body(carry: tuple) -> tuple:
        caches, token, count, done, seen, steps, at = carry
        positions = jnp.broadcast_to(columns.position(at)[:, None], (u, n))
        biases = {w: columns.bias(at, w) for w in windows}
        x = embed(weights, token)
        written: Entries = []
        for l, block in enumerate(weights.layers):

            def look(q: jax.Array, k: jax.Array, v: jax.Array, l=l) -> jax.Array:
                cache = columns.put(caches[l], k, v, at)
                written.append(cache)
                shared = trunk.caches[l] if trunk is not None else None
                return attend(q, *cache, shared, *biases[window(config, l)])

            x = block(x, positions, look, rotates(config, l))
        hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
        scores = logits(weights, config, hidden).reshape(u * n, -1)
        temperature = jnp.repeat(fixed.temperature, n)
        shaping = None if fixed.shaping is None else _by_sample(dataclasses.replace(fixed.shaping, seen=seen), n)
        chosen, logprob = sample(scores, temperature, jnp.asarray(fixed.seeds).reshape(-1), count.reshape(-1), shaping)
        chosen, logprob = jnp.where(done, token, chosen.reshape(u, n)), logprob.reshape(u, n)
        top = None
        if steps.top is not None:
            most_ids, most_logprobs = most_likely(scores, few)
            most_ids, most_logprobs = (
                jnp.pad(x, ((0, 0), (0, few - x.shape[1]))).reshape(u, n, few) for x in (most_ids, most_logprobs)
            )
            top = steps.top[0].at[steps.ran].set(most_ids), steps.top[1].at[steps.ran].set(most_logprobs)
        if seen is not None:
            seen = jnp.where(
                done[..., None], seen, seen.at[jnp.arange(u)[:, None], jnp.arange(n)[None], chosen].set(True)
            )
        count = jnp.where(done, count, count + 1)
        full = columns.age(at + 1) >= shape.ring - STEPS
        done |= (chosen[..., None] == fixed.stops[:, None]).any(-1) | (count >= fixed.limit) | full[:, None]
        steps = Steps(
            steps.tokens.at[steps.ran].set(chosen),
            steps.logprobs.at[steps.ran].set(logprob),
            top,
            count,
            done,
            steps.ran + 1,
        )
        return written, chosen, count, done, seen, steps, at + 1

    done = fixed.done | stopped
    top = None
    if shape.shaped:
        top = jnp.zeros((STEPS, u, n, few), jnp.int32), jnp.zeros((STEPS, u, n, few), jnp.float32)
    nothing = jnp.zeros((STEPS, u, n), jnp.int32)
    steps = Steps(nothing, nothing.astype(jnp.float32), top, fixed.count, done, jnp.int32(0))
    seen = None if fixed.shaping is None else fixed.shaping.seen
    carry = (state.caches, fixed.token, fixed.count, done, seen, steps, state.at)
    caches, token, count, done, seen, steps, at = jax.lax.while_loop(more, body, carry)
    shaping = None
    if fixed.shaping is not None and seen is not None:
        shaping = dataclasses.replace(fixed.shaping, seen=seen)
    rows = dataclasses.replace(fixed, token=token, count=count, done=done, shaping=shaping)
    rows, steps, at = jax.tree.map(everywhere, (rows, steps, at))
    return DecodeState(caches, at, jax.tree.map(everywhere, state.joined), rows), steps


def _by_sample(shaping: Shaping, n: int) -> Shaping:
    """The shaping of rows for each of their samples, [u * n]."""
    top_k, top_p, min_p, penalty = (
        jnp.repeat(x, n) for x in (shaping.top_k, shaping.top_p, shaping.min_p, shaping.penalty)
    )
    return Shaping(top_k, top_p, min_p, penalty, shaping.seen.reshape(-1, shaping.seen.shape[-1]))
