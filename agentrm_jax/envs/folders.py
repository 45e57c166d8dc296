"""Folders that environments write to: one of the user's for what takes long to make, and private ones of single engines.

A private folder lies in the temporary folder of its process and goes with its engine. Worker processes are given a temporary folder
of their own, which the pool removes when the process has ended, however it did; a worker whose pool was killed removes it itself.
"""

import os
import shutil
import tempfile
import weakref
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/agentrm_jax/NAME`, below `~/.cache` where that is not set. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "agentrm_jax" / name


class PrivateFolder:
    """An empty folder that nobody else uses; removed by `close`, at the latest when the interpreter exits.

    Attributes:
      path: absolute.
    """

    def __init__(self, name: str):
        self.path = Path(tempfile.mkdtemp(prefix=f"agentrm-{name}-"))
        self.close = weakref.finalize(self, shutil.rmtree, self.path, True)

    def empty(self) -> None:
        """Removes what was written into it."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    os.unlink(entry)
