"""Losses as pure functions of arrays. Weights mask: what has weight 0 contributes nothing, and an all-zero mask gives 0."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def weighted_mean(x: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """sum(w * x) / sum(w); 0 where all weights are 0. Entries of weight 0 may be anything, NaN included."""
    x = jnp.where(weights > 0, x, 0.0)
    total = jnp.sum(weights)
    return jnp.sum(x * weights) / jnp.where(total > 0, total, 1.0)


def imitation(logprobs: Float[Array, "b t"], weights: Float[Array, "b t"]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the weighted tokens (nats a token). Shapes [b, t]; paper eq. 1, per token."""
    return weighted_mean(-logprobs, weights)


def regression(
    values: Float[Array, "b t"], targets: Float[Array, "b t"], weights: Float[Array, "b t"]
) -> Float[Array, ""]:
    """Weighted mean squared error of predicted values. Shapes [b, t]; paper eq. 2."""
    values, targets = _meant(values, weights), _meant(targets, weights)
    return weighted_mean(jnp.square(values - targets), weights)


def cross_entropy(
    values: Float[Array, "b t"], targets: Float[Array, "b t"], weights: Float[Array, "b t"]
) -> Float[Array, ""]:
    """Binary cross-entropy of sigmoid(value) against soft targets in [0, 1]; stable for any value. Shapes [b, t]."""
    values, targets = _meant(values, weights), _meant(targets, weights)
    losses = -targets * jax.nn.log_sigmoid(values) - (1 - targets) * jax.nn.log_sigmoid(-values)
    return weighted_mean(losses, weights)


def _meant(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`x` where it counts, else 0: masked before it is used, so that a NaN elsewhere does not reach the gradient either."""
    return jnp.where(weights > 0, x, 0.0)
