"""ScienceWorld: elementary science experiments in text (environments.md section 1).

Reward and progress are max(0, score) / 100 of the simulator, the maximum so far, as in ETO. A wrong `focus on` scores -100 there and
ends the episode; here it ends it with the reward reached before, and success means the full score, not having ended.

In the setting `agentboard` episodes have 30 steps. If `data` holds AgentBoard's labels (`agentboard/scienceworld/test.jsonl`), its tasks
with its goals and simplifications are the test split, reward and progress are the share of labelled sub-goals seen, and all of them end
the episode; otherwise tasks and scores are as in the setting `eto`, so figures are not AgentBoard's.

Options: `data` (folder with ETO's `sciworld/{train,dev,test}_indices.json` and `max_steps.json`; without it, the simulator's own
train, dev and test variations), `setting` (`eto`: a step limit per kind of task; `agentboard`), `max_steps` (one limit for all),
`tasks` (kinds of task, when `data` is not given; the default leaves three out whose solutions are very long), `variations` (how many of
each kind in a split, spread evenly), `simplifications` (default `easy`: doors are open, one can teleport, pots water themselves).

There are no snapshots: an earlier state is reached by replay, which is exact, since the simulator runs with constant identity hashes
and one episode at a time in a Java process of its own. A worker holds at most four of these (option `live`): each takes up to 0.5 GB.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs import agentboard
from agentrm_jax.envs.react import reason
from agentrm_jax.envs.sciworld.example import EXAMPLE
from agentrm_jax.envs.sciworld.server import Simulator, java, simulator_jar
from agentrm_jax.envs.spec import EnvSpec, Options, several, whole
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

# Kind of task -> (variations in the simulator, commands of the longest of four gold paths: first and middle train, first dev, first
# test variation; only the first for the last kind). Without ETO's table the step limit is a quarter more than that path, in tens.
TASKS: dict[str, tuple[int, int]] = {
    "boil": (30, 90),
    "melt": (30, 68),
    "freeze": (30, 85),
    "change-the-state-of-matter-of": (30, 68),
    "use-thermometer": (540, 22),
    "measure-melting-point-known-substance": (436, 74),
    "measure-melting-point-unknown-substance": (300, 96),
    "power-component": (20, 13),
    "power-component-renewable-vs-nonrenewable-energy": (20, 28),
    "test-conductivity": (900, 23),
    "test-conductivity-of-unknown-substances": (600, 39),
    "find-living-thing": (300, 16),
    "find-non-living-thing": (300, 7),
    "find-plant": (300, 12),
    "find-animal": (300, 16),
    "grow-plant": (126, 75),
    "grow-fruit": (126, 89),
    "chemistry-mix": (32, 56),
    "chemistry-mix-paint-secondary-color": (36, 21),
    "chemistry-mix-paint-tertiary-color": (36, 29),
    "lifespan-longest-lived": (125, 6),
    "lifespan-shortest-lived": (125, 6),
    "lifespan-longest-lived-then-shortest-lived": (125, 7),
    "identify-life-stages-1": (14, 42),
    "identify-life-stages-2": (10, 16),
    "inclined-plane-determine-angle": (168, 95),
    "inclined-plane-friction-named-surfaces": (1386, 111),
    "inclined-plane-friction-unnamed-surfaces": (162, 204),
    "mendelian-genetics-known-plant": (120, 131),
    "mendelian-genetics-unknown-plant": (480, 129),
}
_LONGEST = 120  # kinds with a longer gold path are left out unless asked for; ETO's own limits end there too
_VARIATIONS = {"train": 40, "dev": 4, "test": 7}
DEFAULT_TASKS = tuple(name for name, (_, path) in TASKS.items() if path <= _LONGEST)
_AGENTBOARD_STEPS = 30
_AGENTBOARD_WORLD = "selfWateringFlowerPots,openContainers,openDoors,noElectricalAction"
_UNKNOWN = "No known action matches"  # how the simulator begins its answer to a command it cannot read

INSTRUCTION = """You are in a house with several rooms, an outside and a workshop, and do one science experiment by text commands. Look \
around to find what you need, and use the tools in the rooms.
Commands (OBJ is something you see, for example: metal pot, or: water in metal pot):
  look around | look at OBJ | look in OBJ | inventory | task
  teleport to ROOM | go to ROOM | open OBJ | close OBJ
  pick up OBJ | put down OBJ | move OBJ to OBJ | pour OBJ into OBJ | dunk OBJ into OBJ | mix OBJ
  activate OBJ | deactivate OBJ | use OBJ on OBJ | connect OBJ to OBJ | disconnect OBJ
  read OBJ | eat OBJ | flush OBJ | wait | wait1
  focus on OBJ
ROOM is one of: hallway, kitchen, living room, bedroom, bathroom, workshop, art studio, greenhouse, foundry, outside.
"focus on" says that this is the thing the task asks for: do it as the task tells you to and only on the right thing, a wrong focus \
ends the episode. When a command could mean several things you are given a numbered list: answer with the number alone.
"wait" lets ten moments pass, "wait1" a single one.
Answer every observation with two lines:
Thought: why you do what you do next
Action: one command"""

RM_INSTRUCTION = """You watch an agent that does a science experiment in a house with several rooms, by text commands. Judge how well it \
is on the way to this task:
{goal}
Each turn it can look around or at something, go or teleport to a room, open, close, pick up, put down, move, pour, dunk, mix, activate, \
deactivate, use, connect, disconnect, read, eat or flush things, wait, or focus on the thing that the task asks for; a wrong focus \
ends the episode."""


class ScienceWorld:
    """One Java simulator, playing one episode at a time."""

    def __init__(self, options: Options):
        self.simplifications = str(options.get("simplifications") or "easy")
        self.simulator = Simulator()
        self.best = 0.0
        self.labels: tuple[str, ...] = ()  # AgentBoard's sub-goals, and which of them were seen
        self.reached: frozenset[int] = frozenset()

    def reset(self, task: Task) -> Start:
        self.best, self.labels, self.reached = 0.0, tuple(task.args.get("subgoals", ())), frozenset()
        if not self.simulator.alive:
            self.simulator.close()
            self.simulator = Simulator()
        description, first = self.simulator.load(*self._where(task))
        if "goal" in task.args:
            return Start(str(task.args["goal"]), f"{first}\n{self.simulator.step('inventory')[0]}")
        return Start(description, first)

    def step(self, command: str) -> EngineStep:
        observation, score, over = self.simulator.step(command)
        if self.labels:
            self.reached = agentboard.matched(self.reached, self.labels, observation)
            score = len(self.reached) / len(self.labels)
            over = over or score == 1.0
        self.best = max(self.best, score)
        return EngineStep(observation, self.best, self.best, over, not observation.startswith(_UNKNOWN))

    def solution(self, task: Task) -> list[str]:
        """The simulator's own solution without its detours, where that is checked to reach the full score too.

        Afterwards the episode is as freshly reset.
        """
        gold = self.simulator.gold_path(*self._where(task))
        answers = self._run(task, gold)
        short = [c for c, (seen, _, _) in zip(gold, answers, strict=False) if "already open" not in seen]
        tries = [_teleporting(short), short] if self.simplifications == "easy" else [short]
        for path in tries:
            answers = self._run(task, path)
            if answers and answers[-1][1] >= 1.0:
                gold = path[: len(answers)]
                break
        self.reset(task)
        return gold

    def _run(self, task: Task, commands: list[str]) -> list[tuple[str, float, bool]]:
        """The simulator's answers to a fresh episode, up to its end."""
        self.simulator.load(*self._where(task))
        answers = []
        for command in commands:
            answers.append(self.simulator.step(command))
            if answers[-1][2]:
                break
        return answers

    def _where(self, task: Task) -> tuple[str, int, str]:
        simplifications = str(task.args.get("simplifications") or self.simplifications)
        return str(task.args["task"]), int(task.args["variation"]), simplifications

    def snapshot(self) -> Any:
        raise NotImplementedError("the simulator cannot copy a state; replay the commands")

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError("the simulator cannot copy a state; replay the commands")

    def close(self) -> None:
        self.simulator.close()


def make(options: Options) -> Environment:
    simulator_jar(), java()
    return ScienceWorld(options)


def short_name(name: str) -> str:
    """The simulator's name of a kind of task, from that or from the longer one in ETO's files."""
    return re.sub(r"^task-\w+?-|[()]", "", name).replace("mendellian", "mendelian")


def splits(name: str) -> dict[str, range]:
    """The simulator's split of a kind of task: a half, a quarter and the rest of its variations, in this order."""
    count, quarter = TASKS[name][0], TASKS[name][0] // 4
    return {"train": range(2 * quarter), "dev": range(2 * quarter, 3 * quarter), "test": range(3 * quarter, count)}


def step_limit(name: str) -> int:
    """Steps allowed where no table says so."""
    return -(-TASKS[name][1] * 5 // 40) * 10


def tasks(split: str, options: Options) -> Sequence[Task]:
    """ETO's items of the split if `data` is given, an even choice of the simulator's variations otherwise."""
    setting = str(options.get("setting") or "eto")
    if setting not in ("eto", "agentboard"):
        raise UserError(f"sciworld: no setting {setting!r}; choose eto or agentboard")
    fixed = whole(options, "max_steps", _AGENTBOARD_STEPS if setting == "agentboard" else 0)
    labelled = agentboard.rows(str(options["data"]), "scienceworld") if options.get("data") else ()
    if setting == "agentboard" and split == "test" and labelled:
        return [_labelled(row, fixed) for row in labelled]
    if options.get("data"):
        pairs, limits = _eto(Path(str(options["data"])).expanduser(), split)
    else:
        count = whole(options, "variations", _VARIATIONS[split])
        pairs = [(name, v) for name in _kinds(options) for v in _spread(splits(name)[split], count)]
        limits = {}
    return [
        Task("sciworld", f"{n}-{v}", split, fixed or limits.get(n) or step_limit(n), {"task": n, "variation": v})
        for n, v in pairs
    ]


def _labelled(row: dict[str, JSON], max_steps: int) -> Task:
    """A task of AgentBoard's, played as there: no teleport, open containers and doors."""
    info = row["additional_info"]
    name, variation = short_name(info["env_name"]), int(info["var"])
    args = {"task": name, "variation": variation, "goal": row["goal"], "subgoals": row["subgoals"]}
    args["simplifications"] = _AGENTBOARD_WORLD
    return Task("sciworld", f"agentboard-{name}-{variation}", "test", max_steps, args)


def _kinds(options: Options) -> list[str]:
    chosen = [short_name(str(name)) for name in several(options, "tasks", DEFAULT_TASKS)]
    if unknown := [name for name in chosen if name not in TASKS]:
        raise UserError(f"sciworld: no kind of task {unknown[0]!r}; known: {', '.join(TASKS)}")
    return chosen


def _spread(available: range, count: int) -> list[int]:
    """`count` values spread evenly over the range, all of it if it is shorter."""
    n = min(count, len(available))
    return [available[i * len(available) // n] for i in range(n)]


def _eto(root: Path, split: str) -> tuple[list[tuple[str, int]], dict[str, int]]:
    folder = next((f for f in (root / "sciworld", root) if (f / f"{split}_indices.json").is_file()), None)
    if folder is None:
        raise UserError(
            f"sciworld: {root} holds no sciworld/{split}_indices.json; leave env.options.data out to do without"
        )
    pairs = [(short_name(name), int(v)) for name, v in json.loads((folder / f"{split}_indices.json").read_text())]
    if unknown := [name for name, _ in pairs if name not in TASKS]:
        raise UserError(
            f"sciworld: {folder}/{split}_indices.json names a kind of task that does not exist: {unknown[0]}"
        )
    file = folder / "max_steps.json"
    limits = json.loads(file.read_text()) if file.is_file() else {}
    return pairs, {short_name(name): int(steps) for name, steps in limits.items()}


def _teleporting(path: list[str]) -> list[str]:
    """`path` with each walk through several rooms (or into one) as a single teleport."""
    out: list[str] = []
    for command in path:
        if found := re.fullmatch("go to (.+)", command):
            if out and out[-1].startswith("teleport to "):
                out.pop()
            out.append(f"teleport to {found[1]}")
        else:
            out.append(command)
    return out


_REASONS = (
    (r"(?:open|close) door to (.+)", "The way to {0} must be clear."),
    (r"(?:go|teleport) to (.+)", "What I need next is in {0} or beyond."),
    (r"look around", "I check what is here before I go on."),
    (r"(?:look at|look in|examine|read) (.+)", "I need to know more about {0}."),
    (r"pick up (.+)", "I will need {0}, so I take it."),
    (r"focus on (.+)", "{0} is what the task asks for, so I focus on it."),
    (r"move (.+) to (.+)", "The task goes on with {0} in {1}."),
    (r"pour (.+) in(?:to)? (.+)", "What is in {0} has to get into {1}."),
    (r"deactivate (.+)", "{0} has done its work."),
    (r"activate (.+)", "{0} must be on to have an effect."),
    (r"use (.+) on (.+)", "{0} tells or changes something about {1}."),
    (r"(?:connect|disconnect) (.+) (?:to|from) (.+)", "The circuit needs this between {0} and {1}."),
    (r"mix (.+)", "Mixing what is in {0} lets it react."),
    (r"open (.+)", "What I need may be inside {0}."),
    (r"wait.*", "This needs time, so I wait."),
    (r"\d+", "The command could mean several things; I choose the one I mean."),
)


def explain(command: str) -> str:
    """A short reason for a command of a gold path, from the command alone."""
    return reason(command, _REASONS) or "This is the next step of the experiment."


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """The simulator's gold path, shortened where possible, with a thought for each command."""
    assert isinstance(env, ScienceWorld)
    for command in env.solution(task):
        yield explain(command), command


SPEC = EnvSpec(
    name="sciworld",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    expert=expert,
    example=EXAMPLE,
    options=("setting", "max_steps", "tasks", "variations", "simplifications"),
    live=4,
    engine="scienceworld",
    licence="Apache-2.0",
    extra="envs",
)
