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


# --- Comparisons within groups ---------------------------------------------------------------------------------------


def row(*states: tuple[float, float, int]) -> tuple[jax.Array, ...]:
    """(values, targets, weights, group), each [1, t], of states (value, target, group)."""
    values, targets, group = (jnp.array([column]) for column in zip(*states, strict=True))
    return values, targets, jnp.ones_like(values), group.astype(jnp.int32)


def test_pairwise_is_bradley_terry():
    """The golden values of algorithms 13.1."""
    chosen, rejected = (1.0, 1.0, 0), (0.2, 0.0, 0)
    assert losses.pairwise(*row(chosen, rejected)) == pytest.approx(0.3711006660, abs=1e-6)
    assert losses.pairwise(*row(rejected, chosen), margin=0.5) == pytest.approx(0.5543552445, abs=1e-6)
    centred = losses.pairwise(*row(chosen, rejected), center=0.01) - losses.pairwise(*row(chosen, rejected))
    assert centred == pytest.approx(0.0144, abs=1e-6)


def test_pairwise_depends_on_differences_alone_and_pulls_both_sides_equally():
    values, *rest = row((1.0, 1.0, 2), (0.2, 0.0, 2))
    assert losses.pairwise(values + 7, *rest) == pytest.approx(float(losses.pairwise(values, *rest)), abs=1e-6)
    gradient = jax.grad(losses.pairwise)(values, *rest)[0]
    assert gradient[0] == -gradient[1] < 0
    assert losses.pairwise(values + 7, *rest, center=0.01) > losses.pairwise(values, *rest, center=0.01) + 1
    for extreme in (-1e4, 1e4):
        loss, gradient = jax.value_and_grad(losses.pairwise)(values.at[0, 0].set(extreme), *rest)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()


def test_pairs_lie_within_a_group_and_differ_in_target():
    states = (0.3, 0.5, 0), (0.9, 0.5, 0), (0.1, 0.2, 0), (5.0, 1.0, 3), (4.0, 0.0, -1), (2.0, 0.1, -1)
    values, targets, weights, group = row(*states)
    by_hand = [np.log1p(np.exp(-(a - b))) for a, b in ((0.3, 0.1), (0.9, 0.1))]
    assert losses.pairwise(values, targets, weights, group) == pytest.approx(np.mean(by_hand), abs=1e-6)
    weights = weights.at[0, 0].set(3.0)
    weighted = (3 * by_hand[0] + by_hand[1]) / 4
    assert losses.pairwise(values, targets, weights, group) == pytest.approx(weighted, abs=1e-6)


def test_listwise_is_the_likelihood_of_the_best_of_each_group():
    states = (0.3, 0.5, 1), (0.9, 1.0, 1), (0.1, 0.2, 1), (2.0, 0.4, 4), (1.0, 0.4, 4), (0.5, 0.7, 6), (3.0, 0.0, 6)
    p = np.exp(0.9) / np.exp([0.3, 0.9, 0.1]).sum()
    q = np.exp(0.5) / np.exp([0.5, 3.0]).sum()
    assert losses.listwise(*row(*states)) == pytest.approx(-(np.log(p) + np.log(q)) / 2, abs=1e-6), "group 4 is a tie"
    tied = row((0.3, 1.0, 0), (0.9, 1.0, 0), (0.1, 0.0, 0))
    z = np.log(np.exp([0.3, 0.9, 0.1]).sum())
    assert losses.listwise(*tied) == pytest.approx(z - 0.6, abs=1e-6)


def test_listwise_of_two_is_pairwise():
    states = (0.3, 0.5, 1), (0.9, 1.0, 1), (2.0, 0.4, 4), (1.0, 0.6, 4)
    assert losses.listwise(*row(*states)) == pytest.approx(float(losses.pairwise(*row(*states))), abs=1e-6)


@pytest.mark.parametrize("loss", [losses.pairwise, losses.listwise])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_what_is_compared_with_nothing_changes_neither_loss_nor_gradient(loss, junk):
    values, targets, weights, group = row((0.3, 0.5, 1), (0.9, 1.0, 1), (0.1, 0.2, -1), (0.7, 0.1, 1))
    weights = weights.at[0, 2:].set(0.0)
    clean = jax.value_and_grad(loss)(values, targets, weights, group)
    off = weights == 0
    dirty = jax.value_and_grad(loss)(jnp.where(off, junk, values), jnp.where(off, junk, targets), weights, group)
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    nothing = jnp.zeros_like(weights)
    assert loss(values, targets, nothing, group) == 0
    assert not np.asarray(jax.grad(loss)(values, targets, nothing, group)).any()


# --- Along paths -----------------------------------------------------------------------------------------------------


def test_promise_adds_the_error_of_the_steps_advantage():
    values, targets = jnp.array([[0.2, 0.6, 0.5]]), jnp.array([[0.0, 1.0, 0.5]])
    weights, before = jnp.ones((1, 3)), jnp.array([[-1, 0, 1]])
    q = 0.2**2 + 0.4**2 + 0
    a = ((0.6 - 0.2) - 1.0) ** 2 + ((0.5 - 0.6) - (-0.5)) ** 2
    for beta in (0.0, 1.0, 2.5):
        got = losses.promise(values, targets, targets, weights, before, advantage_weight=beta)
        assert got == pytest.approx((q + beta * a) / 3, abs=1e-6)
    assert losses.promise(targets, targets, targets, weights, before, advantage_weight=1.0) == 0


def gae(values: list[float], outcome: float, lam: float) -> list[float]:
    """Targets of the states of a path, by GAE as it is written: V_t + sum_l lambda^l delta_{t+l}; the outcome ends the path."""
    deltas = [after - before for before, after in zip(values, [*values[1:], outcome], strict=True)]
    return [v + sum(lam**i * d for i, d in enumerate(deltas[t:])) for t, v in enumerate(values)]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_lambda_returns_of_a_path_are_those_of_gae(lam):
    values = [0.2, 0.9, 0.4, 0.7]
    index = jnp.arange(4)[None]
    got = losses.lambda_returns(
        jnp.array([values]),
        jnp.array([[9.0, 9.0, 9.0, 1.0]]),
        jnp.ones((1, 4)),
        index - 1,
        jnp.ones((1, 4)),
        td_lambda=lam,
    )
    np.testing.assert_allclose(got[0], gae(values, 1.0, lam), atol=1e-6)


def test_lambda_returns_average_over_what_follows_by_how_often_it_did():
    """Three rollouts through a state: two took one action (outcome 1), one another (0); no gradient passes."""
    values, outcomes = jnp.array([[0.5, 0.6, 0.1, 7.0]]), jnp.array([[0.3, 1.0, 0.0, jnp.nan]])
    weights, counts = jnp.array([[1.0, 1.0, 1.0, 0.0]]), jnp.array([[3.0, 2.0, 1.0, 0.0]])
    before = jnp.array([[-1, 0, 0, -1]])
    of = outcomes, weights, before, counts
    got = losses.lambda_returns(values, *of, td_lambda=0.5)[0]
    np.testing.assert_allclose(got[:3], [(2 * (0.3 + 0.5) + 1 * 0.05) / 3, 1.0, 0.0], atol=1e-6)
    assert not jax.grad(lambda v: losses.lambda_returns(v, *of, td_lambda=0.5).sum())(values).any()
    broken = losses.lambda_returns(values.at[0, 1].set(jnp.nan), *of, td_lambda=0.5)
    assert np.isnan(broken[0, 0]), "and it ends"
