"""Numbers of a run: every row in metrics.jsonl, curves for TensorBoard, one readable line on the terminal."""

import json

import pytest

from agentrm_jax.run.logs import MetricWriter, Progress, format_seconds


def test_rows_are_appended_with_their_step_also_by_the_next_process(tmp_path):
    for step in (10, 20):
        writer = MetricWriter(tmp_path)
        writer.write(step, {"loss": 0.5, "note": "a door"})
        writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": s, "loss": 0.5, "note": "a door"} for s in (10, 20)]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    writer = MetricWriter(tmp_path, enabled=False)
    writer.write(1, {"loss": 0.5})
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (42.4, "42s"), (59.6, "1m00s"), (190, "3m10s"), (3900, "1h05m")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_progress_says_how_far_how_fast_and_how_long_still(capsys):
    progress = Progress(10, done=4, period=0.0)
    progress._start -= 4.0
    progress.show(6, "loss 0.5")
    progress.show(10, final=True)
    first, last = capsys.readouterr().err.splitlines()
    assert first.split("  ") == ["step 6/10", "loss 0.5", "4s", "8s left"]
    assert last == "step 10/10  4s"


def test_away_from_a_terminal_lines_are_rare_but_the_last_is_shown(capsys):
    progress = Progress(10, period=60.0)
    for step in range(10):
        progress.show(step)
    progress.show(10, final=True)
    assert capsys.readouterr().err.count("\n") == 1
    Progress(10, enabled=False).show(10, final=True)
    assert capsys.readouterr().err == ""


def test_rows_after_the_last_checkpoint_of_a_killed_run_are_written_once(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, {"loss": 1.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 4')  # killed while writing
    writer = MetricWriter(tmp_path, done=20)
    writer.write(30, {"loss": 2.0})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(10, 1.0), (20, 1.0), (30, 2.0)]
