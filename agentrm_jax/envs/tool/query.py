"""Answering questions with tools that look things up: weather, movies, academia (ToolQuery of AgentBoard and the paper's Table 8).

Tools, arguments and refusals are AgentBoard's; the data behind them are generated, different ones for each split, because the
originals are live services. Reward is 1 if `finish`, which ends the episode, was given the right answer, and 0 otherwise.
Progress is the share of sub-goals found (`tool.question.progress`): facts the agent has seen, and the right answer.
A call that is refused answers `ERROR | ...`, is invalid, and changes nothing.

With the option `data` the test split are the official questions (`<data>/tool/{weather,movie,academia}.jsonl`), which need answers of those
services: for academia AgentBoard's own networks, if `<data>/agentboard/tool-query/academia/raw` holds its pickles; otherwise a
`cassette`, a JSON file with a list of {"tool": ..., "args": {...}, "result": ...} that was recorded elsewhere; or the services
themselves (option `service`). Recorded sub-goals are compared with results and answer.

Options:
  kinds: `weather`, `movie`, `academia`, or several (all by default).
  count: generated questions of the split (rounded up to equal shares), default 450 train, 60 dev, 60 test.
  data: folder of official files.
  service: who answers the questions of `data` about weather and movies: `live` asks Open-Meteo and TMDB (`tool.services`), `record`
    asks them only for what the folder `cassette` lacks and adds it there, `recorded` answers from that folder without network.
    What a service refuses, and what was not recorded, the agent reads as an error; a service that does not answer is a fault.
  cassette: recorded answers: of tools (a file), or with `service` of the services (a folder).
  open_meteo_url, tmdb_url: base addresses instead of theirs (with Open-Meteo's for all its hosts), such as http://127.0.0.1:8000.
  timeout: seconds a service may be silent, default 10; below half the pool's step timeout.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentrm_jax.envs.react import played
from agentrm_jax.envs.spec import EnvSpec, Options, several, whole
from agentrm_jax.envs.tool import academia, academia_files, movie, weather
from agentrm_jax.envs.tool import services as service
from agentrm_jax.envs.tool.calls import (
    CHECK,
    FINISH,
    Tool,
    ToolError,
    checked,
    listed,
    read_call,
    refusal,
    render_call,
    same_answer,
    shown,
)
from agentrm_jax.envs.tool.question import Question, progress
from agentrm_jax.types import JSON, EngineStep, Environment, Outcome, Start, Task, UserError

MAX_STEPS = 30
_COUNTS = {"train": 450, "dev": 60, "test": 60}
_ACTIONS: dict[str, Mapping[str, tuple[Tool, Callable[..., Any]]]] = {
    "weather": weather.ACTIONS,
    "movie": movie.ACTIONS,
    "academia": academia.ACTIONS,
}
_QUESTIONS: dict[str, Callable[[int, str], Question[Any]]] = {
    "weather": weather.question,
    "movie": movie.question,
    "academia": academia.question,
}
TOOLS: dict[str, dict[str, Tool]] = {k: {n: tool for n, (tool, _) in v.items()} for k, v in _ACTIONS.items()}


class Snapshot(NamedTuple):
    question: Question[Any]
    kind: str
    recorded: bool
    world: Any
    seen: frozenset[str]
    solved: bool
    over: bool


class ToolQuery:
    """One episode."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kind = ""
        self.question: Question[Any] | None = None
        self.recorded = False
        self.world: Any = None
        self.seen: frozenset[str] = frozenset()
        self.solved = self.over = False

    def reset(self, task: Task) -> Start:
        self.kind, self.recorded = str(task.args["kind"]), "goal" in task.args
        self.question = question = _question(task, self.options)
        self.world, self.seen, self.solved, self.over = question.world, frozenset(), False, False
        return Start(question.goal, f"Tools:\n{listed(TOOLS[self.kind].values())}")

    def step(self, command: str) -> EngineStep:
        assert self.question is not None, "reset comes first"
        tools = TOOLS[self.kind]
        try:
            name, arguments = read_call(command)
            arguments = checked(tools, name, arguments)
            if name == CHECK:
                return self._answer(f"Tools: {', '.join(tools)}.")
            if name == FINISH:
                self.over = True
                self.solved = same_answer(arguments["answer"], self.question.answer)
                return self._answer("The episode is finished.")
            act = _replayed(name) if self.recorded else _ACTIONS[self.kind][name][1]
            self.world, result, facts = act(self.world, arguments)
        except ToolError as e:
            return self._answer(refusal(e), valid=False)
        self.seen |= facts & self.question.needed
        return self._answer(shown(result))

    def snapshot(self) -> Snapshot:
        assert self.question is not None
        return Snapshot(self.question, self.kind, self.recorded, self.world, self.seen, self.solved, self.over)

    def restore(self, snapshot: Snapshot) -> None:
        self.question, self.kind, self.recorded, self.world, self.seen, self.solved, self.over = snapshot

    def close(self) -> None:
        pass

    def _answer(self, observation: str, valid: bool = True) -> EngineStep:
        assert self.question is not None
        found = progress(self.question.needed, self.seen, self.solved)
        return EngineStep(observation, float(self.solved), found, self.over, valid)


def _question(task: Task, options: Options) -> Question[Any]:
    args = task.args
    if "seed" in args:
        return _generated(str(args["kind"]), int(args["seed"]), str(args["data_split"]))
    fixed = {"get_user_current_date": args["date"], "get_user_current_location": args["location"]}
    kind, served = str(args["kind"]), service.mode(options) != service.GENERATED
    results = _cassette(str(options["cassette"])) if options.get("cassette") and not served else {}
    folder = academia_files.folder_of(str(options.get("data"))) if kind == "academia" else None
    live = service.services(options, [kind]) if served and kind in service.SERVED else None
    world = Recording(results, {k: v for k, v in fixed.items() if v is not None}, folder, live)
    answer, others = args["subgoals"][-1], args["subgoals"][:-1]
    needed = frozenset(_key(goal) for goal in others)
    return Question(str(args["goal"]), world, needed, answer, [("", render_call(FINISH, answer=answer))])


@functools.lru_cache(maxsize=64)
def _generated(kind: str, seed: int, split: str) -> Question[Any]:
    return _QUESTIONS[kind](seed, split)


class Recording(NamedTuple):
    """Recorded results by call, what the user's own tools answer, networks or services if any, and which networks were loaded."""

    results: Mapping[str, Any]
    fixed: Mapping[str, JSON]
    networks: Path | None = None
    services: service.Services | None = None
    loaded: frozenset[str] = frozenset()


def _key(value: Any) -> str:
    """One text for equal JSON values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


@functools.lru_cache(maxsize=2)
def _cassette(path: str) -> dict[str, Any]:
    try:
        entries = json.loads(Path(path).read_text())
        return {f"{e['tool']} {_key(e['args'])}": e["result"] for e in entries}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"cassette {path!r} is no JSON list of objects with tool, args and result: {e}") from e


def _replayed(name: str) -> Callable[[Recording, Mapping[str, Any]], tuple[Recording, Any, frozenset[str]]]:
    def play(world: Recording, arguments: Mapping[str, Any]) -> tuple[Recording, Any, frozenset[str]]:
        call = f"{name} {_key(arguments)}"
        if world.networks is not None:
            result = academia_files.answer(academia_files.read_files(world.networks), world.loaded, name, arguments)
            if name.startswith("load"):
                world = world._replace(loaded=world.loaded | {name.removeprefix("load")})
        elif name in world.fixed:
            result = world.fixed[name]
        elif world.services is not None:
            result = service.answer(world.services, name, arguments, world.fixed.get("get_user_current_date"))
        elif call in world.results:
            result = world.results[call]
        else:
            raise ToolError(f"No answer was recorded for {call}.")
        return world, result, frozenset({_key(result), _key(service.compared(result))})

    return play


def make(options: Options) -> ToolQuery:
    """Raises UserError if a cassette is named that cannot be read, networks that cannot be, or services without what they need."""
    kinds = _kinds(options)
    service.check(options, kinds)
    if options.get("cassette") and service.mode(options) == service.GENERATED:
        _cassette(str(options["cassette"]))
    if options.get("data") and "academia" in kinds and (folder := academia_files.folder_of(str(options["data"]))):
        academia_files.read_files(folder)
    return ToolQuery(options)


def _kinds(options: Options) -> list[str]:
    chosen = several(options, "kinds", _ACTIONS)
    for kind in chosen:
        if kind not in _ACTIONS:
            raise UserError(f"tool_query has no kind {kind!r}; known: {', '.join(_ACTIONS)}")
    return chosen


def tasks(split: str, options: Options) -> Sequence[Task]:
    """Generated questions, no two the same; the official ones as `test` if `data` is given.

    Raises:
      UserError: unknown split or kind, official files missing, or `data` and `cassette` or `service` one without the other.
    """
    if split not in _COUNTS:
        raise UserError(f"tool_query has no split {split!r}; known: {', '.join(_COUNTS)}")
    kinds = _kinds(options)
    service.check(options, kinds)
    asked = "service" if service.mode(options) != service.GENERATED else "cassette" if options.get("cassette") else ""
    if asked and not options.get("data"):
        raise UserError(f"tool_query: option `{asked}` needs `data` too: the folder with the official questions")
    if options.get("data") and split == "test":
        _check_answers(kinds, options)
        folder = Path(str(options["data"])) / "tool"
        return [task for kind in kinds for task in _official(kind, folder / f"{kind}.jsonl")]
    share = -(-whole(options, "count", _COUNTS[split]) // len(kinds))
    return [
        Task(
            "tool_query", f"{kind}-{split}-{seed}", split, MAX_STEPS, {"kind": kind, "seed": seed, "data_split": split}
        )
        for kind in kinds
        for seed in _seeds(kind, split, share)
    ]


def _check_answers(kinds: Sequence[str], options: Options) -> None:
    """Raises UserError if nobody would answer the official questions of some kind."""
    own = {"academia"} if academia_files.folder_of(str(options["data"])) else set()
    served = service.mode(options) != service.GENERATED
    if served:
        own |= set(service.SERVED)
    without = [kind for kind in kinds if kind not in own]
    if without and served:
        raise UserError(
            "tool_query: there is no service for academia, and AgentBoard's networks are not below `data`; "
            "set option kinds to weather,movie"
        )
    if without and not options.get("cassette"):
        raise UserError(
            f"tool_query: the official questions of {', '.join(without)} in `data` need recorded answers of their services: name the "
            "file with option `cassette` or ask them with `service`, or set option `data` of tool_query to '' to play generated questions"
        )


@functools.lru_cache(maxsize=16)
def _seeds(kind: str, split: str, n: int) -> tuple[int, ...]:
    """The first `n` seeds (or as many as there are) with questions that were not asked before."""
    seen: set[str] = set()
    chosen: list[int] = []
    for seed in range(20 * n):
        question = _QUESTIONS[kind](seed, split)
        key = f"{question.goal} {question.answer} {sorted(question.needed)}"
        if key not in seen:
            seen.add(key)
            chosen.append(seed)
        if len(chosen) == n:
            break
    return tuple(chosen)


def _official(kind: str, path: Path) -> Iterator[Task]:
    try:
        lines = path.read_text().splitlines()
    except OSError as e:
        raise UserError(f"{path} cannot be read; option `data` must name the folder above `tool`") from e
    for row in map(json.loads, lines):
        config = row["additional_info"]["init_config"] or {}
        args = {"kind": kind, "goal": row["goal"].strip(), "subgoals": row["subgoals"]}
        args |= {"date": config.get("current_date"), "location": config.get("current_location")}
        yield Task("tool_query", f"{kind}-official-{row['id']}", "test", MAX_STEPS, args)


def expert(env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    """The calls that came with a generated question. Of an official one only the answer is known, so it is given at once."""
    args = task.args
    if "seed" in args:
        yield from _generated(str(args["kind"]), int(args["seed"]), str(args["data_split"])).plan
    else:
        yield "I know the answer.", render_call(FINISH, answer=args["subgoals"][-1])


_EXAMPLE = Task("tool_query", "e", "train", MAX_STEPS, {"kind": "movie", "seed": 7, "data_split": "train"})


def answer(outcome: Outcome) -> str | None:
    """What the question was answered with, without regard to case; None if it was not answered."""
    try:
        name, arguments = read_call(outcome.parsed or "")
    except ToolError:
        return None
    given = outcome.done and outcome.valid and name == FINISH
    return json.dumps(arguments.get("answer"), sort_keys=True).casefold() if given else None


SPEC = EnvSpec(
    name="tool_query",
    make=make,
    tasks=tasks,
    instruction="""You answer a question with tools that look things up. The tools are listed with their arguments. \
Their results are your only source; do not guess, and use ids and coordinates exactly as a tool gave them. When you know the \
answer, call finish with it, in the form the question asks for. You have 30 turns.
Each turn, write one thought and one call on a line of its own, with the arguments as JSON:
Thought: <why>
Action: <tool> with Action Input: {"argument": value}""",
    rm_instruction="""An agent answers a question with tools that look things up in a weather service, a film database or a \
network of papers and authors. It is to find out what it needs and then finish with the right answer.
{goal}""",
    expert=expert,
    answer=answer,
    example=played(ToolQuery({}), _EXAMPLE, expert),
    options=("kinds", "count", "cassette", *service.OPTIONS),
    engine="own generated databases",
    licence="Apache-2.0",
)
