"""A prediction beside each row: of the frame that was fitted, or of another one, months later.

Effects of the groups travel to the partitions, which are predicted where they lie; rows are neither
moved nor reordered. What the model says of rows is found in :mod:`..shard.predictive`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from ..cluster.tasks import broadcast
from ..result.names import named_columns
from ..result.recall import recall
from ..shard.at_draws import Design
from ..shard.mixtures import RowSite, share_of
from ..shard.predictive import Asked, ask, row_sites
from ..shard.row_effects import row_effects, unobserved_sites
from .known import KnownGroups, effects_of
from .rows import RowReader, reader

Kind = Literal["predictive", "expected", "effects"]
NEW = "new_group"
_DRAWS = 128
_STATISTICS = ("mean", "sd", "q05", "q95")


def predict(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any],
    *,
    columns: Mapping[str, Hashable] | None = None,
    statistics: Sequence[str] | None = None,
    kind: Kind = "predictive",
    draws: int | None = None,
    check_verdict: bool = True,
) -> dd.DataFrame:
    """Predict every row of a frame; see :meth:`..accessor.ConsensusAccessor.predict`."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be 'predictive', 'expected' or 'effects', not {kind!r}")
    if draws is not None and draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    recalled = recall(tree, model, check_verdict=check_verdict)
    if kind == "effects":
        sites = unobserved_sites(recalled.model, recalled.dtypes)
        needed = {argument.name for argument in recalled.arguments}
    else:
        sites = row_sites(recalled.model, recalled.dtypes)
        needed = {name for site in sites for name in site.needs}
    asked = _asked(sites, statistics, kind)
    known, design = effects_of(tree, recalled, draws or _DRAWS)
    task = _Task(reader(frame, recalled, needed, columns or {}), asked)
    names = task.names
    taken = [name for name in names if name in frame.columns]
    if taken:
        raise ValueError(
            f"the frame has {named_columns(taken)} already: drop or rename before predicting"
        )
    added = {name: pd.Series(dtype=bool if name in task.flags else float) for name in names}
    meta = pd.concat([frame._meta, pd.DataFrame(added, frame._meta.index)], axis=1)
    return frame.map_partitions(
        _effects if kind == "effects" else _predicted,
        broadcast(task),
        broadcast((known, design)),
        meta=meta,
        enforce_metadata=False,
        token=f"predict-{tokenize(task.reader.token, kind, asked, design, known)}",
    )


class _Task(NamedTuple):
    """What is done with each partition."""

    reader: RowReader
    asked: Asked

    @property
    def flags(self) -> list[str]:
        """The columns that tell whether the fit has seen a row's groups.

        Of several levels the innermost tells for all: what lies in a new group is new.
        """
        outer = [f"new_{self.reader.by[level]}" for level in self.reader.levels[:-1]]
        return [*outer, NEW] if self.reader.levels else []

    @property
    def names(self) -> list[str]:
        """The columns that are added."""
        names = [
            f"{site.name}{_index(entry)}_{statistic}"
            for site, statistics in zip(self.asked.sites, self.asked.statistics, strict=True)
            for entry in np.ndindex(site.entry)
            for statistic in statistics
        ]
        return [*names, *self.flags]


def _index(entry: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, entry))}]" if entry else ""


# What is asked


def _asked(sites: Sequence[RowSite], statistics: Sequence[str] | None, kind: Kind) -> Asked:
    if isinstance(statistics, str):
        raise ValueError(f"statistics must be a list of names, not the text {statistics!r}")
    for name in statistics or ():
        quantile = re.fullmatch(r"q(\d+(\.\d+)?)", str(name))
        if quantile and 0 < float(quantile[1]) < 100:
            continue
        if name not in ("mean", "sd") and not re.fullmatch(r"p\d+", str(name)):
            raise ValueError(
                f"statistic {name!r} is none of 'mean', 'sd', a quantile ('q05', 'q97.5': a "
                "percentage between 0 and 100), or the probability of a value of a discrete site "
                "('p0')"
            )
    return Asked(
        tuple(sites), tuple(_of_site(site, statistics) for site in sites), kind == "expected"
    )


def _of_site(site: RowSite, statistics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the statistics that are asked of a site, where it has them."""
    probabilities = tuple(f"p{k}" for k in range(site.categories))
    if statistics is None:
        return probabilities or _STATISTICS
    for name in statistics:
        of_value = re.fullmatch(r"p\d+", name)
        if of_value and not site.discrete:
            raise ValueError(f"statistic {name!r}: site {site.name!r} is continuous")
        if of_value and site.categories and name not in probabilities:
            raise ValueError(
                f"statistic {name!r}: site {site.name!r} has categories 0 to {site.categories - 1}"
            )
        if name in ("mean", "sd") and site.categories:
            raise ValueError(
                f"statistic {name!r}: site {site.name!r} is a category, which has none; ask for "
                f"'p0' to 'p{site.categories - 1}', or quantiles"
            )
    return tuple(dict.fromkeys(statistics))


# A partition


def _predicted(
    partition: pd.DataFrame, task: _Task, given: tuple[tuple[KnownGroups, ...], Design]
) -> pd.DataFrame:
    """Predict the rows of a partition; runs on a worker."""
    known, design = given
    n, names, flags = len(partition), task.names, task.flags
    values, new = np.empty((n, len(names) - len(flags))), np.zeros((len(flags), n), bool)
    if n:
        blocks, new = task.reader.read(partition, known)
        for block in blocks:
            answers = ask(task.reader.model, task.asked, design, block.rows)
            values[block.some] = np.hstack([answer.reshape(len(answer), -1) for answer in answers])
    return _beside(partition, task, values, new)


def _effects(
    partition: pd.DataFrame, task: _Task, given: tuple[tuple[KnownGroups, ...], Design]
) -> pd.DataFrame:
    """Say what is known of the effects of each row of a partition; runs on a worker.

    Nothing is of rows without a response, nor of those whose group the fit has not seen.
    """
    known, design = given
    n, flags = len(partition), task.flags
    values = np.full((n, len(task.names) - len(flags)), np.nan)
    new = np.zeros((len(flags), n), bool)
    told = np.flatnonzero(task.reader.answered(partition))
    others = np.setdiff1d(np.arange(n), told)
    if len(others) and flags:
        new[:, others] = task.reader.new_groups(partition.iloc[others], known)
    if len(told):
        # What is asked is the same of all sites, but for what distributions have.
        statistics = ("mean", "sd", *(s for s in task.asked.statistics[0] if s.startswith("q")))
        which = [statistics.index(name) for name in task.asked.statistics[0]]
        shares = tuple(share_of(name) for name in statistics[2:])
        blocks, unseen = task.reader.read(partition.iloc[told], known)
        new[:, told] = unseen
        for block in blocks:
            answers = row_effects(task.reader.model, task.asked.sites, shares, design, block.rows)
            flat = [answer[:, :, which].reshape(len(answer), -1) for answer in answers]
            values[told[block.some]] = np.hstack(flat)
    values[new.any(axis=0)] = np.nan
    return _beside(partition, task, values, new)


def _beside(
    partition: pd.DataFrame, task: _Task, values: np.ndarray, new: np.ndarray
) -> pd.DataFrame:
    """Set columns beside those of a partition."""
    added = pd.DataFrame(values, partition.index, task.names[: values.shape[1]])
    for flag, its in zip(task.flags, new, strict=True):
        added[flag] = its
    return pd.concat([partition, added], axis=1)
