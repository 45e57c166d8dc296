"""A short soak: what the engine has served leaves nothing behind, and what it has compiled is enough."""

import dataclasses

from agentrm_jax.engine.engine import Engine
from agentrm_jax.testing.tiny import tiny_model
from benchmarks.soak import SIZES, soak

FEW = dataclasses.replace(
    SIZES, rows=(8,), batch_tokens=(256,), new_tokens=(64,), context=(128,)
)  # soon all have occurred


def test_mixed_requests_with_cancellations_lose_nothing():
    engine = Engine(tiny_model(), FEW, end_id=3)
    found = soak(engine, 150, seed=0)
    assert found["locks"] == found["lost slots"] == 0
    assert found["answered"] + found["cancelled"] >= 150
    assert found["cancelled"] > 0
    assert engine.idle
    before = engine.compilations
    assert soak(engine, 150, seed=1)["lost slots"] == 0
    assert engine.compilations == before
