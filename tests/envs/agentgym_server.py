"""A small AgentGym server on loopback, which can misbehave in all the ways that theirs do, and what tests say to it."""

import asyncio
import dataclasses
import http.server
import json
import socket
import threading
import time
import urllib.parse

from agentrm_jax.envs.agentgym import environment as agentgym
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.types import Action


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
