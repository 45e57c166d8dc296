"""`make demo`: the commands of the loop in order, where it goes on when one fails, and its figures in the pages."""

import pytest

from agentrm_jax import demo
from agentrm_jax.run import command, flags, reports, stages, workdirs
from agentrm_jax.types import UserError


@pytest.fixture
def started(monkeypatch):
    """Stages that were started; the fourth one fails."""
    found: list[list[str]] = []

    def run(arguments):
        found.append(arguments)
        return 3 if len(found) == 4 else 0

    monkeypatch.setattr(stages, "run", run)
    monkeypatch.chdir(stages.home())
    return found


def test_it_runs_the_commands_it_shows_and_stops_at_one_that_fails(started, capsys):
    with pytest.raises(UserError, match=r"the demo stopped at explicit-1 \(exit code 3\); run make demo again"):
        demo.main([])
    assert started == [
        ["train.py", "--config=configs/sft.py:nano"],
        ["search.py", "--config=configs/mcts.py:nano"],
        ["train.py", "--config=configs/explicit.py:nano"],
        ["train.py", "--config=configs/explicit.py:nano", "--workdir=runs/nano/explicit-1", "--config.seed=1"],
    ]
    out = capsys.readouterr().out
    assert "[1/10] the policy learns from expert trajectories\n$ python train.py --config=configs/sft.py:nano" in out


def test_it_builds_in_the_order_of_the_table():
    names = list(dict.fromkeys(step.stage for step in demo.steps()))
    assert [name for name in stages.STAGES if name in names] == names


def test_every_reward_model_ranks_the_samples_that_were_drawn_once():
    ranked = [step.arguments for step in demo.steps() if step.stage == "best_of_n"]
    assert ranked[0] == stages.arguments_of("best_of_n", "nano")
    assert [arguments[-3:] for arguments in ranked[1:]] == [
        [
            f"--workdir=runs/nano/best_of_n-{seed}",
            f"--config.reward_model=runs/nano/explicit-{seed}",
            "--config.samples=runs/nano/best_of_n",
        ]
        for seed in demo.SEEDS
    ]


def test_every_command_is_one_that_its_main_takes():
    for step in demo.steps():
        main, *arguments = step.arguments
        config, workdir = flags.parse(arguments, main)
        assert workdir == step.workdir
        assert all(str(config[key]) == value for key, value in named(step.flags) if key in config), step


def named(words):
    return [tuple(word.removeprefix("--config.").split("=", 1)) for word in words]


def test_it_takes_no_other_arguments(started):
    assert command.exit_code(lambda: demo.main(["--fast"])) == 2
    assert not started


def test_help_starts_nothing(started, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    assert not started
    assert capsys.readouterr().out.startswith("usage: python -m agentrm_jax.demo")


def test_figures_are_of_a_finished_demo_and_go_where_there_is_room(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the demo is not finished \(sft, mcts"):
        demo.main(["--readme"])
    monkeypatch.setattr(workdirs, "is_finished", lambda workdir: True)
    monkeypatch.setattr(stages, "home", lambda: tmp_path)
    monkeypatch.setattr(reports, "markdown", lambda *searches: " ".join(w.name for w in searches))
    (tmp_path / "docs").mkdir()
    for page in demo.PAGES:
        (tmp_path / page).write_text("<!-- demo: begin -->\n<!-- demo: end -->\n")
    demo.main(["--readme"])
    for page in demo.PAGES:
        assert "\ngreedy best_of_n best_of_n-1 best_of_n-2 beam-3x3\n" in (tmp_path / page).read_text()


def test_the_pages_have_room_for_figures():
    for page in demo.PAGES:
        text = (stages.home() / page).read_text()
        assert text.count(f"<!-- {demo.MARK}: begin -->") == text.count(f"<!-- {demo.MARK}: end -->") == 1, page
