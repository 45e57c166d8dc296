"""Training starts from a model that is bigger than a device: every shard reads its own part, nothing is ever whole.

Run as a script with a folder, this file is the program that does so on eight simulated devices.
"""

import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.chat import load_chat
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.export import write_hf
from agentrm_jax.models import pretrained, weights
from agentrm_jax.models.card import Card
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.opening import OpenedModel, build_model, open_model
from agentrm_jax.testing.devices import run_on_eight
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.training.checkpoint import Checkpoints
from agentrm_jax.training.step import TrainState, init_state
from agentrm_jax.tree import Node, Segment

POLICY = {"kind": "policy", "lm_head": True, "value_head": False}
REWARD = {"kind": "explicit", "lm_head": False, "value_head": True}


def config_for(vocab: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        num_layers=3,
        d_model=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=64,
        tie_embeddings=False,
    )


def start(base: OpenedModel | None, config: ModelConfig, about: dict, mesh: jax.sharding.Mesh) -> TrainState:
    """A fresh state as train.py makes it."""
    read = base.read if base else None
    return init_state(
        lambda rngs: build_model(Card.from_json(about | {"config": config.to_json()}), rngs),
        optax.adamw(1e-3),
        mesh,
        3,
        read,
    )[1]


def describe(state: TrainState, source: dict) -> dict[str, dict]:
    """For every parameter: share of it that one device holds, its optimizer state too, and whether it equals `source`."""
    known = {path: np.asarray(x) for path, x in nnx.to_flat_state(source)}
    moments = dict(nnx.to_flat_state(state.opt_state[0].mu))
    out = {}
    for path, x in nnx.to_flat_state(state.params):
        value, moment = x[...], moments[path][...]
        out[path[-1]] = {
            "share": value.addressable_shards[0].data.size / value.size,
            "moment": moment.addressable_shards[0].data.size / moment.size,
            "equal": path in known and bool(np.array_equal(value, known[path])),
            "zero": not np.asarray(value).any(),
        }
    return out


def main(folder: Path) -> None:
    chat = load_chat(train_tokenizer(["An agent acts.", "It learns."] * 4, 300))
    config = config_for(-(-len(chat.tokenizer) // 16) * 16)
    mesh = parallel.make_mesh(1, 8, 1)
    made = start(None, config, POLICY, mesh)
    params = nnx.to_pure_dict(made.params)
    report = {}

    # A model from elsewhere, whose file notes what is read of it.
    write_hf(params, config, chat, folder / "hf", "CausalLM")
    reads: dict[str, list[float]] = {}
    real = pretrained.open_safetensors

    def noting(place: Path) -> weights.Source:
        source = real(place)

        def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
            shape = source.shapes[name]
            got = [len(range(n)[s]) for n, s in zip(shape, index, strict=True)]
            reads.setdefault(name, []).append(math.prod(got) / math.prod(shape))
            return source.read(name, index)

        return weights.Source(source.origin, source.shapes, read)

    pretrained.open_safetensors = noting
    base = open_model(folder / "hf")
    assert not reads, "opening reads no weights"
    report["pretrained"] = describe(start(base, base.config, POLICY, mesh), made.params)
    report["reads"] = {name: max(parts) for name, parts in reads.items()}
    reads.clear()
    report["reward"] = describe(start(base, base.config, REWARD, mesh), made.params)
    report["unread"] = sorted(set(base_names(folder / "hf")) - set(reads))

    # A workdir of ours, written on this mesh and read on others.
    run = folder / "run"
    run.mkdir()
    (run / "model.json").write_text(json.dumps({**POLICY, "config": config.to_json()}))
    chat.tokenizer.save_pretrained(run / "tokenizer")
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(made, iter(pipeline.batches(some_trees(), rows=1, row_length=8, seed=0)), {"tokens": 0})
    base = open_model(run)
    report["workdir"] = describe(start(base, config, REWARD, mesh), made.params)
    both = parallel.make_mesh(1, 4, 2)
    report["other_mesh"] = describe(start(base, config, POLICY, both), made.params)
    print(json.dumps(report))


def some_trees() -> list[dict[str, np.ndarray]]:
    flat = tree.flatten([Node(Segment(np.arange(1, 9, dtype=np.int32), "action", True), -1)])
    fields = ("tokens", "positions", "subtree_end", "previous", "loss_weight", "value", "value_weight")
    return [{f: getattr(flat, f) for f in fields}]


def base_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return list(file.keys())


MATRICES = ("embed_vd", "wq_dnh", "wk_dkh", "wv_dkh", "wo_nhd", "w_gate_df", "w_up_df", "w_down_fd")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, dict]:
    return run_on_eight(__file__, str(tmp_path_factory.mktemp("start")))[0]


@pytest.mark.parametrize("start", ["pretrained", "reward", "workdir", "other_mesh"])
def test_every_matrix_and_its_optimizer_state_arrive_in_eighths_with_the_models_values(report, start):
    for name in MATRICES:
        assert report[start][name] == {"share": 1 / 8, "moment": 1 / 8, "equal": True, "zero": False}, name


def test_no_read_of_the_file_asks_for_more_than_a_shard_of_a_matrix(report):
    largest = {share for name, share in report["reads"].items() if not name.endswith("norm.weight")}
    assert largest == {1 / 8}


def test_what_the_base_lacks_is_initialised_and_what_training_does_not_want_is_not_read(report):
    for start in ("reward", "workdir"):
        assert "head_dv" not in report[start]
        assert report[start]["value_d"]["zero"]
    assert report["unread"] == ["lm_head.weight"]
    assert report["pretrained"]["head_dv"]["equal"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
