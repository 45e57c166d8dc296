"""A large catalogue, prepared once: its products in a file that is read as they are needed, its search index mapped into memory.

Reading and indexing a million products takes many minutes and gigabytes, which no worker process could be waited for. So it is done
when the tasks are first listed, and kept in `$XDG_CACHE_HOME/agentrm_jax/webshop` (several GB) until the source files change.
"""

import functools
import hashlib
import mmap
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from agentrm_jax.envs.folders import cache_folder
from agentrm_jax.envs.webshop.catalogue import Product, Shop, document
from agentrm_jax.envs.webshop.search import Index
from agentrm_jax.types import UserError

LARGE = 50_000_000  # bytes of source files from which on a catalogue is prepared
_LAYOUT = 1


class StoredProducts(Sequence[Product]):
    """The products of a prepared catalogue, each read when it is asked for; the same object for the same number for a while."""

    def __init__(self, folder: Path):
        self._offsets = np.load(folder / "offsets.npy")
        with (folder / "products.pickles").open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read = functools.lru_cache(4096)(self._load)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Product: ...
    @overload
    def __getitem__(self, index: slice) -> list[Product]: ...
    def __getitem__(self, index: int | slice) -> Product | list[Product]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def _load(self, index: int) -> Product:
        product: Product = pickle.loads(self._bytes[self._offsets[index] : self._offsets[index + 1]])
        return product


def prepared(sources: Sequence[Path], chosen: Sequence[object], read: Callable[[], Shop]) -> Shop:
    """The shop that `read` returns, from the cache if it was prepared before.

    Args:
      sources: the files it is read from.
      chosen: what else it depends on.

    Raises:
      UserError: the cache folder cannot be written.
    """
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    key = hashlib.blake2b(repr((_LAYOUT, stamps, list(chosen))).encode(), digest_size=12).hexdigest()
    base = cache_folder("webshop")
    home = base / key
    if not home.is_dir():
        print(f"webshop: preparing the catalogue of {sources[0].parent} in {home}, once", file=sys.stderr, flush=True)
        try:
            _prepare(read(), home)
        except OSError as error:
            raise UserError(
                f"WebShop's catalogue cannot be prepared in {base} ({error}); point XDG_CACHE_HOME elsewhere"
            ) from error
    name, goals, splits = pickle.loads((home / "shop.pickle").read_bytes())
    return Shop(name, StoredProducts(home), goals, splits, Index.load(home))


def _prepare(shop: Shop, home: Path) -> None:
    """Writes the shop to a folder beside and renames it, so that several processes may do the same at once."""
    home.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=home.parent, prefix=".making-"))
    try:
        ends = [0]
        with (work / "products.pickles").open("wb") as file:
            for product in shop.products:
                ends.append(ends[-1] + file.write(pickle.dumps(product, 5)))
        np.save(work / "offsets.npy", np.asarray(ends, np.int64))
        Index(_documents(shop)).save(work)
        (work / "shop.pickle").write_bytes(pickle.dumps((shop.name, shop.goals, dict(shop.splits)), 5))
        try:
            work.rename(home)
        except OSError:
            if not home.is_dir():  # nobody else was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _documents(shop: Shop) -> Iterator[str]:
    return map(document, shop.products)


def is_large(sources: Sequence[Path]) -> bool:
    """Whether a catalogue of these files is worth preparing."""
    return sum(path.stat().st_size for path in sources) >= LARGE
