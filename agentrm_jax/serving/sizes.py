"""Shapes of an engine that serves: as long as the model reads, as wide as a share of memory allows."""

from typing import Any

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.types import UserError

_POOL = 2 << 30  # bytes of keys and values that a model's cache may have unless its size is asked for
_ROWS = 1 << 30  # bytes of keys and values of the rows of a decode batch
_MOST_SLOTS, _MOST_ROWS = 262_144, 32
_LONGEST = 8192  # tokens of a path, unless more are asked for
SAMPLES = 4  # of one path that are decoded side by side


def engine_sizes(
    config: ModelConfig, *, dtype: str, max_length: int | None = None, cache_tokens: int | None = None
) -> dict[str, Any]:
    """What `engine.make_engine` takes as a config's `engine` group.

    Args:
      max_length: tokens of the longest path, prompt and answer together; None for the model's limit, at most 8192.
      cache_tokens: slots of the cache; None for what fits 2 GiB, and at least four of the longest paths.

    Raises:
      UserError: the model does not read that much, or the cache does not hold one path.
    """
    longest = max_length or min(config.max_length, _LONGEST)
    if not 1 <= longest <= config.max_length:
        raise UserError(f"--max-length={longest}: the model reads from 1 to {config.max_length} tokens")
    width = 2 if dtype == "bfloat16" else 4
    slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim * width
    slots = cache_tokens or max(4 * longest, min(_POOL // slot, _MOST_SLOTS))
    if slots < longest:
        raise UserError(f"--cache-tokens={slots} cannot hold one path of {longest} tokens (--max-length)")
    rows = max(2, min(_MOST_ROWS, _ROWS // (slot * longest)))
    context, size = [], 256
    while size < longest:
        context.append(size)
        size *= 2
    return {
        "dtype": dtype,
        "cache_tokens": slots,
        "rows": tuple(sorted({max(1, rows // 4), rows})),
        "batch_tokens": (512, 2048),
        "new_tokens": (64, 512),
        "context": (*context, longest),
        "samples": SAMPLES,
        "max_new": min(128, max(1, longest // 2)),
    }
