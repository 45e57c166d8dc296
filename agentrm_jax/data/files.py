"""Rows of anybody's files, one after another, each with the place where it stands.

JSON lines, a JSON array, JSON values one after another (pretty-printed too), each of them plain or as .gz, .xz or .bz2; Parquet; a
folder of such files; several places with commas between them; and `hf:NAME[:SPLIT]` or `hf:NAME:CONFIG:SPLIT`, a data set that the
package `datasets` opens. What a file is, its content says, not its name. Lines are read one at a time, never the whole file.
"""

import base64
import bz2
import contextlib
import dataclasses
import datetime
import decimal
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from agentrm_jax.data import fields
from agentrm_jax.types import JSON, UserError

Bad = Callable[[UserError], None]  # what is done about a row that cannot be read

_PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
}
_PARQUET = b"PAR1"
_BYTE_ORDER = b"\xef\xbb\xbf"  # the mark that some editors write first
_SUFFIXES = (".json", ".jsonl", ".parquet")
_PACKED_SUFFIXES = (".gz", ".xz", ".bz2")
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One row and where it stands.

    Attributes:
      value: what was read, usually an object.
      origin: file and line (entry, row), with which messages about it begin.
      file: the file, or the data set.
      fallback: what the row is called if it has no id: its number from 1, or its file's name where the file is that row alone.
      split: the split of a data set that it belongs to; empty if none is known.
    """

    value: JSON
    origin: str
    file: str
    fallback: str | int
    split: str = ""


def refuse(error: UserError) -> None:
    """Ends the reading at the first bad row."""
    raise error


@dataclasses.dataclass
class Skipped:
    """Counts bad rows instead: a `Bad` that keeps the first message."""

    count: int = 0
    first: str = ""

    def __call__(self, error: UserError) -> None:
        self.count += 1
        self.first = self.first or str(error)


def rows(places: str | Path, bad: Bad = refuse) -> Iterator[Row]:
    """The rows of all places, which are named as on a command line: files, folders and data sets, with commas between them.

    Args:
      bad: called with what is wrong with a row that is no JSON; the rows after it follow.

    Raises:
      UserError: there is nothing at a place, a file cannot be read or is damaged, or a place holds no row at all.
    """
    for place in listed(places):
        empty = True

        def noted(error: UserError) -> None:
            nonlocal empty
            empty = False
            bad(error)

        for row in _hub_rows(place) if place.startswith("hf:") else _files_rows(Path(place), noted):
            empty = False
            yield row
        if empty:
            raise UserError(f"{place} holds no trajectories, it is empty")


def listed(places: str | Path) -> list[str]:
    """The places that a value names; a path with a comma in it is one where it is there as a whole."""
    if isinstance(places, Path) or Path(places).exists():
        return [str(places)]
    return [part for place in places.split(",") if (part := place.strip())]


def files(place: Path) -> list[Path]:
    """The files of a place: itself, or a folder's by name (those of its folders where it has none itself).

    A workdir of a search is its `trajectories.jsonl`.

    Raises:
      UserError: there are none.
    """
    if (place / "trajectories.jsonl").exists():
        return [place / "trajectories.jsonl"]
    if (place / "trees" / "trees.jsonl").exists():
        raise UserError(f"{place} holds search trees, no trajectories; name the workdir of another search, or a file")
    if not place.is_dir():
        if not place.exists():
            raise UserError(f"no trajectories at {place}: no such file")
        return [place]
    for found in (place.iterdir(), place.rglob("*")):
        if named := sorted(p for p in found if _is_named(p) and p.is_file()):
            return named
    raise UserError(f"no trajectories at {place}: no .json or .jsonl file in it, nor .parquet, nor one of them packed")


def _is_named(path: Path) -> bool:
    plain = path.with_suffix("") if path.suffix in _PACKED_SUFFIXES else path
    return plain.suffix in _SUFFIXES and not path.name.startswith(".")


def _files_rows(place: Path, bad: Bad) -> Iterator[Row]:
    for path in files(place):
        yield from _file_rows(path, bad)


def _file_rows(path: Path, bad: Bad) -> Iterator[Row]:
    """The rows of a file, which is read once, so that it may be a pipe."""
    try:
        with contextlib.ExitStack() as opened:
            file: IO[bytes] = opened.enter_context(path.open("rb"))
            begin = _peek(file)
            if begin.startswith(_PARQUET):
                yield from _parquet_rows(path)
                return
            for magic, unpack in _PACKED.items():
                if begin.startswith(magic):
                    file = opened.enter_context(io.BufferedReader(unpack(file)))
            yield from _text_rows(file, path, bad)
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "it is damaged"
        raise UserError(f"{path} cannot be read: {reason}") from error


def _peek(file: Any) -> bytes:
    return file.peek(8)[:8]


# --- JSON ------------------------------------------------------------------------------------------------------------


def _text_rows(file: IO[bytes], path: Path, bad: Bad) -> Iterator[Row]:
    lines = _lines(file)
    begun: list[bytes] = []
    while sum(map(bool, map(bytes.strip, begun))) < 2 and (line := next(lines, None)) is not None:
        begun.append(line)
    head = [line for line in begun if line.strip()]
    if not head:
        return
    if head[0].lstrip().startswith(b"[") or (len(head) > 1 and not any(map(_is_json, head))):
        yield from _whole(path, b"".join(itertools.chain(begun, lines)))
        return
    alone = len(head) == 1 and ".json" in path.suffixes
    for number, line in enumerate(itertools.chain(begun, lines), 1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        try:
            value = fields.parse(_decoded(line, origin), origin)
        except UserError as error:
            bad(error)
            continue
        yield Row(value, origin, str(path), _stem(path) if alone else number)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(_BYTE_ORDER)


def _whole(path: Path, content: bytes) -> Iterator[Row]:
    """The rows of a file that is an array, or values one after another; what lies behind broken JSON cannot be found."""
    text = _decoded(content, str(path))
    at = _skip(text, 0)
    if text.startswith("[", at):
        yield from _entries(text, at + 1, path)
        return
    number = counted = 0
    line = 1
    while at < len(text):
        line, counted, number = line + text.count("\n", counted, at), at, number + 1
        origin = f"{path}, line {line}"
        value, at = _value(text, at, origin.__str__)
        at = _skip(text, at)
        alone = number == 1 and at == len(text)
        yield Row(value, str(path) if alone else origin, str(path), _stem(path) if alone else number)


def _entries(text: str, at: int, path: Path) -> Iterator[Row]:
    """The entries of an array whose bracket lies before `at`, one at a time."""

    def where() -> str:
        return f"{path}, entry {number}, line {1 + text.count(chr(10), 0, at)}"

    at = _skip(text, at)
    number = 0
    while not text.startswith("]", at):
        number += 1
        value, at = _value(text, at, where)
        yield Row(value, f"{path}, entry {number}", str(path), number)
        at = _skip(text, at)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise UserError(f"{where()}: not JSON (no comma or bracket after it)")
    if _skip(text, at + 1) < len(text):
        raise UserError(f"{path}: not JSON (text after the array's end)")


def _value(text: str, at: int, where: Callable[[], str]) -> tuple[JSON, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise UserError(f"{where()}: not JSON that can be read (it is nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{where()}: not JSON ({error})") from error


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _decoded(content: bytes, origin: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} cannot be read: {error}") from error


def _is_json(line: bytes) -> bool:
    try:
        fields.parse(line, "")
    except UserError:
        return False
    return True


def _stem(path: Path) -> str:
    return path.name.partition(".json")[0] or path.stem


# --- Tables ----------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow") from error
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=256)
        found = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, value in enumerate(found, 1):
            yield Row(_plain(value), f"{path}, row {number}", str(path), number)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _hub_rows(place: str) -> Iterator[Row]:
    """The rows of a data set: of one split, or of all."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{place} needs the package datasets: pip install 'agentrm-jax[hf]'") from error
    name, *rest = place.removeprefix("hf:").split(":")
    *config, split = rest or [""]
    if not name or len(config) > 1:
        raise UserError(f"{place}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    try:
        loaded = datasets.load_dataset(name, *config, split=split or None)
    except Exception as error:  # of the network, of the hub, of the data set's own code
        raise UserError(f"{place} cannot be opened: {error}") from error
    splits: Iterable[tuple[str, Any]] = [(split, loaded)] if split else loaded.items()
    for part, data in splits:
        for number, value in enumerate(data, 1):
            yield Row(_plain(value), f"{place}, {part} row {number}", place, number, part)


def _plain(value: Any) -> JSON:
    """A value of a table as JSON. Columns hold None where a row lacks them, so None inside an object is left out."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    return value
