"""The table of search methods: how each is bound to the settings of a config."""

import asyncio

import pytest

from agentrm_jax.search import methods
from agentrm_jax.search.methods import METHODS
from agentrm_jax.search.turns import command_of
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import uniform_policy
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


def test_the_best_episode_of_a_tree_is_its_result():
    run = methods.find("mcts").bind({"iterations": 3, "k": 2}, seed=0, command=command_of)
    result = asyncio.run(run(make_task(3), uniform_policy("abc"), InlineEnvironments(SPEC)))
    assert result.state.outcome.reward == max(n.outcome.reward for n in result.tree.nodes if n.outcome.done)


def test_unknown_methods_and_settings_are_named():
    with pytest.raises(UserError, match=r"--config.method=bean: known methods are greedy, best_of_n, beam"):
        methods.find("bean")
    with pytest.raises(UserError, match=r"--config.search.widht: beam has no such setting; did you mean width\?"):
        METHODS["beam"].bind({"widht": 3}, seed=0, command=command_of)
