"""The stages of the whole loop: which main makes which run, what it is for, and what a run needs of earlier ones."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import ml_collections

from agentrm_jax import places
from agentrm_jax.run.workdirs import is_finished
from agentrm_jax.types import UserError

DISTRIBUTED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
MAINS = ("train.py", "search.py")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the loop, made by `python MAIN --config=configs/NAME.py:SIZE`, by default in `runs/SIZE/NAME`.

    Attributes:
      main: `train.py` or `search.py`.
      purpose: what it does, in half a sentence.
      named_by: keys of other configs that name its workdir, as what they build on.
    """

    name: str
    main: str
    purpose: str
    named_by: tuple[str, ...] = ()


# In the order in which they build on each other.
STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("sft", "train.py", "the policy learns from expert trajectories", ("init", "policy")),
        Stage("mcts", "search.py", "tree search on other tasks collects step values", ("trees",)),
        Stage("explicit", "train.py", "the reward model learns the step values", ("reward_model",)),
        Stage("sample", "search.py", "whole trajectories on other tasks, for their outcomes", ("samples",)),
        Stage("implicit", "train.py", "the implicit reward model learns the outcomes", ("reward_model",)),
        Stage("greedy", "search.py", "held-out tasks: the policy alone"),
        Stage("best_of_n", "search.py", "held-out tasks: best of 5 by the reward model"),
        Stage("judge", "search.py", "held-out tasks: best of 5 by a language model that is asked"),
        Stage("lookahead", "search.py", "held-out tasks: the best of 5 turns at every step"),
        Stage("beam", "search.py", "held-out tasks: 5 x 5 beam by the reward model"),
        Stage("adaptive", "search.py", "held-out tasks: best of up to 5, fewer where the reward model is content"),
        Stage("dvts", "search.py", "held-out tasks: 5 subtrees, the best of 5 turns at every step in each"),
        Stage("sharing_beam", "search.py", "held-out tasks: 5 x 5 beam whose trajectories share what is cached"),
        Stage("particle", "search.py", "held-out tasks: 5 trajectories, resampled by the reward model at every step"),
        Stage("refine", "search.py", "held-out tasks: 3 attempts, each told the verdict on the best before it"),
        Stage("guided_mcts", "search.py", "held-out tasks: tree search by the reward model before every step"),
    )
}


def home() -> Path:
    """The folder of the mains and their configs: that of the program being run, of a checkout or the installed package, or the
    current one.

    Raises:
      UserError: the mains are nowhere to be found.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (Path(sys.argv[0]).resolve().parent, package.parent, package / "mains", Path.cwd()):
        if all((folder / name).is_file() for name in MAINS) and (folder / "configs").is_dir():
            return folder
    raise UserError("train.py, search.py and configs/ are not here; start in a checkout of agentrm_jax")


def spoken(main: str) -> str:
    """How a user starts a main: `python train.py` in a checkout, `agentrm train` where the package is installed without one."""
    installed = home() == Path(__file__).resolve().parents[1] / "mains"
    return f"agentrm {Path(main).stem}" if installed else f"python {main}"


def workdir_of(name: str, size: str) -> Path:
    """Where a stage's run lies by default."""
    return Path("runs") / size / name


def arguments_of(name: str, size: str, workdir: Path | None = None) -> list[str]:
    """The command line of a stage, without the interpreter; paths are relative where the mains lie in the current folder."""
    here = Path() if home() == Path.cwd() else home()
    command = [str(here / STAGES[name].main), f"--config={here / 'configs' / name}.py:{size}"]
    return command if workdir is None else [*command, f"--workdir={workdir}"]


def shown(arguments: Sequence[str]) -> str:
    """A command line of `arguments_of` as a user would type it."""
    main, *rest = arguments
    start = spoken(main)
    return " ".join(
        [start, *(word.replace(f"{home()}/", "") if start.startswith("agentrm") else word for word in rest)]
    )


def start_from_nothing(config: ml_collections.ConfigDict, named: Collection[str]) -> None:
    """With data of the user's own, what would start from a policy of our loop (size nano) starts from nothing: that policy has
    learned to read other texts. Not if `init` is among the keys that were `named`, nor if the config has no model to make.
    """
    ours = str(workdir_of("sft", config.size))
    if config.get("data") and "model" in config and config.init == ours and "init" not in named:
        config.init = ""


def require_named(config: ml_collections.ConfigDict) -> None:
    """Makes sure that all runs which a config names as what it builds on are there (`require`). Raises UserError."""
    for stage in STAGES.values():
        for key in stage.named_by:
            if config.get("data") and key in ("trees", "samples"):
                continue  # rows of the user's own are learned instead
            if config.get(key) and stage is _maker(config[key], key, config.size):
                for place, name in _models(places.read(config[key]), stage.name):
                    require(place, name, config.size)


def _maker(place: str, key: str, size: str) -> Stage:
    """The stage that makes what `key` names: the one whose run lies there by default, else the first that the key names."""
    named = [stage for stage in STAGES.values() if key in stage.named_by]
    return next((stage for stage in named if Path(place) == workdir_of(stage.name, size)), named[0])


def _models(place: places.Place, name: str) -> list[tuple[str, str]]:
    """The models that are opened for a place, each with the stage that makes such a one."""
    match place:
        case places.Model(where):
            return [(where, name)]
        case places.Judge(places.Model(where)):
            return [(where, "sft")]
        case places.Pair(tuned, base):
            return [(tuned, "sft"), (base, "sft")]
        case places.Ensemble(members):
            return [pair for member in members for pair in _models(places.read(member), name)]
    return []


def require(place: str, name: str, size: str) -> None:
    """Makes sure that what a run builds on is there: a finished workdir, or a model from elsewhere.

    The default place, `runs/SIZE/NAME`, is filled by running the stage NAME first; any other must be complete.

    Raises:
      UserError: it is not there and is not ours to make, or making it failed.
    """
    workdir = Path(place)
    if is_finished(workdir) or _elsewhere(place):
        return
    if workdir != workdir_of(name, size):
        raise UserError(f"{place} (needed as {name}) {_missing(place)}")
    arguments = arguments_of(name, size, workdir)
    print(f"{workdir} is missing or unfinished; making it first: {shown(arguments)}", flush=True)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    if code := run(arguments, alone=True):
        raise UserError(f"making {workdir} failed with exit code {code}; see the lines above")


def run(arguments: Sequence[str], *, alone: bool = False) -> int:
    """Runs a program of Python as a process of its own and returns its exit code.

    When this process is interrupted, the other one is asked once to stop, and waited for, so that it can save its work.

    Args:
      alone: it takes no part in the distributed run that this process may belong to.
    """
    env = {k: v for k, v in os.environ.items() if not (alone and k in DISTRIBUTED)}
    # In a session of its own: the terminal interrupts this process only, and the other one hears of it once.
    with subprocess.Popen([sys.executable, *arguments], env=env, start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _missing(place: str) -> str:
    """What is wrong with a place that holds no finished run, and what to do."""
    if Path(place).exists():
        return "is not finished; run its command again"
    if place.count("/") == 1 and not place.startswith((".", "~", "/")) and not Path(place).parent.exists():
        return (
            "does not exist here; models are not fetched from a hub by name: download it, for example with "
            f"hf download {place} --local-dir models/{place.partition('/')[2]}, and name that folder"
        )
    return "does not exist"


def _elsewhere(place: str) -> bool:
    """Whether this is for `models` to open: `smollm2`, a file, or a folder that is no workdir of ours."""
    path = Path(place).expanduser()
    ours = any((path / name).exists() for name in ("config_changes.jsonl", "command.txt", "model.json", "tasks.jsonl"))
    return place == "smollm2" or path.is_file() or (path.is_dir() and any(path.iterdir()) and not ours)
