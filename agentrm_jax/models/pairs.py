"""Two models of the same tokens, one of which was tuned from the other: what an implicit reward model is made of."""

from pathlib import Path
from typing import Any

from agentrm_jax.models.card import NAME, read_card
from agentrm_jax.models.opening import LoadedModel, load_model
from agentrm_jax.models.transformer import value_map
from agentrm_jax.types import UserError


def load_pair(tuned: Path | str, reference: str = "", **how: Any) -> tuple[LoadedModel, LoadedModel]:
    """A tuned policy and its reference, by default the one that its card names; `how` as in `load_model`.

    Raises:
      UserError: one cannot be opened or is no policy, no reference is named, or their tokens differ.
    """
    named = reference
    if not named:
        card = read_card(Path(tuned))
        if card is None or not card.reference:
            raise UserError(
                f"{tuned} names no reference; write implicit:{tuned}@BASE, or train with configs/implicit.py"
            )
        named = card.reference
    first = load_model(tuned, **how)
    try:
        second = load_model(named, **how)
    except UserError as error:
        if reference:
            raise
        raise UserError(
            f"{tuned} is compared with the model {named}, which cannot be opened ({error}); put it back, or write its new place "
            f'as "reference" into {Path(tuned) / NAME}'
        ) from error
    for place, loaded in ((tuned, first), (named, second)):
        if value_map(loaded.model) is not None:
            raise UserError(f"{place} holds a model with a value head, no policy; log-ratios are those of two policies")
    if first.chat.tokenizer.get_vocab() != second.chat.tokenizer.get_vocab():
        raise UserError(f"{tuned} and {named} have different tokens, so their log-probabilities cannot be compared")
    return first, second
