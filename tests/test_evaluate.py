"""The command that evaluates reward models: tables of a real model's scores, going on after a stop, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agentrm_jax import evaluate, score
from agentrm_jax.evaluation import metrics
from tests.test_score import CASES, GOLDEN

DATA = Path(os.environ.get("AGENTRM_DATA", "../shared/data")) / "external"
ROOT = Path(__file__).parents[1]
RM = str(GOLDEN / CASES[0])


def rows():
    ask = {"role": "user", "content": "Is 7 prime?"}
    for i in range(6):
        sides = [[{"role": "assistant", "content": text * (i + 1)}] for text in ("Yes. ", "No, 7 is 2. ")]
        yield {"id": f"p{i}", "prompt": [ask], "chosen": sides[0], "rejected": sides[1], "split": "pairs"}
        for sample, side in enumerate(sides):
            yield {"id": f"q{i}", "messages": [ask, *side], "reward": 1.0 - sample, "split": "samples"}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def run(*words):
    return evaluate.main([str(word) for word in words])


def measured(folder, split):
    found = json.loads((folder / "evaluation.json").read_text())["splits"][split]
    return {(row["metric"], row["scorer"]): row["value"] for row in found}


def test_tables_are_those_of_the_scores_that_score_prints(data, tmp_path, capsys):
    assert run(RM, data, "--out", tmp_path / "e", "--name=rm") == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "e" / "evaluation.md").read_text()
    assert "### pairs" in printed
    assert "### all" in printed
    assert score.main([RM, str(data)]) == 0
    scores = {}
    for line in capsys.readouterr().out.splitlines():
        one = json.loads(line)
        scores.setdefault(one["id"], []).append(one["score"])
    right = [scores[f"p{i}/chosen"][0] > scores[f"p{i}/rejected"][0] for i in range(6)]
    pairs, samples = measured(tmp_path / "e", "pairs"), measured(tmp_path / "e", "samples")
    assert pairs["pair accuracy", "rm"] == np.mean(right)
    assert pairs["pair accuracy", "shortest"] == 1.0
    both = np.array([scores[f"q{i}"] for i in range(6)])
    assert samples["best of n", "rm"] == np.mean(both[:, 0] > both[:, 1])
    assert samples["AUC of success", "rm"] == metrics.auc(both.ravel(), [True, False] * 6)


def test_a_run_that_was_stopped_goes_on_and_reads_nothing_twice(data, tmp_path, capsys, monkeypatch):
    assert run(RM, data, "--out", tmp_path / "whole") == 0
    assert run(RM, data, "--out", tmp_path / "cut") == 0
    journal = tmp_path / "cut" / "scores.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:8]) + lines[8][:10])  # killed while it wrote the eighth
    capsys.readouterr()
    assert run(RM, data, "--out", tmp_path / "cut") == 0
    assert "17 trajectories" in capsys.readouterr().err
    tables = [(tmp_path / name / "evaluation.md").read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1]
    monkeypatch.setattr(score.Scorer, "score", lambda *_: pytest.fail("everything has been scored"))
    assert run(RM, data, "--out", tmp_path / "cut") == 0


def test_other_data_or_another_model_in_a_folder_is_refused(data, tmp_path, capsys):
    assert run(RM, data, "--out", tmp_path / "e") == 0
    data.write_text(data.read_text().replace("prime", "even"))
    assert run(RM, data, "--out", tmp_path / "e") == 2
    assert "holds scores of another model or of other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}, "no row has a label"),
        ({"huh": 1}, "in none of the known formats"),
    ],
)
def test_rows_without_labels_are_refused_by_name(row, words, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert run(RM, path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("option", ["--success=nan", "--rows=0", "--aggregate=median", "--dtype=int8"])
def test_a_wrong_option_is_one_line(data, option, capsys):
    assert run(RM, data, option) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_that_another_process_writes_is_refused(data, tmp_path, capsys):
    """Started twice: the second says who is there, and the first loses nothing."""
    out = tmp_path / "e"
    out.mkdir()
    code = "import sys, pathlib; from agentrm_jax.run import lock; lock.acquire(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as first:
        first.stdout.readline()
        assert run(RM, data, "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"in use by process {first.pid}" in line
        assert "another --out" in line
        first.communicate("\n")
    assert run(RM, data, "--out", out) == 0
    assert not (out / "lock.json").exists()
