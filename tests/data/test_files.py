"""Rows of any file: what holds them, how it is packed, where each stands, and what is said of a broken one."""

import bz2
import datetime
import gzip
import json
import lzma
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.data import files
from agentrm_jax.types import UserError

ROWS = [{"id": 1, "text": "a\nb"}, {"id": 2, "text": "é"}, {"id": 3, "inner": [{"x": None}]}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(place, bad=files.refuse):
    return list(files.rows(place, bad))


def values(place):
    return [row.value for row in read(place)]


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.rstrip(),
        b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=2).encode(),
        b"\n \n".join(json.dumps(row, indent=2).encode() for row in ROWS),  # AgentBoard's logs
        "".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    ],
    ids=["lines", "no last newline", "mark and blank lines", "array", "pretty array", "pretty values", "glued values"],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_what_a_file_is_its_content_says(content, pack, tmp_path):
    path = tmp_path / "whatever"
    path.write_bytes(pack(content))
    assert values(path) == ROWS


def test_each_row_says_where_it_stands(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n" + LINES)
    assert [row.origin for row in read(path)] == [f"{path}, line {n}" for n in (2, 3, 4)]
    path.write_text(json.dumps(ROWS, indent=1))
    assert [(row.origin, row.fallback) for row in read(path)] == [(f"{path}, entry {n}", n) for n in (1, 2, 3)]
    path.write_text("\n\n".join(json.dumps(row, indent=1) for row in ROWS))
    assert [row.origin for row in read(path)] == [f"{path}, line {n}" for n in (1, 6, 11)]


def test_a_file_that_is_one_row_gives_it_its_name(tmp_path):
    for name, text in (("31.json", json.dumps(ROWS[0])), ("5.json", json.dumps(ROWS[0], indent=2))):
        (tmp_path / name).write_text(text)
    (tmp_path / "7.json.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert [row.fallback for row in read(tmp_path)] == ["31", "5", "7"]


def test_lines_are_read_one_at_a_time(tmp_path):
    """The first row is there before the writer of a pipe has written the second."""
    path, seen = tmp_path / "pipe", threading.Event()
    os.mkfifo(path)

    def write():
        with path.open("wb", buffering=0) as pipe:
            pipe.write(LINES)
            assert seen.wait(20)
            pipe.write(b'{"id": 4}\n')

    writer = threading.Thread(target=write)
    writer.start()
    rows = files.rows(path)
    assert next(rows).value == ROWS[0]
    assert next(rows).value == ROWS[1]
    seen.set()
    assert [row.value for row in rows] == [ROWS[2], {"id": 4}]
    writer.join()


def test_places_are_files_folders_and_several_with_commas(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "a, b.jsonl", "notes.txt", ".hidden.jsonl"):
        (tmp_path / name).write_text(json.dumps({"in": name}) + "\n")
    deep = tmp_path / "empty" / "deep"
    deep.mkdir(parents=True)
    (deep / "c.jsonl.xz").write_bytes(lzma.compress(b'{"in": "c"}\n'))

    def named(place):
        return [row["in"] for row in values(place)]

    assert named(f"{tmp_path}/b.jsonl, {tmp_path}/a.jsonl") == ["b.jsonl", "a.jsonl"]
    assert named(f"{tmp_path}/a, b.jsonl") == ["a, b.jsonl"]
    assert named(tmp_path) == ["a, b.jsonl", "a.jsonl", "b.jsonl"]
    assert named(tmp_path / "empty") == ["c"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": 1, "messages": [{"role": "user", "content": "hi", "name": None}], "day": datetime.date(2026, 1, 2), "raw": b"\xff"},
        {"id": 2, "messages": [{"role": "assistant", "content": "yo", "name": "x"}], "day": None, "raw": None},
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    first, second = read(tmp_path)
    assert first.value == {
        "id": 1,
        "messages": [{"role": "user", "content": "hi"}],
        "day": "2026-01-02",
        "raw": "/w==",
    }
    assert second.value == {"id": 2, "messages": [{"role": "assistant", "content": "yo", "name": "x"}]}
    assert second.origin == f"{tmp_path / 't.parquet'}, row 2"
    damaged = tmp_path / "bad.parquet"
    damaged.write_bytes((tmp_path / "t.parquet").read_bytes()[:200])
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read"):
        read(damaged)


def test_data_sets_of_the_hub_need_a_package_or_are_read_by_split(tmp_path):
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(
            UserError, match=r"hf:some/data needs the package datasets: pip install 'agentrm-jax\[hf\]'"
        ):
            read("hf:some/data")
        return
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"in": split}) + "\n")
    assert {(row.value["in"], row.split) for row in read(f"hf:{tmp_path}")} == {("train", "train"), ("test", "test")}
    [row] = read(f"hf:{tmp_path}:test")
    assert (row.value, row.origin) == ({"in": "test"}, f"hf:{tmp_path}:test, test row 1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"b', "line 2: not JSON"),
        (b'{"a": 1}\n\xff\n', "line 2 cannot be read: 'utf-8' codec"),
        (b'[{"a": 1},\n {"b"}]', "entry 2, line 2: not JSON"),
        (b'[{"a": 1} {"b": 1}]', "entry 1, line 1: not JSON"),
        (b'[{"a": 1}', "entry 1, line 1: not JSON"),
        (b"[1]\n[2]", "text after the array's end"),
        (b'{\n"a": 1\n}\n{\n"b"\n}', "line 4: not JSON"),
        (gzip.compress(LINES, mtime=0)[:30], "cannot be read"),
        (lzma.compress(LINES)[:50], "cannot be read"),
        (b"", "holds no trajectories, it is empty"),
        (lzma.compress(b"\n\n"), "holds no trajectories, it is empty"),
    ],
)
def test_what_is_broken_is_named(content, message, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_bad_lines_can_be_counted_instead(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"id": 1}\n{"id\n\xff\n{"id": 2}\n{')
    skipped = files.Skipped()
    assert [row.value["id"] for row in read(path, skipped)] == [1, 2]
    assert skipped.count == 3
    assert skipped.first.startswith(f"{path}, line 2: not JSON")
    path.write_bytes(b"{\n")
    assert read(path, files.Skipped()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), min_size=2, max_size=4),
    st.sampled_from([None, 1]),
)
def test_whatever_rows_hold_all_layouts_of_a_file_hold_the_same(tmp_path_factory, rows, indent):
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows, indent=indent)):
        path.write_text(text)
        assert values(path) == rows


@given(st.binary(max_size=60))
def test_whatever_bytes_a_file_holds_they_are_rows_or_one_line_says_why_not(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    path.write_bytes(content)
    skipped = files.Skipped()
    said = ""
    try:
        read(path, skipped)
    except UserError as error:
        said = str(error)
    assert all(str(path) in one for one in (said, skipped.first) if one)
