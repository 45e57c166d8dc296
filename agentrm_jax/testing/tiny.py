"""A transformer small enough for tests, and what it says when everything is computed afresh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer, logits, values

TINY = ModelConfig(
    vocab_size=97,  # no multiple of anything
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_length=256,
)


def tiny_model(seed: int = 0, **changes: Any) -> Transformer:
    """`TINY` (with changed fields) and both heads; weights large enough that predictions are far from uniform."""
    config = dataclasses.replace(TINY, **changes)
    model = Transformer(config, rngs=nnx.Rngs(seed), value_head=True)
    state = nnx.state(model, nnx.Param)
    leaves, shape = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    nnx.update(model, jax.tree.unflatten(shape, noisy))
    return model


def dense_hidden(model: Transformer, tokens: Sequence[int] | np.ndarray) -> jax.Array:
    """Final hidden states [t, d] of one path, read in one piece (padded, so that few lengths are compiled)."""
    size = len(tokens)
    total = -(-size // 64) * 64
    index = np.arange(total, dtype=np.int32)
    ids = np.zeros(total, np.int32)
    ids[:size] = tokens
    end = np.where(index < size, size, index + 1).astype(np.int32)
    return _forward(model, *(jnp.asarray(x)[None] for x in (ids, index, end)))[0, :size]


@nnx.jit
def _forward(model: Transformer, tokens: jax.Array, positions: jax.Array, subtree_end: jax.Array) -> jax.Array:
    return model(tokens, positions, subtree_end)


def dense_logits(model: Transformer, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """float32[t, v]: next-token logits after every prefix of a path."""
    return np.asarray(logits(model, dense_hidden(model, tokens)[None])[0])


def dense_values(model: Transformer, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """float32[t]: the value head's output at every token of a path."""
    return np.asarray(values(model, dense_hidden(model, tokens)[None])[0])


def dense_greedy(model: Transformer, tokens: Sequence[int] | np.ndarray, max_new: int, end_id: int) -> list[int]:
    """Greedy decoding that reads the whole path again for every token."""
    path = list(tokens)
    new: list[int] = []
    while len(new) < max_new and (not new or new[-1] != end_id):
        new.append(int(jnp.argmax(dense_logits(model, path + new)[-1])))
    return new
