"""A partition becomes padded NumPy arrays and group codes.

The result is a function of the rows alone, never of the order in which a scheduler delivered them.
Two steps, so that a shuffle may come between them and carry little: :func:`encode` casts each used
column to what the model receives, row by row; :func:`collate` sorts the rows and codes the groups.
:func:`to_shard` is one after the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ..shard_data import Shard


class Column(NamedTuple):
    """How one argument of the model is fed by a column of the frame.

    It receives codes of a level of ``by`` (kind "group"), codes of known categories, alike in every
    shard (kind "category"), or the values themselves.
    """

    argument: str
    column: Hashable
    kind: Literal["group", "category", "value"]
    level: int = -1  # position in ``by`` (kind "group")
    categories: tuple[Any, ...] = ()


class Layout(NamedTuple):
    """Which columns are used, and as what."""

    by: tuple[Hashable, ...]  # key columns, outermost first; empty where rows are exchangeable
    columns: tuple[Column, ...]  # one entry for each argument of the model that a column feeds
    x64: bool = False  # arrays of float64 and int64 instead of float32 and int32

    @property
    def direct(self) -> tuple[Column, ...]:
        """The columns that are not codes of groups: values and categories."""
        return tuple(column for column in self.columns if column.kind != "group")


def to_shard(partition: pd.DataFrame, layout: Layout) -> Shard:
    """Turn all rows of one shard, in any order, into arrays and group codes.

    Rows are sorted by the keys, then by all other used columns, none of which may have missing
    values. Codes run from 0 to the number of groups less one, local to the shard. Level ``l`` is
    coded on the tuple of ``by[0]`` to ``by[l]``, since a county's name may occur in two regions.

    Raises
    ------
    TypeError
        If a column that feeds a value is neither numeric nor boolean.

    Examples
    --------
    >>> frame = pd.DataFrame({"who": ["b", "a", "b"], "y": [3.0, 2.0, 1.0]})
    >>> columns = (Column("patient", "who", "group", level=0), Column("y", "y", "value"))
    >>> shard = to_shard(frame, Layout(("who",), columns))
    >>> shard.arguments["patient"], shard.arguments["y"]
    (array([0, 1, 1], dtype=int32), array([2., 1., 3.], dtype=float32))
    >>> shard.groups
    (2,)
    """
    return collate(encode(partition, layout), layout)


def encode(partition: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Cast the used columns of any rows to what the model receives, row by row.

    There is a column :func:`key_name` of plain values for each level of ``by``, and a column for
    each argument of another kind than "group", named after it.
    """
    keys = {
        key_name(level): plain_key(partition[name]).reset_index(drop=True)
        for level, name in enumerate(layout.by)
    }
    values = {
        column.argument: _as_numbers(partition[column.column], column, layout.x64)
        for column in layout.direct
    }
    return pd.DataFrame(keys | values, index=pd.RangeIndex(len(partition)))


def collate(encoded: pd.DataFrame, layout: Layout) -> Shard:
    """Sort all encoded rows of one shard, in any order, and code its groups."""
    # A key's rank is its place among the distinct keys of its level.
    keys = [encoded[key_name(level)] for level in range(len(layout.by))]
    ranks = [pd.factorize(key, sort=True)[0] for key in keys]
    values = {column.argument: encoded[column.argument].to_numpy() for column in layout.direct}
    order = row_order([*ranks, *values.values()], len(encoded))
    codes = _group_codes([rank[order] for rank in ranks], integer_dtype(layout.x64))
    arguments = {
        column.argument: codes[column.level]
        if column.kind == "group"
        else values[column.argument][order]
        for column in layout.columns
    }
    return Shard(
        arguments=arguments,
        rows=len(encoded),
        groups=tuple(int(code.max(initial=-1)) + 1 for code in codes),
        levels={c.argument: c.level for c in layout.columns if c.kind == "group"},
    )


def key_name(level: int) -> str:
    """Return the encoded column of a key; no argument of a model can bear such a name."""
    return f"by[{level}]"


def plain_key(key: pd.Series) -> pd.Series:
    """Return a key's values in a form that agrees between partitions.

    The categories of a partition, their order and the width of an integer are accidents of how it
    was read: keys that are equal must sort, hash and compare alike in every partition.
    """
    if isinstance(key.dtype, pd.CategoricalDtype):
        key = key.astype(key.dtype.categories.dtype)
    if pd.api.types.is_unsigned_integer_dtype(key.dtype):
        return key.astype("uint64")
    if pd.api.types.is_integer_dtype(key.dtype):
        return key.astype("int64")
    if pd.api.types.is_float_dtype(key.dtype):
        return key + 0.0  # before pandas 3.1 zeros of both signs hash apart
    return key


def category_codes(values: pd.Series, categories: tuple[Any, ...]) -> np.ndarray:
    """Return the position of each value in `categories`, -1 for one that is not there."""
    # A tuple of tuples would otherwise become a MultiIndex.
    known = pd.Index(categories, tupleize_cols=False)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return known.get_indexer(pd.Index(values))
    # Looking up the few categories beats looking up the rows; code -1 (missing) reads the last -1.
    return np.append(known.get_indexer(values.cat.categories), -1)[values.cat.codes]


def integer_dtype(x64: bool) -> np.dtype:
    """Return the dtype of codes and integers."""
    return np.dtype(np.int64 if x64 else np.int32)


def number_dtype(values: pd.Series, x64: bool) -> np.dtype:
    """Return the dtype in which the model receives a column of values.

    Raises
    ------
    TypeError
        If the column is neither numeric nor boolean.
    """
    dtype, types = values.dtype, pd.api.types
    plain = not isinstance(dtype, pd.CategoricalDtype) and not types.is_complex_dtype(dtype)
    if plain and types.is_bool_dtype(dtype):
        return np.dtype(bool)
    if plain and types.is_integer_dtype(dtype):
        return integer_dtype(x64)
    if plain and types.is_numeric_dtype(dtype):
        return np.dtype(np.float64 if x64 else np.float32)
    raise TypeError(
        f"column {values.name!r} has dtype {dtype}; a model takes numbers and booleans. Convert it "
        "with `astype`, make it a categorical with known categories, or name it in `by`"
    )


def row_order(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Return the order that sorts rows by the columns, the first one first."""
    return np.lexsort(columns[::-1]) if columns else np.arange(rows)


def _as_numbers(values: pd.Series, column: Column, x64: bool) -> np.ndarray:
    """Cast one column to the array its argument receives."""
    if column.kind == "category":
        return category_codes(values, column.categories).astype(integer_dtype(x64))
    dtype = number_dtype(values, x64)
    if dtype.kind != "f":
        return values.to_numpy(dtype=dtype)
    with np.errstate(over="ignore"):
        # -0.0 and 0.0 compare equal: kept apart, their order would be that of arrival.
        return values.to_numpy(dtype=dtype, na_value=np.nan) + dtype.type(0)


def _group_codes(ranks: Iterable[np.ndarray], dtype: np.dtype) -> list[np.ndarray]:
    """Return codes 0, 1, ... of the groups at each level, for rows sorted by `ranks`."""
    codes: list[np.ndarray] = []
    starts: np.ndarray | bool = False
    for rank in ranks:
        # A new outer group starts a new inner one, even where the inner key stays the same.
        starts = starts | (np.diff(rank, prepend=rank[:1]) != 0)
        codes.append(np.cumsum(starts, dtype=dtype))
    return codes
