"""The implicit reward model: beta times the log-ratio of a policy to its frozen reference (paper 3.2.2).

    q_t = beta * sum of (log pi(y) - log pi_ref(y)) over the action tokens y up to the end of step t

`q_T` at the end of an episode is the reward of the trajectory, and what the losses compare with the outcome; the reward of step t
is q_t - q_(t-1). Prompts and observations count for nothing. Sums, not means over tokens, as the reference implementations have it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from agentrm_jax.models.transformer import Transformer, token_logprobs
from agentrm_jax.training import losses

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

FIELDS = ("previous", "action", "reference")  # of a batch, for rewards


def along_paths(x_bt: Float[Array, "b t"], previous_bt: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """The sum of x over the path that ends with each token, itself included.

    Each round adds what is known at the token as far back as the sum reaches, and doubles that: the sum of a path is added up in the
    same order wherever its tree lies in a row, and whatever else lies there.
    """
    before_bt = previous_bt
    for _ in range((x_bt.shape[1] - 1).bit_length()):
        there = before_bt >= 0
        at = jnp.maximum(before_bt, 0)
        x_bt += jnp.where(there, jnp.take_along_axis(x_bt, at, axis=1), 0.0)
        before_bt = jnp.where(there, jnp.take_along_axis(before_bt, at, axis=1), -1)
    return x_bt


def rewards(model: Transformer, hidden_btd: jax.Array, batch: Batch, *, beta: float) -> Float[Array, "b t"]:
    """The accumulated reward q at every token, float32; a step's is read at its end-of-turn token.

    `batch` holds log-probabilities of the frozen reference, `reference` [b, t], and 1 at tokens that count, `action` [b, t].
    """
    logprobs_bt = token_logprobs(model, hidden_btd, batch["tokens"], batch["previous"])
    ratios_bt = jnp.where(batch["action"] > 0, logprobs_bt - batch["reference"], 0.0)
    return beta * along_paths(ratios_bt, batch["previous"])


def probabilities(model: Transformer, hidden_btd: jax.Array, batch: Batch, *, beta: float) -> Float[Array, "b t"]:
    """sigmoid(q) at every token: the probability of success that cross-entropy trains."""
    return jax.nn.sigmoid(rewards(model, hidden_btd, batch, beta=beta))


def regression(model: Transformer, hidden_btd: jax.Array, batch: Batch, *, beta: float) -> tuple[jax.Array, Metrics]:
    """Squared error of q against the outcome, as in AgentRM."""
    found_bt = rewards(model, hidden_btd, batch, beta=beta)
    loss = losses.regression(found_bt, batch["value"], batch["value_weight"])
    return loss, losses.value_metrics(found_bt, batch["value"], batch["value_weight"])


def cross_entropy(model: Transformer, hidden_btd: jax.Array, batch: Batch, *, beta: float) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of sigmoid(q) against the outcome, as in ImplicitPRM (arXiv 2412.01981), from q itself, so that it is finite."""
    found_bt = rewards(model, hidden_btd, batch, beta=beta)
    loss = losses.cross_entropy(found_bt, batch["value"], batch["value_weight"])
    return loss, losses.value_metrics(jax.nn.sigmoid(found_bt), batch["value"], batch["value_weight"])


def brier(model: Transformer, hidden_btd: jax.Array, batch: Batch, *, beta: float) -> tuple[jax.Array, Metrics]:
    """Squared error of sigmoid(q) against the outcome: the other reading of AgentRM, which does not say whether it has a sigmoid."""
    found_bt = probabilities(model, hidden_btd, batch, beta=beta)
    loss = losses.regression(found_bt, batch["value"], batch["value_weight"])
    return loss, losses.value_metrics(found_bt, batch["value"], batch["value_weight"])
