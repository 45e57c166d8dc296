"""Seeded problems for the four worlds, small enough that good plans stay within 30 steps.

A problem belongs to one split for good: by a hash of its content, not by its seed, so that small worlds, where
different seeds meet the same problem, keep train, dev and test apart too.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from random import Random

from agentrm_jax.envs.pddl.domains import WORLDS
from agentrm_jax.envs.pddl.engine import Atom, Problem, write_problem

DIFFICULTIES = ("easy", "medium", "hard")
_BUCKETS = {"train": range(2, 10), "dev": range(1), "test": range(1, 2)}


def generate(domain: str, difficulty: str, seed: int) -> Problem:
    """The problem of that seed; its goal does not hold at the start."""
    random = Random(f"{domain}/{difficulty}/{seed}")
    while True:
        objects, init, goal = _MAKERS[domain](random, DIFFICULTIES.index(difficulty))
        if any(atom not in init for atom in goal):
            constants = WORLDS[domain].domain.constants
            return Problem(domain, {**constants, **objects}, frozenset(init), tuple(goal))


def split_of(domain: str, problem: Problem) -> str:
    """`train` (8 of 10), `dev` or `test` (1 of 10 each), decided by the problem's content."""
    unordered = dataclasses.replace(problem, goal=tuple(sorted(problem.goal)))
    text = write_problem(unordered, WORLDS[domain].domain)
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def seeds(domain: str, difficulty: str, split: str) -> Iterator[int]:
    """Seeds of different problems of `split`, ascending; ends when new problems have become rare."""
    seen: set[tuple[frozenset[Atom], frozenset[Atom]]] = set()
    misses = seed = 0
    while misses < 300:
        problem = generate(domain, difficulty, seed)
        content = (problem.init, frozenset(problem.goal))
        if content not in seen and split_of(domain, problem) == split:
            seen.add(content)
            misses = 0
            yield seed
        else:
            misses += 1
        seed += 1


_Parts = tuple[dict[str, str], set[Atom], list[Atom]]


def _named(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{i + 1}" for i in range(n)]


def _gripper(random: Random, level: int) -> _Parts:
    balls = _named("ball", random.randint(*((2, 3), (4, 5), (6, 8))[level]))
    rooms = ["rooma", "roomb", "roomc"][: random.choice(((2, 3), (2, 3), (2,))[level])]
    init: set[Atom] = {("room", r) for r in rooms} | {("ball", b) for b in balls}
    for hand in ("left", "right"):
        init |= {("gripper", hand), ("free", hand)}
    init.add(("at-robby", random.choice(rooms)))
    goal: list[Atom] = []
    for ball in balls:
        here, there = random.sample(rooms, 2)
        init.add(("at", ball, here))
        goal.append(("at", ball, there if random.random() < 0.8 else here))
    return dict.fromkeys([*rooms, *balls, "left", "right"], "object"), init, goal


def _towers(random: Random, blocks: list[str]) -> list[list[str]]:
    """Blocks piled up at random, each tower from the bottom up."""
    towers: list[list[str]] = []
    for block in random.sample(blocks, len(blocks)):
        place = random.randint(0, len(towers))
        if place == len(towers):
            towers.append([block])
        else:
            towers[place].append(block)
    return towers


def _blockworld(random: Random, level: int) -> _Parts:
    blocks = _named("b", random.randint(*((3, 4), (5, 6), (7, 8))[level]))
    init: set[Atom] = {("arm-empty",)}
    for tower in _towers(random, blocks):
        init |= {("on-table", tower[0]), ("clear", tower[-1])}
        init |= {("on", above, below) for below, above in itertools.pairwise(tower)}
    pairs: list[Atom] = []
    while not pairs:
        towers = _towers(random, blocks)
        pairs = [("on", above, below) for t in towers for below, above in itertools.pairwise(t)]
    goal = random.sample(pairs, random.randint((len(pairs) + 1) // 2, len(pairs)))
    return dict.fromkeys(blocks, "object"), init, sorted(goal)


def _barman(random: Random, level: int) -> _Parts:
    shots = _named("shot", random.randint(*((3, 5), (3, 5), (4, 6))[level]))
    ingredients, cocktails = _named("ingredient", 3), _named("cocktail", random.randint(2, 4))
    objects = {"shaker1": "shaker", "left": "hand", "right": "hand"}
    objects |= dict.fromkeys(shots, "shot") | dict.fromkeys(ingredients, "ingredient")
    objects |= dict.fromkeys(cocktails, "cocktail")
    objects |= dict.fromkeys(_named("dispenser", 3), "dispenser") | dict.fromkeys(["l0", "l1", "l2"], "level")
    init: set[Atom] = {("handempty", "left"), ("handempty", "right"), ("next", "l0", "l1"), ("next", "l1", "l2")}
    init |= {("shaker-empty-level", "shaker1", "l0"), ("shaker-level", "shaker1", "l0")}
    for container in ["shaker1", *shots]:
        init |= {("ontable", container), ("clean", container), ("empty", container)}
    for dispenser, ingredient in zip(_named("dispenser", 3), random.sample(ingredients, 3), strict=True):
        init.add(("dispenses", dispenser, ingredient))
    for cocktail in cocktails:
        first, second = random.sample(ingredients, 2)
        init |= {("cocktail-part1", cocktail, first), ("cocktail-part2", cocktail, second)}
    if level == 0:
        drinks = random.sample(ingredients, random.randint(1, 3))
    elif level == 1:
        drinks = [random.choice(cocktails), *random.sample(ingredients, random.randint(0, 1))]
    else:
        drinks = random.sample(cocktails, 2) + random.sample(ingredients, random.randint(0, 1))
    glasses = sorted(random.sample(shots, len(drinks)))
    return objects, init, [("contains", g, d) for g, d in zip(glasses, drinks, strict=True)]


def _tyreworld(random: Random, level: int) -> _Parts:
    numbers = range(1, random.randint(*((1, 2), (1, 3), (2, 3))[level]) + 1)
    objects = {"boot": "container"}
    init: set[Atom] = {("unlocked", "boot"), random.choice([("closed", "boot"), ("isopen", "boot")])}
    for tool in ("wrench", "jack", "pump"):
        init.add(("in", tool, "boot") if random.random() < 0.8 else ("have", tool))
    wishes: list[list[Atom]] = []
    for i in numbers:
        spare, wheel, nut, hub = f"r{i}", f"w{i}", f"nuts{i}", f"the-hub{i}"
        objects |= {spare: "wheel", wheel: "wheel", nut: "nut", hub: "hub"}
        flat = random.random() < 0.7
        init |= {("intact", spare), ("in", spare, "boot"), ("not-inflated" if flat else "inflated", spare)}
        init |= {("on", wheel, hub), ("on-ground", hub), ("fastened", hub)}
        init.add((random.choice(["tight", "tight", "loose"]), nut, hub))
        change: list[Atom] = [("on", spare, hub), ("in", wheel, "boot")]
        pump: list[Atom] = [("inflated", spare)] if flat else []
        tighten: list[Atom] = [("tight", nut, hub)]
        if level == 0:
            wishes.append(random.choice([pump or tighten, [("loose", nut, hub)], [("have", spare)]]))
        elif level == 1:
            wishes.append(random.choice([change[:1], change[1:], change, pump] if i == 1 else [pump, []]))
        else:
            wishes.append(random.choice([change + pump, change, change[1:] + pump]))
    return objects, init, [atom for wish in wishes for atom in wish]


_MAKERS = {"gripper": _gripper, "blockworld": _blockworld, "barman": _barman, "tyreworld": _tyreworld}
