"""Our engine as a policy: actions carry exactly what was sampled, all askers are served together, old turns give way."""

import asyncio
import dataclasses
import itertools
import math

import numpy as np
import pytest

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.policies.native import NativePolicy
from agentrm_jax.prompts import Encoder
from agentrm_jax.testing.scripted import walk
from agentrm_jax.testing.tiny import dense_greedy, tiny_model
from agentrm_jax.types import Outcome, State, Task, TooLong

MODEL = tiny_model(vocab_size=330)
SIZES = EngineConfig(cache_tokens=2048, rows=(4,), new_tokens=(128,), context=(192,), samples=2, max_new=5)
START = State(Task("hall", "1", "train", 9), "leave", outcome=Outcome("A door."))


@pytest.fixture(scope="module")
def policy(chat, hall):
    return NativePolicy(Engine(MODEL, SIZES, end_id=chat.end_id), Encoder(chat, {"hall": hall}))


def propose(policy, *states, n=1, temperature=0.0, seed=0):
    async def together():
        return await asyncio.gather(*(policy.propose(s, n, temperature=temperature, seed=seed) for s in states))

    return asyncio.run(together())


def test_a_greedy_proposal_continues_the_encoded_history(policy, chat, hall):
    path = np.concatenate([s.tokens for s in Encoder(chat, {"hall": hall}).history(START)])
    [[action]] = propose(policy, START)
    assert list(action.tokens) == dense_greedy(MODEL, path, 5, chat.end_id)
    assert action.text == chat.decode(list(action.tokens))
    assert action.finish == ("stop" if action.tokens[-1] == chat.end_id else "length")
    assert action.logprob < 0
    assert math.isfinite(action.logprob)


def test_a_proposal_does_not_depend_on_who_else_asks(policy):
    states = [START, walk(START, "Action: look", "a key"), walk(START, "Action: wait", "nothing")]
    alone = [propose(policy, s, n=2, temperature=1.0, seed=7)[0] for s in states]
    stats = dataclasses.replace(policy._engine.stats)
    together = propose(policy, *states, n=2, temperature=1.0, seed=7)
    assert [[a.tokens for a in actions] for actions in together] == [[a.tokens for a in actions] for actions in alone]
    for ours, theirs in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, rel=1e-5)  # sums of another batch shape, to rounding
    assert policy._engine.stats.prefills - stats.prefills <= 1
    assert policy._engine.stats.decode_steps - stats.decode_steps <= SIZES.max_new  # all side by side


def test_a_long_history_loses_its_oldest_turns_and_says_so(policy, chat):
    state = START
    while len(policy._encoder.history(state)) < 20:
        state = walk(state, "Action: look around once more", "A door. It is locked.")
    before = policy.window.dropped_turns["hall/1"]
    [[action]] = propose(policy, state)
    assert action.tokens
    assert policy.window.dropped_turns["hall/1"] > before


def test_a_prompt_that_cannot_fit_fails_its_task_alone(policy):
    long = State(START.task, "leave", outcome=Outcome("A door. " * 200))
    with pytest.raises(TooLong, match=r"^prompt and last turn alone take .* more than"):
        propose(policy, long)
    assert propose(policy, START)
