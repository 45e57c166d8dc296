"""The folder of a run: the config it was made with, how that may change, and the mark of a finished run."""

import contextlib
import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from agentrm_jax.data import formats
from agentrm_jax.files import read_json, write_atomically, write_json
from agentrm_jax.run import keys, lock
from agentrm_jax.run.checks import show
from agentrm_jax.types import JSON, UserError

CONFIG, CHANGES, DONE, COMMAND = "config.json", "config_changes.jsonl", "done.json", "command.txt"


@dataclasses.dataclass(frozen=True)
class Change:
    """A key whose value differs from the one the run was made with, and what the difference does (empty: nothing)."""

    name: str
    old: JSON
    new: JSON
    effect: str = ""

    def __str__(self) -> str:
        old = "not there" if self.old is None else show(self.old)
        return f"{self.name}: {old}, now {show(self.new)}"


def compare(config: ml_collections.ConfigDict, workdir: Path) -> list[Change]:
    """How `config` differs from the one that a workdir was made with; nothing in an empty or new folder. Writes nothing.

    Raises:
      UserError: it differs in something that changes results, the workdir's config cannot be read, or the folder holds other things.
    """
    if not (workdir / CONFIG).exists():
        names = [p.name for p in workdir.iterdir()] if workdir.is_dir() else []
        if others := sorted(n for n in names if n not in (lock.NAME, COMMAND) and not n.startswith(".")):
            raise UserError(f"--workdir={workdir} holds {others[0]} and is no folder of a run; name a new one")
        return []
    before, now = keys.flatten(read_json(workdir / CONFIG)), keys.flatten(_resolved(config))
    known = ((name, keys.find(name, keys.roles(config))) for name in now.keys() - before.keys())
    before |= {name: key.before for name, key in known if key is not None and key.before is not None}
    changes = [
        Change(name, before.get(name), now.get(name), _raised(name, before.get(name), now.get(name), config))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if refused := [c for c in changes if not c.effect and not _is_steady(c.name, config)]:
        raise UserError(
            f"{workdir} was made with another config (differs in: {'; '.join(map(str, refused))}); choose another --workdir"
        )
    return changes


def pin_date(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Sets the config's empty `date` to the day the run began, so that templates that read the clock say the same to its end."""
    if not config.date:
        today = datetime.date.today().isoformat()
        with config.unlocked():
            config.date = read_config(workdir).get("date", "") if (workdir / CONFIG).exists() else today


def _is_steady(name: str, config: ml_collections.ConfigDict) -> bool:
    key = keys.find(name, keys.roles(config))
    return key is not None and key.steady


def _raised(name: str, old: JSON, new: JSON, config: ml_collections.ConfigDict) -> str:
    """What raising a key does, if it was raised and may be; a list is as high as its last number."""
    key = keys.find(name, keys.roles(config))
    if key is None or not key.raised or old is None or new is None:
        return ""
    low, high = (v[-1] if isinstance(v, list) else v for v in (old, new))
    return key.raised if low < high else "other batch shapes" if low == high else ""


@contextlib.contextmanager
def begun(config: ml_collections.ConfigDict, workdir: Path, *, write: bool = True) -> Iterator[None]:
    """Makes the workdir, locks it for this process until its command ends, and writes `config.json`; within the block the run's first
    results are made. If the block fails before there are any, nothing is left behind that would bind the next command.

    Where a run that has begun goes on with other values (`compare`), these are noted in `config_changes.jsonl` and said; more steps
    lift its done mark.

    Args:
      write: false in all but one of several processes that share the workdir; they do nothing here.

    Raises:
      UserError: the config does not fit the workdir (`compare`), the folder cannot be written, or another process is writing it.
    """
    if not write:
        yield
        return
    is_new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(workdir)
        changes = compare(config, workdir)
        _write(config, workdir, changes)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error
    for change in changes:
        effect = f" ({change.effect})" if change.effect else ""
        print(f"{workdir} goes on with another {change}{effect}", file=sys.stderr)
    try:
        yield
    except BaseException:
        if {p.name for p in workdir.iterdir()} <= {CONFIG, COMMAND, lock.NAME}:
            for name in (CONFIG, COMMAND):
                (workdir / name).unlink(missing_ok=True)
            lock.release_all()
            if is_new:
                workdir.rmdir()
        raise


def _write(config: ml_collections.ConfigDict, workdir: Path, changes: Sequence[Change]) -> None:
    if is_extended(changes):
        (workdir / DONE).unlink(missing_ok=True)
    if changes:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        formats.append_jsonl(
            workdir / CHANGES, ({"time": now, "key": c.name, "old": c.old, "new": c.new} for c in changes)
        )
    if not (workdir / CONFIG).exists():
        write_atomically(workdir / COMMAND, shlex.join(["python", *sys.argv]) + "\n")
    if changes or not (workdir / CONFIG).exists():
        write_json(workdir / CONFIG, _resolved(config))


def command_of(workdir: Path) -> str:
    """The command line that makes this run: as it was typed at its begin, with the flags of what was changed since; empty where the
    folder does not say."""
    path, changed = workdir / COMMAND, {}
    if not path.exists():
        return ""
    command = path.read_text(errors="replace").strip()
    if (workdir / CHANGES).exists():
        changed = {row["key"]: row["new"] for row in formats.read_jsonl(workdir / CHANGES)}
    typed = [word for word in shlex.split(command) if word.partition("=")[0].removeprefix("--config.") not in changed]
    return (
        shlex.join([*typed, *(f"--config.{key}={show(value)}" for key, value in changed.items())])
        if changed
        else command
    )


def is_extended(changes: Sequence[Change]) -> bool:
    """Whether a run that may be finished is to take more steps, or to train more seeds."""
    return any(change.name in ("total_steps", "patience", "seeds") for change in changes)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a run was made with; empty where the folder holds none.

    Raises:
      UserError: it cannot be read.
    """
    path = workdir / CONFIG
    return ml_collections.ConfigDict(read_json(path) if path.exists() else {})


def is_finished(workdir: Path) -> bool:
    """Whether the run is complete. A mark that is empty or damaged does not count: the run's command makes it again."""
    try:
        return isinstance(read_json(workdir / DONE), dict)
    except UserError:
        return False


def facts(workdir: Path) -> dict[str, JSON]:
    """What `finish` wrote."""
    return read_json(workdir / DONE)


def finish(workdir: Path, **facts: JSON) -> None:
    """Marks a run as complete; what needs it later looks for this mark."""
    write_json(workdir / DONE, facts, indent=None)


def _resolved(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())
