"""How good a reward model is on labelled data, beside rules that need no model: pairs, steps, outcomes and samples, by split.

    python -m agentrm_jax.evaluate RM DATA --out results/       any model and any rows that `agentrm_jax.score` reads

RM is a training workdir, a Hugging Face folder or `implicit:TUNED@BASE`; DATA files, folders or `hf:NAME` with labels in any layout
of docs/data.md. Tables are printed; with `--out` they are also written as `evaluation.md`, `.tex`, `.json` and `index.html`, beside
`scores.jsonl`, from which the same command goes on if it was stopped.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentrm_jax.data import formats, labels
from agentrm_jax.data.conversations import Conversation
from agentrm_jax.data.labels import Labels
from agentrm_jax.evaluation import reward_data, reward_page
from agentrm_jax.evaluation.published import PUBLISHED
from agentrm_jax.evaluation.reward_data import Scores
from agentrm_jax.files import finite, write_atomically, write_json
from agentrm_jax.run import command, lock
from agentrm_jax.score import Scorer, add_options, run
from agentrm_jax.types import JSON, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (2 for what the user can mend)."""
    parser = command.Parser(prog="python -m agentrm_jax.evaluate", description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--out", type=Path, help="folder for tables and scores; a stopped run goes on there")
    parser.add_argument("--name", default="", help="the model's name in tables (default: RM as it was given)")
    parser.add_argument(
        "--success", type=float, default=1.0, help="reward from which a trajectory counts as solved (default 1)"
    )
    return run(parser, argv, _run, kept="the same command with --out goes on")


def _run(args: argparse.Namespace) -> int:
    if not math.isfinite(args.success):
        raise UserError(f"--success={args.success}: use a number")
    scorer = Scorer(args)
    rows = [row for row in labels.read(args.trajectories, scorer.specs) if _is_labelled(row)]
    if not rows:
        raise UserError(
            f"{args.trajectories}: no row has a label (a pair, labelled steps, or a reward); docs/data.md lists layouts"
        )
    said = [c for row in rows for c in row.conversations]
    began = time.monotonic()
    journal = _begun(args.out) if args.out else None
    found = _kept(journal, _digest(args, said)) if journal else []
    tokens, errors, resumed = 0, collections.Counter[str](), len(found)
    if len(found) < len(said):
        for one in scorer.score(said[len(found) :]):
            tokens += one.tokens
            if one.error:
                errors[one.error] += 1
            found.append(Scores(one.step_scores, one.score))
            if journal:
                row = finite({"id": one.id, "steps": one.step_scores, "score": one.score})
                formats.append_jsonl(journal, [row])
    seconds = time.monotonic() - began
    scores = _by_row(rows, found)
    notes = _notes(rows, found, args, scorer, errors)
    if tokens:
        speed = f"{tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s)"
        print(f"{len(found) - resumed} trajectories, {speed}", file=sys.stderr)
    name = args.name or args.rm
    splits = {}
    for split, members in _splits(rows).items():
        here = [rows[i] for i in members], [scores[i] for i in members]
        splits[split] = reward_data.evaluate(*here, model=name, success=args.success)
    figures = [f for layout in dict.fromkeys(row.layout for row in rows) for f in PUBLISHED.get(layout, ())]
    text = reward_page.markdown(splits, notes, figures)
    print(text, end="")
    if args.out:
        later = reward_data.to_go(rows, scores, success=args.success)
        facts: dict[str, JSON] = {
            "model": args.rm,
            "data": args.trajectories,
            "success": args.success,
            "tokens": tokens,
            "seconds": seconds,
            "splits": {split: [row.to_json() for row in found] for split, found in splits.items()},
            "auc_by_steps_to_go": {str(left): {"auc": area, "count": count} for left, (area, count) in later.items()},
            "published": [dataclasses.asdict(figure) for figure in figures],
            "notes": notes,
        }
        write_json(args.out / "evaluation.json", facts)
        write_atomically(args.out / "evaluation.md", text)
        write_atomically(args.out / "evaluation.tex", reward_page.latex(splits))
        write_atomically(args.out / "index.html", reward_page.page(f"{name} on labelled data", splits, notes, figures))
        print(f"written to {args.out}", file=sys.stderr)
    if all(math.isnan(one.value) for one in found):
        raise UserError(f"nothing could be scored; the first: {next(iter(errors), 'no trained assistant turn')}")
    return 0


def _is_labelled(row: Labels) -> bool:
    return bool(row.pairs) or any(
        c.reward is not None or any(x is not None for x in c.steps) for c in row.conversations
    )


def _by_row(rows: Sequence[Labels], found: Sequence[Scores]) -> list[tuple[Scores, ...]]:
    rest: Iterator[Scores] = iter(found)
    return [tuple(next(rest) for _ in row.conversations) for row in rows]


def _splits(rows: Sequence[Labels]) -> dict[str, list[int]]:
    """Rows by the split that they name, else by their file; and all of them, where there are several."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.split or Path(row.file).name, []).append(i)
    return found if len(found) == 1 else found | {"all": list(range(len(rows)))}


def _notes(
    rows: Sequence[Labels],
    found: Sequence[Scores],
    args: argparse.Namespace,
    scorer: Scorer,
    errors: collections.Counter[str],
) -> list[str]:
    """What readers of the tables have to know."""
    layouts = ", ".join(f"{n} {layout}" for layout, n in collections.Counter(row.layout for row in rows).items())
    notes = [
        f"rows: {layouts}; {len({row.task for row in rows})} tasks; 95 % intervals over tasks",
        "shortest and longest: by characters, with calls of tools; always good: every step and every outcome is right",
        f"score of a trajectory: {scorer.aggregate} of its steps; solved: a reward of {args.success:g} or more",
        "thresholds of steps are chosen on the other half of the tasks",
    ]
    if missing := sum(math.isnan(one.value) for one in found):
        first = f"; the first: {next(iter(errors))}" if errors else ""
        notes.append(f"{missing} of {len(found)} trajectories without a score, which is never right{first}")
    return notes


def _digest(args: argparse.Namespace, said: Sequence[Conversation]) -> str:
    """What scores depend on: the model's place and options, and the conversations."""
    options = {k: v for k, v in vars(args).items() if k not in ("out", "name", "success", "rows", "row_length")}
    made = hashlib.blake2b(json.dumps(options, default=str, sort_keys=True).encode(), digest_size=8)
    for one in said:
        made.update(
            repr((one.id, [(m.role, m.content, m.loss, dict(m.more)) for m in one.messages])).encode(errors="replace")
        )
    return made.hexdigest()


def _begun(folder: Path) -> Path:
    """The file of scores of a folder, which this process alone writes. Raises: UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(folder)
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written: {error}") from error
    return folder / "scores.jsonl"


def _kept(path: Path, digest: str) -> list[Scores]:
    """The scores of conversations in order that a stopped run has written; a new file begins with a line that says of what they are.

    Raises:
      UserError: they are of another model or other data, or damaged.
    """
    rows = list(formats.read_jsonl(path)) if path.exists() else []
    if not rows:
        formats.append_jsonl(path, [{"of": digest}])
        return []
    if rows[0].get("of") != digest:
        raise UserError(f"{path.parent} holds scores of another model or of other data; choose another --out")
    try:
        return [Scores(tuple(map(_value, row["steps"])), _value(row["score"])) for row in rows[1:]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error


def _value(number: JSON) -> float:
    return math.nan if number is None else float(number)


if __name__ == "__main__":
    sys.exit(main())
