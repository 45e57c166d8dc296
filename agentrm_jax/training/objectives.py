"""What a model is trained for: each objective with its loss, what it needs of model and data, and what it reports.

An objective computes its loss on the final hidden states of a packed batch. `config.loss` names it; `find` looks it up.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from agentrm_jax.models.transformer import Transformer, token_logprobs, values
from agentrm_jax.training import implicit, losses
from agentrm_jax.types import UserError

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[[Transformer, Batch], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """One way to train a model.

    Attributes:
      kind: what is trained, as the model's card says it.
      source: the config key that names the data: `experts` (trajectories), `trees` (search trees), or `samples` (trajectories of a
        search, beside which there may be trees).
      lm_head, value_head: output maps that the model needs.
      fields: arrays of a batch that the loss reads beside the token trees themselves, all [b, t].
      compute: (model, hidden states [b, t, d], batch) -> (scalar loss, scalar metrics).
      predict: (model, hidden states [b, t, d], batch) -> predicted outcomes [b, t], on the scale of the targets; None if the
        model predicts none (a policy).
      settings: config keys whose values `compute` and `predict` take by keyword.
    """

    kind: Literal["policy", "explicit", "implicit"]
    source: Literal["experts", "trees", "samples"]
    lm_head: bool
    value_head: bool
    fields: tuple[str, ...]
    compute: Callable[..., tuple[jax.Array, Metrics]]
    predict: Callable[..., jax.Array] | None = None
    settings: tuple[str, ...] = ()

    @property
    def reference(self) -> bool:
        """Whether batches hold what a frozen reference says."""
        return "reference" in self.fields

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
    return loss, losses.value_metrics(predicted_bt, batch["value"], batch["value_weight"])


def _cross_entropy(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    logits_bt = values(model, hidden_btd)
    loss = losses.cross_entropy(logits_bt, batch["value"], batch["value_weight"])
    return loss, losses.value_metrics(jax.nn.sigmoid(logits_bt), batch["value"], batch["value_weight"])


def _implicit(compute: Callable[..., tuple[jax.Array, Metrics]], predict: Callable[..., jax.Array]) -> Objective:
    return Objective("implicit", "samples", True, False, (*implicit.FIELDS, *_VALUE), compute, predict, ("beta",))


_VALUE = ("value", "value_weight")
OBJECTIVES: Mapping[str, Objective] = {
    "imitation": Objective("policy", "experts", True, False, ("previous", "loss_weight"), _imitation),
    "regression": Objective("explicit", "trees", False, True, _VALUE, _regression, _head_value),
    "cross_entropy": Objective("explicit", "trees", False, True, _VALUE, _cross_entropy, _head_probability),
    "implicit_regression": _implicit(implicit.regression, implicit.rewards),
    "implicit_cross_entropy": _implicit(implicit.cross_entropy, implicit.probabilities),
    "implicit_brier": _implicit(implicit.brier, implicit.probabilities),
}


def of(config: Any) -> Objective:
    """The objective of a training config, with the settings that the config has for it. Raises UserError."""
    objective = find(config.loss)
    given = {name: config[name] for name in objective.settings}
    if not given:
        return objective
    predict = functools.partial(objective.predict, **given) if objective.predict else None
    return dataclasses.replace(objective, compute=functools.partial(objective.compute, **given), predict=predict)


def find(name: str) -> Objective:
    """The objective that `config.loss` names.

    Raises:
      UserError: there is none of this name.
    """
    if name not in OBJECTIVES:
        *others, last = OBJECTIVES
        raise UserError(f"--config.loss={name}: known losses are {', '.join(others)} and {last}")
    return OBJECTIVES[name]
