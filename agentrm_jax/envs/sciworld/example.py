"""The worked example shown to a ScienceWorld policy: the expert's episode of a train variation (mixing a secondary colour)."""

from agentrm_jax.envs.react import worked

_ROOM = """This room is called the art studio. In it, you see:\x20
\tthe agent
\ta substance called air
\ta large cupboard. The large cupboard door is closed.\x20
\ta paint closet. The paint closet door is closed.\x20
\ta table. On the table is: a bowl (containing {bowl}).
\ta wood cup (containing red paint)
\ta wood cup (containing {second})
\ta wood cup (containing {third})
You also see:
\tA door to the hallway (that is open)"""
_FULL = _ROOM.format(bowl="nothing", second="blue paint", third="yellow paint")
_TURNS = (
    ("I check what is here before I go on.", "look around", _FULL),
    (
        "What is in cup containing blue paint in art studio has to get into bowl.",
        "pour cup containing blue paint in art studio in bowl",
        "You pour the contents of the wood cup into the bowl.",
    ),
    (
        "What is in cup containing yellow paint in art studio has to get into bowl.",
        "pour cup containing yellow paint in art studio in bowl",
        "You pour the contents of the wood cup into the bowl.",
    ),
    ("Mixing what is in bowl lets it react.", "mix bowl", "Blue and yellow paint mix to produce green paint."),
    (
        "I check what is here before I go on.",
        "look around",
        _ROOM.format(bowl="green paint", second="nothing", third="nothing"),
    ),
    (
        "Green paint is what the task asks for, so I focus on it.",
        "focus on green paint",
        "You focus on the green paint.",
    ),
)

_GOAL = "Your task is to use chemistry to create green paint. When you are done, focus on the green paint."
EXAMPLE = worked(_GOAL, _FULL, _TURNS)
