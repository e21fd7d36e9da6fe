"""Each row left out, where it lies.

Draws of the shared parameters and of the effects of each group give the log likelihood of each row;
the rest is importance sampling (:mod:`.psis`), row by row, so that nothing but three numbers a row
is added to a partition.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from ..cluster.tasks import broadcast
from ..result.recall import Recalled
from ..shard.effects import unit_level
from ..shard.mixtures import RowSite
from ..shard.predictive import Design, log_likelihoods, row_sites
from .known import KnownGroups, effects_of
from .psis import Left, leave_out
from .rows import RowReader, reader


def rows_left_out(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    recalled: Recalled,
    columns: Mapping[str, Hashable],
    draws: int,
) -> dd.DataFrame:
    """Set beside each row of a frame what is said of it, left out; lazily."""
    sites = row_sites(recalled.model, recalled.dtypes)
    known, design = effects_of(tree, recalled, draws)
    level = None if known is None else unit_level(recalled.model)
    everything = {argument.name for argument in recalled.arguments}
    task = _Task(reader(frame, recalled, everything, columns, level), sites)
    taken = [name for name in Left._fields if name in frame.columns]
    if taken:
        raise ValueError(f"the frame has a column {taken[0]!r} already: drop or rename it first")
    added = {name: pd.Series(dtype=float) for name in Left._fields}
    meta = pd.concat([frame._meta, pd.DataFrame(added, frame._meta.index)], axis=1)
    return frame.map_partitions(
        _left_out,
        broadcast(task),
        broadcast((known, design)),
        meta=meta,
        enforce_metadata=False,
        token=f"loo-{tokenize(task.reader.token, sites, design, known)}",
    )


class _Task(NamedTuple):
    reader: RowReader
    sites: tuple[RowSite, ...]


def _left_out(
    partition: pd.DataFrame, task: _Task, given: tuple[KnownGroups | None, Design]
) -> pd.DataFrame:
    """Leave out the rows of a partition, one at a time; runs on a worker."""
    known, design = given
    values = np.empty((len(partition), len(Left._fields)))
    if len(partition):
        blocks, new = task.reader.read(partition, known)
        if new.any():
            raise ValueError(
                f"{np.count_nonzero(new):,} rows of a partition are of groups that the fit has not "
                "seen: only rows that it was given can be left out"
            )
        for i, block in enumerate(blocks):
            named = (block.numbers, i)
            likely = log_likelihoods(task.reader.model, task.sites, design, block.rows, named)
            values[block.some] = np.column_stack(leave_out(likely))
    added = pd.DataFrame(values, partition.index, list(Left._fields))
    return pd.concat([partition, added], axis=1)
