"""What the environment server says, to the letter, and what it refuses."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from agentrm_jax.envs.__main__ import main
from agentrm_jax.envs.serve.http import BODY_LIMIT
from agentrm_jax.envs.websocket import WebSocketError, connect
from agentrm_jax.testing.served import served

TOY = "agentrm_jax.testing.toy_env"
BREAKING = '''
"""The toy game, which hangs, dies or raises when it is told to."""
import dataclasses, os, time
from agentrm_jax.testing import toy_env

class Breaking(toy_env.ToyEnv):
    def step(self, command):
        if command == "hang":
            time.sleep(60)
        if command == "die":
            os._exit(3)
        if command == "raise":
            raise RuntimeError("told to\\nfail")
        return super().step(command)

SPEC = dataclasses.replace(toy_env.SPEC, make=Breaking)
'''


@pytest.fixture
def toy():
    with served(TOY, {}, sessions=3) as server:
        yield server


def ask(server, method, path, body=None, **headers):
    """(status, answer) of one request; `body` as JSON, or as it is if it is bytes."""
    url = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        text = response.read().decode()
        assert response.headers["Content-Type"] == "application/json"
        assert "\n" not in text
        return response.status, json.loads(text)
    finally:
        connection.close()


def post(server, path, **fields):
    return ask(server, "POST", path, fields)


@pytest.fixture
def talk():
    """A function that opens a conversation with a server; all are dropped in the end."""
    opened = []

    def open_(server):
        opened.append(connect(server.url.replace("http", "ws", 1) + "/ws", timeout=20.0, limit=1 << 20))
        return opened[-1]

    yield open_
    for conversation in opened:
        conversation.drop()


def say(conversation, kind, **data):
    conversation.send(json.dumps({"type": kind, "data": data}))
    return json.loads(conversation.receive())


# AgentGym


def test_an_episode_over_agentgyms_protocol(toy):
    status, made = post(toy, "/create")
    assert status == 200
    id = made["id"]
    status, start = post(toy, "/reset", id=id, data_idx=0)
    opening = 'Your task: Write the best word of 3 letters.\n\nThe word is "".'
    assert (status, start["id"], start["observation"], start["done"], start["reward"]) == (200, id, opening, False, 0.0)
    assert ask(toy, "GET", f"/observation?id={id}") == (200, opening)
    for i, turn in enumerate(["b", "Thought: next\nAction: b", "b</s>"]):
        status, answer = post(toy, "/step", id=id, action=turn)
        assert status == 200
        assert {"observation", "reward", "score", "done", "available_actions"} <= answer.keys()
        assert answer["observation"] == f'The word is "{"b" * (i + 1)}".'
    assert (answer["reward"], answer["done"]) == (0.965, True)
    assert post(toy, "/step", id=id, action="b") == (
        200,
        {"error": f"the episode of environment {id} has finished; reset it"},
    )
    assert ask(toy, "GET", "/list_envs") == (200, [id])
    assert post(toy, "/close", id=id) == (200, True)
    assert post(toy, "/close", id=id)[1].keys() == {"error"}


def test_what_the_clients_of_single_environments_read():
    """Fields as AgentGym's published clients take them from the answers (agentenv/envs/*.py)."""
    with served("webshop", {}) as server:
        _, id = post(server, "/create")
        assert isinstance(id, int)
        _, start = post(server, "/reset", env_idx=id, session_id=0)
        assert isinstance(start[0], str)
        assert start[1] is None
        _, answer = post(server, "/step", env_idx=id, action="search[desk]")
        assert {"state", "reward", "done"} <= answer.keys()
    with served("tool_query", {}) as server:
        _, id = ask(server, "POST", "/create", {"id": 0})
        _, text = post(server, "/reset", env_idx=id, id=1)
        assert isinstance(text, str)
        assert text == ask(server, "GET", f"/observation?env_idx={id}")[1]
        _, answer = post(
            server, "/step", env_idx=id, action="Thought: x\nAction: check_valid_actions with Action Input: {}"
        )
        assert {"observation", "reward", "done"} <= answer.keys()
    with served("maze", {}) as server:
        id = post(server, "/create")[1]["id"]
        assert "observation" in post(server, "/reset", id=id, game=2)[1]


def test_ids_are_not_handed_out_twice_nor_guessed(toy):
    ids = [post(toy, "/create")[1]["id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert max(ids) > 1000


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/step", {"id": 7, "action": "b"}, 200, "there is no environment 7"),
        ("/step", {"id": True, "action": "b"}, 200, "there is no environment True"),
        ("/step", {"action": {"message": "b"}}, 422, "sessions of OpenEnv are WebSockets, at /ws"),
        ("/reset", [], 422, "must be a JSON object"),
        ("/reset", b"{", 422, "not JSON"),
        ("/reset", b"[" * 100_000, 422, "not JSON"),
        ("/reset", b"\xff", 422, "not JSON"),
        ("/fork", {}, 404, "there is no page /fork"),
    ],
)
def test_bad_requests_are_answered_in_a_line(toy, path, body, status, reason):
    found, answer = ask(toy, "POST", path, body)
    assert found == status
    assert reason in answer["error"]
    assert len(toy.sessions) == 0


def test_a_session_outlives_what_it_could_not_do(toy):
    id = post(toy, "/create")[1]["id"]
    assert "was not reset yet" in post(toy, "/step", id=id, action="b")[1]["error"]
    assert "was not reset yet" in ask(toy, "GET", f"/observation?id={id}")[1]["error"]
    assert "goes from 0 to 15; it is 16" in post(toy, "/reset", id=id, data_idx=16)[1]["error"]
    assert "goes from 0 to 15; it is 'x'" in post(toy, "/reset", id=id, game="x")[1]["error"]
    assert "names no task" in post(toy, "/reset", id=id)[1]["error"]
    post(toy, "/reset", id=id, data_idx=0)
    assert "action must be a text" in post(toy, "/step", id=id, action=7)[1]["error"]
    assert post(toy, "/step", id=id, action="b" * 20_000)[1]["observation"].startswith(
        "The command has 20000 characters"
    )
    assert post(toy, "/step", id=id, action="b\ud800")[0] == 200
    assert post(toy, "/step", id=id, action="b")[1]["observation"] == 'The word is "b".'


# OpenEnv


def test_a_conversation_over_openenvs_protocol(toy, talk):
    open_ = talk(toy)
    assert say(open_, "state") == {"type": "state", "data": {"episode_id": None, "step_count": 0}}
    first = say(open_, "reset", task="h3", episode_id="mine")
    observed = {"text": 'The word is "".', "goal": "Write the best word of 3 letters.", "worth": 0.0, "progress": 0.0}
    observed |= {"success": False, "valid": True, "metadata": {}}
    assert first == {"type": "observation", "data": {"observation": observed, "reward": None, "done": False}}
    answers = [say(open_, "step", message=turn)["data"] for turn in ("Thought: go\nAction: b", "b", "b")]
    assert [a["reward"] for a in answers] == [0.0, 0.0, 0.965]
    assert [a["done"] for a in answers] == [False, False, True]
    state = {"episode_id": "mine", "step_count": 3, "task": "h3", "split": "test", "max_steps": 5}
    assert say(open_, "state")["data"] == state
    assert "has finished; reset it" in say(open_, "step", message="b")["data"]["message"]
    open_.send('{"type": "close"}')
    assert open_.receive() is None


def test_seeds_numbers_and_nobodys_choice_name_tasks(toy, talk):
    open_ = talk(toy)

    def task(**data):
        assert say(open_, "reset", **data)["type"] == "observation"
        return say(open_, "state")["data"]["task"]

    ids = [t.id for t in toy.sessions.offer.tasks["test"]]
    assert task(index=3) == task(seed=3) == task(seed=19) == task(task=f"toy/{ids[3]}") == ids[3]
    assert [task(), task(), task(split="test")] == ids[:3]
    for wrong in ({"task": "h9"}, {"index": 16}, {"index": -1}, {"seed": "x"}, {"split": "train"}, {"split": 3}):
        assert say(open_, "reset", **wrong)["type"] == "error"


def test_bad_messages_are_answered_and_the_session_goes_on(toy, talk):
    open_ = talk(toy)
    for message, code in [
        ("{", "INVALID_JSON"),
        ("[]", "UNKNOWN_TYPE"),
        ('{"type": "fork"}', "UNKNOWN_TYPE"),
        ('{"type": "step", "data": []}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": {"text": "b"}}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": {"message": "b"}}', "EXECUTION_ERROR"),
    ]:
        open_.send(message)
        answer = json.loads(open_.receive())
        assert (answer["type"], answer["data"]["code"]) == ("error", code)
    assert say(open_, "reset")["type"] == "observation"


def test_the_pages_that_describe_it(toy):
    assert ask(toy, "GET", "/health") == (200, {"status": "healthy"})
    assert ask(toy, "GET", "/metadata")[1]["description"].startswith("You write a word")
    assert ask(toy, "GET", "/schema")[1]["action"]["required"] == ["message"]
    assert ask(toy, "GET", "/")[1].startswith("This is environment toy: 16 test tasks")
    assert ask(toy, "GET", "/ws")[0] == 426


# Limits


def test_sessions_are_limited_over_both_protocols(toy, talk):
    held = [post(toy, "/create")[1]["id"], talk(toy), talk(toy)]
    for open_ in held[1:]:
        assert say(open_, "reset")["type"] == "observation"
    assert post(toy, "/create")[0] == 503
    refused = talk(toy)
    assert json.loads(refused.receive())["data"]["code"] == "CAPACITY_REACHED"
    assert refused.receive() is None
    held[1].drop()  # a client that is gone gives its place back
    end = time.monotonic() + 10
    while len(toy.sessions) == 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert post(toy, "/create")[0] == 200


def test_sessions_that_nobody_uses_are_closed(talk):
    with served(TOY, {}, session_timeout=0.4) as server:
        id = post(server, "/create")[1]["id"]
        open_ = talk(server)
        assert say(open_, "reset")["type"] == "observation"
        assert open_.receive() is None  # silence ends the conversation
        time.sleep(0.3)
        assert "not used for 0.4 s" in post(server, "/reset", id=id, data_idx=0)[1]["error"]
        assert len(server.sessions) == 0


def test_bodies_and_messages_are_limited(toy, talk):
    status, answer = ask(toy, "POST", "/step", b"x" * (BODY_LIMIT + 1))
    assert (status, answer["error"]) == (413, f"a body has at most {BODY_LIMIT} bytes")
    open_ = talk(toy)
    with contextlib.suppress(WebSocketError):  # it may be closed before all is sent
        open_.send("x" * (BODY_LIMIT + 1))
        assert open_.receive() is None
    assert ask(toy, "POST", "/step", b"{}", **{"Content-Length": "many"})[0] == 400
    assert ask(toy, "POST", "/create", b"{}", Origin="http://example.com")[0] == 403  # a page in a browser
    assert (
        ask(toy, "GET", "/ws", Origin="http://example.com", Upgrade="websocket", **{"Sec-WebSocket-Key": "x"})[0] == 403
    )


def test_connections_are_limited(toy):
    url = urllib.parse.urlsplit(toy.url)
    held = [socket.create_connection((url.hostname, url.port)) for _ in range(3 + 32)]
    try:
        end = time.monotonic() + 10
        while len(toy._sockets) < len(held) and time.monotonic() < end:
            time.sleep(0.01)
        assert ask_plain(url) == b"HTTP/1.1 503"
    finally:
        for sock in held:
            sock.close()


def ask_plain(url):
    with socket.create_connection((url.hostname, url.port)) as sock:
        sock.settimeout(10)
        return sock.recv(12)


def test_garbage_is_no_request(toy):
    url = urllib.parse.urlsplit(toy.url)
    for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PUT / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 70_000):
        with socket.create_connection((url.hostname, url.port)) as sock:
            sock.sendall(data)
            sock.settimeout(10)
            assert sock.makefile("rb").read().splitlines()[-1].startswith(b'{"error": ')
    assert ask(toy, "GET", "/health")[0] == 200


# Faults


@pytest.fixture
def breaking(tmp_path, monkeypatch):
    (tmp_path / "breaking_toy.py").write_text(BREAKING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with served("breaking_toy", {}, sessions=4, workers=2, step_timeout=0.5) as server:
        yield server


@pytest.mark.parametrize(("command", "reason"), [("hang", "0.5 s"), ("die", "status 3"), ("raise", "told to fail")])
def test_what_breaks_costs_its_step_and_no_session(breaking, command, reason):
    ids = [post(breaking, "/create")[1]["id"] for _ in range(2)]
    for id in ids:
        post(breaking, "/reset", id=id, data_idx=0)
        assert post(breaking, "/step", id=id, action="b")[1]["observation"] == 'The word is "b".'
    answers = []
    broken = threading.Thread(target=lambda: answers.append(post(breaking, "/step", id=ids[0], action=command)))
    broken.start()
    assert post(breaking, "/step", id=ids[1], action="b")[1]["observation"] == 'The word is "bb".'
    broken.join()
    status, answer = answers[0]
    assert status == 200
    assert reason in answer["error"]
    for id, word in zip(ids, ("bb", "bbb"), strict=True):  # as if nothing had happened
        assert post(breaking, "/step", id=id, action="b")[1]["observation"] == f'The word is "{word}".'


# The command


def start(*flags):
    command = [sys.executable, "-m", "agentrm_jax.envs", "serve", TOY, "--port", "0", "--workers", "1", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    line = process.stdout.readline()
    return process, line


def test_it_prints_its_address_and_ends_with_what_is_under_way(talk):
    process, line = start("--split", "test", "--option", "delay=1.0")
    assert line.startswith("serving toy (16 train, 16 dev, 16 test tasks; numbers count test) on http://127.0.0.1:")
    server = type("Server", (), {"url": line.split()[-1]})
    id = post(server, "/create")[1]["id"]
    post(server, "/reset", id=id, data_idx=0)
    answers = []
    open_ = talk(server)
    assert say(open_, "reset")["type"] == "observation"
    step = threading.Thread(target=lambda: answers.append(post(server, "/step", id=id, action="b")))
    step.start()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    step.join()
    assert answers[0][1]["observation"] == 'The word is "b".'
    assert open_.receive() is None
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((TOY, "--port", "70000"), "--port 70000: a port is a number from 0 to 65535"),
        ((TOY, "--session-timeout", "0"), "--session-timeout must be above 0"),
        ((TOY, "--step-timeout", "nan"), "--step-timeout must be above 0"),
        ((TOY, "--host", "nowhere.invalid"), "--host nowhere.invalid --port 0: "),
        ((TOY, "--sessions", "0"), "argument --sessions: '0' is not a number above 0"),
        (("mase",), "no environment named 'mase'; did you mean maze?"),
        (("agentgym", "--option", "kind=maze", "--option", "indices=2"), "names no tasks of split 'train'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, capsys):
    assert main(["serve", *argv]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", TOY, "--port", str(port)]) == 2
    assert f"error: --host 127.0.0.1 --port {port}: " in capsys.readouterr().err
