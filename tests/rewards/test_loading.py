"""Where reward models are opened: what they are given of the engine's sizes."""

import pytest

from agentrm_jax.rewards import explicit, implicit
from agentrm_jax.rewards.loading import load_reward_model


@pytest.mark.parametrize(
    ("module", "function", "place"),
    [(explicit, "load_explicit", "runs/none"), (implicit, "load_policies", "implicit:runs/tuned@runs/base")],
)
def test_reward_models_keep_the_type_of_the_engine_whatever_the_type_of_the_policys_matrices(
    module, function, place, monkeypatch
):
    given = {}

    def opened(*args, **how):
        given.update(next(a for a in args if isinstance(a, dict) and "dtype" in a))

    monkeypatch.setattr(module, function, opened)
    load_reward_model(place, {}, {"dtype": "float32", "weights": "int8", "samples": 3})
    assert given == {"dtype": "float32", "weights": "", "samples": 3}
