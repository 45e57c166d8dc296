"""What a model is trained for: each objective with its loss, what it needs of model and data, and what it reports.

An objective computes its loss on the final hidden states of a packed batch. `config.loss` names it; `find` looks it up.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from agentrm_jax.models.transformer import Transformer, token_logprobs, values
from agentrm_jax.training import losses
from agentrm_jax.types import UserError

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[[Transformer, Batch], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """One way to train a model.

    Attributes:
      kind: what is trained, as the model's card says it.
      source: the config key that names the data: `experts` (trajectories) or `trees` (search trees).
      lm_head, value_head: output maps that the model needs.
      fields: arrays of a batch that the loss reads beside the token trees themselves, all [b, t].
      compute: (model, hidden states [b, t, d], batch) -> (scalar loss, scalar metrics).
      predict: (model, hidden states [b, t, d], batch) -> predicted outcomes [b, t], on the scale of the targets; None if the
        model predicts none (a policy).
    """

    kind: Literal["policy", "explicit"]
    source: Literal["experts", "trees"]
    lm_head: bool
    value_head: bool
    fields: tuple[str, ...]
    compute: Callable[[Transformer, jax.Array, Batch], tuple[jax.Array, Metrics]]
    predict: Callable[[Transformer, jax.Array, Batch], jax.Array] | None = None

    def loss(self, dtype: Any) -> Loss:
        """The objective as a function of model and packed batch (arrays [b, t]); hidden states are computed in `dtype`."""

        def loss(model: Transformer, batch: Batch) -> tuple[jax.Array, Metrics]:
            return self.compute(model, hidden_states(model, batch, dtype), batch)

        return loss


def hidden_states(model: Transformer, batch: Batch, dtype: Any) -> jax.Array:
    """Final hidden states [b, t, d] of a packed batch of token trees (arrays [b, t])."""
    return model(batch["tokens"], batch["positions"], batch["subtree_end"], dtype=dtype)


def _imitation(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    logprobs_bt = token_logprobs(model, hidden_btd, batch["tokens"], batch["previous"])
    weights_bt = batch["loss_weight"]
    trained = jnp.sum(weights_bt > 0, dtype=jnp.int32)
    return losses.imitation(logprobs_bt, weights_bt), {"trained_tokens": trained}


def _head_value(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> jax.Array:
    return values(model, hidden_btd)


def _head_probability(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> jax.Array:
    return jax.nn.sigmoid(values(model, hidden_btd))


def _regression(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    predicted_bt = values(model, hidden_btd)
    loss = losses.regression(predicted_bt, batch["value"], batch["value_weight"])
    return loss, _value_metrics(predicted_bt, batch)


def _cross_entropy(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    logits_bt = values(model, hidden_btd)
    loss = losses.cross_entropy(logits_bt, batch["value"], batch["value_weight"])
    return loss, _value_metrics(jax.nn.sigmoid(logits_bt), batch)


def _value_metrics(predicted_bt: jax.Array, batch: Batch) -> Metrics:
    """Error of predicted outcomes, beside the error of always predicting the batch's mean target."""
    targets_bt, weights_bt = batch["value"], batch["value_weight"]
    mean = losses.weighted_mean(targets_bt, weights_bt)
    return {
        "squared_error": losses.regression(predicted_bt, targets_bt, weights_bt),
        "target_variance": losses.regression(jnp.broadcast_to(mean, targets_bt.shape), targets_bt, weights_bt),
        "states": jnp.sum(weights_bt > 0, dtype=jnp.int32),
    }


_VALUE = ("value", "value_weight")
OBJECTIVES: Mapping[str, Objective] = {
    "imitation": Objective("policy", "experts", True, False, ("previous", "loss_weight"), _imitation),
    "regression": Objective("explicit", "trees", False, True, _VALUE, _regression, _head_value),
    "cross_entropy": Objective("explicit", "trees", False, True, _VALUE, _cross_entropy, _head_probability),
}


def find(name: str) -> Objective:
    """The objective that `config.loss` names.

    Raises:
      UserError: there is none of this name.
    """
    if name not in OBJECTIVES:
        *others, last = OBJECTIVES
        raise UserError(f"--config.loss={name}: known losses are {', '.join(others)} and {last}")
    return OBJECTIVES[name]
