"""The kernel of GPUs (Pallas, compiled by Triton) for `paged`: it gathers the keys and values of a block of columns by slot.

One program of the grid owns up to 64 queries of a row and key/value head and some of the row's columns: a few rows with long
histories fill a GPU because their columns are divided too. The divisions are joined afterwards.

Letters: u rows, k key/value heads, q queries, h head dim, c columns, s the columns of one block, d divisions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from agentrm_jax.engine.memory import MASK_VALUE
from agentrm_jax.engine.paged import NOTHING, cost_estimate, finish
from agentrm_jax.models.attention_fused import product, product_t, softmax_step

_BLOCK = 64  # columns that are gathered at once
_QUERIES = (16, 32, 64)  # queries of a program; the tensor cores take no fewer
_PROGRAMS = 264  # that a large GPU runs side by side
_LEAST = 4  # blocks that a division is worth


def prepare(table_uc: jax.Array, length_u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The slot table, padded to whole blocks, and the lengths."""
    return jnp.pad(table_uc, ((0, 0), (0, -table_uc.shape[1] % _BLOCK))), length_u


def attend(
    q_ukqh: jax.Array,
    keys: jax.Array,
    vals: jax.Array,
    prepared: tuple[jax.Array, jax.Array],
    first_uq: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `paged.Kernel`."""
    u, k, q, h = q_ukqh.shape
    table, length = prepared
    size = next((s for s in _QUERIES if s >= q), _QUERIES[-1])
    pad = -q % size
    rows = jnp.pad(q_ukqh, ((0, 0), (0, 0), (0, pad), (0, 0)))
    first = jnp.pad(first_uq, ((0, 0), (0, pad)), constant_values=NOTHING)
    groups, blocks = (q + pad) // size, table.shape[1] // _BLOCK
    divisions = max(1, min(-(-_PROGRAMS // (u * k * groups)), blocks // _LEAST))
    of_pool = pl.BlockSpec((keys.shape[0], h), lambda u, k, i: (0, k))
    out, lse = pl.pallas_call(
        functools.partial(_kernel, blocks=-(-blocks // divisions), groups=groups),
        grid=(u, k, divisions * groups),
        in_specs=[
            pl.BlockSpec((None, None, size, h), lambda u, k, i: (u, k, i % groups, 0)),
            of_pool,
            of_pool,
            pl.BlockSpec((None, table.shape[1]), lambda u, k, i: (u, 0)),
            pl.BlockSpec((None, size), lambda u, k, i: (u, i % groups)),
            pl.BlockSpec((u,), lambda u, k, i: (0,)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, size, h), lambda u, k, i: (u, k, i // groups, i % groups, 0)),
            pl.BlockSpec((None, None, None, size), lambda u, k, i: (u, k, i // groups, i % groups)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((u, k, divisions, q + pad, h), jnp.float32),
            jax.ShapeDtypeStruct((u, k, divisions, q + pad), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        cost_estimate=cost_estimate(q_ukqh.shape, table.shape[1], keys.dtype.itemsize),
        interpret=interpret,
        name="paged_attention",
    )(rows, keys, vals, table, first, length)
    high = lse.max(2)
    shares = jnp.exp(lse - high[:, :, None])
    total = shares.sum(2)
    out = (out * shares[..., None]).sum(2) / total[..., None]
    return out[:, :, :q], (high + jnp.log(total))[:, :, :q]


def _kernel(
    q: Any, keys: Any, vals: Any, table: Any, first: Any, length: Any, out: Any, lse: Any, *, blocks: int, groups: int
) -> None:
    q_qh, first_q, end = q[...], first[...], length[pl.program_id(0)]
    begin = pl.program_id(2) // groups * blocks
    low = jnp.maximum(begin, jnp.min(first_q) // _BLOCK)
    high = jnp.minimum(begin + blocks, (end + _BLOCK - 1) // _BLOCK)

    def body(c: Any, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        acc_qh, top_q1, sum_q1 = carry
        column = c * _BLOCK + jnp.arange(_BLOCK)
        slots = jnp.broadcast_to(table[pl.ds(c * _BLOCK, _BLOCK)][:, None], tile)
        there = jnp.broadcast_to((column < end)[:, None], tile)
        k_sh, v_sh = (plgpu.load(x.at[slots, lane], mask=there, other=0.0) for x in (keys, vals))
        seen_qs = (column < end)[None] & (column[None] >= first_q[:, None])
        weights_qs, shrink_q1, top_q1, sum_q1 = softmax_step(product_t(q_qh, k_sh), seen_qs, top_q1, sum_q1)
        return acc_qh * shrink_q1 + product(weights_qs.astype(v_sh.dtype), v_sh), top_q1, sum_q1

    tile, one = (_BLOCK, q.shape[1]), (q.shape[0], 1)
    lane = jnp.broadcast_to(jnp.arange(q.shape[1])[None], tile)
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(one, MASK_VALUE, jnp.float32), jnp.zeros(one, jnp.float32)
    acc_qh, top_q1, sum_q1 = jax.lax.fori_loop(low, high, body, start)
    some, lse_q1 = finish(acc_qh, top_q1, sum_q1)
    out[...] = some
    lse[...] = lse_q1[:, 0]
