"""Where ALFWorld games come from: the official set in a folder of the user's, and the files inside the `alfworld` wheel."""

import ast
import dataclasses
import functools
import importlib.util
import json
import lzma
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from agentrm_jax.types import JSON, UserError

SPLIT_NAMES = {"train": "train", "dev": "valid_seen", "test": "valid_unseen"}


@dataclasses.dataclass(frozen=True)
class Game:
    """One game as text.

    Attributes:
      name: `{task type}-{object}-{movable receptacle}-{receptacle or lamp}-{room}`, then the trial if there is one.
      goal: the task sentence, with its full stop.
      domain, grammar, problem: PDDL domain, `.twl2` grammar with the goal filled in, PDDL problem.
      walkthrough: commands that solve it, or empty.
    """

    name: str
    goal: str
    domain: str
    grammar: str
    problem: str
    walkthrough: tuple[str, ...] = ()


# The package's own requirements are programs that this environment does without, and that have no wheels.
_INSTALL = (
    "pip install --no-deps 'alfworld>=0.4.2,<0.5' is enough; with all it asks for, pip install 'agentrm-jax[alfworld]' "
    "compiles for some minutes (apt install build-essential cmake)"
)


@functools.cache
def wheel() -> Path:
    """Folder of the installed `alfworld` package (found, not imported: importing it wants folders in the home directory)."""
    found = importlib.util.find_spec("alfworld")
    if found is None or not found.origin:
        raise UserError(f"alfworld is not installed: {_INSTALL}")
    return Path(found.origin).parent


@functools.cache
def domain_text() -> str:
    return (wheel() / "data" / "alfred.pddl").read_text()


@functools.cache
def grammar_text() -> str:
    return (wheel() / "data" / "alfred.twl2").read_text()


def _commands(value: Any) -> tuple[str, ...]:
    return tuple(ast.literal_eval(value) if isinstance(value, str) else value or ())


def _repacked(root: Path, name: str) -> Path | None:
    candidates = (base / f"{name}.jsonl{end}" for base in (root / "alfworld", root) for end in (".xz", ""))
    return next((path for path in candidates if path.is_file()), None)


def _unpacked(root: Path, name: str) -> Path | None:
    """A split's folder of the official release: `root` may hold it, or be it, or lie above."""
    bases = (root, root / "json_2.1.1", root / "alfworld" / "json_2.1.1", root / "alfworld")
    return next((base / name for base in bases if (base / name).is_dir()), None)


def _open(path: Path) -> IO[bytes]:
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


@functools.lru_cache(4)
def _rows(path: Path) -> tuple[bytes, ...]:
    """Lines of a repacked file, each compressed: the whole train split stays in 24 MB."""
    with _open(path) as lines:
        return tuple(zlib.compress(line, 1) for line in lines)


@functools.lru_cache(4)
def _heads(path: Path) -> list[str]:
    """`task/trial` of each line, without reading the problems in them."""
    out = []
    with _open(path) as lines:
        for line in lines:
            head = line[:1000].decode(errors="ignore")
            found = [re.search(rf'"{key}": "([^"]*)"', head) for key in ("task", "trial")]
            row: Mapping[str, str] = {} if all(found) else json.loads(line)
            out.append("/".join(m[1] if m else row[k] for m, k in zip(found, ("task", "trial"), strict=True)))
    return out


def official_games(data: str, split: str) -> list[tuple[str, dict[str, JSON]]]:
    """(task/trial, where to load it from) of every official game of a split, in a fixed order.

    Reads the repacked `{train,valid_seen,valid_unseen}.jsonl[.xz]` or the release's folders of `game.tw-pddl` files. The unseen
    split is put in ETO's order where its `gamefile_id.txt` lies beside.

    Raises:
      UserError: the folder has no games of that split.
    """
    root, name = Path(data).expanduser(), SPLIT_NAMES[split]
    if path := _repacked(root, name):
        games = [(head, {"file": path.name, "line": i}) for i, head in enumerate(_heads(path))]
    elif folder := _unpacked(root, name):
        files = sorted(folder.glob("*/*/game.tw-pddl"))
        games = [("/".join(f.parts[-3:-1]), {"folder": name, "path": "/".join(f.parts[-3:])}) for f in files]
        games = [g for g in games if not re.search(r"movable|Sliced", g[0])]
    else:
        raise UserError(
            f"alfworld: {root} has neither {name}.jsonl.xz nor a {name}/ folder of game.tw-pddl files, which split '{split}' needs"
        )
    order = next((p for p in (root / "alfworld" / "gamefile_id.txt", root / "gamefile_id.txt") if p.is_file()), None)
    if split == "test" and order is not None:
        rank = {line: i for i, line in enumerate(order.read_text().split())}
        games.sort(key=lambda g: rank.get(g[0], len(rank)))
    return games


@functools.lru_cache(16)
def _load_row(root: Path, file: str, line: int) -> Mapping[str, Any]:
    path = root / "alfworld" / file
    return json.loads(zlib.decompress(_rows(path if path.is_file() else root / file)[line]))


def load_official(data: str, where: Mapping[str, JSON]) -> Game:
    """The game that `official_games` pointed to."""
    root = Path(data).expanduser()
    if "line" in where:
        row = _load_row(root, str(where["file"]), int(where["line"]))
        name, goal = f"{row['task']}/{row['trial']}", row["goal"]
        domain, grammar = domain_text(), with_goal(grammar_text(), goal)
    else:
        folder = _unpacked(root, str(where["folder"]))
        if folder is None:
            raise UserError(f"alfworld: {root} no longer holds the folder {where['folder']}")
        row = json.loads((folder / str(where["path"])).read_text())
        name, domain, grammar = str(where["path"]).removesuffix("/game.tw-pddl"), row["pddl_domain"], row["grammar"]
        goal = goal_of(grammar)
    return Game(name, goal, domain, grammar, row["pddl_problem"], _commands(row["walkthrough"]))


def with_goal(grammar: str, goal: str) -> str:
    return grammar.replace("UNKNOWN GOAL.", goal.rstrip(".") + ".").replace("UNKNOWN GOAL", goal.rstrip("."))


def goal_of(grammar: str) -> str:
    """The task sentence that a game's grammar ends its introduction with."""
    found = re.search(r'"task":\s*\[\s*\{\s*"rhs":\s*"[^":]*:\s*([^"]*)"', grammar)
    if found is None:
        raise UserError("alfworld: the grammar of this game names no task")
    return found[1]


def load_module(relative: str) -> Any:
    """A module of the wheel by its path: importing it as part of its package would ask for a 3-D simulator."""
    path = wheel() / relative
    found = importlib.util.spec_from_file_location("_alfworld_wheel_" + path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def layout(room: int, part: str) -> Any:
    """`objects` (types in the room) or `openable` (receptacle -> x, z, rotation, horizon) of an AI2-THOR room."""
    return json.loads((wheel() / "gen" / "layouts" / f"FloorPlan{room}-{part}.json").read_text())


def reword(text: str, wording: str) -> str:
    """Grammar or command in the wording asked for: `put` (`put X in/on Y`: ETO, AgentBoard, AgentRM) or `move` (`move X to Y`).

    The releases of the engine differ in this one command; each set of prompts and trajectories knows only one of them.
    """
    forms: Sequence[tuple[str, str]] = (
        ("move {o} to {r}", "put {o} in/on {r}"),
        ("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."),
    )
    for move, put in forms:
        text = text.replace(move, put) if wording == "put" else text.replace(put, move)
    return text
