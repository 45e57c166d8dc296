"""Rollouts and best-of-n."""

import asyncio
import math

import pytest

from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.greedy import rollout
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedPolicy,
    ScriptedRewardModel,
    commands_of,
    constant_reward,
    listing_policy,
    outcome_reward,
    random_reward,
    uniform_policy,
)
from agentrm_jax.testing.scripted import word_of as word
from agentrm_jax.testing.toy_env import SPEC, make_task, word_reward
from agentrm_jax.types import Action, EnvironmentFault, TaskFailure, UserError

TASK = make_task(4)
POLICY = uniform_policy("abc")


def run(n=5, reward_model=None, policy=POLICY, seed=0, **options):
    envs = InlineEnvironments(SPEC)
    return asyncio.run(best_of_n(TASK, policy, envs, reward_model or outcome_reward(), n=n, seed=seed, **options))


def test_a_rollout_goes_on_to_the_end_of_the_episode():
    state = asyncio.run(rollout(TASK, listing_policy("abc"), InlineEnvironments(SPEC)))
    assert word(state) == "aaaa"
    assert state.done
    assert state.outcome.reward == word_reward(TASK, "aaaa")


def test_a_rollout_can_go_on_from_a_state_for_a_few_turns():
    async def main():
        envs = InlineEnvironments(SPEC)
        state = await envs.step(await envs.reset(TASK), Action("Action: b"))
        return await rollout(state, listing_policy("abc"), envs, max_turns=2)

    state = asyncio.run(main())
    assert word(state) == "baa"
    assert not state.done


def test_a_turn_without_a_command_costs_a_step_and_the_step_limit_ends_the_episode():
    silent = ScriptedPolicy(lambda state, n, temperature, seed: [""] * n)
    state = asyncio.run(rollout(TASK, silent, InlineEnvironments(SPEC)))
    assert state.depth == TASK.max_steps
    assert state.done
    assert not state.outcome.success


def test_best_of_one_is_sampling_whatever_the_reward_model_says():
    for seed in range(10):
        sampled = asyncio.run(rollout(TASK, POLICY, InlineEnvironments(SPEC), temperature=0.7, seed=seed))
        chosen = run(1, random_reward(seed), seed=seed).state
        assert [s.action for s in chosen.path()] == [s.action for s in sampled.path()]


def test_sample_i_does_not_depend_on_n():
    many = [word(c.state) for c in run(8).candidates]
    for n in range(1, 8):
        assert [word(c.state) for c in run(n).candidates] == many[:n]
    assert len(set(many)) > 1


def test_the_oracle_gets_the_best_sample_and_never_less_with_more():
    rewards = [run(n).state.outcome.reward for n in range(1, 12)]
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[-1]
    result = run(11)
    assert result.state.outcome.reward == max(c.state.outcome.reward for c in result.candidates)


def test_ties_go_to_the_first_sample():
    assert run(5, constant_reward()).chosen == 0


def test_missing_scores_never_win_and_are_counted():
    first = word(run(1).state)
    without_first = ScriptedRewardModel(lambda state: math.nan if word(state) == first else -1e9)
    result = run(5, without_first)
    assert word(result.state) != first
    assert result.counts["unscored"] == sum(word(c.state) == first for c in result.candidates) > 0
    nothing = run(3, ScriptedRewardModel(lambda state: None))
    assert nothing.chosen == 0
    assert nothing.counts["unscored"] == 3


@pytest.mark.parametrize(("how", "expected"), [("min", min), ("max", max), ("sum", sum), ("last", lambda s: s[-1])])
def test_the_score_is_the_aggregate_of_the_step_scores(how, expected):
    model = random_reward(3)
    for c in run(5, model, aggregate=how, all_steps=True).candidates:
        assert c.step_scores == tuple(model.value(s) for s in c.state.path()[1:])
        assert c.score == pytest.approx(expected(c.step_scores))


def test_only_final_states_are_scored_if_nothing_else_is_asked_for():
    seen = []

    class Watching(ScriptedRewardModel):
        async def score(self, states):
            seen.append(len(states))
            return await super().score(states)

    result = run(6, Watching(lambda state: 0.0))
    assert seen == [6]  # one call: a listwise judge sees all candidates
    assert all(len(c.step_scores) == 1 for c in result.candidates)


def test_the_samples_are_drawn_at_once_so_that_the_engine_can_batch_them():
    waiting, most = 0, 0

    class Slow(ScriptedPolicy):
        async def propose(self, state, n, *, temperature, seed):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            await asyncio.sleep(0.001)
            waiting -= 1
            return await super().propose(state, n, temperature=temperature, seed=seed)

    run(6, policy=Slow(POLICY.choose))
    assert most == 6


class Breaking(InlineEnvironments):
    """Cannot execute the commands in `broken`."""

    broken = ""

    async def step(self, state, action):
        if commands_of(state.propose(action))[-1] in self.broken:
            raise EnvironmentFault("it died twice")
        return await super().step(state, action)


def test_lost_samples_are_left_out_and_if_all_are_lost_so_is_the_task():
    envs = Breaking(SPEC)
    envs.broken = "b"
    result = asyncio.run(best_of_n(TASK, POLICY, envs, outcome_reward(), n=12))
    assert 0 < result.counts["faults"] == 12 - len(result.candidates)
    assert not any("b" in word(c.state) for c in result.candidates)
    assert [word(c.state) for c in result.candidates] == [
        word(run(12).candidates[c.sample].state) for c in result.candidates
    ]
    envs.broken = "abc"
    with pytest.raises(TaskFailure, match="all 3 samples"):
        asyncio.run(best_of_n(TASK, POLICY, envs, outcome_reward(), n=3))


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        run(0)
    with pytest.raises(UserError, match="median"):
        run(2, aggregate="median")
