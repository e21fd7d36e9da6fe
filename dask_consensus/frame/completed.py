"""What do only the rows tell of a column? Its categories, and how long the lists are that it holds.

A categorical that was read from Parquet has, in each partition, the categories of that file. Those
of all partitions are collected in a pass over the columns concerned, before the model is read: the
number of categories is an argument of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ..cluster.tasks import call, compute, tree
from .arrays import Column, Layout
from .lists import NO_LIST, Seen, look_at
from .values import as_categorical, integer_dtype

if TYPE_CHECKING:
    import dask.dataframe as dd

MOST_CATEGORIES = 100_000
"""Categories of a column beyond which it is refused: each has its code in every task."""
_MOST_ORDERS = 64  # in which partitions may list their categories for any to be kept
_HEAD = 64  # rows of a partition that tell what its lists are like


class Categories(NamedTuple):
    """The categories of some partitions, in the orders in which these list them."""

    orders: tuple[tuple[Any, ...], ...]  # distinct ones; empty where there are too many
    values: tuple[Any, ...]  # each category once


def completed(frame: dd.DataFrame, layout: Layout, split_every: int = 8) -> Layout:
    """Find out what of a layout only the rows tell; computes nothing where there is nothing.

    Raises
    ------
    ValueError
        If a column holds no lists of numbers, no categories, or too many.
    """
    lists = {c.column for c in layout.columns if c.kind == "list"}
    unknown = {c.column for c in layout.columns if c.kind == "category" and not c.categories}
    if not lists and not unknown:
        return layout
    partitions = _columns_of(frame, [*lists, *unknown])
    some = sorted({0, len(partitions) // 2, len(partitions) - 1})
    heads = [partitions[i] for i in some]
    (seen, found) = compute(
        [
            _reduced(_look, _merged_looks, heads if lists else heads[:1], lists, split_every),
            _reduced(_list, _merged, partitions if unknown else heads[:1], unknown, split_every),
        ]
    )
    if any(seen.get(name) is None for name in lists) and len(heads) < len(partitions):
        (seen,) = compute([_reduced(_look, _merged_looks, partitions, lists, split_every)])
    columns = []
    for column in layout.columns:
        if column.kind == "list":
            columns += _of_lists(column, seen.get(column.column), layout.x64)
        elif column.column in unknown and column.kind == "category":
            columns.append(column._replace(categories=_in_order(column, found[column.column])))
        else:
            columns.append(column)
    return layout._replace(columns=tuple(columns))


def _columns_of(frame: dd.DataFrame, names: Sequence[Hashable]) -> list[Any]:
    """Make a task for each partition of some columns, one of which may be the index."""
    names = list(dict.fromkeys(names))
    if frame.index.name in names and frame.index.name not in frame.columns:
        frame = frame.reset_index()
    return list(frame[names].to_delayed(optimize_graph=True))


def _reduced(
    look: Any, merge: Any, partitions: list[Any], names: set[Hashable], split_every: int
) -> Any:
    looks = [call(look, part, tuple(names)) for part in partitions]
    return tree(looks, lambda parts: call(merge, parts), split_every)


def _look(partition: pd.DataFrame, names: Sequence[Hashable]) -> dict[Hashable, Seen | None]:
    return {name: look_at(partition[name].dropna().head(_HEAD)) for name in names}


def _merged_looks(parts: Sequence[dict[Hashable, Seen | None]]) -> dict[Hashable, Seen | None]:
    """Keep the first look; numbers are floats where any look has found some."""
    merged: dict[Hashable, Seen | None] = {}
    for name in parts[0]:
        seen = [look for look in (part[name] for part in parts) if look is not None]
        merged[name] = seen[0] if seen else None
        if seen and all(one.kind in "bif" for one in seen):
            merged[name] = seen[0]._replace(kind=max((one.kind for one in seen), key="bif".index))
    return merged


def _of_lists(column: Column, seen: Seen | None, x64: bool) -> list[Column]:
    """Make a column of each place in the lists."""
    who = f"column {column.column!r} (argument {column.argument!r})"
    if seen is None:
        raise ValueError(f"{who} has no value in any row: nothing tells what its lists hold")
    if seen.length <= 0:
        remedy = (
            "a model takes numbers and booleans, or lists and one-dimensional arrays of these"
            if seen.length == NO_LIST
            else "a list needs one number at least"
        )
        raise ValueError(f"{who} holds {seen.kind}; {remedy}. {text_remedy(column.column)}")
    dtypes = {"b": np.dtype(bool), "i": integer_dtype(x64)}
    dtype = str(dtypes.get(seen.kind, np.dtype(np.float64 if x64 else np.float32)))
    return [column._replace(kind="value", dtype=dtype, entry=i, item=i) for i in range(seen.length)]


def text_remedy(name: Hashable) -> str:
    """Say what to do about a column of text."""
    return (
        f"Make it a categorical (ddf[{name!r}] = ddf[{name!r}].astype('category')), whose codes "
        "the model receives, or name it in by= if it is the group; of two values a boolean will "
        f"do, ddf[{name!r}] == <one of them>."
    )


def _list(partition: pd.DataFrame, names: Sequence[Hashable]) -> dict[Hashable, Categories]:
    """List the categories of a partition in its own order."""
    listed = {}
    for name in names:
        own = tuple(as_categorical(partition[name]).cat.categories)
        listed[name] = Categories((own,) if own else (), own)
    return listed


def _merged(parts: Sequence[Mapping[Hashable, Categories]]) -> dict[Hashable, Categories]:
    return {name: _together([part[name] for part in parts]) for name in parts[0]}


def _together(parts: Sequence[Categories]) -> Categories:
    values = tuple(dict.fromkeys(value for part in parts for value in part.values))
    lost = any(part.values and not part.orders for part in parts)
    orders = tuple(dict.fromkeys(order for part in parts for order in part.orders))
    return Categories(() if lost or len(orders) > _MOST_ORDERS else orders, values)


def _in_order(column: Column, found: Categories) -> tuple[Any, ...]:
    """Order categories as the partitions do, if one of them lists all and none contradicts it."""
    who = f"column {column.column!r} (argument {column.argument!r})"
    if not found.values:
        raise ValueError(f"{who} is a categorical without any category: it has no value in any row")
    if len(found.values) > MOST_CATEGORIES:
        raise ValueError(
            f"{who} has {len(found.values):,} categories, more than {MOST_CATEGORIES:,}: if it is "
            "the group, name it in by="
        )
    longest = max(found.orders, key=len, default=())
    if len(longest) == len(found.values) and all(map(_within(longest), found.orders)):
        return longest
    try:
        return tuple(sorted(found.values))
    except TypeError:  # values of several types
        return tuple(sorted(found.values, key=lambda value: (type(value).__name__, str(value))))


def _within(longest: tuple[Any, ...]) -> Any:
    """Tell of an order of some categories whether they come so in the longest one."""
    place = {value: i for i, value in enumerate(longest)}

    def agrees(order: tuple[Any, ...]) -> bool:
        places = [place[value] for value in order]
        return places == sorted(places)

    return agrees
