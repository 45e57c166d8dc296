"""A language model as judge: it sees all candidates in one prompt and says which is best (paper D.1, algorithms 6).

The choice is read from the log-probabilities of the candidates' numbers, so that it says how sure it is, and averaged over orders
of showing them: each order begins one candidate later (cyclic), which takes out what a judge gives to a place. A question that is
not answered has no score: NaN, counted, never a number.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.generators.generator import Answer, Generator
from agentrm_jax.rewards.asking import Question, content, history
from agentrm_jax.types import JSON, State, TaskFailure, TooLong

Compare = Literal["trajectories", "steps"]
_ROOM = 8  # tokens of an answer


class Judge:
    """Implements `RewardModel`: a score is the probability of being chosen, times the number of candidates that were compared, so that 1
    is what chance gives, however many there were.

    Args:
      specs: environment name -> spec.
      compare: `trajectories` compares all states of a task in one call; `steps` those that share a history, by their last action.
      orders: in how many orders the candidates are shown, at most as many as there are.

    Candidates that say the same are shown once and share their score; one alone is not asked about and scores 1.
    """

    card = None

    def __init__(self, generator: Generator, specs: Mapping[str, EnvSpec], *, compare: Compare, orders: int):
        self.generator, self._specs, self._compare, self._orders = generator, specs, compare, orders
        self.dropped_turns: Counter[str] = Counter()
        self._notes: defaultdict[str, _Tally] = defaultdict(_Tally)

    @property
    def tokens(self) -> int:
        """Tokens given and written so far, for budgets."""
        return self.generator.tokens

    def notes(self, task: str) -> dict[str, JSON]:
        """What there is to say about the scores of a task (by its key), for records: see `evaluation.position_bias`."""
        return {"judge": self._notes[task].to_json()} if task in self._notes else {}

    async def score(self, states: Sequence[State]) -> list[float]:
        """float[len(states)]; NaN where the judge gave no answer."""
        groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, state in enumerate(states):
            groups[state.task.key, *(history(state) if self._compare == "steps" else ())].append(i)
        asked = [asyncio.ensure_future(self._scored([states[i] for i in group])) for group in groups.values()]
        try:
            found = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        scores = {
            i: score
            for group, some in zip(groups.values(), found, strict=True)
            for i, score in zip(group, some, strict=True)
        }
        return [scores[i] for i in range(len(states))]

    async def aclose(self) -> None:
        """Ends what the generator has open."""
        if close := getattr(self.generator, "aclose", None):
            await close()

    async def _scored(self, states: Sequence[State]) -> list[float]:
        """Scores of states that are compared with each other."""
        steps = self._compare == "steps"
        contents = [content(state, steps=steps) for state in states]
        distinct = list(dict.fromkeys(contents))
        tally = self._notes[states[0].task.key]
        if len(distinct) == 1:
            tally.alone += 1
            return [1.0] * len(states)
        candidates = [states[contents.index(one)] for one in distinct]
        question = Question(self._specs[states[0].task.env], candidates, steps)
        shares = await self._ask(question, tally)
        if shares is None:
            tally.missing += len(states)
            return [math.nan] * len(states)
        return [len(distinct) * shares[distinct.index(one)] for one in contents]

    async def _ask(self, question: Question, tally: "_Tally") -> list[float] | None:
        """Every candidate's probability of being chosen, averaged over the orders that were answered; None if none was."""
        count, name = len(question.candidates), question.candidates[0].task.key
        orders = cyclic(count, self._orders)
        tally.questions += 1
        most: int | None = question.turns
        while True:
            last = None if most is None else self._fitting(question, orders, most)
            if last is None:
                tally.too_long += 1
                return None
            try:
                answers = await self._answers(question, orders, last, name)
                break
            except TooLong:
                most = max(last // 2, question.least) if last > question.least else None
        turns, cut = question.left_out(last)
        tally.cut_turns, tally.cut_candidates = tally.cut_turns + turns, tally.cut_candidates + cut
        self.dropped_turns[name] += turns
        return tally.add(count, orders, answers)

    def _fitting(self, question: Question, orders: Sequence[Sequence[int]], most: int) -> int | None:
        """The most turns, up to `most`, with which the question fits the model in every order; None if it never does."""

        def fits(last: int) -> bool:
            return all(self.generator.fits(question.messages(order, last), _ROOM) for order in orders)

        if fits(most):
            return most
        if most <= question.least or not fits(question.least):
            return None
        low, high = question.least, most  # fits at low, does not at high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    async def _answers(
        self, question: Question, orders: Sequence[Sequence[int]], last: int, name: str
    ) -> list[Answer | None]:
        """One answer for every order. Raises TooLong."""
        options = [str(i) for i in range(1, len(question.candidates) + 1)]

        async def ask(order: Sequence[int]) -> Answer | None:
            try:
                return await self.generator.choose(question.messages(order, last), options, name=name)
            except TooLong:
                raise
            except TaskFailure:
                return None

        asked = [asyncio.ensure_future(ask(order)) for order in orders]
        try:
            return await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()


class _Tally:
    """What happened in the questions about one task; every number may be added up over tasks."""

    def __init__(self) -> None:
        self.questions = self.alone = self.missing = self.too_long = 0
        self.readings = self.unanswered = self.bounded = 0
        self.cut_turns = self.cut_candidates = 0
        self.pairs = self.agreeing = 0
        self.agreeing_by_chance = 0.0
        self.how: Counter[str] = Counter()
        self.chosen: defaultdict[int, list[int]] = defaultdict(list)  # number of candidates -> choices, by place

    def add(self, count: int, orders: Sequence[Sequence[int]], answers: Sequence[Answer | None]) -> list[float] | None:
        """Counts the answers to one question in several orders; the mean of the shares that they give each candidate."""
        winners: list[int] = []
        total = [0.0] * count
        places = self.chosen[count] = self.chosen[count] or [0] * count
        for order, answer in zip(orders, answers, strict=True):
            self.readings += 1
            shares = None if answer is None else softmax(answer.logprobs)
            if answer is None or shares is None:
                self.unanswered += 1
                continue
            self.how[answer.how] += 1
            self.bounded += answer.bounded
            best = max(range(count), key=shares.__getitem__)
            places[best] += 1
            winners.append(order[best])
            for place, candidate in enumerate(order):
                total[candidate] += shares[place]
        if not winners:
            return None
        pairs = len(winners) * (len(winners) - 1) // 2
        self.pairs += pairs
        self.agreeing += sum(n * (n - 1) // 2 for n in Counter(winners).values())
        self.agreeing_by_chance += pairs / count
        return [share / len(winners) for share in total]

    def to_json(self) -> dict[str, JSON]:
        row: dict[str, JSON] = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        return row | {"how": dict(self.how), "chosen": {str(n): list(places) for n, places in self.chosen.items()}}


def cyclic(count: int, orders: int) -> list[list[int]]:
    """Up to `orders` orders of `count` things, each beginning elsewhere; with `count` orders each thing is once in each place."""
    number = min(orders, count)
    starts = [i * count // number for i in range(number)]
    return [[(start + place) % count for place in range(count)] for start in starts]


def softmax(logprobs: Sequence[float]) -> list[float] | None:
    """Probabilities of the options among themselves; None if all are impossible or one is no number."""
    top = max(logprobs)
    if any(math.isnan(p) for p in logprobs) or not math.isfinite(top):
        return None
    weights = [math.exp(p - top) for p in logprobs]
    return [weight / math.fsum(weights) for weight in weights]
