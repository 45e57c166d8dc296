"""Our OpenEnv client: against servers made with the package `openenv`, and against one that misbehaves."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from agentrm_jax.envs.openenv import environment as openenv
from agentrm_jax.envs.openenv.environment import ConnectionLost, ServerError
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.websocket import WebSocket, accepted
from agentrm_jax.testing.served import served
from agentrm_jax.types import Action, EnvironmentFault, UserError

TOY = "agentrm_jax.testing.toy_env"


def task(seed=0, **options):
    return next(t for t in openenv.tasks("test", {"seeds": "0-9", **options}) if t.args["seed"] == seed)


def play(url, commands, seed=2, **options):
    env = openenv.make({"base_url": url, "timeout": 5.0, "patience": 0.0, **options})
    try:
        start = env.reset(task(seed))
        return start, [env.step(command) for command in commands]
    finally:
        env.close()


# The package's own server


@pytest.fixture(scope="module")
def counting():
    """The address of a counting game behind OpenEnv's server: its seed is the target, a step up is paid with 1 / target."""
    server = pytest.importorskip("openenv.core.env_server", reason="the package openenv is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    types = pytest.importorskip("openenv.core.env_server.types")

    class Move(types.Action):
        move: str

    class Seen(types.Observation):
        message: str
        count: int

    class Counting(server.Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self):
            super().__init__()
            self.target = self.count = 0

        def reset(self, seed=None, episode_id=None, **_):
            self.target, self.count = seed or 1, 0
            return Seen(message=f"Count to {self.target}.", count=0)

        def step(self, action, timeout_s=None, **_):
            if action.move == "raise":
                raise RuntimeError("told to fail")
            up = action.move == "up"
            self.count += up
            done = self.count == self.target
            return Seen(message=f"You are at {self.count}.", count=self.count, done=done, reward=up / self.target)

        @property
        def state(self):
            return types.State(step_count=self.count)

    app = server.create_fastapi_app(Counting, Move, Seen, max_concurrent_envs=8)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join()


def test_an_episode_on_openenvs_own_server(counting):
    start, steps = play(counting, ["up", "stay", "up"])
    assert (start.goal, start.observation) == ("Count to 2.", "Count to 2.")
    assert [s.observation for s in steps] == ["You are at 1.", "You are at 1.", "You are at 2."]
    assert [(s.reward, s.progress, s.over) for s in steps] == [(0.5, 0.5, False), (0.5, 0.5, False), (1.0, 1.0, True)]


def test_what_is_read_of_an_observation_can_be_said(counting):
    start, steps = play(counting, ["up"], worth_field="count", full_reward=4, goal="count", rules="Say up.")
    assert (start.goal, start.observation) == ("count", "Say up.\n\nCount to 2.")
    assert steps[0].reward == 0.25
    with pytest.raises(UserError, match="text_field=count: no text of that name among metadata, message, count"):
        play(counting, [], text_field="count")
    with pytest.raises(UserError, match=r"gave rewards of 1 in all, above 0\.5; set option full_reward"):
        play(counting, ["up", "up"], full_reward=0.5)


def test_an_error_of_its_environment_is_told(counting):
    with pytest.raises(ServerError, match="reports an error: told to fail"):
        play(counting, ["raise"])
    with pytest.raises(ServerError, match="reports an error: Invalid message"):
        play(counting, ["up"], action_field="step")


def test_a_pool_plays_many_episodes_on_it_and_goes_back(counting):
    async def one(pool, seed):
        root = await pool.reset(task(seed))
        first = await pool.step(root, Action("Action: up"))
        other = await pool.step(root, Action("Action: stay"))  # an earlier state, by replay in a session of its own
        state = first
        while not state.done:
            state = await pool.step(state, Action("Action: up"))
        return other.outcome.observation, state.outcome.reward, state.depth

    async def go():
        known = {"base_url": counting, "seeds": "0-9"}
        async with EnvironmentPool({"openenv": known}, workers=2, step_timeout=20.0, live=2) as pool:
            return await asyncio.gather(*(one(pool, seed) for seed in (2, 3, 4))), pool.stats

    found, stats = asyncio.run(go())
    assert [(text, depth) for text, _, depth in found] == [("Observation: You are at 0.", n) for n in (2, 3, 4)]
    assert [reward for _, reward, _ in found] == pytest.approx([1.0] * 3)
    assert (stats.failed, stats.faults) == (0, 0)


# A server that misbehaves


class Misbehaving:
    """Counts as the game above, and answers its `bad` step in other ways; `once` clears that."""

    def __init__(self):
        self.bad, self.once, self.sessions = "", True, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.sockets, self.threads = [], []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listening.accept()
                self.sockets.append(sock)
                self.threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
                self.threads[-1].start()

    def _serve(self, sock):
        with contextlib.suppress(Exception), sock, sock.makefile("rb") as read:
            key = ""
            while line := read.readline().decode().strip():
                key = line.partition(": ")[2] if line.startswith("Sec-WebSocket-Key") else key
            head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            sock.sendall(f"{head}Sec-WebSocket-Accept: {accepted(key)}\r\n\r\n".encode())
            self.sessions += 1
            talk, count = WebSocket(sock, read, client=False, limit=10_000), 0
            while (message := talk.receive()) is not None:
                message = json.loads(message)
                if message["type"] == "step" and self.bad:
                    kind, self.bad = self.bad, "" if self.once else self.bad
                    if kind == "hang":
                        time.sleep(3.0)
                    if kind in ("hang", "drop"):
                        return
                    talk.send(kind)
                    continue
                count += message["type"] == "step" and message["data"]["move"] == "up"
                seen = {"observation": {"message": f"You are at {count}."}, "reward": 0.0, "done": count == 2}
                talk.send(json.dumps({"type": "observation", "data": seen}))

    def close(self):
        for sock in (self.listening, *self.sockets):  # a thread that waits at one is woken
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def server():
    found = Misbehaving()
    yield found
    found.close()


FAULTS = {
    "hang": ConnectionLost,
    "drop": ConnectionLost,
    "no JSON": ServerError,
    "[]": ServerError,
    '{"type": "observation", "data": {}}': ServerError,
    '{"type": "error", "data": {"message": "out of order"}}': ServerError,
    '{"type": "observation", "data": {"observation": {"message": ""}, "reward": NaN, "done": false}}': ServerError,
    '{"type": "observation", "data": {"observation": {"message": ""}, "reward": 0}}': ServerError,
}
FIELDS = {"action_field": "move"}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_in_a_step_is_a_server_error(server, fault):
    server.bad = fault
    with pytest.raises(FAULTS[fault], match=r"ws://127\.0\.0\.1:\d+"):
        play(server.url, ["up"], timeout=0.5, **FIELDS)


@pytest.mark.parametrize("fault", FAULTS)
def test_it_costs_its_step_a_replay(server, fault):
    async def go():
        known = {"base_url": server.url, "seeds": "0-9", "timeout": 0.5, **FIELDS}
        async with EnvironmentPool({"openenv": known}, workers=1, step_timeout=20.0) as pool:
            state = await pool.step(await pool.reset(task()), Action("Action: up"))
            server.bad = fault
            return await pool.step(state, Action("Action: up")), pool.stats

    state, stats = asyncio.run(go())
    assert (state.outcome.observation, state.done) == ("Observation: You are at 2.", True)
    assert (stats.faults, stats.failed, stats.replayed_steps, server.sessions) == (1, 0, 1, 2)


def test_a_server_that_keeps_failing_fails_its_own_episode_only(server):
    server.bad, server.once = '{"type": "error", "data": {"message": "out of order"}}', False

    async def go():
        known = {"base_url": server.url, "seeds": "0-9", **FIELDS}
        async with EnvironmentPool({"openenv": known, TOY: {}}, workers=1, step_timeout=20.0) as pool:
            from agentrm_jax.testing.toy_env import make_task

            state = await pool.reset(task())
            with pytest.raises(EnvironmentFault, match="reports an error: out of order"):
                await pool.step(state, Action("Action: up"))
            return await pool.reset(make_task())

    assert asyncio.run(go()).outcome.observation == 'The word is "".'


def test_a_dead_server_is_named_and_one_that_was_never_there_is_the_users_mistake(server):
    env = openenv.make({"base_url": server.url, "patience": 0.3, **FIELDS})
    env.reset(task())
    server.close()
    with pytest.raises(ConnectionLost, match=r"cannot be reached: .* \(\d tries\)"):
        env.reset(task())
    env.close()
    with pytest.raises(UserError, match="start the OpenEnv server, or correct option base_url"):
        play("http://127.0.0.1:9", [], **FIELDS)


# What the user can mend


def test_options_are_checked(server):
    for url in ("", "127.0.0.1:8000", "ftp://x"):
        with pytest.raises(UserError, match="base_url must look like http"):
            openenv.make({"base_url": url})
    with pytest.raises(UserError, match="seeds names no tasks of split 'train'"):
        openenv.tasks("train", {"seeds": 3})
    with pytest.raises(UserError, match="seeds cannot be read"):
        openenv.tasks("test", {"seeds": "a-b"})
    with pytest.raises(UserError, match="option timeout must be a number above 0"):
        openenv.make({"base_url": "http://x", "timeout": 0})
    with pytest.raises(UserError, match="option patience must be a number of at least 0"):
        play("http://127.0.0.1:9", [], action_field="x", patience=-1)
    with pytest.raises(UserError, match="option reset must be an object"):
        play(server.url, [], reset="x", action_field="x")


def test_the_field_of_an_action_is_found_in_the_schema():
    with served(TOY, {}) as server:
        start, steps = play(server.url + "/", ["b", "b", "b"], seed=0, worth_field="worth")
        assert (start.goal, steps[-1].reward, steps[-1].over) == ("Write the best word of 3 letters.", 0.965, True)
        with pytest.raises(UserError, match="an action has the fields message; set option action_field"):
            play(server.url, [], action={"message": "x"})
