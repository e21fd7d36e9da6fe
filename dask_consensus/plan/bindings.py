"""Which column of the frame feeds which argument of the model; decided without computing."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd

from ..frame.arrays import Column, Layout
from ..frame.completed import completed, text_remedy
from ..frame.lists import may_hold_lists
from ..frame.values import is_dictionary, number_dtype
from .function import parameters_of

_COLUMNS = (dd.Series, dd.Index, dd.DataFrame, pd.Series, pd.Index, pd.DataFrame, np.ndarray)
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

    def completed(self, frame: dd.DataFrame, split_every: int) -> Bindings:
        """Find out what only the rows tell: categories, and how long lists are."""
        layout = completed(frame, self.layout, split_every)
        sizes = {f"n_{column.argument}": len(column.categories) for column in layout.columns}
        return self._replace(
            layout=layout, constants={name: sizes[name] for name in self.constants}
        )


def bind(
    frame: dd.DataFrame,
    model: Callable[..., Any],
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable] | None,
    x64: bool = False,
) -> Bindings:
    """Bind the arguments of a model to columns of a frame.

    Each parameter of the model is a key of `columns`, or ``n_<argument>`` of a coded argument, or
    a column of the frame, or has a default; in this order. Several columns, in a list or by a
    pattern, make a matrix. TypeError if it is no such model, ValueError if an argument finds
    nothing, or a column that is no number and not coded.
    """
    columns = dict(columns or {})
    parameters = parameters_of(model, columns)
    for name in columns:
        if name not in parameters:
            raise ValueError(
                f"columns names {name!r}, which is no argument of the model"
                f"{_turned(name, columns[name], parameters)}; its arguments are "
                f"{', '.join(parameters)}"
            )
    available = list(frame.columns)
    if frame.index.name is not None and frame.index.name not in available:
        available.append(frame.index.name)
    keys = _keys(by, available)
    counted = {f"n_{name}": name for name in parameters}
    fed: dict[str, Column] = {}
    matrices: dict[str, list[Column]] = {}
    wrong: list[str] = []  # all that can be said of columns is said at once
    for name in parameters:
        several = _several(name, columns[name], available) if name in columns else None
        if several is not None:
            matrices[name] = _matrix(frame, name, several, keys, x64)
        elif name in columns or (name in available and name not in counted):
            source = columns.get(name, name)
            _check_exists(source, available, f"argument {name!r}")
            try:
                fed[name] = _column(frame, name, source, keys, x64)
            except ValueError as error:
                wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))

    counts: dict[str, int] = {}
    constants: dict[str, int] = {}
    defaults = []
    for name in [name for name in parameters if name not in fed and name not in matrices]:
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
            raise ValueError(_no_column(name, counted, fed, matrices, available))
    _check_apart(matrices, fed)
    matrices |= {name: [column] for name, column in fed.items()}
    every = (column for name in parameters for column in matrices.get(name, ()))
    return Bindings(Layout(keys, tuple(every), x64), counts, constants, tuple(defaults))


def columns_named(given: Any, available: Sequence[Hashable]) -> list[Hashable] | None:
    """Return the columns that a list or a pattern names, in order; None if it names one column.

    A column of this very name wins over a pattern; what matches no column is returned as it is.
    """
    if isinstance(given, list) or (isinstance(given, tuple) and given not in available):
        found: list[Hashable] = []
        for one in given:
            found += columns_named(one, available) or [one]
        return found
    if isinstance(given, str) and given not in available and set(given) & {"*", "?"}:
        return [c for c in available if fnmatch.fnmatchcase(str(c), given)] or [given]
    return None


def _several(name: str, given: Any, available: list[Hashable]) -> list[Hashable] | None:
    """Return the columns of the matrix that an argument receives; None if it receives a column.

    Raises
    ------
    ValueError
        If there is none, one is not in the frame, or there twice.
    """
    several = columns_named(given, available)
    if several is None:
        return None
    if not several:
        raise ValueError(f"columns={{{name!r}: {given!r}}} names no column")
    for column in several:
        if isinstance(column, str) and column not in available and set(column) & {"*", "?"}:
            raise ValueError(
                f"argument {name!r}: no column of the frame matches {column!r}; its columns are "
                f"{', '.join(map(str, available))}"
            )
        _check_exists(column, available, f"argument {name!r}")
    twice = [column for column, n in Counter(several).items() if n > 1]
    if twice:
        raise ValueError(f"argument {name!r}: column {twice[0]!r} is named twice in {given!r}")
    return several


def _matrix(
    frame: dd.DataFrame, name: str, sources: list[Hashable], keys: tuple[Any, ...], x64: bool
) -> list[Column]:
    """Say how several columns feed one argument."""
    columns = []
    for entry, source in enumerate(sources):
        column = _column(frame, name, source, keys, x64)
        if column.kind != "value":
            what = {
                "group": "is a key in by=, whose codes are local to a shard",
                "category": "is a categorical",
                "list": "holds objects: text, or lists, or arrays",
            }[column.kind]
            raise ValueError(
                f"column {source!r} {what}, and argument {name!r} receives a matrix of numbers: "
                "leave it out, and give it an argument of its own"
            )
        columns.append(column._replace(entry=entry))
    return columns


def _check_apart(matrices: Mapping[str, Sequence[Column]], fed: Mapping[str, Column]) -> None:
    """Refuse a column of a matrix that feeds another argument: the outcome, by a wide pattern."""
    of: dict[Hashable, str] = {column.column: name for name, column in fed.items()}
    for name, columns in matrices.items():
        for place, column in enumerate(columns):
            other = of.setdefault(column.column, name)
            if other != name:
                raise ValueError(
                    f"column {column.column!r} feeds both argument {other!r} and the matrix "
                    f"{name!r}: leave it out of one of them. In the model it is "
                    f"{name}[:, {place}], too"
                )


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


def _turned(name: Hashable, given: Any, parameters: Mapping[str, Any]) -> str:
    """Say which way round columns= is, or which argument was meant; empty if nobody knows."""
    if isinstance(given, str) and given in parameters:
        return f" (it says which column feeds an argument: columns={{{given!r}: {name!r}}})"
    return similar(name, list(parameters))


def _check_exists(column: Hashable, available: list[Hashable], what: str) -> None:
    if isinstance(column, _COLUMNS):
        named = getattr(column, "name", None)
        instead = "" if named is None else f": {named!r}"
        raise TypeError(
            f"{what}: expected the name of a column, got a {type(column).__name__}; pass its name"
            f"{instead}"
        )
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
    name: str,
    counted: dict[str, str],
    fed: dict[str, Column],
    matrices: Mapping[str, Sequence[Column]],
    available: list[Hashable],
) -> str:
    if counted.get(name) in matrices:
        argument = counted[name]
        return (
            f"argument {name!r} of the model would be the number of groups of {argument!r}, which "
            f"is a matrix: it has {argument}.shape[1] columns"
        )
    if counted.get(name) in fed:
        argument = counted[name]
        return (
            f"argument {name!r} of the model would be the number of groups of {argument!r}, but "
            f"column {fed[argument].column!r} is neither in by= nor a categorical: it has no codes "
            f"to count. If its values are the groups, pass by={fed[argument].column!r}"
        )
    counts = [f"n_{argument}" for argument, one in fed.items() if one.kind != "value"]
    meant = similar(name, available)
    if counts and name.lower().startswith(("n_", "num")):
        meant = f" (a number of groups, or of categories, is called {' or '.join(counts)})"
    return (
        f"argument {name!r} of the model is no column of the frame{meant} and "
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
        known = source not in frame.columns or frame[source].cat.known
        categories = tuple(values.cat.categories) if known else ()
        return Column(argument, source, "category", categories=categories)
    if is_dictionary(values.dtype):
        return Column(argument, source, "category")
    if may_hold_lists(values.dtype):
        return Column(argument, source, "list")
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
    remedy = text_remedy(source)
    if pd.api.types.is_string_dtype(values.dtype):
        remedy += (
            " Where it held lists or arrays, Dask made text of them: make the frame under "
            "dask.config.set({'dataframe.convert-string': False})."
        )
    return remedy
