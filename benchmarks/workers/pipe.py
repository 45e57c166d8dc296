"""The other end of `benchmarks.peers.Peer`: answers questions on a pipe. The workers beside it import it, and nothing else of ours.

A question is a line of JSON with the name of a handler (`do`) and its arguments; an answer is one too: the handler's result, or
`{"error": TEXT}`. Whatever else a library prints goes to standard error.
"""

import ctypes
import json
import os
import signal
import sys
import traceback

_PR_SET_PDEATHSIG = 1


def job():
    """The object that the worker was started with."""
    return json.loads(sys.argv[1])


def answers():
    """A function that writes answers to the real standard output, which nobody else can write to from now on.

    From now on, too, this process ends with the one that started it, even while it is stopped.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        pipe.write(json.dumps(answer) + "\n")
        pipe.flush()

    return say


def serve(say, handlers, **about):
    """Says that it is ready, and what `about` has; then answers until the pipe is closed."""
    say({"ready": True, **about})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            say(handlers[question.pop("do")](**question))
        except Exception as error:
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})
