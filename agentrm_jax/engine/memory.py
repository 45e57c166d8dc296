"""What an engine keeps on its devices: weights laid out for inference, and the pool of keys and values.

The pool holds, for every layer, keys and values of all cached tokens: a pair of [slots, k * h] arrays, one flat row a token, so
that gathers of tokens are memory copies. It is written by a program of its own: one that also read it would be compiled with a
copy of the whole pool.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer, value_map

Entries = list[tuple[jax.Array, jax.Array]]  # keys and values of every layer
MASK_VALUE = -1e30  # a score that no probability comes from; finite, so that nothing becomes NaN


class Weights(nnx.Pytree):
    """A transformer laid out for inference: layers one by one, so that no step slices a stack."""

    def __init__(self, model: Transformer, dtype: jnp.dtype):
        def cast(x: jax.Array) -> jax.Array:
            return x.astype(dtype)

        self.embed_vd = nnx.data(cast(model.embed_vd[...]))
        self.embed_scale = model.config.d_model**0.5 if model.config.scale_embeddings else None
        self.layers = nnx.data([jax.tree.map(cast, block) for block in model.unstacked()])
        self.final_norm_d = nnx.data(model.final_norm_d[...] + model.config.norm_offset)
        self.head_dv = nnx.data(cast(model.head_dv[...]) if hasattr(model, "head_dv") else None)
        self.value_d = nnx.data(value_map(model))  # [d], or [d, e] of several value heads


def embed(weights: Weights, tokens: jax.Array | np.ndarray) -> jax.Array:
    """Embeddings [*tokens.shape, d] as the first layer reads them."""
    x = weights.embed_vd[tokens]
    return x if weights.embed_scale is None else x * jnp.asarray(weights.embed_scale, x.dtype)


def output_map(weights: Weights, config: ModelConfig) -> jax.Array:
    """[d, v]: the map from hidden states to logits."""
    if config.tie_embeddings:
        return weights.embed_vd.T
    assert weights.head_dv is not None
    return weights.head_dv


def logits(weights: Weights, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., v] of hidden states [..., d], float32."""
    if config.tie_embeddings:
        return jnp.einsum("...d,vd->...v", hidden, weights.embed_vd, preferred_element_type=jnp.float32)
    return jnp.einsum("...d,dv->...v", hidden, weights.head_dv, preferred_element_type=jnp.float32)


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
