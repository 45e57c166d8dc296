"""`agentrm`: every command under one name, in a checkout and where only the package is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from agentrm_jax import cli
from agentrm_jax.run import stages

ROOT = Path(__file__).parents[1]


def agentrm(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    start = "import sys; from agentrm_jax.cli import main; sys.argv[0] = 'agentrm'; main()"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_command_is_a_main_or_a_module():
    for name in cli.COMMANDS:
        assert f"{name}.py" in stages.MAINS or importlib.util.find_spec(f"agentrm_jax.{name}"), name


def test_help_names_every_command(tmp_path):
    done = agentrm("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)


def test_an_unknown_command_ends_in_one_line(tmp_path):
    done = agentrm("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: agentrm trian: there is no such command; known: train, ")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel would hold it, in a folder of its own."""
    setuptools = pytest.importorskip("setuptools")
    place = tmp_path_factory.mktemp("installed")
    build = (
        "import runpy, setuptools; made = {}\n"
        "setuptools.setup = lambda cmdclass: made.update(cmdclass)\n"
        "runpy.run_path('setup.py')\n"
        "packages = setuptools.find_packages(include=['agentrm_jax*'])\n"
        "about = {'packages': packages, 'script_name': 'setup.py', 'include_package_data': False}\n"
        "command = made['build_py'](setuptools.Distribution(about))\n"
        f"command.build_lib = {str(place)!r}; command.ensure_finalized(); command.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (setuptools.__version__, done.stderr)
    return place


def test_an_installed_package_has_mains_and_configs_and_names_its_own_commands(installed, tmp_path):
    done = agentrm("train", "--config=configs/beam.py", cwd=tmp_path, path=installed)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --config=configs/beam.py is for search.py: agentrm search --config=configs/beam.py\n"
    )
    done = agentrm("search", "--help", cwd=tmp_path, path=installed)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: agentrm search --config=")
    assert not list(tmp_path.iterdir())
