"""Adapters: nothing changes at the start, gradients are those of the product, and merging changes no output."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax.models import lora
from agentrm_jax.models.lora import TARGETS, LoRA
from agentrm_jax.models.transformer import Transformer, logits
from agentrm_jax.models.weights import abstract_params, build
from agentrm_jax.run import flags
from agentrm_jax.types import UserError

ALL = LoRA(rank=3, alpha=6.0, targets=("all-linear",))


@pytest.fixture(scope="module")
def config(tiny):
    """With everything that stands beside a linear map: biases, head norms, an output map of its own."""
    return dataclasses.replace(
        tiny, num_heads=4, num_kv_heads=2, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, tie_embeddings=False
    )


def adapted(config, spec: LoRA, *, noise: float = 0.0, **options) -> Transformer:
    """A model with both heads and adapters; `noise` moves every adapter array away from where it starts."""
    model = Transformer(config, rngs=nnx.Rngs(0), value_head=True, lora=spec, **options)
    trained, _ = lora.split(nnx.state(model, nnx.Param))
    leaves, shape = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + noise * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    nnx.update(model, jax.tree.unflatten(shape, moved))
    return model


def parts(model: Transformer) -> tuple[lora.Params, lora.Params]:
    """Trained and frozen parameters, copied (merging uses the frozen ones up)."""
    trained, frozen = lora.split(nnx.state(model, nnx.Param))
    copy = jax.tree.map(jnp.copy, (trained, frozen))
    return nnx.to_pure_dict(copy[0]), nnx.to_pure_dict(copy[1])


@jax.jit
def outputs(model: Transformer) -> jax.Array:
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, 64)
    at = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    return logits(model, model(tokens, at, jnp.full_like(at, 12)))


def test_a_new_adapter_changes_nothing(config):
    model = adapted(config, ALL)
    trained, frozen = parts(model)
    assert all(pair["a"].any() and not pair["b"].any() for pair in trained["layers"]["adapters"].values())
    np.testing.assert_array_equal(outputs(model), outputs(build(config, frozen)))


@pytest.mark.parametrize(
    ("targets", "options"),
    [(("all-linear",), {}), (("all-linear",), {"scan": True, "remat": True}), (("o_proj",), {})],
    ids=["unrolled", "scanned", "one target"],
)
def test_merging_changes_no_output(config, targets, options):
    spec = LoRA(3, 6.0, targets)
    model = adapted(config, spec, noise=0.3, **options)
    trained, frozen = parts(model)
    base, apart = outputs(build(config, frozen)), outputs(model)
    assert np.abs(apart - base).max() > 1e-2, "the adapter counts"
    np.testing.assert_allclose(outputs(build(config, lora.merge(frozen, trained, spec))), apart, atol=2e-5)


def test_merging_adds_alpha_over_rank_times_the_product(config):
    trained, frozen = parts(adapted(config, ALL, noise=1.0))
    before = jax.tree.map(np.asarray, frozen)
    after = lora.merge(frozen, trained, ALL)
    pair = jax.tree.map(np.asarray, trained["layers"]["adapters"])
    for name, spec in {"wq_dnh": "ldr,lrnh->ldnh", "wo_nhd": "lnhr,lrd->lnhd", "w_down_fd": "lfr,lrd->lfd"}.items():
        wanted = before["layers"][name] + 2.0 * np.einsum(spec, pair[name]["a"], pair[name]["b"])
        np.testing.assert_allclose(after["layers"][name], wanted, atol=1e-5)
    np.testing.assert_array_equal(after["value_d"], trained["value_d"])
    assert jax.tree.structure(after) == jax.tree.structure(abstract_params(config, value_head=True))


def test_a_bfloat16_base_stays_bfloat16_beside_float32_adapters(config):
    trained, frozen = parts(adapted(config, ALL, noise=0.1, dtype=jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype(jnp.float32)}
    wanted = frozen["layers"]["w_up_df"].astype(jnp.float32) + 2.0 * jnp.einsum(
        "ldr,lrf->ldf", *(trained["layers"]["adapters"]["w_up_df"][k] for k in "ab")
    )
    merged = lora.merge(frozen, trained, ALL)["layers"]["w_up_df"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float32), wanted, rtol=1 / 256)


def test_gradients_are_those_of_the_merged_weights_through_the_product(config):
    """With W' = W + s A B: dA = s dW' B^T and dB = s A^T dW'."""
    model = adapted(config, ALL, noise=0.3)
    trained, frozen = parts(model)
    graph, tuned, rest = nnx.split(model, lambda path, _: "adapters" in path, ...)
    found = nnx.to_pure_dict(jax.jit(jax.grad(lambda p: loss(nnx.merge(graph, p, rest))))(tuned))["layers"]["adapters"]
    merged = lora.merge(frozen, trained, ALL)
    full = jax.jit(jax.grad(lambda p: loss(build(config, p))))(merged)["layers"]
    for name, inputs in TARGETS.values():
        pair = trained["layers"]["adapters"][name]
        a, b = pair["a"].reshape(2, -1, 3), pair["b"].reshape(2, 3, -1)
        gradient = full[name].reshape(2, int(np.prod(full[name].shape[1 : 1 + inputs])), -1)
        for got, wanted in (
            (found[name]["a"], 2.0 * jnp.einsum("lio,lro->lir", gradient, b)),
            (found[name]["b"], 2.0 * jnp.einsum("lir,lio->lro", a, gradient)),
        ):
            np.testing.assert_allclose(got.reshape(wanted.shape), wanted, atol=2e-4 * float(jnp.abs(wanted).max()))


def loss(model: Transformer) -> jax.Array:
    return jnp.mean(jax.nn.log_softmax(outputs(model))[..., 3])


def test_a_starts_as_in_peft_within_fan_in_to_the_minus_one_half(tiny):
    wide = dataclasses.replace(tiny, d_model=256, num_heads=4, head_dim=32)
    trained, _ = parts(adapted(wide, LoRA(8, 16.0, ("q_proj", "o_proj"))))
    for name, fan_in in {"wq_dnh": 256, "wo_nhd": 128}.items():
        a = np.asarray(trained["layers"]["adapters"][name]["a"])
        assert 0.98 < np.abs(a).max() * fan_in**0.5 <= 1
        assert a.std() * fan_in**0.5 == pytest.approx(3**-0.5, rel=0.05)
        assert not np.array_equal(a[0], a[1]), "every layer has its own"


def test_adapters_and_value_head_are_trained_and_nothing_else(config):
    trained, frozen = lora.split(nnx.state(adapted(config, LoRA(3, 1.0, ("v_proj", "q_proj"))), nnx.Param))
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(trained)}
    assert paths == {"value_d", *(f"layers.adapters.{w}.{x}" for w in ("wq_dnh", "wv_dkh") for x in "ab")}
    everything = nnx.state(Transformer(config, rngs=nnx.Rngs(0), value_head=True), nnx.Param)
    assert len(nnx.to_flat_state(frozen)) + 1 == len(nnx.to_flat_state(everything))
    trained, frozen = lora.split(everything)
    assert trained is everything
    assert not frozen


def test_targets_are_kept_in_one_order_and_written_as_json():
    spec = LoRA(4, 8.0, ("v_proj", "q_proj", "q_proj"))
    assert spec.targets == ("q_proj", "v_proj")
    assert LoRA.from_json(spec.to_json()) == spec
    assert LoRA(4, 8.0, ("all-linear",)).targets == tuple(TARGETS)


def requested(*overrides: str) -> LoRA | None:
    config, _ = flags.parse(["--config=configs/explicit.py", *overrides])
    return LoRA.requested(config.init, **config.lora)


def test_the_command_line_asks_for_adapters(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert requested() is None
    assert requested("--config.lora.rank=8") == LoRA(8, 16.0, ("all-linear",))
    chosen = requested("--config.lora.rank=4", "--config.lora.alpha=4", "--config.lora.targets=q_proj,v_proj")
    assert chosen == LoRA(4, 4.0, ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rank=-1", r"--config\.lora\.rank=-1: must be at least 1, or 0 to train every parameter"),
        ("alpha=0", r"--config\.lora\.alpha=0\.0: must be more than 0"),
        ("targets=q_proj,qproj", r"no linear map is called 'qproj'; known targets are q_proj, .* and all-linear"),
        ("targets=", r"--config\.lora\.targets is empty; known targets are"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch, request, override, message):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(UserError, match=message):
        requested("--config.lora.rank=8", f"--config.lora.{override}")


def test_adapters_need_a_base(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(UserError, match=r"--config\.lora\.rank=8 adapts a model .* name it with --config\.init"):
        requested("--config.lora.rank=8", "--config.init=")
