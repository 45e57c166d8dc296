"""What rows teach: the paths to read for an objective, and the targets at their turns.

    imitation      the turns themselves: of messages, of the chosen side of a pair
    values         a number at a turn: the labels of steps where a row has some, else its reward at the last turn
    progress       a number at every turn, to learn how it changes: labels, else the reward at all of them
    returns        the reward, which is backed up to every turn from the model's own values
    comparisons    which is better: chosen and rejected; samples of one task with other rewards; labels of turns after one history
    outcomes       the reward of a whole trajectory

docs/data.md has the table of layouts. Our own records count as trajectories with a reward.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from agentrm_jax.data.conversations import Conversation
from agentrm_jax.data.labels import Labels
from agentrm_jax.tree import Segment
from agentrm_jax.types import UserError

Lesson = Literal["imitation", "values", "progress", "returns", "comparisons", "outcomes"]
Read = Callable[[Conversation], list[Segment]]

NEEDS: Mapping[Lesson, str] = {
    "imitation": "an assistant turn",
    "values": "a reward or labels of steps",
    "progress": "a reward or labels of steps",
    "returns": "a reward",
    "comparisons": "a chosen and a rejected side, or a reward or labels of steps to compare",
    "outcomes": "a reward",
}
_STEPS: tuple[Lesson, ...] = ("values", "progress", "comparisons")  # that labels of steps teach


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A conversation up to the last turn that is learned.

    Attributes:
      segments: its tokens.
      targets: index of a segment -> the value that is learned at its end.
      success: 1 or 0 if the whole trajectory succeeded or failed, NaN if that is not known.
    """

    segments: Sequence[Segment]
    targets: Mapping[int, float] = dataclasses.field(default_factory=dict)
    success: float = math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """Paths of a task that have to be in one tree.

    Attributes:
      kind: of which layout they are.
      compared: with what their targets are compared: `nothing`, `each other` (the paths' ends), or `siblings` (turns after one history).
      apart: a path's end is its own, also where another path says the same or goes on.
    """

    task: str
    kind: str
    paths: tuple[Path, ...]
    compared: Literal["nothing", "each other", "siblings"] = "nothing"
    apart: bool = False


def taught(
    row: Labels,
    lesson: Lesson,
    read: Read,
    *,
    loss: str,
    outcome: str = "reward",
    bounded: bool = False,
    least: float = 0.0,
) -> list[Unit]:
    """What a row teaches. For `comparisons` a sample with its reward is a unit by itself (`forest.gathered`).

    Args:
      read: a conversation as segments.
      loss: name of the loss, for messages.
      outcome: field of `Outcome` that is the reward of our own records.
      bounded: targets are probabilities.
      least: what is rated lower is not imitated: trajectories by their reward, turns by their labels.

    Raises:
      UserError: the row lacks what the lesson needs, or cannot be rendered; begins with its origin.
    """
    if lesson == "imitation":
        return _imitated(row, read, least)
    if lesson == "comparisons" and row.pairs:
        return [_pair(row, read(row.conversations[p.chosen]), read(row.conversations[p.rejected])) for p in row.pairs]
    found = []
    for one in row.conversations:
        reward = _worth(one, outcome)
        by_steps = lesson in _STEPS and any(label is not None for label in one.steps)
        if by_steps and lesson == "comparisons":
            by_steps = reward is None
        if not by_steps and reward is None:
            continue
        segments = read(one)
        turns = _turns(row, segments)
        if by_steps:
            targets = {at: label for at, label in zip(turns, one.steps, strict=True) if label is not None}
        else:
            assert reward is not None
            targets = dict.fromkeys(turns if lesson in ("progress", "returns") else turns[-1:], reward)
        if bounded and not all(0 <= v <= 1 for v in targets.values()):
            raise UserError(
                f"{row.origin}: loss={loss} learns probabilities, from 0 to 1, and this row says "
                f"{next(v for v in targets.values() if not 0 <= v <= 1):g}; choose a regression, or scale the file's rewards"
            )
        success = reward if reward in (0.0, 1.0) and turns[-1] in targets else math.nan
        path = Path(segments[: max(targets) + 1], targets, success)
        compared: Literal["nothing", "each other", "siblings"] = "siblings" if by_steps else "each other"
        if lesson == "comparisons":
            found.append(Unit(row.task, row.layout, (path,), compared, apart=not by_steps))
        else:
            found.append(Unit(row.task, row.layout, (path,), apart=lesson == "returns"))
    if not found:
        hint = "; configs/explicit.py with --config.loss=pairwise learns from it" if row.pairs else ""
        raise UserError(f"{row.origin}: loss={loss} learns from {NEEDS[lesson]}, and this row has {_holds(row)}{hint}")
    return found


def _imitated(row: Labels, read: Read, least: float) -> list[Unit]:
    if row.pairs:
        wanted = [row.conversations[i] for i in dict.fromkeys(p.chosen for p in row.pairs)]
    else:  # beginnings of a trajectory, and steps beside the chosen ones, are no trajectories
        wanted = [c for i, c in enumerate(row.conversations) if not i or c.reward is not None or not c.steps]
    found = []
    for one in wanted:
        if one.reward is not None and one.reward < least:
            continue
        segments = read(one)
        turns = _turns(row, segments)
        low = {at for at, label in zip(turns, one.steps, strict=False) if label is not None and label < least}
        segments = [dataclasses.replace(s, loss=False) if i in low else s for i, s in enumerate(segments)]
        if any(s.loss for s in segments):
            found.append(Unit(row.task, row.layout, (Path(segments),)))
    return found


def _pair(row: Labels, chosen: list[Segment], rejected: list[Segment]) -> Unit:
    paths = []
    for segments, value in ((chosen, 1.0), (rejected, 0.0)):
        last = _turns(row, segments)[-1]
        paths.append(Path(segments[: last + 1], {last: value}))
    return Unit(row.task, row.layout, tuple(paths), "each other", apart=True)


def _turns(row: Labels, segments: Sequence[Segment]) -> list[int]:
    """Where the trained turns are."""
    found = [i for i, s in enumerate(segments) if s.loss]
    if not found:
        raise UserError(f"{row.origin}: it has no assistant turn that is trained")
    return found


def _worth(one: Conversation, outcome: str) -> float | None:
    if one.trajectory is not None and one.trajectory.steps:
        return float(getattr(one.trajectory.last, outcome))
    return one.reward


def _holds(row: Labels) -> str:
    found = ["messages"] if any(m.loss for c in row.conversations for m in c.messages) else []
    found += ["a reward"] if any(c.reward is not None for c in row.conversations) else []
    found += ["labels of steps"] if any(v is not None for c in row.conversations for v in c.steps) else []
    found += ["a chosen and a rejected side"] if row.pairs else []
    return " and ".join(found) or "none of what can be learned"
