"""Scores trajectories with a reward model: one JSON line a trajectory, in the order of the file.

    python -m agentrm_jax.score RM TRAJECTORIES      {"id": "webshop_12", "step_scores": [0.41, 0.77], "score": 0.77}

RM is a training workdir or a Hugging Face folder: any *ForSequenceClassification with one label; or `implicit:TUNED@BASE`, a
policy and the one that it was tuned from, whose log-ratio is the score. TRAJECTORIES is a file in any format that
`agentrm_jax.data.conversations` reads (ETO, AgentGym, TRL, ours). Steps are the trained assistant turns; a step's score is the value
at its end-of-turn token, of an implicit reward model its log-ratio (`--step-reward`). A trajectory that cannot be scored has a line
with `"score": null` and the reason as `error`.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import jax.numpy as jnp

from agentrm_jax import places
from agentrm_jax.data import conversations
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.card import READ_AT, Card, ReadAt, read_card, reward_specs
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.prompts import told_as_policy
from agentrm_jax.run import command
from agentrm_jax.run.devices import accelerator
from agentrm_jax.scoring import LogRatio, Scored, score
from agentrm_jax.search import aggregate as aggregation
from agentrm_jax.types import UserError

if TYPE_CHECKING:
    from agentrm_jax.models.opening import LoadedModel

_PLACES: Mapping[ReadAt, str] = {
    "end_of_turn": "the end-of-turn token of every step",
    "last_token": "the last token of the conversation up to every step, as transformers pools it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (2 for what the user can mend)."""
    parser = command.Parser(prog="python -m agentrm_jax.score", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "rm",
        help="a training workdir, a Hugging Face folder (*ForSequenceClassification, one label), or implicit:TUNED@BASE",
    )
    parser.add_argument("trajectories", type=Path, help="a file of ETO, AgentGym, TRL or our own, or a folder of such")
    parser.add_argument(
        "--aggregate", help="last, min, mean, sum, prod or max of the steps (default: the model's, else last)"
    )
    parser.add_argument(
        "--step-reward",
        choices=("accumulated", "single"),
        default="accumulated",
        help="of an implicit reward model: accumulated, the sum up to a step (default), or single, its own reward",
    )
    parser.add_argument("--out", type=Path, help="file to write to instead of standard output")
    parser.add_argument("--rows", type=int, default=8, help="rows of a forward pass (default 8)")
    parser.add_argument("--row-length", type=int, default=1024, help="tokens of a row (default 1024)")
    parser.add_argument("--max-length", type=int, help="tokens of a trajectory to read (default: the model's limit)")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument(
        "--chat-template", default="", help="chatml, keep, or a file with the template, instead of the tokenizer's own"
    )
    parser.add_argument(
        "--read-at", choices=READ_AT, help="where a step's value is read (default: what the model's folder says)"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="MODULE", help="your own environment of our records"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 2 if a trajectory could not be scored")

    def work() -> int:
        try:
            return _run(parser.parse_args(argv))
        except UserError as error:
            raise UserError(_here(str(error))) from error

    return command.exit_code(work)


def _run(args: argparse.Namespace) -> int:
    if args.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={args.dtype}: use float32 or bfloat16")
    for name in ("rows", "row_length", "max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)}: use a positive number")
    place = places.read(args.rm)
    card = read_card(Path(place.place)) if isinstance(place, places.Model) else None
    aggregate = args.aggregate or (card.aggregate if card else "last")
    aggregation.check(aggregate)
    _require_reward_model(place, card)
    # all of it, so that a bad line is found before the work
    specs = known_specs(card, args.env)
    if isinstance(place, places.Pair):
        specs = {name: told_as_policy(spec) for name, spec in specs.items()}
    trajectories = list(conversations.read(args.trajectories, specs))
    accelerator()
    loaded, ratio = _load(place, card, args)
    options = {"row_length": args.row_length, "rows": args.rows, "max_length": args.max_length, "ratio": ratio}
    read_at: ReadAt = "end_of_turn" if ratio else args.read_at or loaded.read_at
    options |= {"read_at": read_at, "state": loaded.state}
    done: list[Scored] = []
    began = time.monotonic()
    with _output(args.out) as out:
        for one in score(
            loaded.model, loaded.chat, trajectories, aggregate=aggregate, dtype=jnp.dtype(args.dtype), **options
        ):
            done.append(dataclasses.replace(one, error=_here(one.error)))
            print(json.dumps(done[-1].to_json(), allow_nan=False), file=out, flush=True)
    if ratio:
        print(f"log-ratios are those of the tokens of every step, times {ratio.beta:g}", file=sys.stderr)
    else:
        print(f"values were read at {_PLACES[read_at]} (--read-at={read_at})", file=sys.stderr)
    _report(done, args.max_length or loaded.model.config.max_length, time.monotonic() - began)
    failed = any(one.error for one in done)
    return 2 if failed and (args.strict or all(math.isnan(one.score) for one in done)) else 0


def _load(place: places.Place, card: Card | None, args: argparse.Namespace) -> "tuple[LoadedModel, LogRatio | None]":
    """The model, and for an implicit one what it is compared with."""
    from agentrm_jax.models.opening import load_model
    from agentrm_jax.models.pairs import load_pair

    how = {"template": args.chat_template}
    match place:
        case places.Pair(tuned, base):
            loaded, reference = load_pair(tuned, base, **how)
        case _ if card and card.kind == "implicit":
            loaded, reference = load_pair(args.rm, **how)
        case _:
            return load_model(args.rm, **how), None
    beta = (card.beta if card else None) or 1.0
    return loaded, LogRatio(reference.model, beta, args.step_reward == "accumulated")


def _here(message: str) -> str:
    """A message of the library, with this command's name of an option."""
    return message.replace("--config.chat_template", "--chat-template")


def known_specs(card: Card | None, modules: Sequence[str]) -> Mapping[str, EnvSpec]:
    """Environments whose records can be read: shipped ones, the user's own, and those that the model's card knows."""
    specs = {spec.name: spec for spec in map(catalogue.find, [*catalogue.names(), *modules])}
    return reward_specs(card, specs)


def _require_reward_model(place: places.Place, card: Card | None) -> None:
    """Refuses what is none, such as a policy, before anything large is read."""
    match place:
        case places.Pair():
            return
        case places.Model(where):
            if not (card.kind != "policy" if card else open_pretrained(where).head != "CausalLM"):
                raise UserError(
                    f"{where} holds a policy, a model without a value head; score with a workdir of configs/explicit.py or "
                    f"configs/implicit.py, a *ForSequenceClassification folder with one label, or implicit:{where}@BASE"
                )
        case _:
            raise UserError(
                f"{place} cannot be read by this command; name a workdir, a model folder or implicit:TUNED@BASE"
            )


def _output(path: Path | None) -> contextlib.AbstractContextManager[IO[str]]:
    if path is None:
        return contextlib.nullcontext(sys.stdout)
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written: {error}") from error


def _report(done: Sequence[Scored], limit: int, seconds: float) -> None:
    """What was read, and what readers of the scores should know, on standard error."""
    steps, tokens = sum(len(s.step_scores) for s in done), sum(s.tokens for s in done)
    print(
        f"{len(done)} trajectories, {steps} steps, {tokens} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s)",
        file=sys.stderr,
    )
    if cut := sum(s.dropped_turns > 0 for s in done):
        print(
            f"{cut} longer than {limit} tokens: their later steps were read without the oldest turns", file=sys.stderr
        )
    if failed := [s for s in done if s.error]:
        print(
            f'{len(failed)} not scored, see "error" in their lines; the first: {failed[0].error}',
            file=sys.stderr,
        )
    if none := sum(not s.step_scores and not s.error for s in done):
        print(f"{none} without a trained assistant turn: no score", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
