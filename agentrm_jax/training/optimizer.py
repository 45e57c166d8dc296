"""The optimizer: AdamW with warm-up, cosine decay and clipped gradients."""

from typing import Any

import jax
import optax
from flax import nnx


def optimizer_of(config: Any) -> optax.GradientTransformation:
    """The optimizer that a training config asks for."""
    return make_optimizer(
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        total_steps=config.total_steps,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )


def make_optimizer(
    *, learning_rate: float, warmup: float, total_steps: int, weight_decay: float, clip: float, b2: float = 0.999
) -> optax.GradientTransformation:
    """AdamW with a cosine schedule to zero after a linear warm-up, gradients clipped by their global norm.

    Weight decay applies to matrices only, not to norms, biases and the value head.

    Args:
      learning_rate: the highest rate, reached at the end of the warm-up.
      warmup: its length as a fraction of `total_steps`.
      clip: the largest norm of all gradients together; larger ones are scaled down to it.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(int(warmup * total_steps), 1), max(total_steps, 2), 0.0
    )

    def decays(params: Any) -> Any:
        return jax.tree.map(
            lambda v: not {"embed", "rank"}.isdisjoint(v.get_metadata().get("axes", ())),
            params,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )

    return optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decays)
    )
