"""What the compiled training step keeps on a device: shards, and of what is whole only one layer at a time.

The maps from and to the vocabulary are never whole either: one is looked up where its shards are, one is gathered in blocks.

Run as a script, this file compiles the step for eight simulated devices and reports on the optimised program.
"""

import itertools
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from agentrm_jax import parallel
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.testing.devices import run_on_eight
from agentrm_jax.training import objectives
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import TrainState, abstract_state, make_train_step

MESHES = ((1, 8, 1), (2, 4, 1), (2, 2, 2))
ROWS, LENGTH, D = 8, 96, 64


def config_for(layers: int) -> ModelConfig:
    """Sizes that no two things share, so that a shape in the program tells what it is."""
    return ModelConfig(
        vocab_size=1000,
        num_layers=layers,
        d_model=D,
        num_heads=12,
        num_kv_heads=4,
        head_dim=10,
        d_ff=176,
        tie_embeddings=False,
    )


def compiled(sizes: tuple[int, int, int], layers: int) -> tuple[Any, TrainState]:
    """The optimised step, made from shapes alone, and the shapes of its state."""
    mesh = parallel.make_mesh(*sizes)
    tx = make_optimizer(learning_rate=1e-3, warmup=0.0, total_steps=10, weight_decay=0.0, clip=1.0)
    graphdef, shape, placed = abstract_state(
        lambda rngs: Transformer(config_for(layers), rngs=rngs, scan=True, remat=True), tx, mesh
    )
    step = make_train_step(graphdef, tx, objectives.find("imitation").loss(jnp.float32), placed, mesh)
    rows = jax.sharding.NamedSharding(mesh, parallel.BATCH)
    kinds = dict.fromkeys(("tokens", "positions", "subtree_end", "previous"), jnp.int32) | {"loss_weight": jnp.float32}
    batch = {k: jax.ShapeDtypeStruct((ROWS, LENGTH), kind, sharding=rows) for k, kind in kinds.items()}
    return step.lower(shape, batch).compile(), shape  # type: ignore[attr-defined]


def results(program: str, operation: str = r"[\w\-]+") -> set[tuple[int, ...]]:
    """Shapes (without ones) of all results, or of those of one operation."""
    found = set()
    for line in re.findall(rf"= (.*?) {operation}\(", program):
        for dims in re.findall(r"[a-z]+\d*\[([\d,]+)\]", line):
            found.add(tuple(sorted(int(d) for d in dims.split(",") if d != "1")))
    return found


def unsharded(whole: tuple[int, ...], shard: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Shapes (sorted, without ones) of everything that holds more of an array than its shard."""
    ways = itertools.product(*({a, b} for a, b in zip(whole, shard, strict=True)))
    return {tuple(sorted(d for d in dims if d != 1)) for dims in ways if math.prod(dims) > math.prod(shard)}


def main() -> None:
    report = {}
    for sizes in MESHES:
        program, shape = compiled(sizes, 5)
        text = program.as_text()
        stacks, layer, vocabulary, shard_bytes = set(), set(), set(), 0
        for path, x in nnx.to_flat_state(shape.params):
            value = x.get_value()
            shard = value.sharding.shard_shape(value.shape)
            if path[0] == "layers":
                stacks |= unsharded(value.shape, shard)
                layer |= unsharded(value.shape[1:], shard[1:])
                shard_bytes += 4 * math.prod(shard[1:])
            else:
                vocabulary |= unsharded(value.shape, shard)
        gathered = {dims for dims in results(text, "all-gather(?:-start)?") if math.prod(dims) >= D * D}
        report[str(sizes)] = {
            "stacks": sorted(stacks & results(text)),
            "layer": sorted(gathered & layer),
            "vocabulary": sorted(vocabulary & results(text)),
            "other": sorted(gathered - layer),
        }
        if sizes == MESHES[0]:
            temporary = [p.memory_analysis().temp_size_in_bytes for p in (program, compiled(sizes, 9)[0])]
            saved = 4 * ROWS * LENGTH * D // (sizes[0] * sizes[1])
            report["deeper"] = {"growth": (temporary[1] - temporary[0]) / 4, "expected": shard_bytes + saved}
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report() -> dict[str, dict]:
    found, said = run_on_eight(__file__, cache=False)
    assert "rematerialization" not in said, "the compiler found no way between two layouts and made a whole copy"
    return found


@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s)))
def test_the_stack_of_layers_is_never_whole_its_layers_are_gathered_one_by_one(report, sizes):
    found = report[str(sizes)]
    assert found["stacks"] == [], "all layers of a parameter, more of it than its shard"
    assert found["layer"], "one layer's weights are gathered for its rows"


@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s)))
def test_the_maps_of_the_vocabulary_are_never_whole(report, sizes):
    found = report[str(sizes)]
    assert found["vocabulary"] == [], "more than a shard of the embeddings or the head, or of their gradients"
    blocks = {tuple(dims) for dims in found["other"]}
    assert all(math.prod(dims) <= D * 1000 / sizes[1] for dims in blocks), "nothing else that big is gathered"


def test_one_layer_more_costs_its_gradients_shard_and_its_saved_input(report):
    assert report["deeper"]["growth"] < 1.05 * report["deeper"]["expected"]


if __name__ == "__main__":
    main()
