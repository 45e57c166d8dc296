"""Jericho's interpreter of Z-machine games, kept to play: no session commands, and no files but in a folder of its own.

A game knows commands about the session beside those of its world: to quit, start again, save, restore, write a transcript. They would
leave the episode, bring in the state of another one, or write into the folder the program was started in. Games read a line sentence
by sentence (`look. save`, `look then save`, `me, save`), so each sentence is checked. What a game calls by a name that is not known here
still does no harm: files go to a private folder that is emptied after every command, and a game that asks whether to quit hears "no".
"""

import contextlib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrm_jax.envs.folders import PrivateFolder

_LONGEST_LINE = 198  # bytes that the interpreter reads of a line
_WORD_LENGTH = {
    True: 6,
    False: 9,
}  # letters of a word that games tell apart, up to version 3 of the format and from 4 on
_SESSION = frozenset(
    str.split(
        "quit q restart restore save undo script noscript unscript transcript replay notify "
        "verbose long brief normal superbrief superb short"
    )
)
_SESSION_BEGINS = ("tw-", "trace", "#", "$")  # of TextWorld's own commands, and of those for the makers of games
# TextWorld's stories tell their whole state, or restrict what can be typed, after `enable print state option`, `restrict commands`.
_STORY_SESSION = frozenset({"enable", "disable", "restrict"})
_SENTENCE = re.compile(r"[.,;:!?\"()>]+|\b(?:then|and|oops|o|please)\b")
_ASKS = re.compile(
    r"(?i)\b(?:sure (?:that )?you want|do you (?:really )?(?:want|wish)) to "
    r"(?:quit|restart|restore|leave the game|end|stop|exit|give up|start over)"
)
_OFFERS = re.compile(
    r"(?i)\b(?:would you like|do you want) to:? (?:restart|restore|start over|start the game over)\b.*,"
)


def typed(command: str) -> str:
    """`command` as it can be typed: printable ASCII without accents, at most as long as the interpreter reads."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", command) if not unicodedata.combining(c))
    return re.sub("[^ -~]", "?", " ".join(plain.split()))[:_LONGEST_LINE]


def about_session(line: str, word_length: int, story: bool) -> bool:
    """Whether any sentence of a typed line is about the session, not the world.

    Args:
      line: see `typed`.
      word_length: letters of a word that the game tells apart.
      story: the game is a generated one.
    """
    known = {word[:word_length] for word in (_SESSION | _STORY_SESSION if story else _SESSION)}
    for sentence in _SENTENCE.split(line.lower()):
        first = sentence.split(maxsplit=1)[0] if sentence.strip() else ""
        if first[:word_length] in known or first.startswith(_SESSION_BEGINS):
            return True
    return False


def asks_about_session(text: str) -> bool:
    """Whether a game's answer ends by asking whether to quit, restart or restore."""
    return _ASKS.search(text.rstrip()[-400:]) is not None


def offers_to_restart(text: str) -> bool:
    """Whether a game's answer ends with what it offers when play is over: to restart, to restore a game, or to quit."""
    return _OFFERS.search(" ".join(text.split())[-400:]) is not None


class Interpreter:
    """One game in Jericho's interpreter; has the methods of `jericho.FrotzEnv`.

    Attributes:
      word_length: letters of a word that the game tells apart.
    """

    def __init__(self, path: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from jericho import FrotzEnv

            # Games that Jericho knows bring the seed of their walkthrough; for others its default would be the clock.
            self._frotz: Any = FrotzEnv(path)
            if not self._frotz.is_fully_supported:
                self._frotz.seed(1)
        with Path(path).open("rb") as file:
            self.word_length = _WORD_LENGTH[file.read(1) <= b"\x03"]
        self._folder = PrivateFolder("jericho")
        self.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frotz, name)

    def reset(self) -> Any:
        with self._private():
            return self._frotz.reset()

    def step(self, line: str) -> Any:
        with self._private():
            return self._frotz.step(line)

    def _filter_candidate_actions(self, *arguments: Any, **named: Any) -> Any:
        with self._private():
            return self._frotz._filter_candidate_actions(*arguments, **named)

    def discard(self) -> None:
        """Ends the interpreter and removes its folder."""
        self._frotz = None
        self._folder.close()

    @contextlib.contextmanager
    def _private(self) -> Iterator[None]:
        """The interpreter writes to the working folder: its own, for as long as it runs."""
        with contextlib.chdir(self._folder.path):
            yield
        self._folder.empty()
