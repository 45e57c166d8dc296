"""Tiles of attention: which hold anything visible under the tree rule (nothing else is computed), and products of two.

Letters: b row, t token, i query tile, j key tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NO_WINDOW = 2**30
HIDDEN = -1e30  # finite, so that a tile without anything visible gives no NaN


class Tiling(NamedTuple):
    """How attention is cut up: `rows` of the batch, `queries` and `keys` handled by one turn of the loop."""

    rows: int
    queries: int
    keys: int


class TilePairs(NamedTuple):
    """The (row group, query tile, key tile) triples to be computed, sorted; only the first `total` are meant.

    Attributes:
      group, query, key: int32[p] indices.
      opens: bool[p], the first triple of its query tile.
    """

    group: jax.Array
    query: jax.Array
    key: jax.Array
    opens: jax.Array
    total: jax.Array


def visible_tiles(
    subtree_end_bt: jax.Array, positions_bt: jax.Array, window: jax.Array | int, tiling: Tiling
) -> jax.Array:
    """bool[groups, query tiles, key tiles]: where something is visible, for rows already padded to whole tiles.

    A key tile matters to a query tile if it does not start after it, one of its subtrees is still open when the query tile
    begins, and one of its positions lies in the window. Finished branches and documents drop out.
    """
    rows, tq, tk = tiling
    b, t = subtree_end_bt.shape
    groups, nq, nk = b // rows, t // tq, t // tk
    last_end = subtree_end_bt.reshape(groups, rows, nk, tk).max((1, 3))
    newest = positions_bt.reshape(groups, rows, nk, tk).max((1, 3))
    oldest = positions_bt.reshape(groups, rows, nq, tq).min((1, 3)) - window
    begins = jnp.arange(nq) * tq
    causal = jnp.arange(nk) * tk < (begins + tq)[:, None]
    return causal & (last_end[:, None] > begins[:, None]) & (newest[:, None] > oldest[..., None])


def pad_alone(subtree_end_bt: jax.Array, pad: int) -> jax.Array:
    """Subtree ends with `pad` tokens more, each of which sees itself alone."""
    b, t = subtree_end_bt.shape
    alone = jnp.broadcast_to(jnp.arange(t, t + pad, dtype=subtree_end_bt.dtype) + 1, (b, pad))
    return jnp.concatenate([subtree_end_bt, alone], axis=1)


def square_tiles(subtree_end_bt: jax.Array, size: int) -> jax.Array:
    """`visible_tiles` without a window, for one row at a time and tiles of as many queries as keys."""
    return visible_tiles(subtree_end_bt, jnp.zeros_like(subtree_end_bt), 1, Tiling(1, size, size))


def tile_pairs(
    subtree_end_bt: jax.Array, positions_bt: jax.Array, window: jax.Array | int, tiling: Tiling
) -> TilePairs:
    """The visible tiles as one list for one loop."""
    visible = visible_tiles(subtree_end_bt, positions_bt, window, tiling)
    _, nq, nk = visible.shape
    (index,) = jnp.nonzero(visible.reshape(-1), size=visible.size, fill_value=0)
    index = index.astype(jnp.int32)
    row = index // nk
    opens = jnp.concatenate([jnp.ones(1, bool), row[1:] != row[:-1]])
    return TilePairs(row // nq, row % nq, index % nk, opens, visible.sum(dtype=jnp.int32))


def tile_lists(visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The visible tiles of each tile of bool[..., n, m], first ones first: int32[..., n, m], and how many: int32[..., n].

    Behind the last one it is repeated: a kernel that walks over the whole list fetches nothing new there.
    """
    count = visible.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~visible, axis=-1, stable=True).astype(jnp.int32)
    at = jnp.minimum(jnp.arange(visible.shape[-1]), jnp.maximum(count - 1, 0)[..., None])
    return jnp.take_along_axis(order, at, axis=-1), count


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
