"""Mixtures of experts: both ways to compute one, and any division over devices, give what each token's experts give it.

Run as a script, this file computes one on eight simulated devices.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax import parallel
from agentrm_jax.models.experts import mixture
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.transformer import Transformer, values
from agentrm_jax.models.weights import build
from agentrm_jax.testing.devices import run_on_eight
from agentrm_jax.testing.tiny import tiny_model
from agentrm_jax.types import UserError

SIZES = {"b": 4, "t": 6, "d": 16, "e": 4, "f": 24}
SHAPES = {"x": "btd", "router": "de", "gate": "edf", "up": "edf", "down": "efd"}
MESHES = {"tensor": (2, 1, 4), "fsdp": (1, 4, 2), "odd": (1, 1, 8)}  # on the last, experts do not divide


def arrays() -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return [
        jax.random.normal(k, tuple(SIZES[a] for a in shape)) * 0.5
        for k, shape in zip(keys, SHAPES.values(), strict=True)
    ]


def by_hand(x, router, gate, up, down, chosen, normalize):
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape[:2]):
        scores = x[at] @ router
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        best = np.argsort(-shares)[:chosen]
        for e in best:
            gated = x[at] @ gate[e]
            given = (gated / (1 + np.exp(-gated)) * (x[at] @ up[e])) @ down[e]
            out[at] += given * shares[e] / (shares[best].sum() if normalize else 1.0)
    return out


def loss(*args: jax.Array, grouped: bool) -> jax.Array:
    out = mixture(*args, chosen=2, normalize=True, activation=jax.nn.silu, grouped=grouped)
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("chosen", "normalize"), [(1, True), (2, False), (3, True), (4, False)])
def test_a_token_gets_the_weighted_sum_of_its_experts(grouped, chosen, normalize):
    got = mixture(*arrays(), chosen=chosen, normalize=normalize, activation=jax.nn.silu, grouped=grouped)
    want = by_hand(*map(np.asarray, arrays()), chosen, normalize)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_both_ways_have_the_same_gradients():
    dense, grouped = (jax.grad(loss, argnums=range(5))(*arrays(), grouped=g) for g in (False, True))
    for name, a, b in zip(SHAPES, dense, grouped, strict=True):
        assert np.abs(a).max() > 1e-3, name
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)


def test_adapters_stand_beside_attention_only():
    config = tiny_model(num_experts=3, experts_per_token=2).config
    model = Transformer(config, rngs=nnx.Rngs(0), lora=LoRA(2, 4.0, ("all-linear",)))
    assert set(model.layers.adapters) == {"wq_dnh", "wk_dkh", "wv_dkh", "wo_nhd"}
    with pytest.raises(UserError, match="layers of this model have no up_proj"):
        Transformer(config, rngs=nnx.Rngs(0), lora=LoRA(2, 4.0, ("q_proj", "up_proj")))


OPTIONS: dict[str, dict[str, Any]] = {
    "experts": {"num_experts": 3, "experts_per_token": 2},
    "two_kinds_of_layers": {
        **{"sliding_window": 4, "window_layers": (True, False), "local_rope_theta": 100.0, "norms": "both"},
        **{"norm_offset": 1.0, "scale_embeddings": True, "query_scalar": 24.0},
    },
    "some_do_not_turn": {"rope_layers": (False, True), "norms": "post", "qk_norm": True, "qk_norm_wide": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_scanned_layers_give_what_unrolled_ones_give(name):
    model = tiny_model(**OPTIONS[name])
    scanned = build(model.config, nnx.to_pure_dict(nnx.state(model, nnx.Param)), scan=True)
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, 97)
    at = jnp.broadcast_to(jnp.arange(12), tokens.shape)

    def total(model: Transformer) -> jax.Array:
        return (values(model, model(tokens, at, jnp.full_like(at, 12))) * jnp.cos(at)).sum()

    (a, da), (b, db) = (nnx.jit(nnx.value_and_grad(total))(m) for m in (model, scanned))
    np.testing.assert_allclose(a, b, rtol=1e-4)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), *(nnx.to_pure_dict(d) for d in (da, db))
    )


def main() -> None:
    report = {}
    for name, (data, fsdp, tensor) in MESHES.items():
        mesh = parallel.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
        axes = {"x": None, "router": ("embed", "routes"), "gate": ("experts", "embed", "expert_mlp")}
        axes |= {"up": axes["gate"], "down": ("experts", "expert_mlp", "embed")}
        placed = []
        for key, array in zip(SHAPES, arrays(), strict=True):
            spec = parallel.BATCH if key == "x" else parallel.partition(array.shape, axes[key], mesh)
            placed.append(jax.device_put(array, jax.sharding.NamedSharding(mesh, spec)))
        with jax.set_mesh(mesh):
            for grouped in (False, True):
                step = jax.jit(jax.value_and_grad(lambda *a, g=grouped: loss(*a, grouped=g), argnums=tuple(range(5))))
                value, gradients = step(*placed)
                report[f"{name} {grouped}"] = [float(value), [np.asarray(g).tolist() for g in gradients]]
        report[f"{name} share"] = placed[2].addressable_shards[0].data.size / placed[2].size
    print(json.dumps(report))


def test_experts_are_divided_over_devices():
    report = run_on_eight(__file__)[0]
    want, gradients = jax.value_and_grad(loss, argnums=range(5))(*arrays(), grouped=False)
    for name in MESHES:
        for grouped in (False, True):
            value, found = report[f"{name} {grouped}"]
            np.testing.assert_allclose(value, want, rtol=1e-4, err_msg=f"{name} {grouped}")
            for key, a, b in zip(SHAPES, found, gradients, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"{key} of {name} {grouped}")
    assert [report[f"{name} share"] for name in MESHES] == [1 / 4, 1 / 8, 1]


if __name__ == "__main__":
    main()
