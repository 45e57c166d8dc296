"""Systems are asked in turn for equal work; one that is missing or dies is explained and costs the others nothing."""

import json

import pytest

from benchmarks.measure import Spread
from benchmarks.peers import PeerDied
from benchmarks.side_by_side import Case, Comparison, Standing, check, compare_all, fact, line, table


class Clock:
    """A machine whose rates are known, and time that passes only while a system works."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("benchmarks.side_by_side.time.perf_counter", lambda: self.now)

    def measure(self):
        return 1e3, 1e2


class Fake:
    def __init__(self, name, clock, seconds, *, log=None, dies_at=None, compiles_at=(), computed=10):
        self.name, self._clock, self._seconds, self._log = name, clock, list(seconds), log
        self._dies_at, self._compiles_at, self._computed = dies_at, compiles_at, computed
        self.asked = []

    def ask(self, **question):
        self.asked.append(question)
        if self._log is not None:
            self._log.append(self.name)
        if self._dies_at == len(self.asked):
            raise PeerDied("it fell over")
        self._clock.now += self._seconds[min(len(self.asked), len(self._seconds)) - 1]
        tokens = [[0] * question["new"] for _ in question["paths"]]
        return {"tokens": tokens, "computed": self._computed, "compiled": len(self.asked) in self._compiles_at}


def ask(number, new=4):
    return {"do": "generate", "paths": [[number], [number]], "new": new}


CASE = Case("a case", "tokens/s", 8, lambda number: [ask(number)], warm=[ask(0, 1)], unique=5, flop=1e3, bytes=50)


def test_every_repetition_asks_every_system_the_same_in_turn(monkeypatch):
    clock, log = Clock(monkeypatch), []
    systems = [Fake(name, clock, [1], log=log) for name in ("ours", "a", "b")]
    row = compare_all("engine", CASE, systems, {}, clock, repeats=2, seconds=60)
    assert log == ["ours", "a", "b"] * 3  # warm-up, then two repetitions
    assert systems[0].asked == systems[1].asked == systems[2].asked == [ask(0, 1), ask(1), ask(2)]
    assert row.repeats == 2


def test_ratios_are_taken_repetition_by_repetition_and_the_floor_from_the_machine(monkeypatch):
    clock = Clock(monkeypatch)
    ours, other = Fake("ours", clock, [9, 2, 4, 8]), Fake("a", clock, [9, 4, 4, 4], computed=20)
    row = compare_all("engine", CASE, [ours, other], {}, clock, repeats=3, seconds=60)
    assert row.systems["ours"] == Standing(Spread(2.0, 1.0, 4.0), None, 2.0)
    assert row.systems["a"] == Standing(Spread(2.0, 2.0, 2.0), 1.0, 4.0)  # ratios 2, 1 and a half
    assert row.roofline == 1 / 4  # 1000 FLOP at 1000 a second, in 4 seconds; the 50 bytes take half as long


def test_two_repetitions_always_and_more_only_within_the_budget(monkeypatch):
    clock = Clock(monkeypatch)
    assert compare_all("engine", CASE, [Fake("ours", clock, [5])], {}, clock, repeats=9, seconds=1).repeats == 2
    assert compare_all("engine", CASE, [Fake("ours", clock, [5])], {}, clock, repeats=9, seconds=20).repeats == 4


def test_a_repetition_that_compiled_is_asked_anew_with_other_questions(monkeypatch):
    clock = Clock(monkeypatch)
    ours = Fake("ours", clock, [1, 100, 2, 2], compiles_at=(2,))
    row = compare_all("engine", CASE, [ours], {}, clock, repeats=2, seconds=60)
    assert row.systems["ours"].rate == Spread(4.0, 4.0, 4.0)
    assert ours.asked[2]["paths"] not in (ours.asked[1]["paths"], ours.asked[3]["paths"])


def test_a_system_that_dies_keeps_what_it_did_and_the_row_says_why(monkeypatch):
    clock = Clock(monkeypatch)
    ours, other = Fake("ours", clock, [1]), Fake("a", clock, [2], dies_at=3)
    row = compare_all("engine", CASE, [ours, other], {"b": "not installed"}, clock, repeats=3, seconds=60)
    assert row.repeats == 3
    assert row.systems["a"] == Standing(Spread(4.0, 4.0, 4.0), 2.0, 2.0, "it fell over")
    assert row.systems["b"] == Standing(why="not installed")
    text = table([row])
    assert "* Not measured: a, a case: it fell over" in text
    assert "* Not measured: b: not installed" in text
    assert "b not installed" in line(row)


def test_a_slow_system_is_asked_for_less_and_its_rate_counts_that(monkeypatch):
    clock = Clock(monkeypatch)
    case = Case("c", "tokens/s", 80, lambda n: [ask(n)] * 10, unique=100, few={"slow": (lambda n: [ask(n)], 8)})
    row = compare_all(
        "engine", case, [Fake("ours", clock, [1]), Fake("slow", clock, [4])], {}, clock, repeats=1, seconds=60
    )
    assert row.systems["ours"].rate.median == 8
    assert row.systems["slow"] == Standing(Spread(2.0, 2.0, 2.0), 4.0, 1.0)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ({"do": "generate", "paths": [[1]], "new": 2, "n": 2}, {"tokens": [[1, 2], [1]]}),
        ({"do": "score", "paths": [[1], [2]]}, {"values": [0.5]}),
        ({"do": "episodes", "paths": [[1]], "observations": [[[2], [3]]], "new": 4}, {"count": 8}),
    ],
)
def test_unequal_work_is_refused(question, answer):
    with pytest.raises(PeerDied, match="were asked for"):
        check(question, answer)


def test_rows_survive_json():
    row = fact("engine", "start", "s", 4.0, {"a": 10.0})
    assert row.systems["a"].ratio == 2.5
    assert Comparison.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_the_table_has_a_column_a_system_and_ours_first():
    rows = [fact("engine", "one", "s", 4.0, {"a": 10.0}), fact("engine", "two", "s", 1234.5, {"b": 3.0})]
    lines = table(rows).splitlines()
    assert lines[0].startswith("| case | ours | a | b |")
    assert lines[2].startswith("| one, s | 4 | 10, x 2.50 |  |")
    assert lines[3].startswith("| two, s | 1,234 |  | 3, x 0.00 |")
    assert all(entry.count("|") == lines[0].count("|") for entry in lines)
