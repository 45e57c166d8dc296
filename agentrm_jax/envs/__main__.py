"""What environments there are, and whether they work here.

    python -m agentrm_jax.envs [list] [--data DIR]
    python -m agentrm_jax.envs play TASK [--task ID] [--split test] [--option KEY=VALUE ...]
    python -m agentrm_jax.envs check TASK [--n 5]
    python -m agentrm_jax.envs experts TASK --n N --out FILE [--split train]
    python -m agentrm_jax.envs speed TASK
    python -m agentrm_jax.envs serve TASK [--port 8000]

TASK is an environment's name, or the import path of a module of your own. Exit code 1: a check failed; 2: something you can mend.
"""

import argparse
import ast
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.data import formats
from agentrm_jax.envs.catalogue import find, listed, names
from agentrm_jax.envs.commands import check as _cli_check
from agentrm_jax.envs.commands import play as _cli_play
from agentrm_jax.envs.commands import serve as _cli_serve
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.run.command import Parser, exit_code
from agentrm_jax.types import Task, Trajectory, UserError

_SPLITS = ("train", "dev", "test")
_COLUMNS = ("task", "engine", "installed", *_SPLITS, "expert", "steps/s", "licence", "extra")
_LIST_SECONDS = 0.2  # how long each environment is stepped for the list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""

    def work() -> int:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)

    return exit_code(work)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m agentrm_jax.envs", description="What environments there are, and whether they work here."
    )
    parser.set_defaults(run=_list, data="")
    parser.add_argument("--data", default="", metavar="DIR", help="folder of official files")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: object, text: str, split: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "env", metavar="TASK", help="environment: a name from the list, or the import path of a module"
        )
        sub.add_argument("--split", default=split, choices=_SPLITS)
        sub.add_argument("--data", default="", metavar="DIR", help="folder of official files")
        sub.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the environment")
        return sub

    listing = commands.add_parser("list", help="all environments (also without COMMAND)")
    listing.set_defaults(run=_list)
    listing.add_argument("--data", default="", metavar="DIR", help="folder of official files")
    play = command("play", _play, "play an episode yourself", "test")
    play.add_argument("--task", default="", metavar="ID", help="task id, or its number; the first one if not given")
    check = command("check", _check, "let the expert play, replay what it did, compare every answer", "test")
    check.add_argument("--n", type=_positive, default=5, metavar="N", help="tasks, spread over the split")
    experts = command("experts", _experts, "write the expert's solved episodes", "train")
    experts.add_argument(
        "--n", type=_positive, required=True, metavar="N", help="tasks from the beginning of the split"
    )
    experts.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines; an existing file is continued"
    )
    experts.add_argument("--workers", type=_positive, default=1)
    for sub in (check, experts):
        sub.add_argument(
            "--time-limit", type=float, default=60.0, metavar="S", help="seconds the expert has for a task"
        )
    speed = command("speed", _speed, "how fast it is here", "test")
    speed.add_argument("--seconds", type=float, default=3.0)
    serve = command("serve", _serve, "offer it to trainers over AgentGym's and OpenEnv's protocol", "train")
    _cli_serve.add_arguments(serve, _positive)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _options(arguments: argparse.Namespace, spec: EnvSpec) -> Options:
    """The options of the command line; a value is read as Python where it can be, as text otherwise."""
    options = {"data": arguments.data} if arguments.data else {}
    for item in arguments.option:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--option {item}: write KEY=VALUE")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    spec.check(options)
    return options


def _tasks(spec: EnvSpec, arguments: argparse.Namespace, options: Options) -> Sequence[Task]:
    tasks = listed(arguments.env, spec, arguments.split, options)
    if not tasks:
        raise UserError(f"{spec.name} has no tasks in split {arguments.split}")
    return tasks


def _list(arguments: argparse.Namespace) -> int:
    """Prints a line for every environment, and below what was found of official data."""
    if arguments.data and not Path(arguments.data).is_dir():
        raise UserError(f"--data {arguments.data}: there is no such folder")
    rows: list[tuple[str, ...]] = [_COLUMNS]
    notes: list[str] = []
    for name in names():
        try:
            spec = find(name)
        except UserError as error:  # its module cannot do without its engine
            rows.append((name, *["-"] * (len(_COLUMNS) - 1)))
            notes.append(_note(name, str(error)))
            continue
        made, speed = _tried(spec)
        counts = {split: _count(spec, split, {}) for split in _SPLITS}
        expert = "yes" if spec.expert else "no"
        installed = "no" if made else "yes"
        shown = [str(counts[split] or "-") for split in _SPLITS]
        rows.append((name, spec.engine, installed, *shown, expert, speed, spec.licence, spec.extra or "-"))
        if made:
            notes.append(_note(name, made))
        if arguments.data:
            notes.append(_note(name, _official(spec, arguments.data)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if notes:
        print("", *notes, sep="\n")
    return 0


def _note(name: str, text: str) -> str:
    return text if text.startswith(name) else f"{name}: {text}"


def _tried(spec: EnvSpec) -> tuple[str, str]:
    """(why the engine cannot be built, in a line, empty if it can; steps a second of the expert's episode). Builds it to find out."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some engines greet
            rate = _cli_check.steps_per_second(spec, _LIST_SECONDS)
    except UserError as error:
        return str(error), "-"
    return "", f"{rate:,.0f}" if rate else "-"


def _count(spec: EnvSpec, split: str, options: Options) -> int:
    try:
        return len(spec.tasks(split, options))
    except UserError:
        return 0


def _official(spec: EnvSpec, data: str) -> str:
    """What of the folder `data` the environment uses: its tasks in the splits that differ from those without data."""
    found, errors = [], []
    for split in _SPLITS:
        try:
            official = [task.key for task in spec.tasks(split, {"data": data})]
        except UserError as error:
            errors.append(str(error))
            continue
        try:
            generated = [task.key for task in spec.tasks(split, {})]
        except UserError:
            generated = []
        if official != generated:
            found.append(f"{split} {len(official)}")
    if found:
        return f"official tasks found: {', '.join(found)}"
    return f"no official tasks found{f' ({errors[-1]})' if errors else ''}"


def _play(arguments: argparse.Namespace) -> int:
    spec = find(arguments.env)
    options = _options(arguments, spec)
    tasks = _tasks(spec, arguments, options)
    wanted = arguments.task
    chosen = [t for t in tasks if wanted in (t.id, t.key)] or ([] if wanted else [tasks[0]])
    if not chosen and wanted.isdecimal() and int(wanted) < len(tasks):
        chosen = [tasks[int(wanted)]]
    if not chosen:
        raise UserError(
            f"{spec.name} has no task {wanted!r} in split {arguments.split}; "
            f"take a number below {len(tasks)}, or an id such as {tasks[0].id}"
        )
    return _cli_play.play(spec, options, chosen[0], sys.stdin)


def _check(arguments: argparse.Namespace) -> int:
    spec = find(arguments.env)
    options = _options(arguments, spec)
    tasks = _tasks(spec, arguments, options)
    n = min(arguments.n, len(tasks))
    spread = [tasks[i * len(tasks) // n] for i in range(n)]
    return _cli_check.check(spec, arguments.env, options, spread, arguments.time_limit)


def _experts(arguments: argparse.Namespace) -> int:
    spec = find(arguments.env)
    options = _options(arguments, spec)
    tasks = _tasks(spec, arguments, options)[: arguments.n]
    out = arguments.out
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: not a file in an existing folder")
    done = {t.task.key for t in formats.read_trajectories(out)} if out.exists() else set()

    def write(trajectory: Trajectory) -> None:
        formats.append_jsonl(out, [formats.trajectory_to_json(trajectory)])

    return _cli_check.experts(spec, options, tasks, done, write, arguments.time_limit, arguments.workers)


def _speed(arguments: argparse.Namespace) -> int:
    spec = find(arguments.env)
    options = _options(arguments, spec)
    return _cli_check.speed(spec, options, arguments.split, arguments.seconds)


def _serve(arguments: argparse.Namespace) -> int:
    spec = find(arguments.env)
    options = _options(arguments, spec)
    return _cli_serve.run(spec, arguments.env, options, _SPLITS, arguments)


if __name__ == "__main__":
    sys.exit(main())
