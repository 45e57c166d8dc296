"""An engine on several devices answers as one on one does, with whole heads of weights and cache on each of them.

Run as a script, this file compares them on eight simulated devices.
"""

import json
from typing import Any

import jax
import numpy as np
import pytest

from agentrm_jax.engine import histories
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, SamplingParams
from agentrm_jax.testing.devices import run_on_eight
from agentrm_jax.testing.tiny import tiny_model
from agentrm_jax.types import UserError

SIZES: dict[str, Any] = {"cache_tokens": 256, "rows": (2, 4), "batch_tokens": (24, 96), "new_tokens": (8, 24)}
SIZES |= {"context": (32, 64), "samples": 3, "max_new": 6}
WAYS = (2, 4)
IN_PLACE = "2, histories in place"


def make(tensor: int) -> Engine:
    model = tiny_model(vocab_size=96, tie_embeddings=False, num_heads=8, num_kv_heads=4)
    return Engine(model, EngineConfig(**SIZES, tensor=tensor), end_id=3)


def answers(engine: Engine) -> dict[str, Any]:
    """Samples after shared and longer histories, values of paths, and the same again from the cache."""
    rng = np.random.default_rng(0)
    trunk = rng.integers(4, 96, 20).astype(np.int32)
    paths = [np.concatenate([trunk, rng.integers(4, 96, n).astype(np.int32)]) for n in (3, 9, 30, 5)]
    tokens, logprobs, values = [], [], []
    for _ in range(2):
        for temperature in (0.0, 1.0):
            params = [SamplingParams(temperature=temperature, n=3, seed=seed) for seed in range(len(paths))]
            requests = [GenerateRequest(path, p) for path, p in zip(paths, params, strict=True)]
            for samples in engine.generate(requests):
                tokens += [s.tokens.tolist() for s in samples]
                logprobs += [s.logprob for s in samples]
        values += engine.score(paths).tolist()
    return {"tokens": tokens, "logprobs": logprobs, "values": values}


def share(arrays: list[jax.Array]) -> float:
    """The part of some arrays that one device holds."""
    return sum(x.addressable_shards[0].data.size for x in arrays) / sum(x.size for x in arrays)


def main() -> None:
    report: dict[str, Any] = {}
    for name, tensor, reader in (("1", 1, ""), *((str(tensor), tensor, "") for tensor in WAYS), (IN_PLACE, 2, "gpu")):
        histories.choose_reader = lambda *_, reader=reader: reader
        engine = make(tensor)
        before = engine.compilations
        found = answers(engine)
        found["programs"] = engine.compilations - before
        weights = engine._weights
        block = weights.layers[0]
        maps = [getattr(block, n)[...] for n in ("wq_dnh", "wk_dkh", "wv_dkh", "wo_nhd", "w_gate_df", "w_down_fd")]
        caches = [batch.state.caches for batch in engine.scheduler.seats.batches]
        report[name] = found | {
            "weights": share([*maps, weights.embed_vd, weights.head_dv]),
            "pool": share(jax.tree.leaves(engine._pool)),
            "caches": share(jax.tree.leaves(caches)),
        }
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return run_on_eight(__file__)[0]


@pytest.mark.parametrize("tensor", [*WAYS, IN_PLACE])
def test_samples_and_values_are_those_of_one_device(report, tensor):
    one, many = report["1"], report[str(tensor)]
    assert many["tokens"] == one["tokens"]
    np.testing.assert_allclose(many["logprobs"], one["logprobs"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(many["values"], one["values"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tensor", WAYS)
def test_every_device_holds_its_part_of_weights_pool_and_decoding_caches(report, tensor):
    for name in ("weights", "pool", "caches"):
        assert report[str(tensor)][name] == 1 / tensor, name


@pytest.mark.parametrize("tensor", WAYS)
def test_no_program_is_compiled_again_because_its_input_came_laid_out_otherwise(report, tensor):
    assert report[str(tensor)]["programs"] == report["1"]["programs"]


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"--config\.engine\.tensor=64: this process has \d+ devices"):
        make(64)


if __name__ == "__main__":
    main()
