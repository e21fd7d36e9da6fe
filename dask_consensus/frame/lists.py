"""How do lists of a column become columns of numbers? Fixed-size lists, Arrow's, Python's, arrays.

All lists of a column that feeds a matrix have one length; a row with another has no place in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

NONE, NO_LIST = -1, -2
"""In place of a length: nothing is there, or something that is no list of numbers."""


class Seen(NamedTuple):
    """What some lists of a column are like."""

    length: int
    kind: str  # of their numbers: "b", "i" or "f"; what else is there, where they are no numbers


def may_hold_lists(dtype: Any) -> bool:
    """Tell whether a column of a dtype may hold lists: objects may, and then rows must tell."""
    return pd.api.types.is_object_dtype(dtype) or "list" in str(dtype)


def read_lists(values: pd.Series, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a column of lists, as numbers ``(rows, width)`` and the lengths of the lists.

    Where a list has another length, or there is none, its numbers are zeros.

    Examples
    --------
    >>> numbers, lengths = read_lists(pd.Series([[1.0, 2.0], [3.0], None]), 2)
    >>> numbers.tolist(), lengths.tolist()
    ([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [2, 1, -1])
    """
    is_arrow = isinstance(values.dtype, pd.ArrowDtype)
    lengths, read = _of_arrow(values, width) if is_arrow else _of_objects(values, width)
    numbers = np.zeros((len(values), width), read.dtype if len(read) else np.float64)
    numbers[lengths == width] = read.reshape(-1, width)
    return numbers, lengths


def look_at(values: pd.Series) -> Seen | None:
    """Say what the lists of some rows are like, by the first of them; None where there are none."""
    lengths = read_lists(values, 1)[1]
    there = lengths[lengths != NONE]
    if not len(there):
        return None
    length = int(there[0])
    if length <= 0:
        return Seen(length, _example(values))
    numbers, lengths = read_lists(values, length)
    present = [pd.Series(column).dropna() for column in numbers[lengths == length].T]
    kinds = {column.infer_objects().dtype.kind for column in present if len(column)}
    if not kinds <= set("biuf"):
        return Seen(NO_LIST, _example(values))
    return Seen(length, "b" if kinds == {"b"} else "i" if kinds and "f" not in kinds else "f")


def _of_arrow(values: pd.Series, width: int) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc

    chunked = pa.chunked_array(pa.array(values.array))
    lists = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    lengths = pc.list_value_length(lists).fill_null(NONE).to_numpy(zero_copy_only=False)
    items = lists.filter(pa.array(lengths == width)).flatten()
    return lengths.astype(np.int64), items.to_numpy(zero_copy_only=False)


def _of_objects(values: pd.Series, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows = list(values)
    lengths = np.fromiter(map(_length, rows), np.int64, len(rows))
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length == width]
    if not fitting:
        return lengths, np.empty((0, width))
    try:
        numbers = np.array(fitting)
    except ValueError:  # lists within lists, of several lengths
        numbers = np.empty(0)
    if numbers.ndim != 2 or numbers.dtype.kind not in "biuf":
        # Missing values among numbers, perhaps; what is no number is told apart later.
        numbers = np.empty((len(fitting), width), object)
        for i, row in enumerate(fitting):
            numbers[i, :] = list(row)
    return lengths, numbers


def _length(value: Any) -> int:
    if isinstance(value, list | tuple):
        return len(value)
    if isinstance(value, np.ndarray):
        return len(value) if value.ndim == 1 else NO_LIST
    return NONE if pd.api.types.is_scalar(value) and pd.isna(value) else NO_LIST


def _example(values: pd.Series) -> str:
    """Name the type of what is there in place of lists of numbers."""
    value = values[values.notna()].iloc[0]
    if isinstance(value, np.ndarray) and value.ndim != 1:
        return f"arrays of {value.ndim} axes"
    if isinstance(value, list | tuple | np.ndarray):
        return f"lists of {type(value[0]).__name__}" if len(value) else "empty lists"
    return f"values of type {type(value).__name__}"
