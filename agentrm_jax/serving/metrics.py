"""What a server counts, as Prometheus reads it. Numbers and names of endpoints only: nothing of what was asked."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agentrm_jax.engine.engine import Engine
from agentrm_jax.serving.limits import Gate

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


disable_created_metrics()


class Metrics:
    """The counts of one server.

    Args:
      engines: by name, e.g. `reward`.
    """

    def __init__(self, engines: Mapping[str, Engine], gate: Gate):
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("agentrm_requests", "Requests answered", ["endpoint", "status"], registry=registry)
        self._seconds = Histogram(
            "agentrm_request_seconds", "Seconds of a request", ["endpoint"], buckets=_BUCKETS, registry=registry
        )
        inside = Gauge("agentrm_requests_in_flight", "Requests that are being worked on", registry=registry)
        inside.set_function(lambda: gate.inside)
        self._registry.register(_Engines(engines))
        self._registry.register(_Process())

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts one answer."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """What engines say of themselves."""

    def __init__(self, engines: Mapping[str, Engine]):
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "agentrm_tokens",
            "Tokens of given paths, those of them that were computed, and sampled ones",
            labels=["model", "kind"],
        )
        cache = GaugeMetricFamily(
            "agentrm_cache_slots", "Slots of the cache of keys and values", labels=["model", "state"]
        )
        locks = GaugeMetricFamily("agentrm_cache_locks", "Paths that must stay cached", labels=["model"])
        lost = GaugeMetricFamily(
            "agentrm_cache_slots_lost",
            "Slots that are neither free nor hold a path, while nothing is computed",
            labels=["model"],
        )
        for name, engine in self._engines.items():
            stats, slots = engine.stats, engine.cache
            tokens.add_metric([name, "path"], stats.path_tokens)
            tokens.add_metric([name, "read"], stats.read_tokens)
            tokens.add_metric([name, "sampled"], stats.sampled_tokens)
            cache.add_metric([name, "free"], slots.free)
            cache.add_metric([name, "taken"], slots.capacity - slots.free)
            locks.add_metric([name], slots.locked)
            with contextlib.suppress(RuntimeError):  # the engine has begun to work meanwhile
                if engine.idle:
                    lost.add_metric([name], slots.capacity - slots.free - slots.held)
        programs = GaugeMetricFamily("agentrm_compiled_programs", "Programs compiled so far")
        for engine in list(self._engines.values())[:1]:  # of the process
            programs.add_metric([], engine.compilations)
        yield from (tokens, cache, locks, lost, programs)


class _Process(Collector):
    """Memory of the process, where the system says."""

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return
        import resource

        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory of the process", value=pages * resource.getpagesize()
        )
