"""Which of a run's measurements is best by one metric: what is kept, and when training stops early."""

from collections.abc import Mapping

from agentrm_jax.types import JSON

# Metric of held-out states -> whether a higher one is better (`metrics.reward_model_metrics`).
METRICS: Mapping[str, bool] = {
    "mse": False,
    "ece": False,
    "pearson": True,
    "spearman_within_task": True,
    "kendall_within_task": True,
    "pairwise_accuracy": True,
    "sibling_accuracy": True,
    "success_auc": True,
}
NONE = "none"


class Selection:
    """The best measurement so far. Its `state` goes into checkpoints.

    Attributes:
      metric: one of `METRICS`, or `none`: then the latest measurement counts, and nothing ends early.
      step, value: of the best measurement; -1 and None if there is none.
      since: measurements since then.

    Args:
      patience: measurements without a better one after which training stops; 0: it does not.
      state: of the checkpoint that a run goes on from.
    """

    def __init__(self, metric: str, patience: int, state: Mapping[str, JSON] = {}):
        self.metric, self._patience = metric, patience
        self.step: int = state.get("step", -1)
        self.value: float | None = state.get("value")
        self.since: int = state.get("since", 0)

    def improved(self, step: int, metrics: Mapping[str, JSON]) -> bool:
        """Takes a measurement; whether the model of this step is the one to keep. One on which the metric is not defined is not."""
        if self.metric == NONE:
            return True
        found = metrics.get(self.metric)
        better = found is not None and (
            self.value is None or (found > self.value if METRICS[self.metric] else found < self.value)
        )
        if better:
            self.step, self.value, self.since = step, found, 0
        else:
            self.since += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether training should stop: there was no better measurement for as long as `patience` says."""
        return self.metric != NONE and 0 < self._patience <= self.since

    def state(self) -> dict[str, JSON]:
        return {"step": self.step, "value": self.value, "since": self.since}

    def __str__(self) -> str:
        value = "nothing measured" if self.value is None else f"{self.value:.4f} at step {self.step}"
        return f"best {self.metric}: {value}"
