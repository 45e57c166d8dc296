"""The engine beside vLLM, llama.cpp and transformers: prefill, decode, agents' episodes, scores of a beam's candidates.

All run the same weights (`same_weights`) at the same work (`workloads.json`), in turn, each peer in a process of its own (`peers`).
Beside the rates: what the machine could do (`roofline`), tokens computed for each that is new, the cost of late turns, memory of
candidates that share most of their tokens, and how long a start takes.
"""

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from agentrm_jax.engine.requests import EngineConfig, ScoreRequest
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.testing.tiny import TINY
from benchmarks import peers, workloads
from benchmarks.options import SystemOptions
from benchmarks.ours import Ours
from benchmarks.roofline import Machine
from benchmarks.same_weights import prepare
from benchmarks.side_by_side import Case, Comparison, System, compare_all, fact


def run(options: SystemOptions) -> Iterator[Comparison]:
    work = options.workload
    toy = work["model"] == "toy"
    model = Transformer(TINY, rngs=nnx.Rngs(0), value_head=True) if toy else prepare(options.models).model()
    machine = Machine(64, 4096) if toy else Machine()
    mine = Ours(model, sizes(work, toy))
    config = model.config

    def compared(case: Case, systems: Sequence[System], absent: Mapping[str, str]) -> Iterator[Comparison]:
        if options.wants(case.name):
            repeats = options.repeats or work["repeats"]
            yield compare_all("engine", case, systems, absent, machine, repeats=repeats, seconds=options.case_seconds)

    candidates = "{candidates} with {shared} tokens shared and {own} of their own".format(**work["shared"])
    if options.wants(f"{SHARED}: {candidates}"):
        yield shared_row(mine, work["shared"], f"{SHARED}: {candidates}")  # first, while the cache is empty
    int8, drafting = variants(model, sizes(work, toy))
    del model
    generation = [workloads.prefill(shape, config) for shape in work["prefill"]]
    generation += [workloads.decode(shape, work["decode"]["context"], config) for shape in work["decode"]["cases"]]
    loops = [workloads.episodes(work["episodes"], config)]
    repeated = workloads.repetitive(work["repetitive"], config)
    if any(options.wants(case.name) for case in [*generation, repeated, *loops]):
        with started(peers.GENERATORS, options, role="generate", toy=toy) as (others, absent):
            _agree(mine, others)
            for case in generation:
                yield from compared(case, [mine, *others], absent)
            if int8:
                case = workloads.decode(work["decode"]["cases"][0], work["decode"]["context"], config)
                remark = workloads.against(int8.name, "llama.cpp Q4_1")
                case = dataclasses.replace(case, name=f"{case.name}, int8 weights", aside=remark)
                yield from compared(case, [mine, int8, *others], absent)
            if drafting:
                yield from compared(repeated, [mine, drafting, *others], absent)
            able = [o for o in others if o.name.startswith("vLLM")]
            missing = {name: why for name, why in absent.items() if name.startswith("vLLM")}
            for case in loops:
                yield from compared(case, [mine, *able], missing)
            if options.wants(START) and not toy:
                yield start_row({o.name: o.seconds_to_start for o in others})
    case = workloads.scoring(work["scoring"], config)
    if options.wants(case.name):
        with started(peers.SCORERS, options, role="score", toy=toy) as (others, absent):
            _agree_on_scores(mine, others)
            yield from compared(case, [mine, *others], absent)
    if options.wants(HOST):
        yield host_row()


START = "start, seconds from a new process to a first token"
SHARED = "slots of cached candidates, as a part of what they take apart"
HOST = "host, milliseconds a decode step of 64 rows with a model of no size"


def sizes(work: Mapping[str, Any], toy: bool) -> EngineConfig:
    """An engine for all of a workload."""
    e, s, d, r = work["episodes"], work["scoring"], work["decode"], work["search"]
    longest = max(
        e["instruction"] + e["task"] + e["turns"] * (e["new"] + e["observation"]),
        s["prompt"] + s["turns"] * (s["action"] + s["observation"]),
        d["context"] + max(case["new"] for case in d["cases"]),
        max(shape["tokens"] + 1 for shape in work["prefill"]),
    )
    room = -(-longest // 64) * 64
    new = max(e["new"], r["new"], *(case["new"] for case in d["cases"]))
    few = (1, 4) if toy else (1, 8, 32, 64)
    return EngineConfig(
        cache_tokens=64 * room,
        rows=few,
        batch_tokens=(128, 512, 2048),
        new_tokens=(64, 512),
        context=(room,) if toy else (320, room),
        samples=5,
        max_new=new,
    )


def variants(model: Transformer, sizes: EngineConfig) -> tuple[Ours | None, Ours | None]:
    """Engines for one sequence: with weights of a byte, and one that verifies tokens it has looked up."""
    one = dataclasses.replace(sizes, cache_tokens=4 * sizes.context[-1], rows=(1,), samples=1)
    known = {field.name for field in dataclasses.fields(EngineConfig)}

    def made(name: str, **more: Any) -> Ours | None:
        if not set(more) <= known:
            return None
        return Ours(model, dataclasses.replace(one, **more), name=f"ours, {name}")

    return made("int8 weights", weights="int8"), made("4 drafted tokens", draft=4)


@contextlib.contextmanager
def started(
    kinds: Sequence[peers.Kind], options: SystemOptions, *, role: str, toy: bool
) -> Iterator[tuple[list[peers.Peer], dict[str, str]]]:
    """The peers that are wanted and there, one started after the other; and why others are not. All end with the block."""
    absent: dict[str, str] = {}
    with peers.running([]) as here:
        for kind in kinds:
            if not options.wants_system(kind.name):
                continue
            try:
                if toy:
                    raise peers.PeerDied("toy size has no weights for it")
                here.append(peers.start(kind, options.models, options.logs, role=role, **options.workload["peers"]))
                print(f"{kind.name} ({role}): ready after {here[-1].seconds_to_start:.0f} s", flush=True)
            except peers.PeerDied as error:
                absent[kind.name] = str(error)
                print(f"{kind.name} ({role}): skipped: {error}", flush=True)
        yield here, absent


def _agree(mine: System, others: Sequence[System]) -> None:
    """Says how many of 16 greedy tokens every system has in common with ours."""
    question = {"do": "generate", "paths": [workloads.ids(40, 10)], "new": 16}
    [want] = mine.ask(**question)["tokens"]
    for other in others:
        [have] = other.ask(**question)["tokens"]
        print(
            f"{other.name}: {sum(a == b for a, b in zip(want, have, strict=True))} of 16 greedy tokens as ours",
            flush=True,
        )


def _agree_on_scores(mine: System, others: Sequence[System]) -> None:
    question = {"do": "score", "paths": [workloads.ids(40, 10, i) for i in range(4)]}
    want = np.array(mine.ask(**question)["values"])
    for other in others:
        off = np.abs(np.array(other.ask(**question)["values"]) - want).max()
        print(f"{other.name}: scores differ from ours by at most {off:.1e}", flush=True)


def start_row(others: Mapping[str, float]) -> Comparison:
    """Our start, with programs compiled before, beside that of the peers (until they take questions)."""
    command = [sys.executable, "-m", "benchmarks.first_token"]
    spent = []
    for _ in range(2):  # the first one may have to compile
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter() - begin)
    return fact("engine", START, "s", spent[-1], others)


def shared_row(mine: Ours, shape: Mapping[str, int], case: str) -> Comparison:
    """Cached tokens of candidates, as a part of what they would take apart."""
    candidates, shared, own = shape["candidates"], shape["shared"], shape["own"]
    trunk, engine = workloads.ids(shared, 11), mine.engine
    before = engine.cache.held
    jobs = [
        engine.submit(ScoreRequest(np.array(trunk + workloads.ids(own, 12, c), np.int32))) for c in range(candidates)
    ]
    while not all(job.done for job in jobs):
        engine.step()
    part = (engine.cache.held - before) / (candidates * (shared + own))
    return fact("engine", case, "share", part, {})


def host_row() -> Comparison:
    """What a decode step costs beside its arithmetic, at most: the time of one with a model that has next to none."""
    model = Transformer(TINY, rngs=nnx.Rngs(0))
    new, rows = 64, 64
    config = EngineConfig(cache_tokens=16384, rows=(rows,), context=(128,), max_new=new, batch_tokens=(2048,))
    mine = Ours(model, config)
    question = {"do": "generate", "paths": [workloads.ids(17, 13, i) for i in range(rows)], "new": new}
    mine.ask(**question)
    best = float("inf")
    for _ in range(5):
        steps, begin = mine.engine.stats.decode_steps, time.perf_counter()
        mine.ask(**question)
        best = min(best, (time.perf_counter() - begin) / (mine.engine.stats.decode_steps - steps))
    return fact("engine", HOST, "ms", 1e3 * best, {})
