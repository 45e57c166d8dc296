"""An expert shopper: knows the wanted product, searches for it in the words of the wish, opens it, chooses, buys.

In shops with short pages it takes the first product that will do instead. Of the product's option values it chooses what the shop's
reward counts highest. That is not always all that was asked for: see `choices`.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from agentrm_jax.envs.webshop.catalogue import PAGE_SIZE, SEARCH_DEPTH, Goal, Product, Shop
from agentrm_jax.envs.webshop.reward import MATCH, first_colour, reward, token_set_ratio

_PRICE_CLAUSE = re.compile(r",? and price lower than [\d.]+ dollars.*", re.DOTALL)
_WORD = re.compile(r"[^\W_](?:[\w.'’&-]*\w)?")
_FILLER_LIST = """
    a about also am an and any are at be because but buy can could do dollars find for get girlfriend has have help i i'd i'm
    id if im in interested is it its let like looking lower made make me my need no of on one or order please price pick
    product products purchase really searching sell shop should show so some something than that the their them then there
    these they this to trying under us use want wanted we which who will with would you your"""
_FILLER = frozenset(_FILLER_LIST.split())
_QUERY_WORDS = 10
_WISH_RESULTS = 20  # how many results the expert looks at before it tries the title


class Session(Protocol):
    """What the expert looks at of the episode it solves."""

    shop: Shop
    goal: Goal


class Choice(NamedTuple):
    """A value that can be clicked: the numbers of the wanted options that it meets, and whether it is just what was asked for."""

    option: str
    value: str
    meets: frozenset[int]
    asked: bool


def solve(session: Session, turns: int) -> Iterator[tuple[str, str]]:
    """(thought, command) pairs from the search page to the purchase, which is among the first `turns`."""
    shop, goal = session.shop, session.goal
    any_will_do = shop.page_size < PAGE_SIZE
    query, rank = first_that_will_do(shop, goal) if any_will_do else best_query(shop, goal)
    pages, place = divmod(rank, shop.page_size)
    clicks = turns - pages - len(("search", "open", "buy"))
    if rank == SEARCH_DEPTH or clicks < 0:
        return  # cannot be found, or not in time
    yield f"The customer wants {' '.join(key_words(goal))}. I search for that.", f"search[{query}]"
    for page in range(1, pages + 1):
        yield f"What I look for is not on page {page}, so I look at the next one.", "click[Next >]"
    product = shop.find(query)[rank] if any_will_do else goal.product
    yield f"Number {place + 1} for {product.price_tag} looks right. I open it.", f"click[{product.asin}]"
    chosen = choices(product, goal, clicks)
    for choice in chosen:
        wish = "should be" if choice.asked else "that comes nearest to the wish is"
        yield f"The {choice.option} {wish} {choice.value}.", f"click[{choice.value}]"
    all_asked = sum(choice.asked for choice in chosen) == len(goal.options)
    yield f"This {'is' if all_asked else 'comes nearest to'} what was asked for, so I buy it.", "click[Buy Now]"


def key_words(goal: Goal) -> list[str]:
    """Words of the wish that name the kind of product or a wanted attribute; all that matter, if those are few."""
    words = search_words(goal)
    named = set(_WORD.findall(" ".join([goal.product.query, *goal.attributes]).lower()))
    kept = [word for word in dict.fromkeys(words) if word in named]
    return kept if len(kept) > 1 else words[:_QUERY_WORDS]


def search_words(goal: Goal) -> list[str]:
    """Words of the wish that say what is wanted; its price and a synthetic goal's options are left out."""
    text = _PRICE_CLAUSE.sub("", goal.text)
    for option in goal.options[:1]:
        if isinstance(option, tuple):
            text = text.split(f" with {option[0]}: ")[0]
    return [word for word in _WORD.findall(text.lower()) if word not in _FILLER]


def best_query(shop: Shop, goal: Goal) -> tuple[str, int]:
    """What to search for, and the rank the product then has (`SEARCH_DEPTH` if it cannot be found).

    The words of the wish if one of their wordings shows the product among the first results, else words of the product's title.
    """
    words, title = search_words(goal), _WORD.findall(goal.product.title.lower())
    wishes = [key_words(goal), words[:_QUERY_WORDS], words, [*goal.attributes, goal.product.query]]
    query, rank = _best(shop, goal, wishes)
    return (query, rank) if rank < _WISH_RESULTS else _best(shop, goal, [title[:_QUERY_WORDS], title])


def first_that_will_do(shop: Shop, goal: Goal) -> tuple[str, int]:
    """A search for kind and attributes, and the rank of the first product that earns all there is; `SEARCH_DEPTH` if none does.

    For shops with shorter pages than the original's, which are for small models: those can learn only what an episode shows, not which
    of several products that will do the wish was written for, nor words that nobody told.
    """
    query = " ".join([*goal.attributes, goal.product.query])
    good = (
        rank
        for rank, product in enumerate(shop.find(query))
        if reward(product, [c.value for c in choices(product, goal, len(product.options))], goal) == 1.0
    )
    return query, next(good, SEARCH_DEPTH)


def _best(shop: Shop, goal: Goal, wordings: list[list[str]]) -> tuple[str, int]:
    """The first wording with the product on the first page, else the one that ranks it best; and the rank."""
    best, best_rank = "", SEARCH_DEPTH
    for query in (" ".join(wording) for wording in wordings if wording):
        asins = [p.asin for p in shop.find(query)]
        rank = asins.index(goal.product.asin) if goal.product.asin in asins else SEARCH_DEPTH
        if rank < best_rank:
            best, best_rank = query, rank
        if rank < shop.page_size:
            break
    return best, best_rank


def choices(product: Product, goal: Goal, clicks: int) -> list[Choice]:
    """What to click, in page order and at most `clicks`, so that as many wanted options as possible count as met.

    Among equal ones: most of what was asked for, then fewest clicks. The best there is may leave options unmet although each
    value asked for is clicked: the reward takes a value for the first colour word in it, `rectangular` for `tan`, but compares that
    with a synthetic goal's option as a whole.
    """
    # A value that two options share is chosen for the later one.
    owner = {value: option for option, values in product.options.items() for value in values}
    ways = [[None, *_candidates(option, [v for v in owner if owner[v] == option], goal)] for option in product.options]
    best: list[Choice] = []
    for combination in itertools.product(*ways):
        chosen = [choice for choice in combination if choice is not None]
        if len(chosen) <= clicks and _worth(chosen) > _worth(best):
            best = chosen
    return best


def _worth(chosen: list[Choice]) -> tuple[int, int, int]:
    return len(frozenset().union(*(c.meets for c in chosen))), sum(c.asked for c in chosen), -len(chosen)


def _candidates(option: str, values: list[str], goal: Goal) -> list[Choice]:
    """For each set of wanted options that one of `values` meets, the value most like them."""
    wanted = [first_colour(want) for want in goal.options]
    best: dict[frozenset[int], tuple[int, Choice]] = {}
    for value in values:
        seen = first_colour(value)
        meets = frozenset(i for i, want in enumerate(wanted) if token_set_ratio(seen, want) > MATCH)
        asked = value in goal.options or (option, value) in goal.options
        if meets or asked:
            likeness = max(token_set_ratio(value, str(want)) for want in goal.options) + 100 * asked
            if likeness > best.get(meets, (-1,))[0]:
                best[meets] = likeness, Choice(option, value, meets, asked)
    return [choice for _, choice in best.values()]
