"""Rows written in layouts of others say what they said before, or the difference is named."""

import json
import os
from pathlib import Path

import pytest

from agentrm_jax.data import files, labels, writing
from agentrm_jax.types import UserError
from tests.data.layout_rows import ASK, NO, ROWS, TOOLS, YES

DATA = Path(os.environ.get("AGENTRM_DATA", "../shared/data")) / "external"


def one(value, fallback=1):
    (found,) = labels.of_row(files.Row(value, "t.jsonl, line 1", "t.jsonl", fallback))
    return found


def said(row):
    return [(c.messages, c.tools, c.reward, c.steps) for c in row.conversations]


def again(written):
    return [
        r
        for i, value in enumerate(written.rows)
        for r in labels.of_row(files.Row(json.loads(json.dumps(value)), "x", "x", i))
    ]


def fits(row, layout):
    """Whether a row is a pair, or nothing but labelled turns after a prompt."""
    if layout == "preference":
        return bool(row.pairs)
    turns = [[m.loss for m in c.messages] for c in row.conversations]
    return all(t == sorted(t) and sum(t) == len(c.steps) for t, c in zip(turns, row.conversations, strict=True))


@pytest.mark.parametrize("layout", writing.WRITERS)
@pytest.mark.parametrize("name", ROWS)
def test_every_layout_in_every_other_comes_back_or_says_what_is_lost(name, layout):
    for value in ROWS[name]:
        for row in labels.of_row(files.Row(value, "t.jsonl, line 1", "t.jsonl", 1)):
            if layout in ("preference", "stepwise") and not fits(row, layout):
                with pytest.raises(UserError, match=r"^t.jsonl, line 1"):
                    writing.write(row, layout)
                continue
            written = writing.write(row, layout)
            back = again(written)
            if not set(written.lost) - {"ids", "tasks", "splits"}:
                assert [x for r in back for x in said(r)] == said(row)
                assert tuple(p for r in back for p in r.pairs) == row.pairs
            if "tasks" not in written.lost:
                assert {r.task for r in back} == {row.task}


def test_what_a_layout_has_no_place_for_is_named():
    pair = one({"prompt": [ASK], "chosen": [YES], "rejected": [NO]})
    assert writing.write(pair, "eto").lost == ("which one is better, or by how much", "ids")
    assert writing.write(pair, "messages").lost == ()
    rated = one({"id": "q", "messages": [ASK, YES], "reward": 0.75, "tools": TOOLS})
    assert writing.write(rated, "messages").lost == writing.write(rated, "agentgym").lost == ()
    with pytest.raises(UserError, match=r"line 1: a preference needs two sides"):
        writing.write(rated, "preference")
    with pytest.raises(UserError, match="no layout that is written; known: messages"):
        writing.write(rated, "csv")


def test_steps_become_truth_values_or_numbers():
    steps = one({"prompt": "p", "completions": ["a", "b"], "values": [1.0, 0.5]})
    (row,) = writing.write(steps, "stepwise").rows
    assert row["values"] == [1.0, 0.5]
    plain = one({"prompt": "p", "completions": ["a", "b"], "values": [1.0, 0.0]})
    assert writing.write(plain, "stepwise").rows[0]["labels"] == [True, False]
    assert writing.write(steps, "messages").lost == ()


@pytest.mark.skipif(not DATA.exists(), reason=f"no recorded rows in {DATA}; set AGENTRM_DATA")
@pytest.mark.parametrize(
    ("file", "layout"),
    [
        ("plan_rewardbench/planning_multi_easy.jsonl.xz", "preference"),
        ("tau_bench/gpt-4o-airline.json.xz", "eto"),
        ("tau_bench/gpt-4o-airline.json.xz", "completion"),
        ("knowagent/alfworld_llama-2-13b_D0.jsonl.xz", "agentgym"),
    ],
)
def test_recorded_rows_keep_everything_but_names(file, layout):
    rows = list(labels.read(DATA / file))
    assert rows
    assert {lost for row in rows for lost in writing.write(row, layout).lost} <= {"ids"}
