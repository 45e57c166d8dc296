"""Classification heads from elsewhere as a value head: one label with a bias, or two labels of which one means good.

Of two labels, softmax of the good one is the sigmoid of the difference of both: one linear map, a bias, and a sigmoid.
"""

from collections.abc import Mapping

import numpy as np

from agentrm_jax.models.weights import Source
from agentrm_jax.types import JSON, UserError

GOOD = {"good", "correct", "positive", "pos", "right", "true", "yes", "+", "1", "label_1"}
BAD = {"bad", "incorrect", "negative", "neg", "wrong", "false", "no", "-", "0", "label_0", "-1"}
_WEIGHT, _BIAS = "score.weight", "score.bias"


def good_label(fields: Mapping[str, JSON], origin: str = "config.json") -> int:
    """Which of two labels means good: as their names say, else the second, as TRL trains process reward models.

    Raises:
      UserError: the names say something else.
    """
    names = {str(k): str(v).strip().lower() for k, v in (fields.get("id2label") or {}).items()}
    if not names:
        return 1
    kinds = [[names.get(str(i)) in known for i in range(2)] for known in (GOOD, BAD)]
    found = [i for i in range(2) if kinds[0][i] and kinds[1][1 - i]]
    if not found:
        raise UserError(
            f"{origin}: which of the labels {', '.join(names.values())} means good is not known; name them good and bad in id2label"
        )
    return found[0]


def value_source(source: Source, labels: int, good: int = 1) -> Source:
    """The tensors with one value head in the place of a classifier: the difference of two labels; the bias is left out."""
    shapes = {name: shape for name, shape in source.shapes.items() if name != _BIAS}
    if labels == 1 or _WEIGHT not in shapes:
        return Source(source.origin, shapes, source.read)
    if shapes[_WEIGHT][0] != 2:
        raise UserError(f"{source.origin}: {_WEIGHT} has shape {shapes[_WEIGHT]}, its configuration says 2 labels")
    shapes[_WEIGHT] = (1, *shapes[_WEIGHT][1:])

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        if name != _WEIGHT:
            return source.read(name, index)
        rows = [source.read(name, (slice(i, i + 1), *index[1:])).astype(np.float32) for i in (good, 1 - good)]
        return rows[0] - rows[1]

    return Source(source.origin, shapes, read)


def value_bias(source: Source, labels: int, good: int = 1) -> float:
    """What belongs beside the output of that value head; 0 where a classifier has no bias."""
    if _BIAS not in source.shapes:
        return 0.0
    bias = source.read(_BIAS, (slice(0, labels),)).astype(np.float32)
    return float(bias[0] if labels == 1 else bias[good] - bias[1 - good])
