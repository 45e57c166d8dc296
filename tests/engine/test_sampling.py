"""Drawing follows the softmax and its filters, whatever the company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.engine import sampling
from agentrm_jax.engine.sampling import Shaping

SAMPLE = jax.jit(sampling.sample)


def draws(logits, temperature, count):
    row = jnp.asarray(logits, jnp.float32)
    many = jnp.broadcast_to(row, (count, len(row)))
    token, logprob = SAMPLE(many, jnp.full(count, temperature), jnp.arange(count, dtype=jnp.uint32), jnp.int32(4))
    return np.asarray(token), np.asarray(logprob)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("size", [5, 64, 131])
def test_samples_follow_the_softmax(size, temperature):
    logits = np.random.default_rng(size).normal(size=size) * 1.5
    token, logprob = draws(logits, temperature, 20_000)
    expected = np.asarray(jax.nn.softmax(jnp.asarray(logits / temperature))) * len(token)
    observed = np.bincount(token, minlength=size)
    assert len(observed) == size
    common = expected >= 5
    chi = ((observed - expected)[common] ** 2 / expected[common]).sum()
    rest = observed[~common].sum(), expected[~common].sum()
    freedom = common.sum() - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom)  # five standard deviations
    assert abs(rest[0] - rest[1]) <= 5 * np.sqrt(rest[1] + 1)
    np.testing.assert_allclose(logprob, jax.nn.log_softmax(jnp.asarray(logits))[token], atol=1e-5)


def test_greedy_takes_the_highest_and_the_first_of_equals():
    logits = np.full(131, -2.0)
    logits[[70, 90, 130]] = 1.0
    token, _ = draws(logits, 0.0, 3)
    assert token.tolist() == [70] * 3
    assert draws(np.zeros(131), 0.0, 2)[0].tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_extreme_logits_stay_finite(temperature):
    logits = np.full(70, -1e30)
    logits[69] = 1e30
    token, logprob = draws(logits, temperature, 50)
    assert set(token.tolist()) == {69}
    np.testing.assert_array_equal(logprob, np.zeros(50))
    impossible = np.full(70, -np.inf)
    impossible[[3, 66]] = 0.0
    assert set(draws(impossible, 1.0, 200)[0].tolist()) == {3, 66}


def test_a_row_samples_the_same_in_any_company():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 97)), jnp.float32)
    temperature, seeds = jnp.array([1.0, 0.0, 0.7, 2.0, 1.0, 1.0]), jnp.arange(6, dtype=jnp.uint32) * 999
    together, _ = SAMPLE(logits, temperature, seeds, jnp.int32(2))
    for i in range(6):
        alone, _ = SAMPLE(logits[i : i + 1], temperature[i : i + 1], seeds[i : i + 1], jnp.int32(2))
        assert alone[0] == together[i]


def test_uniform_numbers_differ_between_seeds_and_steps():
    flat = jnp.zeros((1000, 97))
    seeds = jnp.arange(1000, dtype=jnp.uint32)
    first, _ = SAMPLE(flat, jnp.ones(1000), seeds, jnp.int32(0))
    second, _ = SAMPLE(flat, jnp.ones(1000), seeds, jnp.int32(1))
    assert np.mean(np.asarray(first) == np.asarray(second)) < 0.05
    assert len(set(np.asarray(first).tolist())) == 97


def shaping(rows, vocabulary, **changes):
    fields = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0} | changes
    seen = np.zeros((rows, vocabulary), bool)
    return Shaping(
        *(jnp.full(rows, fields[name]) for name in ("top_k", "top_p", "min_p", "penalty")), jnp.asarray(seen)
    )


def shares(logits, temperature):
    return np.asarray(jax.nn.softmax(jnp.asarray(logits / temperature, jnp.float32)))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"top_k": 3}, 3),
        ({"top_p": 0.6}, None),
        ({"min_p": 0.2}, None),
        ({"top_k": 10, "top_p": 0.9, "min_p": 0.05}, None),
    ],
)
def test_filters_leave_the_most_likely_tokens_and_their_proportions(changes, kept):
    logits, temperature = np.random.default_rng(1).normal(size=70).astype(np.float32) * 2, 0.8
    row = jnp.asarray(logits)[None]
    left = np.asarray(sampling.shaped(row, jnp.full(1, temperature), shaping(1, 70, **changes)))[0]
    p = shares(logits, temperature)
    order = np.argsort(-p)
    size = changes.get("top_k", 70)
    p_left = p[order[:size]] / p[order[:size]].sum()
    size = min(size, int((np.cumsum(p_left) - p_left < changes.get("top_p", 1.0)).sum()))
    size = min(size, int((p[order] >= changes.get("min_p", 0.0) * p.max()).sum()))
    assert set(np.flatnonzero(left > -np.inf)) == set(order[:size])
    assert kept is None or size == kept
    np.testing.assert_array_equal(left[order[:size]], logits[order[:size]])


def test_filters_that_filter_nothing_change_no_token():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(200, 97)), jnp.float32)
    temperature, seeds = jnp.full(200, 0.9), jnp.arange(200, dtype=jnp.uint32)
    plain = SAMPLE(logits, temperature, seeds, jnp.int32(2))
    shaped = SAMPLE(logits, temperature, seeds, jnp.int32(2), shaping(200, 97))
    np.testing.assert_array_equal(plain[0], shaped[0])
    np.testing.assert_allclose(plain[1], shaped[1], rtol=1e-6)
