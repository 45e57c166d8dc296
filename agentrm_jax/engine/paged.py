"""Attention over cached tokens where they lie in the pool, through a table of their slots: no history is copied.

A row's queries (of all its samples, or of a chunk of new tokens) attend to its history together, so that every cached token is
read once for all of them. What they see besides (their own tokens, a trunk) is a part of its own; parts are joined by their
log-sum-exps. The kernels are `paged_gpu` and `paged_tpu`; `histories` says when they are used.

Letters: u rows, m queries of a row, n query heads, k key/value heads, g query heads per key/value head, h head dim, c columns
(places in a history), q the m * g queries that share a key/value head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from agentrm_jax.engine.memory import MASK_VALUE

Part = tuple[
    jax.Array, jax.Array
]  # attention over some keys, [u, m, n, h], and log-sum-exp of the scores, float32[u, m, n]
NOTHING = jnp.iinfo(jnp.int32).max  # `first` of a query that sees no column


class Kernel(NamedTuple):
    """One way to read histories in place.

    Attributes:
      prepare: (slot table int32[u, c], lengths int32[u]) -> what `attend` reads of them; done once for all layers and steps.
      attend: (q [u, k, q, h], keys [slots, k * h], values, prepared, first int32[u, q], interpret=) -> float32[u, k, q, h]
        and float32[u, k, q]: query i sees the columns from `first[i]` to the row's length.
    """

    prepare: Callable[[jax.Array, jax.Array], Any]
    attend: Callable[..., tuple[jax.Array, jax.Array]]


def attend(
    kernel: Kernel,
    q_umnh: jax.Array,
    pool: tuple[jax.Array, jax.Array],
    prepared: Any,
    first_um: jax.Array,
    *,
    interpret: bool,
) -> Part:
    """Attention of every row's queries to the columns of its history from `first_um` on; nothing is seen of an empty one.

    Under a mesh every device reads its own heads.
    """
    u, m, _, h = q_umnh.shape
    kv = pool[0].shape[1] // h
    split = _heads_axis(kv)

    def run(q: jax.Array, keys: jax.Array, vals: jax.Array, prepared: Any, first: jax.Array) -> Part:
        k = keys.shape[1] // h
        g = q.shape[2] // k
        rows = (q * h**-0.5).reshape(u, m, k, g, h).transpose(0, 2, 1, 3, 4).reshape(u, k, m * g, h)
        out, lse = kernel.attend(rows, keys, vals, prepared, jnp.repeat(first, g, axis=1), interpret=interpret)
        out = out.reshape(u, k, m, g, h).transpose(0, 2, 1, 3, 4).reshape(u, m, k * g, h)
        return out, lse.reshape(u, k, m, g).transpose(0, 2, 1, 3).reshape(u, m, k * g)

    if split is not None:
        by_head, whole = P(None, None, *split), jax.tree.map(lambda _: P(), prepared)
        at_columns = P(None, *split)
        specs = (by_head, at_columns, at_columns, whole, P())
        run = jax.shard_map(run, in_specs=specs, out_specs=(by_head, by_head), check_vma=False)
    return run(q_umnh, *pool, prepared, first_um)


def join(parts: list[Part]) -> jax.Array:
    """Attention [u, m, n, h] over the keys of all parts together, float32."""
    high = jnp.stack([lse for _, lse in parts]).max(0)
    shares = jnp.stack([jnp.exp(lse - high)[..., None] for _, lse in parts])
    return (jnp.stack([out.astype(jnp.float32) for out, _ in parts]) * shares).sum(0) / shares.sum(0)


def bytes_read(shape_ukqh: tuple[int, ...], columns: int, itemsize: int) -> int:
    """Bytes that a kernel moves for full histories: keys and values once, queries, outputs and log-sum-exps."""
    u, k, q, h = shape_ukqh
    return u * k * (2 * columns * h * itemsize + q * (h * (itemsize + 4) + 4))


def cost_estimate(shape_ukqh: tuple[int, ...], columns: int, itemsize: int) -> pl.CostEstimate:
    """The same for XLA, which cannot look into a kernel."""
    u, k, q, h = shape_ukqh
    return pl.CostEstimate(
        flops=4 * u * k * q * columns * h,
        bytes_accessed=bytes_read(shape_ukqh, columns, itemsize),
        transcendentals=u * k * q * columns,
    )


def finish(acc: jax.Array, top: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of a softmax that was summed up key by key; zeros and the mask value where nothing was seen."""
    some = top > MASK_VALUE / 2
    total = jnp.where(some, total, 1.0)
    return jnp.where(some, acc / total, 0.0), jnp.where(some, top + jnp.log(total), MASK_VALUE)


def _heads_axis(kv: int) -> tuple[str | None] | None:
    """Mesh axis that heads are split over, in brackets; None where there is no mesh, as the compiler cannot divide a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    return ("tensor",) if kv % mesh.shape["tensor"] == 0 else (None,)
