"""A linear map whose gradient transposes as little as it can.

Letters: i the input's dimensions, o the output's; both of any rank, as one matrix inside.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from agentrm_jax.models.narrow import Int8Matrix, product


def linear(x: Float[Array, "b t *i"], weight: Float[Array, " *io"] | Int8Matrix) -> Float[Array, "b t *o"]:
    """`x` times `weight`, over all dimensions of x behind the first two, in the type of x.

    Weights of fewer bytes than x are multiplied as they are, see `narrow.product`.
    """
    b, t, *inputs = x.shape
    if isinstance(weight, Int8Matrix):
        return product(x.reshape(b * t, -1), weight).astype(x.dtype).reshape(b, t, *weight.scale_o.shape)
    out = weight.shape[len(inputs) :]
    matrix_io = weight.reshape(math.prod(inputs), math.prod(out))
    if weight.dtype.itemsize < x.dtype.itemsize:
        return product(x.reshape(b * t, -1), matrix_io).astype(x.dtype).reshape(b, t, *out)
    return _product(x.reshape(b, t, -1), matrix_io.astype(x.dtype)).reshape(b, t, *out)


@jax.custom_vjp
def _product(x_bti: jax.Array, weight_io: jax.Array) -> jax.Array:
    return jnp.einsum("bti,io->bto", x_bti, weight_io)


def _forward(x_bti: jax.Array, weight_io: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x_bti, weight_io), (x_bti, weight_io)


def _backward(residuals: tuple[jax.Array, jax.Array], grad_bto: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On CPUs the left side of a product over rows is copied transposed, together with the element-wise work that made it.

    JAX's own rule puts the gradient there, which is wide in a feed-forward layer and made from several arrays. Here the
    narrower side is.
    """
    x_bti, weight_io = residuals
    if x_bti.shape[2] <= grad_bto.shape[2]:
        dweight_io = jnp.einsum("bti,bto->io", x_bti, grad_bto)
    else:
        dweight_io = jnp.einsum("bto,bti->oi", grad_bto, x_bti).T
    return jnp.einsum("bto,io->bti", grad_bto, weight_io), dweight_io


_product.defvjp(_forward, _backward)
