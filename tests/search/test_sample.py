"""Sampling alone: the trajectories that best-of-n draws, none chosen, all kept."""

import asyncio
import math

import pytest

from agentrm_jax.search import methods
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.sample import sample
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import commands_of, random_reward, uniform_policy
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import UserError

TASK, POLICY = make_task(4), uniform_policy("abc")


def test_it_draws_what_best_of_n_draws_and_its_result_is_the_first():
    how = {"n": 6, "temperature": 0.7, "seed": 3}
    drawn = asyncio.run(sample(TASK, POLICY, InlineEnvironments(SPEC), **how))
    ranked = asyncio.run(best_of_n(TASK, POLICY, InlineEnvironments(SPEC), random_reward(), **how))
    assert [commands_of(c.state) for c in drawn.candidates] == [commands_of(c.state) for c in ranked.candidates]
    assert drawn.chosen == 0
    assert drawn.counts == {"faults": 0}
    assert all(math.isnan(c.score) and c.step_scores == () for c in drawn.candidates)


def test_its_candidates_are_kept_although_no_reward_model_ranked_them():
    method = methods.find("sample")
    assert method.keeps
    assert not method.reward_model
    assert not method.explores


def test_sampling_nothing_is_refused():
    with pytest.raises(UserError, match="n of at least 1, got 0"):
        asyncio.run(sample(TASK, POLICY, InlineEnvironments(SPEC), n=0))
