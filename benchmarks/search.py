"""A whole beam search, SmolLM2 as policy and as reward model in a real environment: on our engines, on two vLLM servers, in a plain loop.

The search, the environment and the texts are the same code for all; only `Policy` and `RewardModel` differ. Turns have a forced length and
equal ones are not merged, so that every system draws and scores as many candidates of as many tokens.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from agentrm_jax import search
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.react import command_reader
from agentrm_jax.policies.native import NativePolicy
from agentrm_jax.prompts import Encoder
from agentrm_jax.rewards.explicit import ExplicitRewardModel
from agentrm_jax.search.beam import beam
from agentrm_jax.types import Action, Policy, RewardModel, State
from agentrm_jax.window import Window
from benchmarks import peers
from benchmarks.options import SystemOptions
from benchmarks.roofline import Machine, layer_parameters, output_parameters
from benchmarks.same_weights import SameWeights, prepare
from benchmarks.served import ServedPolicy, ServedRewardModel, Server, actions
from benchmarks.side_by_side import OURS, Case, Comparison, Question, System, compare_all

_ROOM = 1024
_SERVERS, _LOOP = "two vLLM servers", "transformers loop"


def run(options: SystemOptions) -> Iterator[Comparison]:
    work = options.workload["search"]
    shape = f"{work['width']} x {work['branch']} in {work['environment']}, {work['tasks']} tasks at once"
    case_name = f"beam {shape}, {work['turns']} turns of {work['new']} tokens"
    if options.workload["model"] == "toy" or not options.wants(case_name):
        return
    made = prepare(options.models)
    world = _World(work, made)
    with contextlib.ExitStack() as stack:
        systems: list[System] = [_ours(world, made)]
        absent: dict[str, str] = {}
        for dtype in ("float32", "bfloat16"):
            name = f"{_SERVERS}, {dtype}"
            if options.wants_system(name):
                try:
                    systems.append(stack.enter_context(_servers(world, options, name, dtype)))
                except peers.PeerDied as error:
                    absent[name] = str(error)
        if options.wants_system(_LOOP):
            try:
                peer = peers.start(peers.GENERATORS[-1], options.models, options.logs, role="search")
                stack.callback(peer.close)
                systems.append(_loop(world, peer))
            except peers.PeerDied as error:
                absent[_LOOP] = str(error)
        for name, why in absent.items():
            print(f"{name}: skipped: {why}", flush=True)
        case = _case(case_name, work, world, made)
        repeats = options.repeats or options.workload["repeats"]
        yield compare_all("search", case, systems, absent, Machine(), repeats=repeats, seconds=2 * options.case_seconds)


def _case(name: str, work: dict[str, Any], world: "_World", made: SameWeights) -> Case:
    """Rates are of candidates; the floor counts the tokens of turns, without prompts and observations."""
    candidates = work["tasks"] * work["turns"] * work["width"] * work["branch"]
    tokens, layers = candidates * work["new"], layer_parameters(made.config)

    def ask(number: int, tasks: int = work["tasks"], turns: int = work["turns"]) -> list[Question]:
        return [{"do": "search", "tasks": tasks, "turns": turns, "seed": number}]

    slow = functools.partial(ask, tasks=work["slow_tasks"], turns=work["slow_turns"])
    slow_candidates = work["slow_tasks"] * work["slow_turns"] * work["width"] * work["branch"]
    return Case(
        name,
        "candidates/s",
        candidates,
        ask,
        warm=[],
        flop=2 * tokens * (2 * layers + output_parameters(made.config)),
        few={_LOOP: (slow, slow_candidates)},
    )


class _World:
    """Environment, tasks and texts."""

    def __init__(self, work: dict[str, Any], made: SameWeights):
        self.work = work
        env = ConfigDict(
            {"names": (work["environment"],), "split": "test", "start": 0, "count": work["tasks"], "options": {}}
        )
        self._environments = catalogue.resolve(env)
        [entry] = self._environments.values()
        self._tasks = catalogue.tasks(env, entry)
        specs = self._environments.specs
        self._command = command_reader(specs)
        self.policy_texts = Encoder(made.chat, specs, "policy", 0)
        self.reward_texts = Encoder(made.chat, specs, "reward")

    def search(self, policy: Policy, reward_model: RewardModel, tasks: int, turns: int, seed: int) -> int:
        """Candidates drawn and scored by a beam search over the first tasks."""
        meter = _Meter(policy)

        async def all_tasks() -> None:
            work, chosen = self.work, self._tasks[:tasks]
            async with EnvironmentPool(self._environments.pool_options, 1, 60.0) as pool:
                method = functools.partial(
                    beam,
                    policy=meter,
                    envs=pool,
                    reward_model=reward_model,
                    width=work["width"],
                    branch=work["branch"],
                    temperature=1.0,
                    seed=seed,
                    merge_duplicates=False,
                    max_steps=turns,
                    command=self._command,
                )
                done: list[search.Done[search.Result]] = []
                await search.run_tasks(chosen, method, concurrency=tasks, on_done=done.append)
                if faults := [d.fault for d in done if d.fault]:
                    raise peers.PeerDied(f"a task failed: {faults[0]}")

        asyncio.run(all_tasks())
        return meter.drawn


class _Meter:
    """A policy that counts what it draws."""

    def __init__(self, policy: Policy):
        self._policy, self.drawn = policy, 0

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        found = await self._policy.propose(state, n, temperature=temperature, seed=seed)
        self.drawn += len(found)
        return found


class _Searcher:
    """A system that searches with its policy and reward model."""

    def __init__(
        self, name: str, world: _World, policy: Policy, reward_model: RewardModel, engines: Sequence[Engine] = ()
    ):
        self.name, self._world, self._policy, self._reward_model = name, world, policy, reward_model
        self._engines = engines

    def ask(self, **question: Any) -> dict[str, Any]:
        before = self._compilations()
        shape = {k: v for k, v in question.items() if k != "do"}
        drawn = self._world.search(self._policy, self._reward_model, **shape)
        return {"amount": drawn, "compiled": self._compilations() - before}

    def _compilations(self) -> int:
        return max((engine.compilations for engine in self._engines), default=0)


def _ours(world: _World, made: SameWeights) -> _Searcher:
    work = world.work
    sizes = EngineConfig(
        cache_tokens=16 * _ROOM,
        rows=(2, 5, 10),
        batch_tokens=(128, 512, 2048),
        new_tokens=(64, 512),
        context=(512, _ROOM),
        samples=work["branch"],
        max_new=work["new"],
    )
    model = made.model()
    policy, reward = Engine(model, sizes, end_id=-1), Engine(model, sizes, end_id=-1)
    return _Searcher(
        OURS,
        world,
        NativePolicy(policy, world.policy_texts),
        ExplicitRewardModel(reward, world.reward_texts),
        (policy, reward),
    )


class _Woken:
    """A searcher whose servers run only while it is asked."""

    def __init__(self, searcher: _Searcher, servers: Sequence[Server]):
        self.name, self._searcher, self._servers = searcher.name, searcher, servers

    def ask(self, **question: Any) -> dict[str, Any]:
        for server in self._servers:
            server.awake(True)
        try:
            return self._searcher.ask(**question)
        finally:
            for server in self._servers:
                server.awake(False)


@contextlib.contextmanager
def _servers(world: _World, options: SystemOptions, name: str, dtype: str) -> Iterator[System]:
    if why := peers.GENERATORS[0].missing():
        raise peers.PeerDied(why)
    with contextlib.ExitStack() as stack:
        servers = []
        for runner, model in (("generate", "policy"), ("pooling", "reward")):
            log = options.logs / f"server_{dtype}_{runner}.log"
            servers.append(Server(options.models / model, runner=runner, dtype=dtype, room=_ROOM, log=log))
            stack.callback(servers[-1].close)
            servers[-1].wait()
            servers[-1].awake(False)
            print(f"{name}: {runner} is up", flush=True)
        policy = ServedPolicy(servers[0], world.policy_texts, new=world.work["new"], room=_ROOM)
        reward_model = ServedRewardModel(servers[1], world.reward_texts, room=_ROOM)
        yield _Woken(_Searcher(name, world, policy, reward_model), servers)


def _loop(world: _World, peer: peers.Peer) -> _Searcher:
    """One sample, one score after the other, each from the first token on."""
    turn = threading.Lock()
    policy_window, reward_window = Window(_ROOM - world.work["new"]), Window(_ROOM)

    def ask_in_turn(question: dict[str, Any]) -> dict[str, Any]:
        with turn:
            return peer.ask(one_by_one=True, **question)

    async def ask(**question: Any) -> dict[str, Any]:
        return await asyncio.to_thread(ask_in_turn, question)

    class Proposing:
        async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
            path = policy_window.path(world.policy_texts.history(state)).tolist()
            new = world.work["new"]
            answer = await ask(do="generate", paths=[path], n=n, new=new, temperature=temperature)
            return actions(world.policy_texts, answer["tokens"])

    class Scoring:
        async def score(self, states: Sequence[State]) -> list[float]:
            paths = [reward_window.path(world.reward_texts.turn(state)).tolist() for state in states]
            return (await ask(do="score", paths=paths))["values"]

    return _Searcher(_LOOP, world, Proposing(), Scoring())
