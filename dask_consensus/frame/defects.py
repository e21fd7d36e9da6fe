"""Values that the model cannot use: counted in every partition, explained once."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd

from .arrays import Column, Layout, category_codes, integer_dtype, number_dtype

MISSING, INFINITE, RANGE, UNKNOWN = range(4)
"""Kinds of defect, in the order of the counts."""
_WHAT = {
    MISSING: "missing values, null or NaN",
    INFINITE: "values that are infinite, or too large for a float of {bits} bits",
    RANGE: "integers too large for {bits} bits",
    UNKNOWN: "values that are not among the known categories",
}
_REMEDY = {
    MISSING: "drop those rows (`ddf.dropna(subset=[{name!r}])`) or fill the values in",
    INFINITE: "drop those rows, or clip or rescale the column",
    RANGE: "convert the column to float, rescale it, or enable 64-bit numbers in JAX",
    UNKNOWN: "drop those rows, or declare every category (`ddf.categorize([{name!r}])`)",
}


def count_defects(partition: pd.DataFrame, layout: Layout) -> np.ndarray:
    """Count the values that the model cannot use, int64 of shape (columns, kinds).

    Keys come first, then the columns that feed values and categories.
    """
    checked = _checked(layout)
    counts = np.zeros((len(checked), len(_WHAT)), np.int64)
    for row, (_, name, column) in zip(counts, checked, strict=True):
        values = partition[name]
        present = values.dropna()
        row[MISSING] = len(values) - len(present)
        if column is None:
            row[INFINITE] = _count_infinite(present, np.dtype(np.float64))
        elif column.kind == "category":
            row[UNKNOWN] = np.count_nonzero(category_codes(present, column.categories) < 0)
        else:
            row[INFINITE] = _count_infinite(present, number_dtype(values, layout.x64))
            row[RANGE] = _count_out_of_range(present, integer_dtype(layout.x64))
    return counts


def explain_defects(counts: np.ndarray, first: np.ndarray, layout: Layout) -> list[str]:
    """Say of each column with defects how many there are, where, and what to do.

    One line for each kind of defect of each column, from the sum of all :func:`count_defects` and
    the first partition with such a value, of the same shape.
    """
    bits = 64 if layout.x64 else 32
    return [
        f"{who}: {_WHAT[kind].format(bits=bits)} ({counts[i, kind]:,}, the first in partition "
        f"{first[i, kind]}); {_REMEDY[kind].format(name=name)}"
        for i, (who, name, _) in enumerate(_checked(layout))
        for kind in np.flatnonzero(counts[i]).tolist()
    ]


def _checked(layout: Layout) -> list[tuple[str, Hashable, Column | None]]:
    """Return what to call each key and each other used column, its name and its role."""
    return [(f"key {name!r}", name, None) for name in layout.by] + [
        (f"argument {column.argument!r} (column {column.column!r})", column.column, column)
        for column in layout.direct
    ]


def _count_infinite(values: pd.Series, dtype: np.dtype) -> int:
    """Count floats that are infinite once cast to `dtype`; an infinite key is no group's name."""
    if not _is_fractional(values):
        return 0
    with np.errstate(over="ignore"):
        return int(np.isinf(values.to_numpy(dtype=dtype)).sum())


def _count_out_of_range(values: pd.Series, dtype: np.dtype) -> int:
    """Count integers that `dtype` cannot hold."""
    types = pd.api.types
    if not types.is_integer_dtype(values.dtype):
        return 0
    unsigned = types.is_unsigned_integer_dtype(values.dtype)
    numbers = values.to_numpy(dtype=np.uint64 if unsigned else np.int64)
    limits = np.iinfo(dtype)
    return int(((numbers < limits.min) | (numbers > limits.max)).sum())


def _is_fractional(values: pd.Series) -> bool:
    """Tell whether a column holds floats or decimals."""
    types = pd.api.types
    if isinstance(values.dtype, pd.CategoricalDtype):
        return False
    return types.is_numeric_dtype(values.dtype) and not (
        types.is_integer_dtype(values.dtype)
        or types.is_bool_dtype(values.dtype)
        or types.is_complex_dtype(values.dtype)
    )
