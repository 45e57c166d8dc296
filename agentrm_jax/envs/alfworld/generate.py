"""Households made from what the `alfworld` wheel ships: rooms of AI2-THOR, what fits where, goals and their wording.

The official games come from the same sources and a simulator. Here a seed places objects in a room of the same kind and asks for one
of the six kinds of task. Splits are disjoint by construction: the unseen split has rooms that the other two never use, and the
seen split has combinations of task, object and receptacle in known rooms that the train split leaves out.
"""

import dataclasses
import functools
import random
import zlib
from collections import Counter
from typing import Any

from agentrm_jax.envs.alfworld import games

# The rooms of the official unseen split (10, 219, 308, 424) and others that the official train split does not use.
UNSEEN_ROOMS = frozenset({9, 10, 29, 215, 219, 226, 308, 315, 325, 404, 424, 425})
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_APPLIANCE = {"clean": ("Cleanable", "SinkBasin"), "heat": ("Heatable", "Microwave"), "cool": ("Coolable", "Fridge")}
_OPENABLE = frozenset({"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"})
# Furniture of the rooms that the layouts list without a position, and how many of each a room gets.
_COUNTS = {"StoveBurner": 4, "TowelHolder": 1, "HandTowelHolder": 2}
_LAMP_TABLES = ("Desk", "SideTable", "Dresser", "Shelf", "CoffeeTable", "DiningTable", "TVStand")
# Things that are looked at, not carried.
_FIXTURES = frozenset(
    {
        "Bathtub",
        "Blinds",
        "Chair",
        "Curtains",
        "DeskLamp",
        "FloorLamp",
        "Footstool",
        "HousePlant",
        "LaundryHamperLid",
        "LightSwitch",
        "Mirror",
        "Painting",
        "Poster",
        "ShowerDoor",
        "ShowerGlass",
        "Sink",
        "StoveKnob",
        "Television",
        "Window",
    }
)
_HELD_OUT = 6  # one in so many combinations belongs to the seen split


@dataclasses.dataclass(frozen=True)
class Thing:
    """A receptacle or an object to be: its id, type and location; `inside` is the receptacle an object lies in or on."""

    id: str
    type: str
    location: str
    inside: str = ""


@functools.cache
def _wheel_tables() -> tuple[Any, Any]:
    return games.load_module("gen/constants.py"), games.load_module("gen/goal_library.py")


@functools.cache
def _capacity() -> dict[str, frozenset[str]]:
    """Receptacle type -> object types that fit in or on it (what only slicing makes is left out)."""
    constants, _ = _wheel_tables()
    table = {k: v for k, v in constants.VAL_RECEPTACLE_OBJECTS.items() if k not in constants.MOVABLE_RECEPTACLES_SET}
    return {k: frozenset(o for o in v if o in constants.OBJECTS_SET) for k, v in table.items()}


def _mangle(text: str) -> str:
    for sign, word in (("|", "_bar_"), ("+", "_plus_"), ("-", "_minus_"), (".", "_dot_")):
        text = text.replace(sign, word)
    return text


def _somewhere(rng: random.Random) -> str:
    return "|".join(f"{rng.uniform(-3, 3):+06.2f}" for _ in range(3))


def _spot(x: float, z: float, rotation: float, horizon: float) -> str:
    return _mangle(f"loc|{round(x * 4)}|{round(z * 4)}|{int(rotation) // 90}|{int(horizon)}")


def _furnish(room: int, rng: random.Random) -> list[Thing]:
    """The receptacles of a room: those with a known position, then the others."""
    out = []
    for key, position in sorted(games.layout(room, "openable").items()):
        kind = key.split("|")[-1] if key.endswith("Basin") else key.split("|")[0]
        if kind in _capacity():
            out.append(Thing(_mangle(key), kind, _spot(*position)))
    placed = {t.type for t in out}
    for kind in sorted(set(games.layout(room, "objects")) & set(_capacity()) - placed):
        for _ in range(_COUNTS.get(kind, 1)):
            spot = _spot(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.choice((0, 90, 180, 270)), rng.choice((0, 30, 60)))
            out.append(Thing(_mangle(f"{kind}|{_somewhere(rng)}"), kind, spot))
    return out


def _stock(room: int, receptacles: list[Thing], rng: random.Random) -> list[Thing]:
    """The objects of a room, one to three of each type, each in a receptacle that takes it (or in plain view, unreachable)."""
    constants, _ = _wheel_tables()
    kinds = set(games.layout(room, "objects")) & constants.OBJECTS_SET - {r.type for r in receptacles}
    tables = [r for r in receptacles if r.type in _LAMP_TABLES]
    if tables and 200 < room < 400:  # living rooms and bedrooms: where things are looked at in a lamp's light
        kinds.add("DeskLamp")
    out = []
    for kind in sorted(kinds):
        homes = tables if kind == "DeskLamp" else [r for r in receptacles if kind in _capacity()[r.type]]
        for _ in range(1 if kind in _FIXTURES else rng.randint(1, 3)):
            home = rng.choice(homes) if homes else None
            spot = home.location if home else _spot(rng.uniform(-3, 3), rng.uniform(-3, 3), 0, 30)
            out.append(Thing(_mangle(f"{kind}|{_somewhere(rng)}"), kind, spot, home.id if home else ""))
    return out


def _combinations(task: str, receptacles: list[Thing], objects: list[Thing]) -> list[tuple[str, str]]:
    """(object type, receptacle or lamp type) pairs that make the task possible and not already done, sorted."""
    constants, _ = _wheel_tables()
    where = {r.id: r.type for r in receptacles}
    have = Counter(o.type for o in objects if o.inside and o.type not in _FIXTURES)
    if task == "look_at_obj_in_light":
        lamp = any(o.type == "DeskLamp" for o in objects)
        return [(o, "DeskLamp") for o in sorted(have)] if lamp else []
    wanted = {o for o, n in have.items() if n >= (2 if task == "pick_two_obj_and_place" else 1)}
    if (word := task.split("_")[1]) in _APPLIANCE:
        able, appliance = _APPLIANCE[word]
        wanted &= set(constants.VAL_ACTION_OBJECTS[able]) if appliance in where.values() else set()
    there = {(o.type, where[o.inside]) for o in objects if o.inside}
    targets = sorted(set(where.values()))
    return [(o, r) for o in sorted(wanted) for r in targets if o in _capacity()[r] and (o, r) not in there]


def _problem(name: str, receptacles: list[Thing], objects: list[Thing], goal: str) -> str:
    constants, _ = _wheel_tables()
    start = "loc_bar_0_bar_0_bar_0_bar_0"
    otypes, rtypes = sorted({o.type for o in objects}), sorted({r.type for r in receptacles})
    spots = sorted({t.location for t in receptacles + objects} | {start})
    declared = ["agent1 - agent", *(f"{t}Type - otype" for t in otypes), *(f"{t}Type - rtype" for t in rtypes)]
    declared += [f"{o.id} - object" for o in objects] + [f"{r.id} - receptacle" for r in receptacles]
    declared += [f"{s} - location" for s in spots]
    facts = [f"receptacleType {r.id} {r.type}Type" for r in receptacles] + [f"atLocation agent1 {start}"]
    facts += [f"receptacleAtLocation {r.id} {r.location}" for r in receptacles]
    facts += [f"openable {r.id}" for r in receptacles if r.type in _OPENABLE]
    facts += [f"canContain {r}Type {o}Type" for r in rtypes for o in otypes if o in _capacity()[r]]
    for o in objects:
        facts += [f"objectType {o.id} {o.type}Type", f"objectAtLocation {o.id} {o.location}"]
        facts += [f"inReceptacle {o.id} {o.inside}"] if o.inside else []
        facts += [f"pickupable {o.id}"] if o.type not in _FIXTURES else []
        facts += [f"isReceptacleObject {o.id}"] if o.type in constants.MOVABLE_RECEPTACLES_SET else []
        facts += [f"{able.lower()} {o.id}" for able, kinds in constants.VAL_ACTION_OBJECTS.items() if o.type in kinds]
    lines = [f"(define (problem {name})", "(:domain alfred)", "(:objects", *declared, ")", "(:init"]
    return "\n".join([*lines, *(f"({fact})" for fact in facts), ")", goal])


def held_out(task: str, obj: str, target: str, room: int) -> bool:
    """Whether this combination belongs to the seen split (decided by a hash of it, not by a seed)."""
    return zlib.crc32(f"{task}-{obj}-{target}-{room}".encode()) % _HELD_OUT == 0


@functools.lru_cache(8)
def household(seed: int, split: str) -> games.Game:
    """The game that `seed` makes for `split`: the same on every machine and in every process."""
    constants, library = _wheel_tables()
    rng = random.Random(f"{split}-{seed}")
    task = TASK_TYPES[seed % len(TASK_TYPES)]
    rooms = [n for kind in sorted(constants.GOALS_VALID[task]) for n in constants.SCENE_TYPE[kind]]
    rooms = [n for n in rooms if (n in UNSEEN_ROOMS) == (split == "test")]
    while True:
        room = rng.choice(rooms)
        receptacles = _furnish(room, rng)
        objects = _stock(room, receptacles, rng)
        pairs = _combinations(task, receptacles, objects)
        if split != "test":
            pairs = [p for p in pairs if held_out(task, *p, room) == (split == "dev")]
        if pairs:
            break
    obj, target = rng.choice(pairs)
    words = {"obj": obj, "recep": target, "toggle": target}
    text = rng.choice(library.gdict[task]["templates"]).format(**{k: v.lower() for k, v in words.items()}) + "."
    goal = library.gdict[task]["pddl"].replace("#", "-").format(**words)
    problem = _problem(f"household{seed}", receptacles, objects, goal)
    grammar = games.with_goal(games.grammar_text(), text)
    return games.Game(f"{task}-{obj}-None-{target}-{room}/{split}-{seed}", text, games.domain_text(), grammar, problem)
