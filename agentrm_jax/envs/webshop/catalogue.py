"""WebShop's products and goals: read from the official files, or from records of the same form.

The original draws prices of products sold at a range, then the price caps of its goals, from Python's unseeded generator,
so they differ from run to run; here they are what it draws when that is seeded with `SEED` before it loads. It shuffles the
goals after seeding with the same number, so their order is the original's.
"""

import collections
import dataclasses
import functools
import itertools
import json
import lzma
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from agentrm_jax.envs.webshop.search import Index
from agentrm_jax.types import JSON, UserError

SEED = 233
SEARCH_DEPTH = 50  # products a search finds at most
PAGE_SIZE = 10  # products on a page of results
NO_LIMIT = 1_000_000.0
_PRICE_CAPS = [10.0 * i for i in range(1, 100)]
_ETO_GOALS = 12087  # goals of the full catalogue, to which ETO's session numbers refer


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """One product. `price` is in dollars; `price_tag` is what pages show; option names and values are lower case."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    query: str
    product_category: str
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    price: float
    price_tag: str


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """What is to be bought. `options` are values (goals written by people) or (name, value) pairs (synthetic goals)."""

    text: str
    product: Product
    attributes: tuple[str, ...]
    options: tuple[str | tuple[str, str], ...]
    price_upper: float


@dataclasses.dataclass(frozen=True)
class Shop:
    """A catalogue with its goals; `splits` holds goal numbers (the original's session numbers).

    A page of results shows `page_size` products.
    """

    name: str
    products: Sequence[Product]
    goals: Sequence[Goal]
    splits: Mapping[str, Sequence[int]]
    index: Index | None = None
    page_size: int = PAGE_SIZE

    @functools.cached_property
    def find(self) -> Callable[[str], tuple[Product, ...]]:
        """Products for a query, best first, at most `SEARCH_DEPTH`; the index is built on first use."""
        index = self.index or Index(map(document, self.products))

        @functools.lru_cache(4096)
        def find(query: str) -> tuple[Product, ...]:
            return tuple(self.products[i] for i, _ in index.search(query, SEARCH_DEPTH))

        return find


def document(product: Product) -> str:
    """The text of a product that search looks at."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    first_bullet = product.bullets[0] if product.bullets else ""
    return " ".join([product.title, product.description, first_bullet, options]).lower()


def read_shop(data: Path, setting: str = "", num_products: int | None = None) -> Shop:
    """The official shop in `data`/webshop.

    Args:
      data: folder with `webshop/items_shuffle_1000.json`, `items_ins_v2_1000.json` (setting `small`), or
        `items_shuffle.json`, `items_ins_v2.json`, `items_human_ins.json` (settings `eto`, `original`); each may be `.xz`.
      setting: `small`: 1000 products, synthetic goals, split by product. `original`: full catalogue, goals written by
        people; the first 500 are test, the next 1000 dev, the rest train. `eto`: the same goals, ETO's session numbers
        from `train_indices.json` and `test_indices.json`; sessions in both lists (there are 21) are test only.
        Empty: what the files allow, `eto` first.
      num_products: only the first so many products (`small`, `original`).

    Raises:
      UserError: a file is missing, no product is wanted by a goal, or the goals do not fit ETO's session numbers.
    """
    folder, setting = data / "webshop", setting or _setting_of(data)
    rng = random.Random(SEED)
    if setting == "small":
        attributes = _read(folder, "items_ins_v2_1000")
        products = products_of(_read(folder, "items_shuffle_1000")[:num_products], attributes, rng)
        goals = synthetic_goals(products, attributes, rng)
    else:
        products = products_of(_read(folder, "items_shuffle")[:num_products], _read(folder, "items_ins_v2"), rng)
        goals = human_goals(products, _read(folder, "items_human_ins"), rng)
    if not goals:
        raise UserError(
            f"no goal is about the {len(products)} products read from {folder}; raise env.options.num_products"
        )
    # Sessions are the same in `original` and `eto`, so that is one name; with other products they are others.
    name = ("small" if setting == "small" else "full") + (f"-{num_products}" if num_products else "")
    return Shop(
        name, products, goals, split_by_product(goals) if setting == "small" else _full_splits(folder, setting, goals)
    )


def _setting_of(data: Path) -> str:
    """The setting that the files allow."""
    if _find(data / "webshop", "items_shuffle") is None:
        return "small"
    return "eto" if _find(data / "webshop", "train_indices") else "original"


def shop_files(data: Path, setting: str) -> list[Path]:
    """The files that `read_shop` reads, as far as they are there."""
    stems = ["items_shuffle", "items_ins_v2", "items_human_ins", "train_indices", "test_indices"]
    if (setting or _setting_of(data)) == "small":
        stems = ["items_shuffle_1000", "items_ins_v2_1000"]
    found = (_find(data / "webshop", stem) for stem in stems)
    return [path for path in found if path is not None]


def _full_splits(folder: Path, setting: str, goals: Sequence[Goal]) -> dict[str, Sequence[int]]:
    if setting == "original":
        numbers = range(len(goals))
        return {"train": numbers[1500:], "dev": numbers[500:1500], "test": numbers[:500]}
    if len(goals) != _ETO_GOALS:
        raise UserError(
            f"{folder} gives {len(goals)} goals, ETO's session numbers need {_ETO_GOALS}: "
            "use the full official files, or setting 'original'"
        )
    test = _read(folder, "test_indices")
    train = [n for n in dict.fromkeys(_read(folder, "train_indices")) if n not in set(test)]
    dev = [n for n in range(500, 1500) if n not in {*test, *train}]
    return {"train": train, "dev": dev, "test": test}


def _find(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / f"{stem}.json", folder / f"{stem}.json.xz") if p.exists()), None)


def _read(folder: Path, stem: str) -> JSON:
    if (path := _find(folder, stem)) is None:
        raise UserError(
            f"WebShop's file {folder / stem}.json is missing; leave env.options.data empty for made-up products"
        )
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        try:
            return json.load(file)
        except (ValueError, lzma.LZMAError) as e:
            raise UserError(f"WebShop's file {path} is no JSON: {e}") from e


def products_of(
    items: Iterable[Mapping[str, JSON]], attributes: Mapping[str, JSON], rng: random.Random
) -> list[Product]:
    """Products from records as in `items_shuffle.json` and `items_ins_v2.json`; unusable and repeated ones are left out.

    `rng` is for the prices of products sold at a range.
    """
    products: dict[str, Product] = {}
    for item in items:
        asin = item["asin"]
        if asin == "nan" or len(asin) > 10 or asin in products:
            continue
        bullets = item.get("small_description") or ()
        prices = [float(re.sub(r"[^\d.]", "", price)) for price in (item.get("pricing") or "").split("$")[1:]][:2]
        products[asin] = Product(
            asin=asin,
            title=item["name"],
            description=item.get("full_description") or "",
            bullets=(bullets,) if isinstance(bullets, str) else tuple(bullets),
            query=item["query"].lower().strip(),
            product_category=item["product_category"],
            attributes=tuple(attributes.get(asin, {}).get("attributes", ("DUMMY_ATTR",))),
            options=_options(item.get("customization_options") or {}),
            price=rng.uniform(*prices) if len(prices) == 2 else (prices or [100.0])[0],
            price_tag=" to ".join(f"${price}" for price in prices or [100.0]),
        )
    return list(products.values())


def _options(records: Mapping[str, JSON]) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
        for name, contents in records.items()
        if contents is not None
    }


def synthetic_goals(products: Sequence[Product], attributes: Mapping[str, JSON], rng: random.Random) -> list[Goal]:
    """One goal for every combination of options of every product with an instruction, shuffled as the original does."""
    goals = []
    for product in products:
        record = attributes.get(product.asin, {})
        if not (instruction := record.get("instruction")):
            continue
        price_upper, price_text = _price_cap(product, rng)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            options = tuple(zip(names, values, strict=True))
            listed = ", and ".join(f"{name}: {value}" for name, value in options)
            text = instruction + (f" with {listed}" if listed else "") + price_text
            goals.append(Goal(text, product, tuple(record["instruction_attributes"]), options, price_upper))
    random.Random(SEED).shuffle(goals)
    return goals


def human_goals(
    products: Sequence[Product], instructions: Mapping[str, Sequence[Mapping[str, JSON]]], rng: random.Random
) -> list[Goal]:
    """Goals from records as in `items_human_ins.json`, in the original's order; those without attributes are left out."""
    goals = []
    for product in products:
        for record in instructions.get(product.asin, ()):
            if not record["instruction_attributes"]:
                continue
            price_upper, price_text = _price_cap(product, rng)
            text = record["instruction"].strip(".") + price_text
            wanted, options = tuple(record["instruction_attributes"]), tuple(record["instruction_options"])
            goals.append(Goal(text, product, wanted, options, price_upper))
    random.Random(SEED).shuffle(goals)
    return goals


def _price_cap(product: Product, rng: random.Random) -> tuple[float, str]:
    """The larger of two of the next four multiples of ten dollars above the price, and how the goal says it."""
    above = [cap for cap in _PRICE_CAPS if cap > product.price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    upper = max(rng.sample(above, 2))
    return upper, f", and price lower than {upper:.2f} dollars"


def split_by_product(goals: Sequence[Goal]) -> dict[str, Sequence[int]]:
    """Goal numbers by split, about 80/10/10, so that no product is wanted in two splits.

    Products are dealt out in the order of their number of goals, so that each split has its share of those with many.
    """
    counts = collections.Counter(goal.product.asin for goal in goals)
    ranked = sorted(counts, key=lambda asin: (-counts[asin], asin))
    split_of = {asin: {4: "test", 9: "dev"}.get(rank % 10, "train") for rank, asin in enumerate(ranked)}
    return {
        split: [number for number, goal in enumerate(goals) if split_of[goal.product.asin] == split]
        for split in ("train", "dev", "test")
    }
