"""Which measurement is best, and when there have been enough without a better one."""

import json

import pytest

from agentrm_jax.evaluation.selection import METRICS, NONE, Selection


def run(metric: str, patience: int, values: list[float | None]) -> tuple[list[int], int | None]:
    """The steps whose model is kept, and the step after which training stops early; the run is stopped after every step."""
    state, kept = {}, []
    for step, value in enumerate(values, 1):
        best = Selection(metric, patience, state)
        if best.improved(step, {metric: value}):
            kept.append(step)
        if best.exhausted:
            return kept, step
        state = json.loads(json.dumps(best.state()))
    return kept, None


def test_the_best_is_kept_by_the_direction_of_its_metric():
    values = [0.5, 0.7, 0.7, 0.6, 0.4, 0.9]
    assert run("sibling_accuracy", 0, values) == ([1, 2, 6], None)
    assert run("mse", 0, values) == ([1, 5], None)


def test_training_stops_after_as_many_measurements_without_a_better_one():
    assert run("pearson", 2, [0.5, 0.4, 0.6, 0.6, 0.5, 0.9]) == ([1, 3], 5)
    assert run("pearson", 1, [0.1, 0.2, 0.3]) == ([1, 2, 3], None)


def test_a_metric_that_is_not_defined_is_no_better_one():
    assert run("success_auc", 3, [None, 0.5, None, None, None]) == ([2], 5)


def test_without_a_metric_the_latest_counts_and_nothing_stops():
    assert run(NONE, 1, [0.5, 0.4, 0.3]) == ([1, 2, 3], None)


def test_every_metric_is_one_that_is_measured():
    from agentrm_jax.evaluation.metrics import reward_model_metrics

    found = reward_model_metrics([0.1, 0.9], [0.0, 1.0], ["a", "a"], siblings=[0, 0], success=[0.0, 1.0])["metrics"]
    assert METRICS.keys() <= found.keys()
    assert all(found[name] == pytest.approx(1) for name, higher in METRICS.items() if higher)
