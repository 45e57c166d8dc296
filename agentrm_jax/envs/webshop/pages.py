"""The texts of WebShop's pages, as the original's text mode shows them: visible texts in page order, joined by [SEP]."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from agentrm_jax.envs.webshop.catalogue import Product

BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
PURCHASE = re.compile(
    r"Purchased \[SEP\] asin \[SEP\] (\S+) \[SEP\] options \[SEP\] (\{.*?\}) \[SEP\]"
)  # of `done_page`
_HTML_SPACE = " \n\t\f\r"


def search_page(instruction: str) -> str:
    return _join(["WebShop", "Instruction:", instruction, "Search"])


def results_page(instruction: str, shown: Sequence[Product], page: int, total: int) -> str:
    texts = [*_head(instruction), f"Page {page} (Total results: {total})", *([PREVIOUS] if page > 1 else []), NEXT]
    return _join([*texts, *(text for p in shown for text in (p.asin, p.title, p.price_tag))])


def item_page(instruction: str, product: Product) -> str:
    options = (text for name, values in product.options.items() for text in (name, *values))
    facts = (product.title, f"Price: {product.price_tag}", "Rating: N.A.")
    return _join([*_head(instruction), PREVIOUS, *options, *facts, *SUB_PAGES, BUY])


def sub_page(instruction: str, product: Product, name: str) -> str:
    """The page behind one of `SUB_PAGES`; the catalogues hold no reviews."""
    texts = {
        "Description": [product.description],
        "Features": [f" {bullet}" for bullet in product.bullets],
        "Reviews": [],
    }[name]
    return _join([*_head(instruction), PREVIOUS, *texts])


def done_page(product: Product, options: Mapping[str, str], reward: float) -> str:
    """What follows a purchase. The headings are the original's, which leaves most of their fields empty ("None")."""
    chosen = json.dumps(options, sort_keys=True)
    for sign in "<>&'":
        chosen = chosen.replace(sign, f"\\u{ord(sign):04x}")
    bought = [
        "Purchased",
        "asin",
        product.asin,
        "options",
        chosen,
        "attrs",
        "None",
        "category",
        "None",
        "query",
        "None",
    ]
    target = ["asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query"]
    score = ["Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details", "None"]
    head = ["Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"]
    return _join([*head, *bought, "product category", "None", "Target", *target, "Goal", "None", *score])


def _head(instruction: str) -> list[str]:
    return ["Instruction:", instruction, BACK]


def _join(texts: Iterable[str]) -> str:
    # As the original's HTML parser has it: texts that are nothing, or blank with a line break, vanish; blank ones stay.
    kept = (text for text in texts if text and (text.strip(_HTML_SPACE) or "\n" not in text))
    return " [SEP] ".join(text.strip() for text in kept)
