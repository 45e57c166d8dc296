"""BM25 product search as Lucene does it behind WebShop (Anserini's settings), in numpy.

Lucene's `BM25Similarity` (k1 = 0.9, b = 0.4, document lengths stored in one byte) over `EnglishAnalyzer`: UAX#29 words,
possessive 's removed, lower case, 33 stop words, Porter stems. Differences: scripts without spaces are not split by
character, and equal scores keep the order of the catalogue.
"""

import collections
import functools
import json
import re
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

K1, B = 0.9, 0.4
_ARRAYS = ("_docs", "_starts", "_weights")

_STOP_LIST = (
    "a,an,and,are,as,at,be,but,by,for,if,in,into,is,it,no,not,of,on,or,such,that,the,their,then,there,these,they,this,"
    "to,was,will,with"
)
_STOP_WORDS = frozenset(_STOP_LIST.split(","))
_LETTER = r"[^\W\d_]"
# A word may hold . : ' between letters and . , ; ' between digits (UAX#29 MidLetter, MidNum, MidNumLet).
_WORD = re.compile(
    rf"\w+(?:(?:(?<={_LETTER})[.:'\u2018\u2019\u00b7](?={_LETTER})|(?<=\d)[.,;'\u2018\u2019](?=\d))\w+)*"
    "|[\u2601-\u27bf\U0001f300-\U0001faff]"
)
_POSSESSIVE = re.compile("(?<=.)['\u2019\uff07][sS]$")


def analyze(text: str) -> list[str]:
    """Index terms of a text, in order; what `EnglishAnalyzer` makes of it."""
    terms = []
    for word in _WORD.findall(text):
        if not word.strip("_"):
            continue
        word = _POSSESSIVE.sub("", word).lower()
        if word not in _STOP_WORDS:
            terms.append(stem(word))
    return terms


class Index:
    """An immutable inverted index; documents are numbered in the order given."""

    def __init__(self, documents: Iterable[str]):
        self._terms: dict[str, int] = {}
        term_ids, doc_ids, counts = array("i"), array("i"), array("i")
        lengths: list[int] = []
        for doc, text in enumerate(documents):
            terms = analyze(text)
            lengths.append(len(terms))
            for term, count in collections.Counter(terms).items():
                term_ids.append(self._terms.setdefault(term, len(self._terms)))
                doc_ids.append(doc)
                counts.append(count)
        self.size = len(lengths)
        average = sum(lengths) / self.size if self.size else 1.0
        stored = np.array([stored_length(n) for n in lengths], np.float64)
        norm = K1 * ((1 - B) + B * stored / average)

        ids = np.asarray(term_ids, np.int32)
        order = np.argsort(ids, kind="stable")
        self._docs = np.asarray(doc_ids, np.int32)[order]
        frequency = np.asarray(counts, np.float64)[order]
        document_frequency = np.bincount(ids, minlength=len(self._terms))
        self._starts = np.concatenate([[0], np.cumsum(document_frequency)])
        idf = np.log(1 + (self.size - document_frequency + 0.5) / (document_frequency + 0.5))
        self._weights = idf[ids[order]] * frequency / (frequency + norm[self._docs])

    def save(self, folder: Path) -> None:
        """Writes the index to files of `folder`, for `load`."""
        for name in _ARRAYS:
            np.save(folder / f"index{name}.npy", getattr(self, name))
        (folder / "index_terms.json").write_text(json.dumps({"size": self.size, "terms": list(self._terms)}))

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index that was saved to `folder`; its arrays are mapped, so that processes share them."""
        index = cls.__new__(cls)
        stored = json.loads((folder / "index_terms.json").read_text())
        index.size, index._terms = stored["size"], {term: number for number, term in enumerate(stored["terms"])}
        for name in _ARRAYS:
            setattr(index, name, np.load(folder / f"index{name}.npy", mmap_mode="r"))
        return index

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` best of the documents that hold a query term, best first, as (document, BM25 score)."""
        scores = np.zeros(self.size)
        for term, count in collections.Counter(analyze(query)).items():
            if (i := self._terms.get(term)) is not None:
                part = slice(self._starts[i], self._starts[i + 1])
                scores[self._docs[part]] += count * self._weights[part]
        docs = np.flatnonzero(scores)
        rounded = np.round(scores[docs], 6)
        if len(docs) > k:
            kept = rounded >= np.partition(rounded, -k)[-k]
            docs, rounded = docs[kept], rounded[kept]
        best = np.lexsort((docs, -rounded))[:k]
        return [(int(docs[i]), float(scores[docs[i]])) for i in best]


def stored_length(n: int) -> int:
    """A document length after Lucene's one-byte storage: exact up to 40, then coarser and coarser."""
    if n < 24:
        return n
    n -= 24
    shift = max(n.bit_length() - 4, 0)
    return 24 + (n >> shift << shift)


# Porter's stemmer: M. F. Porter, "An algorithm for suffix stripping" (1980), and its author's later bli and logi rules.

_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4_SUFFIXES = "al,ance,ence,er,ic,able,ible,ant,ement,ment,ent,ion,ou,ism,ate,iti,ous,ive,ize"
_STEP_4 = dict.fromkeys(_STEP_4_SUFFIXES.split(","), "")


@functools.lru_cache(1 << 20)
def stem(word: str) -> str:
    """Porter stem of a lower-case word; words of one or two letters stay as they are."""
    if len(word) <= 2:
        return word
    word = _plural(word)
    word = _past_and_ing(word)
    if word.endswith("y") and "V" in _form(word[:-1]):
        word = word[:-1] + "i"
    word = _replace_suffix(word, _STEP_2, 1)
    word = _replace_suffix(word, _STEP_3, 1)
    word = _replace_suffix(word, _STEP_4, 2)
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_cvc(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word


def _form(word: str) -> str:
    """`C` for each consonant, `V` for each vowel; y after a consonant is a vowel, a digit a consonant."""
    form = ""
    for letter in word:
        form += "V" if letter in "aeiou" or (letter == "y" and form.endswith("C")) else "C"
    return form


def _measure(word: str) -> int:
    return _form(word).count("VC")


def _ends_cvc(word: str) -> bool:
    return _form(word).endswith("CVC") and word[-1] not in "wxy"


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_ing(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    cut = 2 if word.endswith("ed") else 3 if word.endswith("ing") else 0
    if not cut or "V" not in _form(word[:-cut]):
        return word
    word = word[:-cut]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) > 1 and word[-1] == word[-2] and _form(word)[-1] == "C":
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _ends_cvc(word) else word


def _replace_suffix(word: str, rules: dict[str, str], measure: int) -> str:
    """Apply the rule of the longest suffix found, if what is before it measures enough."""
    for length in range(min(7, len(word)), 1, -1):
        suffix = word[-length:]
        if suffix in rules:
            base = word[:-length]
            if _measure(base) < measure or (suffix == "ion" and not base.endswith(("s", "t"))):
                return word
            return base + rules[suffix]
    return word
