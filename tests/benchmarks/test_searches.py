"""Two checkouts are compared by their seconds and by what their searches ended with."""

import json

import pytest

from agentrm_jax.types import UserError
from benchmarks import searches


def _workdir(path, rewards, text, seconds):
    path.mkdir()
    tasks = [{"task": f"maze/{i}", "reward": r, "spent": {"seconds": seconds * (i + 1)}} for i, r in enumerate(rewards)]
    turns = [
        {"task": {"env": "maze", "id": str(i)}, "steps": [{"action": {"text": f"{text} {r}"}}]}
        for i, r in enumerate(rewards)
    ]
    (path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    (path / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    return path


def test_times_and_results_are_set_side_by_side(tmp_path):
    runs = {
        "before": [
            (20.0, _workdir(tmp_path / "a", [1.0, 0.0], "go", 4)),
            (30.0, _workdir(tmp_path / "b", [1.0, 0.0], "go", 6)),
        ],
        "after": [
            (10.0, _workdir(tmp_path / "c", [1.0, 0.5], "go", 1)),
            (10.0, _workdir(tmp_path / "d", [1.0, 0.5], "go", 1)),
        ],
    }
    row = searches.compared("beam", runs)
    assert row["times_faster_wall"] == 2.5
    assert row["times_faster_search"] == 5.0  # 8 and 12 against 2 seconds
    assert (row["tasks"], row["same_reward"], row["same_turns"]) == (2, 1, 1)
    assert "| beam | 25.0 (0.500) | 10.0 (0.750) | 2.50 | 5.00 | 1, 1 of 2 |" in searches.table([row])


def test_what_is_no_checkout_or_model_is_refused_before_any_work(tmp_path, capsys):
    arguments = [
        f"--before={tmp_path}",
        f"--after={tmp_path}",
        f"--policy={tmp_path}",
        f"--reward-model={tmp_path / 'none'}",
    ]
    assert searches.main(arguments) == 2
    assert "is no checkout: it has no search.py" in capsys.readouterr().err
    (tmp_path / "search.py").write_text("raise SystemExit('no such config')")
    assert searches.main(arguments) == 2
    assert "is no folder; train it first" in capsys.readouterr().err


def test_a_search_that_fails_is_told(tmp_path):
    (tmp_path / "search.py").write_text("raise SystemExit('no such config')")
    with pytest.raises(UserError, match="no such config"):
        searches.run_once(tmp_path, ["search.py"], tmp_path / "cache")
