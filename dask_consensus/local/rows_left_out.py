"""Each row left out, where it lies.

Draws of the shared parameters and of the effects of each group give the log likelihood of each row;
the rest is importance sampling (:mod:`.psis`), row by row, so that nothing but three numbers a row
is added to a partition.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from ..cluster.client import working
from ..cluster.tasks import broadcast, compute
from ..config import Options
from ..frame.contents import add_contents
from ..result.names import named_columns
from ..result.recall import Recalled, check_contents, check_number
from ..shard.at_draws import Design
from ..shard.mixtures import RowSite
from ..shard.predictive import log_likelihoods, row_sites
from .known import KnownGroups, effects_of, fewer
from .psis import Left, leave_out
from .rows import RowReader, key_columns, reader
from .subsample import Estimate, Part, Rough, estimate, part, rough

_FEW = 16  # draws that a row's rough number is made from, at least


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
        raise ValueError(f"the frame has {named_columns(taken)} already: drop or rename first")
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
    subsample: int | None,
) -> tuple[Left | Estimate, int]:
    """Leave out each row of the frame that was fitted, which it is checked to be; or estimate it.

    With `subsample`, about so many rows are left out, which speak for all. The number of draws that
    there were comes with it.
    """
    task, known, design = _asked(frame, tree, recalled, columns, draws)
    keys = key_columns(frame, recalled, columns)
    few = None
    if subsample is not None and recalled.n_rows is not None and subsample < recalled.n_rows:
        enough = max(_FEW, 2 * (recalled.model.dim + design.normal.shape[1] + 2))
        few = _Few(*fewer(known, design, recalled, enough), subsample / recalled.n_rows)
    asked = frame.map_partitions(
        _left_out_and_held,
        broadcast(task),
        broadcast((known, design)),
        broadcast(few),
        keys,
        meta=pd.Series([], dtype=object),
        enforce_metadata=False,
    )
    with working(Options.frozen().worker_timeout):
        (parts,) = compute([asked])
    if not len(parts):
        raise ValueError("the frame has no rows to leave out")
    told, rows, contents = zip(*parts, strict=True)
    hint = "; for some of the rows that were fitted, pointwise() has what is added up here"
    check_number(recalled, sum(rows), hint)
    names = [*keys, *(column.label for column in task.reader.layout.columns)]
    check_contents(recalled, add_contents(contents), names)
    if few is not None:
        return estimate(told), len(design.u)
    return Left(*map(np.concatenate, zip(*told, strict=True))), len(design.u)


class _Task(NamedTuple):
    reader: RowReader
    sites: tuple[RowSite, ...]


class _Few(NamedTuple):
    """Few draws, for rough numbers of all rows, and the share of rows that are left out."""

    known: tuple[KnownGroups, ...]
    design: Design
    share: float


def _asked(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    recalled: Recalled,
    columns: Mapping[str, Hashable],
    draws: int,
) -> tuple[_Task, tuple[KnownGroups, ...], Design]:
    """Find out how rows are read, and what each is left out of."""
    sites = row_sites(recalled.model, recalled.dtypes)
    known, design = effects_of(tree, recalled, draws)
    everything = {argument.name for argument in recalled.arguments}
    return _Task(reader(frame, recalled, everything, columns), sites), known, design


_Given = tuple[tuple[KnownGroups, ...], Design]


def _beside(partition: pd.DataFrame, task: _Task, given: _Given) -> pd.DataFrame:
    """Set what is said of the rows of a partition beside them; runs on a worker.

    Of rows without a response nothing is.
    """
    there = task.reader.answered(partition)
    left = {name: np.full(len(partition), np.nan) for name in Left._fields}
    for name, values in _left_out(partition[there], task, given)._asdict().items():
        left[name][there] = values
    return pd.concat([partition, pd.DataFrame(left, partition.index)], axis=1)


def _left_out_and_held(
    partition: pd.DataFrame,
    task: _Task,
    given: _Given,
    few: _Few | None,
    keys: tuple[Hashable, ...],
    partition_info: Mapping[str, Any] | None = None,
) -> pd.Series:
    """Say of a partition, as one object, what is to be added up; runs on a worker."""
    partition = partition[task.reader.answered(partition)]
    if not len(partition):
        return pd.Series([], dtype=object)
    told: Left | Part
    if few is None:
        told = _left_out(partition, task, given)
    else:
        number = partition_info["number"] if partition_info else 0
        drawn = np.random.default_rng([0, number]).random(len(partition))
        chosen = np.flatnonzero(drawn < few.share)
        roughly = [rough(likely) for likely in _likelihoods(partition, task, few[:2], shared=True)]
        left = _left_out(partition.iloc[chosen], task, given)
        told = part(Rough(*map(np.concatenate, zip(*roughly, strict=True))), chosen, left)
    held = task.reader.contents(partition, keys)
    return pd.Series([(told, len(partition), held)], dtype=object)


def _left_out(partition: pd.DataFrame, task: _Task, given: _Given) -> Left:
    """Leave out the rows of a partition, one at a time."""
    if not len(partition):
        return Left(*np.zeros((len(Left._fields), 0)))
    parts = [leave_out(likely) for likely in _likelihoods(partition, task, given)]
    return Left(*map(np.concatenate, zip(*parts, strict=True)))


def _likelihoods(
    partition: pd.DataFrame, task: _Task, given: _Given, *, shared: bool = False
) -> Iterator[np.ndarray]:
    """Log likelihoods ``(draws, rows)`` of the rows of a partition, some at a time.

    Random numbers are each group's own, or shared by all.
    """
    known, design = given
    blocks, new = task.reader.read(partition, known)
    if new.any():
        unseen = np.count_nonzero(new.any(axis=0))
        raise ValueError(
            f"{unseen:,} rows of a partition are of groups that the fit has not "
            "seen: only rows that it was given can be left out"
        )
    for i, block in enumerate(blocks):
        named = None if shared else (block.numbers, i)
        yield log_likelihoods(task.reader.model, task.sites, design, block.rows, named)
