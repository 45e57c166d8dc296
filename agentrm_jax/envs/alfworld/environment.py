"""ALFWorld: household tasks in text, official games and generated ones.

Reward is 1 when the goal is reached and 0 otherwise. Progress, by option `setting`:

- `eto` (default): the share of the goal's changeable conditions reached under the best choice of objects, beyond those that held at
  the start; the maximum so far. A goal with one such condition (put X in Y) goes from 0 to 1.
- `agentboard`: sub-goals reached / (sub-goals + 1), 1 when won, as AgentBoard counts: its labels if `data` holds them
  (`agentboard/alfworld/test.jsonl`), else sub-goals derived from the goal (`engine.milestones`), whose figures are not AgentBoard's.
  Commands are played as by its task and wrapper: they count to the letter but for a full stop, and `in` or `on` for `in/on` after
  `put`; `look` repeats what the last `go to` or `open` showed; `check valid actions` lists what can be done. Reward stays 1 or 0; what
  AgentBoard reports is the progress.

In the setting `eto` case, spaces, `into`, `toggle` and `turn on` are read leniently.

Options: `data` (folder of the official games; without it, generated households), `setting`, `max_steps` (default 20, as in the AgentRM
paper; 30 for `agentboard`; ETO's own limit is 40), `wording` (`put X in/on Y`, or `move X to Y` as newer releases say; in the setting
`eto` either is understood), `expert` (`planner` or `explorer`), `games` (how many households a generated split has).

Observations equal those of TextWorld's engine on the same game files, to the letter.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agentrm_jax.envs import agentboard
from agentrm_jax.envs.alfworld import engine, experts, games, generate, pddl
from agentrm_jax.envs.alfworld.example import EXAMPLE
from agentrm_jax.envs.spec import EnvSpec, Options, whole
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

CHECK = "check valid actions"
Possible = Mapping[str, tuple[pddl.PddlAction, pddl.Fact]]  # what can be done now, with the ground action behind it
_MAX_STEPS = {"eto": 20, "agentboard": 30}
_GENERATED = {"train": 1200, "dev": 120, "test": 134}

INSTRUCTION = """You are a robot in a household and carry out one task by text commands. You see only what is at the place where you are, \
and carry one object at a time. Closed receptacles must be opened before you can look inside.
Commands:
  go to (receptacle)
  open (receptacle)
  close (receptacle)
  take (object) from (receptacle)
  put (object) in/on (receptacle)
  use (lamp)
  heat (object) with (microwave)
  clean (object) with (sink basin)
  cool (object) with (fridge)
  slice (object) with (knife)
  examine (object or receptacle)
  inventory
  look
Call things by their name and number as the observations give them, for example: take mug 2 from shelf 1. \
"Nothing happens." means that the command was not possible.
Answer every observation with two lines:
Thought: why you do what you do next
Action: one command"""

RM_INSTRUCTION = """You watch a robot in a household that sees only the place where it is and carries one object at a time. \
Judge how well it is on the way to this task:
{goal}
Each turn it can go to, open or close a receptacle, take an object from or put it in/on a receptacle, use a lamp, heat, clean, cool or \
slice an object, examine something, list its inventory, or look around."""


class Snapshot(NamedTuple):
    """A state of play of one game, the labelled sub-goals seen, and what the last `go to` or `open` showed; all parts are immutable."""

    world: engine.World
    position: engine.Position
    labels: tuple[str, ...] = ()
    reached: frozenset[int] = frozenset()
    shown: str = ""


class Alfworld:
    """One episode of one household."""

    def __init__(self, options: Options):
        games.wheel()  # a missing package is reported here, not at the first reset
        self.options = options
        self.setting, self.wording = _setting(options), _wording(options)
        self.world: engine.World | None = None
        self.position = engine.Position({})
        self.labels: tuple[str, ...] = ()
        self.reached: frozenset[int] = frozenset()
        self.shown = ""

    def reset(self, task: Task) -> Start:
        game = _game(self.options, task)
        self.world = _world(game, self.wording)
        self.position = engine.start(self.world)
        self.labels, self.reached = tuple(task.args.get("subgoals", ())), frozenset()
        self.shown = engine.room_description(self.world)
        return Start(game.goal, self.shown)

    def step(self, command: str) -> EngineStep:
        possible = _commands(self._playing(), self.position)
        if self.setting == "agentboard":
            return self._step_as_agentboard(_as_agentboard_reads(command), possible)
        said = self._play(possible, engine.canonical(command, self.wording))
        return self._answer(said or engine.NOTHING, said is not None)

    def _step_as_agentboard(self, command: str, possible: Possible) -> EngineStep:
        if command == "look":
            return self._answer(self.shown, True)
        if command == CHECK:
            listed = ", ".join([*sorted(possible), CHECK])
            return self._answer(f"Choose an action from these valid actions: {listed}", True)
        said = self._play(possible, command)
        if said is not None and ("go to" in command or "open" in command):
            self.shown = said
        return self._answer(said or engine.NOTHING, said is not None)

    def _play(self, possible: Possible, command: str) -> str | None:
        """Carries a command out and returns what the engine says to it; None if there is no such command now."""
        if command not in possible:
            return None
        self.position, said = engine.play(self._playing(), self.position, *possible[command])
        return said

    def snapshot(self) -> Snapshot:
        return Snapshot(self._playing(), self.position, self.labels, self.reached, self.shown)

    def restore(self, snapshot: Snapshot) -> None:
        self.world, self.position, self.labels, self.reached, self.shown = snapshot

    def close(self) -> None:
        self.world = None

    def _playing(self) -> engine.World:
        if self.world is None:
            raise ValueError("the environment was never reset")
        return self.world

    def _answer(self, observation: str, valid: bool) -> EngineStep:
        won = self.position.won
        if self.labels:
            self.reached = agentboard.matched(self.reached, self.labels, observation)
            progress = 1.0 if won else len(self.reached) / (len(self.labels) + 1)
        elif self.setting == "agentboard":
            progress = engine.milestones(self._playing(), self.position)
        else:
            progress = self.position.best
        return EngineStep(observation, float(won), progress, over=won, valid=valid)


def _as_agentboard_reads(command: str) -> str:
    """A command as AgentBoard's task hands it to the engine."""
    command = command.strip()
    if "put" in command:
        command = command.replace(" in ", " in/on ") if " in " in command else command.replace(" on ", " in/on ")
    return command.removesuffix(".").strip().removesuffix(".").strip()


@functools.lru_cache(8)
def _world(game: games.Game, wording: str) -> engine.World:
    return engine.build_world(game, wording)


@functools.lru_cache(64)
def _commands(world: engine.World, position: engine.Position) -> dict:
    return engine.commands(world, position.facts)


def _setting(options: Options) -> str:
    setting = str(options.get("setting") or "eto")
    if setting not in _MAX_STEPS:
        raise UserError(f"alfworld: no setting {setting!r}; choose one of {', '.join(_MAX_STEPS)}")
    return setting


def _wording(options: Options) -> str:
    wording = str(options.get("wording") or "put")
    if wording not in ("put", "move"):
        raise UserError(f"alfworld: no wording {wording!r}; choose put or move")
    return wording


def _game(options: Options, task: Task) -> games.Game:
    if "seed" in task.args:
        return generate.household(int(task.args["seed"]), task.split)
    if not options.get("data"):
        raise UserError(
            f"alfworld: task {task.id} is an official game; set env.options.data to the folder that holds it"
        )
    return games.load_official(str(options["data"]), task.args)


def make(options: Options) -> Environment:
    return Alfworld(options)


def tasks(split: str, options: Options) -> Sequence[Task]:
    """Official games of the split if `data` is given (dev: valid_seen, test: valid_unseen), generated ones otherwise."""
    max_steps = whole(options, "max_steps", _MAX_STEPS[_setting(options)])
    if options.get("data"):
        found = games.official_games(str(options["data"]), split)
        labels = _labels(str(options["data"])) if _setting(options) == "agentboard" and split == "test" else {}
        return [Task("alfworld", name, split, max_steps, where | labels.get(name, {})) for name, where in found]
    count = whole(options, "games", _GENERATED[split])
    return [Task("alfworld", f"household-{split}-{n}", split, max_steps, {"seed": n}) for n in range(count)]


def _labels(data: str) -> dict[str, dict[str, JSON]]:
    """Name of a game -> AgentBoard's sub-goals as a task argument."""
    rows = agentboard.rows(data, "alfworld")
    return {str(row["additional_info"]["description"]): {"subgoals": row["subgoals"]} for row in rows}


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """Solves the household: the official walkthrough or a planner's errand; with option `expert=explorer`, by searching."""
    assert isinstance(env, Alfworld)
    world = env._playing()
    kind = str(env.options.get("expert") or "planner")
    if kind not in ("planner", "explorer"):
        raise UserError(f"alfworld: no expert {kind!r}; choose planner or explorer")
    if kind == "planner" and world.game.walkthrough:
        written = tuple(engine.canonical(c, env.wording) for c in world.game.walkthrough)
        yield from experts.explain(world, written)
        return
    solve = experts.planner if kind == "planner" else experts.explorer
    for thought, command in solve(world, lambda: env.position):
        yield thought, engine.canonical(command, env.wording)


def task_type(task_or_name: Task | str) -> str:
    """The kind of a task, one of `_alfworld_generate.TASK_TYPES`, from its id (generated ones go round by seed)."""
    name = task_or_name if isinstance(task_or_name, str) else task_or_name.id
    if isinstance(task_or_name, Task) and "seed" in task_or_name.args:
        return generate.TASK_TYPES[int(task_or_name.args["seed"]) % len(generate.TASK_TYPES)]
    found = re.match(r"[a-z_]+", name)
    return found[0] if found else ""


SPEC = EnvSpec(
    name="alfworld",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    expert=expert,
    example=EXAMPLE,
    options=("setting", "max_steps", "wording", "expert", "games"),
    engine="alfworld",
    licence="MIT",
    extra="alfworld",
)
