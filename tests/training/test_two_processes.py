"""Two processes that train together are one that trains alone: same losses, same parameters, and checkpoints of both.

Run as a script with a folder and a phase, this file is one of the processes.
"""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.data.heldout import HeldOut
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training import evaluation, objectives
from agentrm_jax.training.checkpoint import Checkpoints
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import TrainState, init_state, make_train_step
from agentrm_jax.tree import Node, Segment

CONFIG = ModelConfig(vocab_size=64, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32)
FIELDS = ("tokens", "positions", "subtree_end", "previous", "loss_weight", "value", "value_weight")
LENGTH, ROWS = 16, 16


def source() -> list[dict[str, np.ndarray]]:
    """Trees that fill a row each, so that two processes with half of the rows read what one with all of them reads."""
    rng = np.random.default_rng(0)
    segments = [Segment(rng.integers(1, 64, LENGTH).astype(np.int32), "action", True) for _ in range(32)]
    flats = [tree.flatten([Node(s, -1)]) for s in segments]
    return [{f: getattr(t, f) for f in FIELDS} for t in flats]


def train(folder: Path, until: int) -> dict[str, list[float]]:
    """A few steps as train.py makes them, from the last checkpoint on. Returns losses and a digest of the parameters."""
    mesh = parallel.make_mesh()
    data = iter(
        pipeline.batches(
            source(),
            rows=parallel.batch_rows(ROWS, mesh),
            row_length=LENGTH,
            seed=0,
            shard=jax.process_index(),
            shards=jax.process_count(),
        )
    )
    tx = make_optimizer(learning_rate=1e-2, warmup=0.0, total_steps=10, weight_decay=0.0, clip=1.0)
    graphdef, state, placed = init_state(lambda rngs: Transformer(CONFIG, rngs=rngs), tx, mesh, 0)
    step = make_train_step(graphdef, tx, objectives.find("imitation").loss(jnp.float32), placed, mesh)
    losses = []
    with Checkpoints(folder) as checkpoints:
        state, _ = checkpoints.restore(state, placed, data)
        while int(state.step) < until:
            state, metrics = step(state, parallel.put_batch(next(data), mesh))
            losses.append(float(metrics["loss"]))
            if os.environ.get("KILLED_AFTER") == f"{int(state.step)} of {jax.process_index()}":
                os.kill(os.getpid(), signal.SIGKILL)
            if int(state.step) == 2:
                checkpoints.save(state, data, {"tokens": 2})
        checkpoints.save(state, data, {"tokens": until})
    held = heldout()
    apart = Transformer(CONFIG, rngs=nnx.Rngs(1), lm_head=False, value_head=True)
    apart.value_d[...] = jnp.arange(CONFIG.d_model) / CONFIG.d_model
    graphdef, params = nnx.split(apart, nnx.Param)
    rows = parallel.batch_rows(8, mesh)
    predict = evaluation.make_predict(graphdef, objectives.find("regression"), jnp.float32, mesh, held, rows)
    predicted = predict(TrainState(state.step, params, ()))
    digest = jax.jit(lambda p: jnp.stack([jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(p)]))(state.params)
    return {"losses": losses, "parameters": np.asarray(digest).tolist(), "predicted": predicted.tolist()}


def heldout() -> HeldOut:
    """A state at the end of each of seven documents, one a row."""
    trees = source()[:7]
    of_states = {name: np.arange(7, dtype=np.int32) for name in ("row", "sibling", "length")}
    return HeldOut(
        rows={f: np.stack([t[f] for t in trees]) for f in ("tokens", "positions", "subtree_end", "previous")},
        column=np.full(7, LENGTH - 1, np.int32),
        target=np.zeros(7, np.float32),
        task=np.array(["hall/1"] * 7),
        success=np.zeros(7, np.float32),
        **of_states,
    )


def alone(folder: Path, until: int, devices: int) -> dict[str, list[float]]:
    """What one process with so many devices says that trains in `folder`."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, __file__, str(folder), str(until)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def start_two(folder: Path, until: int, devices: int = 1, **env: str) -> list[subprocess.Popen[str]]:
    """Two processes with so many devices each that train in `folder`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = os.environ | env | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    env |= {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(folder), str(until)]
    return [
        subprocess.Popen(
            command, env=env | {"JAX_PROCESS_ID": str(i)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]


def two(folder: Path, until: int, devices: int = 1) -> list[dict[str, list[float]]]:
    """What each of two processes says that trains in `folder`."""
    said = []
    for process in start_two(folder, until, devices):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    return said


@pytest.mark.slow
def test_two_processes_train_like_one_also_when_they_are_stopped_and_started_again(tmp_path):
    alone = train(tmp_path / "alone", 4)
    first = two(tmp_path / "both", 2)
    rest = two(tmp_path / "both", 4)
    assert first[0] == first[1]
    assert rest[0] == rest[1]
    np.testing.assert_allclose(first[0]["losses"] + rest[0]["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(rest[0]["parameters"], alone["parameters"], rtol=1e-5)
    assert len(set(alone["predicted"])) == 7
    np.testing.assert_allclose(rest[0]["predicted"], alone["predicted"], rtol=1e-5)
    # A bit of the last checkpoint changes: one process finds it, and both go on from the one before.
    last = max((tmp_path / "both" / "4" / "params").rglob("*"), key=lambda f: f.stat().st_size * f.is_file())
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert two(tmp_path / "both", 4) == rest


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_the_same_command_goes_on_to_equal_parameters(tmp_path, killed):
    expected = alone(tmp_path / "alone", 5, devices=8)
    ended = start_two(tmp_path / "both", 5, devices=4, KILLED_AFTER=f"3 of {killed}")
    for process in ended:
        process.communicate(timeout=300)
    assert ended[killed].returncode == -signal.SIGKILL
    assert ended[1 - killed].returncode not in (0, None)
    rest = two(tmp_path / "both", 5, devices=4)
    assert rest[0] == rest[1]
    np.testing.assert_allclose(rest[0]["losses"], expected["losses"][2:], rtol=1e-5)  # from the checkpoint of step 2
    np.testing.assert_allclose(rest[0]["parameters"], expected["parameters"], rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_and_fewer_processes(tmp_path):
    expected = alone(tmp_path / "alone", 6, devices=8)
    losses = two(tmp_path / "run", 2, devices=4)[0]["losses"]  # 2 processes of 4 devices
    losses += alone(tmp_path / "run", 4, devices=8)["losses"]  # one of 8
    last = alone(tmp_path / "run", 6, devices=2)  # one of 2
    np.testing.assert_allclose(losses + last["losses"], expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(last["parameters"], expected["parameters"], rtol=1e-5)


if __name__ == "__main__":
    patient = (
        jax.distributed.initialize
    )  # with ten seconds, not a hundred, a process that is gone is missed in time for a test
    jax.distributed.initialize = functools.partial(patient, heartbeat_timeout_seconds=10)
    parallel.start_distributed()
    assert jax.process_count() == int(os.environ.get("JAX_NUM_PROCESSES", "1"))
    print(json.dumps(train(Path(sys.argv[1]), int(sys.argv[2]))))
