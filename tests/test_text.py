"""Text from outside made clean: valid Unicode, no control characters, bounded length."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.text import REPLACEMENT, clean, cut

ANY_TEXT = st.text(st.characters(codec=None), max_size=300)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("go to door 1", "go to door 1"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("open\x00door", "open\ufffddoor"),
        ("\x1b[31mred\x7f\x85", "\ufffd[31mred\ufffd\ufffd"),
        ("\ud83d lone", "\ufffd lone"),
        ("\ud83d\ude00", "\ufffd\ufffd"),
        ("\U0001f600 é 你好 \u200b", "\U0001f600 é 你好 \u200b"),
        ("", ""),
    ],
)
def test_control_characters_and_surrogates_are_replaced_and_nothing_else(text, expected):
    assert clean(text) == expected


@given(ANY_TEXT, st.integers(0, 120))
def test_a_clean_text_is_valid_bounded_and_stays_as_it_is(text, limit):
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert json.loads(json.dumps(cleaned)) == cleaned
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert clean(cleaned, limit) == cleaned


def test_a_cut_keeps_head_and_tail_and_says_how_much_is_missing():
    text = "HEAD" + "x" * 10_000 + "TAIL"
    short = cut(text, 200)
    assert len(short) == 200
    assert short.startswith("HEADx")
    assert short.endswith("xTAIL")
    assert f"\n[... {10_000 - short.count('x')} characters left out ...]\n" in short


@given(st.integers(60, 400), st.integers(0, 3000))
def test_the_mark_counts_exactly(limit, more):
    text = "x" * (limit + more)
    short = cut(text, limit)
    left_out = len(text) - short.count("x")
    assert (short == text) if more == 0 else (f"[... {left_out} characters left out ...]" in short)


def test_replacement_is_one_character_for_one():
    assert clean("\x00" * 5) == REPLACEMENT * 5
