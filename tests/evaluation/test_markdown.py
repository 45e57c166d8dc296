"""Results as Markdown, and the place of a table in a page."""

import pytest

from agentrm_jax.evaluation import markdown
from agentrm_jax.types import UserError
from tests.evaluation.test_results import GREEDY, build


def test_a_row_a_method_with_its_interval_and_its_difference():
    greedy, best = build(GREEDY, method="greedy"), build()
    lines = markdown.table(greedy, best, resamples=300).splitlines()
    assert lines[:2] == ["| method | maze | pddl | overall |", "| --- | --- | --- | --- |"]
    assert lines[2].startswith("| greedy | 10.0 (0.0, 20.0) | 40.0 (40.0, 40.0) | 20.0 (")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| greedy",
        "| mean of the samples",
        "| best_of_n",
        "| oracle of the samples",
    ]
    assert "| **50.0** (50.0, 50.0) [+10.0: +10.0 to +10.0] |" in lines[4], "bold where the interval lies above 0"
    assert "| 60.0 (20.0, 100.0) [+50.0: +0.0 to +100.0] |" in lines[4]


def test_what_one_row_adds_to_others():
    text = markdown.differences(
        [build(GREEDY, method="greedy"), build()], "best_of_n", ["random", "greedy", "shortest"]
    )
    assert [line.split(" | ")[:2] for line in text.splitlines()] == [
        ["| best_of_n minus", "maze"],
        ["| ---", "---"],
        ["| mean of the samples", "+15.0 (−20.0 to +50.0)"],
        ["| greedy", "+50.0 (+0.0 to +100.0)"],
    ]


def test_a_table_takes_its_place_and_no_other(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- demo: begin -->\nold\n<!-- demo: end -->\nafter\n")
    markdown.put(page, "demo", "new\n")
    markdown.put(page, "demo", "newer\n")
    assert page.read_text() == "before\n<!-- demo: begin -->\nnewer\n<!-- demo: end -->\nafter\n"
    page.write_text("no place")
    with pytest.raises(UserError, match="has no lines <!-- demo: begin -->"):
        markdown.put(page, "demo", "new")
    assert page.read_text() == "no place"
