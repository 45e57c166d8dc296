"""An invented network of papers and authors, a different one for every split, and questions about it.

Tools, arguments and the shape of answers are those of AgentBoard's academia tools over a DBLP graph: two networks that have to
be loaded first, one of papers joined by citations, one of authors joined by papers they wrote together.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

from agentrm_jax.envs.tool.calls import CHECK, FINISH, Tool, ToolError
from agentrm_jax.envs.tool.question import Action, Answered, Question, ask, looked_up

_FIRST = str.split("Anneli Bram Chiara Dag Elif Farid Greta Hiro Ilse Jorge Kirsi Luc Maren Nils Oona Pilar Rafi Sanna")
_LAST = str.split(
    "Aalto Bonnet Conti Dressler Eriksen Ferreira Grabowski Horvat Ishii Jovanovic Keller Lund Marini Nagy"
)
_ORGANISATIONS = ["Fjord University", "Institute of Quiet Machines", "Polder Lab", "Alpine Tech", "Northern College"]
_VENUES = ["Journal of Small Models", "Conf. on Patient Agents", "Letters on Search", "Symposium on Trees"]
_METHODS = ["Sparse", "Lazy", "Robust", "Causal", "Modular", "Recursive", "Calibrated", "Incremental", "Frugal"]
_THINGS = ["Attention", "Planning", "Retrieval", "Ranking", "Clustering", "Sampling", "Alignment", "Forecasting"]
_FIELDS = ["Sensor Networks", "Long Documents", "River Deltas", "Household Robots", "Crop Maps", "Chess Endgames"]
_KEYWORDS = ["trees", "rewards", "graphs", "search", "calibration", "robots", "language", "memory", "sampling"]


class Paper(NamedTuple):
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    keywords: tuple[str, ...]
    doc_type: str
    cites: tuple[str, ...]


class Network(NamedTuple):
    papers: Mapping[str, Paper]
    cited_by: Mapping[str, tuple[str, ...]]
    organisation: Mapping[str, str]  # author -> organisation
    written: Mapping[str, tuple[str, ...]]  # author -> titles
    collaborators: Mapping[str, tuple[str, ...]]


class World(NamedTuple):
    """Which networks, and which of them (PaperNet, AuthorNet) were loaded."""

    seed: str
    loaded: frozenset[str] = frozenset()

    @property
    def network(self) -> Network:
        return network(self.seed)


@functools.lru_cache(maxsize=4)
def network(seed: str) -> Network:
    """150 papers by 60 authors, who write with colleagues of a few circles."""
    random = Random(f"papers/{seed}")
    authors = random.sample([f"{a} {b}" for a in _FIRST for b in _LAST], 60)
    circles = [authors[i : i + 10] for i in range(0, 60, 6)]
    titles = random.sample([f"{m} {t} for {f}" for m, t, f in itertools.product(_METHODS, _THINGS, _FIELDS)], 150)
    papers: dict[str, Paper] = {}
    for i, title in enumerate(titles):
        papers[title] = Paper(
            title,
            tuple(random.sample(random.choice(circles), random.randint(2, 3))),
            2008 + i // 10,
            random.choice(_VENUES),
            tuple(sorted(random.sample(_KEYWORDS, random.randint(2, 4)))),
            random.choice(["Journal", "Conference"]),
            tuple(random.sample(titles[:i], min(i, random.randint(0, 6)))),
        )
    written = {a: tuple(p.title for p in papers.values() if a in p.authors) for a in authors}
    together = {a: {b for t in written[a] for b in papers[t].authors} - {a} for a in authors}
    return Network(
        papers,
        {t: tuple(p.title for p in papers.values() if t in p.cites) for t in papers},
        {a: random.choice(_ORGANISATIONS) for a in authors},
        written,
        {a: tuple(sorted(b)) for a, b in together.items()},
    )


def _load(name: str) -> Action[World]:
    return lambda w, a: Answered(w._replace(loaded=w.loaded | {name}), f"{name} is loaded.", {f"loaded/{name}"})


def _node(w: World, graph: str, name: str) -> str:
    """`name`, checked to be a node of a loaded network."""
    if graph not in ("PaperNet", "AuthorNet"):
        raise ToolError(f"There is no network {graph}; there are PaperNet and AuthorNet.")
    if graph not in w.loaded:
        raise ToolError(f"Load {graph} first.")
    if name not in (w.network.papers if graph == "PaperNet" else w.network.organisation):
        raise ToolError(f"There is no node {name} in {graph}.")
    return name


def _neighbours(w: World, a: Mapping[str, Any]) -> Answered[World]:
    node, net = _node(w, a["graph"], a["node"]), w.network
    if a["graph"] == "AuthorNet":
        return Answered(w, list(net.collaborators[node]), {f"with/{node}"})
    return Answered(w, sorted({*net.papers[node].cites, *net.cited_by[node]}), {f"linked/{node}"})


def _paper(w: World, a: Mapping[str, Any]) -> Answered[World]:
    paper = w.network.papers[_node(w, "PaperNet", a["node"])]
    shown = {"title": paper.title, "authors": list(paper.authors), "year": paper.year, "venue": paper.venue}
    shown |= {"n_citation": len(w.network.cited_by[paper.title]), "keywords": list(paper.keywords)}
    return Answered(w, {**shown, "doc_type": paper.doc_type}, {f"paper/{paper.title}"})


def _author(w: World, a: Mapping[str, Any]) -> Answered[World]:
    name, net = _node(w, "AuthorNet", a["node"]), w.network
    shown = {"name": name, "org": net.organisation[name], "papers": list(net.written[name])}
    return Answered(w, shown, {f"author/{name}"})


def _pair(one: str, two: str) -> str:
    return "/".join(["pair", *sorted([one, two])])


def _author_edge(w: World, a: Mapping[str, Any]) -> Answered[World]:
    one, two = (_node(w, "AuthorNet", a[k]) for k in ("node1", "node2"))
    shared = [t for t in w.network.written[one] if two in w.network.papers[t].authors]
    if not shared or one == two:
        raise ToolError(f"There is no edge between {one} and {two}.")
    return Answered(w, {"weight": len(shared), "collaborative_papers": shared}, {_pair(one, two)})


def _paper_edge(w: World, a: Mapping[str, Any]) -> Answered[World]:
    one, two = (_node(w, "PaperNet", a[k]) for k in ("node1", "node2"))
    papers = w.network.papers
    if two not in papers[one].cites and one not in papers[two].cites:
        raise ToolError(f"There is no edge between {one} and {two}.")
    citing, cited = (one, two) if two in papers[one].cites else (two, one)
    return Answered(w, {"citing": citing, "cited": cited}, {_pair(one, two)})


_NODES = {"node1": "string", "node2": "string"}
_LISTED: list[tuple[Tool, Action[World]]] = [
    (Tool("loadPaperNet", {}, "loads the network of papers."), _load("PaperNet")),
    (Tool("loadAuthorNet", {}, "loads the network of authors."), _load("AuthorNet")),
    (
        Tool("neighbourCheck", {"graph": "string", "node": "string"}, "neighbours in PaperNet or AuthorNet."),
        _neighbours,
    ),
    (Tool("paperNodeCheck", {"node": "string"}, "authors, year, venue, citations of a paper."), _paper),
    (Tool("authorNodeCheck", {"node": "string"}, "organisation and papers of an author."), _author),
    (Tool("authorEdgeCheck", _NODES, "papers that two authors wrote together."), _author_edge),
    (Tool("paperEdgeCheck", _NODES, "which of two papers cites the other."), _paper_edge),
    (Tool(FINISH, {"answer": "any"}, "ends the episode with the answer."), looked_up),
    (Tool(CHECK, {}, "names the tools."), looked_up),
]
ACTIONS = {tool.name: (tool, action) for tool, action in _LISTED}

_Calls = list[tuple[str, str, Mapping[str, Any]]]
_AUTHORS: tuple[str, str, Mapping[str, Any]] = ("I load the authors first.", "loadAuthorNet", {})
_PAPERS: tuple[str, str, Mapping[str, Any]] = ("I load the papers first.", "loadPaperNet", {})


def _check(kind: str, name: str) -> tuple[str, str, Mapping[str, Any]]:
    return f"Let me look at {name}.", f"{kind}NodeCheck", {"node": name}


def _around(name: str) -> tuple[str, str, Mapping[str, Any]]:
    return f"Who works with {name}?", "neighbourCheck", {"graph": "AuthorNet", "node": name}


def _single_best(counts: Mapping[str, int]) -> str | None:
    """The key with the largest count, if there is one only."""
    best = [k for k, n in counts.items() if n == max(counts.values())]
    return best[0] if len(best) == 1 else None


def _of_paper(random: Random, w: World) -> Question[World]:
    paper, other = random.sample(list(w.network.papers.values()), 2)
    calls: _Calls = [_PAPERS, _check("paper", paper.title)]
    kind = random.randrange(4)
    if kind == 0:
        return ask(ACTIONS, w, f"Who wrote '{paper.title}'? Answer with a list.", list(paper.authors), calls)
    if kind == 1:
        n = len(w.network.cited_by[paper.title])
        return ask(ACTIONS, w, f"How many citations does '{paper.title}' have? Answer with a number.", n, calls)
    if kind == 2 and paper.year != other.year:
        first = min(paper, other, key=lambda p: p.year).title
        goal = f"Which was published first: '{paper.title}' or '{other.title}'?"
        return ask(ACTIONS, w, goal, first, [*calls, _check("paper", other.title)])
    places = [_check("author", name) for name in paper.authors]
    answer = sorted({w.network.organisation[name] for name in paper.authors})
    goal = f"Which organisations do the authors of '{paper.title}' belong to? Answer with a list."
    return ask(ACTIONS, w, goal, answer, [*calls, _AUTHORS, *places])


def _of_author(random: Random, w: World) -> Question[World]:
    net = w.network
    name = random.choice([a for a, titles in net.written.items() if 2 <= len(titles) <= 12])
    calls: _Calls = [_AUTHORS, _check("author", name)]
    titles = net.written[name]
    looks = [_PAPERS, *(_check("paper", t) for t in titles)]
    kind = random.randrange(4)
    if kind == 0:
        goal = f"Which organisation does {name} belong to?"
        return ask(ACTIONS, w, goal, net.organisation[name], calls)
    if kind == 1:
        best = _single_best({t: len(net.cited_by[t]) for t in titles})
        goal = f"Which paper by {name} has the most citations?"
        return ask(ACTIONS, w, goal, best, [*calls, *looks]) if best else _of_paper(random, w)
    if kind == 2:
        best = _single_best(Counter(net.papers[t].venue for t in titles))
        goal = f"In which venue has {name} published most often?"
        return ask(ACTIONS, w, goal, best, [*calls, *looks]) if best else _of_paper(random, w)
    answer = sum(len(net.cited_by[t]) for t in titles)
    goal = f"How many citations do all papers by {name} have together? Answer with a number."
    return ask(ACTIONS, w, goal, answer, [*calls, *looks])


def _of_collaboration(random: Random, w: World) -> Question[World]:
    net = w.network
    name = random.choice([a for a, others in net.collaborators.items() if 2 <= len(others) <= 12])
    friends = net.collaborators[name]
    other = random.choice(friends)
    kind = random.randrange(4)
    if kind == 0:
        answer: Any = len(set(friends) & set(net.collaborators[other]))
        goal = f"How many collaborators do {name} and {other} have in common? Answer with a number."
        return ask(ACTIONS, w, goal, answer, [_AUTHORS, _around(name), _around(other)])
    if kind == 1:
        same = [f for f in friends if net.organisation[f] == net.organisation[name]]
        goal = f"Which collaborators of {name} belong to the same organisation as {name}? Answer with a list."
        return ask(
            ACTIONS,
            w,
            goal,
            same,
            [_AUTHORS, _check("author", name), _around(name), *(_check("author", f) for f in friends)],
        )
    edge = "authorEdgeCheck"
    if kind == 2:
        best = _single_best({f: sum(f in net.papers[t].authors for t in net.written[name]) for f in friends})
        if best is None:
            return _of_author(random, w)
        edges = [(f"How many papers with {f}?", edge, {"node1": name, "node2": f}) for f in friends]
        goal = f"With whom has {name} written the most papers?"
        return ask(ACTIONS, w, goal, best, [_AUTHORS, _around(name), *edges])
    shared = [t for t in net.written[name] if other in net.papers[t].authors]
    first = ("Which papers are theirs?", edge, {"node1": name, "node2": other})
    goal = f"How many citations do the papers that {name} and {other} wrote together have? Answer with a number."
    answer = sum(len(net.cited_by[t]) for t in shared)
    return ask(ACTIONS, w, goal, answer, [_AUTHORS, first, _PAPERS, *(_check("paper", t) for t in shared)])


def question(seed: int, split: str) -> Question[World]:
    """The question of that seed, about the networks of `split`."""
    random = Random(f"academia/{split}/{seed}")
    return random.choice((_of_paper, _of_author, _of_collaboration))(random, World(split))
