"""Datasets of token trees: written with TFDS (array_record), read back, and packed into batches with grain."""

import contextlib
import functools
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import numpy as np

from agentrm_jax.data import bootstrap
from agentrm_jax.tree import POINTERS, FlatTree
from agentrm_jax.types import JSON, UserError

_TREE = ("tokens", "positions", "subtree_end", *POINTERS)
_INTS = (*_TREE, "task")
_FLOATS = ("loss_weight", "value", "value_weight", "count")


def write_dataset(
    folder: Path,
    trees: Sequence[FlatTree],
    *,
    meta: dict[str, JSON],
    extra: tuple[str, ...] = (),
    tasks: Sequence[str] = (),
) -> None:
    """Writes flattened trees as a TFDS dataset named `token_trees` (split `train`, array_record files, no TensorFlow).

    Args:
      extra: further whole-number arrays of a `FlatTree` that the objective reads.
      tasks: the key of every tree's task, for bootstrap samples of them.

    Raises:
      UserError: there are no trees.
    """
    import tensorflow_datasets as tfds

    class TokenTrees(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Flattened token trees."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            ints = {name: tfds.features.Tensor(shape=(None,), dtype=np.int32) for name in (*_INTS, *extra)}
            floats = {name: tfds.features.Tensor(shape=(None,), dtype=np.float32) for name in _FLOATS}
            features = tfds.features.FeaturesDict(ints | floats)
            return tfds.core.DatasetInfo(builder=self, description=json.dumps(meta), features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            for i, t in enumerate(trees):
                number = bootstrap.task_number(tasks[i]) if tasks else -1
                row = {name: getattr(t, name) for name in (*_TREE, *_FLOATS, *extra)}
                yield i, row | {"task": np.full(len(t), number, np.int32)}

    if not trees:
        raise UserError("there is nothing to train on: no token tree was made from the data")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it announces downloads that do not happen
        TokenTrees(data_dir=folder, file_format="array_record").download_and_prepare()


def read_dataset(folder: Path) -> Any:
    """The trees that `write_dataset` wrote, with random access: each a dict of arrays [t]. None if there is no dataset."""
    import tensorflow_datasets as tfds

    place = folder / "token_trees" / "1.0.0"
    if not (place / "dataset_info.json").exists():
        return None
    return tfds.builder_from_directory(str(place)).as_data_source(split="train")


class Joined:
    """A dataset with one more array [t] a tree, which is kept in memory.

    Args:
      source: as `read_dataset` gives it.
      values: the arrays of all trees one after another, in the order of the dataset.
      ends: int[len(source)], where each ends.
    """

    def __init__(self, source: Any, name: str, values: np.ndarray, ends: np.ndarray):
        self._source, self._name, self._values, self._ends = source, name, values, ends

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        i = range(len(self))[index]
        begin = int(self._ends[i - 1]) if i else 0
        return dict(self._source[i]) | {self._name: self._values[begin : int(self._ends[i])]}


def batches(
    source: Any,
    *,
    rows: int,
    row_length: int,
    seed: int,
    shard: int = 0,
    shards: int = 1,
    threads: int = 1,
    heads: int = 1,
) -> grain.IterDataset:
    """An endless, shuffled stream of packed batches: dicts of the source's arrays, [rows, row_length], as in `FlatTree`.

    Trees are packed first-fit; the tokens of each see that tree only. The iterator's state can be saved and restored exactly.
    For several value `heads`, float32[rows, row_length, heads] `head_weight` says how often a token's task is in each head's
    bootstrap sample.

    Args:
      rows: of this process, which is `shard` of `shards`. Every process makes the whole batch of rows * shards rows and takes its
        own: batches, and the state, are those of one process alone, so that a run may go on with another number of them.
    """
    data = grain.MapDataset.source(source).map(_complete).seed(seed).shuffle().repeat(None)
    names = tuple(_complete(source[0]))
    packed = grain.experimental.FirstFitPackIterDataset(
        data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64)),
        length_struct=dict.fromkeys(names, row_length),
        num_packing_bins=max(rows * shards, 8),
        shuffle_bins=False,
    )
    made = packed.map(functools.partial(_to_row, seed=seed, heads=heads)).batch(rows * shards, drop_remainder=True)
    return made.map(lambda batch: {name: array[shard * rows : (shard + 1) * rows] for name, array in batch.items()})


def _complete(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A tree with all fields; datasets that were made before there were comparisons and ensembles lack some."""
    nothing = np.full(len(row["tokens"]), -1, np.int32)
    once = np.asarray(row["value_weight"] > 0, np.float32)
    return {"group": nothing, "before": nothing, "task": nothing, "count": once, **row}


def _to_row(packed: dict[str, np.ndarray], *, seed: int, heads: int) -> dict[str, np.ndarray]:
    """A row [t] whose trees' indices count from its start; every padding token is a tree of its own."""
    index = np.arange(len(packed["tokens"]), dtype=np.int32)
    real = packed["tokens_segment_ids"] > 0
    start = index - packed["tokens_positions"]
    names = (name for name in packed if name != "task" and not name.endswith(("_segment_ids", "_positions")))
    out = {name: np.where(real, packed[name], 0).astype(packed[name].dtype) for name in names}
    out["subtree_end"] = np.where(real, packed["subtree_end"] + start, index + 1).astype(np.int32)
    for name in POINTERS:
        out[name] = np.where(real & (packed[name] >= 0), packed[name] + start, -1).astype(np.int32)
    if heads > 1:
        out["head_weight"] = bootstrap.head_weights(np.where(real, packed["task"], -1), seed, heads)
    return out
