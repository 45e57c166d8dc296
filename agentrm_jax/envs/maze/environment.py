"""Mazes in words: LMRL-Gym's double T maze as AgentGym plays it, and generated mazes (environments.md section 7).

An observation tells the goal's position, the agent's, and on which sides there are walls; nothing else of the maze is seen, so finding
the goal is a search. Positions are (row, column), counted from 0 at the top left corner of the outer wall.

Reward is 1 at the goal, else 0; success is to stand there. Progress is the largest share of the first shortest distance d0 covered at
any time so far, (d0 - d) / d0 with d the shortest distance to the goal now: it never falls and is 1 exactly at the goal.

A generated maze is a depth-first spanning tree over size x size rooms with a tenth of its inner walls taken away, so that there are loops;
maze, start and goal follow from (split, size, seed). A layout's checksum says which split it may appear in, so no test layout is a
training layout, and the seeds of the splits differ too. Official tasks (option `data`): AgentGym's 25 usable starts in the double T maze.
"""

import functools
import json
import random
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agentrm_jax.envs.react import played
from agentrm_jax.envs.spec import EnvSpec, Options, several, whole
from agentrm_jax.types import EngineStep, Environment, Start, Task, UserError

Pos = tuple[int, int]
MOVES: dict[str, Pos] = {"move right": (0, 1), "move left": (0, -1), "move up": (-1, 0), "move down": (1, 0)}
_SIDES = {"move right": "to your right", "move left": "to your left", "move up": "above you", "move down": "below you"}
DOUBLE_T = (
    "#############",
    "#.....#.....#",
    "###.#####.###",
    "###.#####.###",
    "###.#####.###",
    "###.......###",
    "######.######",
    "######.######",
    "######.######",
    "#############",
)
_FIRST_SEED = {"test": 0, "dev": 10_000, "train": 100_000}
_SEEDS = {"test": 20, "dev": 10, "train": 300}
_CHECKSUMS = {"test": (0,), "dev": (1,), "train": (2, 3, 4)}  # layout checksum modulo 5
_SIZES = (3, 4, 5)
_MAX_STEPS = 30  # the paper's Table 8; AgentGym plays 50
_LONGEST = 20  # generated starts are at most this far from the goal
_LOOPS = 0.1


class Maze(NamedTuple):
    """`rows` of `#` and `.`; where to start and where to go."""

    rows: tuple[str, ...]
    start: Pos
    goal: Pos


class Board(NamedTuple):
    """For every free cell of a maze: shortest distance to the goal, observation, and where each command leads (absent at a wall)."""

    distance: dict[Pos, int]
    texts: dict[Pos, str]
    moves: dict[Pos, dict[str, Pos]]


def _free(rows: Sequence[str], pos: Pos) -> bool:
    return rows[pos[0]][pos[1]] == "."


def _distances(rows: Sequence[str], goal: Pos) -> dict[Pos, int]:
    found = {goal: 0}
    queue = deque([goal])
    while queue:
        row, col = queue.popleft()
        for dr, dc in MOVES.values():
            following = (row + dr, col + dc)
            if _free(rows, following) and following not in found:
                found[following] = found[row, col] + 1
                queue.append(following)
    return found


@functools.lru_cache(maxsize=512)
def board(rows: tuple[str, ...], goal: Pos) -> Board:
    """Everything that can be known about a maze with this goal."""
    distance = _distances(rows, goal)
    texts, moves = {}, {}
    for row, col in distance:
        leads = {c: (row + dr, col + dc) for c, (dr, dc) in MOVES.items()}
        walls = [_SIDES[c] for c, pos in leads.items() if not _free(rows, pos)]
        seen = f"There {'is a wall' if len(walls) == 1 else 'are walls'} {', '.join(walls)}."
        texts[row, col] = (
            f"The goal is at position {goal[0]}, {goal[1]}. Your current position is at position {row}, {col}. "
            + (seen if walls else "There are no walls near you.")
        )
        moves[row, col] = {c: pos for c, pos in leads.items() if _free(rows, pos)}
    return Board(distance, texts, moves)


def _layout(size: int, rng: random.Random) -> tuple[str, ...]:
    side = 2 * size + 1
    cells = [["#"] * side for _ in range(side)]
    stack = [(1, 1)]
    cells[1][1] = "."
    while stack:
        row, col = stack[-1]
        options = [
            (dr, dc)
            for dr, dc in MOVES.values()
            if 0 < row + 2 * dr < side and 0 < col + 2 * dc < side and cells[row + 2 * dr][col + 2 * dc] == "#"
        ]
        if not options:
            stack.pop()
            continue
        dr, dc = rng.choice(options)
        cells[row + dr][col + dc] = cells[row + 2 * dr][col + 2 * dc] = "."
        stack.append((row + 2 * dr, col + 2 * dc))
    for row in range(1, side - 1):
        for col in range(1, side - 1):
            if (row + col) % 2 and cells[row][col] == "#" and rng.random() < _LOOPS:
                cells[row][col] = "."
    return tuple("".join(line) for line in cells)


@functools.lru_cache(maxsize=512)
def generate(split: str, size: int, seed: int) -> Maze:
    """The maze of (split, size, seed): rooms size x size, start between `size` and 20 moves away from the goal."""
    rng = random.Random(f"maze {size} {seed}")
    while True:
        rows = _layout(size, rng)
        if zlib.crc32("".join(rows).encode()) % 5 not in _CHECKSUMS[split]:
            continue
        goal = (2 * rng.randrange(size) + 1, 2 * rng.randrange(size) + 1)
        starts = [pos for pos, d in sorted(_distances(rows, goal).items()) if size <= d <= _LONGEST]
        if starts:
            return Maze(rows, rng.choice(starts), goal)


def maze_of(task: Task) -> Maze:
    """The maze a task is played in."""
    if "size" in task.args:
        return generate(task.split, int(task.args["size"]), int(task.args["seed"]))
    return Maze(DOUBLE_T, tuple(task.args["start"]), tuple(task.args["goal"]))


class MazeGame:
    """One episode (protocol `agentrm_jax.types.Environment`)."""

    def reset(self, task: Task) -> Start:
        maze = maze_of(task)
        self.goal, self.pos = maze.goal, maze.start
        self.board = board(maze.rows, maze.goal)
        self._first = self.board.distance[maze.start]
        self._progress = 0.0
        return Start(f"Reach the goal at position {maze.goal[0]}, {maze.goal[1]}.", self.board.texts[maze.start])

    def step(self, command: str) -> EngineStep:
        if command not in MOVES:
            command = " ".join(command.lower().split()).strip("\"'`.[]() ")
        following = self.board.moves[self.pos].get(command)
        if following is None:
            note = "" if command in MOVES else f"The commands are {', '.join(sorted(MOVES))}. "
            return EngineStep(note + self.board.texts[self.pos], 0.0, self._progress, False, False)
        self.pos = following
        if following == self.goal:
            self._progress = 1.0
            return EngineStep("Success", 1.0, 1.0, True)
        covered = 1 - self.board.distance[following] / self._first
        if covered > self._progress:
            self._progress = covered
        return EngineStep(self.board.texts[following], 0.0, self._progress)

    def snapshot(self) -> tuple[Board, Pos, Pos, int, float]:
        return self.board, self.goal, self.pos, self._first, self._progress

    def restore(self, snapshot: tuple[Board, Pos, Pos, int, float]) -> None:
        self.board, self.goal, self.pos, self._first, self._progress = snapshot

    def close(self) -> None:
        pass


def make(options: Options) -> Environment:
    """One maze engine; needs nothing that is not in the standard library."""
    return MazeGame()


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The tasks of a split, size by size.

    Options:
      sizes: rooms per side of generated mazes; default 3, 4 and 5.
      seeds: mazes per size; default 300 for train, 10 for dev, 20 for test.
      data: folder with `maze/agentgym_starts.json` (or that file's own folder): its starts become the test split.
      max_steps: turns per episode; default 30.
    """
    if split not in _FIRST_SEED:
        raise UserError(f"maze has no split {split!r}; choose train, dev or test")
    max_steps = whole(options, "max_steps", _MAX_STEPS)
    if split == "test" and options.get("data"):
        return official_tasks(options["data"], max_steps)
    sizes = [int(s) if str(s).isdecimal() else 0 for s in several(options, "sizes", _SIZES)]
    if any(s < 3 for s in sizes):  # smaller ones have too few layouts to keep the splits apart
        raise UserError(f"maze: sizes must be 3 or more, not {options['sizes']!r}")
    first, count = _FIRST_SEED[split], whole(options, "seeds", _SEEDS[split])
    if first + count > min((s for s in _FIRST_SEED.values() if s > first), default=2**31):
        raise UserError(
            f"maze: seeds={count} is too many for the {split} split; its seeds would run into the next split's"
        )
    return [
        Task("maze", f"{size}x{size}-{seed}", split, max_steps, {"size": size, "seed": seed})
        for size in sizes
        for seed in range(first, first + count)
    ]


def official_tasks(data: str, max_steps: int = _MAX_STEPS) -> list[Task]:
    """AgentGym's starts in the double T maze, without the one that is the goal itself."""
    candidates = [Path(data) / "maze" / "agentgym_starts.json", Path(data) / "agentgym_starts.json"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise UserError(
            f"maze: {data} holds no maze/agentgym_starts.json; set env.options.data to the folder that does"
        )
    record = json.loads(path.read_text())
    goal = record["goal"]
    return [
        Task("maze", f"double_t-{i}", "test", max_steps, {"start": start, "goal": goal})
        for i, start in enumerate(record["start_positions"])
        if start != goal
    ]


def solve(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """A shortest way to the goal, taken on the full map."""
    assert isinstance(env, MazeGame)
    while env.pos != env.goal:
        distance, (row, col) = env.board.distance, env.pos
        moves = env.board.moves[env.pos]
        command = min(moves, key=lambda c: distance[moves[c]])
        (dr, dc), down, right = MOVES[command], env.goal[0] - row, env.goal[1] - col
        words = [
            w
            for w, true in (("below", down > 0), ("above", down < 0), ("right", right > 0), ("left", right < 0))
            if true
        ]
        where = " and ".join(words)
        if dr * down + dc * right > 0:
            thought = f"The goal is {where}, and this way is open."
        else:
            thought = f"The goal is {where}, but walls make me go around."
        yield thought, command


INSTRUCTION = """\
Find the way to the goal of a maze. Positions are row, column: moving down adds 1 to the row, moving right adds 1 to the column. \
You only see walls next to you. Commands: move up, move down, move left, move right. Reply with two lines:
Thought: why
Action: one command"""

RM_INSTRUCTION = """\
An agent looks for the way through a maze, seeing only the walls next to it. \
Judge how well it is getting on with this task: {goal}"""

_EXAMPLE = Task("maze", "example", "train", _MAX_STEPS, {"size": 3, "seed": _FIRST_SEED["train"]})

SPEC = EnvSpec(
    name="maze",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    expert=solve,
    example=played(MazeGame(), _EXAMPLE, solve),
    options=("sizes", "seeds", "max_steps"),
    engine="built in",
    licence="Apache-2.0",
)
