"""A partition becomes padded NumPy arrays and group codes.

The result is a function of the rows alone, never of the order in which a scheduler delivered them.
Two steps, so that a shuffle may come between them and carry little: :func:`encode` casts each used
column to what the model receives, row by row; :func:`collate` sorts the rows and codes the groups.
:func:`to_shard` is one after the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ..shard_data import Shard
from .contents import contents_of
from .key_kinds import read_keys
from .keys import Form, common_form, hash_keys, in_form, of_form
from .lists import read_lists
from .values import (
    cast,
    category_codes,
    common_dtype,
    exact_numbers,
    integer_dtype,
    missing,
    number_dtype,
)


class Column(NamedTuple):
    """How an argument of the model is fed by a column of the frame.

    It receives codes of a level of ``by`` (kind "group"), codes of known categories, alike in every
    shard (kind "category"), or the values themselves. An argument that receives a matrix has one of
    these for each column of it. Kind "list" is a column of lists whose length is not known yet.
    """

    argument: str
    column: Hashable
    kind: Literal["group", "category", "value", "list"]
    level: int = -1  # position in ``by`` (kind "group")
    categories: tuple[Any, ...] = ()
    dtype: str = ""  # of the values that the model receives (kind "value"); empty: as a partition's
    entry: int = -1  # place in the rows of the matrix that the argument receives; -1 in none
    item: int = -1  # place in the lists that the column holds; -1 where it holds no lists

    @property
    def name(self) -> str:
        """What the column is called once encoded; no key's name, nor another argument's."""
        return self.argument if self.entry < 0 else f"{self.argument}[, {self.entry}]"

    @property
    def label(self) -> Hashable:
        """What the column is called in messages."""
        return self.column if self.item < 0 else f"{self.column}[{self.item}]"


class Layout(NamedTuple):
    """Which columns are used, and as what."""

    by: tuple[Hashable, ...]  # key columns, outermost first; empty where rows are exchangeable
    # One for each argument of the model that a column feeds; of a matrix one after the other.
    columns: tuple[Column, ...]
    x64: bool = False  # arrays of float64 and int64 instead of float32 and int32
    forms: tuple[Form, ...] = ()  # of the keys of all partitions, once they are known
    responses: tuple[
        str, ...
    ] = ()  # arguments that are only observed; rows without any are left out

    @property
    def direct(self) -> tuple[Column, ...]:
        """The columns that are not codes of groups: values and categories."""
        return tuple(column for column in self.columns if column.kind != "group")

    @property
    def values(self) -> tuple[Column, ...]:
        """The columns that are handed to the model as they are."""
        return tuple(column for column in self.columns if column.kind == "value")

    def typed(self, meta: pd.DataFrame) -> Layout:
        """Fix the dtype of each value by that of the frame: a partition may have another.

        Raises
        ------
        TypeError
            If a column that feeds a value is neither numeric nor boolean.
        """
        dtypes: dict[str, list[np.dtype]] = {}
        for column in self.values:
            # Lists have the dtype of what was seen in them.
            known = column.item >= 0 and column.dtype
            dtype = np.dtype(known) if known else number_dtype(meta[column.column], self.x64)
            dtypes.setdefault(column.argument, []).append(dtype)
        columns = tuple(
            column._replace(dtype=str(common_dtype(dtypes[column.argument])))
            if column.kind == "value"
            else column
            for column in self.columns
        )
        return self._replace(columns=columns)

    def assembled(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make of encoded columns ``(rows,)`` what each argument receives, matrices among them."""
        arguments: dict[str, Any] = {}
        for column in self.direct:
            if column.entry < 0:
                arguments[column.argument] = values[column.name]
            else:
                arguments.setdefault(column.argument, []).append(values[column.name])
        return {
            name: np.stack(parts, axis=1) if isinstance(parts, list) else parts
            for name, parts in arguments.items()
        }


def matrices_of(layout: Layout) -> dict[str, list[Column]]:
    """Group columns by the argument that they feed: several where it receives a matrix."""
    columns: dict[str, list[Column]] = {}
    for column in layout.columns:
        columns.setdefault(column.argument, []).append(column)
    return columns


def labels_of(layout: Layout) -> dict[str, tuple[Any, ...]]:
    """Return the categories of arguments that receive codes; of matrices the names of columns."""
    labels = {}
    for argument, columns in matrices_of(layout).items():
        first = columns[0]
        if first.kind == "category":
            labels[argument] = first.categories
        elif first.entry >= 0 and first.item < 0:
            labels[argument] = tuple(column.column for column in columns)
    return labels


def answered(partition: pd.DataFrame, layout: Layout) -> np.ndarray:
    """Tell which rows have a value of some response, or of any, where there are no responses."""
    masks = [
        np.logical_or(*missing(partition[column.column]))
        for column in layout.columns
        if column.argument in layout.responses
    ]
    return ~np.logical_and.reduce(masks) if masks else np.ones(len(partition), bool)


class Read(NamedTuple):
    """A column as a partition holds it; of lists, the numbers at one place of each."""

    column: Column
    values: pd.Series
    # Lengths of the lists, -1 where there is none, beside the first number of each; else None. What
    # the numbers are where another length was expected means nothing.
    lengths: np.ndarray | None = None
    width: int = 0  # the length that is expected


def read_columns(partition: pd.DataFrame, layout: Layout) -> list[Read]:
    """Read the columns that are not codes of groups, those of lists once."""
    widths: dict[Hashable, int] = {}
    for column in layout.direct:
        if column.item >= 0:
            widths[column.column] = max(widths.get(column.column, 0), column.item + 1)
    lists = {name: read_lists(partition[name], width) for name, width in widths.items()}
    read = []
    for column in layout.direct:
        if column.item < 0:
            read.append(Read(column, partition[column.column]))
            continue
        numbers, lengths = lists[column.column]
        values = pd.Series(numbers[:, column.item], name=column.label)
        first = lengths if column.item == 0 else None
        read.append(Read(column, values, first, widths[column.column]))
    return read


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
    forms = tuple(common_form(read_keys(partition[name]).kinds) for name in layout.by)
    layout = layout._replace(forms=layout.forms or forms)
    return collate(encode(partition, layout), layout)


def encode(partition: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Cast the used columns of any rows to what the model receives, row by row.

    There is a column :func:`key_name` for each level of ``by``, of keys in their form, and a column
    for each argument of another kind than "group", named after it; of a matrix one for each column.
    Rows without any response are left out.
    """
    if layout.responses:
        partition = partition[answered(partition, layout)]
    keys = {
        key_name(level): in_form(read_keys(partition[name]), form)
        for level, (name, form) in enumerate(zip(layout.by, layout.forms, strict=True))
    }
    return pd.DataFrame(
        keys | encode_values(partition, layout), index=pd.RangeIndex(len(partition))
    )


def encode_values(partition: pd.DataFrame, layout: Layout) -> dict[str, np.ndarray]:
    """Cast the columns that are not codes of groups; missing values may not be among them."""
    return {
        read.column.name: _as_numbers(read.values, read.column, layout.x64)
        for read in read_columns(partition, layout)
    }


def collate(encoded: pd.DataFrame, layout: Layout) -> Shard:
    """Sort all encoded rows of one shard, in any order, and code its groups."""
    # A key's rank is its place among the distinct keys of its level.
    keys = [encoded[key_name(level)] for level in range(len(layout.by))]
    ranked = [pd.factorize(key, sort=True) for key in keys]
    ranks = [rank for rank, _ in ranked]
    values = {column.name: encoded[column.name].to_numpy() for column in layout.direct}
    hashes = [
        hash_keys(of_form(distinct.array, form))[rank]
        for (rank, distinct), form in zip(ranked, layout.forms, strict=True)
    ]
    order = row_order([*ranks, *values.values()], len(encoded))
    # From here on in order: sums of floats depend on it.
    values = {argument: column[order] for argument, column in values.items()}
    codes = _group_codes([rank[order] for rank in ranks], integer_dtype(layout.x64))
    received = layout.assembled(values)
    arguments = {
        column.argument: codes[column.level]
        if column.kind == "group"
        else received[column.argument]
        for column in layout.columns
    }
    return Shard(
        arguments=arguments,
        rows=len(encoded),
        groups=tuple(int(code.max(initial=-1)) + 1 for code in codes),
        levels={c.argument: c.level for c in layout.columns if c.kind == "group"},
        contents=contents_of([h[order] for h in hashes], list(values.values())),
        labels=_labels(codes, [key.array for key in keys], order),
    )


def _labels(
    codes: Sequence[np.ndarray], keys: Sequence[Any], order: np.ndarray
) -> tuple[tuple[Any, ...], ...]:
    """Return the keys of the groups of each level, those of outer levels before its own."""
    labels = []
    for level, code in enumerate(codes):
        first = order[np.flatnonzero(np.diff(code, prepend=-1))]
        labels.append(tuple(np.asarray(key[first]) for key in keys[: level + 1]))
    return tuple(labels)


def key_name(level: int) -> str:
    """Return the encoded column of a key; no argument of a model can bear such a name."""
    return f"by[{level}]"


def row_order(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Return the order that sorts rows by the columns, the first one first.

    As many columns as fit in 64 bits are sorted by at once, which is many times faster than one
    after another; the others are looked at where rows tie.
    """
    key, free = np.zeros(rows, np.uint64), 64
    for column in columns if rows else ():
        ordinals, bits = _ordinals(column)
        free -= bits
        if free < 0:
            break
        key = (key << np.uint64(bits % 64)) | ordinals
    order = np.argsort(key)
    if free < 0:
        same = np.diff(key[order]) == 0
        tied = np.append(same, False) | np.append(False, same)
        among = order[tied]
        order[tied] = among[np.lexsort([column[among] for column in columns[::-1]])]
    return order


def _ordinals(column: np.ndarray) -> tuple[np.ndarray, int]:
    """Return whole numbers in the order of the values, and in how many bits all of them fit."""
    if column.dtype.kind == "f":
        # Bits of floats are in their order, of negative ones in the opposite; zero has no sign.
        whole = (column + 0).view(f"i{column.dtype.itemsize}")
        column = np.where(whole < 0, whole ^ np.iinfo(whole.dtype).max, whole)
    least, largest = int(column.min()), int(column.max())
    ordinals = column.astype(np.int64).view(np.uint64) - np.uint64(least % 2**64)
    return ordinals, (largest - least).bit_length()


def _as_numbers(values: pd.Series, column: Column, x64: bool) -> np.ndarray:
    """Cast one column to the array its argument receives."""
    if column.kind == "category":
        return category_codes(values, column.categories).astype(integer_dtype(x64))
    numbers = exact_numbers(values)
    dtype = np.dtype(column.dtype) if column.dtype else number_dtype(values, x64)
    if numbers is None:
        raise TypeError(f"column {values.name!r} has dtype {values.dtype}, expected {dtype}")
    return cast(numbers, dtype)


def _group_codes(ranks: Iterable[np.ndarray], dtype: np.dtype) -> list[np.ndarray]:
    """Return codes 0, 1, ... of the groups at each level, for rows sorted by `ranks`."""
    codes: list[np.ndarray] = []
    starts: np.ndarray | bool = False
    for rank in ranks:
        # A new outer group starts a new inner one, even where the inner key stays the same.
        starts = starts | (np.diff(rank, prepend=rank[:1]) != 0)
        codes.append(np.cumsum(starts, dtype=dtype))
    return codes
