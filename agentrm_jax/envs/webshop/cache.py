"""A large catalogue, prepared once: its products in a file that is read as they are needed, its search index mapped into memory.

Reading and indexing a million products takes many minutes and gigabytes, which no worker process could be waited for. So it is done
when the tasks are first listed, and kept in `$XDG_CACHE_HOME/agentrm_jax/webshop` (several GB) until the source files change. A cache
is a folder of JSON and npy files, nothing of which can run anything; one that was made otherwise, or is damaged, is made again.
"""

import dataclasses
import functools
import hashlib
import json
import mmap
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from agentrm_jax.envs.folders import cache_folder
from agentrm_jax.envs.webshop.catalogue import Goal, Product, Shop, document
from agentrm_jax.envs.webshop.search import Index
from agentrm_jax.types import JSON, UserError

LARGE = 50_000_000  # bytes of source files from which on a catalogue is prepared
_LAYOUT = 2  # layout 1 was pickled


class StoredProducts(Sequence[Product]):
    """The products of a prepared catalogue, each read when it is asked for; the same object for the same number for a while."""

    def __init__(self, folder: Path):
        self._offsets = np.load(folder / "offsets.npy")
        with (folder / "products.jsonl").open("rb") as file:
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
        return _product(json.loads(self._bytes[self._offsets[index] : self._offsets[index + 1]]))


def prepared(sources: Sequence[Path], chosen: Sequence[object], read: Callable[[], Shop]) -> Shop:
    """The shop that `read` returns, from the cache if it was prepared before.

    Args:
      sources: the files it is read from.
      chosen: what else it depends on.

    Raises:
      UserError: the cache folder cannot be written.
    """
    base = cache_folder("webshop")
    home, why = base / _key(_LAYOUT, sources, chosen), ""
    older = [path for layout in range(1, _LAYOUT) if (path := base / _key(layout, sources, chosen)).is_dir()]
    if home.is_dir():
        try:
            return _opened(home)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            why = f" again, since what is there is damaged ({error})"
    elif older:
        why = " again, since it was made by an older version"
    print(f"webshop: preparing the catalogue of {sources[0].parent} in {home}{why}, once", file=sys.stderr, flush=True)
    try:
        for path in [home, *older]:
            shutil.rmtree(path, ignore_errors=True)
        _prepare(read(), home)
    except OSError as error:
        raise UserError(
            f"WebShop's catalogue cannot be prepared in {base} ({error}); point XDG_CACHE_HOME elsewhere"
        ) from error
    return _opened(home)


def _key(layout: int, sources: Sequence[Path], chosen: Sequence[object]) -> str:
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    return hashlib.blake2b(repr((layout, stamps, list(chosen))).encode(), digest_size=12).hexdigest()


def _opened(home: Path) -> Shop:
    """The shop in `home`. Raises ValueError, KeyError, TypeError, IndexError or OSError if a file is damaged or missing."""
    stored = json.loads((home / "shop.json").read_text())
    for name, size in stored["bytes"].items():
        if (home / name).stat().st_size != size:
            raise ValueError(f"{name} has {(home / name).stat().st_size} bytes, not {size}")
    products = StoredProducts(home)
    goals = [_goal(row, products) for row in stored["goals"]]
    splits = {split: range(*s["range"]) if "range" in s else s["numbers"] for split, s in stored["splits"].items()}
    return Shop(stored["name"], products, goals, splits, Index.load(home))


def _prepare(shop: Shop, home: Path) -> None:
    """Writes the shop to a folder beside and renames it, so that several processes may do the same at once."""
    home.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=home.parent, prefix=".making-"))
    try:
        ends, numbers = [0], {}
        with (work / "products.jsonl").open("wb") as file:
            for number, product in enumerate(shop.products):
                numbers[product.asin] = number
                ends.append(ends[-1] + file.write(json.dumps(dataclasses.astuple(product)).encode() + b"\n"))
        np.save(work / "offsets.npy", np.asarray(ends, np.int64))
        Index(_documents(shop)).save(work)
        goals = [(g.text, numbers[g.product.asin], g.attributes, g.options, g.price_upper) for g in shop.goals]
        splits = {
            split: {"range": [s.start, s.stop, s.step]} if isinstance(s, range) else {"numbers": list(s)}
            for split, s in shop.splits.items()
        }
        sizes = {path.name: path.stat().st_size for path in work.iterdir()}
        (work / "shop.json").write_text(
            json.dumps({"name": shop.name, "goals": goals, "splits": splits, "bytes": sizes})
        )
        try:
            work.rename(home)
        except OSError:
            if not home.is_dir():  # nobody else was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _product(row: JSON) -> Product:
    asin, title, description, bullets, query, category, attributes, options, price, price_tag = row
    options = {name: tuple(values) for name, values in options.items()}
    return Product(
        asin, title, description, tuple(bullets), query, category, tuple(attributes), options, price, price_tag
    )


def _goal(row: JSON, products: Sequence[Product]) -> Goal:
    text, number, attributes, options, price_upper = row
    chosen = tuple(tuple(option) if isinstance(option, list) else option for option in options)
    return Goal(text, products[number], tuple(attributes), chosen, price_upper)


def _documents(shop: Shop) -> Iterator[str]:
    return map(document, shop.products)


def is_large(sources: Sequence[Path]) -> bool:
    """Whether a catalogue of these files is worth preparing."""
    return sum(path.stat().st_size for path in sources) >= LARGE
