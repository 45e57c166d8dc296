"""Gradients of a batch whose rows are read in several parts, one after another: the memory of a part, the update of the whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from agentrm_jax import parallel

Batch = Any
Weight = Callable[[Batch], jax.Array]


def value_and_grad(
    loss: Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    batch: Batch,
    *,
    parts: int = 1,
    weight: Weight | None = None,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any]:
    """((loss, metrics), gradient) of a loss that is a weighted mean over the states, tokens or pairs of a batch of rows [b, ...].

    With several `parts` each part's mean counts by its share of the batch's whole weight, so loss and gradient equal those of the
    batch read at once, to rounding. Metrics that are whole numbers are added up, the others averaged by the same shares.

    Args:
      loss: (parameters, batch) -> (scalar, scalar metrics).
      parts: divides the rows.
      weight: batch -> what the loss is a mean over, scalar; needed for several parts.
    """
    compute = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return compute(params, batch)
    assert weight is not None
    total = weight(batch)
    total = jnp.where(total > 0, total, 1.0)
    split = {name: _split(x, parts) for name, x in batch.items()}

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        share = weight(part) / total
        found = compute(params, part)
        return jax.tree.map(
            lambda s, x: s + (x if jnp.issubdtype(x.dtype, jnp.integer) else x * share), sums, found
        ), None

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), split)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, params, one))
    return jax.lax.scan(add, zeros, split)[0]


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[b, ...] as [parts, b / parts, ...]: every device's rows are spread over all parts, so that none of them has to move."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return parallel.constrain(x, PartitionSpec(None, *parallel.BATCH))
