"""TextArena's games as environments of ours, on the package itself."""

import asyncio
import importlib.util
import random

import pytest

from agentrm_jax.envs.chance import Chance
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.textarena import environment as textarena
from agentrm_jax.types import Action, UserError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("textarena") is None, reason="the package textarena is not installed"
)
# The package opens files without closing them, and warns of its own syntax.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::SyntaxWarning", "ignore::DeprecationWarning"
)
# Games that need no file that the package lacks, and moves that they understand.
GAMES = {
    "GuessTheNumber-v0": ["[10]", "[5]", "[15]"],
    "2048-v0": ["[up]", "[left]", "[up]", "[right]"],
    "TowerOfHanoi-v0": ["[A C]", "[A B]", "[C B]"],
    "Minesweeper-v0-small": ["[0 0]", "[4 4]"],
    "Blackjack-v0": ["[Hit]", "[Stand]", "[Hit]"],
    "FrozenLake-v0-random": ["[down]", "[right]"],
    "Sudoku-v0-easy": ["[1 1 1]"],
}


def task(game, seed=2000):
    return next(t for t in textarena.tasks("test", {"game": game}) if t.args["seed"] == seed)


@needs_package
@pytest.mark.parametrize("game", GAMES)
def test_a_seed_and_moves_determine_an_episode_whatever_else_is_played(game):
    def moves(disturb):
        env, other = textarena.make({"game": game}), textarena.make({"game": "2048-v0"})
        other.reset(task("2048-v0", 2001))
        answers = [env.reset(task(game))]
        for move in GAMES[game]:
            if disturb:
                other.step("[up]")
                random.random()
            answers.append(env.step(move))
            if answers[-1].over:
                break
        return answers

    assert moves(False) == moves(True)


@needs_package
@pytest.mark.parametrize("game", GAMES)
def test_a_snapshot_is_gone_back_to_any_number_of_times(game):
    env = textarena.make({"game": game})
    env.reset(task(game))
    first = env.step(GAMES[game][0])
    assert not first.over
    snapshot = env.snapshot()

    def rest():
        found = []
        for move in GAMES[game][1:]:
            found.append(env.step(move))
            if found[-1].over:
                break
        return found

    played = rest()
    for _ in range(2):
        env.restore(snapshot)
        assert rest() == played


@needs_package
def test_what_the_game_says_is_what_the_package_says():
    import textarena as package

    game = package.make("TowerOfHanoi-v0-raw")
    game.reset(num_players=1, seed=2000)
    _, said = game.get_observation()
    env = textarena.make({"game": "TowerOfHanoi-v0"})
    assert env.reset(task("TowerOfHanoi-v0")).observation == "\n".join(text.strip() for _, text, _ in said)
    for move in ("[A C]", "[A B]", "[C B]", "[A C]", "[B A]", "[B C]", "[A C]"):
        over, _ = game.step(move)
        answer = env.step(move)
        assert answer.over == over
    assert (answer.reward, game.state.rewards) == (1.0, {0: 1.0})


@needs_package
def test_refused_moves_are_marked_and_end_a_game_where_it_says_so():
    env = textarena.make({"game": "GuessTheNumber-v0"})
    env.reset(task("GuessTheNumber-v0"))
    answers = [env.step("[99]")]
    while not answers[-1].over:
        answers.append(env.step("[99]"))
    assert not any(a.valid or a.reward for a in answers)
    assert "Invalid" in answers[-1].observation


@needs_package
def test_a_pool_forks_it():
    async def go():
        async with EnvironmentPool({"textarena": {"game": "2048-v0"}}, workers=2) as pool:
            root = await pool.reset(task("2048-v0"))
            states = await asyncio.gather(*(pool.step(root, Action("Action: [up]")) for _ in range(3)))
            after = [await pool.step(state, Action("Action: [left]")) for state in states]
            return {s.outcome.observation for s in after}, pool.stats

    seen, stats = asyncio.run(go())
    assert len(seen) == 1
    assert (stats.faults, stats.failed) == (0, 0)


@needs_package
def test_games_that_cannot_be_played_are_named():
    with pytest.raises(UserError, match="there is no game 'Sudoko'; there are 2048-v0"):
        textarena.make({"game": "Sudoko"})
    env = textarena.make({"game": "TicTacToe-v0"})
    with pytest.raises(UserError, match=r"TicTacToe-v0 cannot be played alone, or not here: .*players"):
        env.reset(task("TicTacToe-v0"))


def test_tasks_are_seeds_and_differ_between_splits():
    options = {"game": "Sudoku-v0-raw"}
    seeds = {split: {t.args["seed"] for t in textarena.tasks(split, options)} for split in ("train", "dev", "test")}
    assert [len(s) for s in seeds.values()] == [500, 50, 100]
    assert not seeds["train"] & seeds["test"]
    assert textarena.tasks("test", {**options, "seeds": 2, "max_steps": 7})[1].max_steps == 7
    assert textarena.tasks("test", options)[0].key == "textarena/Sudoku-v0-2000"
    with pytest.raises(UserError, match="option game is missing"):
        textarena.tasks("test", {})


def test_an_episode_has_random_numbers_of_its_own():
    chance, again = Chance(7), Chance(7)
    before = random.getstate()
    with chance():
        first = [random.random() for _ in range(3)]
    assert random.getstate() == before
    with again():
        assert [random.random()] == first[:1]
    random.random()
    with again():
        assert [random.random() for _ in range(2)] == first[1:]
