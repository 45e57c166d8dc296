"""The table of search methods: how each is bound to the settings of a config."""

import asyncio
import math

import pytest

from agentrm_jax.search import methods
from agentrm_jax.search.methods import METHODS
from agentrm_jax.search.turns import command_of
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import ScriptedRewardModel, random_reward, uniform_policy, word_of
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import UserError


class Length:
    async def score(self, states):
        return [float(s.depth) for s in states]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_one_result_with_the_same_way_to_its_reward(name):
    method = methods.find(name)
    run = method.bind({}, seed=1, command=command_of)
    parts = [uniform_policy("abc"), InlineEnvironments(SPEC), *([Length()] if method.reward_model else [])]
    result = asyncio.run(run(make_task(3), *parts))
    assert 0 <= result.state.outcome.reward <= 1
    assert (result.tree is not None) == method.explores
    assert result.finished


GUIDED = [name for name, method in METHODS.items() if method.reward_model]
SETTINGS = {"adaptive": {"n": 4, "wave": 2, "threshold": 1e9, "patience": 1}}  # a threshold has the scale of the scores


def guided(name, reward_model, seed=0):
    run = methods.find(name).bind(SETTINGS.get(name, {}), seed=seed, command=command_of)
    return asyncio.run(run(make_task(4), uniform_policy("abc"), InlineEnvironments(SPEC), reward_model))


@pytest.mark.parametrize("name", GUIDED)
def test_a_number_added_to_all_scores_changes_no_choice(name):
    for seed in range(3):
        model = random_reward(seed)
        below = ScriptedRewardModel(lambda state, value=model.value: value(state) - 8)
        plain, shifted = guided(name, model, seed), guided(name, below, seed)
        assert [word_of(c.state) for c in plain.candidates] == [word_of(c.state) for c in shifted.candidates]
        assert (plain.chosen, plain.counts) == (shifted.chosen, shifted.counts)


@pytest.mark.parametrize("name", GUIDED)
def test_without_any_score_there_is_still_a_finished_trajectory_and_what_is_missing_is_counted(name):
    result = guided(name, ScriptedRewardModel(lambda state: None))
    assert result.finished
    assert result.counts["unscored"] > 0
    assert all(math.isnan(c.score) for c in result.candidates)


def test_the_best_episode_of_a_tree_is_its_result():
    run = methods.find("mcts").bind({"iterations": 3, "k": 2}, seed=0, command=command_of)
    result = asyncio.run(run(make_task(3), uniform_policy("abc"), InlineEnvironments(SPEC)))
    assert result.state.outcome.reward == max(n.outcome.reward for n in result.tree.nodes if n.outcome.done)


def test_unknown_methods_and_settings_are_named():
    with pytest.raises(UserError, match=r"--config.method=bean: known methods are greedy, best_of_n, beam"):
        methods.find("bean")
    with pytest.raises(UserError, match=r"--config.search.widht: beam has no such setting; did you mean width\?"):
        METHODS["beam"].bind({"widht": 3}, seed=0, command=command_of)
