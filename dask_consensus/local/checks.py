"""Data that the fitted model would make, beside those that it was given.

At each of some draws of all unknowns every row is made anew, effects of known groups among them
being their own, and statistics of all rows, or of each value of a column, are compared with those
of the data (posterior predictive checks: Gelman, Meng, Stern 1996, Statistica Sinica 6). Rows are
made where they lie, and only sums and histograms travel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr

from ..cluster.client import working
from ..cluster.tasks import broadcast, call, compute
from ..cluster.tasks import tree as reduced
from ..config import Options
from ..result.names import variable_name
from ..result.recall import recall
from ..shard.at_draws import Design
from ..shard.mixtures import RowSite, share_of
from ..shard.predictive import Replicas, replicate, row_sites
from ..warned import warn
from .known import KnownGroups, effects_of
from .rows import RowReader, reader

STATISTICS = ("mean", "sd", "q05", "q50", "q95", "zeros")
_BINS, _BINS_BY = 4096, 512  # of the histograms that quantiles are taken from
_MOST = 2**27  # numbers in the histograms of a task
_MOST_VALUES = 10_000
_BLOCKS = 100_000  # of rows in a partition, at most


def check(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any],
    *,
    statistics: Sequence[str] = STATISTICS,
    by: Hashable | None = None,
    columns: Mapping[str, Hashable] | None = None,
    draws: int = 100,
    check_verdict: bool = True,
) -> xr.Dataset:
    """Compare data with what the model makes; see :meth:`..accessor.ConsensusAccessor.check`."""
    statistics = _checked(statistics)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    recalled = recall(tree, model, check_verdict=check_verdict)
    sites = _comparable(row_sites(recalled.model, recalled.dtypes))
    known, design = effects_of(tree, recalled, draws)
    everything = {argument.name for argument in recalled.arguments}
    rows = reader(frame, recalled, everything, columns or {})
    if by is not None and by not in frame.columns:
        raise ValueError(
            f"by: the frame has no column {by!r}; its columns are {', '.join(map(str, frame))}"
        )
    used = [*rows.by, *(column.column for column in rows.layout.columns)]
    used = [name for name in dict.fromkeys([*used, by]) if name in frame.columns]
    partitions = frame[used].to_delayed(optimize_graph=True)
    task = _Task(rows, sites, by)
    given = broadcast((task, known, design))
    seen = [call(_range_of, part, given, k) for k, part in enumerate(partitions)]
    patience = Options.frozen().worker_timeout
    with working(patience):
        ranges: _Range = compute([reduced(seen, lambda some: call(_wider, some), 8)])[0]
    if ranges is None:
        raise ValueError("the frame has no rows to compare")
    values = None if by is None else _values(ranges, by)
    bins = _bins(sites, ranges, statistics, 1 if values is None else len(values), len(design.u))
    asked = broadcast((values, bins))
    sums = [call(_sums_of, part, given, asked, k) for k, part in enumerate(partitions)]
    with working(patience):
        total: list[_Sums] = compute([reduced(sums, lambda some: call(_added, some), 8)])[0]
    return _dataset(sites, statistics, total, bins, by, values)


def _comparable(sites: tuple[RowSite, ...]) -> tuple[RowSite, ...]:
    """Leave out sites of which some rows are known up to a limit: those made have none."""
    hidden = [site.name for site in sites if site.censored]
    if not hidden:
        return sites
    why = (
        f"site {hidden[0]!r} is censored, and what the model makes is not: where a row that was "
        "not hidden would have been is not known, so that the two cannot be compared"
    )
    if len(hidden) == len(sites):
        raise ValueError(f"{why}. Rows left out can (loo), by their likelihoods")
    warn(f"{why}; it is left out")
    return tuple(site for site in sites if not site.censored)


class _Task(NamedTuple):
    reader: RowReader
    sites: tuple[RowSite, ...]
    by: Hashable | None


class _Range(NamedTuple):
    """Where the data are: of each site the least and the largest value of each entry."""

    least: list[np.ndarray]
    most: list[np.ndarray]
    values: pd.Index | None  # of the column that rows are told apart by


class _Bins(NamedTuple):
    """Histograms of a site: from `low` on, `n` of one width each for every entry."""

    low: np.ndarray  # (entries,)
    width: np.ndarray
    n: int  # 0 where none is needed


class _Sums(NamedTuple):
    """Sums over rows, of the data first and then of each replica: ``(1 + S, B, entries)``."""

    rows: np.ndarray  # (B,)
    first: np.ndarray  # of what a value is beyond the middle of the data
    second: np.ndarray
    zeros: np.ndarray
    least: np.ndarray
    most: np.ndarray
    histogram: np.ndarray  # (1 + S, B, entries, bins)


def _checked(statistics: Sequence[str]) -> tuple[str, ...]:
    if isinstance(statistics, str):
        raise ValueError(f"statistics must be a list of names, not the text {statistics!r}")
    for name in statistics:
        quantile = re.fullmatch(r"q(\d+(\.\d+)?)", str(name))
        if quantile and 0 < float(quantile[1]) < 100:
            continue
        if name not in ("mean", "sd", "zeros", "min", "max"):
            raise ValueError(
                f"statistic {name!r} is none of 'mean', 'sd', 'zeros' (the share of zeros), 'min', "
                "'max', or a quantile ('q05', 'q97.5': a percentage between 0 and 100)"
            )
    if not statistics:
        raise ValueError("statistics names nothing to compare")
    return tuple(dict.fromkeys(statistics))


# A partition; these run on workers


def _replicas(
    partition: pd.DataFrame,
    task: _Task,
    known: tuple[KnownGroups, ...],
    design: Design,
    number: int,
) -> Any:
    """Yield slices of a partition with what was and what might have been observed there."""
    blocks, _ = task.reader.read(partition, known)
    for i, block in enumerate(blocks):
        named = (block.numbers, number * _BLOCKS + i)
        yield block.some, replicate(task.reader.model, task.sites, design, block.rows, named)


def _range_of(partition: pd.DataFrame, given: Any, number: int) -> _Range | None:
    task, known, design = given
    partition = partition[task.reader.answered(partition)]
    if not len(partition):
        return None
    values = None
    if task.by is not None:
        if partition[task.by].isna().any():
            raise ValueError(f"by: column {task.by!r} has missing values; fill or drop them first")
        values = pd.Index(partition[task.by].unique())
    found = None
    few = Design(design.center, design.u[:2], design.normal[:2])
    known = tuple(its.first(2) for its in known)
    for _, replicas in _replicas(partition, task, known, few, number):
        here = _Range(
            [_extreme(np.nanmin, one) for one in replicas],
            [_extreme(np.nanmax, one) for one in replicas],
            values,
        )
        found = here if found is None else _wider([found, here])
    return found


def _extreme(function: Callable[..., Any], replicas: Replicas) -> np.ndarray:
    """Take the least or the largest of what was and what might have been observed."""
    parts = [replicas.observed, *replicas.replicated]
    finite = [np.where(np.isfinite(part), part, np.nan) for part in parts]
    return np.asarray(function([function(part, axis=0) for part in finite], axis=0), float)


def _wider(ranges: list[_Range | None]) -> _Range | None:
    some = [one for one in ranges if one is not None]
    if not some:
        return None
    values = some[0].values
    for one in some[1:]:
        if values is not None and one.values is not None and values is not one.values:
            values = values.union(one.values)
    return _Range(
        [np.fmin.reduce(each) for each in zip(*(one.least for one in some), strict=True)],
        [np.fmax.reduce(each) for each in zip(*(one.most for one in some), strict=True)],
        values,
    )


def _sums_of(partition: pd.DataFrame, given: Any, asked: Any, number: int) -> list[_Sums] | None:
    task, known, design = given
    values, bins = asked
    partition = partition[task.reader.answered(partition)]
    if not len(partition):
        return None
    code = np.zeros(len(partition), np.int64)
    if values is not None:
        code = values.get_indexer(partition[task.by])
    total = None
    for some, replicas in _replicas(partition, task, known, design, number):
        n = 1 if values is None else len(values)
        here = [
            _sums(one, code[some], n, limits) for one, limits in zip(replicas, bins, strict=True)
        ]
        total = here if total is None else _added([total, here])
    return total


def _sums(replicas: Replicas, code: np.ndarray, n: int, bins: _Bins) -> _Sums:
    counted = replicas.counted
    code = code[counted]
    everything = np.concatenate([replicas.observed[None], replicas.replicated])[:, counted]
    samples, _, entries = everything.shape
    middle = bins.low + bins.width * max(bins.n, 1) / 2
    shape = (samples, n, entries)
    told = {name: np.zeros(shape) for name in ("first", "second", "zeros")}
    least, most = np.full(shape, np.inf), np.full(shape, -np.inf)
    histogram = np.zeros((*shape, bins.n), np.int64)
    order = np.argsort(code, kind="stable")
    present, starts = np.unique(code[order], return_index=True)
    for s in range(samples) if len(code) else ():
        for e in range(entries):
            values = everything[s, order, e].astype(float)
            away = values - middle[e]
            for name, summed in (("first", away), ("second", away**2), ("zeros", values == 0)):
                told[name][s, present, e] = np.add.reduceat(summed, starts, dtype=float)
            least[s, present, e] = np.minimum.reduceat(values, starts)
            most[s, present, e] = np.maximum.reduceat(values, starts)
            if bins.n:
                at = np.clip((values - bins.low[e]) / bins.width[e], 0, bins.n - 1)
                cell = code[order] * bins.n + at.astype(np.int64)
                histogram[s, :, e] = np.bincount(cell, minlength=n * bins.n).reshape(n, bins.n)
    return _Sums(
        np.bincount(code, minlength=n), **told, least=least, most=most, histogram=histogram
    )


def _added(parts: list[list[_Sums] | None]) -> list[_Sums] | None:
    some = [part for part in parts if part is not None]
    if not some:
        return None
    joined = {"least": np.fmin, "most": np.fmax}
    return [
        _Sums(
            *(
                joined.get(name, np.add).reduce([getattr(one, name) for one in of_site])
                for name in _Sums._fields
            )
        )
        for of_site in zip(*some, strict=True)
    ]


# What is compared


def _values(ranges: _Range, by: Hashable) -> pd.Index:
    values = ranges.values
    assert values is not None
    if len(values) > _MOST_VALUES:
        raise ValueError(
            f"by: column {by!r} has {len(values):,} values, more than {_MOST_VALUES:,} to compare "
            "one by one: take a coarser column"
        )
    return values.sort_values()


def _bins(
    sites: Sequence[RowSite], ranges: _Range, statistics: Sequence[str], n: int, samples: int
) -> list[_Bins]:
    """Lay out histograms, of whole numbers where a site has few of them."""
    wanted = any(name.startswith("q") for name in statistics)
    bins = []
    for site, least, most in zip(sites, ranges.least, ranges.most, strict=True):
        spread = np.maximum(most - least, 1e-12)
        # Other replicas may go further than the two that were looked at.
        low, high = least - spread / 2, most + spread / 2
        size = _BINS if n == 1 else _BINS_BY
        width = (high - low) / size
        if site.discrete and (spread * 2 < size).all():
            low, width = np.floor(low) - 0.5, np.ones_like(low)
        size = size if wanted else 0
        cells = (1 + samples) * n * len(least) * size
        if cells > _MOST:
            raise ValueError(
                f"quantiles of {n:,} groups of rows in {samples:,} draws need histograms of "
                f"{cells:,} counts: leave quantiles out of statistics, or take fewer draws"
            )
        bins.append(_Bins(low, width, size))
    return bins


def _statistic(name: str, sums: _Sums, bins: _Bins, discrete: bool) -> np.ndarray:
    """Make a statistic of sums, ``(1 + S, B, entries)``."""
    rows = sums.rows[:, None].astype(float)
    middle = bins.low + bins.width * max(bins.n, 1) / 2
    if name == "mean":
        return np.asarray(middle + sums.first / rows)
    if name == "sd":
        return np.sqrt(np.maximum(sums.second / rows - (sums.first / rows) ** 2, 0.0))
    if name == "zeros":
        return np.asarray(sums.zeros / rows)
    if name in ("min", "max"):
        return sums.least if name == "min" else sums.most
    upto = np.cumsum(sums.histogram, axis=-1)
    wanted = share_of(name) * rows[..., None]
    at = np.argmax(upto >= wanted, axis=-1)
    if discrete and (bins.width == 1).all():
        return np.asarray(bins.low + 0.5 + at)
    before = np.take_along_axis(upto - sums.histogram, at[..., None], -1)[..., 0]
    here = np.take_along_axis(sums.histogram, at[..., None], -1)[..., 0]
    return np.asarray(
        bins.low + bins.width * (at + (wanted[..., 0] - before) / np.maximum(here, 1))
    )


def _dataset(
    sites: Sequence[RowSite],
    statistics: Sequence[str],
    total: list[_Sums],
    bins: list[_Bins],
    by: Hashable | None,
    values: pd.Index | None,
) -> xr.Dataset:
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {"statistic": list(statistics)}
    if values is not None:
        coords[str(by)] = values.to_numpy()
    for site, sums, limits in zip(sites, total, bins, strict=True):
        told = np.stack([_statistic(name, sums, limits, site.discrete) for name in statistics], 1)
        told = told.reshape(*told.shape[:3], *site.entry)
        dims = [
            "statistic",
            str(by) if values is not None else "",
            *(f"{variable_name(site.name)}_dim_{axis}" for axis in range(len(site.entry))),
        ]
        if values is None:
            told, dims = told[:, :, 0], [dim for dim in dims if dim]
        observed, replicated = told[0], told[1:]
        below = (replicated < observed).mean(axis=0) + (replicated == observed).mean(axis=0) / 2
        name = variable_name(site.name)
        variables[name] = (dims, observed, {"long_name": "of the data"})
        variables[f"{name}_replicated"] = (
            ["draw", *dims],
            replicated,
            {"long_name": "of data that the fitted model made"},
        )
        variables[f"{name}_p"] = (
            dims,
            below,
            {"long_name": "share of the replicas that are below the data, half of those equal"},
        )
    rows = total[0].rows
    of_rows = (str(by), rows) if values is not None else ((), rows[0])
    variables["rows"] = (*of_rows, {"long_name": "rows compared"})
    return xr.Dataset(variables, coords)
