"""Token embeddings and log-probabilities on shards: no device ever holds a whole embedding or output map.

Under a mesh (`jax.set_mesh`) each device looks up its own shard of every row's embeddings, and the output map is gathered
block by block, each no larger than a shard, as a stack of layers is gathered layer by layer.

Letters: b row, t token, d model dimension, v vocabulary, c columns of a block of the vocabulary, n blocks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from agentrm_jax.models.tiles import MASK_VALUE
from agentrm_jax.parallel import BATCH, partition


def look_up(embed_vd: Float[Array, "v d"], tokens_bt: Int[Array, "b t"], dtype: DTypeLike) -> Float[Array, "b t d"]:
    """Embeddings of tokens.

    Each device reads its columns of the embeddings for all rows of its `fsdp` group; then every row goes to its own device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not _rows_divide(tokens_bt, mesh):
        return embed_vd[tokens_bt].astype(dtype)
    spec = partition(embed_vd.shape, ("vocab", "embed"), mesh)
    vocab, columns = spec

    def local(embed_vd: jax.Array, tokens_bt: jax.Array) -> jax.Array:
        if columns:
            tokens_bt = jax.lax.all_gather(tokens_bt, columns, axis=0, tiled=True)
        if vocab:
            tokens_bt -= jax.lax.axis_index(vocab) * embed_vd.shape[0]
            here = (tokens_bt >= 0) & (tokens_bt < embed_vd.shape[0])
            found = jnp.where(here[..., None], embed_vd[jnp.where(here, tokens_bt, 0)], 0)
        else:
            found = embed_vd[tokens_bt]
        found = found.astype(dtype)
        if columns:
            found = jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(found, vocab) if vocab else found

    return jax.shard_map(local, in_specs=(spec, BATCH), out_specs=BATCH)(embed_vd, tokens_bt)


def log_probabilities(
    head_dv: Float[Array, "d v"],
    hidden_btd: Float[Array, "b t d"],
    tokens_bt: Int[Array, "b t"],
    *,
    positions: int = 256,
) -> Float[Array, "b t"]:
    """log p of `tokens` under the logits `hidden @ head`, float32.

    The vocabulary is read in blocks with an online log-sum-exp, forward and backward, of as many columns as make the logits
    in memory at a time no more than those of `positions` tokens of a row; no [b, t, v] array is ever made.
    """
    mesh = jax.sharding.get_abstract_mesh()
    blocks = -(-hidden_btd.shape[1] // positions)
    if mesh.empty or not _rows_divide(tokens_bt, mesh):
        return _log_probabilities(head_dv, hidden_btd, tokens_bt, blocks, None, None)
    spec = partition(head_dv.shape, ("embed", "vocab"), mesh)
    rows, vocab = spec
    if rows:
        blocks = max(blocks, mesh.shape[rows])

    def local(head_dv: jax.Array, hidden_btd: jax.Array, tokens_bt: jax.Array) -> jax.Array:
        return _log_probabilities(head_dv, hidden_btd, tokens_bt, blocks, rows, vocab)

    return jax.shard_map(local, in_specs=(spec, BATCH, BATCH), out_specs=BATCH)(head_dv, hidden_btd, tokens_bt)


def _log_probabilities(
    head_dv: jax.Array,
    hidden_btd: jax.Array,
    tokens_bt: jax.Array,
    blocks: int,
    rows: str | None,
    vocab: str | None,
) -> jax.Array:
    """`log_probabilities` from one device's shard of the map: its rows lie over mesh axis `rows`, its columns over `vocab`."""
    d, v = head_dv.shape
    columns = -(-v // blocks)
    head_dv = jnp.pad(head_dv, ((0, 0), (0, blocks * columns - v)))
    head_ndc = head_dv.reshape(d, blocks, columns).swapaxes(0, 1)
    if vocab:
        tokens_bt -= jax.lax.axis_index(vocab) * v
    dtype = hidden_btd.dtype
    hidden_btd = hidden_btd.astype(jnp.float32)  # so that its gradient, a sum over blocks, is one of float32

    @jax.checkpoint
    def block(carry: tuple[jax.Array, ...], xs: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, ...], None]:
        top_bt, sum_bt, chosen_bt = carry
        head_dc, first = xs
        head_dc = head_dc.astype(dtype)
        if rows:
            head_dc = jax.lax.all_gather(head_dc, rows, axis=0, tiled=True)
        scores = jnp.einsum("btd,dc->btc", hidden_btd.astype(dtype), head_dc, preferred_element_type=jnp.float32)
        scores = jnp.where(first + jnp.arange(columns) < v, scores, MASK_VALUE)
        new_top = jnp.maximum(top_bt, jax.lax.stop_gradient(scores).max(-1))
        sum_bt = sum_bt * jnp.exp(top_bt - new_top) + jnp.exp(scores - new_top[..., None]).sum(-1)
        at = tokens_bt - first
        here = (at >= 0) & (at < columns) & (tokens_bt < v)
        score = jnp.take_along_axis(scores, jnp.where(here, at, 0)[..., None], axis=-1)[..., 0]
        return (new_top, sum_bt, chosen_bt + jnp.where(here, score, 0.0)), None

    zeros = jnp.zeros_like(hidden_btd[..., 0])
    if vocab:
        zeros = jax.lax.pcast(zeros, vocab, to="varying")  # they will hold what this device's columns give
    start = (zeros + MASK_VALUE, zeros, zeros)
    (top, total, chosen), _ = jax.lax.scan(block, start, (head_ndc, np.arange(blocks, dtype=np.int32) * columns))
    if vocab:
        highest = jax.lax.pmax(jax.lax.stop_gradient(top), vocab)
        total = jax.lax.psum(total * jnp.exp(top - highest), vocab)
        chosen, top = jax.lax.psum(chosen, vocab), highest
    return chosen - top - jnp.log(total)


def _rows_divide(tokens_bt: jax.Array, mesh: jax.sharding.AbstractMesh) -> bool:
    return tokens_bt.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
