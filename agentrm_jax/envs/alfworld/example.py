"""The worked example shown to an ALFWorld policy: the explorer's episode in the generated household `train` 32."""

from agentrm_jax.envs.react import worked

_START = """\
You are in the middle of a room. Looking quickly around you, you see a cabinet 8, a cabinet 7, a cabinet 6, a cabinet 5, a cabinet 4, \
a cabinet 3, a cabinet 2, a cabinet 1, a coffeemachine 1, a countertop 1, a drawer 5, a drawer 4, a drawer 3, a drawer 2, a drawer 1, \
a fridge 1, a garbagecan 1, a microwave 1, a sinkbasin 1, a stoveburner 4, a stoveburner 3, a stoveburner 2, a stoveburner 1, and a \
toaster 1."""
_TURNS = (
    (
        "I have not seen the egg yet; countertop 1 is a likely place. I go to countertop 1.",
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a butterknife 1, a lettuce 2, a mug 1, a peppershaker 1, and a potato 1.",
    ),
    (
        "I have not seen the egg yet; garbagecan 1 is a likely place. I go to garbagecan 1.",
        "go to garbagecan 1",
        "You arrive at garbagecan 1. On the garbagecan 1, you see a dishsponge 3.",
    ),
    (
        "I have not seen the egg yet; sinkbasin 1 is a likely place. I go to sinkbasin 1.",
        "go to sinkbasin 1",
        "You arrive at sinkbasin 1. On the sinkbasin 1, you see a apple 1, a lettuce 1, a pan 1, a plate 1, and a pot 1.",
    ),
    (
        "I have not seen the egg yet; fridge 1 is a likely place. I go to fridge 1.",
        "go to fridge 1",
        "You arrive at fridge 1. The fridge 1 is closed.",
    ),
    (
        "The fridge 1 is closed, so I open it first.",
        "open fridge 1",
        "You open the fridge 1. The fridge 1 is open. In it, you see a bread 1, a egg 1, a potato 2, and a tomato 1.",
    ),
    (
        "I see egg 1 here and the task needs it, so I take it.",
        "take egg 1 from fridge 1",
        "You pick up the egg 1 from the fridge 1.",
    ),
    ("With fridge 1 I can cool the egg 1.", "cool egg 1 with fridge 1", "You cool the egg 1 using the fridge 1."),
    (
        "The egg 1 belongs in or on sinkbasin 1. I go to sinkbasin 1.",
        "go to sinkbasin 1",
        "You arrive at sinkbasin 1. On the sinkbasin 1, you see a apple 1, a lettuce 1, a pan 1, a plate 1, and a pot 1.",
    ),
    (
        "I am at sinkbasin 1 with egg 1, so I put it down here.",
        "put egg 1 in/on sinkbasin 1",
        "You put the egg 1 in/on the sinkbasin 1.",
    ),
)

EXAMPLE = worked("put a cool egg in sinkbasin.", _START, _TURNS)
