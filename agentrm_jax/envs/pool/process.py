"""One worker process as the pool sees it: start it, write requests, read answers, notice that it hangs or died, kill it.

Everything happens on the event loop and nothing blocks it: the socket is non-blocking, and requests written in one turn of the
loop leave in one system call. A worker answers in order, so the first pending request is the one it works on.

Every process has a temporary folder of its own (`TMPDIR`), in which its engines write, and which is removed once the process has
ended: by this side when it closed, lost or killed it, by the worker itself when this side is gone. It stays behind only where both
are killed in the same moment.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from agentrm_jax.envs.pool.worker import FRAME
from agentrm_jax.types import JSON, State, Task, UserError

_CODE = "import sys; sys.path[:] = {path!r}; from agentrm_jax.envs.pool.worker import main; main({fd}, {folder!r})"
_CHUNK = 1 << 18
_MAX_FRAME = 1 << 28  # a longer reply is noise in the socket
_CLOSE_SECONDS = 2.0
_EXIT_SECONDS = 0.01  # between the end of its socket and the end of a process, which says how it ended


@dataclasses.dataclass(eq=False, slots=True)
class Call:
    """One request on its way, and everything needed to send it again.

    Attributes:
      operation: of `worker._answer`.
      arguments: of the operation, without a step's history.
      limit: seconds it may take from the moment the worker gets to it (or to its next sign of life).
      state: the state a step starts from.
      history: the worker is sent the recorded past of `state`; with `fresh` it must replay all of it.
      attempts: how often it failed; `passing` times more for a reason that is likely to pass.
      worker: where it was sent last.
    """

    operation: str
    arguments: tuple[Any, ...]
    future: "asyncio.Future[JSON]"
    limit: float
    began: float
    task: Task | None = None
    state: State | None = None
    history: bool = False
    fresh: bool = False
    attempts: int = 0
    passing: int = 0
    worker: "WorkerProcess | None" = None


class Started(NamedTuple):
    """A process, the leader of a session, and its temporary folder."""

    process: "subprocess.Popen[bytes]"
    folder: str


class Owner(Protocol):
    """What a worker process reports to."""

    def message(self, call: Call) -> tuple[Any, ...]: ...
    def answered(self, call: Call, kind: str, payload: JSON, replayed: int, seconds: float) -> None: ...
    def lost(self, worker: "WorkerProcess", calls: Sequence[Call], kind: str, reason: str) -> None: ...


class WorkerProcess:
    """A place for one process; the process is started with the first request and replaced when it is lost."""

    def __init__(self, settings: bytes, owner: Owner, start_timeout: float):
        self.pending: dict[int, Call] = {}
        self.sent = 0
        self.answered = 0  # requests this process did
        self.ready = False
        self.heard = 0.0  # when the worker last said something
        self._settings, self._owner, self._start_timeout = settings, owner, start_timeout
        self._deadline = self._suspect = self._started = 0.0
        self._sock: socket.socket | None = None
        self._processes: list[Started] = []  # the last one runs, earlier ones are dying
        self._out = bytearray()
        self._in = bytearray()
        self._ids = 0
        self._flushing = False
        self._finalizer = weakref.finalize(self, _end, self._processes)

    @property
    def pid(self) -> int | None:
        return self._processes[-1].process.pid if self._sock else None

    def send(self, call: Call) -> None:
        """Queues a request, and starts the process if there is none."""
        if self._sock is None:
            self._start()
        self._ids += 1
        self.sent += 1
        call.worker = self
        self._write(pickle.dumps((self._ids, *self._owner.message(call)), 5))
        self.pending[self._ids] = call
        if len(self.pending) == 1 and self.ready:
            self._next(asyncio.get_running_loop().time())

    def check(self, now: float) -> None:
        """Replaces the process if what it works on is overdue; forgets processes that have ended."""
        ended = [s for i, s in enumerate(self._processes) if not self._running(i) and s.process.poll() is not None]
        for started in ended:
            self._processes.remove(started)
            shutil.rmtree(started.folder, ignore_errors=True)
        if self._sock is None or not (self.pending or not self.ready) or now <= self._deadline:
            return
        if (
            self._suspect != self._deadline
        ):  # an answer may lie unread because the event loop itself was held up: look again
            self._suspect = self._deadline
            return
        head = next(iter(self.pending.values()), None)
        what = "start" if not self.ready else head.operation if head else "answer"
        limit = self._start_timeout if not self.ready or head is None else head.limit
        self.lose("timeouts", f"no {what} within {limit:g} s")

    def lose(self, kind: str, reason: str) -> None:
        """Kills the process with all it started, and hands its unanswered requests back to the owner."""
        self._disconnect()
        _kill(self._processes[-1].process)
        calls = list(self.pending.values())
        self.pending.clear()
        self._owner.lost(self, calls, kind, reason)

    async def close(self) -> None:
        """Ends the process: politely at first."""
        if self._sock is not None:
            self._write(pickle.dumps((0, "close"), 5))
            self._flush()
            asyncio.get_running_loop().remove_reader(self._sock.fileno())  # its end is not a crash now
            end = time.monotonic() + (_CLOSE_SECONDS if self.ready and not self.pending else 0.0)
            while time.monotonic() < end and self._exit_status() is None:
                await asyncio.sleep(0.005)
            self._disconnect()
        await asyncio.to_thread(_end, self._processes)

    def _running(self, index: int) -> bool:
        return self._sock is not None and index == len(self._processes) - 1

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            folder = tempfile.mkdtemp(prefix="agentrm-worker-")
        except OSError as e:
            raise UserError(
                f"environment workers need a temporary folder ({e}); set TMPDIR to one that is writable"
            ) from e
        ours, theirs = socket.socketpair()
        with theirs:
            code = _CODE.format(path=[p or os.getcwd() for p in sys.path], fd=theirs.fileno(), folder=folder)
            # Not multiprocessing: its children import the main module again, and with it JAX.
            # A fixed hash seed, because engines iterate over sets of strings, and a replay must come out the same.
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": "0", "TMPDIR": folder},
            )
        self._processes.append(Started(process, folder))
        ours.setblocking(False)
        self._sock, self.ready, self.answered = ours, False, 0
        self._in.clear()
        self._out.clear()
        self._deadline = loop.time() + self._start_timeout
        loop.add_reader(ours.fileno(), self._readable)
        self._write(self._settings)

    def _write(self, data: bytes) -> None:
        self._out += FRAME.pack(len(data)) + data
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._sock is None:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            try:
                while self._out:
                    del self._out[: self._sock.send(self._out)]
            except (BrokenPipeError, ConnectionResetError):
                self._out.clear()  # the reader is about to notice
        if self._out:
            loop.add_writer(self._sock.fileno(), self._flush)
        else:
            loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock.fileno())
            loop.call_later(_EXIT_SECONDS, self._ended, self._sock)
            return
        self._in += data
        now = asyncio.get_running_loop().time()
        self.heard = now
        position = 0
        try:
            while len(self._in) - position >= FRAME.size:
                (length,) = FRAME.unpack_from(self._in, position)
                if length > _MAX_FRAME:
                    raise ValueError(f"a frame of {length} bytes")
                if len(self._in) - position - FRAME.size < length:
                    break
                begin, position = position + FRAME.size, position + FRAME.size + length
                number, kind, payload, replayed = json.loads(self._in[begin:position])
                self._received(number, kind, payload, replayed, now)
        except (ValueError, TypeError) as e:
            self.lose("crashes", f"the worker process wrote nonsense: {e}")
            return
        del self._in[:position]

    def _ended(self, sock: socket.socket) -> None:
        if sock is self._sock:
            self.lose("crashes", f"the worker process ended{self._exit_text()}")

    def _received(self, number: int, kind: str, payload: JSON, replayed: int, now: float) -> None:
        if number == 0 and not self.ready:
            if kind != "ok":
                calls = list(self.pending.values())
                self.pending.clear()
                for call in calls:
                    self._owner.answered(call, kind, payload, 0, 0.0)
                return
            self.ready = True
            self._next(now)
            return
        if number != next(iter(self.pending), None):
            raise ValueError(f"a reply to request {number}, which is not being worked on")
        call = self.pending[number]
        if kind == "slow":
            self._deadline = now + max(self._start_timeout, call.limit)
        elif kind == "tick":
            self._deadline = now + call.limit
        else:
            del self.pending[number]
            self.answered += kind == "ok"
            seconds = now - self._started
            self._next(now)
            self._owner.answered(call, kind, payload, replayed, seconds)

    def _next(self, now: float) -> None:
        """The worker turns to the next pending request, as of now."""
        self._started = now
        for call in self.pending.values():
            self._deadline = now + call.limit
            break

    def _disconnect(self) -> None:
        assert self._sock is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock.fileno())
        loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._sock, self.ready = None, False

    def _exit_status(self) -> int | None:
        """How the process ended, without collecting it (its group stays ours to kill)."""
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PID, self._processes[-1].process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if result is None:
                return None
            return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        return 0

    def _exit_text(self) -> str:
        status = self._exit_status()
        if status is None:
            return ""
        if status < 0:
            with contextlib.suppress(ValueError):
                return f" by {signal.Signals(-status).name}"
        return f" with status {status}"


def resident_by_session() -> dict[int, int]:
    """Resident bytes by session: what a worker, which leads a session, takes with all that it started (a Java machine).

    Empty where the system does not tell.
    """
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):
        page = os.sysconf("SC_PAGE_SIZE")
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()  # from the third: state, parent, group, session, ...
                found[int(fields[3])] = found.get(int(fields[3]), 0) + int(fields[21]) * page
    return found


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(processes: list[Started]) -> None:
    """Kills and collects every process of the list and removes its folder; also run when the interpreter exits."""
    for started in processes:
        _kill(started.process)
    for started in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(10)
        shutil.rmtree(started.folder, ignore_errors=True)
    processes.clear()
