"""WebShop (Yao et al. 2022): find a product by search, choose its options, buy it; scored by how well it fits the wish.

An engine of our own for the original's text mode: same pages, page flow, search and reward (`webshop.reward` names the one
approximation). Without any file it sells made-up products; `options["data"]` names a folder with the official files in `webshop/`.

Where the original behaves differently: an impossible action there shows the page again, here it is called invalid;
the prefixes <r>, <a>, <c> and <q>, which bypass its search, are ordinary text here; an option whose value contains "[" can be chosen.

The full catalogue is read and indexed once, when its tasks are first listed (`webshop.cache`).

Options: `data`, `setting` (`generated`, `small`, `original`, `eto`; see `webshop.catalogue.read_shop`), `num_products`,
`page_size` (products on a page of results, 10 as in the original; fewer make histories shorter), and of the made-up catalogue its
`seed`, `code_length` (characters of a product's code, 10 as in the original), `kinds` (of products, all by default) and `wishes`
(goals of a product, 3 by default), which make it a shop for small models.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agentrm_jax.envs.react import played
from agentrm_jax.envs.spec import EnvSpec, Options, whole
from agentrm_jax.envs.webshop import pages
from agentrm_jax.envs.webshop.cache import is_large, prepared
from agentrm_jax.envs.webshop.catalogue import PAGE_SIZE, Goal, Product, Shop, read_shop, shop_files
from agentrm_jax.envs.webshop.expert import solve
from agentrm_jax.envs.webshop.generate import CODE_LENGTH, WISHES_PER_PRODUCT, generate_shop
from agentrm_jax.envs.webshop.reward import reward
from agentrm_jax.envs.webshop.wares import WARES
from agentrm_jax.types import EngineStep, Environment, Message, Outcome, Start, Task, UserError

MAX_STEPS = 10
_SETTINGS = ("generated", "small", "original", "eto")
_COMMAND = re.compile(r"\s*(search|click)\s*\[(.+)\]", re.IGNORECASE | re.DOTALL)


class View(NamedTuple):
    """Where a session is; all that changes in an episode. `place` is search, results, item, done or a sub page's name."""

    place: str = "search"
    query: str = ""
    page: int = 1
    product: Product | None = None
    options: tuple[tuple[str, str], ...] = ()
    reward: float = 0.0


class Settings(NamedTuple):
    """What a shop is made of: the options, with their defaults."""

    data: str
    setting: str
    num_products: int | None
    seed: int
    code_length: int
    kinds: int
    wishes: int
    page_size: int


class WebShop:
    """A session in a shop; the shop is shared between sessions, the session is its goal and an immutable `View`."""

    def __init__(self, shop: Shop):
        self.shop = shop
        self.goal: Goal = shop.goals[0]
        self.view = View()

    def reset(self, task: Task) -> Start:
        """Raises UserError if the task is of another catalogue."""
        if task.args["shop"] != self.shop.name:
            raise UserError(
                f"task {task.key} is of WebShop's catalogue {task.args['shop']!r}, this one is {self.shop.name!r}: "
                "set env.options as they were when the task was made"
            )
        self.goal = self.shop.goals[task.args["session"]]
        self.view = View()
        return Start(self.goal.text, self._show())

    def step(self, command: str) -> EngineStep:
        if self.view.place == "done":
            return self._answer("Invalid action: the purchase is done.", valid=False)
        match = _COMMAND.match(command)
        if not match or not match[2].strip():
            return self._answer("Invalid action: write search[words] or click[name].", valid=False)
        words = match[2].lower()
        if match[1].lower() == "search":
            self.view = View("results", words)
        elif (view := self._click(words.strip())) is not None:
            self.view = view
        else:
            return self._answer(f"Invalid action: nothing on this page is called [{match[2].strip()}].", valid=False)
        return self._answer(self._show())

    def snapshot(self) -> tuple[Goal, View]:
        return self.goal, self.view

    def restore(self, snapshot: tuple[Goal, View]) -> None:
        self.goal, self.view = snapshot

    def close(self) -> None:
        pass

    def clickables(self) -> list[str]:
        """What can be clicked on the current page, in lower case, in page order."""
        view = self.view
        if view.place in ("search", "done"):
            return []
        names = [pages.BACK]
        if view.place == "results":
            names += [pages.PREVIOUS] if view.page > 1 else []
            names += [pages.NEXT, *(p.asin for p in self._shown())]
        elif view.place == "item":
            assert view.product is not None
            names += [pages.PREVIOUS, *(v for values in view.product.options.values() for v in values)]
            names += [*pages.SUB_PAGES, pages.BUY]
        else:
            names += [pages.PREVIOUS]
        return [name.lower() for name in names]

    def _click(self, name: str) -> View | None:
        """The view after clicking on `name` (lower case), or None if there is no such thing to click."""
        if name not in self.clickables():
            return None
        view = self.view
        if name == pages.BACK.lower():
            return View()
        if view.place == "results":
            if name in (pages.NEXT.lower(), pages.PREVIOUS.lower()):
                return view._replace(page=view.page + (1 if name == pages.NEXT.lower() else -1))
            product = next(p for p in self._shown() if p.asin.lower() == name)
            return view._replace(place="item", product=product, options=())
        assert view.product is not None
        if view.place in pages.SUB_PAGES:
            return view._replace(place="item")
        if name == pages.PREVIOUS.lower():
            return View("results", view.query, view.page)
        if name == pages.BUY.lower():
            return view._replace(
                place="done", reward=reward(view.product, [value for _, value in view.options], self.goal)
            )
        for sub_page in pages.SUB_PAGES:
            if name == sub_page.lower():
                return view._replace(place=sub_page)
        # A value that two options share sets the later one, as in the original.
        option = [option for option, values in view.product.options.items() if name in values][-1]
        return view._replace(options=tuple({**dict(view.options), option: name}.items()))

    def _shown(self) -> tuple[Product, ...]:
        size = self.shop.page_size
        return self.shop.find(self.view.query)[(self.view.page - 1) * size : self.view.page * size]

    def _show(self) -> str:
        view, text = self.view, self.goal.text
        if view.place == "search":
            return pages.search_page(text)
        if view.place == "results":
            return pages.results_page(text, self._shown(), view.page, len(self.shop.find(view.query)))
        assert view.product is not None
        if view.place == "item":
            return pages.item_page(text, view.product)
        if view.place == "done":
            return pages.done_page(view.product, dict(view.options), view.reward)
        return pages.sub_page(text, view.product, view.place)

    def _answer(self, observation: str, valid: bool = True) -> EngineStep:
        view = self.view
        return EngineStep(observation, view.reward, view.reward, over=view.place == "done", valid=valid)


def make(options: Options) -> WebShop:
    return WebShop(_shop_of(options))


def tasks(split: str, options: Options) -> Sequence[Task]:
    """Tasks in session order; `args` are the shop's name and the session number (the original's, for official goals)."""
    shop = _shop_of(options)
    if split not in shop.splits:
        raise UserError(f"WebShop has no split {split!r}; use one of {', '.join(shop.splits)}")
    return [
        Task("webshop", f"{shop.name}-{session}", split, MAX_STEPS, {"shop": shop.name, "session": session})
        for session in shop.splits[split]
    ]


def _shop_of(options: Options) -> Shop:
    data, setting = options.get("data") or "", options.get("setting") or ""
    if setting not in ("", *_SETTINGS):
        raise UserError(f"WebShop has no setting {setting!r}; use one of {', '.join(_SETTINGS)}")
    if not data and setting not in ("", "generated"):
        raise UserError(f"WebShop's setting {setting!r} needs the official files: set env.options.data to their folder")
    if setting == "generated":
        data = ""
    num_products = options.get("num_products")
    if num_products is not None and num_products < 1:
        raise UserError(f"WebShop's num_products is {num_products}; it takes one product at least")
    code_length = whole(options, "code_length", CODE_LENGTH)
    kinds = whole(options, "kinds", len(WARES))
    wishes = whole(options, "wishes", WISHES_PER_PRODUCT)
    if data and (code_length, kinds, wishes) != (CODE_LENGTH, len(WARES), WISHES_PER_PRODUCT):
        raise UserError(
            "WebShop's code_length, kinds and wishes are for made-up products; set setting=generated, or leave them out"
        )
    how = Settings(
        str(data),
        setting,
        num_products,
        options.get("seed") or 0,
        code_length,
        kinds,
        wishes,
        whole(options, "page_size", PAGE_SIZE),
    )
    return _cached_shop(how)


@functools.lru_cache(4)
def _cached_shop(how: Settings) -> Shop:
    if not how.data:
        shop = generate_shop(how.num_products, how.seed, how.code_length, how.kinds, how.wishes)
    else:
        read = functools.partial(read_shop, Path(how.data), how.setting, how.num_products)
        files = shop_files(Path(how.data), how.setting)
        shop = prepared(files, (how.setting, how.num_products), read) if is_large(files) else read()
    return dataclasses.replace(shop, page_size=how.page_size)


INSTRUCTION = """You shop on a web site for a customer. Find the product the instruction asks for, choose its options, and buy it. \
How well product, attributes, options and price fit decides your score; without a purchase it is 0. You have 10 turns.
A page is given as its texts, with [SEP] between them. Commands:
  search[words]  looks for products, from any page
  click[name]    clicks on something the page shows: a product's code, an option, Description, Features, Reviews, Next >, < Prev, \
Back to Search, or Buy Now, which ends the shopping
Answer every page with two lines:
Thought: why you do what you do next
Action: one command"""

RM_INSTRUCTION = """You watch somebody shop on a web site for a customer, who wants this:
{goal}
Judge how well the purchase will fit. Each turn is a search for products or a click: on a product, an option, a page about the \
product, the next or the previous page, or on Buy Now, which ends the shopping."""


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """Solves the episode `env` was just reset to; see `webshop.expert`."""
    assert isinstance(env, WebShop)
    return solve(env, task.max_steps)


def answer(outcome: Outcome) -> str | None:
    """What was bought, with its options; None without a purchase."""
    bought = pages.PURCHASE.search(outcome.observation)
    return f"{bought[1]} {bought[2]}" if bought and outcome.done else None


def _example() -> tuple[Message, ...]:
    """The expert's episode for the first goal of a made-up shop of few products."""
    env = WebShop(generate_shop(num_products=3, seed=_EXAMPLE_SEED))
    task = Task("webshop", "example", "train", MAX_STEPS, {"shop": env.shop.name, "session": 0})
    return played(env, task, expert, _PREFIX)


_PREFIX = "Observation:\n"
_EXAMPLE_SEED = 1

SPEC = EnvSpec(
    name="webshop",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    expert=expert,
    answer=answer,
    example=_example(),
    observation_prefix=_PREFIX,
    exhausted_reward="zero",
    options=("setting", "num_products", "seed", "page_size", "code_length", "kinds", "wishes"),
    engine="own",
    licence="Apache-2.0",
)
