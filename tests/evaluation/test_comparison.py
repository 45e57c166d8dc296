import re

import pytest

from agentrm_jax.evaluation import comparison, results
from agentrm_jax.types import UserError


def row_names(found):
    return [row.name for row in comparison.rows(found)]


def test_references_come_around_the_methods_and_are_not_repeated(example):
    greedy, best, beam = example.results
    # The greedy row beside best_of_n is the greedy result itself.
    assert row_names([best, beam, greedy]) == ["greedy", "random", "best_of_n", "beam", "oracle"]
    assert row_names([best]) == ["greedy", "random", "best_of_n", "oracle"]


def test_other_samples_give_rows_of_their_own(example):
    best = example.results[1]
    other = best | {
        "method": "lookahead",
        "rows": {"random": best["rows"]["random"] | {"scores": {"babyai/Task-0000": 0.5}}},
    }
    assert "random (lookahead)" in row_names([best, other])


def test_methods_of_one_name_are_told_apart(example):
    best = example.results[1]
    assert row_names([best | {"rows": {}}, best | {"rows": {}, "reward_model": "implicit"}]) == [
        "best_of_n [explicit]",
        "best_of_n [implicit]",
    ]
    assert row_names([best | {"rows": {}}, best | {"rows": {}}]) == ["best_of_n #1", "best_of_n #2"]


def test_table_is_aligned(example):
    lines = results.table(*example.results, resamples=100).splitlines()
    assert lines[0].split() == ["babyai", "pddl", "overall"]
    assert lines[1].split() == ["n=14", "n=9", "n=23"]
    body = lines[2 : lines.index("")]
    for start in (lines[0].index(name) for name in ("babyai", "pddl", "overall")):
        # Every cell is `  52.1 [ 47.0,  57.1]` or blank, from the column's first character on.
        cells = [line[start : start + 5] for line in body]
        assert all(re.fullmatch(r"[ +-]+\d+\.\d|\d+\.\d| *", cell) for cell in cells)
        assert all(line[start - 2 : start] == "  " for line in lines[: len(body) + 2] if len(line) > start)
    assert len({line.index("[") for line in body}) == 1
    assert not any(line.endswith(" ") for line in lines)


def test_table_pairs_methods_with_the_baseline(example):
    greedy, best, beam = example.results
    text = results.table(greedy, best, beam, resamples=100)
    assert text.count("vs greedy") == 4  # random, best_of_n, beam, oracle
    overall = 100 * best["overall"]["difference"]["score"]
    assert f"{overall:+5.1f} [" in text
    assert "vs beam" in results.table(greedy, beam, baseline="beam", resamples=100)


def test_table_marks_differences_off_zero():
    budget = dict.fromkeys(results.BUDGET, 0)
    low, high = (
        results.build(
            [results.TaskRecord(f"maze/{i}", "maze", worth, worth, False, 1) for i in range(5)],
            method=name, policy="p", budget=budget, resamples=50,
        )
        for name, worth in (("greedy", 0.25), ("beam", 0.5))
    )  # fmt: skip
    assert "+25.0 [+25.0, +25.0]*" in results.table(low, high)
    assert " +0.0 [ +0.0,  +0.0]\n" in results.table(low, high | {"records": low["records"]})


def test_table_without_common_tasks_has_no_differences(example):
    bare = [{k: v for k, v in r.items() if k not in ("records", "rows")} for r in example.results]
    assert "vs greedy" not in results.table(*bare, resamples=50).split("Scores")[0]


def test_unknown_baseline_is_named(example):
    with pytest.raises(UserError, match=r"no row named 'gredy'.*greedy, random"):
        results.table(*example.results, baseline="gredy")
    with pytest.raises(UserError, match="at least one"):
        results.table()
