"""The worked example shown to a BabyAI policy: the expert's episode of `UnlockLocalDist`, train seed 100003."""

from agentrm_jax.envs.react import worked

_START = (
    "In front of you in this room, you can see several objects: There is a red box 1 1 steps in front of you "
    "and 3 steps to your left.  There is a green box 1 4 steps in front of you and 1 steps to your right.  "
    "There is a green ball 1 3 steps in front of you and 2 steps to your left.  The room has walls around you. "
    "You are facing a wall 5 steps away. You are not carrying anything."
)
_TURNS = (
    (
        "I do not see the red door yet, so I look left.",
        "turn left",
        (
            "In front of you in this room, you can see several objects: There is a red key 1 3 steps in front of you "
            "and 1 steps to your left.  There is a red box 1 3 steps in front of you and 1 steps to your right.  There "
            "is a green ball 1 2 steps in front of you and 3 steps to your right.  The room has walls around you. You "
            "are facing a wall 4 steps away. You are not carrying anything."
        ),
    ),
    (
        "I do not see the red door yet, so I walk on.",
        "go to red box 1",
        (
            "In front of you in this room, you can see several objects: There is a red box 1 right in front of you 1 "
            "steps away.  There is a green ball 1 3 steps in front of you and 1 steps to your right.  The room has "
            "walls around you. You are facing a box 1 steps away. You are not carrying anything."
        ),
    ),
    (
        "I do not see the red door yet, so I look right.",
        "turn right",
        (
            "In front of you in this room, you can see several objects: There is a red box 1 0 steps in front of you "
            "and 1 steps to your left.  There is a red key 1 0 steps in front of you and 1 steps to your right.  There "
            "is a green ball 1 1 steps in front of you and 3 steps to your left.  There is a red locked door 1 4 steps "
            "in front of you and 2 steps to your right.  The room has walls around you. You are facing a wall 6 steps "
            "away. You are not carrying anything."
        ),
    ),
    (
        "The red door is locked, so I take the red key.",
        "pickup red key 1",
        (
            "In front of you in this room, you can see several objects: The room has walls around you. You are facing "
            "a wall 2 steps away. You are carrying a red key."
        ),
    ),
    (
        "I know where the red door is, so I head back to it.",
        "turn left",
        (
            "In front of you in this room, you can see several objects: There is a red box 1 0 steps in front of you "
            "and 1 steps to your left.  There is a green ball 1 1 steps in front of you and 3 steps to your left.  "
            "There is a red locked door 1 4 steps in front of you and 2 steps to your right.  The room has walls "
            "around you. You are facing a wall 6 steps away. You are carrying a red key."
        ),
    ),
    (
        "The red door is in view, so I open it.",
        "toggle and go through red locked door 1",
        (
            "In front of you in this room, you can see several objects: There is a red open door 1 right in front of "
            "you 1 steps away.  The room has walls around you. You are carrying a red key.\nThe task is completed."
        ),
    ),
)

EXAMPLE = worked("open the door", _START, _TURNS)

# AgentBoard's wrapper carries the last command out to its end: the agent then stands in the doorway.
_THROUGH = (
    "In front of you in this room, you can see several objects: The room has walls around you. "
    "You are carrying a red key.\n The task is completed."
)
EXAMPLE_AGENTBOARD = worked("open the door", _START, (*_TURNS[:-1], (*_TURNS[-1][:2], _THROUGH)))
