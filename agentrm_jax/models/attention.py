"""Attention over token trees: the rule `j <= i < subtree_end[j]`, tile by tile, in memory linear in the sequence.

A packed row or a tree is mostly empty: documents do not see each other, nor do branches. So the sequence is cut into
tiles, and only those in which anything is visible are computed, by the kernel that this module chooses: a loop in plain
XLA (`attention_xla`), or one fused kernel for TPUs (`attention_tpu`) or GPUs (`attention_gpu`).

Letters: b row, t query time, s key time, n query heads, k key/value heads, g query heads per key/value head, h head dim.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from agentrm_jax import parallel
from agentrm_jax.models import attention_gpu, attention_tpu, attention_xla
from agentrm_jax.models.tiles import MASK_VALUE, NO_WINDOW, Tiling

SHORT = 64
ATTENTION = "attention"  # name, for rematerialisation, of what attention computed


def tree_attention(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b t k h"],
    v_bskh: Float[Array, "b t k h"],
    subtree_end_bs: Int[Array, "b t"],
    *,
    positions_bt: Int[Array, "b t"] | None = None,
    window: Int[Array, ""] | int | None = None,
    tiling: Tiling | None = None,
) -> Float[Array, "b t n h"]:
    """Attention under the tree rule: query i sees key j iff j <= i < subtree_end[j].

    Queries and keys are the same tokens (t = s). With `window`, a key must also lie less than that many positions back on
    the path. Scores and softmax are float32. Under a mesh (`jax.set_mesh`) rows are split over its `data` and `fsdp` axes
    and heads over `tensor`.

    Raises:
      ValueError: there is a window, but no positions.
    """
    if window is None:
        limit, positions_bt = jnp.int32(NO_WINDOW), subtree_end_bs  # positions unused
    else:
        if positions_bt is None:
            raise ValueError("a window is counted in positions: pass positions_bt")
        limit = jnp.asarray(window, jnp.int32)
    if tiling is None and q_btnh.shape[1] <= SHORT:
        return dense_attention(q_btnh, k_bskh, v_bskh, subtree_end_bs, positions_bt, limit)
    return _tiled(tiling, window is not None, q_btnh, k_bskh, v_bskh, subtree_end_bs, positions_bt, limit)


def dense_attention(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b t k h"],
    v_bskh: Float[Array, "b t k h"],
    subtree_end_bs: Int[Array, "b t"],
    positions_bt: Int[Array, "b t"],
    window: Int[Array, ""] | int,
) -> Float[Array, "b t n h"]:
    """Tree attention with all [t, s] scores at once: for short sequences, and as reference for the tiled kernels."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    at = jnp.arange(t)
    seen_bts = (at <= at[:, None]) & (at[:, None] < subtree_end_bs[:, None])
    seen_bts &= positions_bt[:, :, None] - positions_bt[:, None] < window
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h) * h**-0.5
    scores = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_bts[:, None, None], scores, MASK_VALUE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_bskh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh).reshape(b, t, n, h)


class Kernel(NamedTuple):
    """One implementation of tree attention.

    Attributes:
      forward: (q, k, v, subtree_end, positions, window) -> output [b, t, n, h], log-sum-exp of the scores float32[b, t, n, 1].
      backward: (the same, output, log-sum-exp, gradient of the output) -> gradients of q, k and v.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def choose_kernel(platform: str, shape_btnh: tuple[int, ...], windowed: bool, tiling: Tiling | None = None) -> Kernel:
    """The fused kernel of a platform if that takes these heads and there is no window, else the loop over tiles in XLA.

    `tiling` asks for the loop with these tiles. By default they are small on CPUs, where a turn of the loop costs little and
    small tiles skip the most, and large elsewhere, where every turn costs launches.
    """
    b, t, _, h = shape_btnh
    if tiling is None and not windowed and h % 16 == 0:
        if platform == "tpu":
            return Kernel(attention_tpu.forward, attention_tpu.backward)
        if platform == "gpu" and h & (h - 1) == 0:  # Triton's arrays have powers of two
            return Kernel(attention_gpu.forward, attention_gpu.backward)
    if tiling is None:
        tiling = Tiling(1, 64, 64) if platform == "cpu" else Tiling(b, min(1024, -(-t // 256) * 256), 256)
    return Kernel(
        functools.partial(attention_xla.forward, tiling, windowed),
        functools.partial(attention_xla.backward, tiling, windowed),
    )


def _over_mesh(f, q: jax.Array, k: jax.Array, outputs: int):
    """`f` wrapped so that each device runs it on its own rows and heads; an axis that does not divide is computed whole.

    The compiler would gather all rows before a loop over row groups, and it cannot divide a fused kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if size > 1 and kind != jax.sharding.AxisType.Manual
    }
    rows = tuple(a for a in ("data", "fsdp") if a in sizes)
    while rows and q.shape[0] % math.prod(sizes[a] for a in rows):
        rows = rows[:-1]
    heads = "tensor" if "tensor" in sizes and k.shape[2] % sizes["tensor"] == 0 else None
    if not sizes:
        return f
    spec = {4: P(rows or None, None, heads, None), 2: P(rows or None, None), 0: P()}

    def sharded(*args: jax.Array):
        specs = tuple(spec[a.ndim] for a in args)
        return jax.shard_map(f, in_specs=specs, out_specs=(spec[4],) * outputs, check_vma=False)(*args)

    return sharded


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled(
    tiling: Tiling | None,
    windowed: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    end: jax.Array,
    positions: jax.Array,
    window: jax.Array,
) -> jax.Array:
    return _tiled_forward(tiling, windowed, q, k, v, end, positions, window)[0]


def _tiled_forward(tiling, windowed, q, k, v, end, positions, window):
    platform = parallel.platform()

    def run(q: jax.Array, *args: jax.Array) -> tuple[jax.Array, jax.Array]:
        return choose_kernel(platform, q.shape, windowed, tiling).forward(q, *args)

    args = (q, k, v, end, positions, window)
    out, lse = (checkpoint_name(x, ATTENTION) for x in _over_mesh(run, q, k, 2)(*args))
    return out, (*args, out, lse)


def _tiled_backward(tiling, windowed, residuals, grad):
    platform = parallel.platform()

    def run(q: jax.Array, *args: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return choose_kernel(platform, q.shape, windowed, tiling).backward(q, *args)

    q, k = residuals[:2]
    return (*_over_mesh(run, q, k, 3)(*residuals, grad), None, None, None)


_tiled.defvjp(_tiled_forward, _tiled_backward)
