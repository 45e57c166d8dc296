"""Policy and reward model behind two vLLM servers: OpenAI's completions and vLLM's `/classify` over HTTP, with token ids in and out."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Action, State
from agentrm_jax.window import Window
from benchmarks.peers import GENERATORS, PeerDied, environment

_PATIENCE = 600.0  # seconds for a start or an answer
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A vLLM server of a model folder on a free port; stopped (SIGSTOP) until `awake`.

    Args:
      runner: `generate` or `pooling`.

    Raises:
      PeerDied: it does not come up.
    """

    def __init__(self, model: Path, *, runner: str, dtype: str, room: int, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}", log
        command = [os.environ[GENERATORS[0].variable], "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(model), "--served-model-name", "it", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--runner", runner, "--dtype", dtype, "--max-model-len", str(room), "--enable-prefix-caching"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            own = environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=own, start_new_session=True)

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(OSError):
                _direct.open(f"{self.url}/health", timeout=5).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise PeerDied(f"a server did not come up (see {self._log})")
            time.sleep(0.5)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
          PeerDied: there is none.
        """
        data = json.dumps({"model": "it", **body}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with _direct.open(request, timeout=_PATIENCE) as answer:
                return json.load(answer)
        except OSError as error:
            raise PeerDied(f"POST {path}: {error} (see {self._log})") from None

    def awake(self, on: bool) -> None:
        """Lets it run, or stops it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGCONT if on else signal.SIGSTOP)

    def close(self) -> None:
        """Ends it and all that it started."""
        if self._process.returncode is None:  # else its number may be another process's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class ServedPolicy:
    """Implements `Policy` with a server's completions of a forced length."""

    def __init__(self, server: Server, encoder: Encoder, *, new: int, room: int):
        self._server, self._encoder, self._new, self._window = server, encoder, new, Window(room - new)

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        path = self._window.path(self._encoder.history(state))
        body = {"prompt": path.tolist(), "n": n, "temperature": temperature, "seed": seed, "return_token_ids": True}
        body |= {"max_tokens": self._new, "min_tokens": self._new, "ignore_eos": True}
        answer = await asyncio.to_thread(self._server.post, "/v1/completions", body)
        return actions(self._encoder, [choice["token_ids"] for choice in answer["choices"]])


class ServedRewardModel:
    """Implements `RewardModel` with a server's classification: all states of a call in one request."""

    def __init__(self, server: Server, encoder: Encoder, *, room: int):
        self._server, self._encoder, self._window = server, encoder, Window(room)

    async def score(self, states: Sequence[State]) -> list[float]:
        paths = [self._window.path(self._encoder.turn(state)).tolist() for state in states]
        body = {"input": paths, "use_activation": False}
        answer = await asyncio.to_thread(self._server.post, "/classify", body)
        return [float(found["probs"][0]) for found in answer["data"]]


def actions(encoder: Encoder, samples: Sequence[Sequence[int]]) -> list[Action]:
    """Sampled ids as turns."""
    return [Action(encoder.chat.decode(tokens), tuple(tokens), 0.0, "length") for tokens in samples]
