"""Tree attention as fused kernels for GPUs (Pallas, compiled by Triton): forward, gradient of queries, of keys and values.

One program of the grid owns one tile and loops over the list of tiles it sees, or that see it; nothing else is read.

Letters: b row, t time, n query heads, k key/value heads, h head dim; i query tile, j key tile; q and s the queries and keys
of one tile.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
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

SIZE = 64  # tokens of a tile


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
    end = padded_ends(end_bs, SIZE)
    index, count = tile_lists(visible_pairs(end, SIZE))
    q, k, v = (pad_to_tiles(x, SIZE) for x in (q_btnh, k_bskh, v_bskh))
    padded = q.shape[1]
    own = pl.BlockSpec((None, SIZE, None, h), lambda i, b, n: (b, i, n, 0))
    row = pl.BlockSpec((None, padded, None, h), lambda i, b, n: (b, 0, n // g, 0))
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, scale=h**-0.5),
        grid=(padded // SIZE, b, n),
        in_specs=[*_list_specs(index), own, row, row, pl.BlockSpec((None, padded), lambda i, b, n: (b, 0))],
        out_specs=[own, pl.BlockSpec((None, None, SIZE), lambda i, b, n: (b, n, i))],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, padded), jnp.float32)],
        compiler_params=_warps(h),
        interpret=interpret,
        name="tree_attention_forward",
    )(index, count, q, k, v, end)
    return out[:, :t], lse.swapaxes(1, 2)[:, :t, :, None]


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
    end = padded_ends(end_bs, SIZE)
    visible = visible_pairs(end, SIZE)
    q, k, v, grad = (pad_to_tiles(x, SIZE) for x in (q_btnh, k_bskh, v_bskh, grad_btnh))
    padded = q.shape[1]
    lse, delta = gradient_rows(out_btnh, lse_btn1, grad_btnh, SIZE)
    ends = pl.BlockSpec((None, padded), lambda i, b, n: (b, 0))

    index, count = tile_lists(visible)
    own = pl.BlockSpec((None, SIZE, None, h), lambda i, b, n: (b, i, n, 0))
    row = pl.BlockSpec((None, padded, None, h), lambda i, b, n: (b, 0, n // g, 0))
    own_line = pl.BlockSpec((None, None, SIZE), lambda i, b, n: (b, n, i))
    dq = pl.pallas_call(
        functools.partial(_query_kernel, scale=h**-0.5),
        grid=(padded // SIZE, b, n),
        in_specs=[*_list_specs(index), own, row, row, ends, own, own_line, own_line],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_warps(h),
        interpret=interpret,
        name="tree_attention_dq",
    )(index, count, q, k, v, end, grad, lse, delta)

    index, count = tile_lists(visible.mT)  # now the query tiles of each key tile
    own = pl.BlockSpec((None, SIZE, None, h), lambda j, b, k: (b, j, k, 0))
    rows = pl.BlockSpec((None, padded, g, h), lambda j, b, k: (b, 0, k, 0))
    lines = pl.BlockSpec((None, g, padded), lambda j, b, k: (b, k, 0))
    dk, dv = pl.pallas_call(
        functools.partial(_key_kernel, scale=h**-0.5, heads=g),
        grid=(padded // SIZE, b, kv),
        in_specs=[*_list_specs(index), rows, own, own, ends, rows, lines, lines],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        compiler_params=_warps(h),
        interpret=interpret,
        name="tree_attention_dkv",
    )(index, count, q, k, v, end, grad, lse, delta)
    return dq[:, :t], dk[:, :t], dv[:, :t]


def _warps(h: int) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=4 if h <= 64 else 8, num_stages=2)


def _list_specs(index: jax.Array) -> list[pl.BlockSpec]:
    """Blocks of `tile_lists`: the list of the program's own tile, and the lengths of all lists of its row."""
    return [
        pl.BlockSpec((None, None, index.shape[2]), lambda i, b, n: (b, i, 0)),
        pl.BlockSpec((None, index.shape[1]), lambda i, b, n: (b, 0)),
    ]


def _forward_kernel(
    index: Any, count: Any, q: Any, k: Any, v: Any, end: Any, out: Any, lse: Any, *, scale: float
) -> None:
    i = pl.program_id(0)
    q_qh = q[...]

    def body(c: Any, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        acc_qh, top_q1, sum_q1 = carry
        j = index[c]
        at = pl.ds(j * SIZE, SIZE)
        scores_qs = product_t(q_qh, k[at, :]) * scale
        seen_qs = seen_in_tile(i, j, end[at][None], SIZE, 0)
        weights_qs, shrink_q1, top_q1, sum_q1 = softmax_step(scores_qs, seen_qs, top_q1, sum_q1)
        return acc_qh * shrink_q1 + product(weights_qs.astype(v.dtype), v[at, :]), top_q1, sum_q1

    column = (SIZE, 1)
    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(column, MASK_VALUE, jnp.float32),
        jnp.zeros(column, jnp.float32),
    )
    acc_qh, top_q1, sum_q1 = jax.lax.fori_loop(0, count[i], body, start)
    out[...] = (acc_qh / sum_q1).astype(out.dtype)
    lse[...] = (top_q1 + jnp.log(sum_q1))[:, 0]


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
    *,
    scale: float,
) -> None:
    i = pl.program_id(0)
    q_qh, grad_qh, lse_q, delta_q = q[...], grad[...], lse[...], delta[...]

    def body(c: Any, acc_qh: jax.Array) -> jax.Array:
        j = index[c]
        at = pl.ds(j * SIZE, SIZE)
        k_sh = k[at, :]
        scores_qs = product_t(q_qh, k_sh) * scale
        seen_qs = seen_in_tile(i, j, end[at][None], SIZE, 0)
        dweights_qs = product_t(grad_qh, v[at, :])
        _, dscores_qs = weights_again(scores_qs, seen_qs, lse_q[:, None], dweights_qs, delta_q[:, None])
        return acc_qh + product(dscores_qs.astype(k_sh.dtype), k_sh)

    acc_qh = jax.lax.fori_loop(0, count[i], body, jnp.zeros(q.shape, jnp.float32))
    dq[...] = (acc_qh * scale).astype(dq.dtype)


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
    *,
    scale: float,
    heads: int,
) -> None:
    j = pl.program_id(0)
    k_sh, v_sh, end_s = k[...], v[...], end[pl.ds(j * SIZE, SIZE)]
    tiles = count[j]

    def body(c: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dk_sh, dv_sh = carry
        head, i = c // tiles, index[c % tiles]
        at = pl.ds(i * SIZE, SIZE)
        q_qh, grad_qh = q[at, head, :], grad[at, head, :]
        scores_sq = product_t(k_sh, q_qh) * scale
        seen_sq = seen_in_tile(i, j, end_s[:, None], SIZE, 1)
        dweights_sq = product_t(v_sh, grad_qh)
        weights_sq, dscores_sq = weights_again(
            scores_sq, seen_sq, lse[head, at][None], dweights_sq, delta[head, at][None]
        )
        dv_sh += product(weights_sq.astype(grad_qh.dtype), grad_qh)
        return dk_sh + product(dscores_sq.astype(q_qh.dtype), q_qh), dv_sh

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk_sh, dv_sh = jax.lax.fori_loop(0, heads * tiles, body, (zeros, zeros))
    dk[...] = (dk_sh * scale).astype(dk.dtype)
    dv[...] = dv_sh.astype(dv.dtype)
