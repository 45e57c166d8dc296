"""Puts train.py, search.py and configs/ into a wheel, as agentrm_jax/mains; everything else is said in pyproject.toml.

They stay at the top of a checkout, where people read and edit them; `agentrm_jax.run.stages.home` finds them in either place.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithMains(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source in ("train.py", "search.py", *sorted(map(str, Path("configs").glob("*.py")))):
            target = Path(self.build_lib, "agentrm_jax", "mains", source)
            self.mkpath(str(target.parent))
            self.copy_file(source, str(target))


setup(cmdclass={"build_py": BuildWithMains})
