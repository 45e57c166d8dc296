"""Equal budgets: what best-of-n earns with the tokens that another method spent, by hand."""

import pytest

from agentrm_jax.evaluation import budgets

CURVE = [
    {"n": n, **{name: {"score": score} for name, score in zip(("best_of_n", "oracle", "random"), scores, strict=True)}}
    for n, scores in ((1, (0.4, 0.4, 0.4)), (2, (0.6, 0.7, 0.4)), (4, (0.7, 0.9, 0.4)))
]


def result(method, score, tokens, **more):
    budget = {"policy_tokens": tokens, "reward_tokens": 2 * tokens, "env_steps": 80, "seconds": 20.0}
    return {"method": method, "overall": {"n": 10, "score": score, "ci95": [0, 1]}, "budget": budget, **more}


REFERENCE = result("best_of_n", 0.7, 4000, n_curve=CURVE)  # a sample of a task costs 100 policy tokens


def test_a_method_is_held_against_best_of_n_with_as_many_policy_tokens():
    found = budgets.equal(
        [result("greedy", 0.5, 500), REFERENCE, result("beam", 0.65, 3000), result("wide", 0.8, 9000)]
    )
    assert found["reference"] == "best_of_n"
    assert [(p["n"], p["policy_tokens"], p["reward_tokens"]) for p in found["curve"]] == [
        (1, 100, 200),
        (2, 200, 400),
        (4, 400, 800),
    ]
    greedy, best, beam, wide = found["methods"]
    assert (greedy["n"], greedy["same"], greedy["beyond"]) == (0.5, 0.4, False), "less than one sample buys one at most"
    assert (best["n"], best["same"], best["beyond"]) == (4, 0.7, False)
    assert (beam["n"], beam["same"]) == pytest.approx((3, 0.65))
    assert (wide["n"], wide["same"], wide["beyond"]) == (9, 0.7, True)
    assert (beam["policy_tokens"], beam["env_steps"], beam["seconds"]) == (300, 8, 2)
    lines = budgets.lines(found)
    assert lines[3].split() == ["beam", "65.0", "300", "600", "8", "2.00", "65.0", "(n", "=", "3.0)"]
    assert lines[4].endswith("70.0 (n = 9.0, more than were drawn)")


def test_without_a_curve_there_is_nothing_to_hold_against():
    assert budgets.equal([result("greedy", 0.5, 500)]) is None
