"""The AgentGym client on a bad network, and with servers that are restarted."""

import asyncio
import dataclasses
import random
import socket
import threading
import time
import urllib.parse

import pytest

from agentrm_jax.envs.agentgym import environment as agentgym
from agentrm_jax.envs.agentgym.http import ConnectionLost
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.types import Action, EnvironmentFault
from tests.envs.agentgym_server import options, task


def play_all(server, episodes, length, **more):
    """Episodes that count to `length`, all at once through two workers: last outcomes, and what the pool did."""

    async def one(pool, chosen):
        state = await pool.reset(chosen)
        for _ in range(length):
            state = await pool.step(state, Action("Action: up"))
        return state.outcome

    async def go():
        known = {"base_url": server.url, "kind": "custom", "indices": "0-99", "timeout": 5.0, **more}
        async with EnvironmentPool({"agentgym": known}, workers=2, step_timeout=30.0) as pool:
            chosen = [
                dataclasses.replace(task(length % 10), id=f"n{i}", args={"index": length}) for i in range(episodes)
            ]
            return await asyncio.gather(*(one(pool, t) for t in chosen)), pool.stats

    return asyncio.run(go())


@pytest.mark.parametrize("how", ["crash", "drop", "busy", "late"])
def test_no_episode_is_lost_where_one_request_in_seven_fails(serve, how):
    """Before the server does anything, or (late) after it: then the answer is lost, and the step executed."""
    server = serve()
    rng, lock, failed = random.Random(7), threading.Lock(), []

    def misbehave(handler, path):
        with lock:
            if path == "/close" or rng.random() >= 1 / 7:
                return None
            failed.append(path)
        if how == "late":
            server.play(urllib.parse.urlsplit(handler.path), handler.body)
        if how in ("drop", "late"):
            handler.connection.shutdown(socket.SHUT_RDWR)
            return 0, None
        return (500, "Internal Server Error") if how == "crash" else (503, b"<html>later</html>")

    server.misbehave = misbehave
    outcomes, stats = play_all(server, 16, 6)
    assert {(o.observation, o.success, o.done) for o in outcomes} == {("Observation: You are at 6.", True, True)}
    assert stats.failed == 0
    assert len(failed) > 16


@pytest.mark.parametrize("restarted", [False, True], ids=["the network was away", "the server was restarted"])
def test_no_episode_is_lost_where_the_server_is_gone_for_three_seconds(serve, restarted):
    server = serve(lists=True)
    plain, away, known = server.misbehave, [], set()

    def misbehave(handler, path):
        env = (handler.body or {}).get(server.style.env_field)
        if path == "/step" and not away:
            away.append(time.monotonic())
            known.update(
                server.envs
            )  # who asks for one of these finds the server gone at least once, however slow this machine is
            if restarted:
                server.envs.clear()
                server.next_id = 7
        since = time.monotonic() - away[0] if away else 0.0
        if away and (since < 3.0 or (known and since < 40.0)):
            known.discard(env)
            handler.connection.shutdown(socket.SHUT_RDWR)
            return 0, None
        return plain(handler, path)

    server.misbehave = misbehave
    outcomes, stats = play_all(server, 8, 3)
    assert {(o.observation, o.success) for o in outcomes} == {("Observation: You are at 3.", True)}
    assert stats.failed == 0


def test_a_request_that_waits_for_its_next_try_ends_with_the_pool(serve):
    server = serve(bad="drop", forever=True)

    async def go():
        pool = EnvironmentPool({"agentgym": options(server)}, workers=1)
        step = asyncio.ensure_future(pool.step(await pool.reset(task()), Action("Action: up")))
        while not pool.stats.faults:
            await asyncio.sleep(0.01)
        await pool.close()
        await step

    with pytest.raises(EnvironmentFault, match="the pool was closed"):
        asyncio.run(go())


def test_ids_that_begin_anew_after_an_outage_are_no_sign_of_a_full_server(serve):
    """A server without a list of environments: ids are the only sign."""
    server = serve()
    first = agentgym.make(options(server))
    first.reset(task())
    server.envs.clear()
    server.next_id, server.style.bad = 7, "drop"
    with pytest.raises(ConnectionLost, match="connection was lost"):
        first.step("up")
    second = agentgym.make(options(server))
    second.reset(task())
    with pytest.raises(ConnectionLost, match="was started anew and lost environment 7"):
        first.step("up")
    first.close()
    assert second.step("up").observation == "You are at 1."


def test_a_server_that_stays_away_is_named_as_such_with_what_was_tried(serve):
    server = serve()
    env = agentgym.make(options(server, patience=0.5))
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(
        ConnectionLost, match=r"cannot be reached: .*refused"
    ):  # at once: when it is back, it may be another's
        env.reset(task())
    # And it is no wrong address: it was there before.
    with pytest.raises(ConnectionLost, match=r"cannot be reached: .*refused.*, \d times within 0\.\d s"):
        agentgym.make(options(server, patience=0.5))
