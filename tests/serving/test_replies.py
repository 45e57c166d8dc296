"""A stream sends every character of an answer once, and none that the answer does not have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from agentrm_jax.engine.requests import Completion
from agentrm_jax.serving.replies import Style, Unsent, choice, text_of
from agentrm_jax.serving.texts import Texts

STOPS = ("turn left", "\n\n", "rn")


def style(chat: bool, stops: tuple[str, ...] = (), keeps_stop: bool = False) -> Style:
    return Style(chat, stops, keeps_stop, logprobs=True, top=0, as_ids=False, with_ids=True)


def sample(tokens, finished=False, stop=None) -> Completion:
    return Completion(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), finished, stop)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.data())
@settings(max_examples=150)
def test_pieces_are_the_whole(chat, tokens, data):
    """Whatever the tokens (parts of characters too), wherever they are cut, with and without a stop text."""
    texts = Texts(chat)
    stop = next((s for s in STOPS if s in texts.decode(tokens)), None)
    if stop:  # an engine ends a sample at the token that completes the stop text
        tokens = tokens[: next(n for n in range(1, len(tokens) + 1) if stop in texts.decode(tokens[:n]))]
        stop = min((texts.decode(tokens).index(s), s) for s in STOPS if s in texts.decode(tokens))[1]
    for how in (style(True, STOPS), style(False, STOPS, keeps_stop=True)):
        whole = sample(tokens, stop is not None, stop)
        cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens)), max_size=5)) - {len(tokens)})
        unsent = Unsent(0, texts, how)
        rows = [row for cut in cuts for row in unsent.news(sample(tokens[:cut]), last=False)]
        rows += unsent.news(whole, last=True)
        assert unsent.news(whole, last=True) == []
        pieces = [row["delta"].get("content", "") if how.chat else row["text"] for row in rows]
        assert "".join(pieces) == text_of(whole, texts, how)
        assert [t for row in rows for t in row.get("token_ids", ())] == tokens
        reported = [e for row in rows if row["logprobs"] for e in row["logprobs"]["content" if how.chat else "tokens"]]
        wanted = choice(0, whole, texts, how)["logprobs"]["content" if how.chat else "tokens"]
        assert reported == wanted


def test_what_may_begin_a_stop_text_or_is_half_a_character_waits(chat):
    texts = Texts(chat)
    unsent = Unsent(0, texts, style(False, ("turn left",)))
    first = chat.encode("go turn").tolist()
    assert [row["text"] for row in unsent.news(sample(first), last=False)] == ["go "]
    [row] = unsent.news(sample(first + chat.encode(" on").tolist()), last=False)
    assert row["text"] == "turn on"
    euro = chat.encode("€").tolist()
    assert len(euro) == 3
    unsent = Unsent(0, texts, style(False))
    assert [row["text"] for n in (1, 2) for row in unsent.news(sample(euro[:n]), last=False)] == ["", ""]
    assert [row["text"] for row in unsent.news(sample(euro), last=True)] == ["€"]
