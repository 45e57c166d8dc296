"""WebShop's search: words as Lucene's English analysis leaves them, ranked as its BM25 ranks them."""

import math

import pytest

from agentrm_jax.envs.webshop import search


@pytest.mark.parametrize(
    ("word", "stem"),
    [  # examples of Porter's paper
        ("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("feed", "feed"), ("agreed", "agre"), ("plastered", "plaster"),
        ("bled", "bled"), ("motoring", "motor"), ("sing", "sing"), ("conflated", "conflat"), ("hopping", "hop"), ("falling", "fall"),
        ("filing", "file"), ("happy", "happi"), ("sky", "sky"), ("relational", "relat"), ("vietnamization", "vietnam"),
        ("electriciti", "electr"), ("hopefulness", "hope"), ("adjustment", "adjust"), ("adoption", "adopt"), ("probate", "probat"),
        ("controlling", "control"), ("roll", "roll"), ("psychology", "psycholog"), ("ox", "ox"),
    ],
)  # fmt: skip
def test_stem(word, stem):
    assert search.stem(word) == stem


def test_analyze_drops_possessives_and_stop_words_and_keeps_numbers_whole():
    assert search.analyze("The Men's T-Shirts, for 13.5 inch of it's") == ["men", "t", "shirt", "13.5", "inch"]


def test_stored_length_is_lossy_from_41_up():
    lengths = [search.stored_length(n) for n in (0, 23, 39, 40, 41, 57, 100, 1000)]
    assert lengths == [0, 23, 39, 40, 40, 56, 96, 984]  # Lucene's SmallFloat


def test_bm25_by_hand():
    index = search.Index(["red shoes", "red red hat with band", "blue scarf"])
    average = (2 + 4 + 2) / 3  # "with" is a stop word
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [
        (1, idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 4 / average))),
        (0, idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / average))),
    ]
    found = index.search("RED", 10)
    assert [doc for doc, _ in found] == [1, 0]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-12)
    assert [doc for doc, _ in index.search("red", 1)] == [1]
    assert index.search("of the unknown", 10) == []


def test_bm25_matches_recorded_scores():
    # Recorded from a separate implementation that was compared with Lucene.
    index = search.Index([
        "Trail running shoes, men's size 10",
        "Running shoe for women with memory foam, running every day",
        "Leather ankle boots",
        "The shoes of the runner: 13.5 inch box",
        "Kids' rain boots, waterproof",
        "Wireless headphones 2.4GHz, noise-cancelling " + "with a long tail of words that make this document longer than the others " * 3,
    ])  # fmt: skip
    recorded = {
        "running shoes": [(1, 1.09531), (0, 0.970225), (3, 0.399195)],
        "men's boots": [(0, 0.867545), (2, 0.621069), (4, 0.606697)],
        "shoes shoes boots": [(3, 0.798389), (0, 0.780731), (1, 0.747658), (2, 0.621069), (4, 0.606697)],
        "13.5 inch": [(3, 1.774335)],
        "noise cancelling headphones long words": [(5, 3.700471)],
    }
    for query, expected in recorded.items():
        assert [(doc, round(score, 6)) for doc, score in index.search(query, 50)] == expected
