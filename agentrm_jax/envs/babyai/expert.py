"""A BabyAI expert that plays the text commands and says why.

It keeps a map of the cells it has seen (never looking at others), and each turn plans the fewest commands over poses of that map: a walk
to something in view, through a door, or a single turn or step all cost one turn. So its episodes are short, as an agent's should be.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from agentrm_jax.envs.babyai import agentboard, text
from agentrm_jax.envs.babyai.goals import atoms
from agentrm_jax.envs.babyai.text import Pos, Pose
from agentrm_jax.types import Task

Move = tuple[str, str]  # thought, command
_MAX_POSES = 1500  # per search; bounds the time of one decision
_DOOR_GAIN = 12  # cells a closed door is expected to reveal
_CORNER = 4  # unseen cells not worth a turn of their own


def solve(env: Any, task: Task) -> Iterator[Move]:
    """(thought, command) pairs for a freshly reset `babyai.BabyAI`; gives up after twice the task's turns."""
    known = [False] * len(env.level.grid.grid)
    cleared: set[Pos] = set()
    for _ in range(2 * task.max_steps):
        if env.over:
            return
        if env.verified:
            yield from _after_the_end(env)
            return
        _remember(env, known)
        move = _next_move(Scene(env.level, known, cleared, step_by_step=env.official))
        command = move and _spelled(env, move[1])
        if move is None or command is None:
            return
        yield move[0], command


def _spelled(env: Any, command: str) -> str | None:
    """The command as the environment's setting writes it; None if that has no such command."""
    return agentboard.respelled(command, env.view, env.commands()) if env.setting == "agentboard" else command


def _remember(env: Any, known: list[bool]) -> None:
    width = env.level.grid.width
    for x, y in [*env.view.cells, env.view.pose[:2]]:
        known[y * width + x] = True


def _after_the_end(env: Any) -> Iterator[Move]:
    """The engine holds the mission for finished, but AgentBoard's sub-goals want to see more: tries the door ahead, then looks round.

    Each goes on while it reaches sub-goals. What neither shows is a view that the mission gives no reason to take.
    """
    for command, tries in (("toggle", 2), ("turn left", 4)):
        left, progress = tries, env.snapshot().progress
        while left and not env.over:
            ahead = env.view.cells.get(text.front(env.view.pose))
            door = ahead is not None and ahead.type == "door"
            if command == "toggle" and (not door or _spelled(env, command) is None):
                break
            aim = "try the door again" if command == "toggle" else "look again"
            yield f"The task is not closed yet, so I {aim}.", command
            reached = env.snapshot().progress
            left, progress = (tries if reached > progress else left - 1), reached


class Scene:
    """What the expert knows at one turn; shares one search over poses between the questions of that turn."""

    def __init__(self, level: Any, known: Sequence[bool], cleared: set[Pos], *, step_by_step: bool = False) -> None:
        self.level, self.known = level, known
        self.cleared = cleared  # cells that were cleared on purpose in this episode: nothing is dropped there again
        self.step_by_step = step_by_step  # AgentBoard's sub-goals want to see a door shut, then open
        self.cells, self.width = level.grid.grid, level.grid.width
        self.carrying = level.carrying
        self.pose: Pose = (int(level.agent_pos[0]), int(level.agent_pos[1]), int(level.agent_dir))
        # Some levels fail for good when a wrong door is opened.
        self.strict = any(getattr(instr, "strict", False) for instr, _ in atoms(level.instrs))
        self._plans: list[Plan] = []
        self._more = _search(self)

    def plans(self) -> "Iterator[Plan]":
        """Reachable poses, those with the fewest commands first; searched once however often it is asked."""
        yield from self._plans
        for plan in self._more:
            self._plans.append(plan)
            yield plan

    def may_open(self, door: Any) -> bool:
        return not door.is_open and not self.strict and (not door.is_locked or _fits(self.carrying, door))

    def view(self, pose: Pose) -> text.View:
        return text.look(self.cells, self.width, pose, self.known)

    def at(self, pos: Pos) -> Any:
        return self.cells[pos[1] * self.width + pos[0]]

    def is_known(self, pos: Pos) -> bool:
        return (
            0 <= pos[0] < self.width
            and 0 <= pos[1] * self.width < len(self.cells)
            and self.known[pos[1] * self.width + pos[0]]
        )

    def is_open_floor(self, pos: Pos) -> bool:
        return self.is_known(pos) and text.is_free(self.at(pos))

    def find(self, accept: Callable[[Any], bool]) -> list[Pos]:
        """Positions of known objects that `accept` takes."""
        indices = [i for i, o in enumerate(self.cells) if o is not None and self.known[i] and accept(o)]
        return [(i % self.width, i // self.width) for i in indices]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The commands that lead to `end`, and `view` from there."""

    commands: tuple[str, ...]
    end: Pose
    view: text.View


def _search(scene: Scene) -> Iterator[Plan]:
    """Every pose that the known map allows to reach, in order of the number of commands it takes."""
    queue = deque([Plan((), scene.pose, scene.view(scene.pose))])
    visited = {scene.pose}
    while queue and len(visited) < _MAX_POSES:
        plan = queue.popleft()
        yield plan
        for command, pose in _edges(scene, plan.view):
            if pose not in visited:
                visited.add(pose)
                queue.append(Plan((*plan.commands, command), pose, scene.view(pose)))


def _edges(scene: Scene, view: text.View) -> Iterator[tuple[str, Pose]]:
    items = text.listed(view)
    facing: dict[Pos, Pose] = {}
    missing = len(items)
    for pose, _ in text.walks(view) if items else ():
        ahead = text.front(pose)
        if ahead not in facing:
            facing[ahead] = pose
            missing -= any(i.pos == ahead for i in items)
            if not missing:
                break
    for item in items:
        obj = item.obj
        if item.pos not in facing:
            continue
        beyond = (*item.pos, facing[item.pos][2])
        if obj.type == "door" and obj.is_open:
            yield f"go through {item.label}", beyond
        elif obj.type == "door" and scene.may_open(obj):
            yield f"toggle and go through {item.label}", beyond
        if facing[item.pos] != view.pose:
            yield f"go to {item.label}", facing[item.pos]
    names = {text.FORWARD: "move forward", text.LEFT: "turn left", text.RIGHT: "turn right"}
    for primitive, pose in text.moves(view.pose, scene.is_open_floor):
        yield names[primitive], pose


def _fits(carrying: Any, door: Any) -> bool:
    return carrying is not None and carrying.type == "key" and carrying.color == door.color


# --- what to do next -------------------------------------------------------------------------------------------------


def _next_move(scene: Scene) -> Move | None:
    candidates = _open_parts(scene.level.instrs)
    instr = next((i for i in candidates if _spots(scene, _aim(scene, i))), candidates[0])
    return _HANDLERS[type(instr).__name__](scene, instr)


def _open_parts(instr: Any) -> list[Any]:
    """The atomic instructions that may be completed next, by the order the mission asks for."""
    if not hasattr(instr, "instr_a"):
        return [instr]
    kind = type(instr).__name__
    parts = [(instr.instr_a, instr.a_done), (instr.instr_b, instr.b_done)]
    if kind == "AfterInstr":
        parts.reverse()
    left = [part for part, done in parts if done != "success"]
    return [atom for part in (left if kind == "AndInstr" else left[:1]) for atom in _open_parts(part)]


def _aim(scene: Scene, instr: Any) -> list[Any]:
    """The objects that an atomic instruction is about next."""
    if not hasattr(instr, "desc_move"):
        return instr.desc.obj_set
    carried = any(scene.carrying is o for o in instr.desc_move.obj_set)
    return instr.desc_fixed.obj_set if carried else instr.desc_move.obj_set


def _spots(scene: Scene, objects: Iterable[Any]) -> list[Pos]:
    wanted = {id(o) for o in objects}
    return scene.find(lambda o: id(o) in wanted)


def _label(objects: Sequence[Any]) -> str:
    """`red ball`, or `ball` where the objects differ in colour."""
    kinds = sorted({o.type for o in objects})
    colors = sorted({o.color for o in objects})
    return f"{colors[0]} {kinds[0]}" if len(colors) == len(kinds) == 1 else kinds[0] if len(kinds) == 1 else "object"


def _go_to(scene: Scene, instr: Any) -> Move | None:
    targets = instr.desc.obj_set
    if scene.carrying is not None and all(scene.carrying is t for t in targets):
        return _put_down(scene)
    return _reach(scene, targets, "go to")


def _open(scene: Scene, instr: Any) -> Move | None:
    return _reach(scene, instr.desc.obj_set, "open")


def _pick_up(scene: Scene, instr: Any) -> Move | None:
    return _reach(scene, instr.desc.obj_set, "pickup")


def _put_next(scene: Scene, instr: Any) -> Move | None:
    moved, fixed = instr.desc_move.obj_set, instr.desc_fixed.obj_set
    if not any(scene.carrying is o for o in moved):
        return _reach(scene, moved, "pickup")
    label = _label(fixed)
    spots = {text.front((*pos, d)) for pos in _spots(scene, fixed) for d in range(4)}
    free = {pos for pos in spots if scene.is_known(pos) and scene.at(pos) is None}
    for plan in scene.plans():
        if text.front(plan.end) in free:
            if not plan.commands:
                return f"This spot is next to the {label}, so I drop it here.", "drop"
            return f"I look for a free spot next to the {label}.", plan.commands[0]
    return _explore(scene, fixed)


_HANDLERS: dict[str, Callable[[Scene, Any], Move | None]] = {
    "GoToInstr": _go_to,
    "OpenInstr": _open,
    "PickupInstr": _pick_up,
    "PutNextInstr": _put_next,
}


def _reach(scene: Scene, objects: Sequence[Any], aim: str) -> Move | None:
    """Walk up to one of `objects` and do what `aim` says to it: `go to`, `pickup` or `open`."""
    label = _label(objects)
    spots = _spots(scene, objects)
    if not spots:
        return _explore(scene, objects)
    plan = _approach(scene, spots)
    if plan is None:
        return _unblock(scene, spots) or _explore(scene, objects)
    item = next(i for i in text.listed(plan.view) if i.pos in spots and text.route(plan.view, i.pos) is not None)
    if aim == "open" and item.obj.is_locked and not _fits(scene.carrying, item.obj):
        return _fetch_key(scene, item.obj)
    if aim == "pickup" and scene.carrying is not None:
        return _put_down(scene)
    if plan.commands:
        return f"I know where the {label} is, so I head back to it.", plan.commands[0]
    facing = text.front(scene.pose) == item.pos
    if aim == "go to":
        if facing:
            return f"I have to turn to the {label} anew.", "turn left"
        return f"The {label} is in view, so I walk to it.", f"go to {item.label}"
    if aim == "pickup":
        return f"The {label} is in view, so I pick it up.", f"pickup {item.label}"
    if facing and item.obj.is_open:
        return f"The {label} is open, so I close it to open it anew.", "toggle"
    if facing:
        return f"The {label} is right in front of me, so I open it.", "toggle"
    if item.obj.is_open:
        return f"The {label} is open, so I go and close it first.", f"go to {item.label}"
    if scene.step_by_step:
        return f"The {label} is in view, so I walk up to it.", f"go to {item.label}"
    return f"The {label} is in view, so I open it.", f"toggle and go through {item.label}"


def _approach(scene: Scene, spots: Sequence[Pos]) -> Plan | None:
    """The shortest plan to a pose from which one of `spots` can be walked up to in view."""
    for plan in scene.plans():
        if any(pos in plan.view.cells and text.route(plan.view, pos) is not None for pos in spots):
            return plan
    return None


def _keys_for(scene: Scene, door: Any) -> list[Any]:
    return [o for o in scene.cells if o is not None and o.type == "key" and o.color == door.color]


def _fetch_key(scene: Scene, door: Any) -> Move | None:
    keys = _keys_for(scene, door)
    if keys and _spots(scene, keys):
        thought, command = _reach(scene, keys, "pickup") or ("", "")
        if command.startswith(f"pickup {door.color} key"):
            thought = f"The {door.color} door is locked, so I take the {door.color} key."
        return (thought, command) if command else None
    return _explore(scene, keys or [door], f"{door.color} key")


def _put_down(scene: Scene) -> Move | None:
    """Drop what is carried where it is in nobody's way."""
    kind = scene.carrying.type
    for careful in (True, False):
        for plan in scene.plans():
            spot = text.front(plan.end)
            if not scene.is_known(spot) or scene.at(spot) is not None or spot in scene.cleared:
                continue
            if not careful or _harmless(scene, spot):
                if not plan.commands:
                    return f"I need free hands, so I drop the {kind} here.", "drop"
                return f"I look for a free spot to drop the {kind}.", plan.commands[0]
    return None


def _harmless(scene: Scene, spot: Pos) -> bool:
    """Whether an object at `spot` would cut nothing off: free cells around it stay connected, and no door is beside it."""
    ring = [(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)]
    around = [(spot[0] + dx, spot[1] + dy) for dx, dy in ring]
    free = [pos == scene.pose[:2] or scene.is_open_floor(pos) for pos in around]
    doors = any(scene.is_known(pos) and scene.at(pos) and scene.at(pos).type == "door" for pos in around)
    return not doors and sum(a != b for a, b in zip(free, free[1:] + free[:1], strict=True)) <= 2


def _unblock(scene: Scene, spots: Sequence[Pos]) -> Move | None:
    """Clear the first object out of the way that leads past the fewest objects to one of `spots`."""
    blocker = _first_blocker(scene, spots)
    if blocker is None:
        return None
    if scene.carrying is not None:
        return _put_down(scene)
    plan = _approach(scene, [blocker])
    if plan is None:
        return None
    obj = scene.at(blocker)
    if plan.commands:
        return f"The {obj.color} {obj.type} blocks the way, so I go to it.", plan.commands[0]
    item = next(i for i in text.listed(plan.view) if i.pos == blocker)
    scene.cleared.add(blocker)
    return f"The {obj.color} {obj.type} blocks the way, so I take it away.", f"pickup {item.label}"


def _first_blocker(scene: Scene, spots: Sequence[Pos]) -> Pos | None:
    """The nearest object on the way to `spots` (known cells, unlocked doors) that has the fewest objects on it."""
    start: Pos = scene.pose[:2]
    best: dict[Pos, tuple[int, Pos | None]] = {start: (0, None)}
    queue = deque([start])
    while queue:
        pos = queue.popleft()
        count, first = best[pos]
        for d in range(4):
            following = text.front((*pos, d))
            if not scene.is_known(following):
                continue
            obj = scene.at(following)
            if (
                obj is not None
                and (obj.type == "wall" or (obj.type == "door" and obj.is_locked))
                and following not in spots
            ):
                continue
            blocks = obj is not None and obj.type != "door" and following not in spots
            cost = (count + 1, first or following) if blocks else (count, first)
            if following not in best or cost[0] < best[following][0]:
                best[following] = cost
                if following not in spots:
                    queue.append(following)
    reached = [best[pos] for pos in spots if pos in best]
    return min(reached, key=lambda r: r[0])[1] if reached else None


# --- looking for things ----------------------------------------------------------------------------------------------


def _explore(scene: Scene, wanted: Sequence[Any], label: str = "") -> Move | None:
    """See more of the world: look round; behind locked doors that can be opened; where most new cells per turn can be expected;
    behind locked doors that something bars; corners, blocked ways, boxes."""
    label = label or _label(wanted)
    doors = all(o.type == "door" for o in wanted)
    plan, corner = _lookouts(scene, 6 if doors else _DOOR_GAIN)
    look_round = plan is not None and len(plan.commands) == 1 and plan.commands[0].startswith("turn")
    # What is behind a lock can seldom be seen from elsewhere; a door can be, from its other side.
    if not (doors or look_round) and (move := _unlock_some_door(scene, wanted, at_hand=True)):
        return move
    if plan is None and (move := _unlock_some_door(scene, wanted, at_hand=False)):
        return move
    if plan := plan or corner:
        return _exploring_thought(plan.commands[0], label), plan.commands[0]
    blocked = _blocked_frontier(scene)
    if blocked and (move := _unblock(scene, blocked)):
        return move
    return _open_some_box(scene, label)


def _lookouts(scene: Scene, door_gain: int) -> tuple[Plan | None, Plan | None]:
    """The plan that reveals most cells per turn, and the shortest that reveals any (a corner)."""
    best, best_rate, corner = None, 0.0, None
    for plan in scene.plans():
        turns = len(plan.commands)
        if turns == 0:
            continue
        if best is not None and _DOOR_GAIN / turns < best_rate:
            break
        behind = plan.commands[-1].startswith("toggle and go through") and plan.view.unknown > 0
        gain = door_gain if behind else plan.view.unknown
        rate = (gain - _CORNER) / turns
        if rate > best_rate:
            best, best_rate = plan, rate
        if corner is None and gain > 0:
            corner = plan
    return best, corner


def _unlock_some_door(scene: Scene, wanted: Sequence[Any], *, at_hand: bool) -> Move | None:
    """Open a locked door whose key is carried or known; with `at_hand` only if one can walk up to both."""
    for pos in scene.find(lambda o: o.type == "door" and o.is_locked):
        door = scene.at(pos)
        if any(door is o for o in wanted):
            continue
        carried = _fits(scene.carrying, door)
        keys = [] if carried else _spots(scene, _keys_for(scene, door))
        if not carried and not keys:
            continue
        if not at_hand or (_approach(scene, [pos]) and (carried or _approach(scene, keys))):
            return _reach(scene, [door], "open")
    return None


def _open_some_box(scene: Scene, label: str) -> Move | None:
    boxes = scene.find(lambda o: o.type == "box")
    plan = _approach(scene, boxes)
    if plan is None:
        return None
    if text.front(scene.pose) in boxes:
        return f"The {label} may be in the box, so I open it.", "toggle"
    item = next((i for i in text.listed(plan.view) if i.pos in boxes), None)
    return f"The {label} may be in a box.", plan.commands[0] if plan.commands or item is None else f"go to {item.label}"


def _exploring_thought(command: str, label: str) -> str:
    words = command.split()
    if "door" in words:
        color = words[words.index("door") - 2]
        return f"I do not see the {label} here, so I try the {color} door."
    if command.startswith("turn"):
        return f"I do not see the {label} yet, so I look {words[1]}."
    return f"I do not see the {label} yet, so I walk on."


def _blocked_frontier(scene: Scene) -> list[Pos]:
    """Known free cells and closed doors next to something never seen."""
    result = []
    for index, obj in enumerate(scene.cells):
        pos = (index % scene.width, index // scene.width)
        if scene.known[index] and (text.is_free(obj) or (obj.type == "door" and not obj.is_locked)):
            around = [text.front((*pos, d)) for d in range(4)]
            if any(not scene.is_known(p) for p in around):
                result.append(pos)
    return result
