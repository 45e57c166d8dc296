"""Checksums of the files of a checkpoint: a bit that a disk or a copy changed is noticed before it is trained on or served.

Orbax's own formats check some of their files only; a changed bit in an array is loaded without a word.
"""

import concurrent.futures
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.files import write_json

_PREFIX = "checksums."  # of the files that hold them, one for each process that computed some
_CHUNK = 1 << 24  # bytes read at once
_THREADS = 8


def write(folder: Path, *, process: int = 0, processes: int = 1) -> None:
    """Writes size and CRC-32 of this process's share of the files of a finished checkpoint, into its folder."""
    mine = _files(folder)[process::processes]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # zlib lets other threads run
        rows = dict(zip(mine, pool.map(lambda name: _measure(folder / name), mine), strict=True))
    write_json(folder / f"{_PREFIX}{process}.json", rows, indent=None)


def find_damage(folder: Path, items: Sequence[str] = (), *, process: int = 0, processes: int = 1) -> str:
    """What is wrong with this process's share of a checkpoint's files: "" if nothing is, else the first file and why.

    `items` are the parts of the checkpoint to look at (folders, all by default). Checkpoints without checksums, from before
    there were any or from a run that was killed just then, pass.
    """
    known: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        try:
            known |= {name: (int(size), int(crc)) for name, (size, crc) in json.loads(path.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return f"{path.name} cannot be read"
    wanted = [name for name in sorted(known) if not items or name.split("/")[0] in items]

    def check(name: str) -> str:
        try:
            return "" if _measure(folder / name) == known[name] else f"{name} is not what was written"
        except OSError as error:
            return f"{name}: {error.strerror}"

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return next(filter(None, pool.map(check, wanted[process::processes])), "")


def one_line(error: Exception) -> str:
    """What a file format's error says, in one line of at most 200 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder, sorted, those with checksums left out."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if not name.startswith(_PREFIX))


def _measure(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
