"""One program, any mesh: eight devices in whatever arrangement give the loss and the gradients of one.

Run as a script, this file is the program that does so on simulated devices (their number must be set before JAX starts).
"""

import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.testing.devices import run_on_eight
from agentrm_jax.training import objectives
from agentrm_jax.training.step import init_state, make_train_step
from agentrm_jax.tree import Node, Segment
from agentrm_jax.types import UserError

VALUE_LOSSES = ("pairwise", "listwise", "temporal_difference")
MESHES = ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8))
# 80 tokens a row: long enough for tiles. 2 key/value heads: 8 devices cannot share them, so they are replicated there.
CONFIG = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=8, num_kv_heads=2, head_dim=8, d_ff=32)
LENGTH = 80


def batch() -> dict[str, np.ndarray]:
    """Eight rows, each with a branching tree whose siblings differ in value, another document, and padding."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        segments = [Segment(rng.integers(1, 64, n).astype(np.int32), "action", True) for n in (25, 15, 12, 20)]
        values, groups = rng.random(4), (-1, 0, 0, -1)
        of = zip(segments, (-1, 0, 0, -1), values, groups, strict=True)
        nodes = [Node(s, p, value=v, value_weight=1.0, group=g) for s, p, v, g in of]
        rows.append(tree.to_row([tree.flatten(nodes)], LENGTH))
    fields = ("tokens", "positions", "subtree_end", *tree.POINTERS, "loss_weight", "value", "value_weight", "count")
    return {f: np.stack([getattr(r, f) for r in rows]) for f in fields}


def one_step(sizes: tuple[int, int, int], devices: list[jax.Device], deep: bool) -> dict[str, Any]:
    """Loss, gradients (kept by the optimizer), where parameters and optimizer state are, and how often the step was compiled."""
    mesh = parallel.make_mesh(*sizes, devices=devices)
    tx = optax.trace(decay=0.0)
    graphdef, state, placed = init_state(
        lambda rngs: Transformer(CONFIG, rngs=rngs, scan=deep, remat=deep), tx, mesh, 0
    )
    step = make_train_step(graphdef, tx, objectives.find("imitation").loss(jnp.float32), placed, mesh)
    rows = parallel.put_batch({k: v[: parallel.batch_rows(8, mesh)] for k, v in batch().items()}, mesh)
    state, metrics = step(state, rows)
    where = {}
    for name, variables in (("params", state.params), ("opt_state", state.opt_state.trace)):
        for path, x in nnx.to_flat_state(variables):
            where[f"{name}/{path[-1]}"] = str(tuple(x[...].sharding.spec))
    gradients = jax.device_get(jax.tree.leaves(state.opt_state))
    step(state, rows)
    return {"loss": float(metrics["loss"]), "gradients": gradients, "where": where, "compilations": step.compilations()}


def value_step(
    sizes: tuple[int, int, int], devices: list[jax.Device], name: str, parts: int
) -> tuple[float, list[Any]]:
    """Loss and gradients of a loss on values, of a head that is not at zero; the rows are read in parts."""
    mesh = parallel.make_mesh(*sizes, devices=devices)
    tx, objective = optax.trace(decay=0.0), objectives.find(name)
    graphdef, state, placed = init_state(lambda rngs: Transformer(CONFIG, rngs=rngs, value_head=True), tx, mesh, 0)
    head = state.params["value_d"]
    noise = jax.device_put(jax.random.normal(jax.random.key(1), head.shape), head[...].sharding)
    state.params["value_d"] = head.replace(noise)
    how = {"accumulate": parts, "weight": objective.weight}
    step = make_train_step(graphdef, tx, objective.loss(jnp.float32), placed, mesh, **how)
    state, metrics = step(state, parallel.put_batch(batch(), mesh))
    return float(metrics["loss"]), jax.device_get(jax.tree.leaves(state.opt_state))


def main() -> None:
    report = {}
    for name in VALUE_LOSSES:
        (loss, gradients), (expected, alone) = (
            value_step((2, 2, 2), jax.devices(), name, 2),
            value_step((1, 1, 1), jax.devices()[:1], name, 1),
        )
        apart = max(
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9)) for a, b in zip(gradients, alone, strict=True)
        )
        report[name] = {"loss": abs(loss - expected) / expected, "gradient": apart}
    for deep in (False, True):
        alone = one_step((1, 1, 1), jax.devices()[:1], deep)
        for sizes in MESHES:
            got = one_step(sizes, jax.devices(), deep)
            pairs = zip(got.pop("gradients"), alone["gradients"], strict=True)
            got["gradient"] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
            got["loss"] = abs(got["loss"] - alone["loss"]) / alone["loss"]
            report[f"{sizes} {'scanned' if deep else 'unrolled'}"] = got
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report() -> dict[str, dict]:
    return run_on_eight(__file__)[0]


@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("how", ["unrolled", "scanned"])
def test_a_mesh_gives_the_loss_and_gradients_of_one_device_with_one_program(report, sizes, how):
    found = report[f"{sizes} {how}"]
    assert found["loss"] < 1e-5
    assert found["gradient"] < 1e-5
    assert found["compilations"] == 1


@pytest.mark.parametrize("name", VALUE_LOSSES)
def test_losses_that_look_along_rows_are_the_same_on_a_mesh_and_in_parts(report, name):
    assert report[name]["loss"] < 1e-5
    assert report[name]["gradient"] < 1e-4


def test_parameters_and_their_optimizer_state_lie_where_the_table_says(report):
    where = report["(2, 2, 2) scanned"]["where"]
    expected = {
        "embed_vd": ("tensor", "fsdp"),
        "wq_dnh": (None, "fsdp", "tensor", None),
        "wk_dkh": (None, "fsdp", "tensor", None),
        "wo_nhd": (None, "tensor", None, "fsdp"),
        "w_gate_df": (None, "fsdp", "tensor"),
        "w_down_fd": (None, "tensor", "fsdp"),
    }
    for name, spec in expected.items():
        assert where[f"params/{name}"] == where[f"opt_state/{name}"] == str(spec)
    assert "tensor" not in report["(1, 1, 8) scanned"]["where"]["params/wk_dkh"], (
        "two heads do not divide over eight devices"
    )
    assert "tensor" in report["(1, 1, 8) scanned"]["where"]["params/wq_dnh"]


def test_what_is_left_goes_to_the_axis_of_size_minus_one():
    assert dict(parallel.make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert dict(parallel.make_mesh(1, -1, 1, devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 2, 1), (-1, -1, 1), (-1, 0, 1), (-1, -2, -2), (1, -1, -1)])
def test_sizes_that_do_not_fit_are_refused_with_the_fix(sizes):
    with pytest.raises(
        UserError, match=rf"mesh data={sizes[0]}, .* does not fit 1 devices; set --config\.mesh\.data=-1"
    ):
        parallel.make_mesh(sizes[0], sizes[1], sizes[2], jax.devices()[:1])


def shape(data: int, fsdp: int) -> Any:
    """A mesh as far as `batch_rows` looks at it."""
    return types.SimpleNamespace(shape={"data": data, "fsdp": fsdp})


def test_rows_of_a_process(monkeypatch):
    assert parallel.batch_rows(8, shape(2, 2)) == 8
    with pytest.raises(UserError, match="batch of 6 rows does not divide over 4 devices and 1 processes"):
        parallel.batch_rows(6, shape(2, 2))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parallel.batch_rows(8, shape(2, 2)) == 4
    with pytest.raises(UserError, match="gives 2 processes no rows of their own; lower tensor"):
        parallel.batch_rows(8, shape(1, 1))


if __name__ == "__main__":
    main()
