"""`python -m agentrm_jax.envs serve`: an environment on a port, for trainers that speak AgentGym's or OpenEnv's protocol."""

import argparse
import sys
from collections.abc import Callable, Sequence

from agentrm_jax.envs.catalogue import listed
from agentrm_jax.envs.serve.server import Settings, serve
from agentrm_jax.envs.serve.sessions import Offer
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import Task, UserError


def add_arguments(parser: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """The flags of the command; `number` reads a whole number above 0."""
    default = Settings()
    parser.add_argument("--host", default=default.host, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=default.port, help="0: any that is free; it is printed")
    parser.add_argument("--workers", type=number, default=default.workers, help="processes for engines")
    parser.add_argument("--sessions", type=number, default=default.sessions, help="episodes at once, at most")
    for name, text in (
        ("session_timeout", "seconds after which an unused session is closed"),
        ("step_timeout", "seconds a step may take"),
        ("grace", "seconds that requests under way have at the end"),
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=float, default=getattr(default, name), metavar="S", help=text)


def run(spec: EnvSpec, place: str, options: Options, splits: Sequence[str], arguments: argparse.Namespace) -> int:
    """Serves the environment until SIGTERM or SIGINT; 0 then.

    Raises:
      UserError: a flag is out of range, the split has no tasks, or what `serve` raises.
    """
    settings = Settings(**{name: getattr(arguments, name) for name in Settings.__dataclass_fields__})
    if not 0 <= settings.port < 1 << 16:
        raise UserError(f"--port {settings.port}: a port is a number from 0 to 65535")
    for name in ("session_timeout", "step_timeout"):
        if not 0 < getattr(settings, name) < 1e6:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 and below a million seconds")
    if not 0 <= settings.grace < 1e6:
        raise UserError("--grace must be a number of seconds, at least 0")
    tasks: dict[str, Sequence[Task]] = {}
    for split in splits:
        try:
            found = listed(place, spec, split, options)
        except UserError:
            if split == arguments.split:
                raise
            continue  # an environment need not have the other splits
        if found:
            tasks[split] = found
    if arguments.split not in tasks:
        raise UserError(f"{spec.name} has no tasks in split {arguments.split}")
    offer = Offer(spec.at_threshold(options), tasks, arguments.split)

    def started(address: str) -> None:
        counts = ", ".join(f"{len(found)} {split}" for split, found in tasks.items())
        print(f"serving {spec.name} ({counts} tasks; numbers count {arguments.split}) on {address}", flush=True)
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            print(f"whoever reaches {settings.host} can play; there are no accounts", file=sys.stderr, flush=True)

    serve(place, offer, options, settings, started)
    return 0
