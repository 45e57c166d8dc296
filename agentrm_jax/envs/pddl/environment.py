"""Planning puzzles in words: gripper, blockworld, barman and tyreworld, the worlds of AgentBoard's selection (paper Table 8).

Reward and progress are the same number: the largest share of goal facts that held at once so far, in [0, 1]. The
episode is over when all hold. A command that cannot be read, is not applicable, or would change nothing leaves the
state as it is and is not valid. Barman and tyreworld show only new facts after a step; `look around` shows all.
`check valid actions` lists what can be done now. Without data, problems are generated (`generate`): train, dev and test never
share one. With the option `data` the test split is AgentBoard's 60 problems, from `<data>/agentboard/pddl/`.

Settings:

- `ours` (default): facts, commands and answers have a wording of our own, close to AgentBoard's (29 of its 43 sentences for facts are the
  same but for blanks, and goals read as in its labels). The first observation begins with the rules of the world. Goal facts that
  hold at the start count. AgentBoard's commands (action word anywhere, then objects in order) are understood too.
- `agentboard`: plays as AgentBoard's wrapper does, for figures that are to be compared with its own. Goal, observations and answers are
  its sentences, and rules are part of the instruction. Reward is 0 until a command has changed something, then the largest share
  so far. An action word is only known while the action can be done in some way; any command with `check` in it lists what can be done,
  any with `look around` lists all facts. Two differences remain, where the original has no fixed answer: these two lists are sorted
  (there their order changes from run to run), and punctuation inside words is read by a rule of ours (`agentboard.words`) instead of
  NLTK's tokenizer. `tests/envs/agentboard_golden` holds recorded episodes of the original that are played again.

Options:
  data: folder of official files.
  setting: `ours` or `agentboard`.
  domains: list of worlds, all four by default.
  difficulty: `easy`, `medium` or `hard`; all three by default (generated problems only).
  count: problems of the split (generated; rounded up to equal shares), default 480 train, 60 dev, 60 test.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agentrm_jax.envs.pddl import agentboard
from agentrm_jax.envs.pddl.domains import WORLDS, World
from agentrm_jax.envs.pddl.engine import Atom, Operator, Problem, State, apply, ground, read_problem, satisfied
from agentrm_jax.envs.pddl.generate import DIFFICULTIES, generate, seeds
from agentrm_jax.envs.pddl.plan import plan
from agentrm_jax.envs.react import played
from agentrm_jax.envs.spec import EnvSpec, Options, several, whole
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

MAX_STEPS = 30
CHECK, LOOK = "check valid actions", "look around"
SETTINGS = ("ours", "agentboard")
_COUNTS = {"train": 480, "dev": 60, "test": 60}


class Grounded(NamedTuple):
    """A problem with its operators; shared by all episodes of it in a process."""

    setting: str
    world: World
    problem: Problem
    operators: Mapping[Atom, Operator]
    goal: tuple[Atom, ...]


Source = str | tuple[str, int]  # the text of a problem, or (difficulty, seed) of a generated one


def _source(task: Task) -> tuple[str, Source]:
    args = task.args
    return str(args["domain"]), args["pddl"] if "pddl" in args else (str(args["difficulty"]), int(args["seed"]))


def _setting(task: Task) -> str:
    return str(task.args.get("setting", SETTINGS[0]))


@functools.lru_cache(maxsize=256)
def _grounded(domain: str, source: Source, setting: str = SETTINGS[0]) -> Grounded:
    world = (agentboard.WORLDS if setting == "agentboard" else WORLDS)[domain]
    problem = read_problem(source, world.domain) if isinstance(source, str) else generate(domain, *source)
    order = sorted(problem.goal, key=lambda atom: sentence(world.facts, atom))
    return Grounded(setting, world, problem, ground(world.domain, problem), tuple(order))


@functools.lru_cache(maxsize=256)
def _plan(domain: str, source: Source) -> tuple[Atom, ...]:
    grounded = _grounded(domain, source)
    return tuple(plan(grounded.operators, grounded.problem.init, grounded.goal))


def sentence(templates: Mapping[str, str], atom: Atom) -> str:
    """An atom or ground action in words; `("on", "b1", "b2")` is `b1 is on b2.`"""
    return templates[atom[0]].format(*atom[1:])


@functools.cache
def _shapes(commands: tuple[tuple[str, str], ...]) -> tuple[tuple[str, int, re.Pattern[str]], ...]:
    """(action, number of arguments, pattern of its command) for every action."""
    shapes = []
    for action, template in commands:
        arguments = re.findall(r"\{(\d)\}", template)
        pattern = re.sub(r"\\\{(\d)\\\}", r"(?P<a\1>\\S+)", re.escape(template))
        shapes.append((action, len(arguments), re.compile(pattern)))
    return tuple(shapes)


def read_command(world: World, objects: Mapping[str, str], command: str) -> Atom | None:
    """The ground action a command names, or None. It need not be applicable, nor its arguments of the right type.

    Reads our wording, and else AgentBoard's rule: the first action word, and the objects in the order they occur.
    """
    text = " ".join(command.lower().split()).rstrip(". ")
    shapes = _shapes(tuple(world.commands.items()))
    for action, n, pattern in shapes:
        if match := pattern.fullmatch(text):
            return (action, *(match[f"a{i}"] for i in range(n)))
    words = re.findall(r"[\w-]+", text)
    arity = {action: n for action, n, _ in shapes}
    found = next((word for word in words if word in arity), None)
    named = [word for word in words if word in objects]
    if found is None or len(named) < arity[found]:
        return None
    return (found, *named[: arity[found]])


class Snapshot(NamedTuple):
    grounded: Grounded
    state: State
    best: float


class Pddl:
    """One episode of one problem."""

    def __init__(self) -> None:
        self.grounded: Grounded | None = None
        self.state: State = frozenset()
        self.best = 0.0

    def reset(self, task: Task) -> Start:
        self.grounded = grounded = _grounded(*_source(task), _setting(task))
        self.state = grounded.problem.init
        conditions = [sentence(grounded.world.facts, atom) for atom in grounded.goal]
        goal = "The goal is to satisfy the following conditions: "
        if grounded.setting == "agentboard":
            self.best = 0.0
            return Start(goal + ", ".join(conditions), self._facts(self.state))
        self.best = satisfied(grounded.goal, self.state)
        return Start(goal + " ".join(conditions), f"{grounded.world.rules}\n{self._facts(self.state)}")

    def step(self, command: str) -> EngineStep:
        assert self.grounded is not None, "reset comes first"
        if self.grounded.setting == "agentboard":
            return self._step_as_agentboard(command)
        world, problem = self.grounded.world, self.grounded.problem
        text = " ".join(command.lower().split()).rstrip(".")
        if text == CHECK:
            return self._answer("You can do: " + ", ".join([*self.valid_commands(), CHECK, LOOK]))
        if text == LOOK:
            return self._answer(self._facts(self.state))
        action = read_command(world, problem.objects, command)
        if action is None:
            return self._answer("That is no command here; nothing changes.", valid=False)
        return self._do(action) or self._answer("That cannot be done now; nothing changes.", valid=False)

    def _step_as_agentboard(self, command: str) -> EngineStep:
        assert self.grounded is not None
        _, world, problem, operators, _ = self.grounded
        possible = [o.name for o in operators.values() if apply(o, self.state) is not None]
        text = command.lower()
        if "check" in text:
            listed = [*sorted(sentence(world.commands, name) for name in possible), CHECK]
            return self._answer("Valid actions are: " + ", ".join(listed + [LOOK] * world.only_news))
        if LOOK in text:
            return self._answer(self._facts(self.state))
        action = agentboard.read_command(text, {name[0]: len(name) - 1 for name in possible}, problem.objects)
        if action is None:
            return self._answer(agentboard.NOT_READ, valid=False)
        return self._do(action) or self._answer(agentboard.NOT_DONE, valid=False)

    def _do(self, action: Atom) -> EngineStep | None:
        """Carries out a ground action; None, and the state as it was, if it cannot be done or changes nothing."""
        assert self.grounded is not None
        operator = self.grounded.operators.get(action)
        after = None if operator is None else apply(operator, self.state)
        if after is None or after == self.state:
            return None
        before, self.state = self.state, after
        self.best = max(self.best, satisfied(self.grounded.goal, after))
        shown = self._facts(after - before if self.grounded.world.only_news else after)
        return self._answer(shown + " The goal is satisfied." if self._over() else shown)

    def valid_commands(self) -> list[str]:
        """Commands that would change the state, sorted."""
        assert self.grounded is not None
        world = self.grounded.world
        useful = [o.name for o in self.grounded.operators.values() if apply(o, self.state) not in (None, self.state)]
        return sorted(sentence(world.commands, name) for name in useful)

    def snapshot(self) -> Snapshot:
        assert self.grounded is not None
        return Snapshot(self.grounded, self.state, self.best)

    def restore(self, snapshot: Snapshot) -> None:
        self.grounded, self.state, self.best = snapshot

    def close(self) -> None:
        pass

    def _facts(self, atoms: State) -> str:
        assert self.grounded is not None
        facts = self.grounded.world.facts
        return " ".join(sorted(_capital(sentence(facts, atom)) for atom in atoms if atom[0] in facts))

    def _over(self) -> bool:
        assert self.grounded is not None
        return all(atom in self.state for atom in self.grounded.goal)

    def _answer(self, observation: str, valid: bool = True) -> EngineStep:
        return EngineStep(observation, self.best, self.best, self._over(), valid)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _domains(options: Options) -> list[str]:
    chosen = several(options, "domains", WORLDS)
    for name in chosen:
        if name not in WORLDS:
            raise UserError(f"pddl has no domain {name!r}; known: {', '.join(WORLDS)}")
    return chosen


def tasks(split: str, options: Options) -> Sequence[Task]:
    """Generated problems; AgentBoard's 60 as `test` if `data` is given.

    Raises:
      UserError: unknown domain, difficulty or split, or official files missing.
    """
    if split not in _COUNTS:
        raise UserError(f"pddl has no split {split!r}; known: {', '.join(_COUNTS)}")
    domains = _domains(options)
    setting = str(options.get("setting") or SETTINGS[0])
    if setting not in SETTINGS:
        raise UserError(f"pddl has no setting {setting!r}; known: {', '.join(SETTINGS)}")
    marked: dict[str, JSON] = {"setting": setting} if setting != SETTINGS[0] else {}
    if split == "test" and options.get("data"):
        return _official(Path(str(options["data"])).expanduser() / "agentboard" / "pddl", domains, marked)
    levels = [options["difficulty"]] if options.get("difficulty") else list(DIFFICULTIES)
    if levels[0] not in DIFFICULTIES:
        raise UserError(f"pddl has no difficulty {levels[0]!r}; known: {', '.join(DIFFICULTIES)}")
    share = -(-whole(options, "count", _COUNTS[split]) // (len(domains) * len(levels)))
    return [
        Task(
            "pddl",
            f"{domain}-{level}-{seed}",
            split,
            MAX_STEPS,
            {"domain": domain, "difficulty": level, "seed": seed, **marked},
        )
        for domain in domains
        for level in levels
        for _, seed in zip(range(share), seeds(domain, level, split), strict=False)
    ]


def _official(folder: Path, domains: Sequence[str], marked: Mapping[str, JSON]) -> list[Task]:
    """AgentBoard's order: problems by file name within each domain, difficulty from its own list; `marked` is added to each."""
    labels = folder / "test.jsonl"
    found: list[Task] = []
    try:
        rows = [json.loads(line) for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()]
        for domain in domains:
            files = sorted((folder / "domains" / domain).glob("*.pddl"))
            difficulties = [row["difficulty"] for row in rows if row["additional_info"]["subtask"] == domain]
            if len(files) != len(difficulties):
                raise UserError(
                    f"{folder / 'domains' / domain} holds {len(files)} problems, test.jsonl names {len(difficulties)}"
                )
            for file, difficulty in zip(files, difficulties, strict=True):
                text = file.read_text(encoding="utf-8")
                try:
                    read_problem(text, WORLDS[domain].domain)  # a broken file is named here, not in a worker
                except UserError as error:
                    raise UserError(f"{file}: {error}") from error
                args = {"domain": domain, "difficulty": difficulty, "pddl": text, **marked}
                found.append(Task("pddl", f"{domain}-{file.stem}", "test", MAX_STEPS, args))
    except OSError as error:
        raise UserError(f"{labels} cannot be read ({error}); option `data` must name the folder above it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} does not hold AgentBoard's problems: {error!r}") from error
    return found


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """A plan for the task, each step with the goal fact it works towards.

    Raises:
      TimeoutError: the planner found nothing in 20 s.
    """
    _, world, problem, operators, goal = _grounded(*_source(task), _setting(task))
    steps = _plan(*_source(task))
    states = [problem.init]
    for step in steps:
        after = apply(operators[step], states[-1])
        assert after is not None, "a plan is applicable"
        states.append(after)
    for i, step in enumerate(steps):
        aim = next((a for s in states[i + 1 :] for a in goal if a in s and a not in states[i]), goal[0])
        reached = aim in states[i + 1]
        fact = sentence(world.facts, aim).rstrip(".")
        thought = f"This makes it true that {fact}." if reached else f"I am working towards this: {fact}."
        yield thought, sentence(world.commands, step)


_EXAMPLE = Task(
    "pddl",
    "blockworld-example",
    "train",
    MAX_STEPS,
    {
        "domain": "blockworld",
        "pddl": """(define (problem example) (:domain blocksworld-4ops) (:objects b1 b2 b3)
          (:init (arm-empty) (on-table b1) (on b2 b1) (on-table b3) (clear b2) (clear b3)) (:goal (on b1 b3)))""",
    },
)


def make(options: Options) -> Environment:
    """One engine; which problems it plays is the tasks' concern."""
    return Pddl()


def told(task: Task) -> EnvSpec:
    """The texts for a task: in the setting `agentboard`, where observations hold no rules, those of its world with its rules."""
    return _told_of_world(str(task.args["domain"])) if _setting(task) == "agentboard" else SPEC


@functools.cache
def _told_of_world(domain: str) -> EnvSpec:
    world = agentboard.WORLDS[domain]
    shown = "only the facts that have become true" if world.only_news else "all the facts that hold then"
    task = dataclasses.replace(_EXAMPLE, args={**_EXAMPLE.args, "setting": "agentboard"})
    return dataclasses.replace(
        SPEC,
        instruction=f"""You solve a planning puzzle. The goal lists facts that have to hold all at the same time. \
You are first told the facts that hold at the start; whatever is not listed does not hold. After each command you are told \
{shown}. A command is an action word, followed by its arguments in this order; words between them do no harm:
{world.rules}
A command whose conditions are not met changes nothing. Two more commands work everywhere: "check valid actions" lists what can \
be done now, "look around" lists all facts. You have 30 turns.
Each turn, write one thought and one command:
Thought: <why>
Action: <command>""",
        example=played(Pddl(), task, expert),
        told=None,
    )


SPEC = EnvSpec(
    name="pddl",
    make=make,
    tasks=tasks,
    instruction="""You solve a planning puzzle. The goal lists facts that have to hold all at the same time. \
First you are told the commands of this puzzle with their conditions, then the facts that hold now; whatever is not \
listed does not hold. Replace the words in capitals by names from the facts. A command whose conditions are not met \
changes nothing. Two more commands work everywhere: "check valid actions" lists what can be done now, "look around" \
lists all facts. You have 30 turns.
Each turn, write one thought and one command:
Thought: <why>
Action: <command>""",
    rm_instruction="""An agent solves a planning puzzle: it moves objects with simple commands until all the facts of \
the goal hold at the same time. A command whose conditions are not met changes nothing.
{goal}""",
    expert=expert,
    example=played(Pddl(), _EXAMPLE, expert),
    options=("setting", "domains", "difficulty", "count"),
    told=told,
    engine="own STRIPS engine and planner",
    licence="Apache-2.0",
)
