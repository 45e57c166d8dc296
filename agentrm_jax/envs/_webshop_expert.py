"""An expert shopper: knows the wanted product, searches for it in the words of the wish, opens it, chooses, buys."""

import re
from collections.abc import Iterator
from typing import Protocol

from agentrm_jax.envs._webshop_catalogue import SEARCH_DEPTH, Goal, Product, Shop
from agentrm_jax.envs._webshop_reward import MATCH, first_colour, token_set_ratio

_PRICE_CLAUSE = re.compile(r",? and price lower than [\d.]+ dollars.*", re.DOTALL)
_WORD = re.compile(r"[^\W_](?:[\w.'’&-]*\w)?")
_FILLER_LIST = """
    a about also am an and any are at be because but buy can could do dollars find for get girlfriend has have help i i'd i'm
    id if im in interested is it its let like looking lower made make me my need no of on one or order please price pick
    product products purchase really searching sell shop should show so some something than that the their them then there
    these they this to trying under us use want wanted we which who will with would you your"""
_FILLER = frozenset(_FILLER_LIST.split())
_QUERY_WORDS = 10
_PAGE = 10
_WISH_PAGES = 2  # how many pages of results the expert looks at before it tries the title


class Session(Protocol):
    """What the expert looks at of the episode it solves."""

    shop: Shop
    goal: Goal


def solve(session: Session) -> Iterator[tuple[str, str]]:
    """(thought, command) pairs from the search page to the purchase."""
    goal, product = session.goal, session.goal.product
    query, rank = best_query(session.shop, goal)
    if rank == SEARCH_DEPTH:
        return  # cannot be found
    yield f"The customer wants {' '.join(key_words(goal))}. I search for that.", f"search[{query}]"
    for page in range(1, rank // _PAGE + 1):
        yield f"Nothing on page {page} fits, so I look at the next one.", "click[Next >]"
    name = product.title.split(",")[0].strip()
    yield f"{name} for {product.price_tag} looks right. I open it.", f"click[{product.asin}]"
    for option, value in choices(product, goal):
        yield f"The {option} should be {value}.", f"click[{value}]"
    yield "This is what was asked for, so I buy it.", "click[Buy Now]"


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

    The words of the wish if one of their wordings shows the product on the first pages, else words of the product's title.
    """
    words, title = search_words(goal), _WORD.findall(goal.product.title.lower())
    wishes = [key_words(goal), words[:_QUERY_WORDS], words, [*goal.attributes, goal.product.query]]
    query, rank = _best(shop, goal, wishes)
    return (query, rank) if rank < _WISH_PAGES * _PAGE else _best(shop, goal, [title[:_QUERY_WORDS], title])


def _best(shop: Shop, goal: Goal, wordings: list[list[str]]) -> tuple[str, int]:
    """The first wording with the product on the first page, else the one that ranks it best; and the rank."""
    best, best_rank = "", SEARCH_DEPTH
    for query in (" ".join(wording) for wording in wordings if wording):
        asins = [p.asin for p in shop.find(query)]
        rank = asins.index(goal.product.asin) if goal.product.asin in asins else SEARCH_DEPTH
        if rank < best_rank:
            best, best_rank = query, rank
        if rank < _PAGE:
            break
    return best, best_rank


def choices(product: Product, goal: Goal) -> list[tuple[str, str]]:
    """(option, value) to click, in page order, so that every wanted option counts as met if it can."""
    chosen: dict[str, str] = {}
    for wanted in goal.options:
        if isinstance(wanted, tuple):
            chosen[wanted[0]] = wanted[1]
            continue
        free = [(n, v) for n, values in product.options.items() if n not in chosen for v in values]
        near = [(n, v) for n, v in free if token_set_ratio(first_colour(v), first_colour(wanted)) > MATCH]
        if near:
            name, value = max(near, key=lambda pair: token_set_ratio(pair[1], wanted))
            chosen[name] = value
    return [(name, chosen[name]) for name in product.options if name in chosen]
