"""Matrices in fewer bytes: what is rounded, by how much, and that nothing else changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.models import narrow
from agentrm_jax.models.linear import linear
from agentrm_jax.models.narrow import Int8Matrix, product, quantize, rows


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def restored(matrix: Int8Matrix) -> np.ndarray:
    return (
        np.asarray(matrix.values_oi, np.float32)
        * np.asarray(matrix.scale_o)[(..., *[None] * (matrix.values_oi.ndim - matrix.scale_o.ndim))]
    )


def test_a_weight_changes_by_at_most_half_a_step_of_its_channel():
    weight_io = draw(6, 3, 5)  # one input axis, heads and their dimensions out
    matrix = quantize(jnp.asarray(weight_io), 1)
    assert matrix.values_oi.shape == (3, 5, 6)
    assert matrix.values_oi.dtype == jnp.int8
    assert matrix.scale_o.shape == (3, 5)
    off = np.abs(restored(matrix) - weight_io.transpose(1, 2, 0)).max(-1)
    assert (off <= np.abs(weight_io).max(0) / 254 * (1 + 1e-6)).all()
    assert (np.abs(np.asarray(matrix.values_oi)).max(-1) == 127).all()  # all of the range is used


def test_a_channel_of_zeros_stays_zero_and_one_that_is_not_finite_does_not_look_finite():
    weight_io = draw(4, 3)
    weight_io[:, 0], weight_io[2, 1] = 0.0, np.inf
    out = np.asarray(product(jnp.ones((2, 4)), quantize(jnp.asarray(weight_io), 1)))
    assert (out[:, 0] == 0).all()
    assert np.isnan(out[:, 1]).all()
    assert np.isfinite(out[:, 2]).all()


@pytest.mark.parametrize("on", ["cpu", "gpu"])
@pytest.mark.parametrize("m", [1, 2, 7])
def test_a_product_is_that_of_the_rounded_weights_for_any_number_of_rows(m, on, monkeypatch):
    """On CPUs x is rounded as well, by half a step of 1/127 of its row's largest; on others it is not."""
    monkeypatch.setattr(narrow, "platform", lambda: on)
    x_mi, weight_io = draw(m, 64), draw(64, 24)
    matrix = quantize(jnp.asarray(weight_io), 1)
    got, want = np.asarray(product(jnp.asarray(x_mi), matrix)), x_mi @ restored(matrix).T
    assert got.shape == (m, 24)
    step = np.abs(x_mi).max(1, keepdims=True) / 254 if on == "cpu" else np.full((m, 1), 1e-6)
    bound = step * np.abs(restored(matrix)).sum(1) + 1e-5
    assert (np.abs(got - want) <= bound).all()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    x_mi, matrix = draw(5, 64), quantize(jnp.asarray(draw(64, 24)), 1)
    whole = np.asarray(product(jnp.asarray(x_mi), matrix))
    alone = np.concatenate([np.asarray(product(jnp.asarray(x_mi[i : i + 1]), matrix)) for i in range(5)])
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize("m", [1, 3])
def test_bfloat16_weights_round_x_to_bfloat16_and_sum_in_float32(m):
    x_mi, weight_io = draw(m, 64), jnp.asarray(draw(64, 24)).astype(jnp.bfloat16)
    rounded = np.asarray(jnp.asarray(x_mi).astype(jnp.bfloat16), np.float32)
    want = rounded @ np.asarray(weight_io, np.float32)
    np.testing.assert_allclose(product(jnp.asarray(x_mi), weight_io), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "out"), [((8,), (2, 3)), ((2, 6), (5,))])
def test_a_linear_map_takes_either_type_and_gives_that_of_x(inputs, out):
    x, weight = jnp.asarray(draw(2, 4, *inputs)), jnp.asarray(draw(*inputs, *out))
    want = np.asarray(linear(x, weight))
    for narrower in (weight.astype(jnp.bfloat16), quantize(weight, len(inputs))):
        got = linear(x, narrower)
        assert got.shape == want.shape
        assert got.dtype == x.dtype
        assert np.abs(np.asarray(got) - want).max() < 0.05 * np.abs(want).max()


def test_rows_of_an_embedding_are_looked_up_at_any_shape():
    table_vd = draw(9, 16)
    matrix = quantize(jnp.asarray(table_vd.T), 1)
    index = jnp.array([[3, 8], [0, 3]])
    np.testing.assert_array_equal(rows(matrix, index), restored(matrix)[np.asarray(index)])
