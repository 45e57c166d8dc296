"""Objectives: what each needs of model and data, and that a config without its data is refused by name."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training import objectives
from agentrm_jax.types import UserError

TREE = ("tokens", "positions", "subtree_end")


def batch(fields: tuple[str, ...]) -> dict[str, jax.Array]:
    """A row of one document of four tokens with only these arrays, its last token a target."""
    index = jnp.arange(4, dtype=jnp.int32)[None]
    every = {
        "tokens": index + 1,
        "positions": index,
        "subtree_end": jnp.full((1, 4), 4, jnp.int32),
        "previous": index - 1,
        "loss_weight": jnp.ones((1, 4)),
        "action": (index > 1).astype(jnp.int32),
        "reference": jnp.full((1, 4), -3.0),
        "value": jnp.full((1, 4), 0.25),
        "value_weight": (index == 3).astype(jnp.float32),
    }
    return {name: every[name] for name in fields}


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_an_objective_needs_the_heads_and_the_fields_that_it_names_and_no_others(name, tiny):
    objective = objectives.of(ml_collections.ConfigDict({"loss": name, "beta": 0.5}))
    model = Transformer(tiny, rngs=nnx.Rngs(0), lm_head=objective.lm_head, value_head=objective.value_head)
    loss, metrics = objective.loss(jnp.float32)(model, batch((*TREE, *objective.fields)))
    assert np.isfinite(loss)
    assert all(x.shape == () for x in metrics.values())
    for field in objective.fields:
        fewer = tuple(f for f in objective.fields if f != field)
        with pytest.raises(KeyError, match=field):
            objective.loss(jnp.float32)(model, batch((*TREE, *fewer)))


@pytest.mark.parametrize(
    "name", ["regression", "cross_entropy", "implicit_regression", "implicit_cross_entropy", "implicit_brier"]
)
def test_predictions_are_on_the_scale_of_the_targets(name, tiny):
    """The reported error is that of the predictions."""
    objective = objectives.of(ml_collections.ConfigDict({"loss": name, "beta": 0.5}))
    model = Transformer(tiny, rngs=nnx.Rngs(0), lm_head=objective.lm_head, value_head=True)
    model.value_d[...] = jax.random.normal(jax.random.key(1), (tiny.d_model,))
    rows = batch((*TREE, *objective.fields))
    predicted = objective.predict(model, objectives.hidden_states(model, rows, jnp.float32), rows)
    assert predicted.shape == (1, 4)
    error = objective.loss(jnp.float32)(model, rows)[1]["squared_error"]
    np.testing.assert_allclose(error, (predicted[0, 3] - 0.25) ** 2, rtol=1e-5)
    assert objectives.find("imitation").predict is None


def test_a_loss_that_does_not_exist_is_named():
    with pytest.raises(
        UserError, match=r"--config\.loss=hinge: known losses are imitation, regression, .* and implicit_brier"
    ):
        objectives.find("hinge")
