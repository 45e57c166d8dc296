"""Text from outside (policies, engines, servers, files) made fit for everything behind the border."""

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LINE_END = re.compile(r"\r\n?")
# Control characters (C0 without tab and newline, DEL, C1) and lone surrogates: no tokenizer, pipe or JSON reader agrees on them.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str, limit: int | None = None) -> str:
    """Valid Unicode without control characters except newline and tab.

    Line ends become newlines; every other control character and every lone surrogate becomes U+FFFD. A second call with the
    same limit changes nothing.

    Args:
      text: any string.
      limit: characters to keep at most; see `cut`.
    """
    text = _UNFIT.sub(REPLACEMENT, _LINE_END.sub("\n", text))
    return text if limit is None else cut(text, limit)


def cut(text: str, limit: int) -> str:
    """`text` in at most `limit` characters: head and tail in equal parts, and between them how many characters were left out.

    A limit below 60, in which the mark would take most of the room, keeps the head alone.
    """
    if len(text) <= limit:
        return text
    if limit < 60:
        return text[: max(0, limit)]
    mark = f"\n[... {len(text) - limit} characters left out ...]\n"
    for _ in range(2):  # the number counts what the mark itself pushes out
        mark = f"\n[... {len(text) - limit + len(mark)} characters left out ...]\n"
    room = limit - len(mark)
    tail = room // 2
    return text[: room - tail] + mark + text[len(text) - tail :]
