"""What a server does not take on: too much at once, what comes or is read too slowly, what has no key; and how it ends."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import threading
import time
import urllib.parse

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx2", reason="the extra openai is not installed")

import httpx2

from agentrm_jax import serve
from agentrm_jax.testing.server_process import ServerProcess
from tests.serving.conftest import counted, events, talk

KEY = "a-key-that-nobody-knows"
ASK = [{"role": "user", "content": "go"}]
LONG = {"messages": ASK, "n": 96, "max_tokens": 480, "ignore_eos": True}
FLAGS = ("--concurrency=2", "--max-body=0.05", "--timeout=3", "--arrival=2", "--stall=2", "--max-items=100")


@pytest.fixture(scope="module")
def small(models):
    rm, policy = models
    arguments = [rm, "--policy", policy, "--name=rm", "--policy-name=policy", *FLAGS]
    with ServerProcess(arguments, {"AGENTRM_KEY": KEY}) as found:
        yield found
        assert found.alive
        assert "Traceback" not in found.errors
        assert KEY not in found.errors


@pytest.fixture
def client(small):
    with httpx2.Client(
        base_url=small.url, timeout=60, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}
    ) as c:
        yield c
        until(lambda: counted(c, "agentrm_requests_in_flight") == 0)
        until(lambda: counted(c, "agentrm_cache_locks", model="policy") == 0)
        assert counted(c, "agentrm_cache_slots_lost", model="policy") == 0
        assert counted(c, "agentrm_cache_slots_lost", model="reward") == 0


def until(reached, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def raw(server, text: bytes):
    """A connection on which `text` was sent."""
    parts = urllib.parse.urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(text)
        yield connection


def everything(connection) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


def head(length: int) -> bytes:
    return (
        f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n".encode()
    )


# --- Who asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer other"}, {"Authorization": KEY}, {"Authorization": "Bearer"}]
)
def test_without_the_key_nothing_is_served_but_the_state_of_health(small, header):
    with httpx2.Client(base_url=small.url, trust_env=False, headers=header) as stranger:
        for path in ("/score", "/v1/chat/completions", "/v1/search"):
            answer = stranger.post(path, json={})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in answer.json()["error"]["message"]
        assert [stranger.get(path).status_code for path in ("/metrics", "/v1/models", "/health")] == [401, 401, 200]


def test_every_answer_has_an_id_and_takes_the_clients(client):
    first, second = (client.post("/score", json=talk(1)).headers["x-request-id"] for _ in range(2))
    assert first != second
    assert client.post("/score", json={}, headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    chat = client.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Id": "mine-2"})
    assert chat.json()["id"] == "cmpl-mine-2"
    assert client.get("/health", headers={"X-Request-Id": "two words"}).headers["x-request-id"] != "two words"


# --- How much ---------------------------------------------------------------------------------------------------------


def test_more_than_the_allowed_requests_at_once_are_sent_away_for_a_while(client):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        busy = [threads.submit(client.post, "/v1/chat/completions", json=LONG | {"max_tokens": 200}) for _ in range(2)]
        until(lambda: counted(client, "agentrm_requests_in_flight") == 2)
        answer = client.post("/score", json=talk(1))
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert {one.result().status_code for one in busy} <= {200, 504}
    until(lambda: client.post("/score", json=talk(1)).status_code == 200, 60)  # once its program is compiled


def test_large_bodies_and_lists_are_refused_before_they_are_read(small, client):
    large = client.post("/score", content=b" " * 60_000)
    assert large.status_code == 413
    assert "more than 52428 bytes" in large.json()["error"]["message"]

    def endless():
        for _ in range(1000):
            yield b" " * 1000

    with contextlib.suppress(httpx2.TransportError):  # it may be closed while we still write
        assert client.post("/score", content=endless()).status_code == 413
    many = client.post("/score", json={"trajectories": [1] * 101})
    assert (many.status_code, "at most 100" in many.text) == (413, True)
    with raw(small, head(10**9)) as connection:  # announced, not sent
        assert b" 413 " in everything(connection)


def test_what_takes_too_long_is_given_up(client):
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:  # two at once, which no machine does in three seconds
        answers = list(threads.map(lambda _: client.post("/v1/chat/completions", json=LONG), range(2)))
    assert [answer.status_code for answer in answers] == [504, 504]
    assert "not done within 3 s" in answers[0].json()["error"]["message"]
    assert time.monotonic() - began < 20

    def given_up_in_the_middle() -> bool:
        with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as stream:
            found = events(stream)
        assert found[-1]["error"]["code"] == 504
        return len(found) > 2

    until(given_up_in_the_middle, 60)  # once its programs are compiled


# --- How slowly -------------------------------------------------------------------------------------------------------


def test_half_requests_are_ended(small, client):
    with raw(small, head(100) + b'{"id"') as body, raw(small, b"POST /score HTT") as request, raw(small, b"") as silent:
        began = time.monotonic()
        assert b" 408 " in everything(body)
        assert everything(request) == b""
        assert everything(silent) == b""
        assert time.monotonic() - began < 20
    with raw(small, b"") as dripping:  # each byte is in time, the request is not
        with contextlib.suppress(ConnectionError):
            for byte in b"POST /score HTTP/1.1\r\nHost: somewhere far away\r\nX: y":
                dripping.sendall(bytes([byte]))
                time.sleep(0.1)
        assert everything(dripping) == b""


def test_a_client_that_goes_away_or_does_not_read_costs_nothing_further(small, client):
    body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    request = head(len(body)).replace(b"/score", b"/v1/chat/completions") + body
    with raw(small, request) as connection:
        connection.recv(1000)
    until(lambda: counted(client, "agentrm_requests_in_flight") == 0)
    with raw(small, request) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(lambda: counted(client, "agentrm_requests_in_flight") == 1)
        until(lambda: counted(client, "agentrm_requests_in_flight") == 0, 20)
    whole = json.dumps(LONG).encode()
    with raw(small, head(len(whole)).replace(b"/score", b"/v1/chat/completions") + whole):
        until(lambda: counted(client, "agentrm_requests_in_flight") == 1)
    until(lambda: counted(client, "agentrm_requests_in_flight") == 0, 3)  # well before its time is over
    assert counted(client, "agentrm_requests_total", endpoint="/v1/chat/completions", status="499") >= 1


def test_what_is_no_http_is_answered_in_one_line(small):
    for text in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n",
        b"GET\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/x\r\n",
    ):
        with raw(small, text + b"\r\n") as connection:
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 400 "), text
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    chunked = head(1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
    with raw(small, chunked + b"zz\r\nnot a chunk\r\n") as connection:
        assert b" 400 " in everything(connection)


def test_nothing_of_a_request_is_logged(small, client):
    secret = "words-that-are-nobodys-business"
    client.post("/score", json={"id": secret, "messages": [{"role": "user", "content": secret}]})
    client.post("/v1/completions", json={"prompt": secret, secret: 1})
    client.post(f"/{secret}", content=secret)
    assert secret not in small.errors


# --- How it ends ------------------------------------------------------------------------------------------------------


def test_sigterm_lets_what_is_under_way_end_and_takes_nothing_new(models):
    rm, policy = models
    with (
        ServerProcess([rm, "--policy", policy]) as server,
        httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        asked = {"messages": ASK, "n": 4, "max_tokens": 300, "ignore_eos": True, "seed": 1}
        with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            whole: list[int] = []

            def score() -> None:
                with httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as other:
                    whole.append(other.post("/v1/chat/completions", json=asked).status_code)

            other = threading.Thread(target=score)
            other.start()
            until(lambda: counted_at(server.url) == 2)
            server.send(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(httpx2.ConnectError):
                httpx2.get(server.url + "/health", trust_env=False)
            rest = [line for line in lines if line]
        other.join()
        assert first.startswith("data: {")
        assert rest[-1] == "data: [DONE]"
        ends = [row["finish_reason"] for line in rest[:-1] for row in json.loads(line[6:])["choices"]]
        assert ends.count("length") == 4
        assert whole == [200]
        assert server.wait(120) == 0
        assert server.errors == ""


def counted_at(url: str) -> float:
    with httpx2.Client(base_url=url, trust_env=False) as client:
        return counted(client, "agentrm_requests_in_flight")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "name a reward model"),
        (["nowhere"], "no model at nowhere"),
        (["judge:nowhere"], "cannot be read by this command"),
        (["{policy}"], "holds a policy"),
        (["{rm}", "--policy=openai:m@http://127.0.0.1:1/v1"], "cannot be served; name a training workdir"),
        (["{rm}", "--port=99999"], "use 0 to 65535"),
        (["{rm}", "--concurrency=0"], "--concurrency=0: use a positive number"),
        (["{rm}", "--aggregate=median"], "no aggregator named 'median'"),
        (["{rm}", "--host=999.1.1.1"], "--host=999.1.1.1"),
        (["{rm}", "--port={taken}"], "Address already in use; name another"),
        (["{rm}", "--port=0", "--max-length=100000"], "the model reads from 1 to 512 tokens"),
        (["{rm}", "--port=0", "--cache-tokens=10"], "cannot hold one path of 512 tokens"),
        (["--policy={rm}", "--port=0"], "holds a reward model, which writes no text"),
    ],
)
def test_a_command_that_cannot_serve_says_so_in_one_line(models, flags, says, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"rm": models[0], "policy": models[1], "taken": taken.getsockname()[1]}
        assert serve.main([flag.format(**names) for flag in flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_key_that_can_be_none_is_refused(models, monkeypatch, capsys):
    monkeypatch.setenv("AGENTRM_KEY", "two words")
    assert serve.main([str(models[0])]) == 2
    err = capsys.readouterr().err
    assert "AGENTRM_KEY holds no key" in err
    assert "two words" not in err
