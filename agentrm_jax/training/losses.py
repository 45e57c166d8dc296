"""Losses as pure functions of arrays. Entries of weight 0 contribute nothing, and a loss without any weight is 0."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def weighted_mean(x: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The mean sum(w * x) / sum(w); 0 if all weights are 0. Where a weight is 0, x may be anything, NaN included."""
    x = jnp.where(weights > 0, x, 0.0)
    total = jnp.sum(weights)
    return jnp.sum(x * weights) / jnp.where(total > 0, total, 1.0)


def imitation(logprobs: Float[Array, "b t"], weights: Float[Array, "b t"]) -> Float[Array, ""]:
    """Weighted mean negative log-likelihood in nats a token (paper eq. 1, per token)."""
    return weighted_mean(-logprobs, weights)


def regression(
    values: Float[Array, "b t"], targets: Float[Array, "b t"], weights: Float[Array, "b t"]
) -> Float[Array, ""]:
    """Weighted mean squared error of predicted values (paper eq. 2)."""
    values, targets = _masked(values, weights), _masked(targets, weights)
    return weighted_mean(jnp.square(values - targets), weights)


def cross_entropy(
    values: Float[Array, "b t"], targets: Float[Array, "b t"], weights: Float[Array, "b t"]
) -> Float[Array, ""]:
    """Weighted mean binary cross-entropy of sigmoid(values) against soft targets in [0, 1]; stable for any value."""
    values, targets = _masked(values, weights), _masked(targets, weights)
    losses = -targets * jax.nn.log_sigmoid(values) - (1 - targets) * jax.nn.log_sigmoid(-values)
    return weighted_mean(losses, weights)


def value_metrics(
    predicted: Float[Array, "b t"], targets: Float[Array, "b t"], weights: Float[Array, "b t"]
) -> dict[str, Num[Array, ""]]:
    """Error of predicted outcomes, beside the error of always predicting the batch's mean target."""
    mean = weighted_mean(targets, weights)
    return {
        "squared_error": regression(predicted, targets, weights),
        "target_variance": regression(jnp.broadcast_to(mean, targets.shape), targets, weights),
        "states": jnp.sum(weights > 0, dtype=jnp.int32),
    }


def _masked(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`x` with 0 where the weight is 0, so that a NaN there reaches neither the loss nor its gradient."""
    return jnp.where(weights > 0, x, 0.0)
