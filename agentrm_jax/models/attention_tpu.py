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

from agentrm_jax.models.tiles import HIDDEN, pad_alone, product, product_t, square_tiles, tile_lists

_LANES = 128
_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))


def forward(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    end_bs: jax.Array,
    positions_bt: jax.Array,
    window: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Output [b, t, n, h] and log-sum-exp of the scores, float32[b, t, n, 1]; positions and window are not looked at."""
    b, t, n, h = q_btnh.shape
    g = n // k_bskh.shape[2]
    size, end, visible = _tiles(end_bs)
    index, count = tile_lists(visible)
    q, k, v = (_heads_first(x, end.shape[-1]) for x in (q_btnh, k_bskh, v_bskh))

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
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    end_bs: jax.Array,
    positions_bt: jax.Array,
    window: jax.Array,
    out_btnh: jax.Array,
    lse_btn1: jax.Array,
    grad_btnh: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v; each tile's weights are computed again from the log-sum-exp."""
    b, t, n, h = q_btnh.shape
    kv = k_bskh.shape[2]
    g = n // kv
    size, end, visible = _tiles(end_bs)
    padded = end.shape[-1]
    q, k, v, grad = (_heads_first(x, padded) for x in (q_btnh, k_bskh, v_bskh, grad_btnh))
    delta_btn = jnp.einsum("btnh,btnh->btn", grad_btnh, out_btnh, preferred_element_type=jnp.float32)

    def row(x_btn: jax.Array, fill: float) -> jax.Array:
        return jnp.pad(x_btn, ((0, 0), (0, padded - t), (0, 0)), constant_values=fill).swapaxes(1, 2)[:, :, None]

    lse, delta = row(lse_btn1[..., 0], -HIDDEN), row(delta_btn, 0.0)  # a padded query's weights are exp(-1e30) = 0
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
    """Size of a tile, subtree ends [b, 1, padded], every padded token alone, and which pairs of tiles are visible."""
    end = pad_alone(end_bs, -end_bs.shape[1] % _LANES).astype(jnp.int32)
    size = next(s for s in (512, 256, 128) if end.shape[1] % s == 0)
    return size, end[:, None], square_tiles(end, size)


def _heads_first(x_btnh: jax.Array, padded: int) -> jax.Array:
    """[b, n, padded, h]."""
    return jnp.pad(x_btnh, ((0, 0), (0, padded - x_btnh.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)


def _column(line_ref: Any) -> jax.Array:
    """[tile, lanes] from a row [1, tile]: what belongs to a token, beside it in every lane."""
    line = line_ref[...]
    return jnp.broadcast_to(line, (_LANES, line.shape[1])).T


def _seen(end: jax.Array, i: jax.Array, j: jax.Array, shape: tuple[int, ...], query_axis: int) -> jax.Array:
    """bool: the rule for query tile i and key tile j; `end` broadcasts along the queries."""
    query = i * shape[0] + jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
    key = j * shape[0] + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
    return (key <= query) & (query < end)


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
        top[...] = jnp.full_like(top, HIDDEN)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(c < count[b, i])
    def _() -> None:
        scores_qs = product_t(q[...], k[...]) * scale
        scores_qs = jnp.where(_seen(end[...], i, index[b, i, c], scores_qs.shape, 0), scores_qs, HIDDEN)
        old = top[:, :1]
        new = jnp.maximum(old, scores_qs.max(1, keepdims=True))
        weights_qs = jnp.exp(scores_qs - new)
        shrink = jnp.exp(old - new)
        top[...] = jnp.broadcast_to(new, top.shape)
        total[...] = total[...] * shrink + weights_qs.sum(1, keepdims=True)
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
        seen = _seen(end[...], i, index[b, i, c], scores_qs.shape, 0)
        weights_qs = jnp.where(seen, jnp.exp(scores_qs - lse_column[:, :1]), 0.0)
        dweights_qs = product_t(grad[...], v[...])
        dscores_qs = weights_qs * (dweights_qs - delta_column[:, :1])
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
        seen = _seen(end_column[:, :1], index[b, j, c % tiles], j, scores_sq.shape, 1)
        weights_sq = jnp.where(seen, jnp.exp(scores_sq - lse[...]), 0.0)
        dv_acc[...] += product(weights_sq.astype(grad.dtype), grad[...])
        dweights_sq = product_t(v[...], grad[...])
        dscores_sq = weights_sq * (dweights_sq - delta[...])
        dk_acc[...] += product(dscores_sq.astype(q.dtype), q[...])

    @pl.when(c == pl.num_programs(3) - 1)
    def _() -> None:
        dk[...] = (dk_acc[...] * scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)
