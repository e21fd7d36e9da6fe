"""What do the data say: which levels, which moments, how many groups? One pass over the frame.

All that a formula learns from data it learns here, from all of them: levels of categories, means
and sds, the points that splines are laid through. A partition is then transformed by what is known,
whichever levels it has itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ..cluster.tasks import call, compute, tree
from ..frame.keys import mix
from ..frame.survey import SKETCH, hash_key
from ..frame.values import as_categorical, is_dictionary, missing
from . import numbers
from .numbers import Moments, Numbers, moments_of, numbers_of
from .terms import (
    FormulaError,
    Terms,
    environment,
    is_categoric,
    learns,
    levels_source,
    names_in,
    read,
    stateful_calls,
)

if TYPE_CHECKING:
    import dask.dataframe as dd

MOST_LEVELS = 2048
"""Levels of a category beyond which it is a group, and crossed effects beyond which none are."""
_MOST_VALUES = 101  # of a response that are told apart

Cell = tuple[Any, ...]
"""A level of each categorical component of a term."""


class Levels(NamedTuple):
    """Levels of a categorical component, with a row that has each, and orders that are given."""

    rows: dict[Any, tuple[Any, ...]]  # level -> values of the component's columns in some row
    orders: tuple[tuple[Any, ...], ...]


class Table(NamedTuple):
    """The cells of a term's levels, and the moments of the product of its numbers in each."""

    levels: tuple[str, ...]  # components that have some
    numbers: tuple[str, ...]
    cells: dict[Cell, Moments]


class Factor(NamedTuple):
    """Groups of a factor: all of them, None where they are too many, and a sketch to count them."""

    groups: frozenset[Cell] | None
    sketch: np.ndarray

    @property
    def size(self) -> int:
        """How many there are; about, where they are too many to be told."""
        if self.groups is not None:
            return len(self.groups)
        if len(self.sketch) < SKETCH:
            return len(self.sketch)
        return round((SKETCH - 1) * 2.0**64 / float(self.sketch[-1]))


class Seen(NamedTuple):
    """What some partitions hold, as a formula asks it.

    Attributes
    ----------
    rows : int
        That have a response, and lack nothing else.
    base : dict
        The values of some row.
    response : Numbers or None
    values : frozenset
        Of the response, up to a hundred; as they are, text or numbers.
    order : tuple
        In which a categorical response has them.
    learned : dict of Numbers
        Of what each transform that learns is taken of.
    levels : dict of Levels
    tables : dict of Table
        Of each term that learns nothing.
    factors : dict of Factor
    lacking : dict of int
        Column -> rows with a response that have no value in it.
    """

    rows: int
    base: dict[str, Any]
    response: Numbers | None
    values: frozenset[Any]
    order: tuple[Any, ...]
    learned: dict[str, Numbers]
    levels: dict[str, Levels]
    tables: dict[str, Table]
    factors: dict[Cell, Factor]
    lacking: dict[str, int]


def look(frame: dd.DataFrame, terms: Terms, split_every: int = 8) -> Seen:
    """Pass over the columns that a formula names.

    Raises
    ------
    FormulaError
        If there is no row with all of them, rows with a response lack some, or a category has too
        many levels.
    """
    frame = with_index(frame, terms)
    _check_dtypes(frame._meta, terms)
    partitions = frame.to_delayed(optimize_graph=True)
    looks = [call(_look, part, terms.text, frame._meta) for part in partitions]
    (seen,) = compute([tree(looks, lambda parts: call(merge, parts), split_every)])
    if not seen.rows:
        raise FormulaError(
            f"formula {terms.text!r}: no row of the frame has a value in all of "
            f"{', '.join(frame.columns)}"
        )
    found: Seen = seen
    if found.lacking:
        raise FormulaError(f"formula {terms.text!r}: {lacking_told(found.lacking)}")
    return found


def lacking_told(lacking: Mapping[str, int]) -> str:
    """Say which columns have no value in how many rows, and what to do."""
    told = ", ".join(f"{name!r} in {count:,} of them" for name, count in lacking.items())
    return (
        f"rows have no value, null or NaN, in columns that it needs: {told}. Drop these rows "
        f"(ddf = ddf.dropna(subset={list(lacking)})) or fill the values in"
    )


def lacking_in(partition: pd.DataFrame, terms: Terms) -> dict[str, int]:
    """Count the rows with a response that have no value in each other column of a formula."""
    absent = {str(name): np.logical_or(*missing(values)) for name, values in partition.items()}
    answered = np.ones(len(partition), bool)
    for name in terms.response_columns:
        if name in absent:
            answered &= ~absent[name]
    counts = {
        name: int(np.count_nonzero(rows & answered))
        for name, rows in absent.items()
        if name not in terms.response_columns
    }
    return {name: count for name, count in counts.items() if count}


def _check_dtypes(meta: pd.DataFrame, terms: Terms) -> None:
    """Refuse times, which are neither numbers nor levels."""
    named = {name for term in terms.designs() for c in term.components for name in names_in(c)}
    for name in named & set(meta.columns):
        if meta[name].dtype.kind in "mM":
            raise FormulaError(
                f"formula {terms.text!r}: column {name!r} has dtype {meta[name].dtype}: turn it "
                f"into numbers, days for example: (ddf[{name!r}] - start).dt.total_seconds() "
                "/ 86_400"
            )


def with_index(frame: dd.DataFrame, terms: Terms) -> dd.DataFrame:
    """Take the columns that a formula names, the index among them if it is one."""
    names = list(dict.fromkeys([*terms.columns, *terms.response_columns]))
    if frame.index.name in names and frame.index.name not in frame.columns:
        frame = frame.reset_index()
    return frame[names]


def plain_columns(partition: pd.DataFrame) -> pd.DataFrame:
    """Give numbers NumPy's dtypes, and categories pandas' own, whatever a file has them in."""
    columns = {}
    for name, values in partition.items():
        if is_dictionary(values.dtype):
            values = as_categorical(values)
        elif pd.api.types.is_extension_array_dtype(values.dtype) and (
            pd.api.types.is_numeric_dtype(values.dtype)
        ):
            if values.isna().any():
                numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
            else:
                numbers = values.to_numpy(dtype=_numpy_dtype(values.dtype))
            values = pd.Series(numbers, values.index, name=name)
        columns[name] = values
    return pd.DataFrame(columns, partition.index)


def _numpy_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of NumPy that holds what one of Arrow, or a nullable one, does."""
    made = np.dtype(getattr(dtype, "numpy_dtype", np.float64))
    return np.dtype(np.float64) if made.kind == "O" else made  # decimals


def numbers_in(expression: Any, partition: pd.DataFrame, env: Any) -> np.ndarray:
    """Evaluate an expression, or a component, of numbers in plain columns.

    Raises
    ------
    FormulaError
        If it makes no numbers.
    """
    lazy = getattr(expression, "call", expression)
    try:
        if hasattr(lazy, "eval"):
            with np.errstate(all="ignore"):
                values = lazy.eval(partition, env)
        else:
            values = partition[lazy.name]
        made = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormulaError(
            f"{lazy if hasattr(lazy, 'eval') else lazy.name} makes no numbers of what the columns "
            f"hold ({error})"
        ) from error
    return np.full(len(partition), made) if made.ndim == 0 else made


def values_in(expression: Any, partition: pd.DataFrame, env: Any) -> pd.Series:
    """Evaluate an expression of any values in plain columns."""
    values = expression.eval(partition, env)
    if not isinstance(values, pd.Series):
        values = pd.Series(np.broadcast_to(np.asarray(values), len(partition)), partition.index)
    return values


# A partition


def _look(partition: pd.DataFrame, text: str, meta: pd.DataFrame) -> Seen:
    """Look at a partition; runs on a worker."""
    with np.errstate(invalid="ignore"):  # what is infinite is refused where it is used
        return _seen(plain_columns(partition), read(text), meta)


def _seen(partition: pd.DataFrame, terms: Terms, meta: pd.DataFrame) -> Seen:
    env = environment()
    lacking = [np.logical_or(*missing(values)) for _, values in partition.items()]
    rows = partition[~np.logical_or.reduce(lacking)].reset_index(drop=True)
    codes: dict[str, tuple[np.ndarray, list[Any]]] = {}
    levels: dict[str, Levels] = {}
    for term in terms.designs():
        for component in term.components:
            if is_categoric(component, meta) and component.name not in codes:
                codes[component.name], levels[component.name] = _levels(component, rows, meta, env)
    learned = {
        name: numbers_of(numbers_in(calls[0].args[0], rows, env))
        for name, calls in stateful_calls(terms).items()
    }
    tables = {
        term.name: _table(term, rows, codes, env) for term in terms.designs() if not _learns(term)
    }
    factors = {}
    if len(terms.factors) > 1:
        factors = {factor: _factor(rows, factor) for factor in terms.factors}
    response, values, order = _response(terms, rows, env)
    base = {name: _plain(rows[name].iloc[0]) for name in rows} if len(rows) else {}
    told = response, values, order, learned, levels, tables, factors
    return Seen(len(rows), base, *told, lacking_in(partition, terms))


def _learns(term: Any) -> bool:
    return any(learns(component) for component in term.components)


def _levels(
    component: Any, rows: pd.DataFrame, meta: pd.DataFrame, env: Any
) -> tuple[tuple[np.ndarray, list[Any]], Levels]:
    """Give a number to each of the levels of a component, and keep a row of each."""
    source = levels_source(component)
    values = values_in(source, rows, env)
    order: tuple[Any, ...] = ()
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered:
        order = tuple(map(_plain, values.cat.categories))
    whole = _whole(source, meta)
    codes, distinct = pd.factorize(values)
    if len(distinct) > MOST_LEVELS:
        raise FormulaError(_too_many(component.name, len(distinct)))
    found = [_plain(value, whole=whole) for value in distinct]
    _, first = np.unique(codes, return_index=True)
    columns = _columns_of(source)
    witnesses = {
        level: tuple(_plain(rows[name].iloc[i]) for name in columns)
        for level, i in zip(found, first, strict=True)
    }
    return (codes, found), Levels(witnesses, (order,) if order else ())


def _columns_of(source: Any) -> list[str]:
    return list(dict.fromkeys(names_in(source)))


def _whole(source: Any, meta: pd.DataFrame) -> bool:
    """Tell whether levels are whole numbers, though a partition may hold them as floats."""
    name = getattr(source, "name", None)
    return name in meta and pd.api.types.is_integer_dtype(meta[name].dtype)


def _too_many(name: str, count: int) -> str:
    return (
        f"{name} has {count:,} levels or more, each of which would have its own coefficient for "
        f"all rows; more than {MOST_LEVELS:,} are a group: write (1 | {name}) instead"
    )


def _plain(value: Any, *, whole: bool = False) -> Any:
    """Turn a value into what JSON holds."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and whole and value.is_integer():
        return int(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def _table(
    term: Any, rows: pd.DataFrame, codes: Mapping[str, tuple[np.ndarray, list[Any]]], env: Any
) -> Table:
    """Take the moments of the product of a term's numbers, in each cell of its levels."""
    product = np.ones(len(rows))
    combined, sizes, names = np.zeros(len(rows), np.int64), [1], []
    for component in term.components:
        if component.name in codes:
            of_rows, found = codes[component.name]
            combined = combined * max(len(found), 1) + of_rows
            sizes.append(max(len(found), 1))
            names.append(found)
        else:
            product = product * numbers_in(component, rows, env)
    cells, place = np.unique(combined, return_inverse=True)
    n = np.bincount(place, minlength=len(cells)).astype(float)
    mean = np.bincount(place, product, len(cells)) / n
    squares = np.bincount(place, (product - mean[place]) ** 2, len(cells))
    where = np.unravel_index(cells, sizes)[1:]
    of_cells = {
        tuple(levels[at[i]] for levels, at in zip(names, where, strict=True)): Moments(
            float(n[i]), float(mean[i]), float(squares[i])
        )
        for i in range(len(cells))
    }
    levels_of = tuple(c.name for c in term.components if c.name in codes)
    others = tuple(c.name for c in term.components if c.name not in codes)
    return Table(levels_of, others, of_cells)


def _factor(rows: pd.DataFrame, factor: Sequence[str]) -> Factor:
    hashes = np.zeros(len(rows), np.uint64)
    for name in factor:
        hashes = mix(hashes * np.uint64(31) + hash_key(rows[name]))
    distinct, first = np.unique(hashes, return_index=True)
    groups = None
    if len(distinct) <= MOST_LEVELS:
        kept = rows[list(factor)].iloc[first]
        groups = frozenset(
            tuple(map(_plain, values)) for values in kept.itertuples(index=False, name=None)
        )
    return Factor(groups, distinct[:SKETCH])


def _response(
    terms: Terms, rows: pd.DataFrame, env: Any
) -> tuple[Numbers | None, frozenset[Any], tuple[Any, ...]]:
    response = terms.response
    values = values_in(response.value, rows, env)
    distinct = values.unique()[:_MOST_VALUES]
    told = frozenset(_plain(value) for value in distinct)
    order: tuple[Any, ...] = ()
    if isinstance(values.dtype, pd.CategoricalDtype):
        order = tuple(map(_plain, values.cat.categories))
    elif pd.api.types.is_numeric_dtype(values.dtype):
        return numbers_of(numbers_in(response.value, rows, env)), told, order
    return None, told, order


# All partitions


def merge(parts: Sequence[Seen]) -> Seen:
    """Say of several partitions what they hold together; runs on a worker."""
    lacking: dict[str, int] = {}
    for part in parts:
        for name, count in part.lacking.items():
            lacking[name] = lacking.get(name, 0) + count
    parts = [part for part in parts if part.rows] or list(parts[:1])
    first = parts[0]
    response = None
    if all(part.response is not None for part in parts):
        response = numbers.add_numbers([p.response for p in parts if p.response is not None])
    values = sorted({v for part in parts for v in part.values}, key=lambda v: (str(type(v)), v))
    return Seen(
        sum(part.rows for part in parts),
        first.base,
        response,
        frozenset(values[:_MOST_VALUES]),
        max((part.order for part in parts), key=len),
        {n: numbers.add_numbers([p.learned[n] for p in parts]) for n in first.learned},
        {n: _levels_together(n, [part.levels[n] for part in parts]) for n in first.levels},
        {n: _tables_together([part.tables[n] for part in parts]) for n in first.tables},
        {n: _factors_together([part.factors[n] for part in parts]) for n in first.factors},
        lacking,
    )


def _levels_together(name: str, parts: Sequence[Levels]) -> Levels:
    rows: dict[Any, tuple[Any, ...]] = {}
    for part in parts:
        rows = part.rows | rows
    if len(rows) > MOST_LEVELS:
        raise FormulaError(_too_many(name, len(rows)))
    orders = tuple(dict.fromkeys(order for part in parts for order in part.orders))
    return Levels(rows, orders[:64])


def _tables_together(parts: Sequence[Table]) -> Table:
    cells: dict[Cell, list[Moments]] = {}
    for part in parts:
        for cell, moments in part.cells.items():
            cells.setdefault(cell, []).append(moments)
    added = {cell: numbers.add(moments) for cell, moments in cells.items()}
    return parts[0]._replace(cells=added)


def _factors_together(parts: Sequence[Factor]) -> Factor:
    sketch = np.unique(np.concatenate([part.sketch for part in parts]))[:SKETCH]
    groups: frozenset[Cell] | None = frozenset()
    for part in parts:
        groups = None if groups is None or part.groups is None else groups | part.groups
        if groups is not None and len(groups) > MOST_LEVELS:
            groups = None
    return Factor(groups, sketch)


def columns_measured(frame: dd.DataFrame, measure: Any, split_every: int = 8) -> dict[str, Moments]:
    """Take the moments of columns that `measure` makes of a partition, in a pass of its own."""
    looks = [call(_measured, part, measure) for part in frame.to_delayed(optimize_graph=True)]
    (found,) = compute([tree(looks, lambda parts: call(_added, parts), split_every)])
    moments: dict[str, Moments] = found
    return moments


def _measured(partition: pd.DataFrame, measure: Any) -> dict[str, Moments]:
    return {name: moments_of(columns) for name, columns in measure(partition).items()}


def _added(parts: Sequence[dict[str, Moments]]) -> dict[str, Moments]:
    return {name: numbers.add([part[name] for part in parts]) for name in parts[0]}
