"""Thousands of malformed requests to a real server: each is answered by name, and the server stays as it was.

    python -m benchmarks.malformed_requests [--cases 10000] [--seed 0] [--json FILE]

Requests of every endpoint are changed at random (as `benchmarks.malformed` changes rows: values of other types, numbers out of range,
missing and doubled keys, broken bytes, thousands of brackets), and so is HTTP itself (heads and bodies that are cut off, lengths that are
not true, chunks that are none, oversized bodies, wrong methods and paths). Prints what came of each kind; exit code 1 if anything was
answered with a 5xx, or with an error that is not one line of JSON, or the server logged, lost a slot, or ended.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.testing.server_process import ServerProcess, counted, write_models
from benchmarks.malformed import TEXTS, mutated, tiny_chat

_ASK = [{"role": "user", "content": "Is 7 prime?"}]
_TALK = [*_ASK, {"role": "assistant", "content": "Yes."}]
GOOD: tuple[tuple[str, Any], ...] = (
    ("/score", {"messages": _TALK}),
    ("/score", {"trajectories": [{"id": 1, "messages": _TALK}], "aggregate": "min"}),
    ("/classify", {"model": "rm", "input": ["a", "b c"], "use_activation": False}),
    ("/classify", {"messages": _TALK}),
    ("/pooling", {"input": [[4, 5, 6], [7]], "encoding_format": "base64", "truncate_prompt_tokens": 2}),
    ("/v1/chat/completions", {"messages": _ASK, "max_tokens": 2, "n": 2, "stop": ["x"], "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": _ASK, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": [4, 5], "max_tokens": 2, "seed": 3, "temperature": 0.5, "top_p": 0.9, "logprobs": 1}),
    ("/v1/search", {"messages": _ASK, "n": 2, "max_tokens": 2}),
    ("/v1/search", {"messages": _ASK, "method": "beam", "width": 2, "branch": 2, "max_tokens": 4, "delimiter": "a"}),
)  # fmt: skip
KINDS = ("fields", "texts", "oversized", "cut off", "HTTP")
_WEIGHTS = (70, 8, 2, 8, 12)
_BODY = 1 << 16  # bytes that the server takes


def head(path: str, length: int | str, *more: str, method: str = "POST") -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", "Connection: close", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def broken(kind: str, rng: random.Random) -> bytes:
    """The bytes of a request that is wrong in one way, or right by accident."""
    path, good = rng.choice(GOOD)
    body = json.dumps(good).encode()
    match kind:
        case "fields":
            body = mutated(good, rng)
            return head(path, len(body)) + body
        case "texts":
            body = rng.choice([*(text.encode("utf-8", "surrogatepass") for text in TEXTS), b"", rng.randbytes(40)])
            return head(path, len(body)) + body
        case "oversized":
            return head(path, rng.choice((_BODY + 1, 10**12))) + b" " * rng.choice((0, 10, _BODY + 1))
        case "cut off":
            whole = head(path, len(body)) + body
            return whole[: rng.randrange(len(whole))]
    noise = rng.randbytes(rng.choice((1, 30, 3000)))
    return rng.choice(
        (
            noise + b"\r\n\r\n",
            head(path, rng.choice(("-1", "x", "1e9", "0x10", "9" * 400))) + body,
            head(path, len(body), f"Content-Length: {len(body) + 1}") + body,
            head(path, len(body), "X: " + "y" * 100_000) + body,
            head(path, len(body), "Authorization: \udcff", "X-Request-Id: " + "z" * 500) + body,
            head(path, len(body), method=rng.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"))) + body,
            head(path + rng.choice(("/", "x", "/../..", "%00", "?aggregate=median", "?a=%ff&%%")), len(body)) + body,
            head("/v1/models/" + rng.choice(("nobody", "%2e%2e/%2e%2e/etc/passwd", "a" * 5000)), 0, method="GET"),
            head(path, len(body), "Expect: 100-continue")[:-2] + rng.choice((b"\r\n", b"")) + body,
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + rng.choice((b"zz\r\n", b"5\r\nab", b"-1\r\n\r\n", b"fffffffffffffffff\r\n", b"0\r\n\r\n")),
        )
    )  # fmt: skip


def send(url: str, request: bytes, *, gone: bool) -> bytes:
    """All that a server answers to some bytes, after which nothing more is sent, or the client has `gone`."""
    parts = urllib.parse.urlsplit(url)
    answer = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
        with contextlib.suppress(ConnectionError):  # it may answer and close while we still send
            connection.sendall(request)
            if gone:
                connection.shutdown(socket.SHUT_WR)
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionError:
            pass
        except TimeoutError:
            return b"HTTP/1.1 000 the connection stays open " + answer
    return answer


def verdict(answer: bytes) -> tuple[str, str]:
    """(`accepted`, `refused`, `closed` or `wrong`, why) of what a server has answered."""
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        return "closed", ""  # a request that never was whole, or whose sender has gone
    first, _, rest = answer.partition(b"\r\n")
    status = first.split()[1].decode() if len(first.split()) > 1 else ""
    if status == "200":
        return "accepted", ""
    if not status.startswith("4"):
        return "wrong", f"status {status}: {answer[:300]!r}"
    try:
        error, _ = json.JSONDecoder().raw_decode(rest.partition(b"\r\n\r\n")[2].decode())
        message = error["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return "wrong", f"an error without a message: {answer[:300]!r}"
    one_line = message and "\n" not in message and len(message) <= 1000 and "Traceback" not in message
    return ("refused", "") if one_line else ("wrong", f"a message that is not one line: {message!r:.300}")


def run(
    server: ServerProcess, cases: int, seed: int, threads: int = 8
) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Counts of what came of so many requests, by kind, and what was wrong."""
    rng = random.Random(seed)
    kinds = rng.choices(KINDS, _WEIGHTS, k=cases)
    requests = [broken(kind, random.Random(f"{seed} {i}")) for i, kind in enumerate(kinds)]
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in KINDS}
    wrong: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        answers = pool.map(lambda request: send(server.url, request, gone=len(request) % 4 == 0), requests)
        for kind, request, answer in zip(kinds, requests, answers, strict=True):
            found, why = verdict(answer)
            counts[kind][found] += 1
            if found == "wrong":
                wrong.append(f"{why}\n    {request[:400]!r}")
    return counts, wrong + damage(server)


def damage(server: ServerProcess, seconds: float = 60) -> list[str]:
    """What is not as it was at the start, once nothing is under way."""
    until = time.monotonic() + seconds
    while counted(server.url, "agentrm_requests_in_flight") and time.monotonic() < until:
        time.sleep(0.1)
    found = [f"{name} is {value:g}" for name in LOST if (value := counted(server.url, name))]
    if server.errors:
        found.append(f"the server wrote: {server.errors[-2000:]}")
    return found if server.alive else ["the server has ended"]


LOST = ("agentrm_requests_in_flight", "agentrm_cache_locks", "agentrm_cache_slots_lost")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.malformed_requests", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cases", type=int, default=10_000, help="requests in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/malformed_requests.json"))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        with start(Path(folder)) as server:
            before, began = counted(server.url, "process_resident_memory_bytes"), time.monotonic()
            counts, wrong = run(server, arguments.cases, arguments.seed)
            grown = counted(server.url, "process_resident_memory_bytes") - before if server.alive else 0
    rows = [{"kind": kind, **{name: counts[kind][name] for name in VERDICTS}} for kind in KINDS]
    print(f"{'kind':10} {'  '.join(VERDICTS)}")
    for row in rows:
        print(f"{row['kind']:10} " + "  ".join(f"{row[name]:{len(name)}}" for name in VERDICTS))
    seconds = time.monotonic() - began
    print(f"{arguments.cases} requests in {seconds:.0f} s; resident memory grew by {grown / 2**20:.0f} MiB")
    for one in wrong[:20]:
        print(f"wrong: {one}", file=sys.stderr)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    found = {"seed": arguments.seed, "seconds": seconds, "memory_growth_bytes": grown, "rows": rows}
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if wrong else 0


VERDICTS = ("accepted", "refused", "closed", "wrong")


def start(folder: Path) -> ServerProcess:
    """A server with tiny models that takes small requests, soon."""
    rm, policy = write_models(folder, tiny_chat())
    flags = ["--name=rm", "--policy-name=policy", "--max-length=128", f"--max-body={_BODY / 2**20}", "--arrival=1"]
    return ServerProcess([rm, "--policy", policy, *flags])


if __name__ == "__main__":
    sys.exit(main())
