import dataclasses
import json
import math

import numpy as np
import pytest

from agentrm_jax.evaluation import results
from agentrm_jax.evaluation.results import TaskRecord
from agentrm_jax.evaluation.rules import Sample
from agentrm_jax.types import UserError

BUDGET = {"policy_tokens": 10, "reward_tokens": 5, "env_steps": 3, "seconds": 1.5}


def record(task: str, reward: float, samples: list[tuple[float, float]] | None = None, **more) -> TaskRecord:
    drawn = [Sample(score, gain, gain == 1, gain / 2) for score, gain in samples] if samples is not None else None
    return TaskRecord(task, task.split("/")[0], reward, reward / 2, reward == 1, 4, drawn, **more)


RECORDS = [
    record("maze/1", 1.0, [(0.9, 1.0), (0.1, 0.0)]),
    record("maze/2", 0.2, [(0.8, 0.2), (0.3, 0.6)]),
    record("pddl/1", 0.5, [(0.5, 0.5), (0.4, 0.5)]),
]
GREEDY = [record("maze/1", 0.0), record("maze/2", 0.2), record("pddl/1", 0.4)]


def build(records=RECORDS, **more):
    return results.build(records, **{"method": "best_of_n", "policy": "p", "budget": BUDGET, "resamples": 300} | more)


def test_result_has_what_the_contract_names():
    got = build(reward_model="explicit", baselines={"greedy": GREEDY}, config={"seed": 1})
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert set(got["tasks"]) == {"maze", "pddl"}
    for cell in [*got["tasks"].values(), got["overall"]]:
        assert {"n", "score", "success", "ci95"} <= set(cell)
        assert cell["ci95"][0] <= cell["score"] <= cell["ci95"][1]
    assert (got["method"], got["policy"], got["reward_model"]) == ("best_of_n", "p", "explicit")
    assert got["budget"] == BUDGET
    assert got["config"] == {"seed": 1}
    assert set(got["rows"]) == {"greedy", "random", "oracle"}


def test_a_method_that_had_nothing_to_choose_from_has_no_rows_of_rules():
    alone = [record(task, 0.5, [(0.9, 0.5)]) for task in ("maze/1", "maze/2", "pddl/1")]
    got = build(alone, method="lookahead", independent=0, baselines={"greedy": GREEDY})
    assert set(got["rows"]) == {"greedy"}


def test_scores_by_hand():
    got = build(baselines={"greedy": GREEDY})
    maze = got["tasks"]["maze"]
    assert (maze["n"], maze["score"], maze["success"], maze["progress"], maze["steps"]) == pytest.approx(
        (2, 0.6, 0.5, 0.3, 4)
    )
    assert got["overall"]["score"] == pytest.approx(1.7 / 3)
    assert got["rows"]["greedy"]["overall"]["score"] == pytest.approx(0.2)
    assert got["rows"]["random"]["overall"]["score"] == pytest.approx((0.5 + 0.4 + 0.5) / 3)
    assert got["rows"]["oracle"]["overall"]["score"] == pytest.approx((1 + 0.6 + 0.5) / 3)
    assert got["rows"]["oracle"]["tasks"]["maze"]["success"] == pytest.approx(0.5)
    assert got["overall"]["difference"]["score"] == pytest.approx((1 + 0 + 0.1) / 3)
    assert "difference" not in got["rows"]["greedy"]["overall"]


def test_curve_starts_at_random_and_ends_at_the_ranking():
    got = build()
    first, last = got["n_curve"]
    assert (first["n"], last["n"]) == (1, 2)
    for name in ("best_of_n", "oracle", "random"):
        assert first[name]["score"] == pytest.approx(got["rows"]["random"]["overall"]["score"])
    assert last["best_of_n"]["score"] == pytest.approx(got["overall"]["score"])
    assert last["oracle"]["score"] == pytest.approx(got["rows"]["oracle"]["overall"]["score"])
    assert last["pass"]["score"] == pytest.approx(got["rows"]["oracle"]["overall"]["success"])
    assert set(got["n_curves"]) == {"maze", "pddl"}


def test_progress_can_be_the_score():
    got = build(measure="progress")
    assert got["overall"]["score"] == pytest.approx(1.7 / 6)
    assert got["rows"]["oracle"]["overall"]["score"] == pytest.approx(2.1 / 6)


def test_weights_shape_overall_but_no_environment():
    got = build(weights={"maze": 1, "pddl": 3})
    assert got["overall"]["score"] == pytest.approx(0.25 * 0.6 + 0.75 * 0.5)
    assert got["tasks"]["maze"]["score"] == pytest.approx(0.6)


def test_a_failed_task_counts_as_zero_and_is_shown():
    got = build([*RECORDS, record("pddl/2", 0.9, None, failed=True)])
    assert got["overall"]["score"] == pytest.approx(1.7 / 4)
    assert (got["overall"]["failed"], got["tasks"]["pddl"]["failed"], got["tasks"]["maze"]["failed"]) == (1, 1, 0)
    assert got["rows"]["oracle"]["scores"]["pddl/2"] == 0
    assert got["n_curve"][1]["best_of_n"]["score"] == pytest.approx(got["overall"]["score"])


def test_without_samples_there_is_no_curve_and_no_random_row():
    got = build(GREEDY, method="greedy")
    assert got["rows"] == {}
    assert "n_curve" not in got


def test_curve_needs_as_many_samples_as_the_poorest_task_has():
    records = [RECORDS[0], dataclasses.replace(RECORDS[1], samples=[Sample(0.1, 0.2, False)] * 5)]
    assert [p["n"] for p in build(records)["n_curve"]] == [1, 2]
    with pytest.raises(UserError, match="lower ns"):
        build(records, ns=[4, 8])


def test_curve_sizes_thin_out():
    assert results.curve_sizes(5) == [1, 2, 3, 4, 5]
    assert results.curve_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert results.curve_sizes(64)[-1] == 64


def test_nan_scores_never_win():
    got = build([record("maze/1", 0.3, [(math.nan, 1.0), (0.1, 0.3)])])
    assert got["n_curve"][1]["best_of_n"]["score"] == pytest.approx(0.3)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="no tasks"):
        build([])
    with pytest.raises(UserError, match="two records of task maze/1"):
        build([RECORDS[0], RECORDS[0]])
    with pytest.raises(UserError, match="no weight for pddl"):
        build(weights={"maze": 1})
    with pytest.raises(ValueError, match="budget lacks env_steps"):
        build(budget={k: v for k, v in BUDGET.items() if k != "env_steps"})


def test_intervals_do_not_depend_on_the_order_of_environments():
    rng = np.random.default_rng(0)
    records = [record(f"{env}/{i}", float(r)) for env in ("maze", "pddl") for i, r in enumerate(rng.uniform(size=20))]
    a, b = build(records), build(records[20:] + records[:20])
    assert a["overall"]["ci95"] == pytest.approx(b["overall"]["ci95"])


def test_rules_that_need_no_model_stand_beside_a_choice_among_samples():
    samples = [
        Sample(0.9, 0.2, False, steps=10),
        Sample(0.1, 1.0, True, steps=4, ended=True),
        Sample(0.2, 0.5, False, steps=4, ended=True),
    ]
    never = [Sample(0.1, 0.3, False, steps=10), Sample(0.2, 0.6, False, steps=10)]
    records = [dataclasses.replace(RECORDS[0], samples=samples), dataclasses.replace(RECORDS[1], samples=never)]
    rows = build(records)["rows"]
    assert list(rows) == ["random", "shortest", "longest", "ended", "oracle"]
    assert rows["shortest"]["scores"] == pytest.approx({"maze/1": 0.75, "maze/2": 0.45}), "ties count as their mean"
    assert rows["longest"]["scores"] == pytest.approx({"maze/1": 0.2, "maze/2": 0.45})
    assert rows["ended"]["scores"] == pytest.approx({"maze/1": 1.0, "maze/2": 0.3}), "the first, where none ended"
    assert rows["oracle"]["scores"] == pytest.approx({"maze/1": 1.0, "maze/2": 0.6})
