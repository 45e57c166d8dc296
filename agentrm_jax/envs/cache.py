"""Where environments keep what takes long to make."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/agentrm_jax/NAME`, below `~/.cache` where that is not set. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "agentrm_jax" / name
