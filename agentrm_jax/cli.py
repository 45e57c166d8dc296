"""The console command `agentrm`: every command of the project under one name, wherever the package is installed.

`agentrm train --config=configs/sft.py` is `python train.py --config=configs/sft.py`, and `agentrm score` is
`python -m agentrm_jax.score`; nothing is done here but to start them.
"""

import runpy
import sys

from agentrm_jax.run import command, stages
from agentrm_jax.types import UserError

COMMANDS = {
    "train": "a policy by imitation, or a reward model on step values",
    "search": "with a policy, environments and a reward model; the methods are its configs",
    "score": "the steps of recorded trajectories by a reward model",
    "evaluate": "a reward model on labelled rows, beside rules that need no model",
    "convert": "rows of any layout into another one",
    "serve": "a reward model and a policy over HTTP",
    "export": "a model as a Hugging Face folder",
    "plan": "memory and compile a run for hardware that is not here",
    "report": "one page about one or more finished searches",
    "envs": "which environments there are; play, check and serve them",
    "demo": "the whole loop at small size, then a report",
}


def main() -> None:
    """Starts the command that the first argument names, with the others."""
    command.run(_start, kept="the same command continues")


def _start() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print("usage: agentrm COMMAND ...; agentrm COMMAND --help says more\n")
        print("\n".join(f"  {known:<8} {what}" for known, what in COMMANDS.items()))
        return
    if name not in COMMANDS:
        raise UserError(f"agentrm {name}: there is no such command; known: {', '.join(COMMANDS)}")
    if name in ("train", "search"):
        place = stages.home() / f"{name}.py"
        sys.argv = [str(place), *rest]
        runpy.run_path(str(place), run_name="__main__")
    else:
        module = f"agentrm_jax.{name}"
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__")
