"""The optimizer: AdamW with warm-up, cosine decay and clipped gradients; the value head may have a rate of its own, or learn alone."""

from typing import Any

import jax
import optax
from flax import nnx

from agentrm_jax.models.transformer import VALUE_HEADS


def optimizer_of(config: Any) -> optax.GradientTransformation:
    """The optimizer that a training config asks for."""
    return make_optimizer(
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        total_steps=config.total_steps,
        weight_decay=config.weight_decay,
        clip=config.clip,
        head_rate=config.get("head_learning_rate", 1.0),
        head_only=config.get("freeze", "") == "trunk",
    )


def schedule_of(config: Any) -> optax.Schedule:
    """The learning rate that a training config asks for: number of updates so far -> rate of the next one."""
    return _schedule(config.learning_rate, config.warmup, config.total_steps)


def rate_change(config: Any, before: int | None, done: int) -> str:
    """What it does to the learning rate that `total_steps` was raised from `before` after `done` steps; empty if it was not."""
    if before is None:
        return ""
    was = float(_schedule(config.learning_rate, config.warmup, before)(done))
    now = float(schedule_of(config)(done))
    return f"; the learning rate goes on at {now:.3g} (it was {was:.3g}) and falls to 0 at step {config.total_steps}"


def _schedule(learning_rate: float, warmup: float, total_steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(int(warmup * total_steps), 1), max(total_steps, 2), 0.0
    )


def make_optimizer(
    *,
    learning_rate: float,
    warmup: float,
    total_steps: int,
    weight_decay: float,
    clip: float,
    b2: float = 0.999,
    head_rate: float = 1.0,
    head_only: bool = False,
) -> optax.GradientTransformation:
    """AdamW with a cosine schedule to zero after a linear warm-up, gradients clipped by their global norm.

    Weight decay applies to matrices only, not to norms, biases and the value head.

    Args:
      learning_rate: the highest rate, reached at the end of the warm-up.
      warmup: its length as a fraction of `total_steps`.
      clip: the largest norm of all gradients together; larger ones are scaled down to it.
      head_rate: the value head's rate is so many times the others'.
      head_only: nothing but the value head is changed, and no statistics are kept of the rest.
    """
    schedule = _schedule(learning_rate, warmup, total_steps)

    def decays(params: Any) -> Any:
        return jax.tree.map(
            lambda v: not {"embed", "rank"}.isdisjoint(v.get_metadata().get("axes", ())),
            params,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )

    steps = [optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decays)]
    if head_rate != 1:
        steps.append(_scaled_head(head_rate))
    tx = optax.chain(*steps)
    return optax.partition({"head": tx, "trunk": optax.set_to_zero()}, _labels) if head_only else tx


def _labels(params: Any) -> Any:
    """`head` for the arrays of the value head, `trunk` for all others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "head" if any(getattr(p, "key", "") in VALUE_HEADS for p in path) else "trunk",
        params,
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    )


def _scaled_head(factor: float) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled = jax.tree.map(
            lambda label, x: jax.tree.map(lambda u: u * factor, x) if label == "head" else x, _labels(updates), updates
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
