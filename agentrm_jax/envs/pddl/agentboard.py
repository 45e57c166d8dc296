"""AgentBoard's wording of the four worlds, and its way of reading commands (setting `agentboard`).

Facts, commands and answers are worded as its wrapper words them, so that observations are equal to the letter; what an agent is told of a
world is ours. `tests/envs/test_agentboard_pddl.py` compares with recorded episodes of the original.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

from agentrm_jax.envs.pddl.domains import BARMAN, BLOCKWORLD, GRIPPER, TYREWORLD, World
from agentrm_jax.envs.pddl.engine import Atom

NOT_READ = "The action is not valid and therefore takes no effect. Please check valid actions."
NOT_DONE = (
    "The action is not valid and therefore takes no effect. "
    "Please remember to satisfy the restriction of actions. You can also check valid actions."
)

WORLDS: dict[str, World] = {
    "gripper": dataclasses.replace(
        GRIPPER,
        facts={
            "room": "room {0}",
            "ball": "{0} is a ball. ",
            "gripper": "{0} is a gripper. ",
            "at-robby": "Robby is at {0}. ",
            "at": "{0} is at {1}. ",
            "free": "{0} is free. ",
            "carry": "{0} is carrying {1}. ",
        },
        commands={
            "move": "Move from {0} to {1}. ",
            "pick": "Pick up {0} at {1} with arm {2}. ",
            "drop": "drop {0} {1} {2}",
        },
        rules="""You steer Robby, a robot with two grippers, through rooms with balls in them.
- move ROOM ROOM: Robby goes from the first room, where it must be, to the second.
- pick BALL ROOM GRIPPER: Robby and the ball must be in that room and the gripper free; it then carries the ball, which reads \
"BALL is carrying GRIPPER".
- drop BALL ROOM GRIPPER: Robby must be in that room and the gripper carry the ball. The gripper is free afterwards.""",
    ),
    "blockworld": dataclasses.replace(
        BLOCKWORLD,
        facts={
            "on": "{0} is on {1}.",
            "on-table": "{0} is on the table.",
            "clear": "The {0} is clear.",
            "holding": "You are holding {0}. ",
            "arm-empty": "Your arm is empty.",
        },
        commands={
            "pickup": "Pickup {0}.",
            "putdown": "Putdown {0}.",
            "stack": "Stack {0} on {1}.",
            "unstack": "Unstack {0} from {1}.",
        },
    ),
    "barman": dataclasses.replace(
        BARMAN,
        facts={
            "ontable": "{0} is on the table. ",
            "holding": "You are holding {0}. ",
            "handempty": "handempty {0}",
            "empty": "{0} is empty. ",
            "contains": "{0} contains {1}. ",
            "clean": "{0} is clean. ",
            "used": "Pour {0} from a shot glass to a used shaker {1}",
            "dispenses": "{0} dispenses {1}. ",
            "shaker-empty-level": "{0} is at empty level {1}. ",
            "shaker-level": "{0} is at level {1}. ",
            "next": "level {0} is next to level {1}. ",
            "unshaked": "{0} is unshaked. ",
            "shaked": "{0} is shaked. ",
            "cocktail-part1": "{0} part1 ingredient is {1}. ",
            "cocktail-part2": "{0} part2 ingredient is {1}. ",
        },
        commands={
            "grasp": "{0} grasp {1}. ",
            "leave": "{0} leave {1}. ",
            "fill-shot": "fill-shot glass {0} with {1} with {2} and {3} holding {4}. ",
            "refill-shot": "refill-shot {0} with {1} with {2} and {3} holding {4}. ",
            "empty-shot": "use hand {0} to empty-shot glass {1} with beverage {2}. ",
            "clean-shot": "clean-shot glass {0} with {1} with hand {2} holding shot glass and {3}. ",
            "pour-shot-to-clean-shaker": (
                "pour-shot-to-clean-shaker from a shot glass {0} with {1} to a clean shaker {2} with hand {3} "
                "from level {4} to level {5}"
            ),
            "pour-shot-to-used-shaker": (
                "pour-shot-to-used-shaker from a shot glass {0} with {1} to a used shaker {2} with hand {3} "
                "from level {4} to level {5}"
            ),
            "empty-shaker": "use hand {0} to empty-shaker {1} with ingredient {2} from level {3} to level {4}.",
            "clean-shaker": "use hand {0} and hand {1} to clean-shaker {2}",
            "shake": (
                "shake a cocktail {0} with ingredient {1} and ingredient {2} in a shaker {3} with hand {4} and hand {5}"
            ),
            "pour-shaker-to-shot": (
                "pour-shaker-to-shot to a shot glass {0} the ingredient {1} with hand {2} from shaker {3} "
                "from level {4} to level {5}"
            ),
        },
        rules="""You tend a bar with two hands, left and right. Ingredients come from dispensers, cocktails from the shaker.
- grasp HAND CONTAINER: takes it from the table with an empty hand. The facts then say that you are holding HAND.
- leave HAND CONTAINER: puts it back on the table.
- fill-shot SHOT INGREDIENT HAND HAND DISPENSER: the first hand holds the shot, which must be empty and clean; the second is \
empty. The shot is then used.
- refill-shot SHOT INGREDIENT HAND HAND DISPENSER: the same for an empty shot last used for that ingredient.
- empty-shot HAND SHOT BEVERAGE: throws its contents away.
- clean-shot SHOT BEVERAGE HAND HAND: the first hand holds the empty shot last used for the beverage; the second is empty.
- pour-shot-to-clean-shaker SHOT INGREDIENT SHAKER HAND LEVEL LEVEL: the hand holds the shot; the shaker must be empty and \
clean; its level rises from the first to the second.
- pour-shot-to-used-shaker SHOT INGREDIENT SHAKER HAND LEVEL LEVEL: the same for a shaker that holds an ingredient and is \
unshaked.
- shake COCKTAIL INGREDIENT INGREDIENT SHAKER HAND HAND: the first hand holds the shaker with part 1 and part 2 in it; the \
second is empty.
- pour-shaker-to-shot BEVERAGE SHOT HAND SHAKER LEVEL LEVEL: the hand holds the shaked shaker; the shot must be empty and \
clean; the shaker's level falls from the first to the second.
- empty-shaker HAND SHAKER COCKTAIL LEVEL LEVEL: throws a shaked cocktail away; the level becomes that of the empty shaker.
- clean-shaker HAND HAND SHAKER: the first hand holds the empty shaker; the second is empty.""",
    ),
    "tyreworld": dataclasses.replace(
        TYREWORLD,
        facts={
            **TYREWORLD.facts,
            "loose": "The nut {0} on the hub {1} is loose.",
            "tight": "The nut {0} on the hub {1} is tight.",
            "not-on-ground": "Hub {0} is not on the ground.",
            "free": "{0} is free. ",
        },
        commands={
            "open": "Open {0}.",
            "close": "Close {0}.",
            "fetch": "Fetch {0} from {1}.",
            "put-away": "Put-away {0} in {1}.",
            "loosen": "Loosen the nut {0} on the hub {1}.",
            "tighten": "Tighten the nut {0} on the hub {1}.",
            "jack-up": "jack-up the hub {0}.",
            "jack-down": "Jack-down the hub {0}.",
            "undo": "Undo the fastening of the nut {0} on the hub {1}.",
            "do-up": "Do-up the nut {0} on the hub {1}.",
            "remove-wheel": "Remove-wheel {0} from the hub {1}.",
            "put-on-wheel": "put-on-wheel {0} on the hub {1}.",
            "inflate": "Inflate the wheel {0}.",
        },
    ),
}


_WORD = re.compile(r"(?:[\w+/=~^|\\]|(?<!\.)\.(?!\.)|(?<!-)-(?!-)|[:,](?=\d)|(?<=\w)'(?!(?:s|m|d|ll|re|ve)\b)(?=\w))+")


def words(text: str) -> list[str]:
    """The words of a command, without the punctuation around them; hyphens and dots inside a word stay.

    A full stop before a blank and a double quote stays, too: so does NLTK's tokenizer, by which the original reads.
    """
    text = text.lower()
    return [
        found[0] if re.match(r'\s+"', text[found.end() :]) else found[0].rstrip(".") for found in _WORD.finditer(text)
    ]


def read_command(text: str, arity: Mapping[str, int], objects: Collection[str]) -> Atom | None:
    """The ground action that a command names: the first action word of `arity`, then as many objects as it takes, in order.

    Args:
      arity: the actions that can be done now in some way, with their number of arguments; other action words are not known.
    """
    found = words(text)
    action = next((word for word in found if word in arity), None)
    named = [word for word in found if word in objects]
    if action is None or len(named) < arity[action]:
        return None
    return (action, *named[: arity[action]])
