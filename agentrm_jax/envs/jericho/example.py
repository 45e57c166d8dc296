"""The worked example shown to a policy that plays text adventures: the expert's episode of the generated story `errands-train-2`."""

from agentrm_jax.envs.react import worked

_GOAL = (
    "Welcome to another life changing episode of TextWorld! Here is your task for today. First "
    "off, if it's not too much trouble, I need you to try to go to the east. After that, venture south. "
    "Then, pick up the broom from the bench. If you can get your hands on the broom, go north. Once you "
    "succeed at that, open the non-euclidean locker. After you have opened the non-euclidean locker, "
    "deposit the broom inside the non-euclidean locker. And if you do that, you're the winner!"
)
_START = (
    "-= Laundry Place =-\n"
    "You find yourself in a laundry place. An ordinary one.\n"
    "\n"
    "You see a case. I mean, just wow! Isn't TextWorld just the best? The case contains a fondue.\n"
    "\n"
    "There is an open gate leading east. There is an unguarded exit to the south.\n"
    "\n"
    "There is a paper towel on the floor."
)
_TURNS = (
    (
        "What I need lies this way: east.",
        "go east",
        (
            "-= Pantry =-\n"
            "You find yourself in a pantry. A typical one.\n"
            "\n"
            "You can make out a non-euclidean locker. You can see a counter. Looks like someone's already been "
            "here and taken everything off it, though. Oh! Why couldn't there just be stuff on it?\n"
            "\n"
            "There is an open gate leading west. You don't like doors? Why not try going south, that entranceway "
            "is unguarded."
        ),
    ),
    (
        "What I need lies this way: south.",
        "go south",
        (
            "-= Restroom =-\n"
            "You are in a restroom. A standard kind of place.\n"
            "\n"
            "You smell an awful smell, and follow it to a bench. The bench is ordinary. On the bench you make "
            "out a broom. You make out a shelf. But there isn't a thing on it. You see a gleam over in a corner, "
            "where you can see a table. But oh no! there's nothing on this piece of trash. It would have been so "
            "cool if there was stuff on the table.\n"
            "\n"
            "You don't like doors? Why not try going north, that entranceway is unblocked."
        ),
    ),
    (
        "I need the broom, and it is in or on the bench.",
        "take broom from bench",
        ("You take the broom from the bench.\n\nYour score has just gone up by one point."),
    ),
    (
        "What I need lies this way: north.",
        "go north",
        (
            "-= Pantry =-\n"
            "You find yourself in a pantry. A typical one.\n"
            "\n"
            "You can make out a non-euclidean locker. You can see a counter. Looks like someone's already been "
            "here and taken everything off it, though. Oh! Why couldn't there just be stuff on it?\n"
            "\n"
            "There is an open gate leading west. You don't like doors? Why not try going south, that entranceway "
            "is unguarded."
        ),
    ),
    (
        "I need what is in or behind the non-euclidean locker.",
        "open non-euclidean locker",
        "You open the non-euclidean locker.",
    ),
    (
        "The broom belongs in or on the non-euclidean locker.",
        "insert broom into non-euclidean locker",
        (
            "You put the broom into the non-euclidean locker.\n"
            "\n"
            "Your score has just gone up by one point.\n"
            "\n"
            "*** The End ***\n"
            "\n"
            "You scored 2 out of a possible 2, in 7 turns."
        ),
    ),
)

EXAMPLE = worked(_GOAL, _START, _TURNS)
