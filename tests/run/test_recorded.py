"""Samples that another run drew: the same trajectories, ranked by whom one likes."""

import asyncio
import json

import ml_collections
import pytest

from agentrm_jax.run import recorded, reports
from agentrm_jax.run.journal import Journal
from agentrm_jax.search import Done, Meter, best_of_n, rank
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import commands_of, random_reward, uniform_policy
from agentrm_jax.testing.toy_env import SPEC, tasks
from agentrm_jax.types import TaskFailure, UserError

TASKS = tasks("test", {})[:4]
SETTINGS = {"n": 4, "temperature": 1.0, "aggregate": "last", "all_steps": True}


@pytest.fixture
def drawn(tmp_path):
    """A finished best-of-4 of three tasks; a fourth failed."""
    workdir = tmp_path / "drawn"
    workdir.mkdir()
    meter, log = Meter(), Journal(workdir)
    policy, model = meter.policy(uniform_policy("abc")), meter.reward_model(random_reward(1))
    envs = meter.environments(InlineEnvironments(SPEC))
    for task in TASKS[:3]:
        result = asyncio.run(best_of_n(task, policy, envs, model, **SETTINGS))
        log.record(Done(task, result, None, 1.0), meter)
    log.record(Done(TASKS[3], None, "it hung", 1.0), meter)
    (workdir / "config.json").write_text(json.dumps(config("").to_dict()))
    (workdir / "done.json").write_text("{}")
    return workdir, meter.total()


def config(samples, **changed):
    fields = {
        "method": "best_of_n", "policy": "p", "seed": 0, "examples": 0, "samples": str(samples), "search": SETTINGS,
        "env": {"names": ["toy"], "options": {"toy": {"sizes": (3, 4)}}, "data": ""},
    }  # fmt: skip
    return ml_collections.ConfigDict({**fields, **changed})


def ranked(samples, task, model, **settings):
    run = recorded.read(config(samples, search={**SETTINGS, **settings}), TASKS).ranking({**SETTINGS, **settings})
    return asyncio.run(run(task, model))


def test_another_reward_model_chooses_as_if_it_had_drawn_the_samples_itself(drawn):
    for task in TASKS[:3]:
        mine = ranked(drawn[0], task, random_reward(2))
        own = asyncio.run(
            best_of_n(task, uniform_policy("abc"), InlineEnvironments(SPEC), random_reward(2), **SETTINGS)
        )
        assert (mine.chosen, mine.counts) == (own.chosen, own.counts)
        assert [(commands_of(c.state), c.step_scores, c.state.outcome) for c in mine.candidates] == [
            (commands_of(c.state), c.step_scores, c.state.outcome) for c in own.candidates
        ]


def test_fewer_samples_are_the_first_ones(drawn):
    mine = ranked(drawn[0], TASKS[0], random_reward(1), n=2)
    assert [c.sample for c in mine.candidates] == [0, 1]
    own = asyncio.run(
        best_of_n(TASKS[0], uniform_policy("abc"), InlineEnvironments(SPEC), random_reward(1), **{**SETTINGS, "n": 2})
    )
    assert [commands_of(c.state) for c in mine.candidates] == [commands_of(c.state) for c in own.candidates]


def test_what_drawing_cost_is_part_of_the_budget_and_ranking_costs_scores_only(drawn, tmp_path):
    workdir, total = drawn
    found = recorded.read(config(workdir), TASKS)
    assert (found.spent["policy_tokens"], found.spent["env_steps"]) == (total.policy_tokens, total.env_steps)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "drawn.json").write_text(json.dumps({"run": str(workdir), "budget": found.spent}))
    budget = reports.spent(tmp_path / "mine", {"policy_tokens": 0, "reward_tokens": 7, "env_steps": 0, "seconds": 1.0})
    assert budget["policy_tokens"] == total.policy_tokens
    assert budget["reward_tokens"] == 7
    assert budget["seconds"] == 1.0 + found.spent["seconds"]


def test_a_task_that_failed_there_fails_again(drawn):
    with pytest.raises(TaskFailure, match="it hung"):
        ranked(drawn[0], TASKS[3], random_reward())


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"policy": "q"}, "was drawn with policy p, this run has q"),
        ({"search": {**SETTINGS, "temperature": 0.5}}, "was drawn with search.temperature 1.0, this run has 0.5"),
        (
            {"env": {"options": {"toy": {"sizes": (3,)}}, "data": ""}},
            r"was drawn with env.options \{'toy': \{'sizes': \[3, 4\]\}\}",
        ),
        ({"search": {**SETTINGS, "n": 5}}, "holds 4 samples a task; set search.n to no more"),
    ],
)
def test_samples_of_another_kind_are_refused_by_name(drawn, changed, line):
    with pytest.raises(UserError, match=line):
        recorded.read(config(drawn[0], **changed), TASKS)


def test_a_run_that_is_not_there_or_lacks_a_task_is_refused(drawn, tmp_path):
    with pytest.raises(UserError, match="there is no finished run"):
        recorded.read(config(tmp_path / "nowhere"), TASKS)
    with pytest.raises(UserError, match=r"holds nothing of task toy/"):
        recorded.read(config(drawn[0]), tasks("test", {})[:6])


def test_the_last_state_of_a_record_has_the_whole_past(drawn):
    [state, *_] = recorded.read(config(drawn[0]), TASKS).states[TASKS[0].key].values()
    assert [s.depth for s in state.path()] == list(range(state.depth + 1))
    result = asyncio.run(rank(TASKS[0], {0: state}, random_reward(), n=1))
    assert result.state is state
