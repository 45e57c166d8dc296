"""The work that engines are compared at: tokens and shapes, from `workloads.json`, the same whoever runs them.

Tokens are drawn from a generator seeded by what they are for, so a workload is its shapes and this module.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.types import UserError
from benchmarks.roofline import kv_numbers, layer_parameters, output_parameters
from benchmarks.side_by_side import Case, Question

_FILE = Path(__file__).with_name("workloads.json")
_FIRST_ID, _LAST_ID = 20, 96  # ids below are special tokens of SmolLM2; the toy model has 97

Path_ = list[int]


def load(name: str) -> dict[str, Any]:
    """A workload by name.

    Raises:
      UserError: there is none of this name.
    """
    known = json.loads(_FILE.read_text())
    if name not in known:
        raise UserError(f"no workload {name!r} in {_FILE.name}; known: {', '.join(known)}")
    return known[name]


def ids(count: int, *seed: int) -> Path_:
    """Random token ids, the same for the same seed."""
    return np.random.default_rng(seed).integers(_FIRST_ID, _LAST_ID, count).tolist()


def prefill(shape: dict[str, int], model: ModelConfig) -> Case:
    """New prompts, one token after each."""
    prompts, length = shape["prompts"], shape["tokens"]
    count = prompts * length

    def ask(number: int, prompts: int = prompts) -> Question:
        return {"do": "generate", "paths": [ids(length, 1, prompts, i, number) for i in range(prompts)], "new": 1}

    return Case(
        f"prefill, {prompts} x {length} tokens",
        "tokens/s",
        count,
        lambda number: [ask(number)],
        warm=[ask(0, 1)],
        unique=count,
        flop=2 * (layer_parameters(model) * count + output_parameters(model) * prompts),
        bytes=4 * (layer_parameters(model) + output_parameters(model)),
    )


def decode(shape: dict[str, int], context: int, model: ModelConfig) -> Case:
    """Greedy tokens after prompts that are cached but for their last token."""
    sequences, new = shape["sequences"], shape["new"]
    paths = [ids(context, 2, i) for i in range(sequences)]

    def ask(new: int) -> Question:
        return {"do": "generate", "paths": paths, "new": new}

    weights = layer_parameters(model) + output_parameters(model)
    cached = sequences * (context + new / 2) * kv_numbers(model)
    return Case(
        f"decode, {sequences} x {new} tokens after {context} cached",
        "tokens/s",
        sequences * new,
        lambda number: [ask(new)],
        warm=[ask(2)],
        unique=sequences * new,
        flop=2 * weights * sequences * new,
        bytes=4 * new * (weights + cached),
    )


def repetitive(shape: dict[str, int], model: ModelConfig) -> Case:
    """Greedy tokens of one sequence after a text that repeats itself, as agents' histories do: what drafts can be looked up in."""
    path, new = ids(shape["period"], 14) * shape["times"], shape["new"]

    def ask(new: int) -> Question:
        return {"do": "generate", "paths": [path], "new": new}

    weights = layer_parameters(model) + output_parameters(model)
    return Case(
        f"decode, 1 x {new} tokens after {shape['period']} tokens {shape['times']} times",
        "tokens/s",
        new,
        lambda number: [ask(new)],
        warm=[ask(8)],
        unique=new,
        flop=2 * weights * new,
        bytes=4 * new * weights,
    )


def episodes(shape: dict[str, int], model: ModelConfig) -> Case:
    """Best of n: agents that begin alike, take turns, and wait for nobody."""
    tasks, samples, turns, new = shape["tasks"], shape["samples"], shape["turns"], shape["new"]
    count = tasks * samples * turns * new
    observed = tasks * samples * (turns - 1) * shape["observation"]
    unique = shape["instruction"] + tasks * shape["task"] + count - tasks * samples + observed

    def ask(number: int, tasks: int = tasks, samples: int = samples, turns: int = turns) -> Question:
        shared = ids(shape["instruction"], 3, number)
        agents = [(task, sample) for task in range(tasks) for sample in range(samples)]
        seen = [[ids(shape["observation"], 5, *agent, turn, number) for turn in range(1, turns)] for agent in agents]
        paths = [shared + ids(shape["task"], 4, task, number) for task, _ in agents]
        return {"do": "episodes", "paths": paths, "observations": seen, "new": new}

    weights = layer_parameters(model) + output_parameters(model)
    return Case(
        f"best of {samples}, {tasks * samples} episodes of {turns} turns, {new} new and {shape['observation']} observed tokens, "
        f"prompts of {shape['instruction'] + shape['task']}",
        "new tokens/s",
        count,
        lambda number: [ask(number)],
        warm=[ask(0, 1, 1, 2)],
        unique=unique,
        flop=2 * (layer_parameters(model) * unique + output_parameters(model) * count),
        bytes=4 * turns * new * weights,
    )


def beam_states(shape: dict[str, int], number: int) -> list[list[Path_]]:
    """Turn by turn, the candidate states of a beam search over some tasks; which are kept is drawn, not scored."""
    width, branch = shape["width"], shape["branch"]
    live = [[ids(shape["prompt"], 6, task, number)] * width for task in range(shape["tasks"])]
    turns = []
    for turn in range(shape["turns"]):
        candidates = [
            [
                history + ids(shape["action"], 7, task, turn, slot, draw, number)
                for slot, history in enumerate(histories)
                for draw in range(branch)
            ]
            for task, histories in enumerate(live)
        ]
        turns.append([state for task in candidates for state in task])
        keep = np.random.default_rng((8, turn, number)).choice(width * branch, width, replace=False)
        live = [
            [states[at] + ids(shape["observation"], 9, task, turn, slot, number) for slot, at in enumerate(keep)]
            for task, states in enumerate(candidates)
        ]
    return turns


def scoring(shape: dict[str, int], model: ModelConfig, slow: Sequence[str] = ("transformers",)) -> Case:
    """Values of all candidate states of a beam search; slow systems are asked for the first few of every turn."""
    few, tasks, turns = shape["states_of_slow_systems"], shape["tasks"], shape["turns"]
    states = tasks * turns * shape["width"] * shape["branch"]
    unique = tasks * (shape["prompt"] + (turns - 1) * shape["width"] * shape["observation"]) + states * shape["action"]

    def asks(number: int, most: int | None = None) -> list[Question]:
        return [{"do": "score", "paths": paths[:most]} for paths in beam_states(shape, number)]

    return Case(
        f"beam {shape['width']} x {shape['branch']} scoring, {tasks} tasks, {turns} turns, prompts of {shape['prompt']}, "
        f"{shape['action']}-token actions",
        "states/s",
        states,
        asks,
        warm=asks(0, 1)[:1],
        unique=unique,
        flop=2 * layer_parameters(model) * unique,
        bytes=4 * turns * layer_parameters(model),
        few={name: (lambda number: asks(number, few), few * turns) for name in slow},
        aside=later_turns,
    )


def against(name: str, other: str) -> Callable[[Mapping[str, list[float]]], str]:
    """A remark that sets one system beside another one that is not ours."""

    def ratio(seconds: Mapping[str, list[float]]) -> str:
        if name not in seconds or other not in seconds:
            return ""
        return f"{name} x {sum(seconds[other]) / sum(seconds[name]):.2f} of {other}"

    return ratio


def later_turns(seconds: Mapping[str, list[float]]) -> str:
    """What the last turn costs, as a multiple of the second."""
    if any(len(turns) < 2 for turns in seconds.values()):
        return ""
    return "last turn against the second: " + ", ".join(f"{n} x {t[-1] / t[1]:.2f}" for n, t in seconds.items())
