"""How far a judge's choices depend on the order in which candidates were shown, from what was counted task by task."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from agentrm_jax.types import JSON

_SUMMED = (
    "questions",
    "alone",
    "missing",
    "too_long",
    "readings",
    "unanswered",
    "bounded",
    "cut_turns",
    "cut_candidates",
)


def summary(tallies: Sequence[Mapping[str, JSON]]) -> dict[str, JSON]:
    """The `judge` block of results, from the tallies of tasks (`rewards.judge`).

    Returns:
      questions: groups of candidates that were compared; `alone` groups of one had nothing to compare.
      missing: states without a score, because no order was answered, or (`too_long` questions) the last turns alone were too long.
      readings, unanswered: prompts shown, one an order, and those without an answer.
      bounded: candidates' numbers, over readings, of which a server gave no probability, only that it is less than that of others.
      cut_turns, cut_candidates: oldest turns that were left out, and candidates they belonged to.
      how: what answers were read from -> how many.
      positions: for each place, how often it was chosen and how often it would be if places did not matter (`expected`).
      bias: total variation distance between the two, 0 (none) to below 1 (always one place); None without answers.
      agreement: share of pairs of orders of one question in which the same candidate was chosen; `agreement_by_chance` is what
        answers without regard to the candidates would have; None without pairs.
    """
    total = {name: sum(int(tally.get(name, 0)) for tally in tallies) for name in _SUMMED}
    how: Counter[str] = Counter()
    chosen: Counter[int] = Counter()
    expected: defaultdict[int, float] = defaultdict(float)
    for tally in tallies:
        how.update(tally.get("how", {}))
        for count, places in tally.get("chosen", {}).items():
            for place, times in enumerate(places):
                chosen[place] += times
                expected[place] += sum(places) / int(count)
    answered = sum(chosen.values())
    pairs = sum(int(tally.get("pairs", 0)) for tally in tallies)
    agreeing = sum(int(tally.get("agreeing", 0)) for tally in tallies)
    by_chance = math.fsum(float(tally.get("agreeing_by_chance", 0.0)) for tally in tallies)
    off = math.fsum(abs(chosen[place] - expected[place]) for place in expected)
    return {
        **total,
        "how": dict(how),
        "positions": [
            {"position": place + 1, "chosen": chosen[place], "expected": round(expected[place], 4)}
            for place in sorted(expected)
        ],
        "bias": off / 2 / answered if answered else None,
        "agreement": agreeing / pairs if pairs else None,
        "agreement_by_chance": by_chance / pairs if pairs else None,
    }
