"""A made-up shop for small models: short pages and codes, few kinds of products, and an expert who takes the first that will do."""

import pytest

from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.webshop import environment as webshop
from agentrm_jax.envs.webshop.wares import WARES
from agentrm_jax.replies import render_action
from agentrm_jax.types import UserError

SMALL = {"num_products": 60, "kinds": 6, "page_size": 1, "code_length": 4, "wishes": 5}


def test_a_small_shop_has_short_codes_few_kinds_and_short_pages():
    env = webshop.make(SMALL)
    assert env.shop.name == "generated-60-0-4-6-5"
    assert len(env.shop.goals) == 60 * 5
    assert {p.query for p in env.shop.products} == {w.noun for w in WARES[:6]}
    assert {len(p.asin) for p in env.shop.products} == {4}
    assert {tuple(p.options) for p in env.shop.products} == {("clothing size", "color")}
    env.reset(webshop.tasks("test", SMALL)[0])
    assert "Page 1" in env.step("search[rain jacket]").observation
    assert sum(p.asin.lower() in env.clickables() for p in env.shop.products) == 1
    assert env.step("click[Next >]").observation.count(" [SEP] B0") == 1


def test_its_expert_asks_for_what_it_was_told_and_gives_up_in_time():
    env, queries, bought = webshop.make(SMALL), [], 0
    for task in webshop.tasks("train", SMALL)[:60]:
        env.reset(task)
        turns = list(webshop.expert(env, task))
        assert len(turns) <= task.max_steps
        queries += [(command[7:-1], env.goal.text) for _, command in turns[:1]]
        bought += bool(turns)
        outcomes = [env.step(command) for _, command in turns]
        assert [o.reward for o in outcomes[-1:]] in ([], [1.0])
    assert 30 < bought <= 60
    assert all(set(query.split()) <= set(text.replace(",", " ").replace("?", " ").split()) for query, text in queries)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"kinds": 99}, "the made-up shop has 41 kinds"),
        ({"code_length": 3}, "60 products need more, 10 at most"),
        ({"code_length": 11}, "10 at most"),
        ({"page_size": "many"}, "option page_size must be a whole number above 0"),
    ],
)
def test_small_shops_that_cannot_be_are_named(changed, line):
    with pytest.raises(UserError, match=line):
        webshop.tasks("test", {**SMALL, **changed})


def test_what_was_bought_is_the_answer_that_votes_are_counted_by():
    task = webshop.tasks("train", SMALL)[0]
    episode = Episode(webshop.make(SMALL), webshop.SPEC)
    episode.reset(task)
    env = episode.environment
    outcomes = [episode.step(render_action("", command)) for _, command in webshop.expert(env, task)]
    said = [webshop.SPEC.answer(outcome) for outcome in outcomes]
    assert said[:-1] == [None] * (len(said) - 1)
    size, color = env.goal.options
    assert said[-1] == f'{env.goal.product.asin} {{"clothing size": "{size}", "color": "{color}"}}'
