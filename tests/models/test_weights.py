"""Weights in and out: bit for bit, in any sharding, and nothing missing, left over or misshaped goes unnoticed."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.folder import open_safetensors
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.models.weights import (
    Source,
    abstract_params,
    build,
    load_params,
    tensors,
)
from agentrm_jax.types import UserError

CONFIG = ModelConfig(
    vocab_size=20,
    num_layers=2,
    d_model=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    d_ff=10,
    architecture="qwen3",
    tie_embeddings=False,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
)


def random_params(config: ModelConfig, dtype=jnp.float32, **heads):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), abstract_params(config, dtype=dtype, **heads)
    )


def in_memory(config: ModelConfig, params) -> dict[str, np.ndarray]:
    return {name: get() for name, _, get in tensors(params, config)}


def source_of(arrays: dict[str, np.ndarray]) -> Source:
    return Source("memory", {k: v.shape for k, v in arrays.items()}, lambda name, index: arrays[name][index])


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_out_and_in_again_is_bit_exact_through_files(tmp_path, dtype):
    params = random_params(CONFIG, dtype, value_head=True)
    arrays = in_memory(CONFIG, params)
    names = sorted(arrays)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({n: arrays[n] for n in some}, tmp_path / file)
    index = {n: file for file, some in files.items() for n in some}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    abstract = abstract_params(CONFIG, value_head=True, dtype=dtype)
    assert_same(load_params(open_safetensors(tmp_path), CONFIG, abstract), params)


def test_layout_of_a_projection():
    """`q_proj` is [heads * head_dim, d]: row n * head_dim + h holds what head n's dimension h reads."""
    params = random_params(CONFIG, value_head=True)
    arrays = in_memory(CONFIG, params)
    q, o = arrays["model.layers.1.self_attn.q_proj.weight"], arrays["model.layers.1.self_attn.o_proj.weight"]
    assert q[2 * 6 + 5, 7] == params["layers"]["wq_dnh"][1, 7, 2, 5]
    assert o[7, 2 * 6 + 5] == params["layers"]["wo_nhd"][1, 2, 5, 7]
    assert arrays["score.weight"].shape == (1, 12)


def test_types_are_cast_while_reading():
    params = random_params(CONFIG)
    source = source_of(in_memory(CONFIG, params))
    got = load_params(source, CONFIG, abstract_params(CONFIG, dtype=jnp.bfloat16))
    assert_same(got, jax.tree.map(lambda a: a.astype(jnp.bfloat16), params))


def test_a_backbone_without_the_prefix_gives_a_reward_model_with_a_zero_head():
    params = random_params(CONFIG)
    arrays = {k.removeprefix("model."): v for k, v in in_memory(CONFIG, params).items()}
    abstract = abstract_params(CONFIG, lm_head=False, value_head=True)
    got = load_params(source_of(arrays), CONFIG, abstract, new_value_head=True)
    np.testing.assert_array_equal(got["value_d"], np.zeros(12))
    assert_same(got["layers"], params["layers"])
    assert "head_dv" not in got


def test_an_existing_value_head_is_kept():
    params = random_params(CONFIG, lm_head=False, value_head=True)
    abstract = abstract_params(CONFIG, lm_head=False, value_head=True)
    got = load_params(source_of(in_memory(CONFIG, params)), CONFIG, abstract, new_value_head=True)
    assert_same(got, params)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a.pop("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj.weight"),
        (lambda a: a.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda a: a.pop("score.weight"), "lacks score.weight"),
        (lambda a: a.update({"model.layers.2.mlp.up_proj.weight": np.zeros((10, 12))}), "no place for: model.layers.2"),
        (lambda a: a.update({"model.norm.weight": np.zeros(13)}), r"model.norm.weight has shape \(13,\)"),
        (lambda a: a.update({"score.weight": np.zeros((2, 12))}), r"score.weight has shape \(2, 12\)"),
        (lambda a: a.update({"score.bias": np.ones(1)}), "score.bias is not zero"),
    ],
)
def test_what_does_not_fit_is_named(change, named):
    arrays = in_memory(CONFIG, random_params(CONFIG, value_head=True))
    change(arrays)
    with pytest.raises(UserError, match=named):
        load_params(source_of(arrays), CONFIG, abstract_params(CONFIG, value_head=True))


def test_rotary_frequencies_and_zero_biases_are_no_obstacle():
    params = random_params(CONFIG, value_head=True)
    arrays = in_memory(CONFIG, params)
    arrays |= {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3), "score.bias": np.zeros(1)}
    assert_same(load_params(source_of(arrays), CONFIG, abstract_params(CONFIG, value_head=True)), params)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no model.safetensors"):
        open_safetensors(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="only safetensors"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_build_gives_the_module_its_parameters_and_heads(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params = random_params(config, value_head=True)
    model = build(config, params)
    assert_same(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    made = Transformer(config, rngs=nnx.Rngs(0), value_head=True)
    assert jax.tree.structure(nnx.split(made)[1]) == jax.tree.structure(nnx.split(model)[1])


SHARDED = """
import dataclasses, sys
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.folder import open_safetensors
from agentrm_jax.models.weights import abstract_params, load_params
config = ModelConfig(vocab_size=20, num_layers=2, d_model=12, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=10, tie_embeddings=True)
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
axis = {"d": "fsdp", "n": "tensor", "k": "tensor", "v": "tensor", "f": "tensor", "h": None}
def place(path, leaf):
    letters = path[-1].key.rsplit("_", 1)[1]
    spec = P(*(("l",) if len(leaf.shape) > len(letters) else ()), *letters)
    spec = P(*(axis.get(a) for a in spec))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
plain = abstract_params(config)
reads = []
source = open_safetensors(Path(sys.argv[1]))
def read(name, index):
    part = source.read(name, index)
    reads.append(part.size / np.prod(source.shapes[name]))
    return part
want = load_params(source, config, plain)
got = load_params(dataclasses.replace(source, read=read), config, jax.tree_util.tree_map_with_path(place, plain))
for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_array_equal(a, np.asarray(b))
assert got["layers"]["wq_dnh"].sharding.spec == P(None, "fsdp", "tensor", None)
assert min(reads) == 1 / 8 and got["layers"]["wq_dnh"].addressable_shards[0].data.size == 2 * 3 * 2 * 6
print("equal")
"""


def test_every_shard_reads_its_own_part(tmp_path):
    config = dataclasses.replace(
        CONFIG, architecture="llama", tie_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False
    )
    save_file(in_memory(config, random_params(config)), tmp_path / "model.safetensors")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert run.stdout.strip() == "equal", run.stderr[-2000:]
