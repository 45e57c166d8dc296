"""Token embeddings and log-probabilities on shards: no device ever holds a whole embedding or output map.

Under a mesh (`jax.set_mesh`) each device looks up its own shard of every row's embeddings, and the output map is gathered
block by block, each no larger than a shard, as a stack of layers is gathered layer by layer.

Letters: b row, t token, d model dimension, v vocabulary, c columns of a block of the vocabulary, n blocks, m tokens
of all rows.
"""

import functools

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
        # Every device computes with rows and columns of its own; so the gradients that it finds are parts of a sum.
        head_dv = jax.lax.pcast(head_dv, ("data",) if rows else ("data", "fsdp"), to="varying")
        if vocab:
            hidden_btd = jax.lax.pcast(hidden_btd, vocab, to="varying")
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
    v = head_dv.shape[1]
    columns = -(-v // blocks)
    head_vd = jnp.pad(head_dv.T, ((0, blocks * columns - v), (0, 0)))
    if vocab:
        tokens_bt -= jax.lax.axis_index(vocab) * v
    lse, chosen = _read_blocks(v, rows, head_vd.reshape(blocks, columns, -1), hidden_btd, tokens_bt)
    if vocab:
        highest = jax.lax.pmax(jax.lax.stop_gradient(lse), vocab)
        lse = highest + jnp.log(jax.lax.psum(jnp.exp(lse - highest), vocab))
        chosen = jax.lax.psum(chosen, vocab)
    return chosen - lse


_Carry = tuple[jax.Array, jax.Array, jax.Array]  # the highest score so far, sum of weights below it, chosen score


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _read_blocks(
    v: int, rows: str | None, head_ncd: jax.Array, hidden_btd: jax.Array, tokens_bt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp of all `v` scores of every token, and the score of the token itself (0 if it is none of them), float32[b, t].

    Backward computes every block's scores again. JAX's own gradient would write what is chosen from them by a scatter, and pass
    over a block several times more.
    """
    return _read_blocks_forward(v, rows, head_ncd, hidden_btd, tokens_bt)[0]


def _block(
    rows: str | None, head_cd: jax.Array, first: jax.Array, v: int, padded: bool, hidden_btd: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A block of the map, whole, and its scores float32[b, t, c]."""
    head_cd = head_cd.astype(hidden_btd.dtype)
    if rows:
        head_cd = jax.lax.all_gather(head_cd, rows, axis=1, tiled=True)
    scores = jnp.einsum("btd,cd->btc", hidden_btd, head_cd, preferred_element_type=jnp.float32)
    if padded:
        scores = jnp.where(first + jnp.arange(head_cd.shape[0]) < v, scores, MASK_VALUE)
    return head_cd, scores


def _read_blocks_forward(v, rows, head_ncd, hidden_btd, tokens_bt):
    blocks, columns, _ = head_ncd.shape

    def block(carry: _Carry, xs: tuple[jax.Array, jax.Array]) -> tuple[_Carry, None]:
        top_bt, sum_bt, chosen_bt = carry
        _, scores = _block(rows, *xs, v, blocks * columns > v, hidden_btd)
        new_top = jnp.maximum(top_bt, scores.max(-1))
        sum_bt = sum_bt * jnp.exp(top_bt - new_top) + jnp.exp(scores - new_top[..., None]).sum(-1)
        at = tokens_bt - xs[1]
        here = (at >= 0) & (at < columns) & (tokens_bt < v)
        score = jnp.take_along_axis(scores, jnp.where(here, at, 0)[..., None], axis=-1)[..., 0]
        return (new_top, sum_bt, chosen_bt + jnp.where(here, score, 0.0)), None

    zeros = jnp.zeros_like(hidden_btd[..., 0], jnp.float32)  # varying over the mesh as the hidden states do
    start = (zeros + MASK_VALUE, zeros, zeros)
    (top, total, chosen), _ = jax.lax.scan(block, start, (head_ncd, np.arange(blocks, dtype=np.int32) * columns))
    lse = top + jnp.log(total)
    return (lse, chosen), (head_ncd, hidden_btd, tokens_bt, lse)


def _read_blocks_backward(v, rows, residuals, gradients):
    head_ncd, hidden_btd, tokens_bt, lse_bt = residuals
    grad_lse_bt, grad_chosen_bt = gradients
    blocks, columns, _ = head_ncd.shape
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def block(dhidden_btd: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        head_cd, scores = _block(rows, *xs, v, blocks * columns > v, hidden_btd)
        chosen = (tokens_bt - xs[1])[..., None] == jnp.arange(columns)
        dscores = grad_lse_bt[..., None] * jnp.exp(scores - lse_bt[..., None])
        dscores = (dscores + jnp.where(chosen, grad_chosen_bt[..., None], 0.0)).astype(hidden_btd.dtype)
        dhead_cd = jnp.einsum("dm,mc->dc", hidden_dm, dscores.reshape(-1, columns)).T
        if rows:
            dhead_cd = jax.lax.psum_scatter(dhead_cd, rows, scatter_dimension=1, tiled=True)
        return dhidden_btd + product("btc,cd->btd", dscores, head_cd), dhead_cd.astype(head_ncd.dtype)

    # The narrow side of that product is what is copied transposed (see `models.linear`), once for all blocks.
    hidden_dm = hidden_btd.reshape(-1, hidden_btd.shape[2]).T
    start = jnp.zeros_like(hidden_btd, jnp.float32)  # a sum over blocks is one of float32
    dhidden, dhead_ncd = jax.lax.scan(block, start, (head_ncd, np.arange(blocks, dtype=np.int32) * columns))
    return dhead_ncd, dhidden.astype(hidden_btd.dtype), None


_read_blocks.defvjp(_read_blocks_forward, _read_blocks_backward)


def _rows_divide(tokens_bt: jax.Array, mesh: jax.sharding.AbstractMesh) -> bool:
    return tokens_bt.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
