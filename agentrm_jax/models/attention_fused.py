"""What the fused kernels of TPUs and GPUs share: padding to whole tiles, the rule inside a tile, softmax and its gradient.

Both kernels own one tile and go over the tiles that it sees, or that see it (`tiles.tile_lists`). A forward pass carries the
largest score and the sum of weights of every query from tile to tile; a backward pass computes a tile's weights again from
the log-sum-exp. What differs is how arrays lie in memory and who moves them, and that is all the two modules hold.

Letters: b row, t time, n heads, h head dim; q and s the queries and keys of one tile.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from agentrm_jax.models.tiles import MASK_VALUE, Tiling, pad_alone, visible_tiles


def pad_to_tiles(x_btnh: Float[Array, "b t n h"], multiple: int) -> Float[Array, "b padded n h"]:
    """An array [b, t, n, h] with zeros behind its last token, up to a whole number of tiles."""
    return jnp.pad(x_btnh, ((0, 0), (0, -x_btnh.shape[1] % multiple), (0, 0), (0, 0)))


def padded_ends(end_bt: Int[Array, "b t"], multiple: int) -> Int[Array, "b padded"]:
    """Subtree ends as int32, every padded token a tree of its own."""
    return pad_alone(end_bt, -end_bt.shape[1] % multiple).astype(jnp.int32)


def visible_pairs(end_bt: Int[Array, "b t"], size: int) -> Bool[Array, "b tiles tiles"]:
    """Which key tiles a query tile must look at; `mT` gives the query tiles of a key tile."""
    return visible_tiles(end_bt, jnp.zeros_like(end_bt), 1, Tiling(1, size, size))


def gradient_rows(
    out_btnh: Float[Array, "b t n h"],
    lse_btn1: Float[Array, "b t n 1"],
    grad_btnh: Float[Array, "b t n h"],
    multiple: int,
) -> tuple[Float[Array, "b n padded"], Float[Array, "b n padded"]]:
    """Log-sum-exp of every query, and the sum of its output times the gradient of that; both float32.

    A padded query has the largest log-sum-exp there is, so that all its weights come out as 0.
    """
    delta_btn = jnp.einsum("btnh,btnh->btn", grad_btnh, out_btnh, preferred_element_type=jnp.float32)

    def padded(x_btn: jax.Array, fill: float) -> jax.Array:
        pad = ((0, 0), (0, -x_btn.shape[1] % multiple), (0, 0))
        return jnp.pad(x_btn, pad, constant_values=fill).swapaxes(1, 2)

    return padded(lse_btn1[..., 0], -MASK_VALUE), padded(delta_btn, 0.0)


def seen_in_tile(i: Any, j: Any, end: Int[Array, "_ _"], size: int, query_axis: int) -> Bool[Array, "size size"]:
    """The rule `key <= query < end[key]` for query tile i and key tile j.

    Queries lie along `query_axis`; `end` of the tile's keys broadcasts along it.
    """
    query = i * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), query_axis)
    key = j * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1 - query_axis)
    return (key <= query) & (query < end)


def softmax_step(
    scores_qs: Float[Array, "q s"],
    seen_qs: Bool[Array, "q s"],
    top_q1: Float[Array, "q 1"],
    sum_q1: Float[Array, "q 1"],
) -> tuple[Float[Array, "q s"], Float[Array, "q 1"], Float[Array, "q 1"], Float[Array, "q 1"]]:
    """Goes on with a softmax over keys by one tile: (weights, factor for what was summed before, new top, new sum).

    `top` is the largest score so far, `sum` the sum of weights relative to it.
    """
    scores_qs = jnp.where(seen_qs, scores_qs, MASK_VALUE)
    new_q1 = jnp.maximum(top_q1, scores_qs.max(1, keepdims=True))
    weights_qs = jnp.exp(scores_qs - new_q1)
    shrink_q1 = jnp.exp(top_q1 - new_q1)
    return weights_qs, shrink_q1, new_q1, sum_q1 * shrink_q1 + weights_qs.sum(1, keepdims=True)


def weights_again(
    scores: Float[Array, "r c"],
    seen: Bool[Array, "r c"],
    lse: Float[Array, "_ _"],
    dweights: Float[Array, "r c"],
    delta: Float[Array, "_ _"],
) -> tuple[Float[Array, "r c"], Float[Array, "r c"]]:
    """Attention weights of a tile, from the log-sum-exp, and the gradient of its scores.

    Queries may lie along either axis; `lse` and `delta` (see `gradient_rows`) broadcast along the other one.
    """
    weights = jnp.where(seen, jnp.exp(scores - lse), 0.0)
    return weights, weights * (dweights - delta)


def product(a: Float[Array, "r x"], b: Float[Array, "x c"]) -> Float[Array, "r c"]:
    """a @ b inside a kernel, summed in float32, and of float32 in full precision."""
    return _product(a, b, 0)


def product_t(a: Float[Array, "r x"], b: Float[Array, "c x"]) -> Float[Array, "r c"]:
    """a @ b.T inside a kernel, with the same precision."""
    return _product(a, b, 1)


def _product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
