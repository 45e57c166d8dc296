"""BabyAI grid worlds played in words: any level of minigrid, and AgentBoard's 112 tasks (environments.md section 4).

Reward and progress. A task carries sub-goals; reward = progress = share of them reached so far, which never falls.

- Official tasks (option `data`): AgentBoard's annotated patterns, one reached per executed command at most, with alternative lists
  where the file has them. The episode is over when all are reached, or when the engine holds the mission for finished and the reward
  is above 0.5 (algorithms.md section 9).
- Generated tasks: sub-goals of the same kind derived from the mission (see `goals.derived_ledger`), all that an observation
  shows count at once. The completion of each part of the mission is a sub-goal that only the engine's own verifier grants, so reward is
  1 exactly when the engine has verified the whole mission. Some levels fail for good on a wrong move (a wrong door opened); then the
  episode is over with the reward reached so far.

Splits of generated tasks use disjoint seeds per level: test from 1234, dev from 10000, train from 100000. The first four test seeds
are AgentBoard's worlds (the official tasks are those worlds with AgentBoard's sub-goals). Different seeds of the smallest levels can
still give look-alike worlds.

Settings. What is seen reads as in AgentBoard in both.

- `ours` (default): commands do what they say. A route leads over seen free cells only and a command stops once the mission is verified.
  An object is called by the number the observation gives it, also when another one is out of reach; a blocked `move forward`
  is invalid; `toggle` also closes an open door and opens a box; `pick up` is `pickup`, `check valid actions` is `check available
  actions`, and `inventory` is known; refusals have a wording of our own; the goal keeps "then" and "after you".
  Official tasks do not end as in AgentBoard then: of 112 random episodes 19 end with a higher reward, so the figures of this setting are not
  to be put beside AgentBoard's.
- `agentboard`: commands, routes, refusals, where a command stops, endings and goals are those of AgentBoard's wrapper
  (`babyai.agentboard`); any command with `check` in it lists what can be done. With the official sub-goals, rewards are its rewards. Generated
  tasks, for which it has no sub-goals, keep the reward of the other setting. `tests/envs/agentboard_golden` holds recorded episodes of
  the original that are played again.

Options: `data`, `setting`, `levels`, `seeds_per_level`, `max_steps` (see `tasks`).
"""

import contextlib
import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentrm_jax.envs.babyai import agentboard, goals, text
from agentrm_jax.envs.babyai.example import EXAMPLE
from agentrm_jax.envs.spec import EnvSpec, Options, several, whole
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

# AgentBoard's level numbers and names, in its order; every level is played with four seeds from 1234 on.
LEVELS: dict[int, str] = {
    1: "BabyAI-GoToRedBallGrey-v0",
    2: "BabyAI-GoToRedBall-v0",
    3: "BabyAI-GoToRedBallNoDists-v0",
    4: "BabyAI-GoToObjS6-v0",
    5: "BabyAI-GoToLocalS8N7-v0",
    6: "BabyAI-GoToObjMazeS7-v0",
    7: "BabyAI-GoToImpUnlock-v0",
    8: "BabyAI-GoToSeqS5R2-v0",
    9: "BabyAI-GoToRedBlueBall-v0",
    10: "BabyAI-GoToDoor-v0",
    11: "BabyAI-GoToObjDoor-v0",
    12: "BabyAI-Open-v0",
    13: "BabyAI-OpenRedDoor-v0",
    14: "BabyAI-OpenDoorLoc-v0",
    15: "BabyAI-OpenRedBlueDoorsDebug-v0",
    16: "BabyAI-OpenDoorsOrderN4Debug-v0",
    17: "BabyAI-Pickup-v0",
    18: "BabyAI-UnblockPickup-v0",
    19: "BabyAI-PickupLoc-v0",
    20: "BabyAI-PickupDistDebug-v0",
    21: "BabyAI-PickupAbove-v0",
    24: "BabyAI-Unlock-v0",
    25: "BabyAI-UnlockLocalDist-v0",
    27: "BabyAI-UnlockPickupDist-v0",
    28: "BabyAI-BlockedUnlockPickup-v0",
    29: "BabyAI-UnlockToUnlock-v0",
    31: "BabyAI-FindObjS7-v0",
    32: "BabyAI-KeyCorridorS6R3-v0",
}
# The minigrid version AgentBoard used registered this name with rooms of size 4.
_ENGINE_NAMES = {"BabyAI-GoToObjS6-v0": "BabyAI-GoToObjS4-v0"}
_FIRST_SEED = {"test": 1234, "dev": 10_000, "train": 100_000}
_SEEDS_PER_LEVEL = {"test": 4, "dev": 4, "train": 100}
_MAX_STEPS = 30
_OFFICIAL_SEEDS = 4
SETTINGS = ("ours", "agentboard")


class Snapshot(NamedTuple):
    """A state of one episode: the level object it belongs to and everything that changes in it."""

    owner: Any
    level: Any
    changing: tuple[Any, ...]
    ledger: goals.Ledger
    progress: float
    official: bool
    setting: str
    verified: bool
    over: bool


class BabyAI:
    """One episode of one level (protocol `agentrm_jax.types.Environment`); lives in a worker process."""

    def __init__(self, gymnasium: Any) -> None:
        self._gymnasium = gymnasium
        self.level: Any = None  # minigrid's level object, also read by the expert
        self.view: text.View | None = None
        self.verified = False
        self.over = False
        self.official = False
        self.setting = SETTINGS[0]
        self._commands: agentboard.Commands | None = None
        self._ledger = goals.Ledger((), 0)
        self._progress = 0.0

    def reset(self, task: Task) -> Start:
        level_id, seed = task.args["level"], int(task.args["seed"])
        level_id = _ENGINE_NAMES.get(level_id, level_id)
        try:
            self.level = self._gymnasium.make(level_id, disable_env_checker=True).unwrapped
        except self._gymnasium.error.Error as e:
            raise UserError(f"minigrid has no level {level_id!r}; names look like BabyAI-GoToLocal-v0") from e
        with contextlib.redirect_stdout(io.StringIO()):  # the generator prints every layout it rejects
            self.level.reset(seed=seed)
        self.level.gen_obs = _no_image
        self.level.max_steps = 1_000_000  # turns are counted by whoever runs the episode
        self.verified = self.over = False
        self.setting = str(task.args.get("setting", SETTINGS[0]))
        self._progress = 0.0
        observation = self._observe()
        self.official = "subgoals" in task.args
        if self.official:
            self._ledger = goals.official_ledger(task.args["subgoals"])
        else:
            self._ledger = goals.derived_ledger(self.level, observation)
        goal = self.level.mission
        if self.setting == "agentboard":
            goal = goal.replace("then", "and").replace("after you", "and")
        return Start(goal, observation)

    def step(self, command: str) -> EngineStep:
        if self.setting == "agentboard":
            return self._step_as_agentboard(command.lower().strip())
        command = text.tidy(command)
        assert self.view is not None
        if command in (text.CHECK, "check valid actions"):
            return self._answer("You can do: " + ", ".join(text.available(self.view, self.level.carrying)) + ".")
        if command == "inventory":
            return self._answer(text.inventory(self.level.carrying))
        primitives = text.primitives_for(command, self.view, self.level.carrying)
        if isinstance(primitives, text.Refused):
            return self._answer(primitives.reason, valid=False)
        terminated = False
        for primitive in primitives:
            terminated = self._move(primitive)
            if terminated:
                break
        observation = self._observe()
        self._count(observation, terminated)
        completed = self.over if self.official else self.verified
        failed = terminated and not self.official
        ending = "\nThe task is completed." if completed else "\nThe task has failed." if failed else ""
        return self._answer(observation + ending)

    def _step_as_agentboard(self, command: str) -> EngineStep:
        known = self.commands()
        if "check" in command:
            return self._answer("You can take the following actions: " + ", ".join(known.routes))
        if not command:
            return self._answer(agentboard.NOTHING, valid=False)
        if command not in known.routes:
            return self._answer(known.refusals.get(command, agentboard.UNKNOWN), valid=False)
        if not known.routes[command]:
            return self._answer(agentboard.NOTHING)
        terminated = False
        for primitive in known.routes[command]:
            before = self._picture()
            terminated = self._move(primitive)
            self._observe()
            if self._picture() == before:
                break
        observation = self._observe() + agentboard.COMPLETED * terminated
        self._count(observation, terminated)
        if self.over and not terminated:
            observation += agentboard.COMPLETED
        return self._answer(observation)

    def commands(self) -> agentboard.Commands:
        """What AgentBoard's wrapper knows where the agent stands now."""
        if self._commands is None:
            assert self.view is not None
            self._commands = agentboard.commands(self.view, self.level.carrying)
        return self._commands

    def _picture(self) -> tuple[object, ...]:
        assert self.view is not None
        return agentboard.picture(self.view, self.level.carrying)

    def _move(self, primitive: int) -> bool:
        """Steps the level once; true if the mission ended with it. Sets `verified`."""
        before = goals.completed(self.level, False)
        _, reward, terminated, _, _ = self.level.step(primitive)
        if not terminated:
            return False
        self.verified = self.verified or reward > 0
        # In strict levels minigrid shows the move that completes the first part to the second part too, which calls it a
        # mistake: such missions could never be solved. AgentBoard's rule counts on `terminated` as it is.
        return self.official or reward > 0 or goals.completed(self.level, False) == before

    def _count(self, observation: str, terminated: bool) -> None:
        """Brings sub-goals, progress and `over` up to date after an executed command."""
        if self.official:
            self._ledger = goals.consume_first(self._ledger, observation)
            self._progress = max(self._progress, self._ledger.matched / self._ledger.total)
            self.over = self._progress == 1 or (terminated and self._progress > 0.5)
        else:
            self._ledger = goals.consume_all(self._ledger, observation)
            reached = self._ledger.matched + goals.completed(self.level, self.verified)
            self._progress = 1.0 if self.verified else max(self._progress, reached / self._ledger.total)
            self.over = terminated or self.verified

    def snapshot(self) -> Snapshot:
        changing = _changing(self.level)
        return Snapshot(
            self,
            self.level,
            changing,
            self._ledger,
            self._progress,
            self.official,
            self.setting,
            self.verified,
            self.over,
        )

    def restore(self, snapshot: Snapshot) -> None:
        level, changing = snapshot.level, snapshot.changing
        if snapshot.owner is not self:  # another episode's objects must not be shared
            level, changing = copy.deepcopy((level, changing))
        self.level = level
        _put_back(level, changing)
        self._ledger, self._progress = snapshot.ledger, snapshot.progress
        self.official, self.setting = snapshot.official, snapshot.setting
        self.verified, self.over = snapshot.verified, snapshot.over
        self._observe()

    def close(self) -> None:
        self.level = None

    def _observe(self) -> str:
        level = self.level
        pose = (int(level.agent_pos[0]), int(level.agent_pos[1]), int(level.agent_dir))
        self.view = text.look(level.grid.grid, level.grid.width, pose)
        self._commands = None
        return text.describe(self.view, level.carrying)

    def _answer(self, observation: str, valid: bool = True) -> EngineStep:
        return EngineStep(observation, self._progress, self._progress, self.over, valid)


def _no_image() -> dict[str, Any]:
    """Stands in for the level's own picture of its view, which is half the cost of a step and is not used."""
    return {}


def _changing(level: Any) -> tuple[Any, ...]:
    """(cells, (object, attribute, value) triples): all that a step can change. Identities matter to the engine's verifier."""
    values = [(level, name, getattr(level, name)) for name in ("agent_pos", "agent_dir", "carrying", "step_count")]
    for obj in level.grid.grid:
        if obj is None or obj.type == "wall":
            continue
        names = ("is_open", "is_locked") if obj.type == "door" else ("cur_pos",)
        values += [(obj, name, getattr(obj, name)) for name in names]
    if level.carrying is not None:
        values.append((level.carrying, "cur_pos", level.carrying.cur_pos))
    pending = [level.instrs]
    while pending:
        instr = pending.pop()
        for name in ("a_done", "b_done", "preCarrying"):
            if hasattr(instr, name):
                values.append((instr, name, getattr(instr, name)))
        pending += [getattr(instr, name) for name in ("instr_a", "instr_b") if hasattr(instr, name)]
        descs = [getattr(instr, name) for name in ("desc", "desc_move", "desc_fixed") if hasattr(instr, name)]
        values += [(desc, "obj_poss", desc.obj_poss) for desc in descs]
    return tuple(level.grid.grid), tuple(values)


def _put_back(level: Any, changing: tuple[Any, ...]) -> None:
    cells, values = changing
    level.grid.grid[:] = cells
    for obj, name, value in values:
        setattr(obj, name, value)


def make(options: Options) -> Environment:
    """One BabyAI engine. Raises UserError if minigrid is not installed."""
    try:
        import gymnasium
        import minigrid  # noqa: F401  (registers the levels)
    except ImportError as e:
        raise UserError("BabyAI needs minigrid: pip install 'minigrid>=3.0,<4'") from e
    return BabyAI(gymnasium)


def level_ids(names: Any) -> list[str]:
    """Full level ids for numbers (`1`), ids (`BabyAI-GoTo-v0`), short names (`GoTo`), or a comma-separated string of those."""
    if isinstance(names, str):
        names = [n.strip() for n in names.split(",") if n.strip()]
    result = []
    for name in names:
        if isinstance(name, int) or str(name).isdigit():
            if int(name) not in LEVELS:
                raise UserError(
                    f"no BabyAI level number {name}; AgentBoard's numbers are {', '.join(map(str, LEVELS))}"
                )
            result.append(LEVELS[int(name)])
        else:
            result.append(name if name.startswith("BabyAI-") else f"BabyAI-{name}-v0")
    return result


def _short(level_id: str) -> str:
    return level_id.removeprefix("BabyAI-").removesuffix("-v0")


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The tasks of a split, level by level.

    Options:
      levels: numbers or names of levels; default `DEFAULT_LEVELS`, with `data` all of the file.
      seeds_per_level: default 100 for train, 4 for dev and test.
      data: folder with AgentBoard's `agentboard/babyai/test.jsonl` (or that file's own folder): its tasks become the test split.
      max_steps: turns per episode; default 30 (the paper's Table 8).
      setting: `ours` (default) or `agentboard`: how commands are played.

    Raises:
      UserError: unknown split, level or setting, or the official file is missing or not of its form.
    """
    if split not in _FIRST_SEED:
        raise UserError(f"BabyAI has no split {split!r}; choose train, dev or test")
    max_steps = whole(options, "max_steps", _MAX_STEPS)
    setting = str(options.get("setting") or SETTINGS[0])
    if setting not in SETTINGS:
        raise UserError(f"babyai has no setting {setting!r}; known: {', '.join(SETTINGS)}")
    marked: dict[str, JSON] = {"setting": setting} if setting != SETTINGS[0] else {}
    if split == "test" and options.get("data"):
        wanted = set(level_ids(several(options, "levels", ()))) if options.get("levels") else None
        found = official_tasks(str(options["data"]), max_steps, marked)
        return [task for task in found if wanted is None or task.args["level"] in wanted]
    count, first = whole(options, "seeds_per_level", _SEEDS_PER_LEVEL[split]), _FIRST_SEED[split]
    if first + count > min((s for s in _FIRST_SEED.values() if s > first), default=2**31):
        raise UserError(
            f"babyai: seeds_per_level={count} is too many for the {split} split; its seeds would run into the next split's"
        )
    return [
        Task("babyai", f"{_short(level)}-{seed}", split, max_steps, {"level": level, "seed": seed, **marked})
        for level in level_ids(several(options, "levels", DEFAULT_LEVELS))
        for seed in range(first, first + count)
    ]


def official_tasks(data: str, max_steps: int = _MAX_STEPS, marked: Mapping[str, JSON] | None = None) -> list[Task]:
    """AgentBoard's tasks from its test.jsonl; line number `id` is level `id // 4` in the order of `LEVELS`, seed 1234 + `id % 4`.

    Args:
      marked: arguments that each task gets besides its own.

    Raises:
      UserError: the file is missing or not of its form; names the line.
    """
    root = Path(data).expanduser()
    candidates = [root / "agentboard" / "babyai" / "test.jsonl", root / "test.jsonl"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise UserError(
            f"babyai: {data} holds no agentboard/babyai/test.jsonl; set env.options.data to the folder that does"
        )
    result = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            lists = [[str(pattern) for pattern in record[key]] for key in sorted(record) if key.startswith("subgoals")]
            if not lists or not lists[0] or len({len(patterns) for patterns in lists}) > 1:
                raise ValueError("lists of sub-goals must be there and equally long")
            args = {
                "level": str(record["additional_info"]["subtask"]),
                "seed": _FIRST_SEED["test"] + int(record["id"]) % _OFFICIAL_SEEDS,
                "subgoals": lists,
                **(marked or {}),
            }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number} is no task of AgentBoard's: {error!r}") from error
        result.append(Task("babyai", f"agentboard-{record['id']}", "test", max_steps, args))
    return result


# Levels of one or few rooms, which take the expert about two to five turns.
DEFAULT_LEVELS = (1, 2, 3, 4, 5, 8, 9, 10, 11, 13, 14, 15, 16, 19, 20, 21, 25)

INSTRUCTION = """\
You walk through rooms and see only what is in front of you. Commands: turn left, turn right, move forward, go to OBJECT N, \
pickup OBJECT N, drop, toggle, go through DOOR N, toggle and go through DOOR N, check available actions. \
Name objects as you see them: red ball 1. Reply with two lines:
Thought: why
Action: one command"""

RM_INSTRUCTION = """\
An agent walks through rooms with doors, keys, balls and boxes, seeing only what is in front of it. \
Judge how well it is getting on with this task: {goal}"""


def _expert(env: Environment, task: Task) -> Any:
    from agentrm_jax.envs.babyai.expert import solve  # worker side

    assert isinstance(env, BabyAI)
    return solve(env, task)


SPEC = EnvSpec(
    name="babyai",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    expert=_expert,
    example=EXAMPLE,
    options=("setting", "levels", "seeds_per_level", "max_steps"),
    engine="minigrid",
    licence="MIT",
)
