"""Experts for ALFWorld: a planner that knows where everything is, and an explorer that knows only what it has seen."""

import dataclasses
from collections.abc import Callable, Iterator

from agentrm_jax.envs.alfworld.engine import Position, World

_APPLIANCES = {"clean": "sinkbasintype", "heat": "microwavetype", "cool": "fridgetype"}
_STATES = {"clean": "clean", "heat": "hot", "cool": "cool"}


@dataclasses.dataclass
class Scene:
    """Readable access to a game: `position` is asked anew each time, so answers follow the play."""

    world: World
    position: Callable[[], Position]

    def __post_init__(self) -> None:
        init = self.world.problem.init
        self.kinds: dict[str, str] = dict(init["objecttype"])  # type: ignore[arg-type]
        self.receptacles: dict[str, str] = dict(init["receptacletype"])  # type: ignore[arg-type]
        self.places: dict[str, str] = dict(init["receptacleatlocation"])  # type: ignore[arg-type]
        self.takes = init.get("cancontain", frozenset())

    def name(self, thing: str) -> str:
        return self.world.teller.entities[thing].name

    def has(self, predicate: str, *args: str) -> bool:
        return args in self.position().facts.get(predicate, ())

    def inside(self, receptacle: str) -> list[str]:
        return sorted(o for o, r in self.position().facts["inreceptacle"] if r == receptacle)

    def here(self) -> str:
        ((_, place),) = self.position().facts["atlocation"]
        return place

    def held(self) -> str:
        return next((o for _, o in self.position().facts.get("holds", ())), "")

    def can_take(self, thing: str) -> bool:
        return self.has("pickupable", thing)

    def visit(self, receptacle: str, why: str, opened: bool = True) -> Iterator[tuple[str, str]]:
        """Goes there unless one is there, and opens it if it is closed and that matters."""
        name = self.name(receptacle)
        if self.here() != self.places[receptacle]:
            yield f"{why} I go to {name}.", f"go to {name}"
        if opened and self.has("openable", receptacle) and not self.has("opened", receptacle):
            yield f"The {name} is closed, so I open it first.", f"open {name}"


def planner(world: World, position: Callable[[], Position]) -> Iterator[tuple[str, str]]:
    """The shortest errand there is, with full knowledge of the household; thoughts say what each move is for."""
    scene = Scene(world, position)
    aim = world.aim
    if aim.lamp:
        chosen = [_reachable(scene, aim.object)[0]]
        target = next(r for o, r in sorted(world.problem.init["inreceptacle"]) if scene.kinds[o] == aim.lamp)
    else:
        target, chosen = _choose(scene)
    for thing, source in chosen:
        yield from scene.visit(source, f"I need {scene.name(thing)}, which is at {scene.name(source)}.")
        yield from _take(scene, thing, source)
        yield from _finish(scene, thing, target)


def _reachable(scene: Scene, kind: str) -> list[tuple[str, str]]:
    """(object, receptacle it is in) of a type, in the order of their ids."""
    pairs = sorted(scene.position().facts["inreceptacle"])
    return [(o, r) for o, r in pairs if scene.kinds[o] == kind and scene.can_take(o)]


def _choose(scene: Scene) -> tuple[str, list[tuple[str, str]]]:
    """The receptacle to fill, and the objects to carry there: as few as possible, the receptacle easy to use."""
    aim, found = scene.world.aim, _reachable(scene, scene.world.aim.object)
    best: tuple[tuple[int, int, str], str, list[tuple[str, str]]] | None = None
    for target in sorted(r for r, kind in scene.receptacles.items() if kind == aim.target):
        placed = [] if aim.process else [pair for pair in found if pair[1] == target]
        chosen = [pair for pair in found if pair not in placed][: max(0, aim.count - len(placed))]
        if len(placed) + len(chosen) >= aim.count:
            key = (len(chosen), int(scene.has("openable", target)), target)
            if best is None or key < best[0]:
                best = key, target, chosen
    if best is None:
        raise ValueError(f"{scene.world.game.name}: the goal cannot be reached with what the household holds")
    return best[1], best[2]


def _take(scene: Scene, thing: str, source: str) -> Iterator[tuple[str, str]]:
    name, where = scene.name(thing), scene.name(source)
    yield f"I see {name} here and the task needs it, so I take it.", f"take {name} from {where}"


def _finish(scene: Scene, thing: str, target: str) -> Iterator[tuple[str, str]]:
    """What is to be done with an object in hand: process it, then bring it to its place or to the lamp."""
    aim, name = scene.world.aim, scene.name(thing)
    if aim.process:
        kind = _APPLIANCES[aim.process]
        appliance = min(r for r, its in scene.receptacles.items() if its == kind)
        machine = scene.name(appliance)
        yield from scene.visit(appliance, f"The {name} must be {_STATES[aim.process]}.", opened=False)
        yield f"With {machine} I can {aim.process} the {name}.", f"{aim.process} {name} with {machine}"
    where = scene.name(target)
    if aim.lamp:
        lamp = next(o for o in scene.inside(target) if scene.kinds[o] == aim.lamp)
        yield from scene.visit(target, f"I hold {name} and need the light of {scene.name(lamp)}.", opened=False)
        yield f"Turning on {scene.name(lamp)} lets me look at {name}.", f"use {scene.name(lamp)}"
        return
    yield from scene.visit(target, f"The {name} belongs in or on {where}.")
    yield f"I am at {where} with {name}, so I put it down here.", f"put {name} in/on {where}"


def explorer(world: World, position: Callable[[], Position]) -> Iterator[tuple[str, str]]:
    """Looks for what the task needs in likely places first, remembers what it sees, and so takes realistic detours."""
    scene = Scene(world, position)
    aim = world.aim
    seen: dict[str, list[str]] = {}
    used: set[str] = set()
    target = ""
    for _ in range(aim.count):
        yield from _search(scene, aim.object, seen, used | ({target} if target else set()))
        thing, source = _spotted(scene, aim.object, seen, used | ({target} if target else set()))
        yield from scene.visit(source, f"I have seen {scene.name(thing)} at {scene.name(source)}.")
        yield from _take(scene, thing, source)
        used.add(thing)
        if aim.lamp:
            yield from _search(scene, aim.lamp, seen, used)
            target = _spotted(scene, aim.lamp, seen, used)[1]
        elif not target:
            target = min((r for r, kind in scene.receptacles.items() if kind == aim.target), key=scene.name)
        yield from _finish(scene, thing, target)


def _spotted(scene: Scene, kind: str, seen: dict[str, list[str]], skip: set[str]) -> tuple[str, str]:
    """The first known (object, receptacle) of a type; `("", "")` if none has been seen. `skip` names things and places."""
    for receptacle, things in seen.items():
        for thing in things:
            fit = scene.kinds[thing] == kind and thing not in skip and receptacle not in skip
            if fit and (scene.can_take(thing) or kind == scene.world.aim.lamp) and thing in scene.inside(receptacle):
                return thing, receptacle
    return "", ""


def _search(scene: Scene, kind: str, seen: dict[str, list[str]], skip: set[str]) -> Iterator[tuple[str, str]]:
    """Visits receptacles until an object of the type is known; places that take such objects come first, open ones before."""
    word = kind.removesuffix("type")

    def likelihood(receptacle: str) -> tuple[bool, bool, str]:
        fits = (scene.receptacles[receptacle], kind) in scene.takes
        return not fits, scene.has("openable", receptacle), scene.name(receptacle)

    for receptacle in sorted(scene.receptacles, key=likelihood):
        if _spotted(scene, kind, seen, skip)[0]:
            return
        if receptacle in seen or receptacle in skip:
            continue
        fits = not likelihood(receptacle)[0]
        guess = (
            f"{scene.name(receptacle)} is a likely place" if fits else f"{scene.name(receptacle)} is still unchecked"
        )
        yield from scene.visit(receptacle, f"I have not seen the {word} yet; {guess}.")
        for other, place in scene.places.items():  # all that is in view from here
            if place == scene.here() and not (scene.has("openable", other) and not scene.has("opened", other)):
                seen[other] = scene.inside(other)


def explain(world: World, commands: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """A given list of commands with a thought for each, from the command and the next one that changes something."""
    for i, command in enumerate(commands):
        verb = command.split()[0]
        later = next(
            (c for c in commands[i + 1 :] if c.split()[0] not in ("go", "open", "close", "look", "examine")), ""
        )
        if verb == "go":
            thought = f"To {later or 'finish the task'}, I first go to {command.removeprefix('go to ')}."
        elif verb == "open":
            thought = f"The {command.removeprefix('open ')} is closed; I open it to {later or 'see what is inside'}."
        elif verb == "take":
            what, _, where = command.removeprefix("take ").partition(" from ")
            thought = f"The task needs {what} and it is at {where}, so I take it."
        elif verb in _APPLIANCES:
            what, _, machine = command.removeprefix(f"{verb} ").partition(" with ")
            thought = f"The {what} must be {_STATES[verb]}, and {machine} does that."
        elif verb == "use":
            thought = f"I need light, so I turn on {command.removeprefix('use ')}."
        elif verb in ("put", "move"):
            thought = "This is where the task wants it, so I put it down."
        else:
            thought = f"I {command} before I go on."
        yield thought, command
