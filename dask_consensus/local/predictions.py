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
from ..frame.arrays import Column, Layout, encode_values
from ..frame.values import exact_numbers, missing, out_of_range, unfit
from ..model.model import ShardModel
from ..result.names import variable_name
from ..result.recall import Recalled, recall
from ..shard.effects import effects_per_unit, unit_level
from ..shard.mixtures import RowSite
from ..shard.predictive import (
    ROWS_AT_ONCE,
    Asked,
    Design,
    Normals,
    Rows,
    ask,
    make_design,
    row_sites,
)
from ..shard_data import ROWS
from .effects import GIVEN_SHARED, representative
from .known import KnownGroups, groups_here, known_groups

Kind = Literal["predictive", "expected"]
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
        raise ValueError(f"kind must be 'predictive' or 'expected', not {kind!r}")
    if draws is not None and draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    recalled = recall(tree, model, check_verdict=check_verdict)
    sites = row_sites(recalled.model, recalled.dtypes)
    asked = _asked(sites, statistics, kind)
    needed = {name for site in sites for name in site.needs}
    layout = _layout(frame, recalled, needed, dict(columns or {}))
    by = _key_columns(frame, recalled, dict(columns or {}))
    known, design = _effects(tree, recalled, draws)
    constant = tuple((a.name, a.dtype) for a in recalled.arguments if a.name not in needed)
    level = None if known is None else unit_level(recalled.model)
    task = _Task(recalled.model, asked, layout, by, level, constant)
    names = task.names
    taken = [name for name in names if name in frame.columns]
    if taken:
        raise ValueError(
            f"the frame has a column {taken[0]!r} already: drop or rename it before predicting"
        )
    added = {name: pd.Series(dtype=bool if name == NEW else float) for name in names}
    meta = pd.concat([frame._meta, pd.DataFrame(added, frame._meta.index)], axis=1)
    return frame.map_partitions(
        _predicted,
        broadcast(task),
        broadcast((known, design)),
        meta=meta,
        enforce_metadata=False,
        token=f"predict-{tokenize(task.token, design, known)}",
    )


class _Task(NamedTuple):
    """What is done with each partition."""

    model: ShardModel
    asked: Asked
    layout: Layout  # of the columns that predictions depend on, but keys
    by: tuple[Hashable, ...]  # key columns of all levels that the model knows
    level: int | None  # of the groups that carry effects; None without any
    constant: tuple[tuple[str, str], ...]  # arguments on which nothing depends, and their dtypes

    @property
    def token(self) -> tuple[Any, ...]:
        """What the answer depends on."""
        return (self.model.token, self.asked, self.layout, self.by, self.level, self.constant)

    @property
    def names(self) -> list[str]:
        """The columns that are added."""
        names = [
            f"{site.name}{_index(entry)}_{statistic}"
            for site, statistics in zip(self.asked.sites, self.asked.statistics, strict=True)
            for entry in np.ndindex(site.entry)
            for statistic in statistics
        ]
        return names if self.level is None else [*names, NEW]


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


# Columns of the frame


def _layout(
    frame: dd.DataFrame, recalled: Recalled, needed: set[str], columns: dict[str, Hashable]
) -> Layout:
    """Find the columns that predictions depend on."""
    arguments = {argument.name: argument for argument in recalled.arguments}
    for name in columns:
        if name not in arguments:
            raise ValueError(
                f"columns names {name!r}, which no column fed in the fit; those that one did are "
                f"{', '.join(arguments)}"
            )
    found = []
    for argument in recalled.arguments:
        if argument.name not in needed or argument.kind == "group":
            continue
        column = _find(frame, columns.get(argument.name, argument.column), argument.name)
        kind: Any = argument.kind
        categories = tuple(argument.categories)
        found.append(
            Column(argument.name, column, kind, categories=categories, dtype=argument.dtype)
        )
    return Layout((), tuple(found), recalled.model.x64)


def _key_columns(
    frame: dd.DataFrame, recalled: Recalled, columns: dict[str, Hashable]
) -> tuple[Hashable, ...]:
    """Find the key columns, down to those of the innermost level that the model knows."""
    levels = [site.level for site in recalled.model.local if site.level is not None]
    used = max([*recalled.model.codes.values(), *levels], default=-1)
    renamed = {
        argument.level: columns[argument.name]
        for argument in recalled.arguments
        if argument.kind == "group" and argument.name in columns
    }
    return tuple(
        _find(frame, renamed.get(level, name), "key")
        for level, name in enumerate(recalled.by[: used + 1])
    )


def _find(frame: dd.DataFrame, wanted: Hashable, what: str) -> Hashable:
    index = [] if frame.index.name is None else [frame.index.name]
    available = [*frame.columns, *index]
    for column in available:
        if column == wanted or str(column) == wanted:
            return column
    raise ValueError(
        f"{what}: the frame has no column {wanted!r}, which the fit had; its columns are "
        f"{', '.join(map(str, available))}. Where it has another name here, pass "
        "columns={argument: column}"
    )


# Effects of groups


def _effects(
    tree: xr.DataTree, recalled: Recalled, draws: int | None
) -> tuple[KnownGroups | None, Design]:
    """Take the effects of groups out of the tree, and choose the draws that they go with."""
    model = recalled.model
    d, q = model.dim, effects_per_unit(model) if model.local else 0
    wanted = draws or max(_DRAWS, 4 * (d + q))
    if not model.local or unit_level(model) == ROWS:
        return None, make_design(model, representative(recalled.draws, wanted))
    if "local" not in tree.children:
        raise ValueError(
            "the tree has no effects of groups, which predictions of their rows need: fit with "
            "local='summary' or 'draws'; print(plan) says why a model has none"
        )
    local = tree["local"]
    level = unit_level(model)
    if GIVEN_SHARED in local.children:
        known = known_groups(local.to_dataset(), level, _normals(local.children[GIVEN_SHARED]), {})
        return known, make_design(model, representative(recalled.draws, wanted))
    drawn = local.to_dataset()
    n = drawn.sizes["chain"] * drawn.sizes["draw"]
    which = np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(int))
    chain, draw = np.divmod(which, drawn.sizes["draw"])
    numbers = drawn["draw"].to_numpy()[draw]
    u = recalled.draws[chain, numbers]
    sites = {}
    for site in model.local:
        array = drawn[variable_name(site.name)]
        array = array.isel(
            chain=xr.DataArray(chain, dims="sample"), draw=xr.DataArray(draw, dims="sample")
        )
        # Groups were set in front; the model has them along an axis of its own.
        sites[site.name] = np.moveaxis(array.to_numpy(), 1, site.axis + 1)
    known = known_groups(drawn, level, sites, {s.name: s.axis + 1 for s in model.local})
    return known, make_design(model, u)


def _normals(given: xr.DataTree) -> Normals:
    covariance = given["covariance"].to_numpy().astype(np.float64)
    # What rounding took may leave a direction without variance.
    scale = np.einsum("gii->gi", covariance)
    tiny = 1e-10 * np.maximum(scale.max(axis=1), 1e-30)
    factor = np.linalg.cholesky(covariance + tiny[:, None, None] * np.eye(covariance.shape[1]))
    return Normals(given["mean"].to_numpy(), given["slope"].to_numpy(), factor.astype(np.float32))


# A partition


def _predicted(
    partition: pd.DataFrame, task: _Task, given: tuple[KnownGroups | None, Design]
) -> pd.DataFrame:
    """Predict the rows of a partition; runs on a worker."""
    known, design = given
    n, names = len(partition), task.names
    columns = [name for name in names if name != NEW]
    values, new = np.empty((n, len(columns))), np.zeros(n, bool)
    if n:
        rows = _used(partition, task)
        _check(rows, task)
        arguments = encode_values(rows, task.layout)
        _check_categories(rows, task.layout, arguments)
        arguments |= {name: np.zeros(n, dtype) for name, dtype in task.constant}
        codes, keys = groups_here(rows, task.by)
        places = None
        if known is not None and task.level is not None:
            places = known.places(keys[task.level], task.by[: task.level + 1])
            new = places[codes[task.level]] < 0
        for first in range(0, n, ROWS_AT_ONCE):
            some = slice(first, first + ROWS_AT_ONCE)
            values[some] = _ask(task, design, known, arguments, codes, places, some)
    added = pd.DataFrame(values, partition.index, columns)
    if NEW in names:
        added[NEW] = new
    return pd.concat([partition, added], axis=1)


def _ask(
    task: _Task,
    design: Design,
    known: KnownGroups | None,
    arguments: Mapping[str, np.ndarray],
    codes: Sequence[np.ndarray],
    places: np.ndarray | None,
    some: slice,
) -> np.ndarray:
    """Predict some of the rows, as ``(rows, columns)``."""
    model = task.model
    rows = {name: values[some] for name, values in arguments.items()}
    here = [np.unique(code[some], return_inverse=True) for code in codes]
    integer = np.int64 if model.x64 else np.int32
    for name, level in model.codes.items():
        rows[name] = here[level][1].astype(integer)
    seen, effects = np.zeros(0, bool), None
    if known is not None and places is not None and task.level is not None:
        there = places[here[task.level][0]]
        seen, effects = there >= 0, known.effects_at(there)
    answers = ask(model, task.asked, design, Rows(rows, seen, effects))
    return np.concatenate([answer.reshape(len(answer), -1) for answer in answers], axis=1)


def _used(partition: pd.DataFrame, task: _Task) -> pd.DataFrame:
    """Take the columns that are used, one of which may be the index."""
    wanted = [*dict.fromkeys([*task.by, *(column.column for column in task.layout.columns)])]
    columns = {
        name: partition[name] if name in partition.columns else partition.index.to_series()
        for name in wanted
    }
    return pd.DataFrame({name: values.array for name, values in columns.items()})


def _check(rows: pd.DataFrame, task: _Task) -> None:
    """Refuse what no prediction could be made of."""
    for name in rows.columns:
        null, nan = missing(rows[name])
        _refuse(null | nan, name, "have no value", "drop or fill them before predicting")
    for column in task.layout.values:
        name, dtype = column.column, np.dtype(column.dtype)
        numbers = exact_numbers(rows[name])
        if numbers is None:
            raise ValueError(
                f"column {name!r} (argument {column.argument!r}) has dtype {rows[name].dtype}, "
                f"where the fit had {dtype}: convert it with astype"
            )
        _refuse(~np.isfinite(numbers), name, "are infinite", "drop or replace them")
        wrong = unfit(numbers, dtype) | out_of_range(numbers, dtype)
        _refuse(wrong, name, f"are no {dtype}, which the fit had", "convert the column")


def _check_categories(
    rows: pd.DataFrame, layout: Layout, arguments: Mapping[str, np.ndarray]
) -> None:
    for column in layout.columns:
        if column.kind == "category":
            unknown = arguments[column.argument] < 0
            _refuse(
                unknown, column.column, "are categories that the fit had not", "map or drop them"
            )


def _refuse(wrong: np.ndarray, name: Hashable, what: str, remedy: str) -> None:
    if wrong.any():
        raise ValueError(
            f"column {name!r}: {np.count_nonzero(wrong):,} of the {len(wrong):,} values of a "
            f"partition {what} (the first in row {int(np.argmax(wrong)):,} of it); {remedy}"
        )
