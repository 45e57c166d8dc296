"""Working with tools that change things: a spreadsheet and a to-do list (ToolOperation of AgentBoard and the paper's Table 8).

Reward compares the final state with the wanted one, in [0, 1]; progress is the best reward so far. Sheet: the share of
equal cells. To-do list: wanted changes made and the right answer given, over these and the changes nobody wanted
(`tool.todo.worth`). `finish` ends the episode. A call that is refused answers `ERROR | ...`, is invalid, and changes nothing.

Without data, tables, lists and requests are generated. With the option `data`, the test split is the official one of
AgentBoard and AgentGym: 20 sheet tasks on `<data>/tool/sheets.xlsx` (needs openpyxl; without its sheets of answers, which a
curious agent could open there) and 155 todo tasks on `<data>/tool/todo_projects.json`. Official sheets are scored as there,
over the rectangle both tables have in common; generated ones over the larger rectangle, so that deleting cells cannot pay.
Only the final state and the answer count for todo, where AgentBoard counts calls whose result equals a recorded one.

Options:
  data: folder of official files.
  kinds: `sheet`, `todo` or both (default).
  count: generated tasks of the split, default 400 train, 40 dev, 40 test.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentrm_jax.envs.react import played
from agentrm_jax.envs.spec import EnvSpec, Options, several, whole
from agentrm_jax.envs.tool import sheet as sheets
from agentrm_jax.envs.tool import sheet_tasks, todo, todo_tasks
from agentrm_jax.envs.tool.calls import CHECK, FINISH, Tool, ToolError, checked, listed, read_call, refusal, render_call
from agentrm_jax.envs.tool.calls import shown as rendered
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

MAX_STEPS = 30
KINDS = ("sheet", "todo")
_COUNTS = {"train": 400, "dev": 40, "test": 40}
_FIRST_SEED = {"train": 0, "dev": 1_000_000, "test": 2_000_000}

_SHEET_ENDING = (
    Tool("open_sheet", {"name": "string"}, "goes to another sheet of the workbook."),
    Tool("del_sheet", {"name": "string"}, "deletes a sheet."),
    Tool(FINISH, {}, "ends the episode."),
    Tool(CHECK, {}, "names the tools."),
)
TOOLS: dict[str, dict[str, Tool]] = {
    "sheet": {t.name: t for t in [*(tool for tool, _ in sheets.ACTIONS.values()), *_SHEET_ENDING]},
    "todo": {t.name: t for t in [*(tool for tool, _ in todo.ACTIONS.values()), *todo.FINISHING]},
}


@dataclasses.dataclass(frozen=True, slots=True)
class SheetGame:
    """A workbook, the open sheet (None once deleted), the sheet the goal is about, the table it should become, and
    how it is compared."""

    book: Mapping[str, sheets.Sheet]
    name: str | None
    target: str
    gold: list[list[str]]
    whole: bool

    def reward(self, finished: bool, answer: JSON) -> float:
        ours = self.book[self.target].values() if self.target in self.book else []
        return sheets.match(ours, self.gold, whole=self.whole)

    def call(self, name: str, arguments: Mapping[str, Any]) -> "tuple[SheetGame, Any]":
        if name in ("open_sheet", "del_sheet"):
            which = arguments["name"]
            if which not in self.book:
                raise ToolError(f"There is no sheet {which}.")
            if name == "open_sheet":
                return dataclasses.replace(self, name=which), self.book[which].values()
            book = {k: v for k, v in self.book.items() if k != which}
            left = None if self.name == which else self.name
            return dataclasses.replace(self, book=book, name=left), f"{which} deleted."
        if self.name is None:
            raise ToolError("Open a sheet first.")
        sheet, result = sheets.ACTIONS[name][1](self.book[self.name], arguments)
        same = sheet is self.book[self.name]
        after = self if same else dataclasses.replace(self, book={**self.book, self.name: sheet})
        return after, sheet.values() if result is None else result


@dataclasses.dataclass(frozen=True, slots=True)
class TodoGame:
    """A board, what it was at first, the changes wanted, and the answer expected (None: none)."""

    board: todo.Board
    initial: todo.Board
    wanted: Mapping[tuple[str, str], JSON]
    expected: JSON

    def reward(self, finished: bool, answer: JSON) -> float:
        made = todo.changes(self.initial, self.board)
        return todo.worth(made, self.wanted, self.expected, finished, answer)

    def call(self, name: str, arguments: Mapping[str, Any]) -> "tuple[TodoGame, Any]":
        board, result = todo.ACTIONS[name][1](self.board, arguments)
        return (self if board is self.board else dataclasses.replace(self, board=board)), result


class Snapshot(NamedTuple):
    kind: str
    game: SheetGame | TodoGame
    reward: float
    best: float
    over: bool


class ToolOperation:
    """One episode. The whole state is immutable values."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kind = ""
        self.game: SheetGame | TodoGame | None = None
        self.reward = self.best = 0.0
        self.over = False

    def reset(self, task: Task) -> Start:
        self.kind = str(task.args["kind"])
        goal, self.game = (_sheet_game if self.kind == "sheet" else _todo_game)(task, self.options)
        self.over, self.best = False, 0.0
        self._score(False, None)
        first = f"Tools:\n{listed(TOOLS[self.kind].values())}"
        if isinstance(self.game, SheetGame) and self.game.name:
            first += f"\n{self.game.name} is open: {rendered(self.game.book[self.game.name].values())}"
        return Start(goal, first)

    def step(self, command: str) -> EngineStep:
        assert self.game is not None, "reset comes first"
        tools = TOOLS[self.kind]
        try:
            name, arguments = read_call(command)
            arguments = checked(tools, name, arguments)
            if name == CHECK:
                return self._answer(f"Tools: {', '.join(tools)}.")
            if name == FINISH:
                self.over = True
                self._score(True, arguments.get("answer"))
                return self._answer("The episode is finished.")
            before = self.game
            self.game, result = before.call(name, arguments)
        except ToolError as e:
            return self._answer(refusal(e), valid=False)
        if self.game is not before:
            self._score(False, None)
        return self._answer(rendered(result))

    def snapshot(self) -> Snapshot:
        assert self.game is not None
        return Snapshot(self.kind, self.game, self.reward, self.best, self.over)

    def restore(self, snapshot: Snapshot) -> None:
        self.kind, self.game, self.reward, self.best, self.over = snapshot

    def close(self) -> None:
        pass

    def _score(self, finished: bool, answer: JSON) -> None:
        assert self.game is not None
        self.reward = self.game.reward(finished, answer)
        self.best = max(self.best, self.reward)

    def _answer(self, observation: str, valid: bool = True) -> EngineStep:
        return EngineStep(observation, self.reward, self.best, self.over, valid)


def _sheet_game(task: Task, options: Options) -> tuple[str, SheetGame]:
    args = task.args
    if "seed" in args:
        made = sheet_tasks.request(int(args["seed"]))
        return made.goal, SheetGame({made.name: made.sheet}, made.name, made.name, made.gold, True)
    book = _workbook(str(_folder(options) / "sheets.xlsx"))
    return str(args["goal"]), SheetGame(book, str(args["sheet"]), str(args["sheet"]), args["gold"], False)


def _todo_game(task: Task, options: Options) -> tuple[str, TodoGame]:
    args = task.args
    if "seed" in args:
        made = todo_tasks.request(int(args["seed"]))
        return made.goal, TodoGame(made.board, made.board, made.wanted, made.answer)
    board = _official_board(str(_folder(options) / "todo_projects.json"), args["date"], args["location"])
    wanted = todo.official_changes(board, args["gold"])
    return str(args["goal"]), TodoGame(board, board, wanted, args["answer"])


def _folder(options: Options) -> Path:
    if not options.get("data"):
        raise UserError("an official tool task needs the option `data`: the folder of official files")
    return Path(str(options["data"])) / "tool"


@functools.lru_cache(maxsize=4)
def _official_board(path: str, date: str, location: str) -> todo.Board:
    return todo.board(json.loads(Path(path).read_text()), date, location, "official")


@functools.lru_cache(maxsize=2)
def _workbook(path: str) -> dict[str, sheets.Sheet]:
    """Sheets of an official workbook by name, without those of answers."""
    import openpyxl

    book = openpyxl.load_workbook(path, data_only=True)
    found = {}
    for ws in book:
        if ws.title.startswith("Answer"):
            continue
        rows = tuple(tuple((c.value, c.number_format) for c in row) for row in ws.iter_rows())
        notes = tuple(sorted((c.coordinate, c.comment.text) for row in ws.iter_rows() for c in row if c.comment))
        merged = tuple((m.min_row, m.min_col, m.max_row, m.max_col) for m in ws.merged_cells.ranges)
        found[ws.title] = sheets.Sheet(rows, merged, notes)
    return found


def make(options: Options) -> ToolOperation:
    """Raises UserError if official sheets are asked for and openpyxl or the files are missing."""
    if options.get("data") and "sheet" in _kinds(options):
        try:
            import openpyxl  # noqa: F401
        except ImportError as e:
            raise UserError("official sheet tasks need openpyxl: pip install 'agentrm-jax[tool]'") from e
        if not (_folder(options) / "sheets.xlsx").exists():
            raise UserError(
                f"{_folder(options) / 'sheets.xlsx'} is missing; option `data` must name the folder above it"
            )
    return ToolOperation(options)


def _kinds(options: Options) -> list[str]:
    chosen = several(options, "kinds", KINDS)
    for kind in chosen:
        if kind not in KINDS:
            raise UserError(f"tool_operation has no kind {kind!r}; known: {', '.join(KINDS)}")
    return chosen


def tasks(split: str, options: Options) -> Sequence[Task]:
    """Generated tasks, kinds in turn; the official ones as `test` if `data` is given.

    Raises:
      UserError: unknown split or kind, or official files missing.
    """
    if split not in _COUNTS:
        raise UserError(f"tool_operation has no split {split!r}; known: {', '.join(_COUNTS)}")
    kinds = _kinds(options)
    if split == "test" and options.get("data"):
        return [task for kind in kinds for task in _official(kind, _folder(options) / f"{kind}.jsonl")]
    made = []
    for i in range(whole(options, "count", _COUNTS[split])):
        kind, seed = kinds[i % len(kinds)], _FIRST_SEED[split] + i // len(kinds)
        made.append(Task("tool_operation", f"{kind}-{seed}", split, MAX_STEPS, {"kind": kind, "seed": seed}))
    return made


def _official(kind: str, path: Path) -> Iterator[Task]:
    try:
        lines = path.read_text().splitlines()
    except OSError as e:
        raise UserError(f"{path} cannot be read; option `data` must name the folder above it") from e
    for row in map(json.loads, lines):
        info = row["additional_info"]
        args: dict[str, JSON] = {"kind": kind, "goal": row["goal"].strip(), "difficulty": row["difficulty"]}
        if kind == "sheet":
            named = re.search(r'"(Sheet\d+)"', row["goal"])
            assert named is not None, "every official sheet task names its sheet"
            calls = re.findall(r"Action \d+: (.*)", row["subgoals"])
            args |= {"sheet": named[1], "gold": json.loads(info["answer"]), "plan": calls}
        else:
            config, answer = info["init_config"], row["subgoals"][0]
            args |= {"date": config["current_date"], "location": config["current_location"], "gold": info["answer"]}
            args["answer"] = None if answer == "done" else answer
        yield Task("tool_operation", f"{kind}-official-{row['id']}", "test", MAX_STEPS, args)


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """Generated tasks: the calls that came with the request. Official sheets: the recorded reference calls. Official todo:
    looks at every project, makes the wanted changes, gives the expected answer (a demonstration with hindsight).
    """
    args = task.args
    if "seed" in args:
        request = sheet_tasks.request if args["kind"] == "sheet" else todo_tasks.request
        yield from request(int(args["seed"])).plan
    elif args["kind"] == "sheet":
        for call in args["plan"]:
            yield "The next change the task asks for.", call
        yield "The table is as it should be.", render_call(FINISH)
    else:
        game = getattr(env, "game", None)
        assert isinstance(game, TodoGame), "the expert plays this module's environment"
        yield from todo_tasks.hindsight(game.initial, game.wanted, game.expected)


SPEC = EnvSpec(
    name="tool_operation",
    make=make,
    tasks=tasks,
    instruction="""You work for a user with tools that read and change a spreadsheet or a to-do list. The tools are \
listed with their arguments (`?` marks one that may be left out). Look before you change something, change only what the \
goal asks for, and call finish when you are done; where the goal asks a question, give the answer to finish. In a \
spreadsheet, cells are named by letter and number (B2), rows and columns are counted from 1, and the header takes part in \
sorting unless the first row is frozen. You have 30 turns.
Each turn, write one thought and one call on a line of its own, with the arguments as JSON:
Thought: <why>
Action: <tool> with Action Input: {"argument": value}""",
    rm_instruction="""An agent works with tools on a spreadsheet or a to-do list. It is to change exactly what the user \
asks for, answer questions correctly, and then finish.
{goal}""",
    expert=expert,
    example=played(
        ToolOperation({}), Task("tool_operation", "e", "train", MAX_STEPS, {"kind": "todo", "seed": 7}), expert
    ),
    options=("kinds", "count"),
    engine="own spreadsheet and to-do list",
    licence="Apache-2.0",
    extra="tool",
)
