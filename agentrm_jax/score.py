"""Scores trajectories with a reward model: one JSON line a trajectory, in the order of the file.

    python -m agentrm_jax.score RM TRAJECTORIES      {"id": "webshop_12", "step_scores": [0.41, 0.77], "score": 0.77}

RM is a training workdir or a Hugging Face folder: any *ForSequenceClassification with one label; or `implicit:TUNED@BASE`, a
policy and the one that it was tuned from, whose log-ratio is the score. TRAJECTORIES is a file in any layout that
`agentrm_jax.data.labels` reads (ETO, AgentGym, TRL, ours, ...). Steps are the trained assistant turns; a step's score is the value
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jax.numpy as jnp

from agentrm_jax import places
from agentrm_jax.data import labels
from agentrm_jax.data.conversations import Conversation
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
    add_options(parser)
    parser.add_argument("--out", type=Path, help="file to write to instead of standard output")
    parser.add_argument("--strict", action="store_true", help="exit code 2 if a trajectory could not be scored")
    return run(parser, argv, _run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which model reads which trajectories, and how."""
    parser.add_argument(
        "rm",
        help="a training workdir, a Hugging Face folder (*ForSequenceClassification, one label), or implicit:TUNED@BASE",
    )
    parser.add_argument(
        "trajectories",
        help="a file or folder in any layout of docs/data.md (ETO, AgentGym, TRL, our own, ...), several with commas, or hf:NAME",
    )
    parser.add_argument(
        "--aggregate", help="last, min, mean, sum, prod or max of the steps (default: the model's, else last)"
    )
    parser.add_argument(
        "--step-reward",
        choices=("accumulated", "single"),
        default="accumulated",
        help="of an implicit reward model: accumulated, the sum up to a step (default), or single, its own reward",
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a forward pass (default 8)")
    parser.add_argument("--row-length", type=int, default=1024, help="tokens of a row (default 1024)")
    parser.add_argument("--max-length", type=int, help="tokens of a trajectory to read (default: the model's limit)")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument(
        "--chat-template", default="", help="chatml, keep, or a file with the template, instead of the tokenizer's own"
    )
    parser.add_argument(
        "--trust-special-tokens",
        action="store_true",
        help="text in contents that looks like special tokens is read as such; by default it is plain text and begins no turn",
    )
    parser.add_argument(
        "--read-at", choices=READ_AT, help="where a step's value is read (default: what the model's folder says)"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="MODULE", help="your own environment of our records"
    )


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
    kept: str = "",
) -> int:
    """The exit code of a command with these options."""

    def checked() -> int:
        try:
            return work(parser.parse_args(argv))
        except UserError as error:
            raise UserError(_here(str(error))) from error

    return command.exit_code(checked, kept=kept)


class Scorer:
    """A reward model as a command line names it; it is opened when it is first needed.

    Attributes:
      specs: what a reader of our own records is told about their environments, by name.
      beta: of an implicit reward model, what log-ratios are multiplied by; None for another one.

    Raises:
      UserError: an option is wrong, or the place holds no reward model.
    """

    def __init__(self, args: argparse.Namespace):
        _check(args)
        place = places.read(args.rm)
        card = read_card(Path(place.place)) if isinstance(place, places.Model) else None
        self.aggregate = args.aggregate or (card.aggregate if card else "last")
        aggregation.check(self.aggregate)
        require_reward_model(place, card)
        self.specs = known_specs(card, args.env)
        if isinstance(place, places.Pair):
            self.specs = {name: told_as_policy(spec) for name, spec in self.specs.items()}
        self._place, self._card, self._args = place, card, args
        self.beta: float | None = None
        self.read_at: ReadAt = "end_of_turn"
        self.limit = 0

    def score(self, trajectories: Sequence[Conversation]) -> Iterator[Scored]:
        """`scoring.score` of the trajectories; sets `beta`, `read_at` and `limit` (tokens of a trajectory) when it begins."""
        args = self._args
        accelerator()
        loaded, ratio = load_reward_model(
            self._place, self._card, template=args.chat_template, step_reward=args.step_reward
        )
        chat = loaded.chat
        if args.trust_special_tokens:
            chat = dataclasses.replace(chat, trust_special_tokens=True)
        self.beta = ratio.beta if ratio else None
        self.read_at = "end_of_turn" if ratio else args.read_at or loaded.read_at
        self.limit = args.max_length or loaded.model.config.max_length
        how = {"row_length": args.row_length, "rows": args.rows, "max_length": args.max_length, "ratio": ratio}
        how |= {"read_at": self.read_at, "state": loaded.state, "dtype": jnp.dtype(args.dtype)}
        for one in score(loaded.model, chat, trajectories, aggregate=self.aggregate, **how):
            yield dataclasses.replace(one, error=_here(one.error))


def _check(args: argparse.Namespace) -> None:
    if args.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={args.dtype}: use float32 or bfloat16")
    for name in ("rows", "row_length", "max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)}: use a positive number")


def _run(args: argparse.Namespace) -> int:
    scorer = Scorer(args)
    # all of it, so that a bad line is found before the work
    trajectories = list(labels.conversations(args.trajectories, scorer.specs))
    done: list[Scored] = []
    began = time.monotonic()
    with _output(args.out) as out:
        for one in scorer.score(trajectories):
            done.append(one)
            print(json.dumps(one.to_json(), allow_nan=False), file=out, flush=True)
    if scorer.beta is not None:
        print(f"log-ratios are those of the tokens of every step, times {scorer.beta:g}", file=sys.stderr)
    else:
        print(f"values were read at {_PLACES[scorer.read_at]} (--read-at={scorer.read_at})", file=sys.stderr)
    _report(done, scorer.limit, time.monotonic() - began)
    failed = any(one.error for one in done)
    return 2 if failed and (args.strict or all(math.isnan(one.score) for one in done)) else 0


def load_reward_model(
    place: places.Place,
    card: Card | None,
    *,
    template: str = "",
    step_reward: str = "accumulated",
    dtype: str = "float32",
) -> "tuple[LoadedModel, LogRatio | None]":
    """The model at a place (which `require_reward_model` let pass), and for an implicit one what it is compared with.

    Args:
      card: of a workdir.
      template: a chat template to use instead of the tokenizer's own.
      step_reward: `accumulated` or `single`, of an implicit one.
      dtype: that matrices are read in.
    """
    from agentrm_jax.models.opening import load_model
    from agentrm_jax.models.pairs import load_pair

    how: dict[str, Any] = {"template": template, "dtype": jnp.dtype(dtype)}
    match place:
        case places.Pair(tuned, base):
            loaded, reference = load_pair(tuned, base, **how)
        case places.Model(where) if card and card.kind == "implicit":
            loaded, reference = load_pair(where, **how)
        case places.Model(where):
            return load_model(where, **how), None
        case _:
            raise AssertionError("checked before")
    beta = (card.beta if card else None) or 1.0
    return loaded, LogRatio(reference.model, beta, step_reward == "accumulated")


def _here(message: str) -> str:
    """A message of the library, with this command's name of an option."""
    return message.replace("--config.chat_template", "--chat-template").replace("another --workdir", "another --out")


def known_specs(card: Card | None, modules: Sequence[str]) -> Mapping[str, EnvSpec]:
    """Environments whose records can be read: shipped ones, the user's own, and those that the model's card knows."""
    specs = {spec.name: spec for spec in map(catalogue.find, [*catalogue.names(), *modules])}
    return reward_specs(card, specs)


def require_reward_model(place: places.Place, card: Card | None) -> None:
    """Refuses what is none, such as a policy, before anything large is read.

    Raises:
      UserError: it is none, or of a kind that cannot read trajectories by itself.
    """
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
