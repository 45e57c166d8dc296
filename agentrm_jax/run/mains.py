"""How train.py and search.py start: their command line is read and checked as a whole before they are called."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import ml_collections

from agentrm_jax.run import checks, command, flags, reference, workdirs


def run(name: str, main: Callable[[ml_collections.ConfigDict, Path], None], *, kept: str) -> NoReturn:
    """Runs `main` with the checked config and the workdir of the command line, and ends the process (`command.run`).

    Args:
      name: `train.py` or `search.py`.
      kept: what is left of a run that is interrupted.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)

    def work() -> None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(reference.usage(name))
            return
        config, workdir = flags.parse(sys.argv[1:], name)
        checks.check(config)
        workdirs.pin_date(config, workdir)
        main(config, workdir)

    command.run(work, kept=kept)
