"""A batch as a person reads it: its text, and in it what is learned."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

LEGEND = "«...» is learned token by token (2x: with twice the weight); <value 0.5> is learned at the end of what stands before it"
_GROUP = ", group {}"


def shown(batch: Mapping[str, np.ndarray], decode: Callable[[Sequence[int]], str], fields: Collection[str]) -> str:
    """All rows of a packed batch, arrays [b, t], as text.

    Args:
      decode: ids as text, special tokens included.
      fields: arrays that the objective reads: of `loss_weight` or `action` the tokens are marked, of `value` the targets.
    """
    marked = next((name for name in ("loss_weight", "action") if name in fields), "")
    lines = [f"first batch, {len(batch['tokens'])} rows: {LEGEND}"]
    for b in range(len(batch["tokens"])):
        row = {name: x[b] for name, x in batch.items()}
        weights = row[marked] if marked else np.zeros(len(row["tokens"]))
        lines.append(f"--- row {b + 1}: {_counted(row, weights, fields)}")
        lines += _row(row, weights, decode, values="value" in fields, groups="group" in fields)
    return "\n".join(lines)


def _counted(row: Mapping[str, np.ndarray], weights: np.ndarray, fields: Collection[str]) -> str:
    parts = [f"{_used(row)} tokens"]
    if learned := int((weights > 0).sum()):
        parts.append(f"{learned} of them learned")
    if "value" in fields:
        parts.append(f"{int((row['value_weight'] > 0).sum())} values")
    return ", ".join(parts)


def _used(row: Mapping[str, np.ndarray]) -> int:
    """Tokens before the padding: from there on every token is a tree of its own."""
    index = np.arange(len(row["tokens"]))
    real = (row["previous"] >= 0) | (row["subtree_end"] > index + 1)
    return int(np.flatnonzero(real)[-1]) + 1 if real.any() else 0


def _row(
    row: Mapping[str, np.ndarray],
    weights: np.ndarray,
    decode: Callable[[Sequence[int]], str],
    *,
    values: bool,
    groups: bool,
) -> Iterator[str]:
    """A tree begins a line, and so does a branch, which says after which token it goes on."""
    text = ""
    for begin, end in _pieces(row, weights, values):
        before = int(row["previous"][begin])
        if before != begin - 1 or before < 0:
            if text:
                yield text
            text = "tree: " if before < 0 else f"  branch after token {before}: "
        weight = float(weights[begin])
        piece = decode(row["tokens"][begin:end].tolist())
        text += f"«{'' if weight == 1 else f'{weight:g}x '}{piece}»" if weight > 0 else piece
        if values and row["value_weight"][end - 1] > 0:
            group = _GROUP.format(row["group"][end - 1]) if groups and row["group"][end - 1] >= 0 else ""
            text += f"<value {row['value'][end - 1]:g}{group}>"
    if text:
        yield text


def _pieces(row: Mapping[str, np.ndarray], weights: np.ndarray, values: bool) -> Iterator[tuple[int, int]]:
    """Runs of tokens that follow one another on a path, have one weight, and have a target at most at their end."""
    count = _used(row)
    begin = 0
    for i in range(1, count + 1):
        if (
            i == count
            or row["previous"][i] != i - 1
            or weights[i] != weights[i - 1]
            or (values and row["value_weight"][i - 1] > 0)
        ):
            yield begin, i
            begin = i
