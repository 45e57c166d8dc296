"""A model server that is slow, busy or broken costs time, then one request, and the run only where no request could fare better."""

import asyncio
import email.utils
import threading
import time

import pytest

from agentrm_jax.generators import choices
from agentrm_jax.generators.generator import GenerationFailure
from agentrm_jax.generators.http import Client, GoneError, Refused, Settings
from agentrm_jax.testing.model_server import ModelServer, answer, hang_up, raw, status, wait_for
from agentrm_jax.types import UserError


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self):
        self.slept: list[float] = []

    def now(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.01)  # others get their turn before time has passed
        self.slept.append(seconds)


@pytest.fixture
def server():
    with ModelServer(lambda request: answer("hello")) as server:
        yield server


@pytest.fixture
def clock():
    return Clock()


def client(server, clock, **settings) -> Client:
    given = {"retries": 3, "timeout": 10.0} | settings
    return Client(server.url, Settings(**given), sleep=clock.sleep, now=clock.now, jitter=lambda: 1.0)


def ask(client, *, times=1):
    async def all_of_them():
        try:
            asked = [client.ask("/chat/completions", {"model": "stub"}, choices.read) for _ in range(times)]
            found = await asyncio.gather(*asked)
            return [one.text for answered in found for one in answered.choices]
        finally:
            await client.aclose()

    return asyncio.run(all_of_them())


GOOD = b'{"choices": [{"message": {"content": "fine"}}]}'
PASSING = {
    "busy": status(429, {"error": {"message": "slow down"}}),
    "down": status(500, {"error": "oops"}),
    "a proxy's page": raw(b"<html>Bad Gateway</html>", code=502),
    "cut body": raw(GOOD[:20], length=len(GOOD)),
    "hung up": hang_up,
    "no JSON": raw(b"<html>hello</html>"),
    "half a JSON": raw(GOOD[:20]),
    "nested too deeply": raw(b"[" * 100_000),
    "no object": raw(b"[1, 2]"),
    "an error with status 200": raw(b'{"error": {"message": "worker died"}}'),
    "no choices": raw(b'{"choices": []}'),
    "choices that are none": raw(b'{"choices": [7]}'),
    "a choice without a message": raw(b'{"choices": [{"finish_reason": "stop"}]}'),
    "empty": raw(b""),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(fault, server, clock):
    server.script = [fault, fault]
    assert ask(client(server, clock)) == ["hello"]
    assert len(server.requests) == 3
    assert clock.slept == [0.5, 1.0]  # doubled each time


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_costs_one_request_and_says_where_and_why(fault, server, clock):
    server.script = [fault] * 4
    with pytest.raises(GenerationFailure, match=rf"^{server.url}/chat/completions: .+ \(tried 4 times\)$") as caught:
        ask(client(server, clock))
    assert "\n" not in str(caught.value)
    assert ask(client(server, clock)) == ["hello"]


def test_pauses_are_spread_by_chance_and_bounded(server):
    drawn = Client(server.url, Settings(), jitter=lambda: 0.0)
    assert [drawn._pause(attempt, 0) for attempt in (1, 2, 3, 20)] == [0.25, 0.5, 1.0, 15.0]


def test_retry_after_is_honoured_by_all_requests_in_seconds_or_as_a_date(server, clock):
    server.script = [status(429, {}, retry_after="7")]
    assert ask(client(server, clock, concurrency=1), times=2) == ["hello", "hello"]
    assert sorted(map(round, clock.slept)) == [7, 8]  # the other request waited too, without having been sent
    clock.slept.clear()
    server.script = [status(503, {}, retry_after=email.utils.formatdate(time.time() + 60, usegmt=True))]
    ask(client(server, clock))
    assert 55 < max(clock.slept) <= 60.5
    for nonsense in ("soon", "-5", "nan"):
        clock.slept.clear()
        server.script = [status(503, {}, retry_after=nonsense)]
        ask(client(server, clock))
        assert clock.slept == [0.5]


def test_a_slow_server_is_not_waited_for(server, clock):
    over = threading.Event()
    server.script = [wait_for(over)]
    try:
        assert ask(client(server, clock, timeout=0.1)) == ["hello"]
    finally:
        over.set()


def test_no_more_requests_are_in_flight_than_may_be(server, clock):
    busy, most, lock = 0, 0, threading.Lock()

    def reply(request):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.005)
        with lock:
            busy -= 1
        return answer("hello")

    server.reply = reply
    assert len(ask(client(server, clock, concurrency=3), times=12)) == 12
    assert most == 3


@pytest.mark.parametrize("code", [400, 413, 422, 418])
def test_a_request_at_fault_is_refused_at_once_with_the_servers_reason(code, server, clock):
    server.script = [status(code, {"error": {"message": "n must be\n1", "type": "BadRequest"}})]
    with pytest.raises(Refused, match="n must be 1") as caught:
        ask(client(server, clock))
    assert (caught.value.status, clock.slept) == (code, [])


FINAL = {
    401: "set the environment variable OPENAI_API_KEY",
    402: "asks for payment",
    403: "set the environment variable OPENAI_API_KEY",
    404: "does not exist: name the URL up to /chat/completions",
    405: "does not exist",
    307: "redirects to http://elsewhere/v1: name that URL",
}


@pytest.mark.parametrize(("code", "advice"), FINAL.items())
def test_what_no_request_can_mend_ends_the_run_at_once_with_one_line(code, advice, server, clock, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.script = [status(code, {"error": {"message": "no"}}, location="http://elsewhere/v1")]
    with pytest.raises(UserError, match=advice) as caught:
        ask(client(server, clock))
    assert server.url in str(caught.value)
    assert isinstance(caught.value, GoneError) == (code in (404, 405))
    assert (len(server.requests), clock.slept) == (1, [])


def test_a_quota_that_is_used_up_is_no_busy_server(server, clock):
    server.script = [status(429, {"error": {"message": "You exceeded", "code": "insufficient_quota"}})]
    with pytest.raises(UserError, match="has no quota left for this key"):
        ask(client(server, clock))


def test_a_server_that_is_gone_ends_the_run_after_some_tries(server, clock):
    gone = client(server, clock)
    gone.url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"nothing accepts a connection .* \(tried 4 times\); start the server"):
        ask(gone)
    assert len(clock.slept) == 3


def test_text_from_outside_is_clean(server, clock):
    bad = b'{"choices": [{"message": {"content": "caf\xe9 \\ud800 \\u0000 \\u001b[31m ok\\r\\nnext"}}]}'
    server.script = [raw(bad)]
    [text] = ask(client(server, clock))
    assert text == "caf\ufffd \ufffd \ufffd \ufffd[31m ok\nnext"


def test_the_key_goes_to_the_server_and_nowhere_else(server, clock, monkeypatch, capsys, caplog):
    monkeypatch.setenv("MY_KEY", " sk-secret-1 \n")
    server.key = "sk-secret-1"
    assert ask(client(server, clock, key_variable="MY_KEY")) == ["hello"]
    server.key = "another"
    with caplog.at_level(0), pytest.raises(UserError, match="refuses the key in MY_KEY") as caught:
        ask(client(server, clock, key_variable="MY_KEY"))
    said = capsys.readouterr()
    assert "sk-secret" not in "".join([str(caught.value), repr(caught.value), caplog.text, said.out, said.err])
    assert "[key]" in str(caught.value)  # the server had said it


@pytest.mark.parametrize("key", ["two words", "naïve", "line\nbreak"])
def test_a_key_that_can_be_none_is_refused_without_being_shown(key, server, clock, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds no key") as caught:
        client(server, clock)
    assert key not in str(caught.value)


def test_a_server_without_a_key_gets_none(server, clock, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ask(client(server, clock))
    [(_, headers, _)] = server.requests
    assert "authorization" not in headers


def test_one_client_serves_several_event_loops(server, clock):
    one = client(server, clock)
    assert [ask(one), ask(one)] == [["hello"], ["hello"]]
