"""A linear map has the gradient of its einsum, whichever side is the narrow one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.models.linear import linear


@pytest.mark.parametrize(
    ("spec", "inputs", "out"),
    [("bti,io->bto", (3,), (7,)), ("bti,inh->btnh", (8,), (2, 3)), ("btnh,nho->bto", (2, 6), (5,))],
)
def test_values_and_gradients_are_those_of_the_einsum(spec, inputs, out):
    rng = np.random.default_rng(len(spec))
    x, weight, grad = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 4, *inputs), (*inputs, *out), (2, 4, *out))
    )
    got, pull = jax.vjp(linear, x, weight)
    want, pull_einsum = jax.vjp(lambda x, weight: jnp.einsum(spec, x, weight), x, weight)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    for a, b in zip(pull(grad), pull_einsum(grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
