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

SETTINGS = {"beta": 0.5, "center": 0.0, "advantage_weight": 1.0, "td_lambda": 0.5}
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
        "group": jnp.where(index == 3, 3, -1),
        "before": jnp.full((1, 4), -1, jnp.int32),
        "count": (index == 3).astype(jnp.float32),
    }
    return {name: every[name] for name in fields}


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_an_objective_needs_the_heads_and_the_fields_that_it_names_and_no_others(name, tiny):
    objective = objectives.of(ml_collections.ConfigDict({"loss": name, **SETTINGS}))
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
    objective = objectives.of(ml_collections.ConfigDict({"loss": name, **SETTINGS}))
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


def test_settings_of_the_config_reach_the_loss_that_has_them_and_no_other(tiny):
    def chosen(loss: str) -> objectives.Objective:
        settings = {"center": 0.5, "advantage_weight": 3.0, "td_lambda": 0.5}
        return objectives.of(ml_collections.ConfigDict({"loss": loss, "learning_rate": 1.0, **settings}))

    assert chosen("temporal_difference").compute.keywords == {"td_lambda": 0.5, "advantage_weight": 3.0}
    assert chosen("pairwise").compute.keywords == {"center": 0.5}
    assert chosen("regression") is objectives.find("regression")


@pytest.mark.parametrize("name", ["regression", "cross_entropy"])
def test_an_ensembles_heads_learn_each_from_its_sample_of_the_tasks_and_predict_their_mean(name, tiny):
    """The gradient of a head is that of a model with this head alone on the states that are in its sample."""
    objective = objectives.find(name)
    heads = jax.random.normal(jax.random.key(1), (3, tiny.d_model))
    rows = batch((*TREE, *objective.fields))
    rows |= {"value_weight": jnp.array([[0.0, 1.0, 0.0, 1.0]])}
    weights = jnp.zeros((1, 4, 3)).at[0, 1].set(jnp.array([2.0, 0, 0])).at[0, 3].set(jnp.array([1.0, 3, 0]))

    def model(head):
        made = Transformer(tiny, rngs=nnx.Rngs(0), lm_head=False, value_head=True, heads=1 if head.ndim == 1 else 3)
        setattr(made, "value_d" if head.ndim == 1 else "value_ed", nnx.Param(head))
        return made

    def loss(head, batch):
        return objective.loss(jnp.float32)(model(head), batch)[0]

    gradient = jax.grad(loss)(heads, rows | {"head_weight": weights})
    for e in range(3):
        own = rows | {"value_weight": rows["value_weight"] * weights[..., e]}
        alone = jax.grad(loss)(heads[e], own) * jnp.sum(own["value_weight"])
        np.testing.assert_allclose(gradient[e] * jnp.sum(weights), alone, atol=1e-5)
    many = model(heads)
    hidden = objectives.hidden_states(many, rows, jnp.float32)
    each = objectives.head_values(many, hidden)
    each = jax.nn.sigmoid(each) if name == "cross_entropy" else each
    np.testing.assert_allclose(objective.predict(many, hidden, rows), each.mean(-1), atol=1e-5)
    metrics = objective.loss(jnp.float32)(many, rows | {"head_weight": weights})[1]
    assert metrics["disagreement"] == pytest.approx(float(each.std(-1)[0, jnp.array([1, 3])].mean()), rel=1e-4)
