"""Environments in an actor: what a search sees is what a pool beside it would give, also when the actor is lost on the way."""

import asyncio
import functools
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'agentrm-jax[ray]'")

from agentrm_jax.cluster import nodes  # noqa: E402
from agentrm_jax.cluster.environments import Pool, RemoteEnvironments  # noqa: E402
from agentrm_jax.testing.inline import InlineEnvironments  # noqa: E402
from agentrm_jax.testing.scripted import turn  # noqa: E402
from agentrm_jax.testing.toy_env import SPEC, make_task  # noqa: E402
from agentrm_jax.types import EnvironmentFault, Outcome, State, UserError, trajectory_of  # noqa: E402

TASK = make_task(4)


class Handle:
    """What Ray gives of an actor `Pool`, in this process; `lost` once its node is dead."""

    def __init__(self, folder: str):
        self.pool = Pool(folder, {"agentrm_jax.testing.toy_env": {}}, 1, 10.0)
        self.lost = False
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = functools.partial(self._call, name)

        return Method

    async def _call(self, name: str, *arguments: Any) -> Any:
        self.asked.append(name)
        if self.lost:
            raise ray.exceptions.RayActorError
        return await getattr(self.pool, name)(*arguments)


@pytest.fixture
def started(tmp_path, monkeypatch) -> list[Handle]:
    monkeypatch.setattr(nodes, "PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    return []


@pytest.fixture
def remote(started, tmp_path) -> RemoteEnvironments:
    def start() -> Handle:
        started.append(Handle(str(tmp_path)))
        return started[-1]

    return RemoteEnvironments(start)


async def close(started: list[Handle]) -> None:
    for handle in started:
        await handle.pool._pool.close()


async def walk(envs: Any, state: State, letters: str) -> State:
    for letter in letters:
        state = await envs.step(state, turn(letter))
    return state


def test_steps_are_those_of_environments_in_this_process(remote, started):
    async def go() -> None:
        here = InlineEnvironments(SPEC)
        ends = []
        for envs in (here, remote):
            trunk = await walk(envs, await envs.reset(TASK), "ab")
            ends.append([trajectory_of(await walk(envs, trunk, word)) for word in ("ca", "cb", "aa")])
        assert ends[0] == ends[1]
        await close(started)

    asyncio.run(go())
    assert len(started) == 1


def test_a_lost_actor_is_replaced_and_goes_on_where_the_episode_was(remote, started):
    async def go() -> None:
        trunk = await walk(remote, await remote.reset(TASK), "ab")
        started[0].lost = True
        ends = await asyncio.gather(*(walk(remote, trunk, word) for word in ("ca", "cb")))
        assert [end.outcome.observation for end in ends] == [
            'Observation: The word is "abca".',
            'Observation: The word is "abcb".',
        ]
        assert all(end.done for end in ends)
        await close(started)

    asyncio.run(go())
    assert len(started) == 2  # both episodes noticed, and one replaced it


def test_a_replay_that_goes_another_way_is_a_fault_and_no_other_episode(remote, started):
    """The past that a new actor replays is compared with what was recorded."""

    async def go() -> None:
        root = await remote.reset(TASK)
        after = await remote.step(root, turn("a"))
        forged = State(
            TASK,
            root.goal,
            root,
            after.action,
            Outcome('Observation: The word is "c".', 0.0, 0.25, parsed="a"),
            1,
            after.key,
        )
        started[0].lost = True
        with pytest.raises(EnvironmentFault, match="diverged"):
            await remote.step(forged, turn("b"))
        await close(started)

    asyncio.run(go())


def test_an_engine_whose_environments_are_lost_again_and_again_is_for_others_to_replace(remote, started, monkeypatch):
    monkeypatch.setattr(Handle, "_call", _gone)

    async def go() -> None:
        with pytest.raises(nodes.NoRoom, match="were lost 8 times"):
            await remote.reset(TASK)
        await close(started)

    asyncio.run(go())


async def _gone(self: Handle, name: str, *arguments: Any) -> None:
    raise ray.exceptions.RayActorError


def test_environments_that_find_no_node_are_waited_for_so_long(remote, started, monkeypatch):
    monkeypatch.setattr(nodes, "PATIENCE", 0.01)
    monkeypatch.setattr(Handle, "_call", _pending)

    async def go() -> None:
        with pytest.raises(nodes.NoRoom, match="no node has CPUs left"):
            await remote.ready()
        await close(started)

    asyncio.run(go())


async def _pending(self: Handle, name: str, *arguments: Any) -> None:
    await asyncio.sleep(60)


def test_a_node_that_does_not_see_the_folder_says_so():
    with pytest.raises(UserError, match=r"does not see /nowhere/at/all .*on a disk that all nodes see"):
        nodes.enter("/nowhere/at/all")
