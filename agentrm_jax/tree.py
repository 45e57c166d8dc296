"""Token trees: the one shape of everything a model reads.

A node is a *segment* of a conversation, tokenised once. A trajectory is a tree without branches, N samples of a task share
its trunk, a search tree is the general case. Flattened depth-first, one integer per token says all about attention:

    query i may see key j   <=>   j <= i < subtree_end[j]

so causal attention, packing (every document is its own tree) and tree attention are one rule. numpy only; no model code.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Kind = Literal["prompt", "action", "observation"]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a conversation, tokenised exactly once.

    Attributes:
      tokens: int32[t].
      kind: `prompt` (up to and with the first generation header), `action` (one assistant turn with its end-of-turn
        token, nothing else) or `observation` (what lies between two actions, headers included).
      loss: imitation learns these tokens (actions; see `data.targets` for the rest).
    """

    tokens: np.ndarray
    kind: Kind
    loss: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A segment in its tree, with what training wants of it.

    Attributes:
      segment: its tokens.
      parent: index of the parent node, smaller than the node's own; -1 at a root.
      weight: factor on the token loss, e.g. how many paths run through the node.
      value: target of the value head at the segment's last token; NaN if there is none.
      value_weight: factor on the value loss; 0 if there is no target.
      origin: index of what the node was made from in its record (a search tree's node); -1 if that does not matter.
      group: the same number at nodes whose values are compared with each other (siblings, a preference's sides); -1: with none.
      count: how often this was what followed the state before.
    """

    segment: Segment
    parent: int
    weight: float = 1.0
    value: float = np.nan
    value_weight: float = 0.0
    origin: int = -1
    group: int = -1
    count: float = 1.0


TokenTree = Sequence[Node]


@dataclasses.dataclass(frozen=True, eq=False)
class FlatTree:
    """A token tree in depth-first order (or several of them, one after another). All arrays are [t].

    Attributes:
      tokens: int32 ids.
      positions: int32 depth of the token along its own path (the RoPE position).
      subtree_end: int32 first index after the subtree of the token's node.
      previous: int32 index of the token before it on its path; -1 at a root's first token. The model's output *there*
        predicts this token: in a tree that need not be the neighbour to the left.
      loss_weight: float32 weight of predicting this token; 0 outside trained actions.
      value, value_weight: float32 target and weight of the value read at this token; weight 0 where there is none.
      action: int32, 1 at tokens of assistant turns that count (segments of kind `action` with loss), also in copies that `split`
        makes; 0 elsewhere.
      node: int32 index of the token's node.
      group: int32, where a value is read that is compared with others: the index at which that of the first of them is read,
        the same for all; -1 elsewhere.
      before: int32, where a value is read: the index of the last one that is read before it on its path; -1 if there is none.
      count: float32, where a value is read: how often its state followed the one before; 0 elsewhere.
    """

    tokens: np.ndarray
    positions: np.ndarray
    subtree_end: np.ndarray
    previous: np.ndarray
    loss_weight: np.ndarray
    value: np.ndarray
    value_weight: np.ndarray
    action: np.ndarray
    node: np.ndarray
    group: np.ndarray
    before: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


POINTERS = ("previous", "group", "before")  # fields that are indices into the row, or -1


def path_tree(segments: Sequence[Segment]) -> list[Node]:
    """A conversation as a tree without branches."""
    return [Node(s, i - 1) for i, s in enumerate(segments)]


def merge_paths(paths: Iterable[Sequence[Segment]]) -> list[Node]:
    """Conversations as one forest in which equal beginnings are shared; weights count the paths through a node."""
    nodes: list[Node] = []
    index: dict[tuple[int, str, bool, bytes], int] = {}
    for path in paths:
        parent = -1
        for segment in path:
            key = (parent, *_content(segment))
            if key in index:
                at = index[key]
                nodes[at] = dataclasses.replace(nodes[at], weight=nodes[at].weight + 1)
            else:
                at = index[key] = len(nodes)
                nodes.append(Node(segment, parent))
            parent = at
    return nodes


def _content(segment: Segment) -> tuple[str, bool, bytes]:
    """What makes two segments the same."""
    return segment.kind, segment.loss, segment.tokens.tobytes()


def depth_first(parents: Sequence[int]) -> list[int]:
    """Node indices in depth-first order; siblings keep their order."""
    children: dict[int, list[int]] = {}
    for i, p in enumerate(parents):
        if p >= i:
            raise ValueError(f"node {i} comes before its parent {p}")
        children.setdefault(p, []).append(i)
    order: list[int] = []
    stack = children.get(-1, [])[::-1]
    while stack:
        i = stack.pop()
        order.append(i)
        stack.extend(reversed(children.get(i, [])))
    return order


def flatten(tree: TokenTree) -> FlatTree:
    """Lays a tree (or forest) out depth-first, with everything attention and losses need."""
    order = depth_first([n.parent for n in tree])
    count = len(tree)
    start, stop, depth = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    offset = 0
    for i in order:
        node, size = tree[i], len(tree[i].segment.tokens)
        if size == 0:
            raise ValueError(f"segment of node {i} has no tokens")
        start[i], stop[i] = offset, offset + size
        depth[i] = 0 if node.parent < 0 else depth[node.parent] + len(tree[node.parent].segment.tokens)
        offset += size
    end = stop.copy()  # of the whole subtree: children come later in `order`, so walk it backwards
    for i in reversed(order):
        p = tree[i].parent
        if p >= 0:
            end[p] = max(end[p], end[i])

    sizes = stop - start
    of = np.repeat(order, sizes[order]) if count else np.zeros(0, np.int64)
    within = np.arange(offset) - start[of]
    previous = np.arange(offset) - 1
    for i in order:
        p = tree[i].parent
        previous[start[i]] = stop[p] - 1 if p >= 0 else -1
    value, value_weight = np.zeros(offset, np.float32), np.zeros(offset, np.float32)
    group, before, reached = np.full(offset, -1, np.int32), np.full(offset, -1, np.int32), np.zeros(offset, np.float32)
    first: dict[int, int] = {}
    last_read = np.full(count + 1, -1)  # of every node's path, itself included; the last entry is for no parent
    for i in order:
        n, at = tree[i], int(stop[i]) - 1
        earlier = last_read[n.parent]
        last_read[i] = at if n.value_weight > 0 else earlier
        if n.value_weight > 0:
            before[at], reached[at] = earlier, n.count
            if n.group >= 0:
                group[at] = first.setdefault(n.group, at)
    loss = np.array([n.weight if n.segment.loss else 0.0 for n in tree], np.float32)
    action = np.array([n.segment.loss and n.segment.kind == "action" for n in tree], np.int32)
    for i, n in enumerate(tree):
        if n.value_weight > 0:
            value[stop[i] - 1], value_weight[stop[i] - 1] = n.value, n.value_weight
    tokens = np.concatenate([tree[i].segment.tokens for i in order]) if count else np.zeros(0)
    return FlatTree(
        tokens=tokens.astype(np.int32),
        positions=(depth[of] + within).astype(np.int32),
        subtree_end=end[of].astype(np.int32),
        previous=previous.astype(np.int32),
        loss_weight=loss[of],
        value=value,
        value_weight=value_weight,
        action=action[of],
        node=of.astype(np.int32),
        group=group,
        before=before,
        count=reached,
    )


def unflatten(flat: FlatTree) -> list[tuple[np.ndarray, int]]:
    """The (tokens, parent) of every node, recovered from the flat arrays; inverse of `flatten` up to labels."""
    count = int(flat.node.max()) + 1 if len(flat) else 0
    nodes: list[tuple[np.ndarray, int]] = []
    for i in range(count):
        at = np.flatnonzero(flat.node == i)
        before = flat.previous[at[0]]
        nodes.append((flat.tokens[at], int(flat.node[before]) if before >= 0 else -1))
    return nodes


def last_token(flat: FlatTree) -> np.ndarray:
    """int32[nodes]: index of every node's last token, where its value is read."""
    last = np.zeros(int(flat.node.max()) + 1 if len(flat) else 0, np.int32)
    last[flat.node] = np.arange(len(flat))  # later indices win, and a node's tokens are in order
    return last


def visible(subtree_end: np.ndarray) -> np.ndarray:
    """bool[t, s]: the attention rule written out; for tests and small inputs."""
    i, j = np.arange(len(subtree_end))[:, None], np.arange(len(subtree_end))[None]
    return (j <= i) & (i < subtree_end[None])


def split(tree: TokenTree, max_tokens: int) -> list[list[Node]]:
    """Cuts a tree into trees of at most `max_tokens` tokens, in depth-first order.

    A cut repeats the ancestors of what it continues with; the copies carry no loss and no value, so sums over the parts
    equal the sum over the whole. Nodes that cannot fit with their ancestors are left out together with what is below them.
    """
    ancestors: dict[int, list[int]] = {}
    parts: list[list[Node]] = []
    current: list[Node] = []
    placed: dict[int, int] = {}
    used = 0
    for i in depth_first([n.parent for n in tree]):
        parent = tree[i].parent
        if parent >= 0 and parent not in ancestors:
            continue  # below a node that was left out
        path = [] if parent < 0 else [*ancestors[parent], parent]
        size = len(tree[i].segment.tokens)
        if sum(len(tree[a].segment.tokens) for a in path) + size > max_tokens:
            continue
        ancestors[i] = path
        missing = [a for a in path if a not in placed]
        need = size + sum(len(tree[a].segment.tokens) for a in missing)
        if used + need > max_tokens:
            parts.append(current)
            current, placed, used = [], {}, 0
            missing = path
            need = size + sum(len(tree[a].segment.tokens) for a in path)
        for a in missing:
            silent = dataclasses.replace(tree[a], parent=placed.get(tree[a].parent, -1), weight=0.0, value_weight=0.0)
            placed[a] = len(current)
            current.append(silent)
        placed[i] = len(current)
        current.append(dataclasses.replace(tree[i], parent=placed.get(parent, -1)))
        used += need
    if current:
        parts.append(current)
    return parts


def truncate(segments: Sequence[Segment], max_tokens: int) -> tuple[list[Segment], int]:
    """Drops the oldest turns (an action with the observation after it) until the conversation fits.

    The prompt and the last turn are never touched, nor is any segment cut. Returns the kept segments and the number of
    dropped turns. Raises ValueError if prompt and last turn alone do not fit.
    """
    head, body = list(segments[:1]), list(segments[1:])
    total = sum(len(s.tokens) for s in segments)
    dropped = 0
    while total > max_tokens:
        if len(body) <= 2:
            raise ValueError(f"prompt and last turn alone take {total} tokens, more than {max_tokens}")
        total -= len(body[0].tokens) + len(body[1].tokens)
        body = body[2:]
        dropped += 1
    return head + body, dropped


def pack(trees: Sequence[FlatTree], row_length: int) -> list[list[int]]:
    """First-fit assignment of trees to rows of `row_length` tokens: a list of tree indices for every row."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(trees)), key=lambda i: -len(trees[i])):
        size = len(trees[i])
        if size > row_length:
            raise ValueError(f"tree {i} has {size} tokens, more than a row of {row_length}: split it first")
        row = next((r for r, space in enumerate(free) if space >= size), None)
        if row is None:
            rows.append([])
            free.append(row_length)
            row = len(rows) - 1
        rows[row].append(i)
        free[row] -= size
    return rows


def to_row(trees: Sequence[FlatTree], row_length: int) -> FlatTree:
    """Trees one after another in one row, padded. A padding token is a tree of its own: it sees itself and is seen by none."""
    used = sum(len(t) for t in trees)
    if used > row_length:
        raise ValueError(f"{used} tokens do not fit a row of {row_length}")
    pad = row_length - used
    starts = np.cumsum([0, *(len(t) for t in trees)])
    nodes = np.cumsum([0, *((int(t.node.max()) + 1 if len(t) else 0) for t in trees)])

    def join(field: str, fill: np.ndarray) -> np.ndarray:
        parts = [getattr(t, field) for t in trees]
        return np.concatenate([*parts, fill.astype(parts[0].dtype if parts else fill.dtype)])

    zeros = np.zeros(pad, np.int32)
    shifted = [
        dataclasses.replace(
            t,
            subtree_end=t.subtree_end + s,
            node=t.node + n,
            **{name: np.where(getattr(t, name) < 0, -1, getattr(t, name) + s) for name in POINTERS},
        )
        for t, s, n in zip(trees, starts, nodes, strict=False)
    ]
    trees = shifted
    return FlatTree(
        tokens=join("tokens", zeros),
        positions=join("positions", zeros),
        subtree_end=join("subtree_end", used + 1 + np.arange(pad)).astype(np.int32),
        previous=join("previous", zeros - 1).astype(np.int32),
        loss_weight=join("loss_weight", zeros.astype(np.float32)),
        value=join("value", zeros.astype(np.float32)),
        value_weight=join("value_weight", zeros.astype(np.float32)),
        action=join("action", zeros),
        node=join("node", nodes[-1] + np.arange(pad)).astype(np.int32),
        group=join("group", zeros - 1).astype(np.int32),
        before=join("before", zeros - 1).astype(np.int32),
        count=join("count", zeros.astype(np.float32)),
    )
