"""Whatever a file of records holds, reading it gives records, or one line that names the file and the line."""

import pytest

from benchmarks import malformed


@pytest.mark.parametrize("kind", malformed.FILES)
def test_a_few_hundred_malformed_rows_of_every_format(kind, chat, tmp_path):
    counts, wrong = malformed.run(kind, 200, 7, chat, tmp_path)
    assert wrong == []
    assert counts.total() == 200
    assert counts["accepted"] > 20
    assert counts["refused"] > 100


@pytest.mark.parametrize("line", [t.encode() for t in malformed.TEXTS[:3]])
@pytest.mark.parametrize("kind", malformed.FILES)
def test_what_no_json_reader_takes(kind, line, chat, tmp_path):
    """Brackets beyond any recursion, and numbers of thousands of digits."""
    path = tmp_path / malformed.FILES[kind]
    verdict, message = malformed.attempt(malformed.readers(chat)[kind], path, malformed.rows(kind)[0], line)
    assert verdict == "refused"
    assert message.startswith(f"{path}, line 2: not JSON")


def test_an_error_of_another_kind_and_one_without_its_line_are_told_from_a_refusal(tmp_path):
    def broken(path):
        raise TypeError("unhashable type: 'list'")

    def vague(path):
        raise malformed.UserError("something is wrong")

    for read in (broken, vague):
        assert malformed.attempt(read, tmp_path / "t.jsonl", {}, b"{}")[0] == "wrong"


def test_the_command_prints_a_line_a_format(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert malformed.main(["--cases=40", f"--json={out}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(malformed.FILES)
    assert out.exists()
