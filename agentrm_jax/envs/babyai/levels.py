"""Levels and tasks of BabyAI: AgentBoard's numbers, seeds of the splits, and the official tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs.spec import Options, several, whole
from agentrm_jax.types import JSON, Task, UserError

# AgentBoard's level numbers and names, in its order; every level is played with four seeds from 1234 on.
LEVELS: dict[int, str] = {
    1: "BabyAI-GoToRedBallGrey-v0",
    2: "BabyAI-GoToRedBall-v0",
    3: "BabyAI-GoToRedBallNoDists-v0",
    4: "BabyAI-GoToObjS6-v0",
    5: "BabyAI-GoToLocalS8N7-v0",
    6: "BabyAI-GoToObjMazeS7-v0",
    7: "BabyAI-GoToImpUnlock-v0",
    8: "BabyAI-GoToSeqS5R2-v0",
    9: "BabyAI-GoToRedBlueBall-v0",
    10: "BabyAI-GoToDoor-v0",
    11: "BabyAI-GoToObjDoor-v0",
    12: "BabyAI-Open-v0",
    13: "BabyAI-OpenRedDoor-v0",
    14: "BabyAI-OpenDoorLoc-v0",
    15: "BabyAI-OpenRedBlueDoorsDebug-v0",
    16: "BabyAI-OpenDoorsOrderN4Debug-v0",
    17: "BabyAI-Pickup-v0",
    18: "BabyAI-UnblockPickup-v0",
    19: "BabyAI-PickupLoc-v0",
    20: "BabyAI-PickupDistDebug-v0",
    21: "BabyAI-PickupAbove-v0",
    24: "BabyAI-Unlock-v0",
    25: "BabyAI-UnlockLocalDist-v0",
    27: "BabyAI-UnlockPickupDist-v0",
    28: "BabyAI-BlockedUnlockPickup-v0",
    29: "BabyAI-UnlockToUnlock-v0",
    31: "BabyAI-FindObjS7-v0",
    32: "BabyAI-KeyCorridorS6R3-v0",
}
# Levels of one or few rooms, which take the expert about two to five turns.
DEFAULT_LEVELS = (1, 2, 3, 4, 5, 8, 9, 10, 11, 13, 14, 15, 16, 19, 20, 21, 25)
_FIRST_SEED = {"test": 1234, "dev": 10_000, "train": 100_000}
_SEEDS_PER_LEVEL = {"test": 4, "dev": 4, "train": 100}
_MAX_STEPS = 30
_OFFICIAL_SEEDS = 4
SETTINGS = ("ours", "agentboard")


def level_ids(names: Any) -> list[str]:
    """Full level ids for numbers (`1`), ids (`BabyAI-GoTo-v0`), short names (`GoTo`), or a comma-separated string of those."""
    if isinstance(names, str):
        names = [n.strip() for n in names.split(",") if n.strip()]
    result = []
    for name in names:
        if isinstance(name, int) or str(name).isdigit():
            if int(name) not in LEVELS:
                raise UserError(
                    f"no BabyAI level number {name}; AgentBoard's numbers are {', '.join(map(str, LEVELS))}"
                )
            result.append(LEVELS[int(name)])
        else:
            result.append(name if name.startswith("BabyAI-") else f"BabyAI-{name}-v0")
    return result


def _short(level_id: str) -> str:
    return level_id.removeprefix("BabyAI-").removesuffix("-v0")


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The tasks of a split, level by level.

    Options:
      levels: numbers or names of levels; default `DEFAULT_LEVELS`, with `data` all of the file.
      seeds_per_level: default 100 for train, 4 for dev and test.
      data: folder with AgentBoard's `agentboard/babyai/test.jsonl` (or that file's own folder): its tasks become the test split.
      max_steps: turns per episode; default 30 (the paper's Table 8).
      setting: `ours` (default) or `agentboard`: how commands are played.

    Raises:
      UserError: unknown split, level or setting, or the official file is missing or not of its form.
    """
    if split not in _FIRST_SEED:
        raise UserError(f"BabyAI has no split {split!r}; choose train, dev or test")
    max_steps = whole(options, "max_steps", _MAX_STEPS)
    setting = str(options.get("setting") or SETTINGS[0])
    if setting not in SETTINGS:
        raise UserError(f"babyai has no setting {setting!r}; known: {', '.join(SETTINGS)}")
    marked: dict[str, JSON] = {"setting": setting} if setting != SETTINGS[0] else {}
    if split == "test" and options.get("data"):
        wanted = set(level_ids(several(options, "levels", ()))) if options.get("levels") else None
        found = official_tasks(str(options["data"]), max_steps, marked)
        return [task for task in found if wanted is None or task.args["level"] in wanted]
    count, first = whole(options, "seeds_per_level", _SEEDS_PER_LEVEL[split]), _FIRST_SEED[split]
    if first + count > min((s for s in _FIRST_SEED.values() if s > first), default=2**31):
        raise UserError(
            f"babyai: seeds_per_level={count} is too many for the {split} split; its seeds would run into the next split's"
        )
    return [
        Task("babyai", f"{_short(level)}-{seed}", split, max_steps, {"level": level, "seed": seed, **marked})
        for level in level_ids(several(options, "levels", DEFAULT_LEVELS))
        for seed in range(first, first + count)
    ]


def official_tasks(data: str, max_steps: int = _MAX_STEPS, marked: Mapping[str, JSON] | None = None) -> list[Task]:
    """AgentBoard's tasks from its test.jsonl; line number `id` is level `id // 4` in the order of `LEVELS`, seed 1234 + `id % 4`.

    Args:
      marked: arguments that each task gets besides its own.

    Raises:
      UserError: the file is missing or not of its form; names the line.
    """
    root = Path(data).expanduser()
    candidates = [root / "agentboard" / "babyai" / "test.jsonl", root / "test.jsonl"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise UserError(
            f"babyai: {data} holds no agentboard/babyai/test.jsonl; set env.options.data to the folder that does"
        )
    result = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            lists = [[str(pattern) for pattern in record[key]] for key in sorted(record) if key.startswith("subgoals")]
            if not lists or not lists[0] or len({len(patterns) for patterns in lists}) > 1:
                raise ValueError("lists of sub-goals must be there and equally long")
            args = {
                "level": str(record["additional_info"]["subtask"]),
                "seed": _FIRST_SEED["test"] + int(record["id"]) % _OFFICIAL_SEEDS,
                "subgoals": lists,
                **(marked or {}),
            }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number} is no task of AgentBoard's: {error!r}") from error
        result.append(Task("babyai", f"agentboard-{record['id']}", "test", max_steps, args))
    return result
