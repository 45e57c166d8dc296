"""Probabilities read block by block are those of a softmax over the whole vocabulary, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.models.vocabulary import log_probabilities, look_up


def dense(head_dv, hidden_btd, tokens_bt):
    logits = jnp.einsum("btd,dv->btv", hidden_btd, head_dv)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens_bt[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize(("v", "positions"), [(40, 100), (40, 6), (40, 3), (41, 6), (7, 1)])
def test_blocks_give_the_softmax_of_the_whole_and_its_gradients(v, positions):
    rng = np.random.default_rng(v + positions)
    head = jnp.asarray(rng.normal(size=(16, v)) * 3, jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(2, 12, 16)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, v, (2, 12)))
    weights = jnp.asarray(rng.normal(size=(2, 12)), jnp.float32)

    def loss(of, head, hidden):
        return jnp.sum(weights * of(head, hidden, tokens))

    def blocks(head, hidden, tokens):
        return log_probabilities(head, hidden, tokens, positions=positions)

    np.testing.assert_allclose(blocks(head, hidden, tokens), dense(head, hidden, tokens), rtol=1e-5, atol=1e-5)
    got = jax.grad(loss, (1, 2))(blocks, head, hidden)
    want = jax.grad(loss, (1, 2))(dense, head, hidden)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_logits_of_a_long_row_are_never_in_memory_at_once():
    head, hidden = jax.ShapeDtypeStruct((16, 5000), jnp.float32), jax.ShapeDtypeStruct((1, 2048, 16), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)

    def loss(head, hidden, tokens):
        return log_probabilities(head, hidden, tokens).sum()

    needed = jax.jit(jax.grad(loss, (0, 1))).lower(head, hidden, tokens).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 4 * 2048 * 5000 / 2


def test_the_gradient_of_bfloat16_hidden_states_is_summed_in_float32():
    """Half of the blocks push up what the other half pushes down: in bfloat16 the small rest would drown."""
    rng = np.random.default_rng(0)
    head = jnp.asarray(rng.normal(size=(32, 512)), jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(1, 64, 32)), jnp.bfloat16)
    tokens = jnp.asarray(rng.integers(0, 512, (1, 64)))

    def error(positions):
        got = jax.grad(lambda x: log_probabilities(head, x, tokens, positions=positions).sum())(hidden)
        want = jax.grad(lambda x: dense(head, x, tokens).sum())(hidden.astype(jnp.float32))
        return float(jnp.abs(got.astype(jnp.float32) - want).mean())

    assert error(1) < 1.3 * error(64)


def test_looking_up_outside_a_mesh_is_indexing():
    table = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(look_up(table, jnp.array([[3, 0]]), jnp.float32), [[[9, 10, 11], [0, 1, 2]]])
