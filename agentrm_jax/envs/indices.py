"""Tasks that are named by numbers alone: option values such as `0-99,120` or `{"test": "0-99", "train": [200, 201]}`."""

from collections.abc import Mapping

from agentrm_jax.types import JSON, UserError


def of_split(value: JSON, split: str, *, where: str) -> list[int]:
    """The numbers that an option names for a split, each once; without names of splits they are those of `test`.

    Args:
      value: a count, numbers and ranges in a text, a list of either, or one of these for each split.
      where: environment and option, for the errors, e.g. `agentgym: option indices`.

    Raises:
      UserError: nothing is named for this split, or it cannot be read.
    """
    if isinstance(value, Mapping):
        value = value.get(split)
    elif split != "test":
        value = None
    if value is None:
        raise UserError(f'{where} names no tasks of split {split!r}; set it like {{"{split}": "0-99"}}')
    if isinstance(value, int) and not isinstance(value, bool):
        return list(range(value))
    try:
        parts = value.split(",") if isinstance(value, str) else value
        return list(dict.fromkeys(n for part in parts for n in _span(str(part))))
    except (ValueError, TypeError) as e:
        raise UserError(f"{where} cannot be read ({e}); write numbers, or ranges such as 0-99") from e


def _span(part: str) -> range:
    first, dash, last = part.strip().partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first), int(first) + 1)
