"""Tiles of attention: which of them hold anything visible under the tree rule, so that nothing else is computed.

Letters: b row, t token, i query tile, j key tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NO_WINDOW = 2**30
MASK_VALUE = -1e30  # the score of what must not be seen; finite, so that a tile without anything visible gives no NaN


class Tiling(NamedTuple):
    """What one turn of the loop over tiles handles: so many `rows` of the batch, `queries` and `keys`."""

    rows: int
    queries: int
    keys: int


class TilePairs(NamedTuple):
    """The (row group, query tile, key tile) triples to be computed, sorted.

    Attributes:
      group, query, key: int32[p] indices; entries behind the first `total` are padding.
      opens: bool[p], the first triple of its query tile.
      total: int32, how many triples there are.
    """

    group: jax.Array
    query: jax.Array
    key: jax.Array
    opens: jax.Array
    total: jax.Array


def visible_tiles(
    subtree_end_bt: Int[Array, "b t"], positions_bt: Int[Array, "b t"], window: Int[Array, ""] | int, tiling: Tiling
) -> Bool[Array, "groups query_tiles key_tiles"]:
    """Which pairs of tiles hold anything visible; rows must be padded to whole tiles.

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


def pad_alone(subtree_end_bt: Int[Array, "b t"], pad: int) -> Int[Array, "b t+{pad}"]:
    """Subtree ends of rows with `pad` tokens more: the added tokens see nothing but themselves."""
    b, t = subtree_end_bt.shape
    alone = jnp.broadcast_to(jnp.arange(t, t + pad, dtype=subtree_end_bt.dtype) + 1, (b, pad))
    return jnp.concatenate([subtree_end_bt, alone], axis=1)


def tile_pairs(
    subtree_end_bt: Int[Array, "b t"], positions_bt: Int[Array, "b t"], window: Int[Array, ""] | int, tiling: Tiling
) -> TilePairs:
    """The visible tiles of all row groups as one list, for a single loop over it."""
    visible = visible_tiles(subtree_end_bt, positions_bt, window, tiling)
    _, nq, nk = visible.shape
    (index,) = jnp.nonzero(visible.reshape(-1), size=visible.size, fill_value=0)
    index = index.astype(jnp.int32)
    row = index // nk
    opens = jnp.concatenate([jnp.ones(1, bool), row[1:] != row[:-1]])
    return TilePairs(row // nq, row % nq, index % nk, opens, visible.sum(dtype=jnp.int32))


def tile_lists(visible: Bool[Array, "*b n m"]) -> tuple[Int[Array, "*b n m"], Int[Array, "*b n"]]:
    """For each of n tiles the list of the m tiles that are visible to it, in order, and the length of that list (int32).

    The rest of a list repeats its last entry, so that a kernel that walks over all of it fetches nothing new there.
    """
    count = visible.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~visible, axis=-1, stable=True).astype(jnp.int32)
    at = jnp.minimum(jnp.arange(visible.shape[-1]), jnp.maximum(count - 1, 0)[..., None])
    return jnp.take_along_axis(order, at, axis=-1), count
