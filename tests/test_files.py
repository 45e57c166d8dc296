"""Files that are whole or absent: what a kill, a full disk or a stray editor may leave behind, and what is said of it."""

import contextlib
import json
import math

import pytest

from agentrm_jax.files import finite, new_folder, read_json, replacing, write_atomically, write_json
from agentrm_jax.types import UserError


def test_a_file_is_replaced_at_once_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "config.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2, "ü": "é"})
    assert json.loads(path.read_text()) == {"a": 2, "ü": "é"}
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, "old")
    with contextlib.suppress(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("ne")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").write_text("1")
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", [2])
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "real.json", list) == [2]


def test_what_is_no_json_number_is_written_as_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.nan, 1.0, (math.inf, "x")], "b": True})
    assert read_json(tmp_path / "x.json") == {"a": [None, 1.0, [None, "x"]], "b": True}
    assert finite(-math.inf) is None


def test_text_that_is_no_text_is_written_all_the_same(tmp_path):
    write_json(tmp_path / "x.json", {"a": "\ud800"})
    assert read_json(tmp_path / "x.json") == {"a": "?"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b'{"a": 1', "only half of it"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "holds a JSON list, not a dict"),
        (b"null", "holds a JSON NoneType"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, said):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json") as caught:
        read_json(path)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read: No such file"):
        read_json(tmp_path / "nowhere.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"
    with contextlib.suppress(ZeroDivisionError), new_folder(out) as draft:
        (draft / "a").touch()
        raise ZeroDivisionError
    assert not list(out.parent.iterdir())
    out.mkdir()  # an empty one is taken
    with new_folder(out) as draft:
        (draft / "a").touch()
        assert not list(out.iterdir())
    assert [p.name for p in out.iterdir()] == ["a"]
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_is_taken_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path, "is not empty; name a new folder"),
        (tmp_path / "file", "is a file; name a new folder"),
    ):
        with pytest.raises(UserError, match=said), new_folder(path):
            pass
