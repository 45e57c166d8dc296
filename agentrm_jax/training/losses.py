"""Losses as pure functions of arrays. Entries of weight 0 contribute nothing, and a loss without any weight is 0."""

import jax
import jax.numpy as jnp


def weighted_mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Scalar sum(w * x) / sum(w) of arrays of one shape; 0 if all weights are 0. Where a weight is 0, x may be anything, NaN too."""
    x = jnp.where(weights > 0, x, 0.0)
    total = jnp.sum(weights)
    return jnp.sum(x * weights) / jnp.where(total > 0, total, 1.0)


def imitation(logprobs: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean negative log-likelihood in nats a token, of log-probabilities [b, t] (paper eq. 1, per token)."""
    return weighted_mean(-logprobs, weights)


def regression(values: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean squared error of predicted values [b, t] against targets [b, t] (paper eq. 2)."""
    values, targets = _masked(values, weights), _masked(targets, weights)
    return weighted_mean(jnp.square(values - targets), weights)


def cross_entropy(values: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean binary cross-entropy of sigmoid(values [b, t]) against soft targets [b, t] in [0, 1]; stable for any value."""
    values, targets = _masked(values, weights), _masked(targets, weights)
    losses = -targets * jax.nn.log_sigmoid(values) - (1 - targets) * jax.nn.log_sigmoid(-values)
    return weighted_mean(losses, weights)


def _masked(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`x` with 0 where the weight is 0, so that a NaN there reaches neither the loss nor its gradient."""
    return jnp.where(weights > 0, x, 0.0)
