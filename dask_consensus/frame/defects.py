"""Values that the model cannot use: counted in every partition, explained once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from .arrays import Column, Layout, Read, read_columns
from .keys import FINE, LARGE, Keys, conflicts
from .lists import NONE
from .values import (
    category_codes,
    exact_numbers,
    missing,
    number_dtype,
    out_of_range,
    unfit,
)

MISSING, INFINITE, RANGE, UNKNOWN, NAN, UNFIT, LENGTH = range(7)
"""Kinds of defect, in the order of the counts."""
_WHAT = {
    MISSING: "missing values, null or NaN",
    INFINITE: "values that are infinite, or too large for a float of {bits} bits",
    RANGE: "integers too large for {bits} bits",
    UNKNOWN: "values that are not among the known categories",
    NAN: "NaN that is not null, which `dropna` leaves there",
    UNFIT: "values of {found} that lose something in it",
    LENGTH: "values that are no lists of {width} numbers",
}
_REMEDY = {
    MISSING: "drop those rows (`ddf.dropna(subset=[{name!r}])`) or fill the values in",
    INFINITE: "drop those rows, or clip or rescale the column",
    RANGE: "convert the column to float, rescale it, or enable 64-bit numbers in JAX",
    UNKNOWN: "drop those rows, or collect the categories of all partitions "
    "(`ddf.assign(**{{{name!r}: ddf[{name!r}].cat.as_unknown()}})`)",
    NAN: "drop those rows (`ddf[ddf[{name!r}] == ddf[{name!r}]]`) or fill the values in",
    UNFIT: "read the column as one dtype in every file, or convert it "
    "(`ddf.astype({{{name!r}: 'float64'}})`)",
    LENGTH: "drop those rows, or make all lists of the column as long",
}
_REMEDY_IN_LISTS = {
    MISSING: "drop those rows, or fill the values in where the lists are made",
    NAN: "drop those rows, or fill the values in where the lists are made",
    UNFIT: "make lists of numbers of one kind, floats for example",
}
_REMEDY_OF_SOME = (
    "rows are left out where all responses are missing, and others have a value here: fill the "
    "holes with any value, and have the model pass them by (numpyro.handlers.mask)"
)
_MOST_COLUMNS = 5  # of one argument with one kind of defect, that are named


class Found(NamedTuple):
    """Something seen in a column: its name, the dtype and the number of the first partition."""

    what: str
    dtype: str
    partition: int = 0


def count_defects(partition: pd.DataFrame, layout: Layout) -> np.ndarray:
    """Count the values that the model cannot use, int64 of shape (columns, kinds).

    Keys come first, then the columns that feed values and categories.
    """
    every = _all_defects(partition, layout)
    counts = np.zeros((len(every), len(_WHAT)), np.int64)
    for row, masks in zip(counts, every, strict=True):
        for kind, mask in masks.items():
            row[kind] = np.count_nonzero(mask)
    return counts


def usable(partition: pd.DataFrame, layout: Layout) -> np.ndarray:
    """Return which rows have no value that the model cannot use."""
    free = np.ones(len(partition), bool)
    for masks in _all_defects(partition, layout):
        for mask in masks.values():
            free &= ~mask
    return free


def _all_defects(partition: pd.DataFrame, layout: Layout) -> list[dict[int, np.ndarray]]:
    """Return the defects of each key, then of each other column."""
    keys = [_defects(partition[name], None, layout.x64) for name in layout.by]
    return keys + [_of_read(read, layout.x64) for read in read_columns(partition, layout)]


def _of_read(read: Read, x64: bool) -> dict[int, np.ndarray]:
    masks = _defects(read.values, read.column, x64)
    if read.lengths is not None:
        masks[MISSING] = masks[MISSING] | (read.lengths == NONE)
        masks[LENGTH] = (read.lengths != NONE) & (read.lengths != read.width)
    return masks


def explain_defects(
    counts: np.ndarray,
    first: np.ndarray,
    layout: Layout,
    dtypes: Sequence[Sequence[Found]] = (),
) -> list[str]:
    """Say of each column with defects how many there are, where, and what to do.

    One line for each kind of defect of each column, from the sum of all :func:`count_defects` and
    the first partition with such a value, of the same shape; `dtypes` are those found.
    """
    bits = 64 if layout.x64 else 32
    complaints: dict[tuple[str, int], list[str]] = {}
    for i, (who, name, column) in enumerate(_checked(layout)):
        in_lists = column is not None and column.item >= 0
        remedies = _REMEDY | (_REMEDY_IN_LISTS if in_lists else {})
        if column is not None and column.argument in layout.responses:
            remedies |= dict.fromkeys((MISSING, NAN), _REMEDY_OF_SOME)
        for kind in np.flatnonzero(counts[i]).tolist():
            found = _first_found(dtypes[i] if dtypes else (), int(first[i, kind]))
            words = {"bits": bits, "name": name, "found": found, "width": _width(layout, column)}
            argument = who if column is None else column.argument
            complaints.setdefault((argument, kind), []).append(
                f"{who}: {_WHAT[kind].format(**words)} ({counts[i, kind]:,}, the first in "
                f"partition {first[i, kind]}); {remedies[kind].format(**words)}"
            )
    return [line for (argument, _), lines in complaints.items() for line in few(lines, argument)]


def few(lines: list[str], argument: str) -> list[str]:
    """Leave out most of what would be said of many columns of one argument's matrix."""
    if len(lines) <= _MOST_COLUMNS:
        return lines
    more = len(lines) - _MOST_COLUMNS
    return [*lines[:_MOST_COLUMNS], f"argument {argument!r}: likewise in {more:,} more columns"]


def _width(layout: Layout, column: Column | None) -> int:
    """Return how many columns the matrix has that one is of."""
    return sum(column is not None and column.argument == c.argument for c in layout.columns)


def explain_keys(found: Sequence[Found], name: Hashable) -> list[str]:
    """Say which kinds of a key cannot be told apart, or brought to one form; and what to do."""
    by_kind = {one.what: one for one in reversed(found)}
    return [
        f"key {name!r}: {' and '.join(_seen(by_kind[kind]) for kind in kinds)}: "
        + _key_remedy(kinds, name)
        for kinds in conflicts(list(by_kind))
    ]


def key_kinds(keys: Keys, values: pd.Series) -> tuple[Found, ...]:
    """Return what the keys of a partition are."""
    return tuple(Found(kind, str(values.dtype)) for kind in keys.kinds)


def value_dtype(values: pd.Series, column: Column) -> tuple[Found, ...]:
    """Return of which dtype the values of a partition are, beside that of the frame."""
    dtype = str(values.dtype)
    return (
        () if values.empty else (Found(f"dtype {dtype} where {column.dtype} is expected", dtype),)
    )


def _seen(found: Found) -> str:
    return f"{found.what} ({found.dtype}, first in partition {found.partition})"


def _key_remedy(kinds: tuple[str, ...], name: Hashable) -> str:
    """Say how to make groups of keys that are refused."""
    if len(kinds) == 1:
        return f"such values cannot name groups; write them as text, ddf[{name!r}].astype(str)"
    if LARGE in kinds:
        return (
            "as floats they may be rounded, and two groups be one; read the column as one dtype "
            "of integers in every file ('Int64' where some are missing), or as text"
        )
    if FINE in kinds:
        return f"no unit holds both; round them (ddf[{name!r}].dt.round('us'))"
    return (
        "mixed kinds of key, so that one group may be two; read the column as one dtype in every "
        "file, or convert it in every partition"
    )


def _first_found(found: Sequence[Found], partition: int) -> str:
    """Return what was found in a partition, or last before it."""
    before = [one for one in found if one.partition <= partition]
    return before[-1].what if before else "another dtype"


def _checked(layout: Layout) -> list[tuple[str, Hashable, Column | None]]:
    """Return what to call each key and each other used column, its name and its role."""
    return [(f"key {name!r}", name, None) for name in layout.by] + [
        (f"argument {column.argument!r} (column {column.label!r})", column.column, column)
        for column in layout.direct
    ]


def _defects(values: pd.Series, column: Column | None, x64: bool) -> dict[int, np.ndarray]:
    """Return which values have which defect; `column` is None for a key."""
    null, nan = missing(values)
    absent = null | nan
    masks = {MISSING: null, NAN: nan}
    if not absent.any():
        return masks | _defects_of_present(values, column, x64)
    for kind, mask in _defects_of_present(values[~absent], column, x64).items():
        masks[kind] = np.zeros(len(values), bool)
        masks[kind][~absent] = mask
    return masks


def _defects_of_present(
    values: pd.Series, column: Column | None, x64: bool
) -> dict[int, np.ndarray]:
    """Return which values, none of them missing, have which defect."""
    if column is not None and column.kind == "category":
        return {UNKNOWN: category_codes(values, column.categories) < 0}
    if column is None:
        return {INFINITE: _infinite(values)}
    numbers = exact_numbers(values)
    if numbers is None:
        return {UNFIT: np.ones(len(values), bool)}
    dtype = np.dtype(column.dtype) if column.dtype else number_dtype(values, x64)
    bad = unfit(numbers, dtype)
    kind = INFINITE if dtype.kind == "f" else RANGE
    masks = {UNFIT: bad, kind: ~bad & out_of_range(numbers, dtype)}
    if dtype.kind == "i" and numbers.dtype.kind == "f":
        masks[INFINITE] = np.isinf(numbers)
        masks[RANGE] = masks[RANGE] & ~masks[INFINITE]
    return masks


def _infinite(keys: pd.Series) -> np.ndarray:
    """Return which keys are infinite; that is no group's name."""
    types = pd.api.types
    if isinstance(keys.dtype, pd.CategoricalDtype):
        return _infinite(pd.Series(keys.cat.categories))[keys.cat.codes]
    if keys.dtype == object:
        return np.array([isinstance(key, float | np.floating) and np.isinf(key) for key in keys],
                        bool)  # fmt: skip
    if types.is_float_dtype(keys.dtype):
        return np.isinf(keys.to_numpy(dtype=np.float64))
    return np.zeros(len(keys), bool)
