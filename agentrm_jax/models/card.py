"""The card of a trained model, `model.json` in its workdir: what it is, what it starts from, and what it was told in training."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import LoRA
from agentrm_jax.prompts import OBSERVATION, Reader, Representation, instructions
from agentrm_jax.types import JSON, Environment, Task, UserError

VERSION = 2
NAME = "model.json"


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a model was told about one environment in training.

    Attributes:
      source: where the texts are from: `ours`, or the folder of `config.env.prompts`.
      instructions: every text there was, without duplicates, in order of first use (several where tasks differ in theirs).
    """

    source: str
    instructions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the instructions, for messages and comparisons."""
        return hashlib.blake2b("\0".join(self.instructions).encode(), digest_size=8).hexdigest()


ReadAt = Literal["end_of_turn", "last_token"]
READ_AT: tuple[ReadAt, ...] = ("end_of_turn", "last_token")


@dataclasses.dataclass(frozen=True)
class Card:
    """A trained model.

    Attributes:
      kind: `policy`, or the kind of reward model (`explicit`, `implicit`).
      loss: the loss it was trained with.
      config: sizes of the transformer.
      lm_head, value_head: which output maps it has.
      lora: its adapters, if it was trained with some; then `base` is the model they belong to.
      base: place or name of the model that training started from; empty if from nothing.
      template: the chat template that was asked for instead of the tokenizer's own (`chatml`, a file); the tokenizer beside the
        card holds its text.
      date: the day that a template which reads the clock is told, ISO format; empty for other templates.
      aggregate: how the scores of a trajectory's steps become its score.
      read_at: where a value is read: at the end-of-turn token of the last turn, or at the last token of the rendered conversation.
      heads: value heads, if it has some.
      state: what a reward model reads of a state (`prompts.Representation`).
      texts: environment name -> what it was told.
      beta: of an implicit reward model: what log-ratios are multiplied by.
      reference: of an implicit reward model: place or name of the model that its log-probabilities are compared with.
    """

    kind: str
    loss: str
    config: ModelConfig
    lm_head: bool
    value_head: bool
    lora: LoRA | None = None
    base: str = ""
    template: str = ""
    date: str = ""
    aggregate: str = "last"
    read_at: ReadAt = "end_of_turn"
    heads: int = 1
    state: Representation = "default"
    texts: Mapping[str, Texts] = dataclasses.field(default_factory=dict)
    beta: float | None = None
    reference: str = ""

    def to_json(self) -> dict[str, JSON]:
        """The content of `model.json`."""
        row: dict[str, JSON] = {"schema_version": VERSION}
        for field in dataclasses.fields(self):
            row[field.name] = getattr(self, field.name)
        row["config"] = self.config.to_json()
        row["lora"] = self.lora.to_json() if self.lora else None
        row["texts"] = {name: dataclasses.asdict(texts) for name, texts in self.texts.items()}
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> "Card":
        """Inverse of `to_json`. Cards of version 1 (without `schema_version`) lack texts, template and aggregate."""
        if "schema_version" not in row:
            row = {"kind": "explicit" if row["value_head"] else "policy", "loss": ""} | dict(row)
        fields = {f.name: row[f.name] for f in dataclasses.fields(cls) if f.name in row}
        fields["config"] = ModelConfig.from_json(row["config"])
        fields["lora"] = LoRA.from_json(row["lora"]) if row.get("lora") else None
        fields["texts"] = {
            name: Texts(str(t["source"]), tuple(map(str, t["instructions"])))
            for name, t in row.get("texts", {}).items()
        }
        return cls(**fields)


def read_card(workdir: Path) -> Card | None:
    """The card of a training workdir; None if the folder has none.

    Raises:
      UserError: the card cannot be read, or is of a version this program does not know.
    """
    path = workdir / NAME
    if not path.exists():
        return None
    try:
        row = json.loads(path.read_text())
        version = row.get("schema_version", 1)
        if version not in (1, VERSION):
            raise UserError(f"{path} has schema version {version}; this program reads up to {VERSION}: update it")
        return Card.from_json(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no card of a model ({type(error).__name__}: {error}); restore it, or train the model again"
        ) from error


def texts_of(
    specs: Mapping[str, EnvSpec], tasks: Sequence[Task], prompts: str, *, reader: Reader, examples: int = 0
) -> dict[str, Texts]:
    """What a reader is told in a run about the environments of `tasks`; `prompts` is the folder the texts come from, if any."""
    found = {}
    for name in dict.fromkeys(task.env for task in tasks):
        own = [task for task in tasks if task.env == name]
        found[name] = Texts(prompts or "ours", instructions(specs[name], own, reader=reader, examples=examples))
    return found


def card_of(model: object) -> Card | None:
    """The card of an opened policy or reward model; None for one that has none (from elsewhere, behind a server, a user's own)."""
    return getattr(model, "card", None)


def differences(card: Card | None, told: Mapping[str, Texts]) -> list[str]:
    """One line for every environment that this run tells other texts about than training did; new environments do not count."""
    lines = []
    for name, now in told.items():
        before = card.texts.get(name) if card else None
        if before is not None and set(now.instructions) - set(before.instructions):
            lines.append(
                f"{name}: trained with the texts of {before.source} ({before.digest}), this run has those of {now.source} "
                f"({now.digest})"
            )
    return lines


def reward_specs(card: Card | None, specs: Mapping[str, EnvSpec]) -> dict[str, EnvSpec]:
    """`specs` with the words that a reward model was trained with, also for environments that are not among them.

    Where the texts differ from task to task (several instructions), an environment's own are used.
    """
    told = dict(specs)
    for name, texts in card.texts.items() if card else ():
        if len(texts.instructions) == 1:
            words = texts.instructions[0].removesuffix(f"\n\n{OBSERVATION}")
            base = told.get(name) or EnvSpec(name, _not_here, _no_tasks, instruction="", rm_instruction="")
            told[name] = dataclasses.replace(base, rm_instruction=words, told=None)
    return told


def _not_here(options: Options) -> Environment:
    raise UserError("this environment is known from a reward model's card only; its module is needed to play it")


def _no_tasks(split: str, options: Options) -> list[Task]:
    return []
