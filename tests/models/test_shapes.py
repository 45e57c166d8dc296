"""Shapes of arrays stand in annotations, and tests check every call against them (see `CHECKED` in conftest.py)."""

import importlib
import inspect
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from agentrm_jax.models.layers import rms_norm
from agentrm_jax.models.transformer import token_logprobs
from agentrm_jax.training.losses import weighted_mean


def bare(hint: object) -> bool:
    """Whether a type names arrays without their shape."""
    return hint in (jax.Array, np.ndarray) or any(bare(a) for a in typing.get_args(hint))


def test_public_functions_of_arrays_say_their_shapes(checked_modules):
    found = []
    for name in checked_modules:
        module = importlib.import_module(name)
        for key, function in inspect.getmembers(module, inspect.isfunction):
            if not key.startswith("_") and function.__module__ == name:
                hints = inspect.get_annotations(inspect.unwrap(function)).values()
                found += [f"{name}.{key}"] if any(map(bare, hints)) else []
    assert found == []


def test_an_array_of_another_shape_or_type_is_refused(tiny):
    with pytest.raises(jaxtyping.TypeCheckError, match="rms_norm"):
        rms_norm(jnp.ones((2, 3)), jnp.ones(4), 1e-6)
    with pytest.raises(jaxtyping.TypeCheckError, match="weighted_mean"):
        weighted_mean(jnp.ones(3), jnp.ones(3, jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="token_logprobs"):
        jax.eval_shape(lambda: token_logprobs(None, jnp.ones((1, 2, 3)), jnp.ones((1, 2), int), jnp.ones((1, 2), int)))
