"""One key of a config, the roles of configs that have it, and words and ranges that several keys share."""

import dataclasses
from typing import Any

from agentrm_jax.run.ranges import Choice, Range


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
      name: as after `--config.`; `*` at its end stands for all keys below.
      range: the values it may have.
      meaning: half a sentence.
      unit: of a number, where it has one.
      of: roles of the configs that have it (`roles`); a key of one name may mean one thing here and another there.
      identity: it is what the config file is, and is not set on the command line.
      steady: changing it cannot change results (beyond rounding), so a run that has begun may go on with another value.
      raised: it may be raised in a run that has begun, and this is what that does; empty if it may not.
      before: what runs did that were made before the key existed; None if it is as old as the program.
    """

    name: str
    range: Range
    meaning: str
    unit: str = ""
    of: tuple[str, ...] = ()
    identity: bool = False
    steady: bool = False
    raised: str = ""
    before: Any = None

    def stands_for(self, name: str, roles: set[str]) -> bool:
        """Whether this is the row of the key `name` in a config of these roles."""
        if not roles & set(self.of):
            return False
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


TRAIN, SEARCH = ("train",), ("search",)
BOTH = TRAIN + SEARCH
POLICY, EXPLICIT, IMPLICIT = ("policy",), ("explicit",), ("implicit",)
REWARDS, FROM_NOTHING = EXPLICIT + IMPLICIT, POLICY + EXPLICIT
TASKS = POLICY + SEARCH  # what chooses tasks
RERANKING = (
    "best_of_n",
    "beam",
    "lookahead",
    "adaptive",
    "dvts",
    "sharing_beam",
    "particle",
    "guided_mcts",
    "refine",
)  # with a reward model
SAMPLING = (*RERANKING, "mcts", "sample")
TREES = ("mcts", "guided_mcts")
DATA = "files and folders with commas between them, or hf:NAME"
MODELS = "a workdir, a Hugging Face folder, a .gguf file, or smollm2"
POLICIES = f"{MODELS}; openai:MODEL@URL; or MODULE:FUNCTION"
REWARD_MODELS = f"{MODELS}; implicit:TUNED@BASE; judge:PLACE of a policy; MODULE:FUNCTION; or several with commas between them, an ensemble"
OUTCOMES = Choice(("reward", "progress", "success"))
IMPLICIT_LOSSES = ("implicit_regression", "implicit_cross_entropy", "implicit_brier")
LINEAR_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AXIS_WORDS = "-1: all devices that are left"
