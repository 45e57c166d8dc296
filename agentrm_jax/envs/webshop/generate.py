"""A made-up WebShop: seeded products and wishes, in the official files' form, so that it needs no download.

Each kind of product comes in many makes that differ in attributes, options and price. Every third one is a near twin of the
one before it, with one attribute exchanged and another price, so that the first hit of a search is often not what was asked for.
"""

import random
import string
from collections.abc import Mapping
from typing import Any

from agentrm_jax.envs.webshop.catalogue import Shop, human_goals, products_of, split_by_product
from agentrm_jax.envs.webshop.wares import BULLETS, OPTION_PHRASES, OPTIONS, WARES, WISHES, Ware
from agentrm_jax.types import UserError

NUM_PRODUCTS = 800
CODE_LENGTH = 10
WISHES_PER_PRODUCT = 3
_SYLLABLES = (
    "bal",
    "cor",
    "dan",
    "fel",
    "gro",
    "hal",
    "jor",
    "kel",
    "lum",
    "mar",
    "nor",
    "pel",
    "quin",
    "ros",
    "sol",
    "tam",
    "ver",
    "wil",
)
_ENDINGS = ("ano", "bay", "dale", "eda", "field", "ico", "more", "nell", "ora", "ston", "vik", "way")
_IN_TITLE = 2  # attributes a title tells; bullets tell them all

Records = tuple[list[dict[str, Any]], dict[str, Any], dict[str, list[dict[str, Any]]]]


def generate_shop(
    num_products: int | None = None,
    seed: int = 0,
    code_length: int = CODE_LENGTH,
    kinds: int = len(WARES),
    wishes: int = WISHES_PER_PRODUCT,
) -> Shop:
    """A shop of `num_products` (800) products with goals, split by product; a function of its arguments only.

    Args:
      code_length: characters of a product's code.
      kinds: kinds of products it sells, the first so many of `WARES`.
      wishes: goals of a product.

    Raises:
      UserError: codes so short are too few for the products, or there are fewer kinds.
    """
    num_products = num_products or NUM_PRODUCTS
    items, attributes, instructions = generate_records(num_products, seed, code_length, kinds, wishes)
    rng = random.Random(f"webshop prices {seed}")
    products = products_of(items, attributes, rng)
    goals = human_goals(products, instructions, rng)
    name = f"generated-{num_products}-{seed}"
    if (code_length, kinds, wishes) != (CODE_LENGTH, len(WARES), WISHES_PER_PRODUCT):
        name += f"-{code_length}-{kinds}-{wishes}"
    return Shop(name, products, goals, split_by_product(goals))


def generate_records(
    num_products: int,
    seed: int,
    code_length: int = CODE_LENGTH,
    kinds: int = len(WARES),
    wishes: int = WISHES_PER_PRODUCT,
) -> Records:
    """What `items_shuffle.json`, `items_ins_v2.json` and `items_human_ins.json` would hold."""
    rng = random.Random(f"webshop {seed}")
    letters, drawn = string.ascii_uppercase + string.digits, max(code_length - len("B0"), 0)
    if not code_length <= CODE_LENGTH or len(letters) ** drawn < 1.5 * num_products:
        raise UserError(f"WebShop's code_length is {code_length}; {num_products} products need more, 10 at most")
    if kinds > len(WARES):
        raise UserError(f"WebShop's kinds is {kinds}; the made-up shop has {len(WARES)} kinds of products")
    wares = WARES[:kinds]
    asins: dict[str, None] = {}
    while len(asins) < num_products:
        asins["B0" + "".join(rng.choices(letters, k=drawn))] = None
    items, attributes, instructions = [], {}, {}
    last: dict[str, tuple[str, list[str]]] = {}
    for i, asin in enumerate(asins):
        ware = wares[i % kinds]
        twin = (i // kinds) % 3 == 2 and ware.noun in last
        brand, has = (
            _twin(ware, *last[ware.noun], rng) if twin else (_brand(rng), _attributes(ware, rng.randint(3, 5), rng))
        )
        last[ware.noun] = brand, has
        options = {name: rng.sample(OPTIONS[name], rng.randint(2, min(5, len(OPTIONS[name])))) for name in ware.options}
        items.append(_item(asin, ware, brand, has, options, rng))
        attributes[asin] = {"attributes": has}
        instructions[asin] = [_wish(ware, has, options, rng) for _ in range(wishes)]
    rng.shuffle(items)
    return items, attributes, instructions


def _brand(rng: random.Random) -> str:
    return (rng.choice(_SYLLABLES) + rng.choice(_ENDINGS)).capitalize()


def _attributes(ware: Ware, count: int, rng: random.Random) -> list[str]:
    return [rng.choice(group.split("|")) for group in rng.sample(ware.attributes, count)]


def _twin(ware: Ware, brand: str, has: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """The same make with one of the attributes told in its title exchanged for one it lacks."""
    others = [group for group in ware.attributes if not set(group.split("|")) & set(has)]
    gone = rng.randrange(_IN_TITLE)
    return brand, [*has[:gone], rng.choice(rng.choice(others).split("|")), *has[gone + 1 :]]


def _item(
    asin: str, ware: Ware, brand: str, has: list[str], options: Mapping[str, list[str]], rng: random.Random
) -> dict[str, Any]:
    model = f"{rng.choice(string.ascii_uppercase)}{rng.randint(10, 99)}"
    told = rng.sample(has[:_IN_TITLE], _IN_TITLE)
    bullets = [
        wording.format(a) for wording, a in zip(rng.sample(BULLETS, len(has)), rng.sample(has, len(has)), strict=True)
    ]
    price = round(rng.uniform(ware.low, ware.high)) - 0.01
    dearer = f" to ${round(price * rng.uniform(1.1, 1.4), 2)}" if rng.random() < 0.1 else ""
    return {
        "asin": asin,
        "name": f"{brand} {ware.noun.title()} {model}, {told[0].title()}, {told[1].title()}",
        "full_description": f"The {model} is {ware.article} {ware.noun} by {brand}, from our {ware.shelf.lower()} range.",
        "small_description": [bullet[0].upper() + bullet[1:] for bullet in bullets],
        "query": ware.noun,
        "product_category": f"{ware.department} › {ware.shelf} › {ware.noun.title()}",
        "pricing": f"${price:.2f}{dearer}",
        "customization_options": {name: [{"value": value} for value in values] for name, values in options.items()},
    }


def _wish(ware: Ware, has: list[str], options: Mapping[str, list[str]], rng: random.Random) -> dict[str, Any]:
    first = rng.randrange(_IN_TITLE)  # at least one thing that the list of results can tell
    wanted = [has[first], *rng.sample(has[:first] + has[first + 1 :], rng.randint(0, 2))]
    rng.shuffle(wanted)
    chosen = {name: rng.choice(values) for name, values in options.items()}
    phrases = [rng.choice(OPTION_PHRASES[name]).format(value) for name, value in chosen.items()]
    text = rng.choice(WISHES).format(
        article=ware.article,
        noun=ware.noun,
        attributes=" and ".join([", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted),
        options=" ".join(phrases),
    )
    text = " ".join(text.replace(" ,", ",").replace(" ?", "?").split())
    return {"instruction": text, "instruction_attributes": wanted, "instruction_options": list(chosen.values())}
