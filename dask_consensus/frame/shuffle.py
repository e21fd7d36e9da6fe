"""Rows travel to their shards: whole partitions are gathered, single rows are shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import getitem
from typing import TYPE_CHECKING, NamedTuple

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import delayed
from dask.utils import get_default_shuffle_method

from ..shard_data import Shard
from .arrays import Layout, collate, encode, key_name, row_order
from .keys import hash_keys, of_form
from .unchanged import frame_changed

if TYPE_CHECKING:
    from dask.delayed import Delayed


SHARD = "shard number"
"""The column that holds each row's shard; no argument of a model can bear this name."""


_TOGETHER, _NUMBERS = 2_000_000, 16_000_000  # rows, and numbers, that travel to one place, at most
_JOURNEYS = (64, 256)  # to fewer places not all workers had work; to more, pieces are small


class BucketMap(NamedTuple):
    """The shard of each hash bucket."""

    buckets: np.ndarray  # (buckets,) uint64: leading bits of hashes of the outermost keys, sorted
    shard: np.ndarray  # (buckets,) int32
    shift: int  # low bits of a hash that a bucket leaves out


def gather_partitions(rows: dd.DataFrame, layout: Layout, members: np.ndarray) -> list[Delayed]:
    """Make each shard of whole partitions, without a shuffle; `members` is the shard of each."""
    encoded = rows.map_partitions(encode, layout, meta=encode(rows._meta, layout)).to_delayed()
    gather = delayed(_gather, pure=True)
    return [
        gather([encoded[i] for i in np.flatnonzero(members == shard)], layout)
        for shard in range(members.max() + 1)
    ]


def place_by_key(rows: dd.DataFrame, layout: Layout, table: BucketMap) -> dd.DataFrame:
    """Encode rows and look up the shard of each one's group, for the column `SHARD`."""
    # As a task of its own the table travels to a worker once, not with every partition.
    sent = delayed(table, pure=True)
    return rows.map_partitions(_look_up, layout, sent, meta=_placed_meta(rows, layout))


def place_in_turn(
    rows: dd.DataFrame, layout: Layout, offsets: np.ndarray, n_shards: int
) -> dd.DataFrame:
    """Encode rows and deal them out to all shards in turn, named in the column `SHARD`.

    The offset of a partition is the number of its first row in the frame.
    """
    return rows.map_partitions(
        _deal,
        dd.from_map(_as_series, offsets.tolist(), meta=_as_series(0)),
        layout,
        n_shards,
        meta=_placed_meta(rows, layout),
        align_dataframes=False,
    )


def shuffle(
    placed: dd.DataFrame, layout: Layout, rows: np.ndarray, method: str | None = None
) -> list[Delayed]:
    """Send encoded rows to the shard in their column `SHARD` and turn shards into arrays.

    `rows` are those that each shard will have, ``(n_shards,)``. They travel by `method`, "tasks",
    "disk" or "p2p"; by default it is what Dask is configured to use, else "p2p" under a distributed
    client and "tasks" elsewhere. They travel to several shards at once, which are told apart where
    they arrive: what a partition sends to one shard of thousands is a few rows, and moving them
    costs the same as moving many.
    """
    n_shards = len(rows)
    least, most = _JOURNEYS
    size = max(n_shards // least if n_shards < most else -(-n_shards // most), 1)
    together = min(_TOGETHER, _NUMBERS // max(len(layout.columns), 1))
    size = min(size, max(int(together / rows.mean()), 1))
    firsts = range(0, n_shards, size)
    # The last division is inclusive, but no row is placed in it.
    arrived = placed.set_index(
        SHARD, divisions=[*firsts, n_shards], shuffle_method=method or _default_method()
    ).to_delayed()
    collated, pick = delayed(_collate_each, pure=True), delayed(getitem, pure=True)
    shards = []
    for first, place in zip(firsts, arrived, strict=True):
        numbers = range(first, min(first + size, n_shards))
        several = collated(place, layout, numbers)
        shards += [pick(several, i) for i in range(len(numbers))]
    return shards


def _collate_each(arrived: pd.DataFrame, layout: Layout, numbers: range) -> list[Shard]:
    """Make the shards of these numbers of rows that are sorted by them."""
    bounds = np.searchsorted(arrived.index, np.arange(numbers.start, numbers.stop + 1))
    return [collate(arrived.iloc[a:b], layout) for a, b in pairwise(bounds)]


def _gather(partitions: Sequence[pd.DataFrame], layout: Layout) -> Shard:
    """Make one shard of encoded partitions."""
    return collate(pd.concat(partitions, ignore_index=True), layout)


def _look_up(partition: pd.DataFrame, layout: Layout, table: BucketMap) -> pd.DataFrame:
    """Encode the rows of a partition and look up the shard of each one's group."""
    encoded = encode(partition, layout)
    hashes = hash_keys(of_form(encoded[key_name(0)].array, layout.forms[0]))
    # In order neighbours are looked up in the same place of a large table.
    order = np.argsort(hashes)
    bucket = hashes[order] >> table.shift
    position = np.searchsorted(table.buckets, bucket).clip(max=len(table.buckets) - 1)
    if not np.array_equal(table.buckets[position], bucket):
        raise frame_changed(f"{layout.by[0]!r} has groups that were not there when it was counted")
    shard = np.empty(len(encoded), np.int32)
    shard[order] = table.shard[position]
    return encoded.assign(**{SHARD: shard})


def _deal(
    partition: pd.DataFrame, offset: pd.Series, layout: Layout, n_shards: int
) -> pd.DataFrame:
    """Encode the rows of a partition and deal them out, the first to the shard whose turn it is."""
    encoded = encode(partition, layout)
    # Sorted first: the deal must not depend on the order of arrival, nor on any period in it.
    order = row_order([encoded[name].to_numpy() for name in encoded], len(encoded))
    shard = (offset.iloc[0] + np.arange(len(encoded))) % n_shards
    return encoded.iloc[order].assign(**{SHARD: shard.astype(np.int32)})


def _as_series(number: int) -> pd.Series:
    """Return a partition that holds one number."""
    return pd.Series([number])


def _placed_meta(rows: dd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Return the empty frame of placed rows."""
    return encode(rows._meta, layout).assign(**{SHARD: np.empty(0, np.int32)})


def _default_method() -> str:
    """Return the configured way to shuffle, else one that suits the scheduler."""
    method = get_default_shuffle_method()
    configured = dask.config.get("dataframe.shuffle.method", None)
    # Without a client Dask goes through files; tasks were faster and run under any scheduler.
    return "tasks" if method == "disk" and configured is None else method
