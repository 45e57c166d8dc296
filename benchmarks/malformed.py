"""Thousands of malformed rows: reading a file gives records, or one line that names file and line; never anything else.

    python -m benchmarks.malformed [--cases 10000] [--seed 0] [--json FILE]

Rows of every record format are changed at random (values of other types, numbers out of range, keys and list entries that are missing
or doubled, bytes that are no text, texts that are no JSON, thousands of brackets) and read between two good ones. Prints a line a
format; exit code 1 if anything but a record or a `UserError` with file and line came of a row.
"""

import argparse
import collections
import copy
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.data import conversations, formats, labels
from agentrm_jax.run import journal
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.types import JSON, Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode, UserError

ODD: tuple[JSON, ...] = (
    None, True, False, 0, 1, -1, -3, 7, 0.5, 1e6, -0.0, 10**30, -(10**400), float("nan"), float("-inf"),
    "", "0.7", "user", "tool", "OK", "\ud800", "a\x00b\r\n", "x" * 5000, [], {}, [[]], ["user"], [None], [{}], {"type": "text"},
    {"role": ["user"], "content": "x"}, {"role": "user", "content": [{"type": "text"}]},
)  # fmt: skip
TEXTS = (
    "[" * 100_000,
    '{"a":' * 5000,
    "9" * 5000,
    "NaN",
    "-Infinity",
    "1e999",
    '"\\ud800"',
    "null",
    "\ufeff",
    "}",
    "{}",
    "\\",
    "\x00",
)
BYTES = (b"\xff", b"\xed\xa0\x80", b"\x00", b"\xf0\x9f", b"\r", b"\n")


def rows(kind: str) -> list[JSON]:
    """Good rows of a format."""
    task = Task("maze", "m-1", "test", 9, {"size": 5})
    start = Outcome("You are at 1, 1.")
    wall = Outcome("A wall.", 0.25, 0.5, parsed="move left")
    end = Outcome("The goal.", 1.0, 1.0, True, True)
    turn = Action("Thought: left.\nAction: move left", (5, 6, 7), -1.5, "length")
    meta: dict[str, JSON] = {"sample": 0, "chosen": True, "score": 0.5, "step_scores": [0.25, None]}
    steps = (Step(turn, wall), Step(Action("Action: up"), end))
    own = formats.trajectory_to_json(Trajectory(task, "reach the goal", "You are at 1, 1.", steps, meta))
    if kind == "trajectories":
        return [own]
    if kind == "trees":
        nodes = (
            TreeNode(-1, None, start, 3, 1.5, 1.25, 0.0, 1.0, expanded=True),
            TreeNode(0, turn, wall, 2, 1.0, 1.0, 0.0, 1.0, 2),
            TreeNode(0, Action("Action: up"), end, 1, 0.5, 0.25, 0.5, 0.5, closed=True),
        )
        return [formats.tree_to_json(SearchTree(task, "reach the goal", nodes, {"iterations": 2}))]
    if kind == "tasks":
        spent = {"policy_tokens": 30, "reward_tokens": 7, "env_steps": 4}
        done = {
            "task": "maze/m-1",
            "env": "maze",
            "reward": 0.5,
            "progress": 0.5,
            "success": False,
            "steps": 2,
            "failed": False,
        }
        samples = {
            "samples": [[0.5, 1.0, True, 1.0, 2, True], [None, 0.0, False, 0.0, 9, False]],
            "counts": {"faults": 0},
        }
        return [{**done, **samples, "cost": spent, "sitting": "a1", "spent": {**spent, "seconds": 1.5}}]
    ask, answer = {"role": "user", "content": "Is 7 prime?"}, {"role": "assistant", "content": "Yes."}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    human, gpt = {"from": "human", "value": "You shop.", "loss": None}, {"from": "gpt", "value": "OK", "loss": False}
    return [
        own,
        {"id": "webshop_12", "conversations": [human, gpt, human, {"from": "gpt", "value": "Action: buy"}], "reward": 1.0},
        {"item_id": "maze_6", "conversations": [ask, answer]},
        {"messages": [{"role": "system", "content": "Be brief."}, ask, parts]},
        {"prompt": "Is 7 prime?", "completion": " Yes."},
        {"prompt": [ask], "completions": ["Step 1", "Step 2"], "labels": [True, False]},
        {"prompt": [ask], "chosen": [answer], "rejected": [answer]},
        {"chosen": [ask, answer], "rejected": [ask, answer], "id": 4},
    ]  # fmt: skip


FILES = {"trajectories": "t.jsonl", "trees": "trees.jsonl", "tasks": "tasks.jsonl", "conversations": "c.jsonl"}


def readers(chat: Chat) -> dict[str, Callable[[Path], None]]:
    """How each format is read. What was accepted must keep what it promises: it can be written, or rendered."""

    def trajectories(path: Path) -> None:
        for one in formats.read_trajectories(path):
            formats.line(formats.trajectory_to_json(one))

    def trees(path: Path) -> None:
        for one in formats.read_trees(path.parent):
            formats.line(formats.tree_to_json(one))

    def tasks(path: Path) -> None:
        json.dumps(journal.Journal(path.parent).spent, allow_nan=False)

    def dialogues(path: Path) -> None:
        for one in labels.conversations(path):
            json.dumps(one.id).encode()
            conversations.segments(one, chat)

    return {"trajectories": trajectories, "trees": trees, "tasks": tasks, "conversations": dialogues}


def mutated(row: JSON, rng: random.Random) -> bytes:
    """A row as a line, with one to three things wrong with it (or right by accident)."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        _change(row, rng)
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.25:
        at = rng.randrange(len(line))
        piece = rng.choice([*BYTES, *(text.encode() for text in TEXTS)])
        line = line[:at] + rng.choice((piece, b"")) + line[at + rng.choice((0, 1, 5)) :]
    if rng.random() < 0.05:
        line = rng.choice(TEXTS).encode()
    return line


def _change(row: JSON, rng: random.Random) -> None:
    """Changes one thing somewhere inside a row."""
    places = list(_places(row))
    if not places:
        return
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        case 2 if isinstance(holder, list):
            rng.shuffle(holder)
        case 3:
            deep = holder[key]
            for _ in range(rng.choice((1, 2, 70, 200))):
                deep = [deep]
            holder[key] = deep
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD))


def _places(value: JSON) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def attempt(read: Callable[[Path], None], path: Path, good: JSON, line: bytes) -> tuple[str, str]:
    """(`accepted`, `refused` or `wrong`, what came of it) of a line between two good ones."""
    between = json.dumps(good).encode()
    path.write_bytes(between + b"\n" + line + b"\n" + between + b"\n")
    try:
        read(path)
    except UserError as error:
        named = re.match(re.escape(str(path)) + r", line \d+\b", str(error)) and "\n" not in str(error)
        return ("refused" if named and len(str(error)) < 1000 else "wrong"), str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return "accepted", ""


def run(kind: str, cases: int, seed: int, chat: Chat, folder: Path) -> tuple[collections.Counter[str], list[str]]:
    """Counts of what came of so many malformed rows of a format, and what was wrong."""
    rng = random.Random(f"{kind} {seed}")
    good, read, path = rows(kind), readers(chat)[kind], folder / kind / FILES[kind]
    path.parent.mkdir(exist_ok=True)
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for _ in range(cases):
        line = mutated(rng.choice(good), rng)
        verdict, message = attempt(read, path, good[0], line)
        counts[verdict] += 1
        if verdict == "wrong":
            wrong.append(f"{message[:300]}\n    {line[:300]!r}")
    return counts, wrong


def tiny_chat() -> Chat:
    """A chat of a few hundred tokens, to render conversations with."""
    return load_chat(train_tokenizer(["Thought: left.\nAction: move left"] * 4, 320))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.malformed", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="malformed rows in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/malformed.json"))
    arguments = parser.parse_args(argv)
    chat, found, failures = tiny_chat(), [], []
    print(f"{'format':15} cases accepted refused  wrong  seconds")
    for kind in FILES:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts, wrong = run(kind, -(-arguments.cases // len(FILES)), arguments.seed, chat, Path(folder))
        row = {name: counts[name] for name in ("accepted", "refused", "wrong")}
        seconds = round(time.perf_counter() - began, 1)
        found.append({"format": kind, **row, "seconds": seconds})
        print(
            f"{kind:15} {counts.total():5} {row['accepted']:8} {row['refused']:7} {row['wrong']:6} {seconds:8}",
            flush=True,
        )
        failures += wrong
    for one in failures[:20]:
        print(f"wrong: {one}", file=sys.stderr)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"seed": arguments.seed, "rows": found}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
