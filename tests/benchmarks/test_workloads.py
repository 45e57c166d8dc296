"""The work is the same for everyone, and what of it is new is counted as a radix tree would."""

import pytest

from agentrm_jax.models.config import PRESETS
from agentrm_jax.types import UserError
from benchmarks import workloads
from benchmarks.workloads import load

MODEL = PRESETS["smollm2"]


def _distinct(paths):
    """Tokens of all paths together, each shared beginning once."""
    return len({tuple(path[: i + 1]) for path in paths for i in range(len(path))})


@pytest.mark.parametrize("name", ["full", "short", "toy"])
def test_every_workload_has_all_cases(name):
    work = load(name)
    cases = [workloads.prefill(shape, MODEL) for shape in work["prefill"]]
    cases += [workloads.decode(shape, work["decode"]["context"], MODEL) for shape in work["decode"]["cases"]]
    cases += [workloads.episodes(work["episodes"], MODEL), workloads.scoring(work["scoring"], MODEL)]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.questions(1) == case.questions(1)
        assert case.flop > 0
        assert case.bytes > 0
    assert {"width", "branch", "turns", "tasks", "new", "slow_tasks", "slow_turns"} <= set(work["search"])


def test_the_full_workload_is_that_of_the_issue():
    work = load("full")
    assert [case["sequences"] for case in work["decode"]["cases"]] == [1, 8, 32, 64]
    e, s = work["episodes"], work["scoring"]
    assert (e["tasks"] * e["samples"], e["samples"], e["turns"], e["new"], e["observation"]) == (40, 5, 6, 32, 48)
    assert e["instruction"] + e["task"] == 300
    assert (s["width"], s["branch"], s["turns"], s["action"]) == (5, 5, 10, 32)


def test_prompts_are_new_in_every_repetition_but_those_of_decoding():
    shape = {"prompts": 3, "tokens": 9}
    case = workloads.prefill(shape, MODEL)
    paths = [path for number in (0, 1, 2) for q in case.questions(number) for path in q["paths"]]
    assert _distinct(paths) > 0.9 * sum(map(len, paths))
    assert case.amount == case.unique == 27
    decode = workloads.decode({"sequences": 2, "new": 8}, 17, MODEL)
    assert decode.questions(1) == decode.questions(2)
    assert decode.warm[0]["paths"] == decode.questions(1)[0]["paths"]


def test_the_states_of_a_beam_are_counted_once():
    shape = load("toy")["scoring"] | {"turns": 4, "width": 3, "branch": 2, "prompt": 20, "action": 6, "observation": 9}
    case = workloads.scoring(shape, MODEL)
    questions = case.questions(3)
    paths = [path for q in questions for path in q["paths"]]
    assert [len(q["paths"]) for q in questions] == [6] * 4
    assert case.amount == 24
    # at the root all draws follow one prompt, afterwards two follow each kept state
    assert case.unique == 20 + 3 * 3 * 9 + 24 * 6
    assert case.unique - 8 <= _distinct(paths) <= case.unique  # random siblings may begin with one token
    few, amount = case.few["transformers"]
    assert amount == sum(len(q["paths"]) for q in few(3)) == 8


def test_what_is_new_in_episodes_is_counted_without_the_last_tokens():
    shape = {"tasks": 2, "samples": 2, "instruction": 10, "task": 3, "turns": 3, "new": 4, "observation": 5}
    case = workloads.episodes(shape, MODEL)
    [question] = case.questions(1)
    whole = []
    for i, (path, seen) in enumerate(zip(question["paths"], question["observations"], strict=True)):
        for turn in range(3):
            path = path + (seen[turn - 1] if turn else []) + [100 + i] * 4
        whole.append(path[:-1])
    assert case.amount == 2 * 2 * 3 * 4
    assert case.unique - 4 <= _distinct(whole) <= case.unique  # random tokens may begin alike


def test_unknown_workloads_are_refused():
    with pytest.raises(UserError, match=r"no workload 'huge' in workloads\.json; known: full, short, toy"):
        load("huge")
