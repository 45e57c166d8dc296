"""Particle filtering: weights, resampling, and what becomes of particles that end or are lost."""

import asyncio
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.budget import Meter
from agentrm_jax.search.greedy import rollout
from agentrm_jax.search.particle import particle, resample, softmax
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedEnvironments,
    ScriptedPolicy,
    ScriptedRewardModel,
    constant_reward,
    outcome_reward,
    random_reward,
    uniform_policy,
)
from agentrm_jax.testing.scripted import word_of as word
from agentrm_jax.testing.scripted import word_reward_model as scores
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import EnvironmentFault, Outcome, State, UserError

TASK = make_task(4)
POLICY = uniform_policy("abc")


def run(reward_model, envs=None, policy=POLICY, task=TASK, method=particle, **options):
    return asyncio.run(method(task, policy, envs or InlineEnvironments(SPEC), reward_model, **options))


def words(result):
    return [word(c.state) for c in result.candidates]


# --- Weights and places ----------------------------------------------------------------------------------------------


def test_weights_are_those_of_a_softmax():
    weights = softmax([0.2, 0.5, 0.1], 0.25)
    total = sum(math.exp(s / 0.25) for s in (0.2, 0.5, 0.1))
    assert [w / sum(weights) for w in weights] == pytest.approx([math.exp(s / 0.25) / total for s in (0.2, 0.5, 0.1)])
    assert softmax([1000.0, -1000.0], 1e-3) == [1.0, 0.0]  # no overflow


def test_at_the_default_temperature_scores_near_one_half_weigh_as_their_odds_would():
    low, high = softmax([0.48, 0.52], 0.25)
    assert high / low == pytest.approx((0.52 / 0.48) / (0.48 / 0.52), rel=1e-3)


def test_at_temperature_0_the_best_share_all_weight():
    assert softmax([0.2, 0.5, 0.5], 0) == [0.0, 1.0, 1.0]


def test_a_missing_score_weighs_nothing_unless_all_are_missing():
    assert softmax([math.nan, -5.0, math.nan], 1.0) == [0.0, 1.0, 0.0]
    assert softmax([math.nan, math.nan], 1.0) == [1.0, 1.0]


WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=8).filter(any)


@given(WEIGHTS, st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_systematic_places_are_the_expected_number_rounded_up_or_down(weights, count, seed):
    chosen = resample(weights, count, "systematic", random.Random(seed))
    assert chosen == sorted(chosen)
    for i, weight in enumerate(weights):
        expected = count * weight / sum(weights)
        assert math.floor(expected - 1e-9) <= chosen.count(i) <= math.ceil(expected + 1e-9)
        assert weight > 0 or chosen.count(i) == 0


@pytest.mark.parametrize("how", ["systematic", "multinomial"])
def test_places_are_given_in_proportion_to_weights(how):
    weights, count, draws = [0.5, 0.0, 0.2, 0.3], 5, 4000
    found = Counter(i for seed in range(draws) for i in resample(weights, count, how, random.Random(seed)))
    assert [found[i] / (count * draws) for i in range(4)] == pytest.approx(weights, abs=0.01)


@given(st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_equal_weights_leave_everything_as_it_is(count, seed):
    assert resample([1.0] * count, count, "systematic", random.Random(seed)) == list(range(count))


# --- The filter ------------------------------------------------------------------------------------------------------


def test_one_particle_is_plain_sampling_whatever_the_reward_model_says():
    for seed in range(10):
        sampled = asyncio.run(rollout(TASK, POLICY, InlineEnvironments(SPEC), temperature=0.7, seed=seed))
        found = run(random_reward(seed), particles=1, seed=seed)
        assert [s.action for s in found.state.path()] == [s.action for s in sampled.path()]


@pytest.mark.parametrize("model", [constant_reward(), ScriptedRewardModel(lambda state: None)])
def test_without_anything_to_tell_them_apart_it_is_best_of_n(model):
    for seed in range(5):
        result = run(model, particles=6, seed=seed)
        assert words(result) == words(run(model, method=best_of_n, n=6, seed=seed))
        assert result.counts["copies"] == 0


@pytest.mark.parametrize("how", ["systematic", "multinomial"])
def test_many_particles_are_distributed_as_the_weights_say(how):
    """Two turns: after the first, letters are spread by weight; the second is the policy's own again."""
    values = {"a": 0.1, "b": 0.6, "c": 0.3}
    task, many = make_task(2), 3000
    result = run(scores(values), task=task, particles=many, weight_temperature=0.25, resampling=how)
    total = sum(math.exp(v / 0.25) for v in values.values())
    found = Counter(words(result))
    for first, value in values.items():
        for second in "abc":
            assert found[first + second] / many == pytest.approx(math.exp(value / 0.25) / total / 3, abs=0.02)


def test_a_copy_draws_turns_of_its_own():
    seeds = []

    def choose(state, n, temperature, seed):
        seeds.append((word(state), seed))
        return uniform_policy("abcdefghijklmnopqrstuvwxyz").choose(state, n, temperature, seed)

    envs, policy = ScriptedEnvironments(ends=[]), ScriptedPolicy(choose)
    task = make_task(4, max_steps=4)
    result = run(random_reward(), envs, policy, task, particles=4, weight_temperature=0)
    assert result.counts["copies"] == 3 * 3
    assert len(set(seeds)) == len(seeds) == 4 * 4
    assert len({c.state.parent for c in result.candidates}) == 1
    assert len(set(words(result))) > 1


def test_it_costs_a_turn_a_step_and_a_score_for_every_particle_and_step():
    meter = Meter()
    run(
        meter.reward_model(random_reward()),
        meter.environments(InlineEnvironments(SPEC)),
        meter.policy(POLICY),
        particles=6,
    )
    cost = meter.total()
    assert (cost.policy_turns, cost.env_steps, cost.reward_states) == (6 * 4, 6 * 4, 6 * 4)
    assert cost.reward_calls == 4  # a listwise judge sees all particles


def test_the_reward_model_sees_the_outcome():
    assert run(outcome_reward(), particles=9).counts["unscored"] == 0


def places(table):
    """A policy whose place i writes letter i of the depth's text; the places of a depth ask in order."""
    asked = Counter()

    def choose(state, n, temperature, seed):
        asked[state.depth] += 1
        return [table[state.depth][asked[state.depth] - 1]]

    return ScriptedPolicy(choose)


def test_a_finished_particle_keeps_its_place_and_is_not_copied():
    envs = ScriptedEnvironments(ends=["a", "ca", "cb"])
    values = {"a": 0.9, "b": 0.1, "c": 0.2, "ca": 0.3, "cb": 0.4}
    result = run(scores(values), envs, places(["abc", "ab"]), particles=3, weight_temperature=0)
    assert words(result) == ["a", "ca", "cb"]
    assert word(result.state) == "a"
    assert [c.sample for c in result.candidates] == [0, 1, 2]


def test_the_others_take_the_place_of_a_particle_that_is_lost():
    envs = ScriptedEnvironments(ends=["ba", "bc"], broken=["a"])
    result = run(constant_reward(), envs, places(["ab", "ac"]), particles=2)
    assert words(result) == ["ba", "bc"]
    assert result.counts == {"faults": 1, "unscored": 0, "copies": 1}


def test_if_all_are_lost_they_stay_where_they_were_unfinished():
    envs = ScriptedEnvironments(ends=["b"], broken=["a", "ca"])
    values = {"c": 0.9, "b": 0.1}
    stuck = run(scores(values), envs, places(["bc", "a"]), particles=2)
    assert words(stuck) == ["b", "c"]
    assert word(stuck.state) == "b"  # though the other one scores higher
    nowhere = run(constant_reward(), envs, places(["aa"]), particles=2)
    assert words(nowhere) == ["", ""]
    assert not nowhere.finished
    assert nowhere.counts["faults"] == 2


def test_a_score_is_the_aggregate_of_the_steps_of_its_own_line():
    model = random_reward(3)
    for how, expected in (("mean", lambda s: sum(s) / len(s)), ("min", min)):
        for c in run(model, particles=5, aggregate=how).candidates:
            assert c.step_scores == tuple(model.value(s) for s in c.state.path()[1:])
            assert c.score == pytest.approx(expected(c.step_scores))


def test_a_task_that_is_over_at_reset_is_given_back():
    class Over(ScriptedEnvironments):
        async def reset(self, task):
            return State(task, "goal", outcome=Outcome("won", 1.0, 1.0, True, True))

    assert run(constant_reward(), Over([]), particles=3).state.depth == 0


@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from(["systematic", "multinomial"]))
@settings(max_examples=60, deadline=None)
def test_what_has_finished_stays_and_wins(seed, count, how):
    """Random ends, random scores, some missing, some turns lost."""

    class Chance(ScriptedEnvironments):
        finished = 0

        async def step(self, state, action):
            fate = random.Random(f"{seed}{word(state)}{action.text}").random()
            if fate > 0.9:
                raise EnvironmentFault("it hung")
            new = await super().step(state, action)
            done = new.done or fate < 0.3
            self.finished += done
            return State(new.task, new.goal, state, action, Outcome("", done=done), new.depth)

    def score(state):
        value = random.Random(f"score{seed}{word(state)}").random()
        return value if value > 0.1 else math.nan

    envs = Chance(ends=[])
    task = make_task(4, max_steps=4)
    result = run(ScriptedRewardModel(score), envs, task=task, particles=count, seed=seed, resampling=how)
    finished = [c for c in result.candidates if c.state.done]
    assert len(result.candidates) == count
    assert len(finished) == envs.finished
    assert result.finished == bool(finished)
    if known := [c.score for c in finished if not math.isnan(c.score)]:
        assert result.candidates[result.chosen].score == max(known)


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="at least 1 particle, got 0"):
        run(constant_reward(), particles=0)
    with pytest.raises(UserError, match="no resampling named 'residual'; use one of systematic, multinomial"):
        run(constant_reward(), resampling="residual")
    with pytest.raises(UserError, match="median"):
        run(constant_reward(), aggregate="median")
