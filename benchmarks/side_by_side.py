"""Several systems at the same work, in turn: a repetition asks each of them the same questions, one system after the other.

A system is anything that answers questions (`ask`): ours, in this process, or a `Peer`. Answers hold tokens, so that both the number of
tokens and, where decoding is greedy, how many of them agree is looked at and not assumed.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from benchmarks.measure import Spread
from benchmarks.peers import PeerDied
from benchmarks.roofline import Machine

Question = dict[str, Any]
OURS = "ours"
_AGAIN = 1000  # what is asked again must differ: a cache would know it


class System(Protocol):
    """What is compared."""

    name: str

    def ask(self, **question: Any) -> dict[str, Any]:
        """`{"tokens": ...}`, `{"values": ...}` or `{"count": ...}`, with `computed`: tokens that went through the model."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Work to be done.

    Attributes:
      amount: units of work of one repetition, of which the rate is taken.
      questions: (number of the repetition) -> what is asked, in order; each question is timed.
      warm: what is asked first, without being counted.
      unique: tokens of a repetition that differ from all before them and must be computed.
      flop, bytes: what a repetition needs at least, see `roofline`.
      few: names of systems that are too slow for all of it -> their own questions and the amount of these.
      systems: names of those that can do it; None for all.
      aside: (seconds of every question, median over the repetitions, by system) -> a remark.
    """

    name: str
    unit: str
    amount: float
    questions: Callable[[int], Sequence[Question]]
    warm: Sequence[Question] = ()
    unique: float = 0
    flop: float = 0
    bytes: float = 0
    few: Mapping[str, tuple[Callable[[int], Sequence[Question]], float]] = dataclasses.field(default_factory=dict)
    systems: tuple[str, ...] | None = None
    aside: Callable[[Mapping[str, list[float]]], str] | None = None


@dataclasses.dataclass(frozen=True)
class Standing:
    """How one system did, or why not.

    Attributes:
      rate: work a second, or what `fact` says.
      ratio: how many times as good ours is, the median over the repetitions.
      computed: tokens computed for each one that is new.
    """

    rate: Spread | None = None
    ratio: float | None = None
    computed: float | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A case and how all systems did.

    Attributes:
      roofline: the least time the machine needs for it, as a part of the time of ours.
      rates: FLOP/s and bytes/s of the machine meanwhile, medians.
    """

    benchmark: str
    case: str
    unit: str
    systems: Mapping[str, Standing]
    repeats: int
    roofline: float | None = None
    rates: tuple[float, float] | None = None
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, x: Mapping[str, Any]) -> "Comparison":
        def standing(s: Mapping[str, Any]) -> Standing:
            return Standing(**{**s, "rate": Spread(**s["rate"]) if s["rate"] else None})

        systems = {name: standing(s) for name, s in x["systems"].items()}
        return cls(**{**x, "systems": systems, "rates": tuple(x["rates"]) if x["rates"] else None})


def compare_all(
    benchmark: str,
    case: Case,
    systems: Sequence[System],
    absent: Mapping[str, str],
    machine: Machine,
    *,
    repeats: int,
    seconds: float,
) -> Comparison:
    """At least two repetitions (or `repeats`, if that is less) and as many more as `seconds` allow, `repeats` at most.

    Args:
      absent: systems that are not there, and why. One that dies meanwhile is left out of what follows.
    """
    taking_part = [s for s in systems if case.systems is None or s.name in case.systems]
    gone = {name: why for name, why in absent.items() if case.systems is None or name in case.systems}
    found: dict[str, list[_Repetition]] = {s.name: [] for s in taking_part}
    rates: list[tuple[float, float]] = []
    for system in taking_part:
        _guarded(system, lambda system=system: [system.ask(**q) for q in case.warm], gone)  # type: ignore[misc]
    begin = time.perf_counter()
    for number in range(1, repeats + 1):
        last = (time.perf_counter() - begin) / max(number - 1, 1)
        if number > 2 and time.perf_counter() - begin + last > seconds:
            break
        rates.append(machine.measure())
        for system in taking_part:
            if system.name not in gone:
                questions, amount = case.few.get(system.name, (case.questions, case.amount))
                done = _guarded(system, lambda: _repetition(system, questions, number, amount), gone)  # noqa: B023
                if done is not None:
                    found[system.name].append(done)
    return _comparison(benchmark, case, found, gone, rates)


@dataclasses.dataclass(frozen=True)
class _Repetition:
    seconds: list[float]
    amount: float
    computed: float

    @property
    def rate(self) -> float:
        return self.amount / sum(self.seconds)


def _repetition(
    system: System, questions: Callable[[int], Sequence[Question]], number: int, amount: float
) -> _Repetition:
    """One repetition; another one in its place if programs had to be compiled for it."""
    for attempt in range(2):
        spent, computed, compiled, told = [], 0.0, False, 0.0
        for question in questions(number + attempt * _AGAIN):
            begin = time.perf_counter()
            answer = system.ask(**question)
            spent.append(time.perf_counter() - begin)
            check(question, answer)
            computed += answer.get("computed", 0)
            told += answer.get("amount", 0)
            compiled |= bool(answer.get("compiled"))
        if not compiled or attempt:
            break
    return _Repetition(spent, told or amount, computed)


def check(question: Question, answer: Mapping[str, Any]) -> None:
    """Refuses an answer of another size than asked for: rates of unequal work must not be compared."""
    paths = question.get("paths", ())
    if question["do"] == "search":  # it tells its amount
        return
    if question["do"] == "generate":
        want = [question["new"]] * len(paths) * question.get("n", 1)
        have = [len(tokens) for tokens in answer["tokens"]]
    elif question["do"] == "score":
        want, have = [len(paths)], [len(answer["values"])]
    else:
        want = [sum(question["new"] * (1 + len(seen)) for seen in question["observations"])]
        have = [answer["count"]]
    if want != have:
        raise PeerDied(f"it answered with {have} tokens or values, {want} were asked for")


def _guarded(system: System, do: Callable[[], Any], gone: dict[str, str]) -> Any:
    try:
        return do()
    except PeerDied as error:
        gone[system.name] = str(error)
        print(f"{system.name}: {error}", flush=True)
        return None


def _comparison(
    benchmark: str,
    case: Case,
    found: Mapping[str, list[_Repetition]],
    gone: Mapping[str, str],
    rates: Sequence[tuple[float, float]],
) -> Comparison:
    ours = found.get(OURS, [])
    standings = {name: Standing(why=why) for name, why in gone.items() if not found.get(name)}
    for name, done in found.items():
        if done:
            pairs = zip(ours, done, strict=False)  # one that died has fewer
            ratio = statistics.median(a.rate / b.rate for a, b in pairs) if ours and name != OURS else None
            part = done[0].amount / case.amount
            computed = statistics.median(d.computed for d in done) / (case.unique * part) if case.unique else None
            standings[name] = Standing(Spread.of([d.rate for d in done]), ratio, computed, gone.get(name, ""))
    machine = (statistics.median(r[0] for r in rates), statistics.median(r[1] for r in rates)) if rates else None
    share = None
    if ours and machine and (case.flop or case.bytes):
        least = max(case.flop / machine[0], case.bytes / machine[1])
        share = least / statistics.median(sum(d.seconds) for d in ours)
    medians = {
        name: [statistics.median(at) for at in zip(*(d.seconds for d in done), strict=True)]
        for name, done in found.items()
        if done
    }
    remark = case.aside(medians) if case.aside else ""
    return Comparison(benchmark, case.name, case.unit, standings, len(rates), share, machine, remark)


def fact(benchmark: str, case: str, unit: str, ours: float, others: Mapping[str, float]) -> Comparison:
    """A quantity of which less is better, measured once; ratios say how many times ours others need."""
    systems = {OURS: Standing(Spread.of([ours]))}
    systems |= {name: Standing(Spread.of([x]), x / ours) for name, x in others.items()}
    return Comparison(benchmark, case, unit, systems, 1)


def line(row: Comparison) -> str:
    """A row for a reader who waits for the next one."""
    cells = [f"{name} {_cell(s) if s.rate else s.why}" for name, s in row.systems.items()]
    share = [] if row.roofline is None else [f"{row.roofline:.0%} of the roofline"]
    return f"{row.case}, {row.unit}: " + "; ".join(cells + share + ([row.remark] if row.remark else []))


def table(rows: Iterable[Comparison]) -> str:
    """Markdown: a line a case, a column a system; a system that was missing or died is explained below."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.systems))
    names.sort(key=lambda name: name != OURS)
    lines = [
        "| case | " + " | ".join(names) + " | of the roofline | computed / unique tokens |",
        "| --- " * (len(names) + 3) + "|",
    ]
    reasons: dict[str, None] = {}
    for row in rows:
        cells = []
        for name in names:
            s = row.systems.get(name)
            cells.append(_cell(s))
            if s and s.why:
                reasons[f"{name}{'' if s.rate is None else ', ' + row.case}: {s.why}"] = None
        share = "" if row.roofline is None else f"{row.roofline:.0%}"
        read = "; ".join(f"{n} {s.computed:.2f}" for n, s in row.systems.items() if s.computed is not None)
        remark = f"; {row.remark}" if row.remark else ""
        lines.append(f"| {row.case}, {row.unit}{remark} | {' | '.join(cells)} | {share} | {read} |")
    rates = [row.rates for row in rows if row.rates]
    if rates:
        flops, bytes_ = (statistics.median(r[i] for r in rates) / 1e9 for i in range(2))
        lines += [
            "",
            f"The machine meanwhile: {flops:.0f} GFLOP/s in a float32 matrix product, {bytes_:.1f} GB/s from memory.",
        ]
    lines += ["", *(f"* Not measured: {reason}" for reason in reasons)] if reasons else []
    return "\n".join(lines)


def _cell(s: Standing | None) -> str:
    if s is None:
        return ""
    if s.rate is None:
        return "-"
    rate = short(s.rate.median)
    if s.rate.low != s.rate.high:
        rate += f" ({short(s.rate.low)} to {short(s.rate.high)})"
    return rate if s.ratio is None else f"{rate}, x {s.ratio:.2f}"


def short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
