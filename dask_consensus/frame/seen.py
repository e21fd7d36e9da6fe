"""Which groups were there before? By hashes of their keys, whatever dtype holds these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..cluster.tasks import compute
from ..shard_data import Shard
from .arrays import Layout, answered
from .key_kinds import read_keys
from .keys import Form, hash_keys, of_form
from .survey import Survey, used
from .values import missing

if TYPE_CHECKING:
    import dask.dataframe as dd

_NAMED = 5  # groups that a message names


def seen(survey: Survey, hashes: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the hashes of the outermost keys of all rows, sorted, 8 bytes a group.

    A survey that has a bucket for each group holds them; else `hashes` are those that shards say.
    None without groups, or where no shard was asked.
    """
    if not len(survey.buckets):
        return None
    if survey.groups_exact:
        return survey.buckets
    return np.sort(np.concatenate(hashes)) if len(hashes) else None


def hashes_of(shard: Shard, form: Form) -> np.ndarray:
    """Hash the keys of a shard's outermost groups, ``(groups,)``; runs on a worker."""
    return hash_keys(of_form(shard.labels[0][0], form))


def among(hashes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return which of some hashes are among those seen, both of distinct keys.

    Of n groups and m that are new, two have one hash by chance once in 2^64 / (n m) times: once in
    two million for a hundred million and a hundred thousand.
    """
    return np.intersect1d(hashes, seen, assume_unique=True)


def rows_of(frame: dd.DataFrame, layout: Layout, hashes: np.ndarray) -> dd.DataFrame:
    """Return the rows of some groups, in the columns that a layout uses, lazily."""
    rows = used(frame, layout)
    return rows.map_partitions(_rows, layout.by[0], hashes, meta=rows._meta)


def count_rows(frame: dd.DataFrame, layout: Layout) -> int:
    """Count the rows that a fit is given: those that have a response."""
    rows = used(frame, layout)
    (counts,) = compute([rows.map_partitions(_count, layout, meta=(None, "int64"))])
    return int(np.sum(counts))


def names_of(frame: dd.DataFrame, layout: Layout, hashes: np.ndarray) -> str:
    """Name some of the groups that have these hashes, for a message."""
    rows = used(frame, layout)
    key = layout.by[0]
    meta = rows._meta[key].iloc[:0]
    (labels,) = compute([rows.map_partitions(_keys, key, hashes, meta=meta)])
    distinct = list(dict.fromkeys(map(str, labels)))
    more = ", ..." if len(hashes) > _NAMED else ""
    return ", ".join(distinct[:_NAMED]) + more


def _count(partition: pd.DataFrame, layout: Layout) -> int:
    return int(answered(partition, layout).sum())


def _rows(partition: pd.DataFrame, key: str, hashes: np.ndarray) -> pd.DataFrame:
    return partition[_wanted(partition[key], hashes)]


def _keys(partition: pd.DataFrame, key: str, hashes: np.ndarray) -> pd.Series:
    keys = partition[key]
    return keys[_wanted(keys, hashes)].drop_duplicates().head(_NAMED)


def _wanted(keys: pd.Series, hashes: np.ndarray) -> np.ndarray:
    """Tell which keys have one of the hashes; those that are missing have none."""
    wanted = ~np.logical_or(*missing(keys))
    wanted[wanted] = np.isin(hash_keys(read_keys(keys[wanted])), hashes)
    return wanted
