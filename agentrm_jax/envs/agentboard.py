"""AgentBoard's labels, where the user has them: sub-goals of its tasks as patterns that observations are compared with.

`agentboard/{scienceworld,alfworld,jericho}/test.jsonl` below the data folder: a task a line, with `goal`, `subgoals` (regular expressions;
plain texts for Jericho) and `additional_info`. They come with AgentBoard's data, not with its code.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.types import JSON, UserError


@functools.lru_cache(4)
def rows(data: str, task: str) -> tuple[dict[str, JSON], ...]:
    """The lines of a task's file; empty if there is none.

    Raises:
      UserError: the file is not of this form.
    """
    path = Path(data).expanduser() / "agentboard" / task / "test.jsonl"
    if not path.is_file():
        return ()
    try:
        found = tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        for row in found:
            for pattern in row["subgoals"]:
                re.compile(re.escape(pattern) if task == "jericho" else pattern)
    except (ValueError, KeyError, TypeError, re.error) as error:
        raise UserError(f"{path} does not hold AgentBoard's labels of {task}: {error!r}") from error
    return found


def matched(reached: frozenset[int], patterns: Sequence[str], observation: str) -> frozenset[int]:
    """`reached` and the numbers of all patterns found in the observation (ScienceWorld, ALFWorld)."""
    return reached | {i for i, pattern in enumerate(patterns) if re.search(pattern, observation)}


def matched_first(reached: frozenset[int], texts: Sequence[str], observation: str) -> frozenset[int]:
    """`reached` and the number of the first new text in the observation, letters and digits compared (Jericho)."""
    seen = _bare(observation)
    for i, text in enumerate(texts):
        if i not in reached and _bare(text) in seen:
            return reached | {i}
    return reached


def _bare(text: str) -> str:
    text = re.sub(r" {2,}", " ", text.replace("\n", " "))
    return re.sub(r"[^a-zA-Z0-9\s]", "", text)
