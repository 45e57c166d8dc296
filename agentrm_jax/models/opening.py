"""Opening a model: the workdir of a training run, a Hugging Face folder, a GGUF file, or `smollm2` by name."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from agentrm_jax import parallel
from agentrm_jax.chat import KEEP, Chat, load_chat
from agentrm_jax.files import read_json
from agentrm_jax.models import checksums, weights
from agentrm_jax.models.card import NAME, Card, ReadAt, read_card
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import LoRA, merge, split
from agentrm_jax.models.pretrained import EXAMPLE_SCORES, open_pretrained
from agentrm_jax.models.transformer import VALUE_HEADS, Transformer
from agentrm_jax.prompts import Representation
from agentrm_jax.tokenizer import load_tokenizer
from agentrm_jax.types import JSON, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model on disk, its parameters not read yet.

    Attributes:
      card: of a model that was trained here; None for one from elsewhere.
      read_at: where a value head is read: as its card says; a classifier from elsewhere at the last token, as `transformers` pools it,
        but at the end of turn if the folder was exported here.
      has: shape and type of every parameter it has.
      load: (some of `has`, with shardings) -> (the parameters, step, meta).
      state: what a reward model reads of a conversation, as its card, or the folder that was exported here, says.
      graded: see `pretrained.Pretrained`; None where values are what the value head gives. Training starts from the value head.
    """

    config: ModelConfig
    chat: Chat
    card: Card | None
    read_at: ReadAt
    has: weights.Params
    load: Callable[[weights.Params], tuple[weights.Params, int, dict[str, JSON]]]
    state: Representation = "default"
    graded: Callable[[], ModelConfig] | None = None

    def read(self, wanted: weights.Params) -> weights.Params:
        """Those of the wanted parameters that the model has, in the wanted type, every shard read into its place."""
        return self.load(_common(wanted, self.has))[0]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model with what is needed to use it; `card`, `read_at` and `state` as in `OpenedModel`."""

    model: Transformer
    chat: Chat
    card: Card | None
    read_at: ReadAt
    step: int
    meta: dict[str, JSON]
    state: Representation = "default"


def open_model(place: Path | str, *, step: int | None = None, template: str = "", date: str = "") -> OpenedModel:
    """The model of a training workdir, of a Hugging Face folder or GGUF file, or `smollm2` by name.

    Of a workdir it is the best checkpoint where training kept it, else the latest readable one (or the one of `step`), parameters
    only. A one-label classifier that was trained elsewhere brings its value head. `template` is a chat template to use instead of
    the tokenizer's own; `date` (ISO) is what a template that reads the clock is told, by default the date on the model's card, else
    today's.

    Raises:
      UserError: there is no model, it cannot be read, or its tokenizer has ids for which the model has no embedding.
    """
    workdir = Path(place)
    card = read_card(workdir)
    if card is None:
        found = open_pretrained(str(place))
        causal = found.head == "CausalLM"
        has = weights.abstract_params(found.config, lm_head=causal, value_head=not causal)
        chat = load_chat(found.tokenizer(), template, date=date, rows=found.config.vocab_size)
        found.source()  # so that files that are no weights are named before anything else is done
        opened = OpenedModel(
            found.config,
            chat,
            None,
            "end_of_turn" if (workdir / EXAMPLE_SCORES).exists() else "last_token",
            has,
            lambda wanted: (weights.load_params(found.source(), found.config, wanted), 0, {}),
            _exported_state(workdir),
            found.graded,
        )
    else:
        folder = _checkpoints(workdir, step)
        rows = card.config.vocab_size
        template = template or (KEEP if card.template == KEEP else "")  # the tokenizer holds the text of any other
        chat = load_chat(load_tokenizer(workdir / "tokenizer"), template, date=date or card.date, rows=rows)
        if card.lora:
            opened = _open_adapted(workdir, card, chat, step)
        else:
            has = weights.abstract_params(card.config, **_heads(card))
            opened = OpenedModel(
                card.config, chat, card, card.read_at, has, lambda wanted: _load_checkpoint(folder, wanted, step)
            )
    _check_ids(place, chat, opened.config.vocab_size)
    return dataclasses.replace(opened, state=card.state) if card else opened


def _exported_state(folder: Path) -> Representation:
    """What a model that was exported here reads of a conversation. Raises: UserError: it is nothing that this program knows."""
    path = folder / EXAMPLE_SCORES
    said = read_json(path) if path.exists() else {}
    found = said.get("state", "default") if isinstance(said, dict) else "default"
    known: dict[str, Representation] = {name: name for name in get_args(Representation)}
    if found not in known:
        raise UserError(f'{path}: "state" is {found!r}; known are {", ".join(known)}')
    return known[found]


def _check_ids(place: Path | str, chat: Chat, rows: int) -> None:
    """Refuses a tokenizer that writes ids which the embedding has no row for.

    Special tokens that no conversation holds do not count: transformers adds some that the model never had.
    """
    special = set(chat.tokenizer.all_special_ids) - {chat.end_id}
    highest = max(i for i in chat.tokenizer.get_vocab().values() if i not in special)
    if highest >= rows:
        raise UserError(
            f"the tokenizer of {place} has ids up to {highest}, but the model's embedding has {rows} rows: they do not belong "
            "together; use the tokenizer that the model was trained with"
        )


def load_model(
    place: Path | str,
    *,
    step: int | None = None,
    template: str = "",
    date: str = "",
    mesh: Mesh | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> LoadedModel:
    """The same, ready for use: on one device of this process, or each shard read into its place on `mesh`.

    Matrices are turned into `dtype` as they are read; final norm and value head, which are small, stay float32.
    """
    opened = open_model(place, step=step, template=template, date=date)
    where: Any = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if mesh:
        where = nnx.to_pure_dict(parallel.shardings(nnx.state(weights.build(opened.config, opened.has)), mesh))
    else:
        where = jax.tree.map(lambda _: where, opened.has)
    here = {
        key: jax.tree.map(
            functools.partial(_wanted, dtype=jnp.float32 if key in _SMALL else dtype), opened.has[key], where[key]
        )
        for key in opened.has
    }
    params, number, meta = opened.load(here)
    built = weights.build(opened.graded() if opened.graded else opened.config, params)
    return LoadedModel(built, opened.chat, opened.card, opened.read_at, number, meta, opened.state)


_SMALL = ("final_norm_d", *VALUE_HEADS)


def _wanted(x: jax.ShapeDtypeStruct, where: jax.sharding.Sharding, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=where)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapters:
    """What a run with LoRA trained.

    Attributes:
      base: place or name of the model they belong to.
      params: `layers.adapters`, and the value heads of a reward model.
    """

    lora: LoRA
    base: str
    params: weights.Params
    step: int
    meta: dict[str, JSON]


def load_adapters(workdir: Path, *, step: int | None = None, sharding: jax.sharding.Sharding | None = None) -> Adapters:
    """Adapters and trained heads of a workdir, whole on every device of `sharding` (default: one device of this process).

    Raises:
      UserError: every parameter was trained there, or no checkpoint can be read.
    """
    card = read_card(workdir)
    if card is None or card.lora is None:
        raise UserError(f"{workdir} holds no adapters; they come from a run with --config.lora.rank")
    made = nnx.state(nnx.eval_shape(lambda: build_model(card, nnx.Rngs(0))), nnx.Param)
    where = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = nnx.to_pure_dict(split(made)[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    params, number, meta = _load_checkpoint(_checkpoints(workdir, step), wanted, step)
    return Adapters(card.lora, card.base, params, number, meta)


def _open_adapted(workdir: Path, card: Card, chat: Chat, step: int | None) -> OpenedModel:
    """A base with the adapters of `workdir` merged into it."""
    try:
        base = open_model(card.base)
    except UserError as error:
        raise UserError(
            f"{workdir} holds adapters for the model {card.base}, which cannot be opened ({error}); put it back, or "
            f'write its new place as "base" into {workdir / NAME}'
        ) from None
    if base.config != card.config:
        raise UserError(f"{workdir} holds adapters for another model than the one now in {card.base}")

    def load(wanted: weights.Params) -> tuple[weights.Params, int, dict[str, JSON]]:
        like = wanted["embed_vd"].sharding
        whole = NamedSharding(like.mesh, PartitionSpec()) if isinstance(like, NamedSharding) else like
        adapters = load_adapters(workdir, step=step, sharding=whole)
        trained = {k: v for k, v in adapters.params.items() if k in wanted}
        params = base.read({k: v for k, v in wanted.items() if k == "layers" or k not in trained})
        return merge(params, trained, adapters.lora), adapters.step, adapters.meta

    has = weights.abstract_params(card.config, **_heads(card))
    return OpenedModel(card.config, chat, card, card.read_at, has, load)


def adapter_base(place: str, base: OpenedModel, *, lm_head: bool) -> str:
    """What a card says of the model that adapters belong to: its absolute path, or its name.

    Raises:
      UserError: the base lacks the language-model head that a policy needs.
    """
    if lm_head and not _is_policy(base):
        raise UserError(
            f"{place} has no language-model head, and adapters bring none; name a policy with --config.init"
        )
    return _lasting(place)


def policy_place(place: str, base: OpenedModel) -> str:
    """What a card says of the policy that a model is compared with: its absolute path, or its name.

    Raises:
      UserError: it is no policy.
    """
    if not _is_policy(base) or (base.card and not base.card.lm_head):
        raise UserError(f"{place} has no language-model head, so it is no policy; name one with --config.init")
    return _lasting(place)


def _is_policy(base: OpenedModel) -> bool:
    return base.config.tie_embeddings or "head_dv" in base.has


def _lasting(place: str) -> str:
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else place


def _checkpoints(workdir: Path, step: int | None) -> Path:
    """The folder that holds a workdir's model: the best one where training kept it (`--config.eval_metric`), else the latest.

    Raises:
      UserError: there is none.
    """
    best, all_ = (workdir / "best").resolve(), (workdir / "checkpoints").resolve()
    if not all_.is_dir():
        raise UserError(f"{workdir} holds no checkpoints; train it with train.py")
    kept = step is None and best.is_dir() and any(p.name.isdigit() for p in best.iterdir())
    return best if kept else all_


def _load_checkpoint(
    folder: Path, wanted: weights.Params, step: int | None
) -> tuple[weights.Params, int, dict[str, JSON]]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # a reward model leaves the policy's head where it is
    with context, ocp.training.Checkpointer(folder) as checkpointer:
        steps = [c.step for c in checkpointer.checkpoints][::-1] if step is None else [step]
        faults: dict[int, str] = {}
        for number in steps:
            if fault := checksums.find_damage(folder / str(number), ("params", "meta")):
                faults[number] = fault
                continue
            try:
                found = checkpointer.load_checkpointables(number, {"params": wanted, "meta": None})
            except Exception as error:  # whatever a damaged file makes Orbax raise
                faults[number] = checksums.one_line(error)
                continue
            for damaged, fault in faults.items():
                logging.warning(
                    "checkpoint %s cannot be read (%s); using step %d", folder / str(damaged), fault, number
                )
            return found["params"], number, found["meta"] or {}
    raise UserError(f"no checkpoint in {folder} can be read" + (f" ({faults[steps[0]]})" if faults else ""))


def _common(wanted: weights.Params, has: weights.Params) -> weights.Params:
    """The entries of `wanted` that `has` has too."""
    return {
        key: _common(value, has[key]) if isinstance(value, dict) else value
        for key, value in wanted.items()
        if key in has
    }


def build_model(card: Card, rngs: nnx.Rngs, **options: Any) -> Transformer:
    """A model with the heads, and the adapters, that its card names."""
    return Transformer(card.config, rngs=rngs, lora=card.lora, **_heads(card), **options)


def _heads(card: Card) -> dict[str, Any]:
    return {"lm_head": card.lm_head, "value_head": card.value_head, "heads": card.heads}
