"""Matrices in fewer bytes than what they are multiplied with: bfloat16, and int8 with one scale for every output channel.

Letters: m rows of activations, i the input's dimensions, o the output's.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32, Int, Int8

from agentrm_jax.parallel import platform

_LEAST_ROWS = 2  # on a CPU: XLA multiplies a single row of either type by a plain loop, ten times slower than two


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Matrix:
    """The map from i to o whose weight from input i to output o is `values_oi[o, i] * scale_o[o]`.

    Outputs come first: each channel is a row in memory, as integer products and lookups of embeddings want it.
    """

    values_oi: Int8[Array, " *oi"]
    scale_o: Float32[Array, " *o"]


def quantize(weight_io: Float[Array, " *io"], inputs: int) -> Int8Matrix:
    """A weight whose first `inputs` axes are its input's, to the nearest of 255 steps of each output channel.

    No weight changes by more than half a step: 1/254 of the largest of its channel.
    """
    order = (*range(inputs, weight_io.ndim), *range(inputs))
    weight_oi = weight_io.astype(jnp.float32).transpose(order)
    within = tuple(range(weight_io.ndim - inputs, weight_io.ndim))
    values, scale = _round(weight_oi, within)
    return Int8Matrix(values, scale.squeeze(within))


def rows(matrix: Int8Matrix, index: Int[Array, "*shape"]) -> Float32[Array, "*shape i"]:
    """Whole rows of a matrix [o, i]: embeddings, where o is the vocabulary."""
    return matrix.values_oi[index] * matrix.scale_o[index][..., None]


def product(x_mi: Float[Array, "m i"], weight: Int8Matrix | BFloat16[Array, "i o"]) -> Float32[Array, "m o"]:
    """`x` times a matrix, whose axes are flattened to one input and one output; sums are float32.

    Of bfloat16 weights x is rounded to bfloat16. Of int8 weights it stays as it is on accelerators: the weights become floats
    inside the product, which their compilers fuse. The CPU's compiler would write all of them to memory first, so there every
    row of x is rounded to eight bits as well, and integers are multiplied.
    """
    m, on_cpu = x_mi.shape[0], platform() == "cpu"
    if on_cpu and m < _LEAST_ROWS:
        x_mi = jnp.pad(x_mi, ((0, _LEAST_ROWS - m), (0, 0)))
    if not isinstance(weight, Int8Matrix):
        return jnp.matmul(x_mi.astype(weight.dtype), weight, preferred_element_type=jnp.float32)[:m]
    scale_o = weight.scale_o.reshape(-1)
    values_oi = weight.values_oi.reshape(scale_o.size, -1)
    over_i = (((1,), (1,)), ((), ()))
    if not on_cpu:
        weight_oi = values_oi.astype(x_mi.dtype)
        return jax.lax.dot_general(x_mi, weight_oi, over_i, preferred_element_type=jnp.float32) * scale_o
    x, scale_m = _round(x_mi.astype(jnp.float32), (1,))
    sums = jax.lax.dot_general(x, values_oi, over_i, preferred_element_type=jnp.int32)
    return (sums * scale_m * scale_o)[:m]


def _round(x: jax.Array, within: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`x` in steps of 1/127 of the largest magnitude over the axes `within`, and that step (NaN if anything is not finite)."""
    step = jnp.max(jnp.abs(x), axis=within, keepdims=True) / 127
    values = jnp.round(x / jnp.where(step > 0, step, 1)).astype(jnp.int8)
    return values, jnp.where(jnp.isfinite(step), step, jnp.nan)
