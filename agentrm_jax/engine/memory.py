"""What an engine keeps on its devices: weights laid out for inference, and the pool of keys and values.

The pool holds, for every layer, keys and values of all cached tokens: a pair of [slots, k * h] arrays, one flat row a token, so
that gathers of tokens are memory copies. It is written by a program of its own: one that also read it would be compiled with a
copy of the whole pool.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import TARGETS
from agentrm_jax.models.narrow import Int8Matrix, product, quantize, rows
from agentrm_jax.models.transformer import Transformer, value_map
from agentrm_jax.models.vocabulary import log_probabilities

Entries = list[tuple[jax.Array, jax.Array]]  # keys and values of every layer
MASK_VALUE = -1e30  # a score that no probability comes from; finite, so that nothing becomes NaN
_LOGIT_ROWS = 64  # tokens whose logits are in memory at a time


class Weights(nnx.Pytree):
    """A transformer laid out for inference: layers one by one, so that no step slices a stack.

    Args:
      dtype: of activations, and of all weights that have no type of their own.
      matrices: type of embeddings and linear maps, "bfloat16" or "int8"; empty for `dtype`. The rest, which is small, keeps its own.

    Attributes:
      embed_vd, head_dv: arrays, or matrices in eight bits with a scale for every token.
    """

    def __init__(self, model: Transformer, dtype: jnp.dtype, matrices: str = ""):
        def cast(x: jax.Array) -> jax.Array:
            return x.astype(dtype)

        def matrix(x: jax.Array, inputs: int) -> jax.Array | Int8Matrix:
            return quantize(x, inputs) if matrices == "int8" else x.astype(matrices or dtype)

        blocks = []
        for layer in model.unstacked():
            maps = {
                name: matrix(getattr(layer, name)[...], inputs)
                for name, inputs in TARGETS.values()
                if hasattr(layer, name)
            }
            block = jax.tree.map(cast, layer)
            for name, value in maps.items():
                setattr(block, name, nnx.Param(value))
            blocks.append(block)
        self.dtype = dtype
        self.layers = nnx.data(blocks)
        head = model.head_dv[...] if hasattr(model, "head_dv") else None
        table = model.embed_vd[...]
        self.embed_vd: Any = nnx.data(quantize(table.T, 1) if matrices == "int8" else table.astype(matrices or dtype))
        self.head_dv = nnx.data(head if head is None else matrix(head, 1))
        self.embed_scale = model.config.d_model**0.5 if model.config.scale_embeddings else None
        self.final_norm_d = nnx.data(model.final_norm_d[...] + model.config.norm_offset)
        self.value_d = nnx.data(value_map(model))  # [d], or [d, e] of several value heads


def embed(weights: Weights, tokens: jax.Array | np.ndarray) -> jax.Array:
    """Embeddings [*tokens.shape, d] as the first layer reads them, in the type of the activations."""
    table = weights.embed_vd
    found = rows(table, jnp.asarray(tokens)) if isinstance(table, Int8Matrix) else table[tokens]
    x = found.astype(weights.dtype)
    return x if weights.embed_scale is None else x * jnp.asarray(weights.embed_scale, x.dtype)


def logits(weights: Weights, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., v] of hidden states [..., d], float32."""
    head = _head(weights, config)
    if isinstance(head, Int8Matrix) or head.dtype.itemsize < hidden.dtype.itemsize:
        scores = product(hidden.reshape(-1, hidden.shape[-1]), head)
        return scores.reshape(*hidden.shape[:-1], -1)
    return jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)


def _head(weights: Weights, config: ModelConfig) -> Any:
    """The map from hidden states to logits, [d, v] unless it is in eight bits."""
    if not config.tie_embeddings:
        return weights.head_dv
    return weights.embed_vd if isinstance(weights.embed_vd, Int8Matrix) else weights.embed_vd.T


def token_logprobs(weights: Weights, config: ModelConfig, hidden_td: jax.Array, tokens_t: jax.Array) -> jax.Array:
    """float32[t]: log p of every token under the logits of its hidden state. Never are all logits in memory."""
    head = _head(weights, config)
    if not isinstance(head, Int8Matrix):
        return log_probabilities(head, hidden_td.astype(head.dtype)[None], tokens_t[None])[0]

    def one(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_d, token = at
        return jax.nn.log_softmax(logits(weights, config, hidden_d))[token]

    return jax.lax.map(one, (hidden_td, tokens_t), batch_size=_LOGIT_ROWS)


def empty_pool(config: ModelConfig, slots: int, dtype: jnp.dtype) -> Entries:
    """Room for `slots` tokens."""
    kv = config.num_kv_heads

    def zeros() -> jax.Array:
        return by_heads(jnp.zeros((slots, kv * config.head_dim), dtype), kv, 1)

    return [(zeros(), zeros()) for _ in range(config.num_layers)]


def write(pool: Entries, slots: jax.Array, entries: Entries) -> Entries:
    """The pool with `entries` ([*slots.shape, k * h] a layer) at `slots`; slots past the end are dropped. Donate the pool."""
    at = slots.reshape(-1)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[at].set(new.reshape(-1, old.shape[1]), mode="drop")

    return [(put(a, x), put(b, y)) for (a, b), (x, y) in zip(pool, entries, strict=True)]


def gather(pool: jax.Array, slots_us: jax.Array, kv: int) -> jax.Array:
    """[u, s, k, h]: keys or values of cached tokens."""
    u, s = slots_us.shape
    return pool.at[slots_us.reshape(-1)].get(mode="clip").reshape(u, s, kv, pool.shape[1] // kv)


def by_heads(x: jax.Array, kv: int, axis: int) -> jax.Array:
    """`x`, whose `axis` begins with key/value heads, split by heads over the mesh axis `tensor`; as it is without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or kv % mesh.shape["tensor"]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * axis, "tensor"))


def everywhere(x: jax.Array) -> jax.Array:
    """`x` whole on every device of the mesh; as it is without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


def window(config: ModelConfig, l: int) -> int | None:
    """How far back layer l sees; None for all the way."""
    return config.windows[l]
