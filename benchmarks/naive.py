"""Baselines: generation and scoring as they are written first, each compiled once and with unrolled layers like ours."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax.models.layers import rms_norm
from agentrm_jax.models.rope import rotation
from agentrm_jax.models.transformer import Transformer, logits, values

Cache = list[tuple[jax.Array, jax.Array]]


@nnx.jit
def next_tokens(model: Transformer, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """int32[b]: the most likely token after each padded row [b, t], by reading all of it."""
    hidden = model(tokens, *_causal(tokens))
    last = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)
    return jnp.argmax(logits(model, last)[:, 0], axis=-1)


@nnx.jit
def last_values(model: Transformer, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """float32[b]: the value at the end of each padded row [b, t], by reading all of it."""
    predicted = values(model, model(tokens, *_causal(tokens)))
    return jnp.take_along_axis(predicted, (length - 1)[:, None], axis=1)[:, 0]


def _causal(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions and subtree ends of plain sequences; what follows a sequence is never looked at."""
    b, t = tokens.shape
    return jnp.broadcast_to(jnp.arange(t), (b, t)), jnp.full((b, t), t)


def recompute(model: Transformer, histories: list[np.ndarray], new_tokens: int, room: int) -> list[list[int]]:
    """Greedy decoding of all histories together that reads everything again for every token."""
    tokens = np.zeros((len(histories), room), np.int32)
    length = np.array([len(h) for h in histories], np.int32)
    for row, h in zip(tokens, histories, strict=True):
        row[: len(h)] = h
    new: list[list[int]] = [[] for _ in histories]
    for _ in range(new_tokens):
        chosen = np.asarray(next_tokens(model, jnp.asarray(tokens), jnp.asarray(length)))
        tokens[np.arange(len(histories)), length] = chosen
        length = length + 1
        for out, token in zip(new, chosen.tolist(), strict=True):
            out.append(token)
    return new


def one_by_one(model: Transformer, histories: list[np.ndarray], new_tokens: int, room: int) -> list[list[int]]:
    """Greedy decoding with a key/value cache, one sequence after the other, which is read from its first token on."""
    out = []
    for history in histories:
        padded = np.zeros((1, room), np.int32)
        padded[0, : len(history)] = history
        token, cache = _prefill(model, jnp.asarray(padded), jnp.int32(len(history)))
        new = [int(token)]
        for position in range(len(history), len(history) + new_tokens - 1):
            token, cache = _step(model, cache, token, jnp.int32(position))
            new.append(int(token))
        out.append(new)
    return out


@nnx.jit
def _prefill(model: Transformer, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, Cache]:
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    hidden, cache = _layers(model, tokens, jnp.arange(tokens.shape[1])[None], mask, None, jnp.int32(0))
    return jnp.argmax(logits(model, hidden[:, length - 1][:, None])[0, 0]), cache


def _one_step(model: Transformer, cache: Cache, token: jax.Array, position: jax.Array) -> tuple[jax.Array, Cache]:
    room = cache[0][0].shape[1]
    mask = (jnp.arange(room) <= position)[None]
    hidden, cache = _layers(model, token[None, None], position[None, None], mask, cache, position)
    return jnp.argmax(logits(model, hidden)[0, 0]), cache


_step = nnx.jit(_one_step, donate_argnums=1)


def _layers(
    model: Transformer, tokens: jax.Array, positions: jax.Array, mask: jax.Array, cache: Cache | None, at: jax.Array
) -> tuple[jax.Array, Cache]:
    c = model.config
    x = model.embed(tokens, jnp.float32)
    written: Cache = []
    for l, block in enumerate(model.unstacked()):

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, l: int = l) -> jax.Array:
            if cache is not None:
                k, v = (
                    jax.lax.dynamic_update_slice_in_dim(old, x, at, 1) for old, x in zip(cache[l], (k, v), strict=True)
                )
            written.append((k, v))
            b, t = q.shape[:2]
            q = q.reshape(b, t, c.num_kv_heads, -1, c.head_dim) * c.head_dim**-0.5
            scores = jnp.where(mask, jnp.einsum("btkgh,bskh->bkgts", q, k), -1e30)
            return jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores), v).reshape(b, t, c.num_heads, c.head_dim)

        x = block(x, positions, attend, rotation(c, l))
    return rms_norm(x, model.final_norm_d[...], c.norm_eps), written
