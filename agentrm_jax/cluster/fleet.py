"""The engines of a search on a Ray cluster, as its driver sees them: tasks are handed out one by one, and again where one is lost."""

import collections
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import ray

from agentrm_jax.cluster.engine import Engine
from agentrm_jax.cluster.nodes import NoRoom
from agentrm_jax.cluster.records import Finished
from agentrm_jax.models.card import Card
from agentrm_jax.search import Cost, Done, Meter, Result
from agentrm_jax.types import JSON, Task, UserError

OnDone = Callable[[Done[Result], Meter, Mapping[str, JSON]], None]
_LOSSES = 3  # times that all engines may be lost with no task finished in between


class FleetMeter(Meter):
    """Costs as engines tell them: of finished tasks, and of everything that every engine did, also one that was lost."""

    def __init__(self) -> None:
        super().__init__()
        self._spent: dict[int, Cost] = {}
        self._begin = time.perf_counter()

    def take(self, engine: int, finished: Finished) -> None:
        """Notes what an engine tells."""
        self.tasks[finished.task.key], self._spent[engine] = finished.cost, finished.spent

    def total(self) -> Cost:
        """The sum over engines as of the last that each has told; `seconds` since the beginning."""
        names = [field.name for field in dataclasses.fields(Cost)]
        total = Cost(**{name: sum(getattr(spent, name) for spent in self._spent.values()) for name in names})
        total.seconds = time.perf_counter() - self._begin
        return total


@dataclasses.dataclass(eq=False)
class _Member:
    """An engine of the fleet; `ready` once it has opened everything."""

    number: int
    actor: Any
    ready: bool = False


class Fleet:
    """Engines on the nodes of a cluster. An engine that is lost is replaced, and its tasks in flight are searched elsewhere.

    Attributes:
      cards: of policy and reward model.

    Raises:
      UserError: there is no such cluster, it has not the room, or a model or environment cannot be opened on its nodes.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        _connect(config.ray)
        self._count, self._place = _places(config)
        self._config, self._concurrency = config.to_dict(), config.concurrency
        self._members: list[_Member] = []
        self._started = 0
        self._losses = 0
        self._asked: dict[Any, tuple[_Member, Task | None]] = {}  # None: it is being opened
        self._queue: collections.deque[Task] = collections.deque()
        self._left = 0
        self._log_seconds, self._told = config.log_seconds, time.monotonic()
        self.cards: tuple[Card | None, Card | None] = (None, None)
        try:
            self._fill()
            while not any(member.ready for member in self._members):
                list(self._answers())
        except BaseException:
            ray.shutdown()
            raise
        print(f"searching on Ray with up to {self._count} engines, {self._concurrency} tasks in flight on each")

    def run(self, tasks: Sequence[Task], on_done: OnDone) -> None:
        """Searches all tasks and hands over each end as it comes, with what was spent and what the reward model noted; then leaves
        the cluster.

        Raises:
          UserError: an environment cannot be built, or engines are lost again and again.
        """
        self._queue.extend(tasks)
        self._left = len(self._queue)
        meter, shares = FleetMeter(), collections.Counter[int]()
        try:
            while self._left:
                self._hand_out()
                for member, finished in self._answers():
                    meter.take(member.number, finished)
                    shares[member.number] += 1
                    self._left -= 1
                    self._losses = 0
                    on_done(finished.done(), meter, finished.notes)
        finally:
            ray.shutdown()
        told = ", ".join(f"{number}: {count}" for number, count in sorted(shares.items()))
        print(f"tasks by engine: {told}")

    def _fill(self) -> None:
        """Starts what is missing of the engines; one that finds no room on any node waits for it."""
        while len(self._members) < self._count:
            actor = ray.remote(Engine).options(**self._place).remote(self._config, os.getcwd())
            member = _Member(self._started, actor)
            self._started += 1
            self._members.append(member)
            self._asked[actor.open.remote()] = (member, None)

    def _hand_out(self) -> None:
        """Gives waiting tasks to the engines with the fewest, to none more than its share of all that is left."""
        most = min(self._concurrency, -(-self._left // self._count))
        held = collections.Counter(member for member, task in self._asked.values() if task)
        while self._queue and (free := [m for m in self._members if m.ready and held[m] < most]):
            member = min(free, key=lambda m: held[m])
            task = self._queue.popleft()
            self._asked[member.actor.run.remote(task)] = (member, task)
            held[member] += 1

    def _answers(self) -> Iterator[tuple[_Member, Finished]]:
        """Waits a second at most; tasks that are finished."""
        ready, _ = ray.wait(list(self._asked), timeout=1.0)
        for reference in ready:
            if reference not in self._asked:  # it was given up with its engine
                continue
            member, _ = self._asked[reference]
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                if not isinstance(error.cause, NoRoom):
                    raise
                self._lose(member, str(error.cause))
            except ray.exceptions.RayError as error:
                self._lose(member, _first_line(error))
            else:
                del self._asked[reference]
                if isinstance(answer, Finished):
                    yield member, answer
                else:
                    member.ready, self.cards = True, answer.cards
                    print(f"engine {member.number} is on node {answer.node}", file=sys.stderr, flush=True)
        if not any(member.ready for member in self._members):
            self._say_that_it_waits()

    def _lose(self, member: _Member, why: str) -> None:
        """Gives an engine up: its tasks in flight come first again, and another one is started."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(member.actor)  # it may be there, and just not be reached
        lost = {ref: task for ref, (other, task) in self._asked.items() if other is member}
        for reference in lost:
            del self._asked[reference]
        tasks = [task for task in lost.values() if task]
        self._queue.extendleft(reversed(tasks))
        self._members.remove(member)
        self._losses += 1
        print(f"engine {member.number} is lost ({why}); tasks tried elsewhere: {len(tasks)}", file=sys.stderr)
        if self._losses >= _LOSSES * self._count:
            raise UserError(
                f"{self._losses} engines were lost one after the other, and no task was finished in between; the last one: {why}"
            )
        self._fill()

    def _say_that_it_waits(self) -> None:
        if time.monotonic() - self._told >= max(self._log_seconds, 10.0):
            self._told = time.monotonic()
            print("waiting for an engine to start; `ray status` says whether the cluster has room", file=sys.stderr)


def _connect(address: str) -> None:
    """Joins the cluster, with the handling of signals left as it is.

    Raises:
      UserError: there is none.
    """
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=10.0
            ).close()  # Ray itself would try for minutes
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--config.ray={address}: no Ray cluster is found there ({_first_line(error)}); start one with ray start --head"
        ) from error
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _places(config: ml_collections.ConfigDict) -> tuple[int, dict[str, Any]]:
    """How many engines there are to be, and what each of them needs, as options of an actor.

    Raises:
      UserError: the cluster has not so much, not even with all nodes idle.
    """
    nodes = [collections.Counter(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    tensor, workers = config.engine.tensor, config.env.workers
    # CPUs are for environments: an engine that took some could keep those of another from being started again.
    place: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
    count, most = config.engines, 0
    for kind in ("GPU", "TPU"):
        if most := sum(int(node[kind] // tensor) for node in nodes):
            place |= {"num_gpus": tensor} if kind == "GPU" else {"resources": {kind: tensor}}
            count = count or most
            break
    count = count or len(nodes)
    if most and count > most:
        raise UserError(
            f"--config.engines={count}: the cluster has accelerators for {most} engines of {tensor}; 0 takes them all"
        )
    cpus, largest = sum(node["CPU"] for node in nodes), max(node["CPU"] for node in nodes)
    if count * workers > cpus or workers > largest:
        raise UserError(
            f"{count} engines with {workers} environment workers each need {count * workers} CPUs, {workers} of them on one node; "
            f"the cluster has {cpus:g}, and up to {largest:g} on one node; lower --config.engines or --config.env.workers"
        )
    return count, place


def _first_line(error: Exception) -> str:
    """Ray's errors go on with addresses and advice."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
