"""Measurements of reward models on labelled rows, against numbers worked out by hand, and the rules beside them."""

import math

import numpy as np
import pytest

from agentrm_jax.data import files, labels
from agentrm_jax.evaluation import reward_data
from agentrm_jax.evaluation.reward_data import Scores

NAN = math.nan


def row(value, number=1):
    (found,) = labels.of_row(files.Row(value, f"t, line {number}", "t.jsonl", number))
    return found


def talk(*turns):
    return [m for text in turns for m in ({"role": "user", "content": "?"}, {"role": "assistant", "content": text})]


def pair(number, better, worse):
    ask = [{"role": "user", "content": "?"}]
    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", better), ("rejected", worse))}
    return row({"id": number, "prompt": ask} | sides, number)


def scored(*values):
    """Scores of one row's conversations, each a value or the scores of its steps."""
    both = [(v,) if isinstance(v, int | float) else tuple(v) for v in values]
    return tuple(Scores(steps, steps[-1] if steps else NAN) for steps in both)


def table(rows, scores, **options):
    found = reward_data.evaluate(rows, scores, model="rm", **options)
    return {(one.metric, one.scorer): one for one in found}


def values(found, metric):
    return {scorer: round(one.value, 6) for (name, scorer), one in found.items() if name == metric}


def test_pairs_beside_length_and_chance():
    rows = [pair(0, "aa", "a"), pair(1, "a", "aaa"), pair(2, "a", "a"), pair(3, "a", "aa")]
    scores = [scored(1, 0), scored(2, 2), scored(0, 1), scored(1, NAN)]  # right, a tie, wrong, no score: never right
    found = table(rows, scores)
    assert values(found, "pair accuracy") == {"rm": 0.375, "random": 0.5, "shortest": 0.625, "longest": 0.375}
    assert found["pair accuracy", "rm"].count == 4
    assert {metric for metric, _ in found} == {"pair accuracy"}
    one = found["pair accuracy", "rm"]
    assert 0 <= one.lo < one.value < one.hi <= 1


def sample(task, text, reward, number):
    return row({"id": task, "messages": talk(text), "reward": reward}, number)


def test_choices_among_the_samples_of_a_task():
    rows = [sample("a", "x", 0.0, 1), sample("a", "xx", 1.0, 2), sample("b", "xx", 0.5, 3), sample("b", "x", 0.25, 4)]
    rows.append(sample("c", "x", 1.0, 5))  # a single sample is no choice
    found = table(rows, [scored(v) for v in (0.9, 0.1, 0.7, 0.2, 0.5)])
    assert values(found, "best of n") == {
        "rm": 0.25,
        "random": 0.4375,
        "shortest": 0.125,
        "longest": 0.75,
        "oracle": 0.75,
    }
    assert values(found, "best of n, regret") == {"rm": 0.5, "random": 0.3125, "shortest": 0.625, "longest": 0.0}
    assert found["best of n", "rm"].count == 2
    assert values(found, "AUC of success")["rm"] == pytest.approx(1 / 6, abs=1e-6)  # 0.1 and 0.5 against 0.9, 0.7, 0.2
    assert values(found, "AUC of success")["random"] == 0.5
    assert values(found, "squared error (Brier)")["rm"] == pytest.approx(
        (0.81 + 0.81 + 0.49 + 0.04 + 0.25) / 5, abs=1e-6
    )


def test_scores_that_are_no_chances_have_no_calibration():
    rows = [sample("a", "x", 0.0, 1), sample("a", "xx", 1.0, 2)]
    assert ("squared error (Brier)", "rm") not in table(rows, [scored(-7.0), scored(3.0)])


def test_a_missing_score_is_chosen_last_and_has_no_part_in_an_area():
    rows = [sample("a", "x", 0.0, 1), sample("a", "xx", 1.0, 2), sample("b", "x", 1.0, 3), sample("b", "xx", 0.0, 4)]
    found = table(rows, [scored(0.1), scored(NAN), scored(0.4), scored(0.3)])
    assert values(found, "best of n")["rm"] == 0.5
    assert (found["AUC of success", "rm"].value, found["AUC of success", "rm"].count) == (1.0, 3)


def steps(task, *labels_, number=1):
    return row({"id": task, "messages": talk(*("x" for _ in labels_)), "step_labels": list(labels_)}, number)


def test_steps_are_told_apart_by_a_threshold_from_the_other_half_of_the_tasks():
    """Task a's scores lie around 0.5, those of b around 5: what is chosen on one is wrong for the other."""
    rows = [steps("a", 1, 0, number=1), steps("b", 1, 0, number=2)]
    found = table(rows, [scored((0.8, 0.2)), scored((8.0, 2.0))])
    assert values(found, "step accuracy") == {"rm": 0.5, "always good": 0.5, "random": 0.5}
    assert values(found, "step AUC")["rm"] == 0.75
    alike = table(rows, [scored((0.8, 0.2)), scored((0.9, 0.3))])
    assert values(alike, "step accuracy")["rm"] == values(alike, "step AUC")["rm"] == 1.0


def test_the_first_error_and_its_rules():
    """Each kind twice, so that both halves of the tasks hold the same."""
    good, bad = 0.9, 0.1
    kinds = {"a": (1, 0, 0), "b": (1, 1), "c": (0, 1), "d": (1, None)}
    said = {"a": (good, bad, good), "b": (good, good), "c": (good, bad), "d": (good, bad)}  # c's is found too late
    names = [f"{kind}{i}" for kind in kinds for i in (1, 2)]
    rows = [steps(name, *kinds[name[0]], number=i) for i, name in enumerate(names)]
    found = table(rows, [scored(said[name[0]]) for name in names])
    chance = {n: [1 / (1 + sum(x is not None for x in kinds[k])) for k in n] for n in ("ac", "bd")}
    for kind, model, rule in (("with one", 0.5, 0.0), ("without", 1.0, 1.0)):
        mean = np.mean(chance["ac" if kind == "with one" else "bd"])
        expected = {"rm": model, "always good": rule, "random": round(mean, 6)}
        assert values(found, f"first error, {kind}") == expected
    assert values(found, "first error, F1")["rm"] == pytest.approx(2 / 3, abs=1e-6)
    assert values(found, "first error, F1")["always good"] == 0.0
    lost = table(rows, [(Scores((), NAN),)] * 8)  # none could be read
    assert values(lost, "first error, F1")["rm"] == values(lost, "step accuracy")["rm"] == 0.0


def test_an_area_by_steps_to_go():
    rows = [row({"id": i, "messages": talk("x", "y"), "reward": r}, i) for i, r in enumerate((1.0, 0.0))]
    found = reward_data.to_go(rows, [scored((0.1, 0.9)), scored((0.2, 0.3))])
    assert found == {0: (1.0, 2), 1: (0.0, 2)}


def test_intervals_are_over_tasks_and_not_over_samples():
    few = [pair(i % 3, "a", "aa") for i in range(90)]
    many = [pair(i, "a", "aa") for i in range(90)]
    right = [scored(1, 0) if i % 3 else scored(0, 1) for i in range(90)]
    wide, narrow = (table(rows, right)["pair accuracy", "rm"] for rows in (few, many))
    assert wide.value == narrow.value == pytest.approx(2 / 3)
    assert (wide.lo, wide.hi) == (0.0, 1.0)
    assert 0.5 < narrow.lo < narrow.hi < 0.8


def test_the_more_noise_the_less_is_measured():
    rng = np.random.default_rng(0)
    rows = [pair(i, "a", "a") for i in range(200)]
    found = [
        table(rows, [scored(1 + noise * rng.normal(), noise * rng.normal()) for _ in rows])["pair accuracy", "rm"].value
        for noise in (0.1, 1.0, 100.0)
    ]
    assert found[0] == 1.0
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(0.5, abs=0.1)
