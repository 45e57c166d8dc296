"""AgentBoard's academia networks (DBLP) from the user's own copy of its data, behind the same tools as our invented ones.

The files are pickles: `{paper_net,author_net,title2id_dict,id2title_dict,author2id_dict,id2author_dict}.pkl`. Pickles can run anything
when they are read, so only graphs of networkx and plain containers are accepted, and nothing of networkx is run or needed.
"""

import functools
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agentrm_jax.envs.tool.calls import ToolError
from agentrm_jax.types import UserError

_FILES = ("paper_net", "author_net", "title2id_dict", "id2title_dict", "author2id_dict", "id2author_dict")
_PLAIN = {("builtins", name) for name in ("dict", "list", "set", "frozenset", "tuple")} | {
    ("collections", "OrderedDict")
}


class Files(NamedTuple):
    """The six files: two graphs, and names and numbers of their nodes."""

    papers: "Graph"
    authors: "Graph"
    paper_of_title: Mapping[str, Any]
    title_of: Mapping[Any, str]
    author_of_name: Mapping[str, Any]
    name_of: Mapping[Any, str]


class Graph:
    """What a pickled networkx graph holds: attributes of nodes, and of edges by their two nodes."""

    _node: Mapping[Any, Mapping[str, Any]]
    _adj: Mapping[Any, Mapping[Any, Mapping[str, Any]]]


class _Ignored:
    """Stands for everything else of networkx that a graph drags along (views, factories)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "networkx":
            return Graph if name in ("Graph", "DiGraph", "MultiGraph", "MultiDiGraph") else _Ignored
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is no part of a graph")


def folder_of(data: str) -> Path | None:
    """Where below the data folder AgentBoard's files are, if they are there."""
    root = Path(data).expanduser()
    places = (root / "agentboard" / "tool-query" / "academia" / "raw", root / "tool" / "academia", root)
    return next((p for p in places if all((p / f"{name}.pkl").is_file() for name in _FILES)), None)


@functools.lru_cache(1)
def read_files(folder: Path) -> Files:
    """Raises UserError if a file cannot be read, or holds something else than a graph or a table."""
    found: list[Any] = []
    for name in _FILES:
        path = folder / f"{name}.pkl"
        try:
            content = _Reader(io.BytesIO(path.read_bytes())).load()
        except Exception as error:  # a broken pickle may raise anything
            raise UserError(f"tool_query: {path} cannot be read: {error}") from error
        if not isinstance(content, Graph if name.endswith("net") else dict):
            raise UserError(f"tool_query: {path} holds a {type(content).__name__}, which is not what AgentBoard's does")
        found.append(content)
    return Files(*found)


def answer(files: Files, loaded: frozenset[str], tool: str, a: Mapping[str, Any]) -> Any:
    """The result of a tool, as AgentBoard gives it.

    Raises:
      ToolError: a network was not loaded, or there is no such node or edge.
    """
    match tool:
        case "loadPaperNet" | "loadAuthorNet":
            return f"{tool.removeprefix('load')} is loaded."
        case "neighbourCheck":
            graph, node = _node(files, loaded, a["graph"], a["node"])
            names = files.title_of if a["graph"] == "PaperNet" else files.name_of
            return [names[other] for other in graph._adj[node]]
        case "paperNodeCheck" | "authorNodeCheck":
            graph, node = _node(files, loaded, "PaperNet" if tool.startswith("paper") else "AuthorNet", a["node"])
            return dict(graph._node[node])
        case "paperEdgeCheck":
            return dict(_edge(files, loaded, "PaperNet", a))
        case "authorEdgeCheck":
            edge = dict(_edge(files, loaded, "AuthorNet", a))
            edge["collaborative_papers"] = [files.title_of[paper] for paper in edge["collaborative_papers"]]
            return edge
    raise ToolError(f"There is no tool {tool}.")


def _node(files: Files, loaded: frozenset[str], network: str, name: str) -> tuple[Graph, Any]:
    if network not in ("PaperNet", "AuthorNet"):
        raise ToolError(f"There is no network {network}; there are PaperNet and AuthorNet.")
    if network not in loaded:
        raise ToolError(f"Please load the {network} first.")
    graph, numbers = (
        (files.papers, files.paper_of_title) if network == "PaperNet" else (files.authors, files.author_of_name)
    )
    if name not in numbers:
        raise ToolError(f"There is no node named {name} in the {network}.")
    return graph, numbers[name]


def _edge(files: Files, loaded: frozenset[str], network: str, a: Mapping[str, Any]) -> Mapping[str, Any]:
    (graph, one), (_, two) = (_node(files, loaded, network, a[key]) for key in ("node1", "node2"))
    if two not in graph._adj[one]:
        raise ToolError(f"There is no edge between {a['node1']} and {a['node2']}.")
    return graph._adj[one][two]
