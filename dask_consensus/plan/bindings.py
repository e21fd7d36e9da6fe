"""Which column of the frame feeds which argument of the model; decided without computing."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import pandas as pd

from ..frame.arrays import Column, Layout
from ..frame.values import number_dtype
from .function import parameters_of

_ANY_COUNT = ("n_groups", "num_groups")  # what the number of groups is called by most


class Bindings(NamedTuple):
    """What each argument of the model receives: a column, a size, or its default.

    An ``n_<argument>`` among `counts` receives the number of groups of this level of `by`, and so
    does ``n_groups`` where one level alone has codes; one among `constants` receives this number of
    categories.
    """

    layout: Layout
    counts: dict[str, int]
    constants: dict[str, int]
    defaults: tuple[str, ...]


def bind(
    frame: dd.DataFrame,
    model: Callable[..., Any],
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable] | None,
    x64: bool = False,
) -> Bindings:
    """Bind the arguments of a model to columns of a frame.

    Each parameter of the model is a key of `columns`, or ``n_<argument>`` of a coded argument, or
    a column of the frame, or has a default; in this order. TypeError if it is no such model,
    ValueError if an argument finds nothing, or a column that is no number and not coded.
    """
    parameters = parameters_of(model)
    columns = dict(columns or {})
    for name in columns:
        if name not in parameters:
            raise ValueError(
                f"columns names {name!r}, which is no argument of the model; its arguments are "
                f"{', '.join(parameters)}"
            )
    available = list(frame.columns)
    if frame.index.name is not None and frame.index.name not in available:
        available.append(frame.index.name)
    keys = _keys(by, available)
    counted = {f"n_{name}": name for name in parameters}
    fed: dict[str, Column] = {}
    for name in parameters:
        if name in columns or (name in available and name not in counted):
            source = columns.get(name, name)
            _check_exists(source, available, f"argument {name!r}")
            fed[name] = _column(frame, name, source, keys, x64)

    counts: dict[str, int] = {}
    constants: dict[str, int] = {}
    defaults = []
    for name in [name for name in parameters if name not in fed]:
        column = fed.get(counted.get(name, ""))
        if column is not None and column.kind == "group":
            counts[name] = column.level
        elif column is not None and column.kind == "category":
            constants[name] = len(column.categories)
        elif name in available:
            _check_exists(name, available, f"argument {name!r}")
            fed[name] = _column(frame, name, name, keys, x64)
        elif name in _ANY_COUNT and (groups := _groups(name, fed)) is not None:
            counts[name] = groups
        elif parameters[name].default is not inspect.Parameter.empty:
            defaults.append(name)
        else:
            raise ValueError(_no_column(name, counted, fed, available))
    layout = Layout(keys, tuple(fed[name] for name in parameters if name in fed), x64)
    return Bindings(layout, counts, constants, tuple(defaults))


def _groups(name: str, fed: dict[str, Column]) -> int | None:
    """Give the level whose groups a general name counts; None where the model sees no groups."""
    coded = {column.argument: column.level for column in fed.values() if column.kind == "group"}
    if len(set(coded.values())) > 1:
        right = " or ".join(f"'n_{argument}'" for argument in coded)
        raise ValueError(
            f"argument {name!r} of the model may count the groups of {' or of '.join(coded)}: call "
            f"it {right}"
        )
    return next(iter(coded.values()), None)


def _keys(by: Any, available: list[Hashable]) -> tuple[Any, ...]:
    if by is None:
        return ()
    # Where columns have several levels, the name of one is a tuple.
    several = isinstance(by, list) or (isinstance(by, tuple) and by not in available)
    keys = tuple(by) if several else (by,)
    if not keys:
        raise ValueError("by=[] names no key column; leave it out where rows are exchangeable")
    for key in keys:
        _check_exists(key, available, "by")
    if len(set(keys)) < len(keys):
        raise ValueError(f"by={list(keys)} names a column twice")
    return keys


def _check_exists(column: Hashable, available: list[Hashable], what: str) -> None:
    if column not in available:
        raise ValueError(
            f"{what}: the frame has no column {column!r}{similar(column, available)}; its columns "
            f"are {', '.join(map(str, available))}"
        )
    if available.count(column) > 1:
        raise ValueError(
            f"{what}: {available.count(column)} columns of the frame are named {column!r}, and it "
            "cannot be told which is meant: rename them, or keep the first of each name "
            "(ddf.loc[:, ~ddf.columns.duplicated()])"
        )


def similar(name: Hashable, available: Sequence[Hashable]) -> str:
    """Ask whether a column was meant that is called nearly so; empty if there is none."""
    by_lower = {str(column).lower(): str(column) for column in available}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def _no_column(
    name: str, counted: dict[str, str], fed: dict[str, Column], available: list[Hashable]
) -> str:
    if counted.get(name) in fed:
        argument = counted[name]
        return (
            f"argument {name!r} of the model would be the number of groups of {argument!r}, but "
            f"column {fed[argument].column!r} is neither in by= nor a categorical with known "
            "categories: it has no codes to count"
        )
    return (
        f"argument {name!r} of the model is no column of the frame{similar(name, available)} and "
        f"has no default; pass columns={{{name!r}: <column>}}, or bind it beforehand "
        f"(functools.partial). The columns are {', '.join(map(str, available))}"
    )


def _column(
    frame: dd.DataFrame, argument: str, source: Any, keys: tuple[Any, ...], x64: bool
) -> Column:
    """Say how one column feeds one argument."""
    if source in keys:
        return Column(argument, source, "group", level=keys.index(source))
    meta = frame._meta
    values = meta[source] if source in meta.columns else meta.index.to_series(name=source)
    if isinstance(values.dtype, pd.CategoricalDtype):
        if source in frame.columns and not frame[source].cat.known:
            raise ValueError(
                f"column {source!r} (argument {argument!r}) is a categorical whose categories Dask "
                "does not know, so shards could not code it alike; use "
                f"ddf[{source!r}].cat.as_known(), or name it in by="
            )
        return Column(argument, source, "category", categories=tuple(values.cat.categories))
    try:
        number_dtype(values, x64)
    except TypeError:
        raise ValueError(
            f"column {source!r} (argument {argument!r}) has dtype {values.dtype}; a model takes "
            "numbers and booleans. " + _remedy(values, source)
        ) from None
    return Column(argument, source, "value")


def _remedy(values: pd.Series, source: Hashable) -> str:
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        days = f"(ddf[{source!r}] - start).dt.total_seconds() / 86_400"
        return f"Turn the dates into numbers, days for example: {days}."
    if pd.api.types.is_timedelta64_dtype(values.dtype):
        return f"Turn the durations into numbers: ddf[{source!r}].dt.total_seconds()."
    return (
        f"Make it a categorical (ddf[{source!r}] = ddf[{source!r}].astype('category')"
        ".cat.as_known()), whose codes the model receives, or name it in by= if it is the group."
    )
