"""The benchmarks run at toy size and set every figure beside its baseline of the same run."""

import itertools
import json
import math
import types

import numpy as np
import pytest

from agentrm_jax import tree
from agentrm_jax.testing.tiny import dense_greedy, tiny_model
from benchmarks import engine, measure, naive, run, torch_steps, training
from benchmarks.measure import NANO_SIZE, TOY_SIZE, Row, Spread, compare, machine, table
from benchmarks.side_by_side import fact


@pytest.mark.parametrize("name", ["matmul", "scoring"])
def test_a_run_writes_rows_with_baseline_and_ratio(name, tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = (f"<!-- benchmarks.run {name}: {side} -->" for side in ("begin", "end"))
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n<!-- benchmarks.run other: begin -->\nkept\n")
    assert run.main([name, "--size=toy", "--seconds=0.01", f"--out={tmp_path}", f"--write={page}"]) == 0
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["rows"]
    for row in found["rows"]:
        assert row["benchmark"] == name
        assert row["baseline"]
        assert row["repeats"] >= 3
        for side in ("ours", "theirs", "gflops"):
            assert 0 < row[side]["low"] <= row[side]["median"] <= row[side]["high"]
        assert math.isfinite(row["ratio"])
        assert row["case"] in page.read_text()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n<!-- benchmarks.run other: begin -->\nkept\n")
    assert "old" not in text
    assert found["rows"][0]["case"] in capsys.readouterr().out


def test_unknown_names_and_pages_without_markers_are_refused_before_any_work(tmp_path, capsys):
    assert run.main(["speed"]) == 2
    assert "no benchmark speed; known: matmul, decode" in capsys.readouterr().err
    assert run.main(["engine", "--workload=huge"]) == 2
    assert "no workload 'huge'" in capsys.readouterr().err
    assert run.main(["matmul", f"--write={tmp_path / 'none.md'}"]) == 2
    assert "has no table of matmul" in capsys.readouterr().err


def test_comparisons_with_programs_are_written_row_by_row_and_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    """The run is stopped by its second row; the next one measures that alone."""
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmarks.run engine: begin -->\n<!-- benchmarks.run engine: end -->\n")
    measured = []

    def rows(options):
        for name in ("first", "second"):
            if options.wants(name):
                measured.append(name)
                if measured == ["first", "second"]:
                    raise KeyboardInterrupt
                yield fact("engine", name, "s", 2.0, {"vLLM": 3.0})

    monkeypatch.setattr(engine, "run", rows)
    arguments = ["engine", "--workload=toy", f"--out={tmp_path}", f"--write={page}", "--resume"]
    with pytest.raises(KeyboardInterrupt):
        run.main(arguments)
    assert "first" in page.read_text()
    assert run.main(arguments) == 0
    assert measured == ["first", "second", "second"]
    assert "| first, s | 2 | 3, x 1.50 |" in page.read_text()
    assert "| second, s | 2 | 3, x 1.50 |" in page.read_text()


def test_the_engine_is_compared_at_toy_size_without_any_peer(tmp_path, capsys):
    cases = "slots,prefill,beam"
    assert run.main(["engine", "--workload=toy", f"--cases={cases}", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "engine.json").read_text())["rows"]
    assert [row["case"].split(",")[0] for row in found] == [
        "slots of cached candidates",
        "prefill",
        "prefill",
        "beam 2 x 2 scoring",
    ]
    for row in found:
        assert row["systems"]["ours"]["rate"]["median"] > 0
    assert found[0]["systems"]["ours"]["rate"]["median"] < 1 / 6
    assert found[3]["systems"]["ours"]["computed"] <= 1
    assert found[1]["systems"]["vLLM float32"]["why"]
    assert "vLLM float32 (generate): skipped" in capsys.readouterr().out


def test_the_ratio_is_taken_repeat_by_repeat(monkeypatch):
    """A clock that moves by a second each time it is read: every pass takes one, and its amount of work is its rate."""
    seconds = itertools.count()
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    ours = iter([0.0, 100.0, 900.0, 50.0])  # the first pass of each does not count
    theirs = iter([0.0, 50.0, 90.0, 4.0])
    row = compare(
        "x", "y", "things/s", lambda repeat: next(ours), "slow", lambda repeat: next(theirs), size=TOY_SIZE, seconds=0.0
    )
    assert row.repeats == 3
    assert (row.ours, row.theirs) == (Spread(100.0, 50.0, 900.0), Spread(50.0, 4.0, 90.0))
    assert row.ratio == 10  # of 2, 10 and 12.5; the medians have the ratio 2


def test_the_table_has_one_line_a_row():
    spread = Spread(1234.5, 0.5, 2000.0)
    row = Row("decode", "a case", "tokens/s", spread, "naive", spread, 2.5, spread, 3)
    assert table([row, row]).count("\n") == 3
    assert "1,234 (0.5 to 2,000) tokens/s" in table([row]) or "1,235 (0.5 to 2,000) tokens/s" in table([row])


def test_the_machine_is_described_without_its_name():
    import socket

    assert socket.gethostname() not in json.dumps(machine()).split('"')
    assert machine()["cores"] >= 1


def test_the_baselines_decode_greedily():
    model = tiny_model()
    histories = [np.arange(4, 4 + n, dtype=np.int32) for n in (5, 9)]
    want = [dense_greedy(model, h, 4, end_id=-1) for h in histories]
    assert naive.recompute(model, histories, 4, 64) == want
    assert naive.one_by_one(model, histories, 4, 64) == want


def test_both_sides_of_the_training_benchmark_have_the_same_states():
    nodes = training.search_tree(NANO_SIZE, 200, 3)
    states = [i for i, n in enumerate(nodes) if n.value_weight > 0]
    assert len(states) == 3 + 9 + 27
    paths = [tree.flatten(training._state(nodes, i)) for i in states]
    whole = tree.flatten(nodes)
    assert sorted(p.value[p.value_weight > 0].item() for p in paths) == sorted(whole.value[whole.value_weight > 0])


def test_why_there_is_no_pytorch_beside_us_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv(torch_steps.VARIABLE, raising=False)
    assert torch_steps.missing() == f"{torch_steps.VARIABLE} names no Python with torch, transformers and peft"
    monkeypatch.setenv(torch_steps.VARIABLE, str(tmp_path / "none"))
    assert "No such file" in torch_steps.missing()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv(torch_steps.VARIABLE, str(python))
    assert torch_steps.missing().endswith("No module named 'torch'")
