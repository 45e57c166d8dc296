"""The search methods by name: what each needs, and how it is called."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agentrm_jax.search.adaptive import adaptive
from agentrm_jax.search.beam import beam
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.dvts import dvts
from agentrm_jax.search.greedy import greedy
from agentrm_jax.search.guided_mcts import guided_mcts
from agentrm_jax.search.lookahead import lookahead
from agentrm_jax.search.mcts import explore
from agentrm_jax.search.particle import particle
from agentrm_jax.search.refine import refine
from agentrm_jax.search.result import Result
from agentrm_jax.search.sample import sample
from agentrm_jax.search.sharing_beam import sharing_beam
from agentrm_jax.search.turns import Command
from agentrm_jax.types import UserError

Search = Callable[..., Coroutine[Any, Any, Result]]  # (task, policy, environments[, reward model])


@dataclasses.dataclass(frozen=True)
class Method:
    """A search method.

    Attributes:
      run: the coroutine of one task.
      reward_model: it is given a reward model after the environments.
      drawn: the setting that says how many trajectories of a task are drawn from the policy whatever their scores; empty for a method
        whose candidates are not independent samples.
      explores: its results are trees to learn from, not answers to compare with others.
      samples: its candidates are drawn alike, so that they say what rules without a reward model make of them.
    """

    run: Search
    reward_model: bool = False
    drawn: str = ""
    explores: bool = False
    samples: bool = False

    @property
    def keeps(self) -> bool:
        """Whether all candidates are kept in the record of a task."""
        return self.reward_model or self.samples

    def bind(self, settings: Mapping[str, Any], *, seed: int, command: Command) -> Search:
        """`run` with the settings of a config; `command` is how it recognises equal commands, if it does.

        Raises:
          UserError: it has no such setting.
        """
        known = {p.name for p in inspect.signature(self.run).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1, 0.5)
                hint = (
                    f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known - {'seed', 'command'}))}"
                )
                raise UserError(f"--config.search.{name}: {self.run.__name__} has no such setting; {hint}")
        given = {"seed": seed, "command": command}
        return functools.partial(self.run, **{k: v for k, v in given.items() if k in known}, **settings)


METHODS: Mapping[str, Method] = {
    "greedy": Method(greedy),
    "best_of_n": Method(best_of_n, reward_model=True, drawn="n"),
    "beam": Method(beam, reward_model=True),
    "lookahead": Method(lookahead, reward_model=True),
    "adaptive": Method(adaptive, reward_model=True, drawn="wave"),
    "dvts": Method(dvts, reward_model=True),
    "sharing_beam": Method(sharing_beam, reward_model=True),
    "particle": Method(particle, reward_model=True),
    "guided_mcts": Method(guided_mcts, reward_model=True),
    "refine": Method(refine, reward_model=True),
    "sample": Method(sample, drawn="n", samples=True),
    "mcts": Method(explore, explores=True),
}


def find(name: str) -> Method:
    """The method called `name`. Raises UserError if there is none."""
    if name not in METHODS:
        raise UserError(f"--config.method={name}: known methods are {', '.join(METHODS)}")
    return METHODS[name]
