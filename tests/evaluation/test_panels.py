"""Task panels: one hash for the same tasks, and no table of different ones."""

import pytest

from agentrm_jax.evaluation import comparison, panels
from agentrm_jax.types import Task, UserError
from tests.evaluation.test_results import build

TASKS = [Task("maze", "a", "test", 10, {"seed": 3}), Task("webshop", "b", "test", 10)]
OPTIONS = {"maze": {"sizes": (3, 4), "seeds": 9}, "webshop": {"page_size": 3}}


def test_the_hash_is_of_what_decides_a_task_and_of_nothing_else():
    panel = panels.panel_of(TASKS, OPTIONS)
    assert panel == {"hash": "0837bb13c2bb", "tasks": 2, "split": "test", "environments": ["maze", "webshop"]}
    shuffled = {"webshop": {"page_size": 3, "live": 2}, "maze": {"seeds": 9, "sizes": [3, 4]}, "babyai": {}}
    assert panels.panel_of(TASKS, shuffled) == panel


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (TASKS[::-1], OPTIONS),
        (TASKS[:1], OPTIONS),
        ([Task("maze", "a", "test", 11, {"seed": 3}), TASKS[1]], OPTIONS),
        ([Task("maze", "a", "test", 10, {"seed": 4}), TASKS[1]], OPTIONS),
        (TASKS, {**OPTIONS, "webshop": {"page_size": 4}}),
    ],
)
def test_another_order_member_limit_argument_or_option_is_another_panel(tasks, options):
    assert panels.panel_of(tasks, options)["hash"] != panels.panel_of(TASKS, OPTIONS)["hash"]


def test_two_panels_in_one_table_are_refused_by_name():
    one, other = panels.panel_of(TASKS, OPTIONS), panels.panel_of(TASKS[:1], OPTIONS)
    beam, greedy = build(method="beam", panel=other), build(method="greedy", panel=one)
    with pytest.raises(
        UserError, match=r"greedy is about panel \w{12} \(2 test tasks of maze, webshop\), beam about panel"
    ):
        comparison.table(greedy, beam)
    assert "beam" in comparison.table(greedy, build(method="beam", panel=one), build(method="unknown"))
