"""Tree attention as a loop over visible tiles in plain XLA: for every platform, and with windows.

The (query tile, key tile) pairs in which anything is visible are listed, and one loop runs over that list, forward with an
online softmax and backward by recomputing each tile's weights from the stored log-sum-exp.

Letters: b row, t query time, s key time, n query heads, k key/value heads, g query heads per key/value head, h head dim;
in tiles also i and j (query and key tile) and m = g * tile, the queries of one key/value head.
Everything inside a tile is transposed (keys down, queries across), so that every product is a plain matrix product and the
softmax reduces over the leading axis, which compilers for CPUs turn into vector code.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from agentrm_jax.models.tiles import MASK_VALUE, NO_WINDOW, TilePairs, Tiling, pad_alone, tile_pairs


class _Tokens(NamedTuple):
    """Subtree ends and positions, padded to whole tiles and cut into key and query tiles, and the list of visible pairs."""

    pairs: TilePairs
    end: jax.Array  # [groups, nk, rows, keys]
    key_position: jax.Array  # [groups, nk, rows, keys]
    query_position: jax.Array  # [groups, nq, rows, queries]


def _tokens(end_bt: jax.Array, positions_bt: jax.Array, window: jax.Array, tiling: Tiling) -> _Tokens:
    b, t = end_bt.shape
    pad = -t % max(tiling.queries, tiling.keys)
    end_bt = pad_alone(end_bt, pad)
    positions_bt = jnp.pad(positions_bt, ((0, 0), (0, pad)))

    def cut(a_bt: jax.Array, size: int) -> jax.Array:
        return a_bt.reshape(b // tiling.rows, tiling.rows, -1, size).swapaxes(1, 2)

    return _Tokens(
        tile_pairs(end_bt, positions_bt, window, tiling),
        cut(end_bt, tiling.keys),
        cut(positions_bt, tiling.keys),
        cut(positions_bt, tiling.queries),
    )


def _cut(x_btnh: jax.Array, size: int, kv_heads: int, tiling: Tiling) -> jax.Array:
    """[b, t, n, h] -> [groups, tiles, rows * k, g * size, h], t padded with zeros to whole tiles."""
    b, t, n, h = x_btnh.shape
    pad = -t % max(tiling.queries, tiling.keys)
    x = jnp.pad(x_btnh, ((0, 0), (0, pad), (0, 0), (0, 0)))
    x = x.reshape(b // tiling.rows, tiling.rows, -1, size, kv_heads, n // kv_heads, h)
    x = x.transpose(0, 2, 1, 4, 5, 3, 6)
    return x.reshape(b // tiling.rows, -1, tiling.rows * kv_heads, n // kv_heads * size, h)


def _join(x: jax.Array, shape_btnh: tuple[int, ...], kv_heads: int, tiling: Tiling) -> jax.Array:
    """Inverse of `_cut`."""
    b, t, n, h = shape_btnh
    size = x.shape[3] * kv_heads // n
    x = x.reshape(b // tiling.rows, -1, tiling.rows, kv_heads, n // kv_heads, size, h)
    return x.transpose(0, 2, 1, 5, 3, 4, 6).reshape(b, -1, n, h)[:, :t]


def _scores(
    kt: jax.Array, qt: jax.Array, tokens: _Tokens, at: tuple[jax.Array, ...], window: jax.Array | None, tiling: Tiling
) -> jax.Array:
    """float32[rows * k, keys, m]: masked scores of one tile, keys down and queries across."""
    group, i, j = at
    scores = jnp.einsum("rsh,rhm->rsm", kt, qt, preferred_element_type=jnp.float32)
    i_t = i * tiling.queries + jnp.arange(tiling.queries)
    j_s = j * tiling.keys + jnp.arange(tiling.keys)
    seen = (j_s[:, None] <= i_t)[None] & (i_t < tokens.end[group, j][..., None])
    if window is not None:
        seen &= tokens.query_position[group, i][:, None] - tokens.key_position[group, j][..., None] < window
    by_head = scores.reshape(tiling.rows, -1, tiling.keys, scores.shape[2] // tiling.queries, tiling.queries)
    return jnp.where(seen[:, None, :, None], by_head, MASK_VALUE).reshape(scores.shape)


def forward(
    tiling: Tiling,
    windowed: bool,
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    end: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    window: Int[Array, ""],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n 1"]]:
    """Output and log-sum-exp (float32) of the scores; positions and window count only if `windowed`."""
    kv_heads, h = k.shape[2], q.shape[3]
    tokens = _tokens(end, positions, window if windowed else jnp.int32(NO_WINDOW), tiling)
    pairs, limit = tokens.pairs, window if windowed else None
    q_hm = _cut(q * h**-0.5, tiling.queries, kv_heads, tiling).mT
    k_sh = _cut(k, tiling.keys, kv_heads, tiling)
    v_hs = _cut(v, tiling.keys, kv_heads, tiling).mT
    groups, nq, r, _, m = q_hm.shape

    def body(c: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, lse, acc_rhm, top_rm, sum_rm = carry
        group, i, j = at = pairs.group[c], pairs.query[c], pairs.key[c]
        top_rm = jnp.where(pairs.opens[c], MASK_VALUE, top_rm)
        scores = _scores(k_sh[group, j], q_hm[group, i], tokens, at, limit, tiling)
        new_top = jnp.maximum(top_rm, scores.max(1))
        weights = jnp.exp(scores - new_top[:, None])
        shrink = jnp.where(pairs.opens[c], 0.0, jnp.exp(top_rm - new_top))
        sum_rm = sum_rm * shrink + weights.sum(1)
        new = jnp.einsum("rhs,rsm->rhm", v_hs[group, j], weights.astype(v.dtype), preferred_element_type=jnp.float32)
        acc_rhm = acc_rhm * shrink[:, None] + new
        out = out.at[group, i].set((acc_rhm / sum_rm[:, None]).astype(out.dtype))
        lse = lse.at[group, i].set(new_top + jnp.log(sum_rm))
        return out, lse, acc_rhm, new_top, sum_rm

    zeros = jnp.zeros((r, m), jnp.float32)
    empty = jnp.zeros((groups, nq, r, h, m), q.dtype), jnp.zeros((groups, nq, r, m), jnp.float32)
    out, lse, *_ = jax.lax.fori_loop(0, pairs.total, body, (*empty, jnp.zeros((r, h, m), jnp.float32), zeros, zeros))
    shape = q.shape
    return _join(out.mT, shape, kv_heads, tiling), _join(lse[..., None], (*shape[:3], 1), kv_heads, tiling)


def backward(
    tiling: Tiling,
    windowed: bool,
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    end: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    window: Int[Array, ""],
    out: Float[Array, "b t n h"],
    lse: Float[Array, "b t n 1"],
    grad: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
    """Gradients of q, k and v: one turn of the loop gives a tile's share of all three."""
    kv_heads, h = k.shape[2], q.shape[3]
    tokens = _tokens(end, positions, window if windowed else jnp.int32(NO_WINDOW), tiling)
    pairs, limit = tokens.pairs, window if windowed else None
    delta = jnp.einsum("btnh,btnh->btn", grad, out, preferred_element_type=jnp.float32)[..., None]
    q_mh, grad_mh, lse_m1, delta_m1 = (
        _cut(a, tiling.queries, kv_heads, tiling) for a in (q * h**-0.5, grad, lse, delta)
    )
    k_sh, v_sh = (_cut(a, tiling.keys, kv_heads, tiling) for a in (k, v))
    q_hm, grad_hm, k_hs = q_mh.mT, grad_mh.mT, k_sh.mT
    lse_1m, delta_1m = lse_m1.mT, delta_m1.mT
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def body(c: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dq, dk, dv, dq_rhm = carry
        group, i, j = at = pairs.group[c], pairs.query[c], pairs.key[c]
        scores = _scores(k_sh[group, j], q_hm[group, i], tokens, at, limit, tiling)
        weights = jnp.exp(scores - lse_1m[group, i])
        dweights = product("rsh,rhm->rsm", v_sh[group, j], grad_hm[group, i])
        dscores = (weights * (dweights - delta_1m[group, i])).astype(q.dtype)
        dv = dv.at[group, j].add(product("rsm,rmh->rsh", weights.astype(q.dtype), grad_mh[group, i]))
        dk = dk.at[group, j].add(product("rsm,rmh->rsh", dscores, q_mh[group, i]))
        dq_rhm = jnp.where(pairs.opens[c], 0.0, dq_rhm) + product("rhs,rsm->rhm", k_hs[group, j], dscores)
        dq = dq.at[group, i].set(dq_rhm.astype(dq.dtype))
        return dq, dk, dv, dq_rhm

    start = (
        jnp.zeros(q_hm.shape, q.dtype),
        jnp.zeros(k_sh.shape, jnp.float32),
        jnp.zeros(v_sh.shape, jnp.float32),
        jnp.zeros(q_hm.shape[2:], jnp.float32),
    )
    dq, dk, dv, _ = jax.lax.fori_loop(0, pairs.total, body, start)
    return (
        _join(dq.mT, q.shape, kv_heads, tiling) * h**-0.5,
        _join(dk, k.shape, kv_heads, tiling).astype(k.dtype),
        _join(dv, v.shape, kv_heads, tiling).astype(v.dtype),
    )
