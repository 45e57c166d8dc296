"""Ensembles: the mean of several opinions less what they differ, from several models or from several heads of one."""

import asyncio
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.prompts import Encoder
from agentrm_jax.rewards.ensemble import EnsembleRewardModel, Pessimism
from agentrm_jax.rewards.explicit import ExplicitRewardModel
from agentrm_jax.testing.tiny import tiny_model
from agentrm_jax.types import Action, Outcome, State, Task

SIZES = EngineConfig(cache_tokens=4096, rows=(4,), new_tokens=(128,), context=(192,))
START = State(Task("hall", "1", "train", 9), "leave", outcome=Outcome("A door."))
STATES = [START.propose(Action(f"Action: {word}")) for word in ("look", "wait", "leave")]


class Fixed:
    """Scores by the action's words, and knows what it cost."""

    def __init__(self, tokens: int, **scores: float | None):
        self.tokens, self.scores, self.calls = tokens, scores, 0
        self.dropped_turns = {"hall/1": tokens % 4}

    async def score(self, states):
        self.calls += 1
        return [self.scores[s.action.text.removeprefix("Action: ")] for s in states]


def ask(model, states=STATES) -> list[float]:
    return asyncio.run(model.score(states))


def test_a_score_is_the_mean_less_k_standard_deviations():
    one, other = Fixed(10, look=1.0, wait=0.5, leave=0.9), Fixed(3, look=0.0, wait=0.5, leave=0.5)
    for k, wanted in ((0.0, [0.5, 0.5, 0.7]), (1.0, [0.0, 0.5, 0.5]), (2.0, [-0.5, 0.5, 0.3])):
        ensemble = EnsembleRewardModel([one, other], k)
        assert ask(ensemble) == pytest.approx(wanted)
    assert (one.calls, other.calls) == (3, 3), "each is asked once for all states"
    assert ensemble.tokens == 13
    assert ensemble.dropped_turns == {"hall/1": 3}


def test_where_one_has_no_score_the_ensemble_has_none():
    found = ask(
        EnsembleRewardModel([Fixed(1, look=0.1, wait=None, leave=0.3), Fixed(1, look=0.1, wait=1, leave=math.nan)])
    )
    assert found[0] == pytest.approx(0.1)
    assert math.isnan(found[1])
    assert math.isnan(found[2])


def test_members_with_several_opinions_give_them_all_and_are_closed_with_the_ensemble():
    class Heads(Fixed):
        closed = False

        async def opinions(self, states):
            return [np.array([0.0, 0.5]) for _ in states]

        async def aclose(self):
            self.closed = True

    heads, one = Heads(1), Fixed(1, look=1.0, wait=0.5, leave=0.0)
    ensemble = EnsembleRewardModel([heads, one], 1.0)
    assert ask(ensemble) == pytest.approx([np.mean(o) - np.std(o) for o in ([0, 0.5, 1.0], [0, 0.5, 0.5], [0, 0.5, 0])])
    asyncio.run(ensemble.aclose())
    assert heads.closed


def test_disagreement_is_noted_for_each_task():
    pessimism = Pessimism(2.0)
    pessimism.score([0.0, 1.0], "a")
    pessimism.score([0.5, 0.5], "a")
    pessimism.score([0.0, 0.2], "b")
    pessimism.score([0.0, math.nan], "b")
    assert pessimism.notes("a") == {"disagreement": {"states": 2, "deviation": 0.5}}
    assert pessimism.notes("b") == {"disagreement": {"states": 1, "deviation": pytest.approx(0.1)}}
    assert pessimism.notes("c") == {}
    with pytest.raises(ValueError, match="has members"):
        EnsembleRewardModel([])


def with_heads(value_ed: np.ndarray) -> Transformer:
    """The tiny model with these value heads, a single one as a model that has no others."""
    model = tiny_model(vocab_size=330)
    if len(value_ed) == 1:
        model.value_d[...] = jnp.asarray(value_ed[0])
        return model
    del model.value_d
    model.value_ed = nnx.Param(jnp.asarray(value_ed), axes=("ensemble", "norm"))
    return model


@pytest.mark.parametrize("k", [0.0, 1.5])
def test_heads_on_one_trunk_are_an_ensemble_that_costs_one_reading(chat, hall, k):
    heads = 0.2 * np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)

    def reward_model(value_ed, pessimism=0.0):
        engine = Engine(with_heads(value_ed), SIZES, end_id=chat.end_id)
        return ExplicitRewardModel(engine, Encoder(chat, {"hall": hall}, "reward"), pessimism=pessimism)

    several = reward_model(heads, k)
    alone = [reward_model(head[None]) for head in heads]
    opinions = np.array([ask(one) for one in alone])
    np.testing.assert_allclose(ask(several), opinions.mean(0) - k * opinions.std(0), atol=1e-5)
    assert several.tokens == alone[0].tokens
    noted = several.notes("hall/1")["disagreement"]
    assert noted == {"states": 3, "deviation": pytest.approx(float(opinions.std(0).sum()), abs=1e-5)}
    assert alone[0].notes("hall/1") == {}
    again = several.tokens
    np.testing.assert_allclose(ask(several), opinions.mean(0) - k * opinions.std(0), atol=1e-5)
    assert several.tokens == again, "values of all heads are kept"
