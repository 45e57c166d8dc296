"""How well a reward model in training predicts states that it is not trained on."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax import parallel
from agentrm_jax.data.heldout import HeldOut
from agentrm_jax.evaluation import metrics
from agentrm_jax.files import write_json
from agentrm_jax.training.objectives import Batch, Objective, hidden_states
from agentrm_jax.training.step import TrainState
from agentrm_jax.types import JSON, UserError

Predict = Callable[[TrainState], np.ndarray]


def make_predict(
    graphdef: nnx.GraphDef, objective: Objective, dtype: Any, mesh: Mesh, held: HeldOut, rows: int
) -> Predict:
    """The function that predicts the value of every held-out state: state of training -> float32[w].

    `rows` is how many rows of a batch are this process's, as in training. All processes must call it together.
    """
    predict = objective.predict
    assert predict is not None
    whole = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=whole)
    def run(params: nnx.State, frozen: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(graphdef, params, frozen)
        return predict(model, hidden_states(model, batch, dtype), batch)

    def predictions(state: TrainState) -> np.ndarray:
        every = rows * jax.process_count()
        found = []
        for start in range(0, len(held.rows["tokens"]), every):
            mine = start + rows * jax.process_index()
            batch = {name: filled(x[mine : mine + rows], rows, name) for name, x in held.rows.items()}
            with jax.set_mesh(mesh):
                found.append(np.asarray(run(state.params, state.frozen, parallel.put_batch(batch, mesh))))
        return np.concatenate(found)[held.row, held.column]

    return predictions


_OUTCOMES = ("mse", "mse_ratio", "ece", "scorer_noise", "useful_width")  # metrics of predictions that are outcomes


def measure(predicted: np.ndarray, held: HeldOut, *, ranks: bool = False) -> dict[str, JSON]:
    """All metrics of predictions [w] for held-out states: `{"metrics": {name: value}, "calibration": [bin, ...]}`.

    `ranks`: they say which state is better and no outcome, so that errors and calibration are left out.

    Raises:
      UserError: a prediction is not finite.
    """
    if not np.isfinite(predicted).all():
        raise UserError("the reward model's values are not finite; lower --config.learning_rate")
    found = metrics.reward_model_metrics(
        predicted,
        held.target,
        held.task.tolist(),
        siblings=held.sibling.tolist(),
        success=held.success,
        lengths=held.length,
    )
    if ranks:
        found = {"metrics": {k: v for k, v in found["metrics"].items() if k not in _OUTCOMES}, "calibration": []}
    found["metrics"]["tasks"] = len(set(held.task.tolist()))
    return found


def write(workdir: Path, step: int, found: dict[str, JSON]) -> None:
    """Writes the metrics of the latest step that was measured to `evaluation.json`."""
    write_json(workdir / "evaluation.json", {"step": step, **found})


def summary(found: dict[str, JSON]) -> str:
    """The metrics in one line; those that are not defined on these states are left out."""
    m = found["metrics"]
    named = {
        "mse": "mse",
        "of the variance": "mse_ratio",
        "Spearman within a task": "spearman_within_task",
        "siblings in order": "sibling_accuracy",
        "clear pairs in order": "pairwise_accuracy",
        "AUC of success": "success_auc",
        "useful width": "useful_width",
    }
    parts = [f"{words} {m[name]:.3f}" for words, name in named.items() if m.get(name) is not None]
    return f"{m['states']} held-out states of {m['tasks']} tasks: {', '.join(parts)}"


def filled(x: np.ndarray, rows: int, name: str) -> np.ndarray:
    """Rows [r, t] with empty ones after them, `rows` in all."""
    missing = rows - len(x)
    index = np.arange(x.shape[1], dtype=x.dtype)
    empty = {"subtree_end": index + 1, "previous": np.full_like(index, -1)}.get(name, np.zeros_like(index))
    return np.concatenate([x, np.broadcast_to(empty, (missing, x.shape[1]))]) if missing else x
