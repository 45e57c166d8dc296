"""The kernel of TPUs (Pallas) for `paged`: it copies pages of the pool to vector memory while it computes on the ones before.

A TPU moves whole tiles of memory, so what is read is pages of 16 slots. A history may begin and end anywhere in a page, and may
have any tokens of any pages: its columns are cut into *spans*, each of slots in a row in one page, and what else a page holds is
masked. The cache gives out slots in a row wherever it can, so that a history of any length has few more spans than full pages.

Letters: u rows, k key/value heads, q queries, h head dim, c columns, p pages of a block, s the slots of one block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from agentrm_jax.engine.memory import MASK_VALUE
from agentrm_jax.engine.paged import NOTHING, cost_estimate, finish
from agentrm_jax.models.attention_fused import product, product_t, softmax_step

PAGE = 16  # slots: rows of a tile of bfloat16, two tiles of float32
_PAGES = 8  # pages of a block: as many slots as a vector register has lanes
_SLOTS = PAGE * _PAGES
LANES = 128
_QUERIES = 256  # queries of a program at most


def prepare(table_uc: jax.Array, length_u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Spans of every row's columns, int32[u, 3, c + 1 padded], and how many a row has, int32[u].

    Of a span: the page's first slot; the column which that slot would be; the first column that is in the span, which ends where
    the next one begins. Behind the last span there are empty ones.
    """
    u, c = table_uc.shape
    column = jnp.arange(c)
    inside = column < length_u[:, None]
    follows = table_uc[:, 1:] == table_uc[:, :-1] + 1
    new = jnp.pad(~follows, ((0, 0), (1, 0)), constant_values=True) | (table_uc % PAGE == 0)
    number = jnp.cumsum(new & inside, axis=1) - 1
    size = c + _PAGES + 1 + -(c + _PAGES + 1) % LANES
    at = jnp.where(new & inside, number, size)
    row = jnp.arange(u)[:, None]

    def spread(x: jax.Array, fill: jax.Array) -> jax.Array:
        return jnp.broadcast_to(fill, (u, size)).at[row, at].set(x, mode="drop")

    zero = jnp.zeros((), jnp.int32)
    page = spread(table_uc // PAGE * PAGE, zero)
    base = spread(column - table_uc % PAGE, zero)
    begin = spread(jnp.broadcast_to(column, (u, c)), length_u[:, None])
    return jnp.stack([page, base, begin], axis=1), jnp.maximum(number[:, -1] + 1, 0)


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
    spans, count = prepared
    columns = spans.shape[2] - _PAGES - 1
    size = min(_QUERIES, q + -q % 16)
    pad = -q % size
    rows = jnp.pad(q_ukqh, ((0, 0), (0, 0), (0, pad), (0, 0)))
    first = jnp.pad(first_uq, ((0, 0), (0, pad)), constant_values=NOTHING)
    groups = (q + pad) // size
    low = first.reshape(u, groups, size).min(-1)
    passed = (spans[:, None, 2, 1:] <= low[:, :, None]).sum(-1)  # spans that end before anything is seen
    out, lse = pl.pallas_call(
        functools.partial(_kernel, heads=k),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(u, groups),
            in_specs=[
                pl.BlockSpec((None, *spans.shape[1:]), lambda u, i, *_: (u, 0, 0), memory_space=pltpu.SMEM),
                pl.BlockSpec((None, k, size, h), lambda u, i, *_: (u, 0, i, 0)),
                pl.BlockSpec((None, size, 1), lambda u, i, *_: (u, i, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=[
                pl.BlockSpec((None, k, size, h), lambda u, i, *_: (u, 0, i, 0)),
                pl.BlockSpec((None, k, size, 1), lambda u, i, *_: (u, 0, i, 0)),
            ],
            scratch_shapes=[
                pltpu.VMEM((2, _SLOTS, keys.shape[1]), keys.dtype),
                pltpu.VMEM((2, _SLOTS, vals.shape[1]), vals.dtype),
                pltpu.SemaphoreType.DMA((2, 2)),
                pltpu.VMEM((k, size, h), jnp.float32),
                pltpu.VMEM((k, size, LANES), jnp.float32),
                pltpu.VMEM((k, size, LANES), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((u, k, q + pad, h), jnp.float32),
            jax.ShapeDtypeStruct((u, k, q + pad, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=cost_estimate(q_ukqh.shape, columns, keys.dtype.itemsize),
        interpret=interpret,
        name="paged_attention",
    )(count, passed // _PAGES, spans, rows, first[:, :, None], keys, vals)
    return out[:, :, :q], lse[:, :, :q, 0]


def _kernel(
    count: Any,
    start: Any,
    spans: Any,
    q: Any,
    first: Any,
    keys: Any,
    vals: Any,
    out: Any,
    lse: Any,
    k_buffer: Any,
    v_buffer: Any,
    semaphore: Any,
    acc: Any,
    top: Any,
    total: Any,
    *,
    heads: int,
) -> None:
    u, h = pl.program_id(0), q.shape[-1]
    low, high = start[u, pl.program_id(1)], (count[u] + _PAGES - 1) // _PAGES
    top[...] = jnp.full_like(top, MASK_VALUE)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

    def copies(block: Any) -> list[Any]:
        side = block % 2
        made = []
        for p in range(_PAGES):
            at, to = pl.ds(pl.multiple_of(spans[0, block * _PAGES + p], PAGE), PAGE), pl.ds(p * PAGE, PAGE)
            made += [
                pltpu.make_async_copy(keys.at[at], k_buffer.at[side, to], semaphore.at[side, 0]),
                pltpu.make_async_copy(vals.at[at], v_buffer.at[side, to], semaphore.at[side, 1]),
            ]
        return made

    def columns(block: Any, axis: int) -> tuple[jax.Array, jax.Array]:
        """The column of every slot of a block, along `axis`, and whether it is in the span."""
        shape = (1, _SLOTS) if axis else (_SLOTS, 1)
        slot = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        column, there = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32)
        for p in range(_PAGES):
            at = block * _PAGES + p
            mine = spans[1, at] + slot - p * PAGE
            here = slot // PAGE == p
            column = jnp.where(here, mine, column)
            inside = (mine >= spans[2, at]) & (mine < spans[2, at + 1])
            there = jnp.where(here & inside, 1, there)
        return column, there == 1

    @pl.when(low < high)
    def begin() -> None:
        for copy in copies(low):
            copy.start()

    @pl.loop(low, high)
    def step(block: Any) -> None:
        @pl.when(block + 1 < high)
        def ahead() -> None:
            for copy in copies(block + 1):
                copy.start()

        for copy in copies(block):
            copy.wait()
        column, there = columns(block, 1)
        _, there_s1 = columns(block, 0)
        seen_qs = there & (column >= first[...])
        side = block % 2
        for k in range(heads):
            at = pl.ds(k * h, h)
            scores_qs = product_t(q[k], k_buffer[side, :, at])
            weights_qs, shrink, new_top, new_total = softmax_step(scores_qs, seen_qs, top[k, :, :1], total[k, :, :1])
            top[k] = jnp.broadcast_to(new_top, top.shape[1:])
            total[k] = jnp.broadcast_to(new_total, total.shape[1:])
            v_sh = jnp.where(there_s1, v_buffer[side, :, at], 0)  # what others have there may be no number
            acc[k] = acc[k] * shrink + product(weights_qs.astype(v_sh.dtype), v_sh)

    for k in range(heads):
        out[k], lse[k] = finish(acc[k], top[k, :, :1], total[k, :, :1])
