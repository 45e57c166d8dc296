"""An engine that reads histories in place answers as one that copies them; who does which is decided by platform and shape."""

import dataclasses

import jax
import numpy as np
import pytest

from agentrm_jax.engine import histories
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.histories import choose_reader
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, LogprobsRequest, SamplingParams
from agentrm_jax.models.config import PRESETS
from agentrm_jax.testing.tiny import tiny_model

SIZES = EngineConfig(
    cache_tokens=512,
    rows=(4,),
    batch_tokens=(48,),
    new_tokens=(24,),
    context=(64,),
    samples=3,
    max_new=6,
    trunk=8,
)
VARIANTS = {
    "grouped": {"num_heads": 4, "num_kv_heads": 2},
    "windows": {"num_kv_heads": 1, "sliding_window": 5, "window_layers": (True, False), "rope_layers": (False, True)},
    "local_turns": {
        **{"sliding_window": 5, "window_layers": (True, False), "local_rope_theta": 100.0, "query_scalar": 24.0},
        **{"norms": "both", "norm_offset": 1.0, "scale_embeddings": True},
    },
}


def ids(size, seed):
    return np.random.default_rng(seed).integers(4, 97, size).astype(np.int32)


def engine(model, reader, monkeypatch, **changes):
    monkeypatch.setattr(histories, "choose_reader", lambda *_: reader)
    return Engine(model, dataclasses.replace(SIZES, **changes), end_id=3)


def answers(mine):
    """Samples of rows that come and go, with and without a common beginning, then scores and log-probabilities."""
    trunk = ids(12, 99)
    alike = [np.concatenate([trunk, ids(size, size)]) for size in (3, 9, 30)]
    paths = alike + [ids(size, size) for size in (1, 44)]
    sampled = [GenerateRequest(p, SamplingParams(n=n, seed=n)) for p, n in zip(paths, (3, 1, 4, 2, 3), strict=True)]
    greedy = [GenerateRequest(p, SamplingParams(temperature=0.0)) for p in paths]
    tokens, logprobs = [], []
    for some in (sampled[:3], sampled[2:] + greedy):
        for samples in mine.generate(some):
            tokens += [s.tokens.tolist() for s in samples]
            logprobs += [s.logprobs for s in samples]
        check_batches(mine, trunk=8 if some == sampled[:3] else 0)
    longer = [np.concatenate([path, ids(7, 5)]) for path in paths]
    logprobs += mine.logprobs([LogprobsRequest(path, max(1, len(path) - 9)) for path in longer])
    return tokens, np.concatenate(logprobs), mine.score(longer)


def check_batches(mine, trunk):
    """What is kept of a history on the device: a table where it is read in place, else its keys and values."""
    c, batches = mine.model_config, mine.scheduler.seats.batches
    assert {batch.shape.trunk for batch in batches} == {trunk}
    for batch in batches:
        state, shape = batch.state, batch.shape
        columns = (shape.history_blocks + shape.ring_blocks) * shape.width
        assert (state.table is None) == (shape.in_place == "") == (columns > shape.ring * shape.samples)
        held = sum(x.size for x in jax.tree.leaves(state.caches))
        assert held == c.num_layers * 2 * shape.rows * columns * c.num_kv_heads * c.head_dim


@pytest.mark.parametrize(
    ("variant", "reader", "draft"), [("grouped", "gpu", 0), ("windows", "tpu", 0), ("windows", "gpu", 2)]
)
def test_samples_log_probabilities_and_scores_are_those_of_copied_histories(variant, reader, draft, monkeypatch):
    model = tiny_model(**VARIANTS[variant])
    dense, in_place = engine(model, "", monkeypatch), engine(model, reader, monkeypatch, draft=draft)
    (tokens, logprobs, scores), (got_tokens, got_logprobs, got_scores) = answers(dense), answers(in_place)
    assert {batch.shape.in_place for batch in in_place.scheduler.seats.batches} == {reader}
    assert got_tokens == tokens
    np.testing.assert_allclose(got_logprobs, logprobs, atol=2e-5)
    np.testing.assert_allclose(got_scores, scores, atol=2e-5)


def test_accelerators_read_in_place_what_their_kernels_take():
    llama, small = PRESETS["llama3_8b"], PRESETS["smollm2"]
    assert choose_reader("gpu", llama, 65536, 1) == "gpu"
    assert choose_reader("tpu", llama, 65536, 8) == "tpu"
    assert choose_reader("tpu", llama, 65530, 1) == "", "pages are whole tiles of memory"
    assert choose_reader("tpu", small, 32768, 3) == "", "64 numbers a token are less than a tile"
    assert choose_reader("tpu", small, 32768, 2) == "tpu", "three heads do not divide, so each device has them all"
    assert choose_reader("cpu", llama, 65536, 1) == ""
