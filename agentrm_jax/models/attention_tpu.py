"""Tree attention as fused kernels for TPUs (Pallas): forward, gradient of queries, gradient of keys and values.

One program of the grid handles one pair of tiles. The last grid axis walks over the list of visible tiles, which is read
before the tiles are fetched, so that invisible ones are neither fetched nor computed; sums stay in scratch memory meanwhile.

Letters: b row, t time, n query heads, k key/value heads, h head dim; i query tile, j key tile; q and s the queries and keys
of one tile. What belongs to a token (subtree end, log-sum-exp) lies along lanes, in rows [1, tile].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from agentrm_jax.models.attention_fused import (
    gradient_rows,
    pad_to_tiles,
    padded_ends,
    product,
    product_t,
    seen_in_tile,
    softmax_step,
    visible_pairs,
    weights_again,
)
from agentrm_jax.models.tiles import MASK_VALUE, tile_lists

_LANES = 128
_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))


def forward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b t k h"],
    v_bskh: Float[Array, "b t k h"],
    end_bs: Int[Array, "b t"],
    positions_bt: Int[Array, "b t"],
    window: Int[Array, ""] | int,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n 1"]]:
    """Output and log-sum-exp (float32) of the scores; positions and window are not read, this kernel has no windows."""
    b, t, n, h = q_btnh.shape
    g = n // k_bskh.shape[2]
    size, end, visible = _tiles(end_bs)
    index, count = tile_lists(visible)
    q, k, v = (_heads_first(x) for x in (q_btnh, k_bskh, v_bskh))

    def at_query(b: Any, n: Any, i: Any, c: Any, index: Any, count: Any) -> tuple[Any, ...]:
        return b, n, i, 0

    def at_key(b: Any, n: Any, i: Any, c: Any, index: Any, count: Any) -> tuple[Any, ...]:
        return b, n // g, index[b, i, c], 0

    tile = (None, None, size, h)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, scale=h**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, n, *index.shape[1:]),
            in_specs=[
                pl.BlockSpec(tile, at_query),
                pl.BlockSpec(tile, at_key),
                pl.BlockSpec(tile, at_key),
                pl.BlockSpec((None, 1, size), lambda b, n, i, c, index, count: (b, 0, index[b, i, c])),
            ],
            out_specs=[
                pl.BlockSpec(tile, at_query),
                pl.BlockSpec((None, None, 1, size), lambda b, n, i, c, index, count: (b, n, 0, i)),
            ],
            scratch_shapes=[pltpu.VMEM((size, w), jnp.float32) for w in (_LANES, _LANES, h)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, n, 1, q.shape[2]), jnp.float32),
        ],
        compiler_params=_PARAMS,
        interpret=interpret,
        name="tree_attention_forward",
    )(index, count, q, k, v, end)
    return out.swapaxes(1, 2)[:, :t], lse[:, :, 0, :t].swapaxes(1, 2)[..., None]


def backward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b t k h"],
    v_bskh: Float[Array, "b t k h"],
    end_bs: Int[Array, "b t"],
    positions_bt: Int[Array, "b t"],
    window: Int[Array, ""] | int,
    out_btnh: Float[Array, "b t n h"],
    lse_btn1: Float[Array, "b t n 1"],
    grad_btnh: Float[Array, "b t n h"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
    """Gradients of q, k and v; each tile's weights are computed again from the log-sum-exp."""
    b, t, n, h = q_btnh.shape
    kv = k_bskh.shape[2]
    g = n // kv
    size, end, visible = _tiles(end_bs)
    q, k, v, grad = (_heads_first(x) for x in (q_btnh, k_bskh, v_bskh, grad_btnh))
    lse, delta = (x_bnt[:, :, None] for x_bnt in gradient_rows(out_btnh, lse_btn1, grad_btnh, _LANES))
    tile, line = (None, None, size, h), (None, None, 1, size)
    scale = h**-0.5

    index, count = tile_lists(visible)

    def at_query(b: Any, n: Any, i: Any, c: Any, index: Any, count: Any) -> tuple[Any, ...]:
        return b, n, i, 0

    def at_key(b: Any, n: Any, i: Any, c: Any, index: Any, count: Any) -> tuple[Any, ...]:
        return b, n // g, index[b, i, c], 0

    line_at_query = pl.BlockSpec(line, lambda b, n, i, c, index, count: (b, n, 0, i))
    dq = pl.pallas_call(
        functools.partial(_query_kernel, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, n, *index.shape[1:]),
            in_specs=[
                pl.BlockSpec(tile, at_query),
                pl.BlockSpec(tile, at_key),
                pl.BlockSpec(tile, at_key),
                pl.BlockSpec((None, 1, size), lambda b, n, i, c, index, count: (b, 0, index[b, i, c])),
                pl.BlockSpec(tile, at_query),
                line_at_query,
                line_at_query,
            ],
            out_specs=pl.BlockSpec(tile, at_query),
            scratch_shapes=[pltpu.VMEM((size, w), jnp.float32) for w in (_LANES, _LANES, h)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="tree_attention_dq",
    )(index, count, q, k, v, end, grad, lse, delta)

    index, count = tile_lists(
        visible.mT
    )  # now the query tiles of each key tile, gone over once for each of its g heads
    tiles = index.shape[-1]

    def from_query(b: Any, k: Any, j: Any, c: Any, index: Any, count: Any) -> tuple[Any, ...]:
        return b, k * g + c // tiles, index[b, j, c % tiles], 0

    def from_query_line(b: Any, k: Any, j: Any, c: Any, index: Any, count: Any) -> tuple[Any, ...]:
        return b, k * g + c // tiles, 0, index[b, j, c % tiles]

    own_key = pl.BlockSpec(tile, lambda b, k, j, c, index, count: (b, k, j, 0))
    dk, dv = pl.pallas_call(
        functools.partial(_key_kernel, scale=scale, tiles=tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, kv, tiles, g * tiles),
            in_specs=[
                pl.BlockSpec(tile, from_query),
                own_key,
                own_key,
                pl.BlockSpec((None, 1, size), lambda b, k, j, c, index, count: (b, 0, j)),
                pl.BlockSpec(tile, from_query),
                pl.BlockSpec(line, from_query_line),
                pl.BlockSpec(line, from_query_line),
            ],
            out_specs=[own_key, own_key],
            scratch_shapes=[pltpu.VMEM((size, h), jnp.float32)] * 2 + [pltpu.VMEM((size, _LANES), jnp.int32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        compiler_params=_PARAMS,
        interpret=interpret,
        name="tree_attention_dkv",
    )(index, count, q, k, v, end, grad, lse, delta)
    dq, dk, dv = (x.swapaxes(1, 2)[:, :t] for x in (dq, dk, dv))
    return dq, dk, dv


def _tiles(end_bs: jax.Array) -> tuple[int, jax.Array, jax.Array]:
    """(size of a tile, subtree ends [b, 1, padded], which pairs of tiles are visible)."""
    end = padded_ends(end_bs, _LANES)
    size = next(s for s in (512, 256, 128) if end.shape[1] % s == 0)
    return size, end[:, None], visible_pairs(end, size)


def _heads_first(x_btnh: jax.Array) -> jax.Array:
    """The array with heads before tokens and padded to whole tiles: [b, n, padded, h]."""
    return pad_to_tiles(x_btnh, _LANES).swapaxes(1, 2)


def _column(line_ref: Any) -> jax.Array:
    """A row [1, tile] as a column [tile, lanes], repeated in every lane."""
    line = line_ref[...]
    return jnp.broadcast_to(line, (_LANES, line.shape[1])).T


def _forward_kernel(
    index: Any,
    count: Any,
    q: Any,
    k: Any,
    v: Any,
    end: Any,
    out: Any,
    lse: Any,
    top: Any,
    total: Any,
    acc: Any,
    *,
    scale: float,
) -> None:
    b, i, c = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(c == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, MASK_VALUE)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(c < count[b, i])
    def _() -> None:
        scores_qs = product_t(q[...], k[...]) * scale
        seen_qs = seen_in_tile(i, index[b, i, c], end[...], q.shape[0], 0)
        weights_qs, shrink, new_top, new_total = softmax_step(scores_qs, seen_qs, top[:, :1], total[:, :1])
        top[...] = jnp.broadcast_to(new_top, top.shape)
        total[...] = jnp.broadcast_to(new_total, total.shape)
        acc[...] = acc[...] * shrink + product(weights_qs.astype(v.dtype), v[...])

    @pl.when(c == pl.num_programs(3) - 1)
    def _() -> None:
        out[...] = (acc[...] / total[:, :1]).astype(out.dtype)
        lse[...] = (top[...] + jnp.log(total[...])).T[:1]


def _query_kernel(
    index: Any,
    count: Any,
    q: Any,
    k: Any,
    v: Any,
    end: Any,
    grad: Any,
    lse: Any,
    delta: Any,
    dq: Any,
    lse_column: Any,
    delta_column: Any,
    acc: Any,
    *,
    scale: float,
) -> None:
    b, i, c = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(c == 0)
    def _() -> None:
        lse_column[...] = _column(lse)
        delta_column[...] = _column(delta)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(c < count[b, i])
    def _() -> None:
        scores_qs = product_t(q[...], k[...]) * scale
        seen_qs = seen_in_tile(i, index[b, i, c], end[...], q.shape[0], 0)
        dweights_qs = product_t(grad[...], v[...])
        _, dscores_qs = weights_again(scores_qs, seen_qs, lse_column[:, :1], dweights_qs, delta_column[:, :1])
        acc[...] += product(dscores_qs.astype(k.dtype), k[...])

    @pl.when(c == pl.num_programs(3) - 1)
    def _() -> None:
        dq[...] = (acc[...] * scale).astype(dq.dtype)


def _key_kernel(
    index: Any,
    count: Any,
    q: Any,
    k: Any,
    v: Any,
    end: Any,
    grad: Any,
    lse: Any,
    delta: Any,
    dk: Any,
    dv: Any,
    dk_acc: Any,
    dv_acc: Any,
    end_column: Any,
    *,
    scale: float,
    tiles: int,
) -> None:
    b, j, c = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(c == 0)
    def _() -> None:
        end_column[...] = _column(end)
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    @pl.when(c % tiles < count[b, j])
    def _() -> None:
        scores_sq = product_t(k[...], q[...]) * scale
        seen_sq = seen_in_tile(index[b, j, c % tiles], j, end_column[:, :1], k.shape[0], 1)
        dweights_sq = product_t(v[...], grad[...])
        weights_sq, dscores_sq = weights_again(scores_sq, seen_sq, lse[...], dweights_sq, delta[...])
        dv_acc[...] += product(weights_sq.astype(grad.dtype), grad[...])
        dk_acc[...] += product(dscores_sq.astype(q.dtype), q[...])

    @pl.when(c == pl.num_programs(3) - 1)
    def _() -> None:
        dk[...] = (dk_acc[...] * scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)
