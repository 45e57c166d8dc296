"""Soaks: what the engine has served leaves nothing behind, and what it has compiled is enough."""

import dataclasses

import pytest

from agentrm_jax.engine.engine import Engine
from agentrm_jax.testing.tiny import tiny_model
from benchmarks.soak import SIZES, soak, warm_up

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


@pytest.mark.slow
def test_five_thousand_requests_find_every_program_compiled():
    """`python -m benchmarks.soak --size nano` does the same with more sizes and a larger model."""
    engine = Engine(tiny_model(), dataclasses.replace(FEW, rows=(2, 8)), end_id=3)
    warm_up(engine)
    before = engine.compilations
    found = soak(engine, 5000, seed=0)
    assert engine.compilations == before
    assert found["locks"] == found["lost slots"] == 0
    assert found["answered"] + found["cancelled"] == 5000
    assert engine.stats.accepted > 0
    assert engine.idle
