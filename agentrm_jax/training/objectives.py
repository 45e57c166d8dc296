"""What a model is trained for: each objective with its loss, what it needs of model and data, and what it reports.

An objective computes its loss on the final hidden states of a packed batch. `config.loss` names it; `find` looks it up.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from agentrm_jax.data.lessons import Lesson
from agentrm_jax.models.transformer import Transformer, head_values, token_logprobs, values
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
      weight: batch -> what the loss is a mean over, so that a batch can be read in parts; None if the loss is no such mean.
      ranks: predictions say which of several states is better, and nothing about outcomes; data keep siblings together.
      settings: config keys whose values `compute` and `predict` take by keyword.
    """

    kind: Literal["policy", "explicit", "implicit"]
    source: Literal["experts", "trees", "samples"]
    lm_head: bool
    value_head: bool
    fields: tuple[str, ...]
    compute: Callable[..., tuple[jax.Array, Metrics]]
    predict: Callable[..., jax.Array] | None = None
    weight: Callable[[Batch], jax.Array] | None = None
    ranks: bool = False
    settings: tuple[str, ...] = ()

    @property
    def reference(self) -> bool:
        """Whether batches hold what a frozen reference says."""
        return "reference" in self.fields

    @property
    def lesson(self) -> Lesson:
        """What it learns from rows of a user's own files."""
        if self.kind == "policy":
            return "imitation"
        if self.ranks:
            return "comparisons"
        if self.kind == "implicit":
            return "outcomes"
        if "count" in self.fields:
            return "returns"
        return "progress" if "before" in self.fields else "values"

    def loss(self, dtype: Any, *, head_only: bool = False) -> Loss:
        """The objective as a function of model and packed batch (arrays [b, t]); hidden states are computed in `dtype`.

        With `head_only` no gradient reaches what computes them.
        """

        def loss(model: Transformer, batch: Batch) -> tuple[jax.Array, Metrics]:
            hidden = hidden_states(model, batch, dtype)
            return self.compute(model, jax.lax.stop_gradient(hidden) if head_only else hidden, batch)

        return loss


def hidden_states(model: Transformer, batch: Batch, dtype: Any) -> jax.Array:
    """Final hidden states [b, t, d] of a packed batch of token trees (arrays [b, t])."""
    return model(batch["tokens"], batch["positions"], batch["subtree_end"], dtype=dtype)


# --- Imitation -------------------------------------------------------------------------------------------------------


def _imitation(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    logprobs_bt = token_logprobs(model, hidden_btd, batch["tokens"], batch["previous"])
    weights_bt = batch["loss_weight"]
    trained = jnp.sum(weights_bt > 0, dtype=jnp.int32)
    return losses.imitation(logprobs_bt, weights_bt), {"trained_tokens": trained}


# --- Values of single states -----------------------------------------------------------------------------------------


def _of_states(loss: Callable[..., jax.Array], outcome: Callable[[jax.Array], jax.Array]) -> Callable[..., Any]:
    """An objective's `compute` from a loss (values, targets, weights) of any shape; `outcome` turns values into predictions."""

    def compute(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        if "head_weight" not in batch:
            values_bt = values(model, hidden_btd)
            return loss(values_bt, batch["value"], batch["value_weight"]), _value_metrics(outcome(values_bt), batch)
        values_bte, weights_bte = head_values(model, hidden_btd), _head_weights(batch)
        targets_bte = jnp.broadcast_to(batch["value"][..., None], values_bte.shape)
        return loss(values_bte, targets_bte, weights_bte), _ensemble_metrics(outcome(values_bte), batch)

    return compute


def _head_weights(batch: Batch) -> jax.Array:
    """[b, t, e]: what a state weighs for each value head, in its bootstrap sample of the tasks."""
    return batch["value_weight"][..., None] * batch["head_weight"]


def _states_weight(batch: Batch) -> jax.Array:
    return jnp.sum(_head_weights(batch) if "head_weight" in batch else batch["value_weight"])


def _head_value(model: Transformer, hidden_btd: jax.Array, batch: Batch, **_: Any) -> jax.Array:
    """The settings of the loss do not matter here."""
    return values(model, hidden_btd)


def _head_probability(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> jax.Array:
    return jnp.mean(jax.nn.sigmoid(head_values(model, hidden_btd)), axis=-1)


def _value_metrics(predicted_bt: jax.Array, batch: Batch) -> Metrics:
    return losses.value_metrics(predicted_bt, batch["value"], batch["value_weight"])


def _ensemble_metrics(predicted_bte: jax.Array, batch: Batch) -> Metrics:
    """Of the heads' mean; and `disagreement`, the mean of their standard deviation at a state."""
    spread = losses.weighted_mean(jnp.std(predicted_bte, axis=-1), batch["value_weight"])
    return {**_value_metrics(jnp.mean(predicted_bte, axis=-1), batch), "disagreement": spread}


# --- Comparisons of siblings -----------------------------------------------------------------------------------------


def _pairwise(
    model: Transformer, hidden_btd: jax.Array, batch: Batch, *, center: float = 0.0
) -> tuple[jax.Array, Metrics]:
    values_bt = values(model, hidden_btd)
    of = batch["value"], batch["value_weight"], batch["group"]
    return losses.pairwise(values_bt, *of, center=center), _order_metrics(values_bt, batch)


def _listwise(model: Transformer, hidden_btd: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    values_bt = values(model, hidden_btd)
    of = batch["value"], batch["value_weight"], batch["group"]
    return losses.listwise(values_bt, *of), _order_metrics(values_bt, batch)


def _order_metrics(values_bt: jax.Array, batch: Batch) -> Metrics:
    """The share of sibling pairs in the right order, a tie counting one half, and the number of pairs."""
    weights = losses.pair_weights(batch["value"], batch["value_weight"], batch["group"])
    right = 0.5 * (jnp.sign(values_bt[:, :, None] - values_bt[:, None, :]) + 1)
    return {
        "sibling_accuracy": losses.weighted_mean(right, weights),
        "pairs": jnp.sum(weights > 0, dtype=jnp.int32),
        "states": jnp.sum(batch["value_weight"] > 0, dtype=jnp.int32),
    }


def _pairs_weight(batch: Batch) -> jax.Array:
    return jnp.sum(losses.pair_weights(batch["value"], batch["value_weight"], batch["group"]))


def _groups_weight(batch: Batch) -> jax.Array:
    return jnp.sum(losses.top_one_weights(batch["value"], batch["value_weight"], batch["group"]))


# --- Along paths -----------------------------------------------------------------------------------------------------


def _promise(
    model: Transformer, hidden_btd: jax.Array, batch: Batch, *, advantage_weight: float = 1.0
) -> tuple[jax.Array, Metrics]:
    values_bt, targets_bt = values(model, hidden_btd), batch["value"]
    of = batch["value_weight"], batch["before"]
    loss = losses.promise(values_bt, targets_bt, targets_bt, *of, advantage_weight=advantage_weight)
    return loss, _value_metrics(values_bt, batch)


def _temporal_difference(
    model: Transformer,
    hidden_btd: jax.Array,
    batch: Batch,
    *,
    td_lambda: float = 0.95,
    advantage_weight: float = 1.0,
) -> tuple[jax.Array, Metrics]:
    values_bt = values(model, hidden_btd)
    weights_bt, before_bt = batch["value_weight"], batch["before"]
    targets_bt = losses.lambda_returns(
        values_bt, batch["value"], weights_bt, before_bt, batch["count"], td_lambda=td_lambda
    )
    baseline_bt = jax.lax.stop_gradient(values_bt)
    of = weights_bt, before_bt
    loss = losses.promise(values_bt, targets_bt, baseline_bt, *of, advantage_weight=advantage_weight)
    return loss, _value_metrics(values_bt, batch)


def _implicit(compute: Callable[..., tuple[jax.Array, Metrics]], predict: Callable[..., jax.Array]) -> Objective:
    fields = (*implicit.FIELDS, *_VALUE)
    return Objective("implicit", "samples", True, False, fields, compute, predict, _states_weight, settings=("beta",))


_VALUE = ("value", "value_weight")
_SIBLINGS = (*_VALUE, "group")
_REGRESSION = _of_states(losses.regression, lambda values: values)
_CROSS_ENTROPY = _of_states(losses.cross_entropy, jax.nn.sigmoid)
_explicit = functools.partial(Objective, "explicit", "trees", False, True)

OBJECTIVES: Mapping[str, Objective] = {
    "imitation": Objective(
        "policy",
        "experts",
        True,
        False,
        ("previous", "loss_weight"),
        _imitation,
        weight=lambda batch: jnp.sum(batch["loss_weight"]),
    ),
    "regression": _explicit(_VALUE, _REGRESSION, _head_value, _states_weight),
    "cross_entropy": _explicit(_VALUE, _CROSS_ENTROPY, _head_probability, _states_weight),
    "pairwise": _explicit(_SIBLINGS, _pairwise, _head_value, _pairs_weight, ranks=True, settings=("center",)),
    "listwise": _explicit(_SIBLINGS, _listwise, _head_value, _groups_weight, ranks=True),
    "promise": _explicit((*_VALUE, "before"), _promise, _head_value, _states_weight, settings=("advantage_weight",)),
    "temporal_difference": _explicit(
        (*_VALUE, "before", "count"),
        _temporal_difference,
        _head_value,
        _states_weight,
        settings=("td_lambda", "advantage_weight"),
    ),
    "implicit_regression": _implicit(implicit.regression, implicit.rewards),
    "implicit_cross_entropy": _implicit(implicit.cross_entropy, implicit.probabilities),
    "implicit_brier": _implicit(implicit.brier, implicit.probabilities),
}


PROBABILITIES = ("cross_entropy", "implicit_cross_entropy", "implicit_brier")  # losses whose targets lie in [0, 1]


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
