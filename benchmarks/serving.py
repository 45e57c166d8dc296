"""A server under mixed load for minutes or hours, with clients that misbehave: how fast it answers, and that it loses nothing.

    python -m benchmarks.serving [--minutes 5] [--clients 16] [--rm RM --policy POLICY] [--rate 0] [--json FILE]

Clients ask without a pause (or, together, `--rate` requests a second): trajectories of growing conversations at /score, texts at /classify
and /pooling, chats whole and streamed, completions, searches. One request in ten is a fault: a slow reader, half a request, bad JSON, an
oversized body, a stream that is cancelled, a client that goes away. Scores must equal the first answer to the same question.
Reports requests a second, p50 and p99 by kind, memory after warm-up and at the end, and slots, locks and requests that were lost. The
exit code is 1 if anything was lost, logged, answered wrongly or with a 5xx. Without --rm and --policy two tiny models with random
weights are served.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import random
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from agentrm_jax.testing.server_process import ServerProcess, counted, write_models
from benchmarks.malformed import tiny_chat
from benchmarks.malformed_requests import damage, head
from benchmarks.measure import machine

_FAULTY = 0.1  # of the requests
_WARM = 0.2  # of the time, before memory is measured
_SAME = 1e-4  # what two scores of one question may differ by
_BODY = 1 << 20
_ASK = [{"role": "user", "content": "Is 7 prime?"}]
LATENCIES = ("score", "classify", "pooling", "chat", "stream", "completions", "search")


def talk(number: int, turns: int) -> list[dict[str, str]]:
    """A conversation; more turns of one number go on where fewer have ended."""
    rng = random.Random(number)
    found = []
    for i in range(turns):
        found.append({"role": "user", "content": f"{number}. " + "A door. " * rng.randint(1, 5)})
        found.append({"role": "assistant", "content": f"Thought: {i}\nAction: move {rng.choice(('left', 'up'))}"})
    return found


@dataclasses.dataclass
class Seen:
    """What clients have seen, together."""

    seconds: dict[str, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float, status: int) -> None:
        with self.lock:
            if status == 200:
                self.seconds[kind].append(seconds)
            self.statuses[str(status)] += 1
            if status >= 500:
                self.wrong.append(f"{kind}: status {status}")

    def compare(self, question: str, score: float) -> None:
        """Notes a score, or that it is another one than before."""
        with self.lock:
            before = self.scores.setdefault(question, score)
            if not abs(before - score) <= _SAME:
                self.wrong.append(f"{question}: {score} after {before}")


class Visitor:
    """One client."""

    def __init__(self, url: str, seen: Seen, number: int):
        self.url, self.seen, self.rng = url, seen, random.Random(number)
        self._http = httpx2.Client(base_url=url, timeout=120, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ask(self) -> None:
        """One request of some kind."""
        faults = (self.half, self.slow, self.bad_json, self.oversized, self.cancelled, self.gone)
        good = (
            self.score,
            self.score,
            self.classify,
            self.pooling,
            self.chat,
            self.stream,
            self.completions,
            self.search,
        )
        self.rng.choice(faults if self.rng.random() < _FAULTY else good)()

    # --- What is asked for in earnest ---

    def _post(self, kind: str, path: str, payload: Any) -> Any:
        began = time.monotonic()
        answer = self._http.post(path, json=payload)
        self.seen.add(kind, time.monotonic() - began, answer.status_code)
        if answer.status_code == 429:
            time.sleep(min(float(answer.headers["retry-after"]), 2.0))
        return answer.json() if answer.status_code == 200 else None

    def score(self) -> None:
        number, turns = self.rng.randrange(64), self.rng.randint(1, 6)
        if found := self._post("score", "/score", {"messages": talk(number, turns)}):
            self.seen.compare(f"{number}/{turns}", found["data"][0]["score"])

    def classify(self) -> None:
        number, turns = self.rng.randrange(64), self.rng.randint(1, 6)
        payload = {"messages": talk(number, turns), "use_activation": False}
        if found := self._post("classify", "/classify", payload):
            self.seen.compare(f"{number}/{turns}", found["data"][0]["probs"][0])

    def pooling(self) -> None:
        ids = [[4 + self.rng.randrange(200) for _ in range(self.rng.randint(1, 100))] for _ in range(4)]
        self._post("pooling", "/pooling", {"input": ids})

    def chat(self) -> None:
        messages = talk(self.rng.randrange(64), self.rng.randint(1, 4))[:-1]
        payload = {"messages": messages, "max_tokens": self.rng.randint(1, 48), "n": self.rng.randint(1, 4)}
        self._post("chat", "/v1/chat/completions", payload)

    def completions(self) -> None:
        payload = {"prompt": "Thought: left.", "max_tokens": self.rng.randint(1, 32), "logprobs": 2, "stop": ["x"]}
        self._post("completions", "/v1/completions", payload)

    def search(self) -> None:
        self._post("search", "/v1/search", {"messages": talk(self.rng.randrange(64), 1)[:1], "n": 4, "max_tokens": 24})

    def stream(self) -> None:
        began = time.monotonic()
        payload = {"messages": _ASK, "max_tokens": self.rng.randint(8, 64), "n": 2, "stream": True}
        with self._http.stream("POST", "/v1/chat/completions", json=payload) as answer:
            lines = [line for line in answer.iter_lines() if line]
        self.seen.add("stream", time.monotonic() - began, answer.status_code)
        if answer.status_code == 200 and lines[-1] != "data: [DONE]":
            self.seen.wrong.append(f"a stream ended with {lines[-1:]}")

    # --- Faults ---

    def _expect(self, answer: Any, status: int) -> None:
        self.seen.add("fault", 0.0, answer.status_code)
        if answer.status_code not in (status, 429):
            self.seen.wrong.append(f"status {answer.status_code} instead of {status}: {answer.text[:200]}")

    def bad_json(self) -> None:
        self._expect(self._http.post("/score", content=b'{"messages": ['), 400)

    def oversized(self) -> None:
        with contextlib.suppress(httpx2.TransportError):  # it may be closed while we still write
            self._expect(self._http.post("/score", content=b" " * (_BODY + 1)), 413)

    def cancelled(self) -> None:
        payload = {"messages": _ASK, "max_tokens": 200, "n": 2, "stream": True}
        with self._http.stream("POST", "/v1/chat/completions", json=payload) as answer:
            for _ in zip(range(4), answer.iter_lines(), strict=False):
                pass

    def _raw(self, request: bytes, then: Callable[[socket.socket], None]) -> None:
        parts = urllib.parse.urlsplit(self.url)
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), timeout=60) as one:
            one.sendall(request)
            then(one)

    def half(self) -> None:
        body = json.dumps({"messages": talk(1, 3)}).encode()
        whole = head("/score", len(body)) + body
        self._raw(whole[: self.rng.randrange(1, len(whole))], lambda one: time.sleep(self.rng.random()))

    def gone(self) -> None:
        body = json.dumps({"messages": _ASK, "max_tokens": 200, "n": 4}).encode()
        self._raw(head("/v1/chat/completions", len(body)) + body, lambda one: time.sleep(0.1))

    def slow(self) -> None:
        body = json.dumps({"messages": _ASK, "max_tokens": 100, "n": 4, "stream": True}).encode()

        def sip(one: socket.socket) -> None:
            for _ in range(20):
                one.recv(64)
                time.sleep(0.1)

        self._raw(head("/v1/chat/completions", len(body)) + body, sip)


def run(server: ServerProcess, seconds: float, clients: int, rate: float = 0.0) -> dict[str, Any]:
    """What `clients` have seen of a server in so many seconds, and what became of it."""
    seen, until, began = Seen(), time.monotonic() + seconds, time.monotonic()
    pause = clients / rate if rate else 0.0

    def visit(number: int) -> None:
        visitor = Visitor(server.url, seen, number)
        due = time.monotonic() + pause * number / clients
        while time.monotonic() < until and server.alive:
            time.sleep(max(0.0, due - time.monotonic()))
            due += pause
            try:
                visitor.ask()
            except (httpx2.HTTPError, ValueError) as error:
                seen.wrong.append(f"{type(error).__name__}: {error}")
        visitor.close()

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(5.0, seconds / 20))
        if server.alive:
            memory.append((time.monotonic() - began, counted(server.url, "process_resident_memory_bytes")))
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - began
    wrong = [*seen.wrong, *damage(server)]
    warm = next((size for at, size in memory if at >= _WARM * seconds), memory[-1][1])
    return {
        "clients": clients,
        "seconds": elapsed,
        "requests": seen.statuses.total(),
        "requests_per_second": seen.statuses.total() / elapsed,
        "statuses": dict(sorted(seen.statuses.items())),
        "latency": {kind: _latency(seen.seconds[kind]) for kind in LATENCIES if seen.seconds[kind]},
        "memory_warm_bytes": warm,
        "memory_end_bytes": memory[-1][1],
        "memory_growth_bytes": memory[-1][1] - warm,
        "memory": [[round(at, 1), size] for at, size in memory[:: 1 + len(memory) // 200]],
        "programs": counted(server.url, "agentrm_compiled_programs") if server.alive else None,
        "wrong": wrong,
    }


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99))
    return {"count": len(seconds), "p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def show(found: dict[str, Any]) -> None:
    """Prints what `run` has found."""
    print(f"{found['requests']} answers in {found['seconds']:.0f} s, {found['requests_per_second']:.1f} a second")
    print("statuses " + ", ".join(f"{status}: {count}" for status, count in found["statuses"].items()))
    print(f"{'kind':12} {'count':>7} {'p50 s':>8} {'p99 s':>8}")
    for kind, row in found["latency"].items():
        print(f"{kind:12} {row['count']:7} {row['p50']:8.3f} {row['p99']:8.3f}")
    mib = 2**20
    print(
        f"resident memory {found['memory_warm_bytes'] / mib:.0f} MiB warm, {found['memory_end_bytes'] / mib:.0f} MiB at the end "
        f"({found['memory_growth_bytes'] / mib:+.0f})"
    )
    print("lost, logged or wrong: " + (f"{len(found['wrong'])}" if found["wrong"] else "nothing"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second together; 0: without a pause")
    parser.add_argument("--rm", help="a reward model to serve, instead of a tiny one")
    parser.add_argument("--policy", help="a policy to serve beside it")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/serving.json"))
    arguments = parser.parse_args(argv)
    if bool(arguments.rm) != bool(arguments.policy):
        parser.error("--rm and --policy go together")
    with tempfile.TemporaryDirectory() as folder:
        rm, policy = (arguments.rm, arguments.policy) if arguments.rm else write_models(Path(folder), tiny_chat())
        with ServerProcess([rm, "--policy", policy, "--max-body=1", "--arrival=5", "--stall=10"]) as server:
            found = run(server, 60 * arguments.minutes, arguments.clients, arguments.rate)
            server.send()
            code = server.wait(60)
    if code:
        found["wrong"].append(f"the server ended with exit code {code}")
    show(found)
    for one in found["wrong"][:20]:
        print(f"wrong: {one}", file=sys.stderr)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
