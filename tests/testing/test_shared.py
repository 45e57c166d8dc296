"""Where tests look for official files, and what a skipped one says."""

from pathlib import Path

from agentrm_jax.testing.shared import needs_shared, shared_data


def test_the_folder_lies_beside_the_repository_unless_it_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("AGENTRM_SHARED", raising=False)
    assert shared_data().resolve() == (Path(__file__).parents[2] / "../shared/data").resolve()
    monkeypatch.setenv("AGENTRM_SHARED", str(tmp_path))
    assert shared_data() == tmp_path


def test_a_mark_skips_what_is_missing_and_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTRM_SHARED", str(tmp_path))
    (tmp_path / "there").touch()
    assert needs_shared("there").args == (False,)
    missing = needs_shared("there", "deep/file.json")
    assert missing.args == (True,)
    assert (
        missing.kwargs["reason"]
        == f"{tmp_path}/deep/file.json is missing; set AGENTRM_SHARED to the folder of official data"
    )
