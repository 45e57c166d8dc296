"""The optimizer: what decays, how the rate runs, and that gradients are clipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training.optimizer import make_optimizer


def test_only_matrices_decay(tiny):
    config = dataclasses.replace(tiny, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, tie_embeddings=False)
    params = nnx.state(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), value_head=True)), nnx.Param)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    tx = make_optimizer(learning_rate=1.0, warmup=0.0, total_steps=1, weight_decay=0.5, clip=1.0)

    @jax.jit
    def decayed(params):
        nothing = jax.tree.map(jnp.zeros_like, params)
        state = tx.init(params)
        _, state = tx.update(nothing, state, params)  # the first step of a warm-up has rate 0
        return tx.update(nothing, state, params)[0]

    updates = nnx.to_flat_state(decayed(params))
    moved = {path[-1] for path, x in updates if np.asarray(x[...]).any()}
    assert moved == {
        *("embed_vd", "head_dv", "wq_dnh", "wk_dkh", "wv_dkh", "wo_nhd"),
        *("w_gate_df", "w_up_df", "w_down_fd"),
    }


def test_the_learning_rate_warms_up_and_ends_at_zero():
    tx = make_optimizer(learning_rate=0.5, warmup=0.2, total_steps=10, weight_decay=0.0, clip=1e9)
    x = {"w": nnx.Param(jnp.zeros(1), axes=("norm",))}
    state, sizes = tx.init(x), []
    for _ in range(11):
        update, state = tx.update(jax.tree.map(jnp.ones_like, x), state, x)
        sizes.append(float(jnp.abs(jax.tree.leaves(update)[0][0])))
    assert sizes[0] == 0
    assert sizes[2] == pytest.approx(0.5, rel=1e-3)
    assert np.argmax(sizes) == 2
    assert sizes[10] == pytest.approx(0, abs=1e-6)


def updates(*gradients: list[float], clip: float = 1.0) -> np.ndarray:
    """What each of several gradients in turn changes."""
    tx = make_optimizer(learning_rate=0.1, warmup=0.0, total_steps=100, weight_decay=0.0, clip=clip)

    def parameters(xs: list[float]) -> dict[str, nnx.Param]:
        return {"v": nnx.Param(jnp.array(xs[:1]), axes=("norm",)), "w": nnx.Param(jnp.array(xs[1:]), axes=("norm",))}

    x = parameters([0.0] * 3)
    state, found = tx.init(x), []
    for g in gradients:
        update, state = tx.update(parameters(g), state, x)
        found.append(np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(update)]))
    return np.stack(found)


def test_gradients_are_clipped_by_the_norm_of_all_of_them_together():
    """Adam forgets the scale of a first gradient, not how large later ones are beside it."""
    small, large = [0.1, 0.2, 0.2], [3e6, -4e6, 12e6]
    unit = [g / 13e6 for g in large]
    np.testing.assert_allclose(updates(small, large, small), updates(small, unit, small), rtol=1e-5)
    assert not np.allclose(updates(small, large, small, clip=1e9), updates(small, unit, small, clip=1e9), rtol=1e-2)


def test_gradients_below_the_limit_are_left_alone():
    half, whole = [0.3, 0.0, 0.4], [0.6, 0.0, 0.8]
    np.testing.assert_array_equal(updates(half, whole, half), updates(half, whole, half, clip=1e9))


def a_model(tiny, **options):
    params = nnx.state(Transformer(tiny, rngs=nnx.Rngs(0), lm_head=False, value_head=True, **options), nnx.Param)
    return params, jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), params)


def two_updates(tx, params, gradients) -> dict[str, np.ndarray]:
    """What the second update changes (the first one has rate 0), by the name of the parameter."""
    state = tx.init(params)
    _, state = tx.update(gradients, state, params)
    return {path[-1]: np.asarray(x[...]) for path, x in nnx.to_flat_state(tx.update(gradients, state, params)[0])}


@pytest.mark.parametrize(("options", "head"), [({}, "value_d"), ({"heads": 3}, "value_ed")])
def test_the_value_head_may_have_a_rate_of_its_own(tiny, options, head):
    params, gradients = a_model(tiny, **options)
    how = {"learning_rate": 0.1, "warmup": 0.0, "total_steps": 9, "weight_decay": 0.1, "clip": 1.0}
    plain = two_updates(make_optimizer(**how), params, gradients)
    fast = two_updates(make_optimizer(**how, head_rate=10.0), params, gradients)
    assert plain[head].any()
    for name, update in plain.items():
        np.testing.assert_allclose(fast[name], update * (10 if name == head else 1), rtol=1e-5)


def test_a_frozen_trunk_stays_and_has_no_statistics(tiny):
    params, gradients = a_model(tiny)
    how = {"learning_rate": 0.1, "warmup": 0.0, "total_steps": 9, "weight_decay": 0.1, "clip": 1e9}
    tx = make_optimizer(**how, head_only=True, head_rate=2.0)
    moved = {name for name, x in two_updates(tx, params, gradients).items() if x.any()}
    assert moved == {"value_d"}
    sizes = [x.size for x in jax.tree.leaves(tx.init(params))]
    assert sum(sizes) < 3 * tiny.d_model
