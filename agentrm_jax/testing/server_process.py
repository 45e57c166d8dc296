"""The real server as a process of its own, on a free port, with tiny models of its own making."""

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SERVING = re.compile(r"serving .* at (http://\S+)")
_START_SECONDS = 240


class ServerProcess:
    """`python -m agentrm_jax.serve ARGUMENTS --port=0` while its block runs.

    Attributes:
      url: where it answers.
      pid: of the process.
    """

    def __init__(self, arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None):
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed on exit)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentrm_jax.serve", *map(str, arguments), "--port=0"],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})},
        )
        self.pid = self._process.pid
        self.url = ""

    def __enter__(self) -> "ServerProcess":
        assert self._process.stdout is not None
        until = time.monotonic() + _START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while time.monotonic() < until:
                if not selector.select(timeout=1):
                    continue
                line = self._process.stdout.readline()
                if found := _SERVING.match(line):
                    self.url = found[1]
                    return self
                if not line:
                    break
        self.__exit__()
        raise RuntimeError(f"the server did not start: {self.errors}")

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said = self.errors
        self._errors.close()

    @property
    def errors(self) -> str:
        """What it has written on standard error."""
        if self._errors.closed:
            return self._said
        self._errors.seek(0)
        return self._errors.read()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int = signal.SIGTERM) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(timeout=seconds)


def counted(url: str, name: str, **labels: str) -> float:
    """The sum of the numbers of one name at /metrics of a server, of those with these labels.

    Raises:
      KeyError: there is none.
    """
    import httpx2

    found = []
    for line in httpx2.get(url + "/metrics", trust_env=False, timeout=60).text.splitlines():
        head, _, number = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
            found.append(float(number))
    if not found:
        raise KeyError(f"{name} {labels} is not at /metrics")
    return sum(found)


def write_models(folder: Path, chat: Any, **sizes: Any) -> tuple[Path, Path]:
    """Folders of a tiny reward model and of a tiny policy with random weights, which have the tokens of `chat`.

    Args:
      sizes: fields of the models' config that are to differ from `tiny.TINY`.
    """
    from flax import nnx

    from agentrm_jax.export import write_hf
    from agentrm_jax.testing.tiny import tiny_model

    model = tiny_model(vocab_size=len(chat.tokenizer), **sizes)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    places = folder / "rm", folder / "policy"
    write_hf(params, model.config, chat, places[0], "SequenceClassification")
    write_hf(params, model.config, chat, places[1], "CausalLM")
    return places
