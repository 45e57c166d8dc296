"""What can be done now in a game that Jericho knows: AgentBoard's `check valid actions`.

Jericho's grammar of the game is filled with the things about, each command is tried on a copy of the state, and those that change the
world are kept, one of each group that changes it in the same way. Jericho finds the things with a language model for nouns, which has to
be downloaded; here they are the words of the descriptions that the game's own dictionary holds and that can be examined.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

CHECK = "check valid actions"
_MOST = 2000  # commands that are tried: 0.3 to 2 s of processor time for each thousand
# Words of descriptions that some games can "examine", but that name no thing.
_NO_THINGS = frozenset(
    str.split(
        "a an all and are at but can each every from here in into is it its me my no of off on onto or other out over some than that "
        "the them there these they this those through to under up down with you your "
        "north south east west northeast northwest southeast southwest n s e w ne nw se sw"
    )
)


def asked(command: str) -> bool:
    """Whether AgentBoard takes a command for the question what can be done."""
    return "check" in command.lower() and "action" in command.lower()


def listed(interpreter: Any) -> str:
    """The answer: commands by alphabet. Leaves the state as it is."""
    return f"You can take the following actions: {', '.join([*valid(interpreter), CHECK])}"


def valid(interpreter: Any) -> list[str]:
    """Commands that change the world, by alphabet; for games that Jericho knows."""
    from jericho.util import verb_usage_count

    state = interpreter.get_state()
    things = [*_things(interpreter, state), "all"]
    candidates = interpreter.act_gen.generate_actions(things)
    while len(candidates) > _MOST:  # without the things named first, which are part of the scene as a rule
        things = things[1:]
        candidates = interpreter.act_gen.generate_actions(things)
    groups = interpreter._filter_candidate_actions(candidates, use_ctypes=True, use_parallel=False).values()
    interpreter.set_state(state)
    return sorted({max(sorted(group), key=verb_usage_count) for group in groups})


def _things(interpreter: Any, state: Any) -> list[str]:
    """A word for each thing about, in the order of the descriptions; of several words for one, the last, as the noun follows."""
    from jericho.util import clean, recognized

    texts = []
    for command in ("look", "inventory"):
        texts.append(clean(_after(interpreter, state, command)))
    interpreter.set_state(state)
    texts += [thing.name.lower() for thing in _near(interpreter)]
    known = {word.word for word in interpreter.get_dictionary()}
    longest = max(map(len, known))
    by_description: dict[str, str] = {}
    for word in _words(texts):
        if word not in _NO_THINGS and word[:longest] in known:
            said = clean(_after(interpreter, state, f"examine {word}"))
            if recognized(said):
                by_description[said] = word
    interpreter.set_state(state)
    return list(by_description.values())


def _after(interpreter: Any, state: Any, command: str) -> str:
    interpreter.set_state(state)
    return str(interpreter.step(command)[0])


def _near(interpreter: Any) -> Sequence[Any]:
    """Objects in the place of the player and inside of them, without the player."""
    from jericho.util import get_subtree

    place, player = interpreter.get_player_location(), interpreter.get_player_object()
    if place is None:
        return ()
    return [thing for thing in get_subtree(place.child, interpreter.get_world_objects()) if thing != player]


def _words(texts: Iterable[str]) -> list[str]:
    """Every word once, where it comes last."""
    words = [word for text in texts for word in re.findall(r"[a-z][a-z'-]*", text.lower())]
    return list(dict.fromkeys(reversed(words)))[::-1]
