"""Training adapters: the base stays as it is to the last bit and costs no optimizer state, and a run can be continued and used.

Run as a script, this file trains on simulated devices (their number must be set before JAX starts).
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from agentrm_jax import parallel, tree
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.models import opening
from agentrm_jax.models.card import Card
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import LoRA, Params
from agentrm_jax.models.opening import load_adapters, load_model, open_model
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.testing.tiny import dense_values
from agentrm_jax.training import objectives
from agentrm_jax.training.checkpoint import Checkpoints
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import TrainState, abstract_state, init_state, make_train_step, read_frozen
from agentrm_jax.tree import Node, Segment
from agentrm_jax.types import UserError

SPEC = LoRA(rank=2, alpha=4.0, targets=("all-linear",))
CONFIG = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=8, num_kv_heads=2, head_dim=8, d_ff=32)


FIELDS = ("tokens", "positions", "subtree_end", "previous", "loss_weight", "value", "value_weight")


def batch() -> dict[str, np.ndarray]:
    """Eight rows, each with a branching tree that has a value at the end of every segment."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        segments = [Segment(rng.integers(1, 64, n).astype(np.int32), "action", True) for n in (9, 6, 8)]
        values = rng.random(3)
        nodes = [Node(s, p, value=v, value_weight=1.0) for s, p, v in zip(segments, (-1, 0, 0), values, strict=True)]
        rows.append(tree.to_row([tree.flatten(nodes)], 40))
    return {f: np.stack([getattr(r, f) for r in rows]) for f in FIELDS}


def base_params(config: ModelConfig) -> Params:
    """A policy that was trained elsewhere."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(5)), nnx.Param))


class Run:
    """A reward model of adapters and a value head on a policy, as train.py makes it."""

    def __init__(self, config: ModelConfig, mesh: Any, *, tx: Any = None, dtype: Any = jnp.float32, spec: LoRA = SPEC):
        self.mesh = mesh
        self.tx = tx or make_optimizer(learning_rate=1e-2, warmup=0.1, total_steps=8, weight_decay=0.1, clip=1.0)
        self.about = {"kind": "explicit", "config": config.to_json(), "lm_head": False, "value_head": True}
        self.about |= {"lora": spec.to_json(), "base": "base"}
        self.make = lambda rngs: opening.build_model(Card.from_json(self.about), rngs, dtype=dtype)
        graphdef, self.shape, self.placed = abstract_state(self.make, self.tx, mesh)
        loss = objectives.find("regression").loss(dtype)
        self.step = make_train_step(graphdef, self.tx, loss, self.placed, mesh)
        self.graphdef, self.policy = graphdef, base_params(config)
        self.batch = parallel.put_batch(batch(), mesh)

    def read(self, wanted: Params) -> Params:
        """What `OpenedModel.read` does: the base's parameters among the wanted, placed and in the wanted type."""

        def place(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
            return jax.device_put(np.array(x, like.dtype), like.sharding)

        top = {k: place(self.policy[k], wanted[k]) for k in self.policy if k in wanted and k != "layers"}
        return top | {"layers": {k: place(x, wanted["layers"][k]) for k, x in self.policy["layers"].items()}}

    def start(self, seed: int = 0) -> TrainState:
        return init_state(self.make, self.tx, self.mesh, seed, self.read)[1]

    def steps(self, state: TrainState, count: int) -> tuple[TrainState, list[float]]:
        losses = []
        for _ in range(count):
            state, metrics = self.step(state, self.batch)
            losses.append(float(metrics["loss"]))
        return state, losses


@pytest.fixture(scope="module")
def run(tiny) -> Run:
    return Run(tiny, parallel.make_mesh(devices=jax.devices()[:1]))


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def test_the_base_is_frozen_to_the_last_bit_and_is_not_even_moved(run):
    state = run.start()
    before, places = bits(state.frozen), [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.frozen)]
    trained = bits(state.params)
    after, losses = run.steps(state, 6)
    assert bits(after.frozen) == before == bits(run.read(nnx.to_pure_dict(run.shape.frozen)))
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after.frozen)] == places
    assert all(a != b for a, b in zip(bits(after.params), trained, strict=True)), "all that can be trained is"
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params)), "what is trained is donated"
    assert losses[-1] < losses[0]
    assert run.step.compilations() == 1


def test_the_first_loss_is_the_bases(run, tiny):
    """Zero adapters and a zero head: every value is 0."""
    _, (first,) = run.steps(run.start(), 1)
    values, weights = (batch()[k] for k in ("value", "value_weight"))
    assert first == pytest.approx((values**2 * weights).sum() / weights.sum(), rel=1e-5)


def test_optimizer_state_is_of_adapters_and_head_only(run, tiny):
    state = run.start()
    d, n, k, f = tiny.d_model, tiny.num_heads * tiny.head_dim, tiny.num_kv_heads * tiny.head_dim, tiny.d_ff
    adapters = tiny.num_layers * SPEC.rank * ((d + n) + 2 * (d + k) + (n + d) + 3 * (d + f))
    assert sum(x.size for x in jax.tree.leaves(state.params)) == adapters + d
    moments = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(moments) == 2 * (adapters + d)
    everything = sum(x.size for x in jax.tree.leaves(run.policy)) + d
    assert sum(x.size for x in jax.tree.leaves((state.params, state.frozen))) == everything + adapters


def test_a_bfloat16_base_has_float32_adapters_and_moments(tiny):
    run = Run(tiny, parallel.make_mesh(devices=jax.devices()[:1]), dtype=jnp.bfloat16)
    state, losses = run.steps(run.start(), 4)
    assert {x.dtype for x in jax.tree.leaves(state.frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim} == {jnp.dtype(jnp.float32)}
    assert losses[-1] < losses[0]


def test_adapters_decay_like_the_matrices_they_are_and_the_value_head_does_not(run):
    tx = make_optimizer(learning_rate=1.0, warmup=0.0, total_steps=1, weight_decay=0.5, clip=1.0)
    ones = jax.tree.map(jnp.ones_like, run.start().params)

    @jax.jit
    def decayed(params):
        nothing = jax.tree.map(jnp.zeros_like, params)
        _, state = tx.update(nothing, tx.init(params), params)  # the first step of a warm-up has rate 0
        return tx.update(nothing, state, params)[0]

    still = [path for path, x in nnx.to_flat_state(decayed(ones)) if not np.asarray(x[...]).any()]
    assert still == [("value_d",)]


def data() -> Any:
    """An iterator for checkpoints to hold."""
    flat = tree.flatten([Node(Segment(np.arange(1, 9, dtype=np.int32), "action", True), -1)])
    return iter(pipeline.batches([{f: getattr(flat, f) for f in FIELDS}] * 8, rows=2, row_length=16, seed=1))


def save(folder: Path, state: TrainState) -> None:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, data(), {"tokens": 1})


def test_a_continued_run_ends_exactly_like_an_uninterrupted_one(run, tmp_path):
    state, _ = run.steps(run.start(), 2)
    save(tmp_path / "c", state)
    whole, _ = run.steps(state, 3)
    with Checkpoints(tmp_path / "c") as checkpoints:
        state, meta = checkpoints.restore(run.shape, run.placed, data())
    assert meta == {"tokens": 1}
    assert int(state.step) == 2
    again, _ = run.steps(read_frozen(state, run.read), 3)
    assert bits(again) == bits(whole)
    assert run.step.compilations() == 1, "what was restored is placed like what was made"


@pytest.fixture
def places(run, tokenizer, tmp_path) -> tuple[Path, Path, Any]:
    """The workdirs of a policy and of adapters on it, and the state of these."""
    policy, adapters = tmp_path / "policy", tmp_path / "rm"
    for workdir in (policy, adapters):
        tokenizer.save_pretrained(workdir / "tokenizer")
    about = {"kind": "policy", "config": run.about["config"], "lm_head": True, "value_head": False}
    (policy / "model.json").write_text(json.dumps(about))
    config = ModelConfig.from_json(run.about["config"])
    _, whole, _ = init_state(lambda rngs: Transformer(config, rngs=rngs), run.tx, run.mesh, 0, run.read)
    save(policy / "checkpoints", whole)
    state, _ = run.steps(run.start(), 4)
    save(adapters / "checkpoints", state)
    about = run.about | {"base": opening.adapter_base(str(policy), open_model(policy), lm_head=False)}
    (adapters / "model.json").write_text(json.dumps(about))
    return policy, adapters, state


def test_a_workdir_of_adapters_is_loaded_as_the_model_that_was_trained(run, places):
    _, adapters, state = places
    loaded = load_model(adapters)
    assert (loaded.step, loaded.meta) == (4, {"tokens": 1})
    assert not hasattr(loaded.model.layers, "adapters"), "merged"
    ids = np.arange(1, 30)
    trained = nnx.merge(run.graphdef, state.params, state.frozen)
    np.testing.assert_allclose(dense_values(loaded.model, ids), dense_values(trained, ids), atol=1e-5)
    assert np.abs(dense_values(trained, ids)).max() > 1e-2


def test_only_what_was_trained_is_saved(run, places):
    _, workdir, state = places
    held = load_adapters(workdir)
    assert held.lora == SPEC
    assert bits(held.params) == bits(nnx.to_pure_dict(state.params))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), nnx.to_pure_dict(state.params)
    )
    with ocp.training.Checkpointer(workdir.resolve() / "checkpoints") as checkpointer:
        checkpointer.load_checkpointables(4, {"params": like})  # refuses a file that holds more than it is asked for
        less = like | {"layers": {"adapters": {k: v for k, v in like["layers"]["adapters"].items() if k != "wq_dnh"}}}
        with pytest.raises(Exception, match="Failed to load checkpointable: params"):
            checkpointer.load_checkpointables(4, {"params": less})


def test_adapters_can_be_the_base_of_adapters(run, places, tokenizer, tmp_path):
    _, first, _ = places
    second = tmp_path / "second"
    again = Run(ModelConfig.from_json(run.about["config"]), run.mesh)
    again.read = open_model(first).read  # type: ignore[method-assign]
    state, _ = again.steps(again.start(), 2)
    save(second / "checkpoints", state)
    tokenizer.save_pretrained(second / "tokenizer")
    (second / "model.json").write_text(json.dumps(again.about | {"base": str(first)}))
    ids = np.arange(1, 30)
    expected = dense_values(nnx.merge(again.graphdef, state.params, state.frozen), ids)
    np.testing.assert_allclose(dense_values(load_model(second).model, ids), expected, atol=1e-5)


def test_a_base_that_is_missing_or_another_one_is_named(places):
    policy, workdir, _ = places
    away = policy.rename(policy.with_name("away"))
    with pytest.raises(UserError, match=rf'{workdir} holds adapters for .*{policy}, .* as "base" into .*model\.json'):
        load_model(workdir)
    about = json.loads((workdir / "model.json").read_text())
    (workdir / "model.json").write_text(json.dumps(about | {"base": str(away)}))
    assert load_model(workdir).step == 4
    theirs = json.loads((away / "model.json").read_text())
    (away / "model.json").write_text(json.dumps(theirs | {"config": theirs["config"] | {"rope_theta": 5.0}}))
    with pytest.raises(UserError, match=f"adapters for another model than the one now in {away}"):
        load_model(workdir)


def test_a_run_without_adapters_has_none_and_a_policy_needs_a_base_with_a_head(places, tiny):
    policy, workdir, _ = places
    with pytest.raises(UserError, match=rf"{policy} holds no adapters; they come from a run with --config\.lora\.rank"):
        load_adapters(policy)
    untied = dataclasses.replace(open_model(workdir), config=dataclasses.replace(tiny, tie_embeddings=False))
    with pytest.raises(UserError, match=f"{workdir} has no language-model head, and adapters bring none"):
        opening.adapter_base(str(workdir), untied, lm_head=True)


MESHES = ((8, 1, 1), (2, 2, 2))


def trained_on(sizes: tuple[int, int, int], devices: list[jax.Device]) -> tuple[list[float], list[np.ndarray], Any]:
    """Losses and trained parameters after three steps of gradient descent, and the state."""
    run = Run(CONFIG, parallel.make_mesh(*sizes, devices=devices), tx=optax.sgd(0.5))
    state, losses = run.steps(run.start(), 3)
    return losses, jax.device_get(jax.tree.leaves(state.params)), state


def main() -> None:
    losses, expected, _ = trained_on((1, 1, 1), jax.devices()[:1])
    report = {}
    for sizes in MESHES:
        found, params, state = trained_on(sizes, jax.devices())
        worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(params, expected, strict=True))
        where = {}
        for path, x in [*nnx.to_flat_state(state.params), *nnx.to_flat_state(state.frozen)]:
            where[".".join(map(str, path))] = str(tuple(x[...].sharding.spec))
        difference = float(np.abs(np.array(found) / losses - 1).max())
        report[str(sizes)] = {"losses": difference, "parameters": worst, "where": where}
    print(json.dumps(report))


def test_eight_devices_train_like_one_and_adapters_lie_where_their_weights_do():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(Path(__file__).parents[2])}
    program = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert program.returncode == 0, program.stderr
    report = json.loads(program.stdout.splitlines()[-1])
    for sizes in map(str, MESHES):
        assert report[sizes]["losses"] < 1e-5
        assert report[sizes]["parameters"] < 1e-4
    where = report["(2, 2, 2)"]["where"]
    expected = {
        "layers.wq_dnh": (None, "fsdp", "tensor", None),
        "layers.adapters.wq_dnh.a": (None, "fsdp", None),
        "layers.adapters.wq_dnh.b": (None, None, "tensor", None),
        "layers.adapters.wo_nhd.a": (None, "tensor", None, None),
        "layers.adapters.wo_nhd.b": (None, None, "fsdp"),
        "layers.adapters.w_down_fd.a": (None, "tensor", None),
    }
    assert {name: where[name] for name in expected} == {name: str(spec) for name, spec in expected.items()}


if __name__ == "__main__":
    main()
