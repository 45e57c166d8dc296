"""Text adventures: generated TextWorld stories, or Z-machine games that the user has (environments.md section 5).

Both run in Jericho's interpreter, so that a state is a copy of its memory: forks cost microseconds.

Reward and progress are the same number. Stories: points so far / all points of the story, each point a sub-goal of a quest. Games, by
option `progress`: `labels` (the default: AgentBoard's sub-goals, one a command at most, if `data` holds `agentboard/jericho/test.jsonl`),
`checkpoints` (also where there are no labels, so that figures are not AgentBoard's: places and score rises along the game's own
walkthrough, as many as fit in the step limit, reached so far / all), or `score` (the game's score / its maximum).

Commands about the session (quit, save, restore, ...) are not passed on (`jericho/interpreter.py`).

A game that Jericho knows answers `check valid actions` as in AgentBoard (`jericho/actions.py`). Stories and other games do not: Jericho has
no grammar of theirs, and TextWorld's list comes from a simulation of its own, which is not run here.

Options: `data` (folder with games `*.z3 ... *.z8`, anywhere below, and AgentBoard's `jericho/agentboard_goals.json` if there is one:
then its games, in its order, are the test split and all others train, every fifth of them dev), `max_steps` (default 30), `progress`,
`cache` (folder for generated stories, default `$XDG_CACHE_HOME/agentrm_jax/textworld`), `stories` (how many in a generated split).
"""

import functools
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentrm_jax.envs import agentboard
from agentrm_jax.envs.jericho import actions, generate
from agentrm_jax.envs.jericho.example import EXAMPLE
from agentrm_jax.envs.jericho.interpreter import (
    Interpreter,
    about_session,
    asks_about_session,
    offers_to_restart,
    typed,
)
from agentrm_jax.envs.react import reason
from agentrm_jax.envs.spec import EnvSpec, Options, whole
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

_MAX_STEPS = 30
_STORIES = {"train": 60, "dev": 12, "test": 20}
_NO_GOAL = "Explore the world of this game and score as many points as you can."
_SPELLINGS = {"huntdark": "darkhunt"}  # AgentBoard's list of goals spells this game the other way round
# How the parsers of these games say that they could not read a command.
_UNREADABLE = re.compile(
    r"(?i)\W*(that's not a verb|you can't see any|i only understood|i didn't understand|i don't (know|understand|recogni[sz]e)|"
    r"you used the word|i beg your pardon|there was no verb|that sentence isn't|this isn't something|you can't use multiple|"
    r"that's not something you|what do you want to|i can't see|unrecogni[sz]ed)"
)

_NOT_PLAYED = "That command is about the session, not the game, and is not passed on."

INSTRUCTION = """You play a text adventure: the game describes where you are, and you type short commands in the imperative.
Common commands:
  look | inventory | examine THING | north, south, east, west, up, down (or: go east)
  take THING | take THING from THING | drop THING | put THING on THING | insert THING into THING
  open THING | close THING | unlock THING with THING | lock THING with THING
  eat THING | read THING | turn on THING | push THING | pull THING | give THING to PERSON | attack THING with THING
In a kitchen: cook THING with stove | slice THING with knife | chop THING with knife | dice THING with knife | prepare meal | eat meal
Use the words of the descriptions. Try something else when the game does not understand you.
Answer every observation with two lines:
Thought: why you do what you do next
Action: one command"""

RM_INSTRUCTION = """You watch an agent that plays a text adventure by short commands: moving, looking, examining, taking, putting, \
opening, using things. Judge how well it is on the way to this task:
{goal}"""


class Snapshot(NamedTuple):
    """A state of one game: which game, the interpreter's memory, and what has been reached."""

    game: "Game"
    memory: Any
    reached: frozenset[str] | frozenset[int]
    best: float


class Game(NamedTuple):
    """What is known of a game apart from play.

    Attributes:
      path: the story file.
      goal: the task in words.
      max_score: points to be had; 0 if unknown.
      walkthrough: commands that solve it, possibly none.
      generated: it is a TextWorld story, whose score is read from its own tags.
      checkpoints: marks along the walkthrough, in order; empty where progress is something else.
      labels: AgentBoard's sub-goals; empty where progress is something else.
    """

    path: str
    goal: str
    max_score: int
    walkthrough: tuple[str, ...]
    generated: bool
    checkpoints: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class Jericho:
    """One interpreter, playing one game at a time."""

    def __init__(self, options: Options):
        self.options = options
        self.interpreter: Any = None
        self.loaded = ""
        self.game: Game | None = None
        self.reached: frozenset[Any] = frozenset()  # checkpoints, or numbers of labels
        self.best = 0.0

    def reset(self, task: Task) -> Start:
        if "seed" in task.args:
            path, facts = generate.story(
                str(task.args["kind"]), task.split, int(task.args["seed"]), generate.stories_folder(self.options)
            )
            game = Game(str(path), str(facts["goal"]), int(facts["max_score"]), tuple(facts["walkthrough"]), True)
        else:
            game = self._official(task)
        return self._begin(game)

    def _begin(self, game: Game) -> Start:
        self._load(game.path)
        self.game, self.reached, self.best = game, frozenset(), 0.0
        text, _ = self.interpreter.reset()
        if game.generated:
            self.interpreter.step("tw-extra-infos score")
            return Start(game.goal, _opening(text))
        return Start(game.goal, text.strip())

    def _official(self, task: Task) -> Game:
        name, path = str(task.args["game"]), _games(str(self.options.get("data"))).get(str(task.args["game"]))
        if path is None:
            raise UserError(f"jericho: the game {name} is not below {self.options.get('data')}; set env.options.data")
        self._load(str(path))
        walkthrough = tuple(self.interpreter.get_walkthrough() or ()) if self.interpreter.is_fully_supported else ()
        game = Game(str(path), str(task.args["goal"]), self._max_score(), walkthrough, False)
        if "subgoals" in task.args:
            return game._replace(labels=tuple(task.args["subgoals"]))
        if _progress(self.options) != "score" and walkthrough:
            game = game._replace(checkpoints=self._checkpoints(game, task.max_steps))
        return game

    def step(self, command: str) -> EngineStep:
        game = self.game
        assert game is not None, "the environment was never reset"
        line = typed(command)
        if about_session(line, self.interpreter.word_length, game.generated):
            return EngineStep(_NOT_PLAYED, self.best, self.best, False, False)
        if not game.generated and self.interpreter.is_fully_supported and actions.asked(command):
            return EngineStep(actions.listed(self.interpreter), self.best, self.best)
        text, _, over, _ = self.interpreter.step(line)
        if not over and asks_about_session(text):
            more, _, over, _ = self.interpreter.step("no")
            text = f"{text}\n{more}"
        if not game.generated and not self.interpreter.is_fully_supported:
            over = over or offers_to_restart(text)
        if game.generated:
            score, won = _tagged_score(text), "*** The End ***" in text
            over = won or "*** You lost! ***" in text
            now = 1.0 if won else max(0, score) / game.max_score
            text = _clean(text)
        elif game.labels:
            self.reached = agentboard.matched_first(self.reached, game.labels, text)
            now = len(self.reached) / len(game.labels)
        elif game.checkpoints:
            self.reached |= {mark for mark in game.checkpoints if self._at(mark)}
            now = len(self.reached) / len(game.checkpoints)
        else:
            now = max(0, self._score()) / game.max_score if game.max_score else 0.0
        self.best = min(1.0, max(self.best, now))
        return EngineStep(
            text.strip(), self.best, self.best, over or self.best >= 1.0, not _UNREADABLE.match(text.strip())
        )

    def snapshot(self) -> Snapshot:
        assert self.game is not None, "the environment was never reset"
        return Snapshot(self.game, self.interpreter.get_state(), self.reached, self.best)

    def restore(self, snapshot: Snapshot) -> None:
        self._load(snapshot.game.path)
        if self.interpreter._emulator_halted():
            self.interpreter.reset()
        self.interpreter.set_state(snapshot.memory)
        self.game, _, self.reached, self.best = snapshot

    def close(self) -> None:
        if self.interpreter is not None:
            self.interpreter.discard()
        self.interpreter, self.loaded = None, ""

    def _load(self, path: str) -> None:
        """Puts the game into the interpreter unless it is there already."""
        if self.loaded == path:
            return
        self.close()
        self.interpreter, self.loaded = Interpreter(path), path

    def _score(self) -> int:
        """The score; for a game Jericho does not know, what it answers to `score`, asked on a copy of the state."""
        return int(self.interpreter.get_score()) if self.interpreter.is_fully_supported else self._asked_score()[0]

    def _max_score(self) -> int:
        return int(self.interpreter.get_max_score()) if self.interpreter.is_fully_supported else self._asked_score()[1]

    def _asked_score(self) -> tuple[int, int]:
        kept = self.interpreter.get_state()
        text = self.interpreter.step("score")[0]
        self.interpreter.set_state(kept)
        found = re.search(r"(-?\d+)\D+?(?:total of|possible|out of)(?: a)?(?: possible)? (\d+)", text)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def _marks(self) -> set[str]:
        """What could be a checkpoint about the present state: the place and the score."""
        place = self.interpreter.get_player_location()
        marks = {f"score {self.interpreter.get_score()}"} if self.interpreter.get_score() > 0 else set()
        return marks | ({f"place {place.num}"} if place is not None else set())

    def _at(self, mark: str) -> bool:
        kind, number = mark.split()
        if kind == "score":  # another route may jump over a score of the walkthrough
            return int(self.interpreter.get_score()) >= int(number)
        return mark in self._marks()

    def _checkpoints(self, game: Game, limit: int) -> tuple[str, ...]:
        """New places and score rises on the first `limit` commands of the walkthrough, in order."""
        self.interpreter.reset()
        start, marks = self._marks(), []
        for command in game.walkthrough[:limit]:
            over = self.interpreter.step(command)[2]
            marks += sorted(mark for mark in self._marks() if mark not in start and mark not in marks)
            if over:
                break
        return tuple(marks)


def _tagged_score(text: str) -> int:
    found = re.search(r"<score>\s*(-?\d+)", text)
    return int(found[1]) if found else 0


def _clean(text: str) -> str:
    """The story's words without its tags, prompt, status line and closing question."""
    text = re.sub(r"<(\w+)>\n.*?</\1>", "", text, flags=re.S)
    text = re.sub(r"\n*>\s*(?:-=.*?=-\d+/\d+)?\s*$", "", text)
    text = re.sub(r"\s*Would you like to RESTART,.*$", "", text, flags=re.S)
    text = re.sub(r"^[ \t]+|[ \t]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _opening(text: str) -> str:
    """The first room, without banner and goal (which is given apart)."""
    cleaned = _clean(text)
    start = cleaned.find("-= ")
    return cleaned[start:] if start >= 0 else cleaned


@functools.lru_cache(4)
def _games(data: str) -> dict[str, Path]:
    """Name -> file of every Z-machine game below a folder; the first by path where a name comes twice."""
    root = Path(data).expanduser()
    files = sorted(p for p in root.rglob("*.z[1-8]") if p.is_file())
    return {p.stem.lower(): p for p in reversed(files)}


def _agentboard(root: Path) -> dict[str, str]:
    """AgentBoard's games in its order, with their goals; empty if its file is not there."""
    file = next((f for f in (root / "jericho", root) if (f / "agentboard_goals.json").is_file()), None)
    if file is None:
        return {}
    content = json.loads((file / "agentboard_goals.json").read_text())
    goals = content["goals"]
    return {name: goals.get(name) or goals.get(_SPELLINGS.get(name, name)) or _NO_GOAL for name in content["order"]}


def make(options: Options) -> Environment:
    if importlib.util.find_spec("jericho") is None:
        raise UserError(f"jericho is not installed: {generate.INSTALL}")
    return Jericho(options)


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The user's games if `data` is given, generated stories (cooking and errands by turns) otherwise."""
    max_steps = whole(options, "max_steps", _MAX_STEPS)
    progress = _progress(options)
    if not options.get("data"):
        count = whole(options, "stories", _STORIES[split])
        kinds = [(generate.KINDS[i % 2], i // 2) for i in range(count)]
        return [Task("jericho", f"{k}-{split}-{s}", split, max_steps, {"kind": k, "seed": s}) for k, s in kinds]
    root = Path(str(options["data"])).expanduser()
    games, board = _games(str(options["data"])), _agentboard(root)
    if not games:
        raise UserError(
            f"jericho: there is no game (*.z3 ... *.z8) below {root}; leave env.options.data out to play stories"
        )
    others = sorted(set(games) - set(board))
    chosen = {
        "test": [name for name in board if name in games] or others,
        "dev": others[::5] if board else [],
        "train": [name for i, name in enumerate(others) if i % 5] if board else [],
    }[split]
    labels = _labels(str(options["data"]), list(board)) if progress == "labels" else {}
    return [
        Task("jericho", n, split, max_steps, {"game": n, "goal": board.get(n, _NO_GOAL), **labels.get(n, {})})
        for n in chosen
    ]


def _progress(options: Options) -> str:
    """What reward and progress are; by default AgentBoard's labels, or checkpoints where there are none."""
    chosen = str(options.get("progress") or "labels")
    if chosen not in ("labels", "checkpoints", "score"):
        raise UserError(f"jericho: no progress {chosen!r}; choose labels, checkpoints or score")
    return chosen


def _labels(data: str, games: Sequence[str]) -> dict[str, dict[str, JSON]]:
    """Game -> AgentBoard's sub-goals as a task argument; its file names no games, but has them in its order."""
    rows = agentboard.rows(data, "jericho")
    if rows and len(rows) != len(games):
        raise UserError(
            f"jericho: agentboard/jericho/test.jsonl labels {len(rows)} games, agentboard_goals.json names {len(games)}"
        )
    return {name: {"subgoals": row["subgoals"]} for name, row in zip(games, rows, strict=False)}


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """The walkthrough, with a thought for each command. A game's walkthrough is longer than the step limit as a rule."""
    assert isinstance(env, Jericho)
    assert env.game is not None
    for command in env.game.walkthrough:
        yield explain(command), command


_REASONS = (
    (r"inventory|i", "I check what I carry."),
    (r"look|l", "I look around before I go on."),
    (r"(?:examine|x|read) (.+)", "The {0} may tell me what to do."),
    (
        r"(?:go )?(north|south|east|west|up|down|[nsewud]|[ns][ew]|(?:north|south)(?:east|west))",
        "What I need lies this way: {0}.",
    ),
    (r"take (.+) from (.+)", "I need the {0}, and it is in or on the {1}."),
    (r"(?:take|get|pick up) (.+)", "I will need the {0}."),
    (r"drop (.+)", "I no longer need the {0} in my hands."),
    (r"(?:cook|slice|chop|dice|unlock|lock|open|cut) (.+) with (.+)", "The {1} is the right tool for the {0}."),
    (r"(?:insert|put) (.+) (?:into|on|in) (.+)", "The {0} belongs in or on the {1}."),
    (r"open (.+)", "I need what is in or behind the {0}."),
    (r"close (.+)", "The {0} is to be closed."),
    (r"prepare meal", "All that the recipe asks for is ready."),
    (r"eat (.+)", "The {0} is there to be eaten."),
)


def explain(command: str) -> str:
    """A short reason for a command of a walkthrough, from the command alone."""
    return reason(command.strip().lower(), _REASONS) or "This is the next step of what the game asks for."


SPEC = EnvSpec(
    name="jericho",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    expert=expert,
    example=EXAMPLE,
    options=("max_steps", "progress", "cache", "stories"),
    engine="jericho and textworld",
    licence="GPL-2.0-or-later (jericho), MIT (textworld)",
    extra="jericho",
)
