"""Starts an engine with SmolLM2 and samples one token: `python -m benchmarks.first_token`. `benchmarks.engine` times it from outside."""

import numpy as np

from agentrm_jax.engine.engine import make_engine
from agentrm_jax.engine.requests import GenerateRequest, SamplingParams
from agentrm_jax.models.opening import load_model
from agentrm_jax.run.devices import accelerator
from configs import common


def main() -> None:
    accelerator()
    loaded = load_model("smollm2")
    engine = make_engine(loaded.model, common.engine("smollm2"), end_id=loaded.chat.end_id)
    path = loaded.chat.encode("You are in a maze. Which way do you go?").astype(np.int32)
    [[sample]] = engine.generate([GenerateRequest(path, SamplingParams(temperature=0.0, max_tokens=1))])
    print(sample.tokens.tolist())


if __name__ == "__main__":
    main()
