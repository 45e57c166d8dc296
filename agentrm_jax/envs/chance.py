"""Random numbers of an episode whose engine draws from those of the process."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any


class Chance:
    """The state of Python's and NumPy's global generators, as one episode sees them.

    Engines in one worker take turns; each draws its own numbers, so that the same commands after the same seed give the same
    answers. `copy.copy` of it belongs to a snapshot.
    """

    def __init__(self, seed: int):
        import numpy as np

        self.python: Any = random.Random(seed).getstate()
        self.numpy: Any = np.random.RandomState(seed % (1 << 32)).get_state()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within the block the process draws from this episode's generators."""
        import numpy as np

        before = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - the global one
        try:
            yield
        finally:
            self.python, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002 - the global one
