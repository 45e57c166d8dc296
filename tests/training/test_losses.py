"""Losses: their golden values, and that what has weight 0 contributes nothing, whatever it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.training import losses

VALUES = jnp.array([[0.2, 0.5, -1.0, 2.0]], jnp.float32)
TARGETS = jnp.array([[0.3, 1.0, 0.0, 0.5]], jnp.float32)
WEIGHTS = jnp.array([[1.0, 0.0, 3.0, 0.0]], jnp.float32)
KINDS = {"regression": losses.regression, "cross_entropy": losses.cross_entropy}


def test_regression_is_the_weighted_mean_squared_error():
    assert losses.regression(VALUES, TARGETS, WEIGHTS) == pytest.approx((0.1**2 + 3 * 1.0) / 4)


def test_cross_entropy_is_binary_with_soft_targets():
    p = 1 / (1 + np.exp(-np.asarray(VALUES, np.float64)))
    targets, weights = np.asarray(TARGETS, np.float64), np.asarray(WEIGHTS, np.float64)
    each = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    assert losses.cross_entropy(VALUES, TARGETS, WEIGHTS) == pytest.approx((each * weights).sum() / 4, rel=1e-6)
    # the golden values of algorithms 13.1: beta .05, log-ratio 4, label 1 and 0
    for label, golden in ((1.0, 0.5981388694), (0.0, 0.7981388694)):
        value, one = jnp.float32([[0.05 * 4]]), jnp.ones((1, 1))
        assert losses.cross_entropy(value, jnp.full((1, 1), label), one) == pytest.approx(golden, abs=1e-6)


def test_imitation_is_nats_a_token():
    assert losses.imitation(jnp.log(jnp.float32([[0.5, 0.1, 0.25]])), jnp.float32([[1, 0, 1]])) == pytest.approx(
        1.5 * np.log(2), rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30, 7.0])
def test_what_has_weight_0_changes_neither_loss_nor_gradient(kind, junk):
    off = np.asarray(WEIGHTS == 0)
    f = jax.value_and_grad(KINDS[kind], argnums=(0, 1))
    clean = f(VALUES, TARGETS, WEIGHTS)
    dirty = f(jnp.where(off, junk, VALUES), jnp.where(off, junk, TARGETS), WEIGHTS)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.asarray(clean[1][0])[off].any(), "the gradient there is exactly 0"


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_weight_loss_and_gradient_are_0(kind):
    loss, gradient = jax.value_and_grad(KINDS[kind])(VALUES, jnp.full_like(TARGETS, np.nan), jnp.zeros_like(WEIGHTS))
    assert loss == 0
    assert not np.asarray(gradient).any()
    assert losses.imitation(jnp.full((1, 4), -jnp.inf), jnp.zeros((1, 4))) == 0


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_cross_entropy_is_finite_for_extreme_values(value):
    for target in (0.0, 0.5, 1.0):
        f = jax.value_and_grad(losses.cross_entropy)
        loss, gradient = f(jnp.full((1, 1), value), jnp.full((1, 1), target), jnp.ones((1, 1)))
        wrong = 1 - target if value > 0 else target
        assert loss == pytest.approx(1e4 * wrong)
        assert gradient[0, 0] == pytest.approx(np.sign(value) * wrong, abs=1e-6)


def test_weights_scale_out():
    once, twice = (losses.regression(VALUES, TARGETS, w) for w in (WEIGHTS, 2 * WEIGHTS))
    assert once == pytest.approx(float(twice))
