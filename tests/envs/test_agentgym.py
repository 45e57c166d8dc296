"""The AgentGym client against a small server of our own on loopback, which can misbehave in all the ways theirs do."""

import asyncio
import dataclasses
import http.server
import json
import random
import socket
import threading
import time
import urllib.parse

import pytest

from agentrm_jax.envs.agentgym import environment as agentgym
from agentrm_jax.envs.agentgym.http import ConnectionLost, ServerError
from agentrm_jax.envs.agentgym.kinds import KINDS, sent
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.types import Action, EnvironmentFault, UserError


@dataclasses.dataclass
class Style:
    """How the server speaks, and what goes wrong (a `bad` answer is given once, then it is cleared)."""

    env_field: str = "id"
    index_field: str = "data_idx"
    bare_id: bool = False
    text_key: str = "observation"
    reward_key: str = "reward"
    full: float = 1.0
    failure: float = 0.0
    done_key: str = "done"
    reset_answer: str = "dict"
    lists: bool = False
    full_up: bool = False
    bad: str = ""
    forever: bool = False
    extra: frozenset = frozenset()


class Server:
    """A counting game: `up` counts to the task's index, `down` fails for good."""

    def __init__(self, style):
        self.style, self.envs, self.requests, self.next_id = style, {}, [], 7
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self, None)

            def do_POST(self):
                outer.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.one_at_a_time = threading.Lock()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler, body):
        url = urllib.parse.urlsplit(handler.path)
        self.requests.append((url.path, body))
        handler.body = body
        answer = self.misbehave(handler, url.path)
        if answer is None:
            with self.one_at_a_time:
                answer = self.play(url, body)
        status, payload = answer
        if status:
            data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

    def misbehave(self, handler, path):
        kind, _, where = self.style.bad.partition("@")
        if not kind or path != (where or "/step"):
            return None
        if not self.style.forever:
            self.style.bad = ""
        if kind == "hang":
            time.sleep(3.0)
            return 0, None
        if kind == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return 0, None
        if kind == "forget":
            self.envs.clear()
            return None
        answers = {
            "error": (200, {"error": "list index out of range"}),
            "html": (200, b"<html>gateway</html>"),
            "crash": (500, "Internal Server Error"),
            "busy": (503, "later"),
            "null": (200, None),
            "textless": (200, {"reward": 0, "done": False}),
            "endless": (200, {"observation": "x", "reward": 0}),
            "rewardless": (200, {"observation": "x", "done": False}),
            "nan": (200, b'{"observation": "x", "reward": NaN, "done": false}'),
            "generous": (200, {"observation": "x", "reward": 7, "done": False}),
            "strange": (422, {"detail": "field required"}),
            "gone": (404, {"detail": "Not Found"}),
        }
        return answers[kind]

    def play(self, url, body):
        style = self.style
        if url.path == "/create":
            if not style.full_up:
                self.envs[self.next_id] = None
                self.next_id += 1
            made = max(self.envs)
            return 200, made if style.bare_id else {"id": made}
        if url.path == "/list_envs":
            return (200, list(self.envs)) if style.lists else (404, {"detail": "Not Found"})
        query = urllib.parse.parse_qs(url.query)
        fields = body if body is not None else {k: int(v[0]) for k, v in query.items()}
        env = fields[style.env_field]
        if env not in self.envs:
            return 200, {"error": f"The id {env} is not valid."}
        if url.path == "/close":
            del self.envs[env]
            return 200, True
        if url.path == "/reset":
            assert style.extra <= fields.keys()
            self.envs[env] = [fields[style.index_field], 0]
            first = self.text(env, True)
            answers = {"text": first, "list": [first, None], "empty": None, "dict": {style.text_key: first}}
            return 200, answers[style.reset_answer]
        if url.path == "/observation":
            return 200, self.text(env, True)
        return 200, self.step(env, fields["action"])

    def step(self, env, action):
        target, count = self.envs[env]
        count += action == "up"
        self.envs[env] = [target, count]
        failed, style = action == "down", self.style
        reward = style.failure if failed else style.full * (count == target)
        text = self.text(env, False)
        return {style.text_key: text, style.reward_key: reward, style.done_key: failed or count == target}

    def text(self, env, first):
        target, count = self.envs[env]
        return f"Your goal: count to {target}.\nYou are at {count}." if first else f"You are at {count}."


@pytest.fixture
def serve():
    servers = []

    def start(**style):
        servers.append(Server(Style(**style)))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def options(server, **more):
    timeout = 1.0 if "hang" in server.style.bad else 10.0
    return {"base_url": server.url, "kind": "custom", "indices": "2-4", "timeout": timeout, "patience": 0.0, **more}


def task(index=2, **more):
    return next(
        t for t in agentgym.tasks("test", {"kind": "custom", "indices": "0-9", **more}) if t.args["index"] == index
    )


def play(env, commands, index=2):
    start = env.reset(task(index))
    return start, [env.step(command) for command in commands]


def through_pool(server, run, **more):
    async def go():
        async with EnvironmentPool({"agentgym": options(server, **more)}, workers=1, step_timeout=20.0) as pool:
            return await run(pool), pool.stats

    return asyncio.run(go())


async def count_up(pool, turns=2, index=2):
    state = await pool.reset(task(index))
    for _ in range(turns):
        state = await pool.step(state, Action("Thought: more\nAction: up"))
    return state


# Speaking the protocol

STYLES = {
    "custom": {},
    "alfworld": {"index_field": "game", "extra": frozenset({"world_type"})},
    "webshop": {
        "env_field": "env_idx",
        "index_field": "session_id",
        "bare_id": True,
        "text_key": "state",
        "reset_answer": "list",
        "lists": True,
    },
    "weather": {"env_field": "env_idx", "index_field": "id", "bare_id": True, "reset_answer": "text", "lists": True},
    "wordle": {"index_field": "seed"},
    "maze": {"index_field": "game", "reset_answer": "empty"},
    "sciworld": {"reward_key": "score", "full": 100, "failure": -100},
    "webarena": {"env_field": "env_idx", "index_field": "idx", "done_key": "terminated", "extra": frozenset({"seed"})},
}


@pytest.mark.parametrize("kind", STYLES)
def test_every_spelling_of_the_protocol_is_the_same_game(serve, kind, monkeypatch):
    server = serve(**STYLES[kind])
    monkeypatch.setattr("agentrm_jax.envs.agentgym.environment.sent", lambda kind, command: command)
    env = agentgym.make(options(server, kind=kind))
    start, steps = play(env, ["up", "stay", "up"])
    assert start.observation.endswith("Your goal: count to 2.\nYou are at 0.")
    assert start.goal == (KINDS[kind].goal or "count to 2.")
    assert [s.observation for s in steps] == ["You are at 1.", "You are at 1.", "You are at 2."]
    assert [(s.reward, s.progress, s.over) for s in steps] == [(0, 0, False), (0, 0, False), (1, 1, True)]
    assert play(env, ["up"], index=1)[1][0].over  # the next episode uses the same environment
    env.close()
    assert server.envs == {}
    assert [r[0] for r in server.requests].count("/create") == 1


def test_the_rules_come_before_the_first_observation_and_can_be_replaced(serve):
    server = serve()
    assert play(agentgym.make(options(server)), [])[0].observation.startswith("Your goal")
    start, _ = play(agentgym.make(options(server, rules="Say up or down.")), [])
    assert start.observation == "Say up or down.\n\nYour goal: count to 2.\nYou are at 0."


def test_field_names_and_the_full_reward_can_be_set(serve):
    server = serve(env_field="e", index_field="i", reward_key="points", full=50)
    fields = {"env_field": "e", "index_field": "i", "reward_field": "points", "full_reward": 50}
    assert play(agentgym.make(options(server, **fields)), ["up", "up"])[1][-1].reward == 1.0


def test_a_failure_below_zero_is_reward_zero_and_not_success(serve):
    server = serve(reward_key="score", full=100, failure=-100)
    (step,) = play(agentgym.make(options(server, kind="sciworld")), ["down"])[1]
    assert (step.reward, step.progress, step.over) == (0.0, 0.0, True)


def test_how_commands_are_sent():
    assert sent(KINDS["webshop"], "click[Buy Now]\nand then I wait") == "click[Buy Now]"
    assert sent(KINDS["sqlgym"], "SELECT 1\nFROM t") == "SELECT 1\nFROM t"
    assert sent(KINDS["webarena"], "click [12]") == "```click [12]```"
    call = 'get_x with Action Input: {"flag": true, "name": "it\'s"}'
    assert sent(KINDS["weather"], call) == "Action: get_x with Action Input: {'flag': True, 'name': \"it's\"}"
    assert sent(KINDS["weather"], "?!") == "Action: ?!"


# Misbehaviour

FAULTS = ["hang", "drop", "error", "html", "crash", "null", "textless", "endless", "rewardless", "nan", "forget"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_in_a_step_is_a_server_error(serve, fault):
    server = serve(bad=fault)
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:\d+/step"):
        play(agentgym.make(options(server)), ["up"])


@pytest.mark.parametrize("fault", FAULTS)
def test_the_pool_replays_the_episode_in_another_environment(serve, fault):
    server = serve()
    timeout = 1.0 if fault == "hang" else 10.0

    async def run(pool):
        state = await count_up(pool, 1)
        server.style.bad = fault
        return await pool.step(state, Action("Action: up"))

    state, stats = through_pool(server, run, timeout=timeout)
    assert (state.outcome.observation, state.outcome.success) == ("Observation: You are at 2.", True)
    assert (stats.faults, stats.failed, stats.replayed_steps) == (1, 0, 1)
    assert [r[0] for r in server.requests].count("/create") == 2


def test_a_step_is_never_sent_twice_unless_it_was_turned_away(serve):
    server = serve(bad="drop")
    with pytest.raises(ServerError, match="connection was lost"):
        play(agentgym.make(options(server)), ["up"])
    assert [r[0] for r in server.requests].count("/step") == 1
    server = serve(bad="busy")
    assert play(agentgym.make(options(server)), ["up"])[1][0].observation == "You are at 1."


def test_a_server_that_keeps_failing_is_an_environment_fault_that_says_why(serve):
    server = serve(bad="error", forever=True)
    with pytest.raises(EnvironmentFault, match="/step reports an error: list index out of range"):
        through_pool(server, count_up)


def test_an_environment_that_somebody_else_uses_is_refused(serve):
    server = serve(lists=True, bare_id=True)
    server.envs[3] = None
    first = agentgym.make(options(server))
    server.style.full_up = True
    with pytest.raises(ServerError, match=r"handed out environment 7, which is already in use: it is full"):
        agentgym.make(options(server))
    assert 7 in server.envs  # and it is not closed under its user's feet
    assert play(first, ["up"])[1][0].observation == "You are at 1."


def test_the_same_id_twice_is_noticed_without_a_list_of_environments_too(serve):
    server = serve()
    first = agentgym.make(options(server))
    server.style.full_up = True
    with pytest.raises(ServerError, match="already in use"):
        agentgym.make(options(server))
    first.close()


def test_a_reset_answered_for_another_environment_is_refused(serve):
    server = serve()
    env = agentgym.make(options(server))
    real = server.play
    server.play = lambda url, body: (200, {"id": 99, "observation": "x"}) if url.path == "/reset" else real(url, body)
    with pytest.raises(ServerError, match="answered for environment 99 instead of 7"):
        env.reset(task())


# A bad network


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
        if away and (since < 3.0 or (known and since < 15.0)):
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
    with pytest.raises(ConnectionLost, match=r"cannot be reached: .*refused.*, \d times within 0\.\d s"):
        env.reset(task())
    with pytest.raises(ConnectionLost, match="cannot be reached"):  # and it is no wrong address: it was there before
        agentgym.make(options(server))


# What the user can mend


def test_wrong_addresses_and_kinds_are_named(serve):
    server = serve(bad="gone@/create")
    with pytest.raises(UserError, match=r"/create answers 404 .*check the options base_url and kind"):
        agentgym.make(options(server))
    server = serve(bad="strange@/reset")
    with pytest.raises(UserError, match=r"/reset answers 422 .*field required"):
        agentgym.make(options(server)).reset(task())
    with pytest.raises(
        UserError, match=r"cannot be reached: .*; start the AgentGym server, or correct option base_url"
    ):
        agentgym.make({"base_url": "http://127.0.0.1:9", "kind": "custom", "patience": 0})
    with pytest.raises(UserError, match="must look like http"):
        agentgym.make({"base_url": "127.0.0.1:36001", "kind": "custom"})
    with pytest.raises(UserError, match="base_url is missing"):
        agentgym.make({"kind": "custom"})


def test_a_reward_above_the_full_one_is_not_clipped_in_silence(serve):
    server = serve(bad="generous")
    with pytest.raises(UserError, match="reward of 7, above 1; set option full_reward"):
        play(agentgym.make(options(server)), ["up"])


def test_a_server_that_is_not_up_yet_is_waited_for():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        agentgym.make({"base_url": f"http://127.0.0.1:{port}", "kind": "custom", "patience": 0.3})
    assert time.monotonic() - begin >= 0.3


# Tasks


def test_tasks_are_named_by_numbers_ranges_and_files(tmp_path):
    def indices(value, split="test"):
        return [t.args["index"] for t in agentgym.tasks(split, {"kind": "webshop", "indices": value})]

    assert indices(3) == [0, 1, 2]
    assert indices("4,0-2,1") == [4, 0, 1, 2]
    assert indices([5, 7]) == [5, 7]
    assert indices({"train": "8-9", "test": 1}, "train") == [8, 9]
    rows = [{"conversations": None, "item_id": "webshop_12"}, {"item_id": "lmrlgym_maze_3"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert indices(str(tmp_path / "a.json")) == indices(str(tmp_path / "b.jsonl")) == [12, 3]
    for split, value in [("train", "0-9"), ("test", None), ("test", {"train": "0"})]:
        with pytest.raises(UserError, match="names no tasks of split"):
            indices(value, split)
    for wrong in ["a-b", str(tmp_path / "none.json"), [None]]:
        with pytest.raises(UserError, match="option indices cannot be read"):
            indices(wrong)


def test_tasks_know_their_step_limit_and_wrong_options_are_named():
    assert task().max_steps == 30
    assert agentgym.tasks("test", {"kind": "webshop", "indices": 1})[0].max_steps == 10
    assert agentgym.tasks("test", {"kind": "webshop", "indices": 1, "max_steps": 6})[0].max_steps == 6
    with pytest.raises(UserError, match="option kind must be one of webshop, alfworld"):
        agentgym.tasks("test", {"kind": "shop", "indices": 1})
    with pytest.raises(UserError, match="no option 'url'"):
        agentgym.tasks("test", {"kind": "webshop", "url": "x"})


def test_a_server_under_a_name_of_its_own(serve):
    server = serve(full=2)
    spec = agentgym.served("custom", name="half", success_threshold=0.5, full_reward=4, base_url=server.url)
    (chosen,) = spec.tasks("test", {"indices": "2"})
    assert chosen.key == "half/custom-2"

    async def go():
        async with EnvironmentPool({"half": {}}, workers=1, specs={"half": spec}) as pool:
            state = await pool.reset(chosen)
            for _ in range(2):
                state = await pool.step(state, Action("Action: up"))
            return state.outcome

    outcome = asyncio.run(go())
    assert (outcome.reward, outcome.success) == (0.5, True)


def test_the_threshold_of_success_is_an_option_too(serve):
    options = {"kind": "custom", "base_url": serve(full=2).url, "full_reward": 4, "indices": "2"}

    async def go(threshold):
        async with EnvironmentPool({"agentgym": {**options, **threshold}}, workers=1) as pool:
            (chosen,) = agentgym.tasks("test", options)
            state = await pool.reset(chosen)
            for _ in range(2):
                state = await pool.step(state, Action("Action: up"))
            return state.outcome.success

    assert not asyncio.run(go({}))
    assert asyncio.run(go({"success_threshold": 0.5}))
    with pytest.raises(UserError, match="success_threshold must be a number above 0 and up to 1, not 7"):
        asyncio.run(go({"success_threshold": 7}))
