"""BabyAI grid worlds played in words: any level of minigrid, and AgentBoard's 112 tasks.

Reward and progress. A task carries sub-goals; reward = progress = share of them reached so far, which never falls.

- Official tasks (option `data`): AgentBoard's annotated patterns, one reached per executed command at most, with alternative lists
  where the file has them. The episode is over when all are reached, or when the engine holds the mission for finished and the reward
  is above 0.5.
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
  Official tasks therefore end differently than there: of 224 random episodes (misspelt commands among them) 24 end with a higher reward
  and 12 with a lower one, 0.538 on average instead of 0.514. Figures of this setting are not to be put beside AgentBoard's.
- `agentboard`: commands, routes, refusals, where a command stops, endings and goals are those of AgentBoard's wrapper
  (`babyai.agentboard`); any command with `check` in it lists what can be done. With the official sub-goals, rewards are its rewards.
  Generated tasks, for which it has no sub-goals, keep the reward of the other setting. `tests/envs/agentboard_golden` holds recorded
  episodes of the original (on minigrid 2.3.0) that are played again.

Options: `data`, `setting`, `levels`, `seeds_per_level`, `max_steps` (see `levels.tasks`).
"""

import contextlib
import copy
import dataclasses
import io
from typing import Any, NamedTuple

from agentrm_jax.envs.babyai import agentboard, goals, text
from agentrm_jax.envs.babyai.example import EXAMPLE, EXAMPLE_AGENTBOARD
from agentrm_jax.envs.babyai.levels import SETTINGS, tasks
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import EngineStep, Environment, Start, Task, UserError

# The minigrid version AgentBoard used registered this name with rooms of size 4.
_ENGINE_NAMES = {"BabyAI-GoToObjS6-v0": "BabyAI-GoToObjS4-v0"}


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


def told(task: Task) -> EnvSpec:
    """The texts for a task: the worked example is an episode of the task's own setting."""
    return _AS_AGENTBOARD if task.args.get("setting") == "agentboard" else SPEC


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
    told=told,
)
_AS_AGENTBOARD = dataclasses.replace(SPEC, example=EXAMPLE_AGENTBOARD, told=None)
