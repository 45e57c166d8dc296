"""Weights in fewer bytes: how fast prefill and decode are with matrices of each type, and how far what a policy says moves.

Engines of float32, bfloat16 and int8 matrices (activations and cache stay float32) and llama.cpp are asked in turn for the same work.
What is lost is looked at on episodes of an environment's expert: log-probabilities of all that follows the prompt, and greedy
tokens after it.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, LogprobsRequest, SamplingParams
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.experts import stream_expert_trajectories
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.prompts import Encoder
from agentrm_jax.testing.tiny import TINY
from agentrm_jax.types import Trajectory
from benchmarks import peers, workloads
from benchmarks.engine import started
from benchmarks.measure import Spread
from benchmarks.options import SystemOptions
from benchmarks.ours import Ours
from benchmarks.roofline import Machine
from benchmarks.same_weights import SameWeights, prepare
from benchmarks.side_by_side import OURS, Comparison, Standing, System, compare_all

TYPES = ("", "bfloat16", "int8")  # of matrices; empty: float32, as everything else
_LOSS = "nats by which log-probabilities of tokens of experts' episodes move, mean"
_PERPLEXITY = "perplexity of experts' episodes as a multiple of that with float32 matrices"
_AGREE = "greedy tokens that differ from those with float32 matrices"

Path = tuple[np.ndarray, int]  # tokens, and how many of them are the prompt


def run(options: SystemOptions) -> Iterator[Comparison]:
    work = options.workload["weights"]
    toy = options.workload["model"] == "toy"
    made = None if toy else prepare(options.models)
    model = made.model() if made else Transformer(TINY, rngs=nnx.Rngs(0), value_head=True)
    systems = {kind: Ours(model, _sizes(work, kind), name=_name(kind)) for kind in TYPES}
    config = model.config
    del model
    cases = [workloads.prefill(shape, config) for shape in work["prefill"]]
    cases += [workloads.decode(shape, work["context"], config) for shape in work["decode"]]
    wanted = [case for case in cases if options.wants(case.name)]
    if wanted:
        kinds = [kind for kind in peers.GENERATORS if kind.name.startswith("llama.cpp")]
        machine = Machine(64, 4096) if toy else Machine()
        with started(kinds, options, role="generate", toy=toy) as (others, absent):
            everybody: list[System] = [*systems.values(), *others]
            for case in wanted:
                repeats = options.repeats or options.workload["repeats"]
                seconds = options.case_seconds
                yield compare_all("weights", case, everybody, absent, machine, repeats=repeats, seconds=seconds)
    if any(map(options.wants, (_LOSS, _PERPLEXITY, _AGREE))):
        paths = _episodes(made, work) if made else _random(work)
        yield from losses({_name(kind): mine.engine for kind, mine in systems.items()}, paths, work["new"])


def losses(engines: dict[str, Engine], paths: list[Path], new: int) -> Iterator[Comparison]:
    """What engines say of paths, against what the one called `OURS` says."""
    said = {name: _logprobs(engine, paths) for name, engine in engines.items()}
    written = {name: _greedy(engine, paths, new) for name, engine in engines.items()}
    others = [name for name in engines if name != OURS]
    want = said[OURS]
    about = f"{len(want)} tokens of {len(paths)} episodes"
    moved = {name: float(np.abs(said[name] - want).mean()) for name in others}
    yield _loss(f"{_LOSS}, {about}", "nats", 0.0, moved)
    worse = {name: float(np.exp(np.mean(want - said[name]))) for name in others}
    yield _loss(f"{_PERPLEXITY}, {about}", "times", 1.0, worse)
    total = written[OURS].size
    differ = {name: 1 - float(_same(written[name], written[OURS]).mean()) for name in others}
    yield _loss(
        f"{_AGREE}, {total} tokens from {len(paths)} prompts, those after the first difference too",
        "share",
        0.0,
        differ,
    )


def _loss(case: str, unit: str, ours: float, others: dict[str, float]) -> Comparison:
    """Figures without ratios: the loss of float32 is none."""
    figures = {OURS: ours} | others
    return Comparison("weights", case, unit, {name: Standing(Spread.of([x])) for name, x in figures.items()}, 1)


def _logprobs(engine: Engine, paths: list[Path]) -> np.ndarray:
    """float[t]: of everything behind the prompts."""
    found = engine.logprobs([LogprobsRequest(tokens, prompt) for tokens, prompt in paths])
    return np.concatenate(found).astype(np.float64)


def _greedy(engine: Engine, paths: list[Path], new: int) -> np.ndarray:
    """int[paths, new] tokens that follow the prompts."""
    params = SamplingParams(temperature=0.0, max_tokens=new)
    found = engine.generate([GenerateRequest(tokens[:prompt], params) for tokens, prompt in paths])
    return np.array([sample.tokens for [sample] in found])


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool[paths, new]: equal so far; what follows a difference counts as different."""
    return np.cumprod(a == b, axis=1).astype(bool)


def _episodes(made: SameWeights, work: dict[str, Any]) -> list[Path]:
    """Episodes of the first test tasks as far as there is room, as a policy reads them."""
    names = tuple(work["environments"])
    env = ConfigDict({"names": names, "split": "test", "start": 0, "count": work["tasks"], "options": {}})
    environments = catalogue.resolve(env)
    encoder = Encoder(made.chat, environments.specs, "policy", 0)

    async def solved(entry: catalogue.Entry) -> list[Trajectory]:
        tasks = catalogue.tasks(env, entry)
        stream = stream_expert_trajectories(entry.spec, tasks, entry.options, time_limit=20.0, workers=1)
        async with contextlib.aclosing(stream) as episodes:
            return [episode async for episode in episodes]

    paths = []
    for entry in environments.values():
        for episode in asyncio.run(solved(entry)):
            segments = encoder.trajectory(episode)
            tokens = np.concatenate([s.tokens for s in segments])[: work["room"] - work["new"]]
            paths.append((tokens.astype(np.int32), len(segments[0].tokens)))
    return [(tokens, prompt) for tokens, prompt in paths if prompt < len(tokens)]


def _random(work: dict[str, Any]) -> list[Path]:
    """Paths for a model that knows no language."""
    return [
        (np.array(workloads.ids(work["room"] // 2, 15, i), np.int32), work["room"] // 4) for i in range(work["tasks"])
    ]


def _sizes(work: dict[str, Any], kind: str) -> EngineConfig:
    new = max(work["new"], *(shape["new"] for shape in work["decode"]))
    read = max(shape["tokens"] for shape in work["prefill"])
    return EngineConfig(
        cache_tokens=20 * work["room"],
        rows=tuple(sorted({shape["sequences"] for shape in work["decode"]})),
        batch_tokens=(read,),
        new_tokens=(read,),
        context=(work["room"],),
        samples=1,
        max_new=new,
        weights=kind,
    )


def _name(kind: str) -> str:
    return f"{OURS}, {kind} matrices" if kind else OURS
