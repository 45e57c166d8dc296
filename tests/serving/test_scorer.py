"""The reward model behind the endpoints, without a server: explicit and implicit ones give what `scoring.score` gives."""

import asyncio
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from agentrm_jax import scoring
from agentrm_jax.data import files, labels
from agentrm_jax.engine.engine import make_engine
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.scorer import Ratio, Scorer
from agentrm_jax.serving.sizes import engine_sizes
from agentrm_jax.serving.texts import Texts
from agentrm_jax.testing.tiny import tiny_model
from agentrm_jax.types import UserError
from tests.serving.conftest import talk

BOUND = 1e-5
ROWS = [labels.of_row(files.Row(talk(n, seed=n), f"row {n}", "rows", n))[0].conversations[0] for n in (1, 3, 9, 2)]


def scorer(chat, models, **more) -> Scorer:
    sizes = engine_sizes(models[0].config, dtype="float32", max_length=128, cache_tokens=2048)
    engines = [make_engine(model, sizes, end_id=chat.end_id) for model in models]
    about = {"read_at": "end_of_turn", "aggregate": "last", "longest": 256} | more
    return Scorer("rm", engines, Texts(chat), **about)


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert (one.id, one.dropped_turns, one.tokens) == (other.id, other.dropped_turns, other.tokens)
        np.testing.assert_allclose(
            one.step_scores, other.step_scores, rtol=0, atol=BOUND * max(1, len(one.step_scores))
        )


@pytest.mark.parametrize("read_at", ["end_of_turn", "last_token"])
def test_an_explicit_reward_model(chat, read_at):
    """Conversations beyond the limit are read without the oldest turns, here as there."""
    model = tiny_model(vocab_size=len(chat.tokenizer))
    found = asyncio.run(scorer(chat, [model], read_at=read_at).score(ROWS, "min"))
    wanted = list(scoring.score(model, chat, ROWS, max_length=128, read_at=read_at, aggregate="min", rows=1))
    same(found, wanted)
    assert any(one.dropped_turns for one in found)
    np.testing.assert_allclose([s.score for s in found], [s.score for s in wanted], atol=BOUND)


@pytest.mark.parametrize("accumulated", [True, False])
def test_an_implicit_reward_model(chat, accumulated):
    tuned, base = (tiny_model(seed, vocab_size=len(chat.tokenizer)) for seed in (0, 1))
    served = scorer(chat, [tuned, base], ratio=Ratio(0.5, accumulated))
    ratio = scoring.LogRatio(base, 0.5, accumulated)
    same(asyncio.run(served.score(ROWS)), scoring.score(tuned, chat, ROWS, max_length=128, ratio=ratio, rows=1))
    with pytest.raises(ServingError, match="values turns: send messages"):
        asyncio.run(served.values([np.array([5], np.int32)]))


def test_a_model_that_reads_what_conversations_do_not_keep_is_refused(chat):
    with pytest.raises(UserError, match="reads what was observed"):
        scorer(chat, [tiny_model(vocab_size=len(chat.tokenizer))], state="last_observation")


def test_an_engine_is_as_long_as_its_model_and_as_wide_as_memory_allows():
    config = tiny_model().config
    sizes = engine_sizes(config, dtype="float32")
    assert sizes["context"] == (256,)
    assert sizes["cache_tokens"] == 262_144
    deep = dataclasses.replace(config, max_length=131_072, num_layers=4000)
    large = engine_sizes(deep, dtype="bfloat16")
    assert large["context"] == (256, 512, 1024, 2048, 4096, 8192)
    assert large["cache_tokens"] == 4 * 8192
    assert large["rows"][-1] < sizes["rows"][-1]
    assert jnp.dtype(large["dtype"]) == jnp.bfloat16
