"""The command that turns rows into another layout: what it writes, what it names, and what it refuses."""

import json

import pytest

from agentrm_jax import convert
from agentrm_jax.data import labels

ASK, YES, NO = ({"role": r, "content": t} for r, t in (("user", "?"), ("assistant", "Yes."), ("assistant", "No.")))
RATED = {"id": "q", "messages": [ASK, YES], "reward": 0.75}
PAIR = {"id": "p", "prompt": [ASK], "chosen": [YES], "rejected": [NO]}


@pytest.fixture
def source(tmp_path):
    def make(*rows):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def run(*words):
    return convert.main([str(word) for word in words])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_file_in_another_layout_is_read_as_before(source, tmp_path, suffix, capsys):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    place, out = source(RATED, RATED | {"id": "r", "reward": 0.0}), tmp_path / f"out.{suffix}"
    assert run(place, out, "--to", "agentgym") == 0
    before, after = (list(labels.read(path)) for path in (place, out))
    assert [r.layout for r in after] == ["conversations"] * 2
    assert [(r.id, r.conversations[0].messages, r.conversations[0].reward) for r in before] == [
        (r.id, r.conversations[0].messages, r.conversations[0].reward) for r in after
    ]
    assert f"2 rows of agentgym in {out}" in capsys.readouterr().err


def test_what_would_be_lost_ends_it_before_anything_is_written(source, tmp_path, capsys):
    place, out = source(RATED, PAIR), tmp_path / "out.jsonl"
    assert run(place, out, "--to=eto") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {place}, line 2: a row of 'eto' has no place for which one is better")
    assert not out.exists()
    assert run(place, out, "--to=eto", "--lossy") == 0
    assert "which one is better, or by how much: not carried over for 1 rows" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["out.csv", "--to=eto"], "name a file that ends in"),
        (["in.jsonl", "--to=eto"], "exists; name a new file"),
        (["out.jsonl", "--to=csv"], "known: messages, eto"),
        (["out.jsonl"], "--to"),
    ],
)
def test_a_wrong_command_line_is_one_line(source, tmp_path, words, says, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(source(RATED), *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_bad_rows_are_counted_if_asked_for(source, tmp_path, capsys):
    place = source(RATED, {"huh": 1})
    assert run(place, tmp_path / "a.jsonl", "--to=eto") == 2
    assert run(place, tmp_path / "b.jsonl", "--to=eto", "--on-bad-row=skip") == 0
    assert "1 rows left out" in capsys.readouterr().err
