"""`make demo`: the stages of the loop in order, and where it goes on when one of them fails."""

import pytest

from agentrm_jax import demo
from agentrm_jax.run import stages
from agentrm_jax.types import UserError


@pytest.fixture
def started(monkeypatch):
    """Stages that were started; the fourth one fails."""
    found: list[list[str]] = []

    def run(arguments):
        found.append(arguments)
        return 3 if len(found) == 4 else 0

    monkeypatch.setattr(stages, "run", run)
    monkeypatch.setattr("sys.argv", ["demo.py"])
    monkeypatch.chdir(stages.home())
    return found


def test_it_runs_the_commands_it_shows_and_stops_at_one_that_fails(started, capsys):
    with pytest.raises(UserError, match=r"the demo stopped at greedy \(exit code 3\); run make demo again"):
        demo.main()
    assert started == [
        ["train.py", "--config=configs/sft.py:nano"],
        ["search.py", "--config=configs/mcts.py:nano"],
        ["train.py", "--config=configs/explicit.py:nano"],
        ["search.py", "--config=configs/greedy.py:nano"],
    ]
    out = capsys.readouterr().out
    assert "[1/6] the policy learns from expert trajectories\n$ python train.py --config=configs/sft.py:nano" in out


def test_it_builds_in_the_order_of_the_table():
    assert [name for name in stages.STAGES if name in demo.NAMES] == list(demo.NAMES)


def test_it_takes_no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["demo.py", "--fast"])
    with pytest.raises(UserError, match="the demo takes no arguments"):
        demo.main()


def test_help_starts_nothing(started, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py", "--help"])
    demo.main()
    assert not started
    assert capsys.readouterr().out.startswith("usage: python -m agentrm_jax.demo")
