"""The implicit reward model: log-ratios of two models at the tokens of actions, step by step or added up, however it is asked."""

import asyncio
import functools
import math

import numpy as np
import pytest
from jax.nn import log_softmax

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.prompts import Encoder, told_as_policy
from agentrm_jax.rewards.implicit import ImplicitRewardModel, check_step
from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.beam import beam
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.lookahead import lookahead
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import uniform_policy, walk
from agentrm_jax.testing.tiny import dense_logits, tiny_model
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import Action, Outcome, State, Task, UserError

TUNED, REFERENCE = tiny_model(vocab_size=330), tiny_model(1, vocab_size=330)
SIZES = EngineConfig(cache_tokens=4096, rows=(4,), new_tokens=(128,), context=(256,))
START = State(Task("hall", "1", "train", 9), "leave", outcome=Outcome("A door."))


@pytest.fixture(scope="module")
def encoder(chat, hall):
    return Encoder(chat, {"hall": hall, SPEC.name: SPEC}, "reward")


@pytest.fixture(scope="module")
def make(chat, encoder):
    @functools.cache
    def made(step="accumulated", beta=0.05, tuned=TUNED, reference=REFERENCE, sizes=SIZES):
        engines = (Engine(model, sizes, end_id=chat.end_id) for model in (tuned, reference))
        return ImplicitRewardModel(*engines, encoder, beta=beta, step=step)

    return made


def episode() -> list[State]:
    """The states of three turns."""
    first = walk(START, "Action: look", "a key")
    second = walk(first, "Thought: take it\nAction: take key", "taken")
    return [first, second, second.propose(Action("Action: leave"))]


def ratio(encoder: Encoder, state: State) -> float:
    """log pi - log pi_ref of the last action, from two forward passes over everything."""
    segments = encoder.turn(state)
    path = np.concatenate([s.tokens for s in segments])
    at = np.arange(len(path) - len(segments[-1].tokens), len(path))
    both = [np.asarray(log_softmax(dense_logits(model, path)))[at - 1, path[at]].sum() for model in (TUNED, REFERENCE)]
    return float(both[0] - both[1])


def test_a_step_has_the_log_ratio_of_its_tokens_and_a_path_their_sum(make, encoder):
    states = episode()
    want = [0.05 * ratio(encoder, state) for state in states]
    single = asyncio.run(make("single").score(states))
    np.testing.assert_allclose(single, want, atol=1e-4)
    assert max(abs(x) for x in single) > 0.01
    np.testing.assert_allclose(asyncio.run(make().score(states)), np.cumsum(want), atol=1e-4)


def test_the_sum_of_single_rewards_is_the_last_accumulated_one(make):
    states = episode()
    single, accumulated = (asyncio.run(make(step).score(states)) for step in ("single", "accumulated"))
    assert agg.aggregate(single, "sum") == pytest.approx(agg.aggregate(accumulated, "last"), abs=1e-6)


def test_a_model_compared_with_itself_gives_exactly_nothing(make):
    assert asyncio.run(make(reference=TUNED).score(episode())) == [0, 0, 0]


def test_rewards_are_linear_in_beta_so_that_no_choice_depends_on_it(make):
    states = [START.propose(Action(f"Action: {word}")) for word in ("look", "wait", "leave")]
    small, large = (asyncio.run(make(beta=beta).score(states)) for beta in (0.05, 5.0))
    np.testing.assert_allclose(np.array(large), 100 * np.array(small), rtol=1e-6)


def test_a_score_does_not_depend_on_what_else_is_asked_nor_on_what_follows(make, encoder):
    states = episode()
    model, fresh = make(), make(sizes=EngineConfig(cache_tokens=2048, rows=(4,), new_tokens=(128,), context=(256,)))
    alone = asyncio.run(fresh.score([states[0]]))[0]
    together = asyncio.run(model.score([*states, START.propose(Action("Action: sing"))]))
    assert together[0] == pytest.approx(alone, abs=1e-5)


def test_the_next_turn_costs_its_new_tokens_only_and_a_known_state_nothing(make, encoder, chat):
    model = ImplicitRewardModel(*(Engine(m, SIZES, end_id=chat.end_id) for m in (TUNED, REFERENCE)), encoder)
    states = episode()
    asyncio.run(model.score(states[:2]))
    before = model.tokens
    asyncio.run(model.score(states[:2]))
    assert model.tokens == before
    asyncio.run(model.score(states[2:]))
    *_, answer, action = encoder.turn(states[2])
    # Each model reads the answer and the action; the token before them once more at most.
    new = len(answer.tokens) + len(action.tokens)
    assert 2 * new <= model.tokens - before <= 2 * (new + 1)


def test_a_long_path_is_read_without_its_oldest_turns_and_one_that_cannot_fit_has_no_score(make, encoder):
    states = episode()
    lengths = [sum(len(s.tokens) for s in encoder.turn(state)) for state in states]
    sizes = EngineConfig(cache_tokens=4096, rows=(4,), new_tokens=(128,), context=(lengths[2] - 1,))
    model = make(sizes=sizes)
    scores = asyncio.run(model.score(states))
    whole = asyncio.run(make().score(states))
    np.testing.assert_allclose(scores[:2], whole[:2], atol=1e-4)
    assert math.isfinite(scores[2])
    assert scores[2] != pytest.approx(whole[2], abs=1e-6)
    assert model.dropped_turns["hall/1"] > 0
    endless = State(START.task, "leave", outcome=Outcome("A door. " * 300))
    assert math.isnan(asyncio.run(model.score([endless.propose(Action("Action: look"))]))[0])


TASK = make_task(3)
POLICY = uniform_policy("abc")


@pytest.mark.parametrize("step", ["single", "accumulated"])
@pytest.mark.parametrize("aggregate", ["last", "min", "mean", "sum", "prod", "max"])
def test_every_aggregate_chooses_among_whole_trajectories(make, step, aggregate):
    model = make(step)
    result = asyncio.run(
        best_of_n(TASK, POLICY, InlineEnvironments(SPEC), model, n=4, aggregate=aggregate, all_steps=True)
    )
    scores = [c.score for c in result.candidates]
    assert result.chosen == int(np.argmax(scores))
    assert result.counts["unscored"] == 0
    for c in result.candidates:
        assert list(c.step_scores) == pytest.approx(asyncio.run(model.score(c.state.path()[1:])), abs=1e-6)


@pytest.mark.parametrize(
    "search",
    [functools.partial(beam, width=2, branch=2), functools.partial(lookahead, samples=2)],
    ids=["beam", "lookahead"],
)
def test_it_guides_searches_step_by_step(make, search):
    result = asyncio.run(search(TASK, POLICY, InlineEnvironments(SPEC), make()))
    assert result.finished
    assert all(math.isfinite(c.score) for c in result.candidates)


def test_what_a_policy_reads_can_be_told_as_what_a_reward_model_reads(chat, hall):
    task = START.task
    policy = Encoder(chat, {"hall": hall}, "policy").prompt(task, "leave", "A door.")
    reward = Encoder(chat, {"hall": told_as_policy(hall)}, "reward").prompt(task, "leave", "A door.")
    np.testing.assert_array_equal(policy.tokens, reward.tokens)


def test_a_way_to_score_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="step_reward=half: use accumulated or single"):
        check_step("half")
