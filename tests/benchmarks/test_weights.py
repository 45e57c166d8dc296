"""What narrow matrices lose is measured against whole ones, on the same paths."""

import dataclasses

import numpy as np

from benchmarks import weights, workloads
from benchmarks.options import SystemOptions
from benchmarks.side_by_side import OURS


def test_losses_of_a_model_at_toy_size_stand_beside_those_of_float32_which_has_none():
    options = SystemOptions(workloads.load("toy"), cases=("nats", "perplexity", "greedy"))
    rows = {row.unit: row for row in weights.run(options)}
    figures = {unit: {name: s.rate.median for name, s in row.systems.items()} for unit, row in rows.items()}
    names = [OURS, f"{OURS}, bfloat16 matrices", f"{OURS}, int8 matrices"]
    assert all(list(row) == names for row in figures.values())
    assert [figures[unit][OURS] for unit in ("nats", "times", "share")] == [0, 1, 0]
    assert 0 < figures["nats"][names[1]] < figures["nats"][names[2]] < 0.5
    assert all(0.8 < figures["times"][name] < 1.25 for name in names)
    assert all(s.ratio is None for row in rows.values() for s in row.systems.values())


def test_what_follows_a_difference_counts_as_different():
    a, b = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[1, 2, 9, 4], [5, 6, 7, 8]])
    assert weights._same(a, b).tolist() == [[True, True, False, False], [True] * 4]


def test_every_workload_has_shapes_for_it():
    for name in ("full", "short", "toy"):
        work = workloads.load(name)["weights"]
        assert weights._sizes(work, "int8") == dataclasses.replace(weights._sizes(work, ""), weights="int8")
        assert max(shape["tokens"] + 1 for shape in work["prefill"]) <= work["room"]
        assert work["context"] + max(shape["new"] for shape in work["decode"]) <= work["room"]
