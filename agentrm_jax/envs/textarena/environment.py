"""TextArena's games for one player (`Sudoku-v0`, `Minesweeper-v0-small`, `TowerOfHanoi-v0`, ...), by the names of its registry.

A task is a seed. The agent reads what the game says to it since its last move, without the history that TextArena's own wrappers
repeat. The reward is the game's at its end, clipped to [0, 1], and 0 before; progress is the same. A move that the game refuses
costs a step; how many of them end the game is the game's affair.

Games draw from the random numbers of the process, also in the middle of an episode. Each episode therefore has generators of its
own, which are put in place around every call, and are part of a snapshot: the same moves after the same seed give the same answers,
whatever else the worker plays.

Options:
  game: name in TextArena's registry, without `-raw` or `-train`.
  seeds: tasks of each split, `{"test": "0-99", "train": 500}`; by default 500 for training, 50 and 100 for dev and test, all different.
  max_steps (50): turns of an episode.
  game_options: keyword arguments of the game's class, such as `{"max_turns": 20}`.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

from agentrm_jax.envs import indices
from agentrm_jax.envs.chance import Chance
from agentrm_jax.envs.spec import EnvSpec, Options, group, whole
from agentrm_jax.types import EngineStep, Environment, Start, Task, UserError

_OPTIONS = ("game", "seeds", "max_steps", "game_options")
_SEEDS = {"train": "0-499", "dev": "1000-1049", "test": "2000-2099"}

INSTRUCTION = """You play a game for one player. First you are told its rules and what you see, then the answer to each of your moves.
Each turn, write one thought and one move, in the notation that the rules ask for (mostly square brackets):
Thought: <why>
Action: <move>"""
RM_INSTRUCTION = """An agent plays a game for one player, one move a turn.
{goal}"""


class TextArena:
    """One game, reset to one seed after another."""

    def __init__(self, options: Options):
        try:
            import textarena
        except ImportError as error:
            raise UserError(f"textarena: not installed ({error}); pip install 'agentrm-jax[textarena]'") from error
        self._ta = textarena
        self.name = _game(options)
        self.more = group(options, "game_options", env="textarena")
        registry = textarena.envs.registration.ENV_REGISTRY
        if f"{self.name}-raw" not in registry:
            games = sorted(n.removesuffix("-raw") for n in registry if n.endswith("-raw"))
            raise UserError(f"textarena: there is no game {self.name!r}; there are {', '.join(games)[:2000]}")
        self.game: Any = None
        self.chance = Chance(0)

    def reset(self, task: Task) -> Start:
        seed = int(task.args["seed"])
        self.chance = Chance(seed)
        try:
            with self.chance(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                self.game = self._ta.make(f"{self.name}-raw", **self.more)
                self.game.reset(num_players=1, seed=seed)
                said = self._said()
        except Exception as error:  # the game's own, about players, files it lacks, or options it does not know
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"textarena: {self.name} cannot be played alone, or not here: {reason}") from error
        return Start(f"The game is {self.name}; win it.", said)

    def step(self, command: str) -> EngineStep:
        with self.chance(), contextlib.redirect_stdout(io.StringIO()):
            before = self._errors()
            over, _ = self.game.step(action=command)
            said = "" if over and not self._waiting() else self._said()
        rewards = self.game.state.rewards or {}
        reward = min(1.0, max(0.0, float(rewards.get(0) or 0.0))) if over else 0.0
        ending = str(self.game.state.game_info.get(0, {}).get("reason") or "") if over else ""
        text = "\n".join(part for part in (said, ending) if part)
        refused = self._errors() > before or bool(self.game.state.game_info.get(0, {}).get("invalid_move"))
        return EngineStep(text or "The game goes on.", reward, reward, bool(over), valid=not refused)

    def snapshot(self) -> Any:
        return copy.deepcopy(self.game), copy.copy(self.chance)

    def restore(self, snapshot: Any) -> None:
        game, chance = snapshot
        self.game, self.chance = copy.deepcopy(game), copy.copy(chance)

    def close(self) -> None:
        self.game = None

    def _said(self) -> str:
        """What the game told the player since the last time, without the player's own moves."""
        _, messages = self.game.get_observation()
        own = self._ta.ObservationType.PLAYER_ACTION
        return "\n".join(str(text).strip() for _, text, kind in messages if kind != own)

    def _waiting(self) -> bool:
        return bool(self.game.state.observations.get(self.game.state.current_player_id))

    def _errors(self) -> int:
        return int(getattr(self.game.state, "error_count", 0))


def _game(options: Options) -> str:
    name = str(options.get("game") or "")
    if not name:
        raise UserError("textarena: option game is missing; set it to a game for one player, such as Sudoku-v0")
    return name.removesuffix("-raw").removesuffix("-train")


def make(options: Options) -> Environment:
    return TextArena(options)


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The seeds that option `seeds` names."""
    name = _game(options)
    limit = whole(options, "max_steps", 50)
    seeds = indices.of_split(options.get("seeds") or _SEEDS, split, where="textarena: option seeds")
    return [Task("textarena", f"{name}-{seed}", split, limit, {"seed": seed}) for seed in seeds]


SPEC = EnvSpec(
    name="textarena",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    options=_OPTIONS,
    engine="TextArena",
    licence="MIT",
    extra="textarena",
)
