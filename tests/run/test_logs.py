"""Numbers of a run: every row in metrics.jsonl, curves for TensorBoard, one readable line on the terminal."""

import json
import math

import numpy as np
import pytest

from agentrm_jax.run.logs import MetricWriter, ProgressLine, StepLog, format_seconds
from agentrm_jax.types import UserError


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
    progress = ProgressLine(10, done=4, period=0.0)
    progress._start -= 4.0
    progress.show(6, "loss 0.5")
    progress.show(10, final=True)
    first, last = capsys.readouterr().err.splitlines()
    assert first.split("  ") == ["step 6/10", "loss 0.5", "4s", "8s left"]
    assert last == "step 10/10  4s"


def test_away_from_a_terminal_lines_are_rare_but_the_last_is_shown(capsys):
    progress = ProgressLine(10, period=60.0)
    for step in range(10):
        progress.show(step)
    progress.show(10, final=True)
    assert capsys.readouterr().err.count("\n") == 1
    ProgressLine(10, enabled=False).show(10, final=True)
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


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"loss": 1}', b"\0\0\0", b"\xff", b'{"step": "x"}'])
def test_a_line_that_is_no_row_is_dropped(tmp_path, line):
    row = b'{"step": 10, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(row + line + b"\n" + row.replace(b"10", b"20"))
    MetricWriter(tmp_path, done=10).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == row


def test_a_number_that_json_lacks_is_written_as_null(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"gradient_norm": math.inf})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "gradient_norm": None}


def metrics(step: int) -> dict[str, float]:
    return {"loss": step / 8, "tokens": 10.0 + step}


def rows(stops: tuple[int, ...], every: int = 4, total: int = 12) -> list[dict[str, float]]:
    """Rows of a run that was killed after each of `stops`, having saved there."""
    found, state, begin = [], {}, 0
    for end in (*stops, total):
        log = StepLog(state, begin)
        for step in range(begin + 1, end + 1):
            log.add(metrics(step))
            if step % every == 0:
                found.append(log.row() | {"step": step})
        state, begin = json.loads(json.dumps(log.state())), end
    return [{k: r[k] for k in ("step", "loss", "tokens", "tokens_seen")} for r in found]


@pytest.mark.parametrize("stops", [(3,), (4,), (5, 6), (1, 2, 3, 11)])
def test_tokens_and_means_are_those_of_a_run_that_was_never_stopped(stops):
    whole = rows(())
    assert whole[-1]["tokens_seen"] == sum(10 + step for step in range(1, 13))
    assert rows(stops) == whole


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_also_before_it_is_saved():
    for ask in (StepLog.row, StepLog.state):
        log = StepLog({}, 6)
        log.add(metrics(7))
        log.add({"loss": math.nan, "tokens": 1})
        with pytest.raises(UserError, match=r"the loss is not finite at step 8; lower --config\.learning_rate"):
            ask(log)


@pytest.mark.parametrize(("name", "what"), [("loss", "loss"), ("gradient_norm", "gradient")])
def test_the_batch_of_a_step_that_is_not_finite_lies_in_a_file_that_is_named(tmp_path, name, what):
    """It is found one step later, not when the next row is due."""
    log = StepLog({}, 0, tmp_path)
    for step in (1, 2):
        log.add({**metrics(step), name: math.inf if step == 2 else 0.5}, {"tokens": np.array([step])})
    with pytest.raises(UserError) as caught:
        log.add({**metrics(3), name: 0.5}, {"tokens": np.array([3])})
    path = tmp_path / "not-finite-step-2.npz"
    assert str(caught.value) == (
        f"the {what} is not finite at step 2; no update was made of its batch, which lies in {path}; lower --config.learning_rate"
    )
    assert np.load(path)["tokens"].tolist() == [2]
