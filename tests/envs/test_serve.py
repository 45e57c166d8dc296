"""Every environment behind our server is, for our clients, the environment itself; and so it is for OpenEnv's own client."""

import asyncio
import contextlib
import dataclasses

import pytest

from agentrm_jax.envs.agentgym.kinds import KINDS
from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.replies import render_action
from agentrm_jax.testing.demonstrated import LIGHT, NONSENSE, demonstrations, is_installed
from agentrm_jax.testing.served import served
from agentrm_jax.types import Action

ENVIRONMENTS = [name for name in names() if find(name).expert is not None]
# The kinds of AgentGym's servers that an environment stands in for. Those that say `env_idx` have one text for goal and observation.
OF_KIND = {
    **{name: name for name in ("alfworld", "babyai", "maze", "sciworld", "webshop")},
    "tool_query": "weather",
    "tool_operation": "todo",
}


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def playing(request):
    """(name, server, its options, demonstrations of two tasks with their numbers, what they are at home)."""
    name = request.param
    if not is_installed(name):
        pytest.skip(f"the engine of {name} is not installed")
    options = LIGHT.get(name, {})
    tasks = list(find(name).tasks("test", options))
    shown = demonstrations(name, 2, options=options)
    numbers = [[t.id for t in tasks].index(d.task.id) for d in shown]
    turns = [episode(d.commands) for d in shown]
    home = [play({name: options}, d.task, t) for d, t in zip(shown, turns, strict=True)]
    with served(name, options, sessions=8) as server:
        yield name, server, [d.task for d in shown], numbers, turns, home


def episode(commands):
    """What the expert does, with nonsense and a turn without a command on the way."""
    turns = [render_action("as planned", command) for command in commands]
    return [*turns[:1], f"Action: {NONSENSE}", *turns[1:]]


def play(pools, task, turns):
    """States of an episode, up to its end or that of the turns."""

    async def go():
        async with EnvironmentPool(pools, 1, 60.0, retries=1) as pool:
            states = [await pool.reset(task)]
            for turn in turns:
                if states[-1].done:
                    break
                states.append(await pool.step(states[-1], Action(turn)))
            return states, pool.stats

    states, stats = asyncio.run(go())
    assert (stats.faults, stats.failed) == (0, 0)
    return states


def seen(states, prefix="Observation: "):
    return [
        (s.outcome.observation.removeprefix(prefix), s.outcome.reward, s.outcome.done, s.outcome.success)
        for s in states
    ]


def kinds(name):
    return ["custom", *([OF_KIND[name]] if name in OF_KIND else [])]


def test_our_agentgym_client_sees_what_is_seen_at_home(playing):
    name, server, tasks, numbers, turns, home = playing
    prefix = find(name).observation_prefix
    for kind in kinds(name):
        options = {"base_url": server.url, "kind": kind, "rules": "", "max_steps": 1000}
        for task, number, written, local in zip(tasks, numbers, turns, home, strict=True):
            far = dataclasses.replace(task, env="agentgym", args={"index": number})
            states = play({"agentgym": options}, far, written)
            local_seen, far_seen = seen(local, prefix), seen(states)
            assert far_seen[1:] == local_seen[1:], (kind, task.id)
            start = states[0]
            if KINDS[kind].dialect.env_field == "id":
                assert (start.goal, far_seen[0]) == (local[0].goal, local_seen[0])
            else:
                assert local[0].goal in start.outcome.observation
                assert local_seen[0][0] in start.outcome.observation


def test_our_openenv_client_sees_what_is_seen_at_home(playing):
    name, server, tasks, _, turns, home = playing
    prefix = find(name).observation_prefix
    options = {"base_url": server.url, "max_steps": 1000}
    for task, written, local in zip(tasks, turns, home, strict=True):
        far = dataclasses.replace(task, env="openenv", args={"seed": 0})
        chosen = {**options, "worth_field": "worth", "reset": {"task": task.id}}
        states = play({"openenv": chosen}, far, written)
        assert states[0].goal == local[0].goal
        assert seen(states) == seen(local, prefix)
        summed = play({"openenv": {**options, "reset": {"task": task.id}}}, far, written)
        assert [s.outcome.reward for s in summed] == pytest.approx([s.outcome.reward for s in local], abs=1e-9)


def test_openenvs_own_client_sees_what_is_seen_at_home(playing):
    core = pytest.importorskip("openenv.core", reason="the package openenv is not installed")
    name, server, tasks, numbers, turns, home = playing
    prefix = find(name).observation_prefix
    client = core.GenericEnvClient(base_url=server.url).sync()
    with contextlib.closing(client), client:
        for task, number, written, local in zip(tasks, numbers, turns, home, strict=True):
            result = client.reset(index=number, episode_id="one")
            assert result.observation["goal"] == local[0].goal
            results = [result]
            for turn in written[: len(local) - 1]:
                results.append(client.step({"message": turn}))
            assert [
                (r.observation["text"], r.observation["worth"], r.done, r.observation["success"]) for r in results
            ] == seen(local, prefix)
            assert sum(r.reward for r in results[1:]) == pytest.approx(local[-1].outcome.reward, abs=1e-9)
            state = client.state()
            assert (state["episode_id"], state["step_count"], state["task"]) == ("one", len(local) - 1, task.id)
