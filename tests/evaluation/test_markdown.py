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


def test_what_scores_knew_before_the_end_at_steps_spread_evenly():
    by_step = [
        {"step": k, "tasks": 20, "states": 90, "chosen": 0.5, "random": 0.4, "auc": None, "concordance": 0.625}
        | {"gain": {"score": 0.1, "ci95": [0.01 if k == 9 else -0.05, 0.2]}}
        for k in range(1, 10)
    ]
    lines = markdown.prefixes({"prefixes": {"maze": {"by_step": by_step, "to_go": []}}}, points=3).splitlines()
    assert lines[2:] == [
        "| maze | 1 | 20 | 40.0 | 50.0 | +10.0 (−5.0 to +20.0) | 62 % |  |",
        "| maze | 5 | 20 | 40.0 | 50.0 | +10.0 (−5.0 to +20.0) | 62 % |  |",
        "| maze | 9 | 20 | 40.0 | 50.0 | **+10.0** (+1.0 to +20.0) | 62 % |  |",
    ]
    assert markdown.prefixes({}) == ""
    assert markdown.prefixes({"prefixes": {"maze": {"by_step": [], "to_go": []}}}) == ""


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
