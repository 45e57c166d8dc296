"""The plan of a run: counts that are known, bytes that can be worked out by hand, and what real arrays take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from agentrm_jax import parallel, plan
from agentrm_jax.engine import programs
from agentrm_jax.engine.engine import make_engine
from agentrm_jax.models.config import PRESETS, ModelConfig
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.models.weights import abstract_params
from agentrm_jax.run import flags
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import init_state

ROOT = Path(__file__).parents[1]
# Parameters of the public checkpoints, as their safetensors headers add up.
PUBLIC = {
    "smollm2": 134_515_008,
    "qwen3_4b": 4_022_468_096,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
}


@pytest.mark.parametrize("size", PUBLIC)
def test_presets_have_the_parameters_of_the_public_models(size):
    assert sum(x.size for x in jax.tree.leaves(abstract_params(PRESETS[size]))) == PUBLIC[size]


def test_every_size_has_a_preset(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from configs import common

    assert set(PRESETS) == set(common.SIZES)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agentrm_jax.plan", *args]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)


SMALL = ("--config.batch_rows=8", "--config.row_length=64", "--config.init=nowhere")


def test_state_on_a_mesh_is_what_a_hand_would_work_out():
    """Llama 3 8B as a reward model, sharded 8 ways: float32 weights, two moments of Adam, a gradient; norms are on every device."""
    done = run("--config=configs/explicit.py:llama3_8b", "--devices=8", "--memory-gb=80", "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    d, vocabulary, layers = 4096, 128256, 32
    norms = (2 * layers + 1) * d + d  # and the value head
    matrices = PUBLIC["llama3_8b"] - vocabulary * d - (2 * layers + 1) * d
    assert got["parameters"] == {"trained": matrices + norms, "frozen": 0}
    weights = 4 * (matrices // 8 + norms)
    held = got["bytes_per_device"]
    assert held["weights"] == held["gradients"] == weights
    assert held["optimizer"] == 2 * weights + 8, "and two counters"
    assert got["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert got["fits"] is True
    assert got["total_bytes_per_device"] == sum(held.values())


def test_a_table_says_what_takes_the_memory_and_that_it_does_not_fit():
    done = run("--config=configs/explicit.py:llama3_8b", "--devices=2", "--memory-gb=16", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "does not fit in 16 GB a device" in done.stdout
    for word in ("weights", "optimizer", "gradients", "activations", "total", "preset llama3_8b", "fsdp=2"):
        assert word in done.stdout


def nano(name: str, **changes: Any) -> Any:
    return flags.parse([f"--config={ROOT}/configs/{name}.py", *(f"--config.{k}={v}" for k, v in changes.items())])[0]


def test_the_nano_policys_plan_is_what_its_training_state_takes():
    config = nano("sft", batch_rows=1, row_length=64)
    planned = plan.plan_training(config, jax.devices())
    mesh = parallel.make_mesh(devices=jax.devices())
    tx = make_optimizer(learning_rate=1e-3, warmup=0.1, total_steps=9, weight_decay=0.0, clip=1.0)
    shape = ModelConfig(**config.model)
    _, state, _ = init_state(lambda rngs: Transformer(shape, rngs=rngs), tx, mesh, 0)
    assert planned.bytes["weights"] == allocated(state.params)
    assert planned.bytes["optimizer"] == allocated(state.opt_state)
    assert planned.parameters["trained"] == sum(x.size for x in jax.tree.leaves(state.params))


def test_the_nano_engines_plan_is_what_an_engine_takes():
    sizes = {"engine.cache_tokens": 512, "engine.rows": "2,4", "engine.batch_tokens": "64,128"}
    sizes |= {"engine.new_tokens": "16,32", "engine.context": "64,128", "engine.max_new": 8}
    config = nano("best_of_n", **sizes, policy="nowhere", reward_model="nowhere")
    planned = plan.plan_search(config, jax.devices())
    for name, policy in (("policy", True), ("reward model", False)):
        model = Transformer(PRESETS["nano"], rngs=nnx.Rngs(0), lm_head=policy, value_head=not policy)
        engine = make_engine(model, config.engine, end_id=2)
        assert planned.bytes[f"{name} weights"] == allocated(engine._weights)
        assert planned.bytes[f"{name} KV cache"] == allocated(engine._pool)
    caches = 4 * PRESETS["nano"].num_layers * 2 * (128 + 8 * 5) * 2 * 64 * 4  # of 4 rows, both keys and values
    assert planned.bytes["batch"] > caches


def test_the_engines_of_an_implicit_reward_model_are_both_counted():
    models = plan._engines(nano("best_of_n", policy="a", reward_model="implicit:b@c"))
    assert models == {"policy": ("a", True), "reward model": ("b", True), "reference": ("c", True)}
    assert plan._engines(nano("best_of_n", policy="a", reward_model="b"))["reward model"] == ("b", False)


def test_an_implicit_reward_models_training_is_planned_with_what_its_reference_says():
    config = nano("implicit", batch_rows=1, row_length=64, **{"mesh.data": 1}, init="nowhere")
    assert {"action", "reference"} <= plan._batch(config, parallel.make_mesh(devices=jax.devices()[:1])).keys()


def test_a_decode_step_reads_at_least_its_weights_and_every_rows_keys_and_values():
    model = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=64)
    sizes = nano("best_of_n", **{"engine.rows": "2,4", "engine.context": "64,128", "engine.max_new": 8}).engine
    mesh = parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    weights, _ = plan._engine_shapes(model, sizes, True, mesh)
    least, kernels, embeddings = programs.decode_traffic(model, sizes, weights, 4, mesh)
    attention, feed_forward = 2 * 32 * 16 * (4 + 2), 3 * 32 * 64
    matrices = 2 * (attention + feed_forward) + 64 * 32  # tied: the embeddings are the map to the vocabulary
    assert least == 4 * (matrices + 5 * 32) + 4 * (128 + 8 * sizes.samples) * 2 * 2 * 16 * 4 * 2
    assert (kernels, embeddings) == (0, 4 * 64 * 32), "on a CPU no kernel reads histories"


def allocated(tree: Any) -> int:
    """Bytes of arrays that exist."""
    arrays = jax.tree.leaves(tree)
    assert all(isinstance(x, jax.Array) for x in arrays)
    return sum(x.addressable_shards[0].data.nbytes for x in arrays)


def test_layers_that_are_not_compiled_are_extrapolated():
    model = PRESETS["smollm2"]
    assert plan._by_depth(lambda m: {"a": 100 + 7 * m.num_layers}, model, scanned=False) == 100 + 7 * 30
    assert plan._by_depth(lambda m: {"a": 1000, "b": 50 * m.num_layers}, model, scanned=False) == 1500
    assert plan._by_depth(lambda m: {"a": m.num_layers}, model, scanned=True) == 30


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--config is missing"),
        (["--config=configs/sft.py", "--devices=many"], "--devices=many: must be a number"),
        (["--config=configs/sft.py", "--devices=0"], "must be more than 0"),
        (["--config=configs/sft.py", "--deviecs=8"], "cannot read '--deviecs=8'"),
        (["--config=configs/nothing.py"], "no such file"),
        (["--config=configs/sft.py:llama4_9t"], "no size 'llama4_9t'"),
        (["--config=configs/sft.py", "--config.mesh.fsdp=3"], "mesh data=-1, fsdp=3, tensor=1 does not fit"),
        (["--config=configs/sft.py", "--config.batch_row=3"], "did you mean batch_rows"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # this process has its devices already
    assert plan.main(args) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert said in out.err
    assert out.err.count("\n") == 1
    assert out.err.startswith("error: ")
