"""BabyAI as text: what the agent sees in words, and what its commands mean in primitive moves.

Works on the cells of a minigrid grid (objects with `type`, `color` and, for doors, `is_open`, `is_locked`) without importing minigrid.
`describe` gives AgentBoard's sentences for a view. Commands are those of the setting `ours`: cells of the 7x7 view that the agent cannot
see are never used, a path leads over seen free cells only, so a command that is accepted can always be carried out to its end.
`babyai.agentboard` has those of the other setting.
"""

import functools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
Cell = Any  # a minigrid WorldObj, or None where the floor is free
Pos = tuple[int, int]
Pose = tuple[int, int, int]  # x, y, direction (0 right, 1 down, 2 left, 3 up)

VECTORS: tuple[Pos, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
SIZE = 7  # the view: 7 cells wide, the agent in the middle of its last row
# For each direction, the view's cells relative to the agent: far row first, left to right.
_OFFSETS = tuple(
    tuple(
        tuple((fx * (6 - row) - fy * (col - 3), fy * (6 - row) + fx * (col - 3)) for col in range(SIZE))
        for row in range(SIZE)
    )
    for fx, fy in VECTORS
)
CHECK = "check available actions"


class View(NamedTuple):
    """What is seen from a pose: the visible cells but the agent's own (absolute position -> content), in reading order.

    `unknown` counts visible cells whose content the observer has no knowledge of (only when a `known` mask was given to `look`).
    """

    pose: Pose
    cells: dict[Pos, Cell]
    unknown: int


class Seen(NamedTuple):
    """One object in view, under the name and number that the observation gives it."""

    name: str
    number: int
    pos: Pos
    obj: Cell

    @property
    def label(self) -> str:
        return f"{self.name} {self.number}"


class Refused(NamedTuple):
    """A command that cannot be carried out, and why in words."""

    reason: str


@functools.cache
def _spread(seen: int, clear: int) -> tuple[int, int]:
    """minigrid's visibility rule for one row of the view, as 7-bit masks: (cells seen in this row, cells seen in the row beyond)."""
    for i in range(SIZE - 1):
        if seen & clear & (1 << i):
            seen |= 1 << (i + 1)
    first = seen & clear & 0b0111111
    for i in range(SIZE - 1, 0, -1):
        if seen & clear & (1 << i):
            seen |= 1 << (i - 1)
    second = seen & clear & 0b1111110
    return seen, (first | first << 1 | second | second >> 1) & 0b1111111


def look(cells: Sequence[Cell], width: int, pose: Pose, known: Sequence[bool] | None = None) -> View:
    """The view from `pose` on a grid given row by row; with `known`, cells not known are taken for opaque."""
    x, y, direction = pose
    height = len(cells) // width
    seen_row, unknown = 1 << (SIZE // 2), 0
    rows: list[list[tuple[Pos, Cell]]] = []
    for row in range(SIZE - 1, -1, -1):
        clear, content = 0, []
        for col, (dx, dy) in enumerate(_OFFSETS[direction][row]):
            i, j = x + dx, y + dy
            if not (0 <= i < width and 0 <= j < height):
                continue
            index = j * width + i
            if known is not None and not known[index]:
                content.append((col, (i, j), None, False))
                continue
            obj = cells[index]
            content.append((col, (i, j), obj, True))
            if obj is None or (dx == 0 and dy == 0) or (obj.type != "wall" and (obj.type != "door" or obj.is_open)):
                clear |= 1 << col
        seen_row, beyond = _spread(seen_row, clear)
        visible = [c for c in content if seen_row >> c[0] & 1]
        unknown += sum(not c[3] for c in visible)
        rows.append([(pos, obj) for _, pos, obj, is_known in visible if is_known and pos != (x, y)])
        seen_row = beyond
    return View(pose, {pos: obj for row_cells in reversed(rows) for pos, obj in row_cells}, unknown)


def name_of(obj: Cell) -> str:
    """`red ball`, `blue closed door`: the name an observation gives to an object."""
    if obj.type != "door":
        return f"{obj.color} {obj.type}"
    return f"{obj.color} {'open' if obj.is_open else 'locked' if obj.is_locked else 'closed'} door"


def listed(view: View) -> list[Seen]:
    """The objects in view, nearest first, numbered within each name."""
    x, y, _ = view.pose
    found = [(abs(i - x) + abs(j - y), (i, j), obj) for (i, j), obj in view.cells.items() if obj and obj.type != "wall"]
    found.sort(key=lambda item: item[0])  # stable: equal distances stay in reading order
    counts: dict[str, int] = {}
    result = []
    for _, pos, obj in found:
        name = name_of(obj)
        counts[name] = counts.get(name, 0) + 1
        result.append(Seen(name, counts[name], pos, obj))
    return result


def _where(view: View, pos: Pos) -> tuple[int, int]:
    """(steps ahead, steps to the right) of `pos` as the agent faces."""
    x, y, direction = view.pose
    dx, dy = pos[0] - x, pos[1] - y
    fx, fy = VECTORS[direction]
    return dx * fx + dy * fy, dy * fx - dx * fy


def inventory(carrying: Cell) -> str:
    return f"You are carrying a {name_of(carrying)}." if carrying else "You are not carrying anything."


def describe(view: View, carrying: Cell) -> str:
    """The observation in words, equal to AgentBoard's."""
    parts = ["In front of you in this room, you can see several objects: "]
    if not any(view.cells.values()):
        parts = ["You cannot see any objects within sight."]
    for item in listed(view):
        ahead, right = _where(view, item.pos)
        if right == 0:
            place = f"right in front of you {ahead} steps away"
        else:
            place = f"{ahead} steps in front of you and {abs(right)} steps to your {'right' if right > 0 else 'left'}"
        parts.append(f"There is a {item.label} {place}.  ")
    parts.append("The room has walls around you. ")
    barriers = [(_where(view, pos), obj.type) for pos, obj in view.cells.items() if obj and obj.type in ("wall", "box")]
    ahead_of_me = sorted((ahead, kind) for (ahead, right), kind in barriers if right == 0)
    if ahead_of_me:
        parts.append(f"You are facing a {ahead_of_me[0][1]} {ahead_of_me[0][0]} steps away. ")
    parts.append(inventory(carrying))
    return "".join(parts)


def is_free(obj: Cell) -> bool:
    """Whether the agent can stand on a cell with this content."""
    return obj is None or (obj.type == "door" and obj.is_open) or obj.type == "goal"


def front(pose: Pose) -> Pos:
    dx, dy = VECTORS[pose[2]]
    return pose[0] + dx, pose[1] + dy


def moves(pose: Pose, free: Callable[[Pos], bool]) -> Iterator[tuple[int, Pose]]:
    """(primitive, pose it leads to) for the moves possible in `pose`."""
    x, y, d = pose
    if free(ahead := front(pose)):
        yield FORWARD, (*ahead, d)
    yield LEFT, (x, y, (d - 1) % 4)
    yield RIGHT, (x, y, (d + 1) % 4)


def walks(view: View) -> Iterator[tuple[Pose, dict[Pose, tuple[Pose, int] | None]]]:
    """Every pose reachable over seen free cells, nearest first, each with the table that says how poses so far were reached."""
    cells = view.cells

    def free(pos: Pos) -> bool:
        return pos in cells and is_free(cells[pos])

    came: dict[Pose, tuple[Pose, int] | None] = {view.pose: None}
    queue = deque([view.pose])
    while queue:
        pose = queue.popleft()
        yield pose, came
        for primitive, following in moves(pose, free):
            if following not in came:
                came[following] = (pose, primitive)
                queue.append(following)


def route(view: View, target: Pos, *, onto: bool = False) -> list[int] | None:
    """Fewest primitives over seen free cells that end facing `target` (or `onto` it); None if there is no such way."""
    for pose, came in walks(view):
        if (pose[:2] if onto else front(pose)) == target:
            path: list[int] = []
            while (step := came[pose]) is not None:
                pose = step[0]
                path.append(step[1])
            return path[::-1]
    return None


_PLAIN = {"turn left": LEFT, "turn right": RIGHT, "move forward": FORWARD, "drop": DROP, "toggle": TOGGLE}
_OBJECT_COMMAND = re.compile(
    r"(go to|pickup|pick up|go through|toggle and go through) (?:the |a )?((?:\w+ ){1,2}(?:ball|box|key|door|goal))(?: (\d+))?"
)


def tidy(command: str) -> str:
    """`command` in lower case, single spaces, without surrounding quotes, brackets and full stops."""
    return " ".join(command.lower().split()).strip("\"'`*.[]() ")


def primitives_for(command: str, view: View, carrying: Cell) -> list[int] | Refused:
    """The primitives that carry out a tidied `command` seen from `view`, or the reason why it cannot be done."""
    if command in _PLAIN:
        return _plain(_PLAIN[command], view, carrying)
    match = _OBJECT_COMMAND.fullmatch(command)
    if match is None:
        return Refused(f"This command is not known. The command '{CHECK}' lists what can be done here.")
    verb, name, number = match[1], match[2], int(match[3] or 1)
    target = next((s for s in listed(view) if s.name == name and s.number == number), None)
    if target is None:
        return Refused(f"There is no {name} {number} in view.")
    if verb == "go to":
        path = route(view, target.pos)
        return path or Refused(f"You are already facing {target.label}." if path == [] else _no_way(target))
    if verb in ("pickup", "pick up"):
        return _pickup(target, view, carrying)
    if target.obj.type != "door":
        return Refused(f"The {name} is no door.")
    return _pass_open(target, view) if verb == "go through" else _pass_shut(target, view, carrying)


def _no_way(target: Seen) -> str:
    return f"No free way to {target.label} is in view."


def _plain(primitive: int, view: View, carrying: Cell) -> list[int] | Refused:
    ahead: Cell = view.cells.get(front(view.pose))
    reason = ""
    if primitive == FORWARD and not is_free(ahead):
        reason = f"The way is blocked by a {ahead.type if ahead.type == 'wall' else name_of(ahead)}."
    elif primitive == DROP and not carrying:
        reason = "You are not carrying anything to drop."
    elif primitive == DROP and ahead is not None:
        reason = "There is no room in front of you to drop it."
    elif primitive == TOGGLE:
        if ahead is None or ahead.type not in ("door", "box"):
            reason = "There is no door or box right in front of you to toggle."
        elif ahead.type == "door":
            reason = _lock(ahead, carrying)
    return Refused(reason) if reason else [primitive]


def _lock(door: Cell, carrying: Cell) -> str:
    """Why a door cannot be toggled; empty if it can."""
    if not door.is_locked:
        return ""
    if carrying is None or carrying.type != "key":
        return f"The {door.color} door is locked and you carry no key."
    return "" if carrying.color == door.color else f"The {carrying.color} key does not fit the {door.color} door."


def _pickup(target: Seen, view: View, carrying: Cell) -> list[int] | Refused:
    if target.obj.type not in ("ball", "box", "key"):
        return Refused(f"A {target.obj.type} cannot be picked up.")
    if carrying:
        return Refused(f"You already carry the {name_of(carrying)}; drop it first.")
    path = route(view, target.pos)
    return Refused(_no_way(target)) if path is None else [*path, PICKUP]


def _pass_open(door: Seen, view: View) -> list[int] | Refused:
    if not door.obj.is_open:
        return Refused(f"The {door.label} is not open; toggle it first.")
    path = route(view, door.pos, onto=True)
    return Refused(_no_way(door)) if path is None else path


def _pass_shut(door: Seen, view: View, carrying: Cell) -> list[int] | Refused:
    if door.obj.is_open:
        return Refused(f"The {door.label} is open already; go through it.")
    if reason := _lock(door.obj, carrying):
        return Refused(reason)
    path = route(view, door.pos)
    return Refused(_no_way(door)) if path is None else [*path, TOGGLE, FORWARD]


def available(view: View, carrying: Cell) -> list[str]:
    """Every command that would be accepted now, in AgentBoard's order of kinds."""
    items = listed(view)
    candidates = [
        *_PLAIN,
        *(f"pickup {s.label}" for s in items),
        *(f"go through {s.label}" for s in items),
        *(f"toggle and go through {s.label}" for s in items),
        *(f"go to {s.label}" for s in items),
    ]
    return [c for c in candidates if not isinstance(primitives_for(c, view, carrying), Refused)] + [CHECK]
