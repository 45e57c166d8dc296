"""What the fused kernels of TPUs and GPUs share: padding to whole tiles, the rule inside a tile, softmax and its gradient.

Both kernels own one tile and go over the tiles that it sees, or that see it (`tiles.tile_lists`). A forward pass carries the
largest score and the sum of weights of every query from tile to tile; a backward pass computes a tile's weights again from
the log-sum-exp. What differs is how arrays lie in memory and who moves them, and that is all the two modules hold.

Letters: b row, t time, n heads, h head dim; q and s the queries and keys of one tile.
"""

from typing import Any

import jax
import jax.numpy as jnp

from agentrm_jax.models.tiles import MASK_VALUE, Tiling, pad_alone, visible_tiles


def pad_to_tiles(x_btnh: jax.Array, multiple: int) -> jax.Array:
    """An array [b, t, n, h] with zeros behind its last token, up to a whole number of tiles."""
    return jnp.pad(x_btnh, ((0, 0), (0, -x_btnh.shape[1] % multiple), (0, 0), (0, 0)))


def padded_ends(end_bt: jax.Array, multiple: int) -> jax.Array:
    """Subtree ends int32[b, padded], every padded token a tree of its own."""
    return pad_alone(end_bt, -end_bt.shape[1] % multiple).astype(jnp.int32)


def visible_pairs(end_bt: jax.Array, size: int) -> jax.Array:
    """bool[b, tiles, tiles]: which key tiles a query tile must look at; `mT` gives the query tiles of a key tile."""
    return visible_tiles(end_bt, jnp.zeros_like(end_bt), 1, Tiling(1, size, size))


def gradient_rows(
    out_btnh: jax.Array, lse_btn1: jax.Array, grad_btnh: jax.Array, multiple: int
) -> tuple[jax.Array, jax.Array]:
    """What a backward pass needs of every query: log-sum-exp and sum of output times its gradient, float32[b, n, padded].

    A padded query has the largest log-sum-exp there is, so that all its weights come out as 0.
    """
    delta_btn = jnp.einsum("btnh,btnh->btn", grad_btnh, out_btnh, preferred_element_type=jnp.float32)

    def padded(x_btn: jax.Array, fill: float) -> jax.Array:
        pad = ((0, 0), (0, -x_btn.shape[1] % multiple), (0, 0))
        return jnp.pad(x_btn, pad, constant_values=fill).swapaxes(1, 2)

    return padded(lse_btn1[..., 0], -MASK_VALUE), padded(delta_btn, 0.0)


def seen_in_tile(i: Any, j: Any, end: jax.Array, size: int, query_axis: int) -> jax.Array:
    """bool[size, size]: the rule `key <= query < end[key]` for query tile i and key tile j.

    Queries lie along `query_axis`; `end` of the tile's keys broadcasts along it.
    """
    query = i * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), query_axis)
    key = j * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1 - query_axis)
    return (key <= query) & (query < end)


def softmax_step(
    scores_qs: jax.Array, seen_qs: jax.Array, top_q1: jax.Array, sum_q1: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One tile more of a softmax over keys: (weights [q, s], by what earlier sums shrink [q, 1], new top, new sum).

    `top` is the largest score so far, `sum` the sum of weights relative to it.
    """
    scores_qs = jnp.where(seen_qs, scores_qs, MASK_VALUE)
    new_q1 = jnp.maximum(top_q1, scores_qs.max(1, keepdims=True))
    weights_qs = jnp.exp(scores_qs - new_q1)
    shrink_q1 = jnp.exp(top_q1 - new_q1)
    return weights_qs, shrink_q1, new_q1, sum_q1 * shrink_q1 + weights_qs.sum(1, keepdims=True)


def weights_again(
    scores: jax.Array, seen: jax.Array, lse: jax.Array, dweights: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A tile's attention weights from the log-sum-exp, and the gradient of its scores (either way up)."""
    weights = jnp.where(seen, jnp.exp(scores - lse), 0.0)
    return weights, weights * (dweights - delta)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b inside a kernel, summed in float32, and of float32 in full precision."""
    return _product(a, b, 0)


def product_t(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b.T, the same way."""
    return _product(a, b, 1)


def _product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
