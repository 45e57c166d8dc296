"""Other programs beside ours: a process each, in the Python environment that a variable names, asked over a pipe.

A peer that is not asked is stopped (SIGSTOP), so that threads of its which wait by spinning cost nobody anything.
"""

import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import jax_cores

_WORKERS = Path(__file__).with_name("workers")
_PATIENCE = 600.0  # seconds for an answer


class PeerDied(Exception):
    """A peer cannot be started, or gave no answer; the text says why."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a peer is started.

    Attributes:
      variable: environment variable with the Python of an environment that has `modules`.
      script: a file in `workers`.
      job: (folder of the models, options of `running`) -> what the script is told.
    """

    name: str
    variable: str
    modules: tuple[str, ...]
    script: str
    job: Callable[[Path, Mapping[str, Any]], dict[str, Any]]

    def missing(self) -> str | None:
        """Why it cannot be compared with; None if it can."""
        return missing(self.variable, self.modules)


def _vllm(dtype: str, runner: str, model: str, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": str(folder / model), "dtype": dtype, "runner": runner, "max_model_len": options["room"]}


def _llama(file: str, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"sequences": options["sequences"], "room": options["sequence_room"]}
    return {"model": str(folder / file), "threads": jax_cores(), **sizes}


def _transformers(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"policy": str(folder / "policy"), "reward": str(folder / "reward"), "threads": jax_cores()}


_VLLM, _TORCH, _LLAMA = "AGENTRM_VLLM_PYTHON", "AGENTRM_TORCH_PYTHON", "AGENTRM_LLAMA_PYTHON"


def _vllm_kind(name: str, dtype: str, runner: str, model: str) -> Kind:
    return Kind(name, _VLLM, ("vllm",), "vllm_worker.py", functools.partial(_vllm, dtype, runner, model))


GENERATORS = (
    _vllm_kind("vLLM float32", "float32", "generate", "policy"),
    _vllm_kind("vLLM bfloat16", "bfloat16", "generate", "policy"),
    Kind("llama.cpp Q4_1", _LLAMA, ("llama_cpp",), "llama_worker.py", functools.partial(_llama, "q4_1.gguf")),
    Kind("llama.cpp F16", _LLAMA, ("llama_cpp",), "llama_worker.py", functools.partial(_llama, "f16.gguf")),
    Kind("transformers", _TORCH, ("torch", "transformers"), "transformers_worker.py", _transformers),
)
SCORERS = (
    _vllm_kind("vLLM float32", "float32", "pooling", "reward"),
    _vllm_kind("vLLM bfloat16", "bfloat16", "pooling", "reward"),
    GENERATORS[-1],
)
VARIABLES = {_VLLM: "vllm", _TORCH: "torch, transformers (and peft for training)", _LLAMA: "llama-cpp-python"}


@functools.cache
def missing(variable: str, modules: tuple[str, ...]) -> str | None:
    """Why there is no environment with these modules; None if there is."""
    python = os.environ.get(variable)
    if not python:
        return f"{variable} names no Python with {', '.join(modules)}"
    try:
        command = [python, "-c", f"import {', '.join(modules)}"]
        found = subprocess.run(command, capture_output=True, text=True, env=environment())
    except OSError as error:
        return f"{variable}={python}: {error.strerror}"
    return f"{variable}={python}: {found.stderr.strip().splitlines()[-1]}" if found.returncode else None


def environment() -> dict[str, str]:
    """The environment of a peer: two cores for vLLM, in one process, with 2 GiB of keys and values; nothing is fetched."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS", "LD_PRELOAD")}
    return own | inherited


class Peer:
    """A process that answers questions; it is stopped between them.

    Attributes:
      seconds_to_start: from the start of its process until it was ready.
    """

    def __init__(self, name: str, command: list[str], log: Path):
        self.name = name
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        begin = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                start_new_session=True,
            )
        self._buffer, self._over = b"", ""
        self._read()
        self.seconds_to_start = time.perf_counter() - begin
        self._signal(signal.SIGSTOP)

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer of a handler of its worker.

        Raises:
          PeerDied: there is none; the process is ended.
        """
        if self._over:
            raise PeerDied(self._over)
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):  # reading says why
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Ends the process and all that it started."""
        if self._process.returncode is None:  # else its number may be another process's
            self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        out, deadline = self._process.stdout.fileno(), time.monotonic() + _PATIENCE
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([out], [], [], max(deadline - time.monotonic(), 0))
            more = os.read(out, 1 << 20) if ready else b""
            if not more:
                self._fail(f"no answer within {_PATIENCE:.0f} s" if not ready else self._last_words())
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            self._fail(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        said = f": {lines[-1][:200]}" if lines else ""
        return f"its process ended{said} (see {self._log})"

    def _fail(self, why: str) -> None:
        self.close()
        self._over = why
        raise PeerDied(why)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def start(kind: Kind, folder: Path, logs: Path, **options: Any) -> Peer:
    """A peer with the models in `folder`.

    Raises:
      PeerDied: its environment is missing, or it did not come up.
    """
    if why := kind.missing():
        raise PeerDied(why)
    command = [os.environ[kind.variable], str(_WORKERS / kind.script), json.dumps(kind.job(folder, options))]
    name = "".join(c if c.isalnum() else "_" for c in f"{kind.name} {options.get('role', '')}".strip())
    return Peer(kind.name, command, logs / f"{name}.log")


@contextlib.contextmanager
def running(peers: list[Peer]) -> Iterator[list[Peer]]:
    """Ends peers, whatever happens; the list may be added to."""
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()
