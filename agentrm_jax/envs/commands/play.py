"""`python -m agentrm_jax.envs play`: an episode in the terminal."""

import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from agentrm_jax.envs.pool.episode import Episode, Snapshot, observation_limit
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.replies import parse_action, render_action
from agentrm_jax.types import Outcome, Task, UserError

_HELP = "Type a command of the environment, or :expert (a hint), :undo, :rules, :quit."


class Game:
    """One episode with a way back: every turn with the outcome it had, and the state before it where the engine can copy."""

    def __init__(self, spec: EnvSpec, options: Options, task: Task):
        self.spec, self.options, self.task = spec.at_threshold(options), options, task
        self.episode = Episode(spec.make(options), self.spec, observation_limit(options))
        self.start = self.episode.reset(task)
        self.turns: list[tuple[str, Outcome]] = []
        self._before: list[Snapshot | None] = []

    @property
    def over(self) -> bool:
        return bool(self.turns) and self.turns[-1][1].done

    def play(self, turn: str) -> Outcome:
        before = self._snapshot()
        outcome = self.episode.step(turn)
        self.turns.append((turn, outcome))
        self._before.append(before)
        return outcome

    def undo(self) -> str:
        """Takes the last turn back, by snapshot or by replay; what it came to in words."""
        if not self.turns:
            return "There is nothing to take back."
        self.turns.pop()
        snapshot = self._before.pop()
        if snapshot is not None:
            self.episode.restore(snapshot)
            return f"Back at step {len(self.turns)}."
        self.episode.reset(self.task)
        same = [self.episode.step(turn) == outcome for turn, outcome in self.turns]
        return f"Back at step {len(self.turns)}, by replay" + ("." if all(same) else ", which went another way!")

    def hint(self) -> str:
        """What the expert does next, if all turns so far were the expert's, too."""
        if self.spec.expert is None:
            return "This environment has no expert."
        made = Episode(self.spec.make(self.options), self.spec, observation_limit(self.options))
        try:
            made.reset(self.task)
            plan = self.spec.expert(made.environment, self.task)
            return _follow(plan, made, [outcome.parsed for _, outcome in self.turns])
        finally:
            made.close()

    def close(self) -> None:
        self.episode.close()

    def _snapshot(self) -> Snapshot | None:
        try:
            return self.episode.snapshot()
        except NotImplementedError:
            return None


def play(spec: EnvSpec, options: Options, task: Task, lines: TextIO) -> int:
    """Plays `task` with the commands of `lines` until its end, the end of the lines, or `:quit`."""
    game = Game(spec, options, task)
    print(f"{task.key}, at most {task.max_steps} steps. {_HELP}\n\nGoal: {game.start.goal}\n\n{game.start.observation}")
    try:
        while (line := _read(lines)) is not None and line != ":quit":
            _turn(game, line)
            if game.over:
                print(
                    "The episode is over: "
                    + ("success." if game.turns[-1][1].success else "no success.")
                    + " :undo or :quit?"
                )
    except UserError:
        raise
    except Exception as error:  # an engine's own, which a player should see as what it is
        raise UserError(f"{spec.name} failed: {type(error).__name__}: {error}") from error
    finally:
        game.close()
    return 0


def _turn(game: Game, line: str) -> None:
    if line == ":undo":
        print(game.undo())
        print(game.turns[-1][1].observation if game.turns else game.start.observation)
    elif line == ":expert":
        print(game.hint())
    elif line == ":rules":
        print(game.spec.instruction)
    elif line.startswith(":"):
        print(_HELP)
    elif line and not game.over:
        turn = line if parse_action(line, multiline=game.spec.multiline).command else render_action("", line)
        outcome = game.play(turn)
        print(outcome.observation)
        notes = f"reward {outcome.reward:.3g}, progress {outcome.progress:.3g}, step {len(game.turns)} of {game.task.max_steps}"
        print(f"[{notes}{'' if outcome.valid else ', not a valid command'}]")


def _follow(plan: Iterator[tuple[str, str]], made: Episode, commands: Sequence[str | None]) -> str:
    """Lets the expert play along `commands`; the next thing it would do, or where it would have done otherwise."""
    for i, command in enumerate(commands):
        thought, planned = next(plan, ("", ""))
        if planned != command:
            return f"The expert would have done otherwise at step {i + 1}: {planned or 'nothing further'} (:undo leads back)."
        made.step(render_action(thought, planned))
    thought, planned = next(plan, ("", ""))
    return f"{thought}\n{planned}".strip() or "The expert has nothing further to do."


def _read(lines: TextIO) -> str | None:
    """The next line without white space around it; None at the end."""
    if lines.isatty():
        print("> ", end="")
    sys.stdout.flush()
    line = lines.readline()
    return line.strip() if line else None
