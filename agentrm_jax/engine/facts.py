"""What is known of cached tokens beside their keys and values, by slot, on the host."""

import numpy as np


class SlotFacts:
    """Values and log-probabilities of the tokens in `slots` slots of the pool. Both may be any float, NaN too.

    Attributes:
      value, has_value: the value head's output at a token ([slots, e] of several `heads`), and whether it is known.
      logprob, has_logprob: log p of a token given its path, likewise.
    """

    def __init__(self, slots: int, heads: int = 1):
        self.value = np.zeros(slots if heads == 1 else (slots, heads), np.float32)
        self.logprob = np.zeros(slots, np.float32)
        self.has_value, self.has_logprob = np.zeros(slots, bool), np.zeros(slots, bool)

    def forget(self, slots: np.ndarray) -> None:
        """Nothing is known of what comes into `slots`."""
        self.has_value[slots] = False
        self.has_logprob[slots] = False

    def set_values(self, slots: np.ndarray, values: np.ndarray) -> None:
        self.value[slots] = values
        self.has_value[slots] = True

    def set_logprobs(self, slots: np.ndarray, logprobs: np.ndarray) -> None:
        self.logprob[slots] = logprobs
        self.has_logprob[slots] = True

    def move(self, before: np.ndarray, after: np.ndarray) -> None:
        """What is known at slots `before` holds at `after`, slot by slot."""
        known = self.has_value[before]
        self.set_values(after[known], self.value[before[known]])
        known = self.has_logprob[before]
        self.set_logprobs(after[known], self.logprob[before[known]])
