"""Several reward models of one kind as one row: means, spreads, and intervals over tasks and runs."""

import numpy as np
import pytest

from agentrm_jax.evaluation import comparison, repeats, statistics
from agentrm_jax.types import UserError
from tests.evaluation.test_results import GREEDY, build, record


def run(name, *rewards, **more):
    tasks = ("maze/1", "maze/2", "pddl/1")
    records = [record(task, reward, [(0.5, reward), (0.1, 0.0)]) for task, reward in zip(tasks, rewards, strict=True)]
    return build(records, baselines={"greedy": GREEDY}, reward_model=name, **more)


RUNS = [run("a", 1.0, 0.2, 0.5), run("b", 0.4, 0.2, 0.9), run("c", 1.0, 0.8, 0.1)]


def test_scores_are_means_and_spreads_are_over_runs():
    found = repeats.mean_of(RUNS, resamples=200)
    assert found["method"] == "best_of_n, mean of 3 reward models"
    assert found["tasks"]["maze"]["score"] == pytest.approx(np.mean([0.6, 0.3, 0.9]))
    assert found["tasks"]["maze"]["spread"] == pytest.approx(np.std([0.6, 0.3, 0.9], ddof=1))
    assert [r["score"] for r in found["records"]] == pytest.approx([0.8, 0.4, 0.5])
    assert [(r["reward_model"], r["score"]) for r in found["repeats"]] == [
        ("a", pytest.approx(1.7 / 3)),
        ("b", pytest.approx(0.5)),
        ("c", pytest.approx(1.9 / 3)),
    ]
    assert found["budget"] == RUNS[0]["budget"], "each run alone costs what one costs"


def test_its_differences_pair_every_run_with_the_one_baseline():
    rows = {row.name: row for row in comparison.rows([repeats.mean_of(RUNS, resamples=50)])}
    [mean] = [row for name, row in rows.items() if name.startswith("best_of_n")]
    gain = comparison.difference(mean, rows["greedy"], "maze", resamples=2000)
    assert gain.mean == pytest.approx(0.6 - 0.1)
    single = comparison.difference(
        comparison.rows([RUNS[1]])[-2], rows["greedy"], "maze", resamples=2000
    )  # one run of the three, the worst in mazes
    assert gain.hi - gain.lo > 0
    assert single.mean == pytest.approx(0.2)


def test_curves_are_means_and_their_intervals_span_those_of_all_runs():
    last = repeats.mean_of(RUNS, resamples=50)["n_curve"][-1]["best_of_n"]
    each = [run["n_curve"][-1]["best_of_n"] for run in RUNS]
    assert last["score"] == pytest.approx(np.mean([e["score"] for e in each]))
    assert last["ci95"] == [min(e["ci95"][0] for e in each), max(e["ci95"][1] for e in each)]


def test_an_interval_over_runs_is_that_over_tasks_where_runs_agree_and_wider_where_they_do_not():
    values = np.random.default_rng(0).uniform(size=(30, 1))
    alone = statistics.mean_interval(values[:, 0], resamples=2000)
    agree = statistics.mean_over_runs(np.repeat(values, 3, axis=1), resamples=2000)
    assert (agree.mean, agree.lo, agree.hi) == pytest.approx((alone.mean, alone.lo, alone.hi))
    apart = statistics.mean_over_runs(values + np.array([[-0.3, 0.0, 0.3]]), resamples=2000)
    assert apart.mean == pytest.approx(alone.mean)
    assert apart.hi - apart.lo > 2 * (alone.hi - alone.lo)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(UserError, match="two at least"):
        repeats.mean_of(RUNS[:1])
    with pytest.raises(UserError, match="different methods: best_of_n, beam"):
        repeats.mean_of([RUNS[0], run("b", 0, 0, 0, method="beam")])
    with pytest.raises(UserError, match="not of the same tasks"):
        repeats.mean_of([RUNS[0], build(GREEDY[:2])])
