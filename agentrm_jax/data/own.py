"""Datasets of a user's own files: rows of any layout, for any objective. No environment and no search is needed.

Rows are told apart by `data.labels`, what they teach says `data.lessons`, and `data.forest` makes token trees of it.
"""

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from agentrm_jax import tree
from agentrm_jax.data import datasets, forest, heldout, labels, lessons, targets, weights
from agentrm_jax.data.files import Bad, Skipped, refuse
from agentrm_jax.data.forest import LabelTree
from agentrm_jax.data.labels import Labels, Specs
from agentrm_jax.data.lessons import Lesson, Read, Unit
from agentrm_jax.types import Task, UserError

OnBadRow = Literal["stop", "skip"]
ON_BAD_ROW: tuple[str, ...] = get_args(OnBadRow)
_SECONDS = 10.0  # between two lines of progress
ADVICE = "--config.on_bad_row=skip leaves such rows out; docs/data.md says what a row must hold"


@dataclasses.dataclass
class Rows:
    """What the named places hold.

    Attributes:
      places: as they were named.
      found: the rows.
      bad: what is done about a row that teaches nothing.
    """

    places: str
    found: list[Labels]
    bad: Bad

    @property
    def tasks(self) -> list[Task]:
        """Those of our own records, whose environments have texts of their own."""
        return [c.trajectory.task for row in self.found for c in row.conversations if c.trajectory]

    def texts(self) -> list[str]:
        """All texts that a model will read of them, to train a tokenizer on."""
        out: list[str] = []
        for row in self.found:
            for one in row.conversations:
                out += [json.dumps(tool, ensure_ascii=False) for tool in one.tools]
                for m in one.messages:
                    out += [m.content, *(json.dumps(more, ensure_ascii=False) for more in m.more.values())]
        return [text for text in out if text]


def read(places: str, specs: Specs, *, on_bad_row: OnBadRow) -> Rows:
    """The rows of files, folders and data sets (`labels.read`).

    Args:
      on_bad_row: `stop` ends at the first row that cannot be read, or later teaches nothing; `skip` counts such rows.

    Raises:
      UserError: there is nothing to read, or a row is bad.
    """
    bad: Bad = Skipped() if on_bad_row == "skip" else _refuse
    return Rows(places, list(labels.read(places, specs, bad)), bad)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What rows teach, as arrays.

    Attributes:
      flat: token trees to learn.
      tasks: the task of each.
      held: states of other tasks to measure on, if there are any.
    """

    flat: list[tree.FlatTree]
    tasks: list[str]
    held: heldout.HeldOut | None


def made(
    rows: Rows,
    lesson: Lesson,
    encode: Read,
    *,
    row_length: int,
    loss: str,
    outcome: str = "reward",
    bounded: bool = False,
    least: float = 0.0,
    context_weight: float = 0.0,
    balance_values: bool = False,
    balance_tasks: bool = False,
    heldout_fraction: float = 0.0,
    extra: tuple[str, ...] = (),
) -> Made:
    """What rows teach; about `heldout_fraction` of the tasks are kept apart, to be measured on.

    Args:
      encode, loss, outcome, bounded, least: as in `lessons.taught`.
      context_weight, balance_values, balance_tasks: as in `targets.imitation_trees` and `weights.balanced`.
      extra: further arrays of a token tree that the objective reads.

    Raises:
      UserError: a row is bad, or nothing is left to learn.
    """
    units: list[Unit] = []
    for row in _announced(rows.found):
        try:
            units += lessons.taught(row, lesson, encode, loss=loss, outcome=outcome, bounded=bounded, least=least)
        except UserError as error:
            rows.bad(error)
    _report_rows(rows)
    long = lonely = 0
    if lesson == "comparisons":
        units, long, lonely = forest.gathered(units, row_length)
    trees, lost = forest.grown(units, row_length)
    _report_lost(lesson, row_length, long + lost, lonely)
    if not trees:
        raise UserError(_nothing(rows, lesson, loss, row_length, lost + long, lonely))
    trees = [dataclasses.replace(t, nodes=[targets.with_context(n, context_weight) for n in t.nodes]) for t in trees]
    kinds = {unit.task: unit.kind for unit in units}
    apart = heldout.tasks({t.task: kinds[t.task] for t in trees}, heldout_fraction)
    chosen = [t for t in trees if t.task not in apart]
    parts = weights.balanced([(t.task, t.nodes) for t in chosen], values=balance_values, tasks=balance_tasks)
    if lesson == "comparisons" and not sum(map(targets.ordered_pairs, parts)):
        raise UserError(f"{rows.places}: no two of what can be compared differ, so there is nothing to learn")
    flat = [tree.flatten(nodes) for nodes in parts]
    _report_trees(chosen, parts, flat, lesson)
    held = heldout.packed(((t.nodes, _fact_of(t)) for t in trees if t.task in apart), row_length, extra=extra)
    if held is not None:
        print(f"held out to measure: {len(held.target)} targets of {len(apart)} tasks")
    return Made(flat, [t.task for t in chosen], held)


def dataset(rows: Rows, lesson: Lesson, encode: Read, folder: Path, **how: Any) -> Any:
    """What rows teach (`made`, whose further arguments it takes) as a dataset in `folder`. Raises: UserError, as `made`."""
    found = made(rows, lesson, encode, **how)
    if found.held is not None:
        heldout.write(folder, found.held)
    meta = {"lesson": lesson, "rows": len(rows.found)}
    datasets.write_dataset(folder, found.flat, meta=meta, extra=how.get("extra", ()), tasks=found.tasks)
    return datasets.read_dataset(folder)


def _refuse(error: UserError) -> None:
    refuse(UserError(f"{error}; {ADVICE}"))


def _fact_of(one: LabelTree) -> Any:
    return lambda node: one.facts[node.origin]


def _announced(rows: Sequence[Labels]) -> Iterator[Labels]:
    """The rows, with a line on standard error now and then of how many there were."""
    shown = time.monotonic()
    for number, row in enumerate(rows):
        if time.monotonic() - shown > _SECONDS:
            shown = time.monotonic()
            print(f"rows: {number}/{len(rows)}", file=sys.stderr)
        yield row


def _report_rows(rows: Rows) -> None:
    layouts = Counter(row.layout for row in rows.found)
    listed = ", ".join(f"{count} {name}" for name, count in layouts.most_common())
    print(f"{len(rows.found)} rows of {len({row.task for row in rows.found})} tasks: {listed or 'none'}")
    if isinstance(rows.bad, Skipped) and rows.bad.count:
        print(f"{rows.bad.count} bad rows are left out; the first: {rows.bad.first}")


def _report_lost(lesson: Lesson, row_length: int, long: int, lonely: int) -> None:
    if lonely:
        print(
            f"{lonely} trajectories are left out: no other of their task has another reward, so nothing can be compared"
        )
    if long:
        what = "pairs and trajectories" if lesson == "comparisons" else "trajectories"
        print(f"{long} {what} are longer than {row_length} tokens and are left out; --config.row_length raises it")


def _report_trees(
    trees: Sequence[LabelTree], parts: Sequence[Sequence[tree.Node]], flat: Sequence[tree.FlatTree], lesson: Lesson
) -> None:
    sizes = sorted(len(f) for f in flat)
    learned: Mapping[str, int] = {
        "tokens": sum(int(((f.loss_weight > 0) & (f.action > 0)).sum()) for f in flat) if lesson == "imitation" else 0,
        "pairs": sum(map(targets.ordered_pairs, parts)) if lesson == "comparisons" else 0,
        "targets": sum(len(t.facts) for t in trees) if lesson not in ("imitation", "comparisons") else 0,
    }
    what = ", ".join(f"{count} {name} to learn" for name, count in learned.items() if count)
    print(
        f"{len(flat)} token trees of {sum(sizes)} tokens, median {sizes[len(sizes) // 2]}, longest {sizes[-1]}; {what}"
    )
    values = [n.value for nodes in parts for n in nodes if n.value_weight > 0]
    if values and (min(values) < 0 or max(values) > 1):
        print(f"targets run from {min(values):g} to {max(values):g}: the model learns them on that scale")


def _nothing(rows: Rows, lesson: Lesson, loss: str, row_length: int, lost: int, lonely: int) -> str:
    if lost:
        return f"{rows.places}: nothing fits a row of {row_length} tokens; raise --config.row_length"
    if lonely:
        return (
            f"{rows.places}: loss={loss} compares, and no task has two trajectories that differ in their reward; give samples of "
            "one task one id, or choose another loss"
        )
    if isinstance(rows.bad, Skipped) and rows.bad.count:
        return f"{rows.places}: all rows are bad; the first: {rows.bad.first}"
    return f"{rows.places}: no row is left that loss={loss} learns from; it needs {lessons.NEEDS[lesson]}"
