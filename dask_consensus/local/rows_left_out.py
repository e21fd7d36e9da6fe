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
from ..frame.contents import add_contents
from ..result.recall import Recalled, check_contents, check_number
from ..shard.effects import unit_level
from ..shard.mixtures import RowSite
from ..shard.predictive import Design, log_likelihoods, row_sites
from .known import KnownGroups, effects_of
from .psis import Left, leave_out
from .rows import RowReader, key_columns, reader


def rows_left_out(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    recalled: Recalled,
    columns: Mapping[str, Hashable],
    draws: int,
) -> dd.DataFrame:
    """Set beside each row of a frame what is said of it, left out; lazily."""
    task, known, design = _asked(frame, tree, recalled, columns, draws)
    taken = [name for name in Left._fields if name in frame.columns]
    if taken:
        raise ValueError(f"the frame has a column {taken[0]!r} already: drop or rename it first")
    added = {name: pd.Series(dtype=float) for name in Left._fields}
    meta = pd.concat([frame._meta, pd.DataFrame(added, frame._meta.index)], axis=1)
    return frame.map_partitions(
        _beside,
        broadcast(task),
        broadcast((known, design)),
        meta=meta,
        enforce_metadata=False,
        token=f"loo-{tokenize(task.reader.token, task.sites, design, known)}",
    )


def all_rows_left_out(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    recalled: Recalled,
    columns: Mapping[str, Hashable],
    draws: int,
) -> Left:
    """Leave out each row of the frame that was fitted, which it is checked to be."""
    task, known, design = _asked(frame, tree, recalled, columns, draws)
    keys = key_columns(frame, recalled, columns)
    parts = frame.map_partitions(
        _left_out_and_held,
        broadcast(task),
        broadcast((known, design)),
        keys,
        meta=pd.Series([], dtype=object),
        enforce_metadata=False,
    ).compute()
    if not len(parts):
        raise ValueError("the frame has no rows to leave out")
    left, contents = zip(*parts, strict=True)
    joined = Left(*map(np.concatenate, zip(*left, strict=True)))
    hint = "; for some of the rows that were fitted, pointwise() has what is added up here"
    check_number(recalled, len(joined.elpd), hint)
    names = [*keys, *(column.column for column in task.reader.layout.columns)]
    check_contents(recalled, add_contents(contents), names)
    return joined


class _Task(NamedTuple):
    reader: RowReader
    sites: tuple[RowSite, ...]


def _asked(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    recalled: Recalled,
    columns: Mapping[str, Hashable],
    draws: int,
) -> tuple[_Task, KnownGroups | None, Design]:
    """Find out how rows are read, and what each is left out of."""
    sites = row_sites(recalled.model, recalled.dtypes)
    known, design = effects_of(tree, recalled, draws)
    level = None if known is None else unit_level(recalled.model)
    everything = {argument.name for argument in recalled.arguments}
    return _Task(reader(frame, recalled, everything, columns, level), sites), known, design


_Given = tuple[KnownGroups | None, Design]


def _beside(partition: pd.DataFrame, task: _Task, given: _Given) -> pd.DataFrame:
    """Set what is said of the rows of a partition beside them; runs on a worker."""
    left = pd.DataFrame(_left_out(partition, task, given)._asdict(), partition.index)
    return pd.concat([partition, left], axis=1)


def _left_out_and_held(
    partition: pd.DataFrame, task: _Task, given: _Given, keys: tuple[Hashable, ...]
) -> pd.Series:
    """Say of a partition, as one object, what is to be added up; runs on a worker."""
    if not len(partition):
        return pd.Series([], dtype=object)
    left = _left_out(partition, task, given)
    return pd.Series([(left, task.reader.contents(partition, keys))], dtype=object)


def _left_out(partition: pd.DataFrame, task: _Task, given: _Given) -> Left:
    """Leave out the rows of a partition, one at a time."""
    known, design = given
    if not len(partition):
        return Left(*np.zeros((len(Left._fields), 0)))
    blocks, new = task.reader.read(partition, known)
    if new.any():
        raise ValueError(
            f"{np.count_nonzero(new):,} rows of a partition are of groups that the fit has not "
            "seen: only rows that it was given can be left out"
        )
    parts = []
    for i, block in enumerate(blocks):
        named = (block.numbers, i)
        likely = log_likelihoods(task.reader.model, task.sites, design, block.rows, named)
        parts.append(leave_out(likely))
    return Left(*map(np.concatenate, zip(*parts, strict=True)))
