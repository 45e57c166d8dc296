"""The explicit reward model: a state's value is read at the end of its last turn, cheaply, whatever else is asked."""

import asyncio

import numpy as np
import pytest

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.prompts import Encoder
from agentrm_jax.rewards.explicit import ExplicitRewardModel
from agentrm_jax.testing.scripted import walk
from agentrm_jax.testing.tiny import dense_values, tiny_model
from agentrm_jax.types import Action, Outcome, State, Task

MODEL = tiny_model(vocab_size=330)
SIZES = EngineConfig(cache_tokens=4096, rows=(4,), new_tokens=(128,), context=(192,))
START = State(Task("hall", "1", "train", 9), "leave", outcome=Outcome("A door."))


@pytest.fixture(scope="module")
def encoder(chat, hall):
    return Encoder(chat, {"hall": hall}, "reward")


@pytest.fixture(scope="module")
def reward_model(chat, encoder):
    return ExplicitRewardModel(Engine(MODEL, SIZES, end_id=chat.end_id), encoder)


def candidates(state):
    return [state.propose(Action(f"Action: {word}")) for word in ("look", "wait", "leave")]


def test_a_score_is_the_value_at_the_end_of_turn(reward_model, encoder):
    states = candidates(START)
    got = asyncio.run(reward_model.score(states))
    want = [dense_values(MODEL, np.concatenate([s.tokens for s in encoder.turn(state)]))[-1] for state in states]
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert len(set(got)) == 3


def test_an_executed_state_has_the_score_it_had_as_a_proposal(reward_model):
    """The outcome of the last action is not seen."""
    proposed = START.propose(Action("Action: look"))
    executed = walk(START, "Action: look", "a key")
    first, second = asyncio.run(reward_model.score([proposed, executed]))
    assert first == pytest.approx(second, abs=1e-5)


def test_the_next_turn_costs_its_new_tokens_only(reward_model, encoder):
    state = walk(START, "Action: look", "a key")
    asyncio.run(reward_model.score([state]))
    before = reward_model.tokens
    following = candidates(state)
    asyncio.run(reward_model.score(following))
    known = sum(len(s.tokens) for s in encoder.turn(state))
    paths = [np.concatenate([s.tokens for s in encoder.turn(f)]).tolist() for f in following]
    distinct = {tuple(path[:end]) for path in paths for end in range(known + 1, len(path) + 1)}
    assert reward_model.tokens - before == len(distinct)  # the candidates' common beginning counts once


def test_many_askers_share_a_batch_and_get_their_own_scores(reward_model):
    one, two = candidates(START), candidates(walk(START, "Action: look", "a key"))

    async def together():
        return await asyncio.gather(reward_model.score(one), reward_model.score(two), reward_model.score([]))

    first, second, third = asyncio.run(together())
    assert third == []
    np.testing.assert_allclose(first, asyncio.run(reward_model.score(one)), atol=1e-5)
    np.testing.assert_allclose(second, asyncio.run(reward_model.score(two)), atol=1e-5)


def test_a_state_that_cannot_fit_has_no_score_and_the_others_have_theirs(reward_model):
    long = State(START.task, "leave", outcome=Outcome("A door. " * 200))
    scores = asyncio.run(reward_model.score([candidates(long)[0], candidates(START)[0]]))
    assert np.isnan(scores[0])
    assert scores[1] == asyncio.run(reward_model.score(candidates(START)))[0]
