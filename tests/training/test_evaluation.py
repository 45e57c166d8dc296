"""Predictions for held-out states are those of each state read alone, and their metrics are written and said."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.data.heldout import HeldOut
from agentrm_jax.testing.tiny import dense_values, tiny_model
from agentrm_jax.training import evaluation, objectives
from agentrm_jax.training.step import TrainState
from agentrm_jax.tree import Node, Segment
from agentrm_jax.types import UserError

MODEL = tiny_model()


def held_out(rows: int = 5, length: int = 40) -> tuple[HeldOut, list[list[int]]]:
    """A branching tree in every row, with a state at the end of each branch; and the path to every state."""
    rng = np.random.default_rng(0)
    packed, paths = [], []
    for _ in range(rows):
        a, b, c = (rng.integers(1, 97, n).astype(np.int32) for n in (9, 6, 8))
        packed.append(
            tree.to_row([tree.flatten([Node(Segment(x, "action"), p) for x, p in ((a, -1), (b, 0), (c, 0))])], length)
        )
        paths += [[*a, *b], [*a, *c]]
    fields = ("tokens", "positions", "subtree_end", "previous")
    states = 2 * rows
    held = HeldOut(
        rows={f: np.stack([getattr(row, f) for row in packed]) for f in fields},
        row=np.repeat(np.arange(rows), 2).astype(np.int32),
        column=np.array([14, 22] * rows, np.int32),
        target=np.linspace(0, 1, states).astype(np.float32),
        task=np.repeat([f"hall/{i}" for i in range(rows)], 2),
        sibling=np.repeat(np.arange(rows), 2).astype(np.int32),
        success=np.array([0.0, 1.0] * rows, np.float32),
        length=np.ones(states, np.int32),
    )
    return held, paths


@pytest.mark.parametrize("loss", ["regression", "cross_entropy"])
def test_predictions_are_those_of_each_state_alone_also_when_rows_do_not_divide(loss):
    held, paths = held_out()
    graphdef, params = nnx.split(MODEL, nnx.Param)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    objective = objectives.find(loss)
    predict = evaluation.make_predict(graphdef, objective, jnp.float32, mesh, held, rows=2)
    got = predict(TrainState(jnp.int32(3), params, ()))
    alone = np.array([dense_values(MODEL, path)[-1] for path in paths])
    np.testing.assert_allclose(got, alone if loss == "regression" else 1 / (1 + np.exp(-alone)), atol=1e-5)


def test_metrics_are_those_of_the_states():
    held, _ = held_out()
    found = evaluation.measure(held.target, held)
    assert found["metrics"]["mse"] == found["metrics"]["mse_ratio"] == 0
    assert (found["metrics"]["states"], found["metrics"]["tasks"], found["metrics"]["sibling_pairs"]) == (10, 5, 5)
    assert found["metrics"]["sibling_accuracy"] == found["metrics"]["spearman_within_task"] == 1
    worse = evaluation.measure(-held.target, held)["metrics"]
    assert worse["sibling_accuracy"] == 0
    assert (worse["pairs"], worse["pairwise_accuracy"]) == (0, None), "no two states of a task differ by more than 0.3"
    assert worse["success_auc"] < found["metrics"]["success_auc"]


def test_values_that_are_not_finite_end_the_run_by_name():
    held, _ = held_out()
    with pytest.raises(UserError, match=r"values are not finite; lower --config\.learning_rate"):
        evaluation.measure(np.full(10, np.nan, np.float32), held)


def test_the_latest_metrics_lie_in_a_file_and_in_one_line(tmp_path):
    held, _ = held_out()
    found = evaluation.measure(held.target, held)
    for step in (3, 6):
        evaluation.write(tmp_path, step, found)
    row = json.loads((tmp_path / "evaluation.json").read_text())
    assert row == {"step": 6, **found}
    assert sum(b["count"] for b in row["calibration"]) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
    said = evaluation.summary(found)
    assert said.startswith(
        "10 held-out states of 5 tasks: mse 0.000, of the variance 0.000, Spearman within a task 1.000, "
    )
    assert "clear pairs" not in said, "there are none"
