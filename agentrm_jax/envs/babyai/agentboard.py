"""What AgentBoard's wrapper lets one do in BabyAI, by which route, and how it refuses (setting `agentboard`).

Differences from the rules of our own (`text.primitives_for`), all of them kept here on purpose:

- A route is a shortest one within the frame of the view over every cell that shows no obstacle; cells out of sight and shut doors count as
  free. Among routes of equal length the wrapper's search has its own choice, which decides what is seen at the end.
- For `pickup` and `go to` objects are numbered among those that can be reached; doors are numbered as they are listed.
- `move forward` is refused at walls and boxes only; `toggle` is known only in front of a shut door that it would open.
"""

from collections.abc import Sequence
from typing import NamedTuple

from agentrm_jax.envs.babyai.text import (
    CHECK,
    DROP,
    FORWARD,
    LEFT,
    PICKUP,
    RIGHT,
    SIZE,
    TOGGLE,
    VECTORS,
    Cell,
    Pos,
    Pose,
    Seen,
    View,
    front,
    listed,
)

UNKNOWN = "The action is not recognized. Please check valid actions."
NOTHING = "No change in state."
COMPLETED = "\n The task is completed."
_OBSTACLES = ("wall", "box", "lava", "ball", "key")


class Commands(NamedTuple):
    """What can be done from a view.

    Attributes:
      routes: command -> the primitives that carry it out, in the order in which the wrapper lists commands; empty: nothing to do.
      refusals: command that cannot be carried out -> the answer to it.
      aims: command -> the position it is about, for commands about an object.
    """

    routes: dict[str, list[int]]
    refusals: dict[str, str]
    aims: dict[str, Pos]


class Routes(NamedTuple):
    """One search over the poses within reach: `order` as first met, `came` the pose and primitive that lead to each."""

    order: tuple[Pose, ...]
    came: dict[Pose, tuple[Pose, int]]

    def to(self, target: Pos, *, onto: bool = False) -> list[int] | None:
        """The primitives that end facing `target` (or `onto` it); None if no pose within reach does."""
        pose = next((p for p in self.order if (p[:2] if onto else front(p)) == target), None)
        if pose is None:
            return None
        path: list[int] = []
        while pose != self.order[0]:
            pose, primitive = self.came[pose]
            path.append(primitive)
        return path[::-1]


def routes(view: View) -> Routes:
    """Breadth-first search from the agent's pose: forward, left, right.

    The wrapper queues a pose again each time it meets it and keeps the parent it met last; a pose is visited first where it was met
    first. Within a layer, `first` and `last` follow these two orders, which is all that its repeated visits come to.
    """
    blocked = {pos for pos, obj in view.cells.items() if obj is not None and obj.type in _OBSTACLES}
    xs, ys = _frame(view.pose)
    order: list[Pose] = []
    came: dict[Pose, tuple[Pose, int]] = {}
    first = last = [view.pose]
    seen: set[Pose] = set()
    while first:
        order += first
        seen.update(first)
        met_first = list(dict.fromkeys(after for pose in first for _, after in _moves(pose, blocked, xs, ys, seen)))
        met_last: dict[Pose, None] = {}
        for pose in last:
            for primitive, after in _moves(pose, blocked, xs, ys, seen):
                came[after] = pose, primitive
                met_last.pop(after, None)
                met_last[after] = None
        first, last = met_first, list(met_last)
    return Routes(tuple(order), came)


def _moves(pose: Pose, blocked: set[Pos], xs: range, ys: range, seen: set[Pose]) -> list[tuple[int, Pose]]:
    x, y, d = pose
    ahead = front(pose)
    around: list[tuple[int, Pose]] = [(FORWARD, (*ahead, d)), (LEFT, (x, y, (d - 1) % 4)), (RIGHT, (x, y, (d + 1) % 4))]
    return [
        (primitive, after)
        for primitive, after in around
        if after not in seen and after[0] in xs and after[1] in ys and after[:2] not in blocked
    ]


def _frame(pose: Pose) -> tuple[range, range]:
    """Columns and rows of the view; on two sides of some directions, one more: the wrapper includes the far end of a falling range."""
    x, y, direction = pose
    (fx, fy), half = VECTORS[direction], SIZE // 2
    corner = (x + fx * (SIZE - 1) + fy * half, y + fy * (SIZE - 1) - fx * half)  # far left as the agent faces
    ends = (corner[0] - SIZE * (fx + fy), corner[1] - SIZE * (fy - fx))

    def between(start: int, end: int) -> range:
        return range(end, start + 1) if end < start else range(start, end)

    return between(corner[0], ends[0]), between(corner[1], ends[1])


def commands(view: View, carrying: Cell) -> Commands:
    """Everything the wrapper knows from this view."""
    found = Commands({"turn left": [LEFT], "turn right": [RIGHT]}, {}, {})
    items, ways = listed(view), routes(view)
    ahead = view.cells.get(front(view.pose))
    if ahead is None or ahead.type not in ("wall", "box"):
        found.routes["move forward"] = [FORWARD]
    else:
        found.refusals["move forward"] = "There is a barrier in front of you, you can't move forward."
    if carrying is None:
        _reachable(found, "pickup", [i for i in items if i.obj.type != "door"], ways, [PICKUP])
        found.refusals["drop"] = "You cannot drop the object, as you are not carrying anything."
    elif ahead is not None and ahead.type in _OBSTACLES:
        found.refusals["drop"] = "You cannot drop the object, as there is already an object in front of you."
    else:
        found.routes["drop"] = [DROP]
    _doors(found, [i for i in items if i.obj.type == "door"], ways, carrying)
    _reachable(found, "go to", items, ways, [])
    found.routes[CHECK] = []
    return found


def _reachable(found: Commands, verb: str, items: Sequence[Seen], ways: Routes, ending: list[int]) -> None:
    """`verb` for each of `items`, numbered among those within reach; the others' refusals get the number that is next."""
    reached: dict[str, int] = {}
    for item in items:
        path = ways.to(item.pos)
        label = f"{item.name} {reached.get(item.name, 0) + 1}"
        if path is None:
            found.refusals[f"{verb} {label}"] = f"You cannot {verb} {label}, as there is no path leading to it."
        else:
            reached[item.name] = reached.get(item.name, 0) + 1
            found.routes[f"{verb} {label}"] = path + ending
            found.aims[f"{verb} {label}"] = item.pos


def _doors(found: Commands, doors: Sequence[Seen], ways: Routes, carrying: Cell) -> None:
    counts: dict[str, int] = {}
    for door in doors:
        counts[door.name] = door.number
        through, toggle = f"go through {door.label}", f"toggle and go through {door.label}"
        if door.obj.is_open:
            path = ways.to(door.pos, onto=True)
            if path is None:
                found.refusals[through] = f"You cannot {through}, as there is no path leading to it."
            else:
                found.routes[through] = path
                found.aims[through] = door.pos
            continue
        if not door.obj.is_locked:
            found.refusals[through] = f"You cannot {through}, as it is closed. You should toggle it first."
        elif carrying is None or carrying.type != "key":
            found.refusals[toggle] = f"You cannot {toggle}, as you are not carrying a key."
            continue
        elif carrying.color != door.obj.color:
            found.refusals[toggle] = (
                f"You cannot {toggle}, as the color of the key you are carrying does not match the color of door."
            )
            continue
        path = ways.to(door.pos)
        if path is None:
            # The wrapper names its count of doors where the door's number is meant.
            found.refusals[toggle] = (
                f"You cannot toggle and go through {door.name} {counts}, as there is no path leading to it."
            )
            continue
        found.routes[toggle] = [*path, TOGGLE, FORWARD]
        found.aims[toggle] = door.pos
        if not path:
            found.routes["toggle"] = [TOGGLE]


def respelled(command: str, view: View, known: Commands) -> str | None:
    """A command that counts objects as listed, as the wrapper counts them; None if the wrapper does not know such a command."""
    verb = next((v for v in ("pickup", "go to") if command.startswith(v + " ")), None)
    if verb is None:
        return command if command in known.routes else None
    aim = next((item.pos for item in listed(view) if command == f"{verb} {item.label}"), None)
    return next((c for c, pos in known.aims.items() if pos == aim and c.startswith(verb)), None)


def picture(view: View, carrying: Cell) -> tuple[object, ...]:
    """What the engine's image of the view tells apart; a command stops at the first primitive that leaves it as it was."""
    x, y, direction = view.pose
    fx, fy = VECTORS[direction]
    cells = frozenset(
        ((i - x) * fx + (j - y) * fy, (j - y) * fx - (i - x) * fy, *_look_of(obj)) for (i, j), obj in view.cells.items()
    )
    return cells, _look_of(carrying)


def _look_of(obj: Cell) -> tuple[object, ...]:
    if obj is None:
        return ()
    return (obj.type, obj.color, obj.is_open, obj.is_locked) if obj.type == "door" else (obj.type, obj.color)
