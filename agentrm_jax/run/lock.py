"""One process at a time writes a workdir: `lock.json` says which (process, host, since when)."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from agentrm_jax.types import JSON, UserError

NAME = "lock.json"

_held: set[Path] = set()  # of this process; given back when its command ends


def acquire(workdir: Path) -> None:
    """Makes this process the one that writes `workdir`, an existing folder. A lock whose process has ended on this host is taken over.

    Raises:
      UserError: another process holds it, or seems to from another host.
    """
    path = workdir.resolve() / NAME
    if path in _held:
        return
    with _opened(path) as file:
        owner = _owner(file)
        if owner and _may_be_alive(owner):
            since = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
            if owner["host"] == socket.gethostname():
                raise UserError(f"{workdir} is in use by {since}; wait for it, or choose another --workdir")
            raise UserError(f"{workdir} is in use by {since}; if that process is gone, remove {path}")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "started": _started(os.getpid())}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(mine) + "\n")
        file.flush()
    _held.add(path)


def release_all() -> None:
    """Gives back all locks of this process."""
    while _held:
        with contextlib.suppress(OSError):
            _held.pop().unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The lock's file, which nobody else on this host looks at or changes within the block."""
    while True:
        with path.open("a+") as file:
            with contextlib.suppress(OSError):  # some network file systems cannot
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(path, file):
                continue  # its owner removed it while we waited
            file.seek(0)
            yield file
            return


def _is_still(path: Path, file: IO[str]) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _owner(file: IO[str]) -> dict[str, JSON] | None:
    """Who holds the lock; None if it was never written, or only in part."""
    try:
        row = json.load(file)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"pid", "host", "since", "started"} <= row.keys() else None


def _may_be_alive(owner: dict[str, JSON]) -> bool:
    """Whether the process that took a lock is running, as far as can be seen from this host."""
    if owner["host"] != socket.gethostname():
        return True
    pid = owner["pid"]
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        pass
    return not owner["started"] or _started(pid) == owner["started"]


def _started(pid: int) -> str:
    """What tells a process from a later one of the same number: this boot and the tick of its start; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""
