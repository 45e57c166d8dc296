"""Reading logs of ALFWorld episodes that others recorded."""

import json
import lzma

from benchmarks.recorded_alfworld import Recorded, read, turns

LOG = """You are in the middle of a room. Looking quickly around you, you see a shelf 1.
Your task is to: put a mug on the shelf.
> Think: I look first.
> go to shelf 1
On the shelf 1, you see nothing.
> ActionPath: Start->Goto(shelf 1)
> put mug 1 in/on shelf 1
Nothing happens.
"""


def test_only_what_was_answered_was_executed():
    assert list(turns(LOG)) == [
        ("go to shelf 1", "On the shelf 1, you see nothing."),
        ("put mug 1 in/on shelf 1", "Nothing happens."),
    ]


def test_an_episode_that_was_cut_off_has_no_outcome(tmp_path):
    path = tmp_path / "log.jsonl.xz"
    with lzma.open(path, "wt") as file:
        for result in (True, 0):
            file.write(json.dumps({"name": "g", "result": result, "traj": LOG}) + "\n")
    assert [r.won for r in read(path)] == [True, None]
    assert list(read(path, most=1)) == [Recorded("g", tuple(turns(LOG)), True)]
