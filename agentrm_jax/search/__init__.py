"""Test-time search and exploration trees over the protocols in `agentrm_jax.types`. Knows no model and no environment.

Every method is a coroutine for one task; `run_tasks` runs many at once, which is what fills the engine's batches.
"""

from agentrm_jax.search.adaptive import adaptive
from agentrm_jax.search.beam import beam
from agentrm_jax.search.best_of_n import best_of_n, rank
from agentrm_jax.search.budget import Cost, Meter
from agentrm_jax.search.concurrency import closing
from agentrm_jax.search.driver import Done, run_tasks
from agentrm_jax.search.dvts import dvts
from agentrm_jax.search.greedy import greedy, rollout
from agentrm_jax.search.guided_mcts import guided_mcts
from agentrm_jax.search.lookahead import lookahead
from agentrm_jax.search.mcts import explore
from agentrm_jax.search.particle import particle
from agentrm_jax.search.refine import refine
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.search.sharing_beam import sharing_beam

__all__ = [
    "Candidate",
    "Cost",
    "Done",
    "Meter",
    "Result",
    "adaptive",
    "beam",
    "best_of_n",
    "closing",
    "dvts",
    "explore",
    "greedy",
    "guided_mcts",
    "lookahead",
    "particle",
    "rank",
    "refine",
    "rollout",
    "run_tasks",
    "sharing_beam",
]
