"""TextWorld games made on demand: a seed becomes a compiled Z-machine story in a cache folder, the same on every machine.

Two kinds, both with sub-goals that the story itself scores: cooking (find the cookbook, fetch, cut and cook what the recipe says, eat)
and errands (several small quests in one house). A story takes some seconds to compile, once.
"""

import contextlib
import importlib.util
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs.folders import cache_folder
from agentrm_jax.envs.spec import Options
from agentrm_jax.types import JSON, UserError

INSTALL = "pip install 'agentrm-jax[jericho]', which compiles it and needs gcc and make (apt install build-essential)"
KINDS = ("cooking", "errands")
_LAYOUT = 2  # of the cache: stories made under other rules are made again
_ATTEMPTS = 8
_FOOD = {"train": "train", "dev": "valid", "test": "test"}  # TextWorld splits food items and ways to prepare them


def stories_folder(options: Options) -> Path:
    """Option `cache`, or the user's cache folder."""
    if options.get("cache"):
        return Path(str(options["cache"])).expanduser()
    return cache_folder("textworld")


def story(kind: str, split: str, seed: int, folder: Path) -> tuple[Path, dict[str, JSON]]:
    """(story file, facts about it): `goal`, `max_score`, `walkthrough`. Compiled if the cache lacks it.

    Raises:
      UserError: textworld is not installed, or the cache folder cannot be written.
    """
    if importlib.util.find_spec("textworld") is None:
        raise UserError(f"textworld is not installed: {INSTALL}")
    from importlib.metadata import version

    home = folder / f"{version('textworld')}-{_LAYOUT}" / f"{kind}-{split}-{seed}"
    if not (home / "facts.json").is_file():
        _compile(kind, split, seed, home)
    return home / "story.z8", json.loads((home / "facts.json").read_text())


def _compile(kind: str, split: str, seed: int, home: Path) -> None:
    """Writes the finished story to a folder beside and renames it, so that several processes may do the same at once.

    Now and then the story's parser cannot tell two things apart (a safe and an old safe), so that the walkthrough fails: then the next
    story of the same seed is taken.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=home.parent, prefix=".making-"))
    except OSError as e:
        raise UserError(f"jericho: cannot write stories to {home.parent} ({e.strerror}); set env.options.cache") from e
    made = sum(1 for path in home.parent.iterdir() if not path.name.startswith("."))
    print(
        f"jericho: compiling the story {home.name}, some seconds, once ({made} are ready in {home.parent})",
        file=sys.stderr,
        flush=True,
    )
    try:
        for attempt in range(_ATTEMPTS):
            rng = random.Random(f"{kind}-{split}-{seed}" + (f"-{attempt}" if attempt else ""))
            with _quiet():
                from textworld.generator import compile_game

                game, options = _cooking(split, rng) if kind == "cooking" else _errands(rng)
                options.path = str(work / "story.z8")
                compile_game(game, options)
            walkthrough = list(game.metadata["walkthrough"])
            if _is_won(work / "story.z8", walkthrough):
                break
        facts = {"goal": game.objective, "max_score": game.max_score, "walkthrough": walkthrough}
        (work / "facts.json").write_text(json.dumps(facts, indent=1))
        for file in work.iterdir():
            if file.name not in ("story.z8", "facts.json"):
                file.unlink()
        with contextlib.suppress(OSError):  # another process was first
            work.rename(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The generator prints, warns about its own code, and reads the command line."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        kept, sys.argv = sys.argv, sys.argv[:1]
        try:
            yield
        finally:
            sys.argv = kept


def _options(seed: int) -> Any:
    import textworld

    options = textworld.GameOptions()
    options.seeds = seed
    options.force_recompile = True
    return options


def _is_won(path: Path, commands: Sequence[str]) -> bool:
    """Whether the commands bring the story to its good end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jericho import FrotzEnv

        interpreter = FrotzEnv(str(path))
    interpreter.reset()
    return any("*** The End ***" in interpreter.step(command)[0] for command in commands)


def _cooking(split: str, rng: random.Random) -> tuple[Any, Any]:
    from textworld.challenges.tw_cooking import cooking

    recipe = rng.randint(1, 2)
    settings = {
        "recipe": recipe,
        "take": rng.randint(1, recipe),
        "go": rng.choice((1, 6)),
        "open": rng.random() < 0.5,
        "cook": rng.random() < 0.6,
        "cut": rng.random() < 0.5,
        "drop": False,
        "recipe_seed": rng.randrange(10_000),
        "split": _FOOD[split],
    }
    options = _options(rng.randrange(2**31))
    return cooking.make(settings, options), options


def _errands(rng: random.Random) -> tuple[Any, Any]:
    from textworld.generator import make_game

    options = _options(rng.randrange(2**31))
    options.nb_rooms = rng.randint(2, 4)
    options.nb_objects = rng.randint(6, 10)
    options.nb_parallel_quests = 2
    options.quest_length = rng.randint(2, 4)
    return make_game(options), options
