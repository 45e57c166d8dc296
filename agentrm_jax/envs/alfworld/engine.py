"""One ALFWorld game being played: commands, texts, goal and progress on top of the PDDL interpreter."""

import dataclasses
import functools
import re
from collections.abc import Mapping

from agentrm_jax.envs.alfworld import games, pddl, text
from agentrm_jax.envs.alfworld.pddl import Facts, PddlAction

NOTHING = "Nothing happens."  # what TextWorld's PDDL engine answers to a command it does not know
_PROCESSES = {"isclean": "clean", "ishot": "heat", "iscool": "cool"}


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a goal formula asks for, in the terms of the six task types; types are PDDL's (`appletype`).

    Attributes:
      object: type of the object to place or to hold.
      target: type of the receptacle it belongs in; empty for looking at it.
      process: `clean`, `heat`, `cool` or empty.
      lamp: type of the lamp to look at it with; empty otherwise.
      count: how many objects.
    """

    object: str
    target: str
    process: str
    lamp: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Everything about a game that play does not change. Shared by all episodes and snapshots of it."""

    game: games.Game
    actions: Mapping[str, PddlAction]
    problem: pddl.Problem
    teller: text.Teller
    conditions: list[list[list[pddl.Formula]]]
    aim: Aim
    command_cache: dict[tuple[str, pddl.Fact], str]
    cacheable: frozenset[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Position:
    """A state of play, compared by identity: the facts, what has been achieved (for sub-goals), the best progress so far."""

    facts: Facts
    achieved: frozenset[tuple[str, str]] = frozenset()
    best: float = 0.0
    won: bool = False


def build_world(game: games.Game, wording: str) -> World:
    """Parses a game. Takes some milliseconds; the domain and the grammar are parsed once a process."""
    actions = {a.name: a for a in pddl.parse_domain(game.domain)}
    problem = pddl.parse_problem(game.problem)
    # Games differ in the goal line of their grammar alone: parse it without, so that one parse serves all.
    grammar = games.reword(game.grammar, wording).replace(game.goal, "UNKNOWN GOAL.")
    templates = text.parse_templates(grammar)
    mentioned = {value for rows in problem.init.values() for row in rows for value in row}
    teller = text.Teller(templates, problem.types, text.entity_names(sorted(mentioned)))
    changing = pddl.changing_predicates(tuple(actions.values()))
    asked = {
        a: {n for _, _, q in text.parse_symbols(t) for n, _ in text.parse_query(q)}
        for a, t in templates.commands.items()
    }
    cacheable = frozenset(name for name, predicates in asked.items() if not predicates & changing)
    conditions = pddl.goal_conditions(problem, changing)
    return World(game, actions, problem, teller, conditions, _aim(problem.goal), {}, cacheable)


def _aim(goal: pddl.Formula) -> Aim:
    literals = [lit for part in (goal[1:] if goal[0] == "and" else (goal,)) for lit in pddl.flatten(part, [])]
    types = {lit[1]: lit[2] for lit in literals if lit[0] in ("objecttype", "receptacletype")}
    lamp = next((types[lit[1]] for lit in literals if lit[0] == "istoggled"), "")
    if lamp:
        held = next(lit[2] for lit in literals if lit[0] == "holds")
        return Aim(types[held], "", "", lamp, 1)
    placed = [lit for lit in literals if lit[0] == "inreceptacle"]
    process = next((word for name, word in _PROCESSES.items() if any(lit[0] == name for lit in literals)), "")
    return Aim(types[placed[0][1]], types[placed[0][2]], process, "", len(placed))


def start(world: World) -> Position:
    return Position(world.problem.init)


def introduction(world: World) -> str:
    """The whole opening text, as the engine prints it: title, room, task."""
    return world.teller.derive("#intro#", {}, world.problem.init).replace("UNKNOWN GOAL.", world.game.goal)


def room_description(world: World) -> str:
    """The opening without title and task."""
    return world.teller.derive("#look.feedback#", {}, world.problem.init)


def _scope(action: PddlAction, args: pddl.Fact) -> text.Scope:
    return {(name[1:], kind): value for (name, kind), value in zip(action.params, args, strict=True)}


def commands(world: World, facts: Facts) -> dict[str, tuple[PddlAction, pddl.Fact]]:
    """Every command that does something now, with the ground action behind it."""
    out: dict[str, tuple[PddlAction, pddl.Fact]] = {}
    for name, action in world.actions.items():
        for args in pddl.groundings(action, world.problem, facts):
            written = world.command_cache.get((name, args))
            if written is None:
                written = world.teller.command(name, _scope(action, args), facts)
                if name in world.cacheable:
                    world.command_cache[name, args] = written
            out.setdefault(written, (action, args))
    return out


def play(world: World, position: Position, action: PddlAction, args: pddl.Fact) -> tuple[Position, str]:
    """The position after a ground action, and what the engine says to it."""
    facts = pddl.apply(action, args, position.facts)
    said = world.teller.feedback(action.name, _scope(action, args), facts)
    won = pddl.holds(world.problem.goal, facts)
    best = max(position.best, 1.0 if won else _share(world, facts))
    achieved = position.achieved | {(action.name, value) for value in args}
    return Position(facts, achieved, best, won), said


def _share(world: World, facts: Facts) -> float:
    """Share of the goal's conditions reached beyond those that held at the start, under the best binding."""
    had, total = _at_start(world)
    now, _ = pddl.satisfied(world.conditions, facts)
    return max(0.0, (now - had) / (total - had)) if total > had else 0.0


@functools.lru_cache(64)
def _at_start(world: World) -> tuple[int, int]:
    return pddl.satisfied(world.conditions, world.problem.init)


def milestones(world: World, position: Position) -> float:
    """Progress in AgentBoard's form: sub-goals reached / (sub-goals + 1), and 1 when won.

    Its labels are not public here, so the sub-goals are derived: every object the goal asks for taken once, cleaned (heated, cooled)
    once, the lamp used once.
    """
    if position.won:
        return 1.0
    kinds: dict[str, str] = dict(world.problem.init.get("objecttype", ()))  # type: ignore[arg-type]
    aim, wanted, reached = world.aim, 0, 0
    for action, kind, count in (
        ("pickupobject", aim.object, aim.count),
        (f"{aim.process}object", aim.object, 1 if aim.process else 0),
        ("toggleobject", aim.lamp, 1 if aim.lamp else 0),
    ):
        wanted += count
        reached += min(count, sum(name == action and kinds.get(value) == kind for name, value in position.achieved))
    return reached / (wanted + 1)


def canonical(command: str, wording: str) -> str:
    """The engine's spelling of a command: its case and spaces, `put`/`move` as in `wording`, and `toggle X` for `use X`."""
    command = " ".join(command.lower().split()).rstrip(".")
    if found := re.fullmatch(r"(?:put (.+?) (?:in/on|into|onto|in|on)|move (.+) to) (.+)", command):
        what, where = found[1] or found[2], found[3]
        return f"put {what} in/on {where}" if wording == "put" else f"move {what} to {where}"
    return re.sub(r"^(?:toggle|turn on) ", "use ", command)
