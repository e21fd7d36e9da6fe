"""How the rows of a partition reach the model: checked, cast, coded, some thousand at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd

from ..frame.arrays import Column, Layout, answered, encode_values, read_columns
from ..frame.contents import contents_of
from ..frame.key_kinds import read_keys
from ..frame.keys import Keys, hash_keys, mix
from ..frame.lists import NONE
from ..frame.values import exact_numbers, missing, out_of_range, unfit
from ..model.model import ShardModel
from ..plan.bindings import columns_named
from ..result.categories import category_of
from ..result.recall import Recalled
from ..shard.at_draws import Rows, rows_at_once
from ..shard.local_sites import returned
from ..shard_data import Contents
from .known import KnownGroups, groups_here


class Block(NamedTuple):
    """Some rows of a partition, as the model takes them."""

    some: slice  # which rows
    rows: Rows
    # (G,) one for each of their groups, wherever it is, on each level that has effects
    numbers: tuple[np.ndarray, ...]


class RowReader(NamedTuple):
    """Which columns of a frame feed the model, and as what."""

    model: ShardModel
    layout: Layout  # of the columns that are needed, but keys
    by: tuple[Hashable, ...]  # key columns of all levels that the model knows
    levels: tuple[int, ...]  # of groups that carry effects, the outermost first
    constant: tuple[tuple[str, str], ...]  # arguments on which nothing depends, and their dtypes

    @property
    def token(self) -> tuple[Any, ...]:
        """What rows are read by."""
        return (self.model.token, self.layout, self.by, self.levels, self.constant)

    def read(
        self, partition: pd.DataFrame, known: Sequence[KnownGroups]
    ) -> tuple[Iterator[Block], np.ndarray]:
        """Read the rows of a partition, and tell which are of groups never seen on each level.

        That is an array ``(levels, rows)``.

        Raises
        ------
        ValueError
            If values are missing, infinite, of another kind or of another category than in the fit.
        """
        rows = self._used(partition)
        self._check(rows)
        arguments = self.layout.assembled(encode_values(rows, self.layout))
        self._check_categories(arguments)
        arguments |= {name: np.zeros(len(rows), dtype) for name, dtype in self.constant}
        (codes, keys), places, new = self._places(rows, known)
        numbers = [_numbers(keys[level]) for level in self.levels]
        return self._blocks(arguments, codes, places, numbers, known), new

    def _places(
        self, rows: pd.DataFrame, known: Sequence[KnownGroups]
    ) -> tuple[tuple[list[np.ndarray], list[list[Keys]]], list[np.ndarray], np.ndarray]:
        """Code groups, find their places among those known, and tell rows of which have none."""
        codes, keys = groups_here(rows, self.by)
        places = [
            its.places(keys[level], self.by[: level + 1])
            for level, its in zip(self.levels, known, strict=True)
        ]
        new = np.zeros((len(self.levels), len(rows)), bool)
        for i, (level, there) in enumerate(zip(self.levels, places, strict=True)):
            new[i] = there[codes[level]] < 0
        return (codes, keys), places, new

    def new_groups(self, partition: pd.DataFrame, known: Sequence[KnownGroups]) -> np.ndarray:
        """Tell which rows are of groups never seen on each level, whatever else they hold."""
        return self._places(self._used(partition), known)[2]

    def answered(self, partition: pd.DataFrame) -> np.ndarray:
        """Tell which rows have a response, as those have that were fitted."""
        return answered(self._used(partition), self.layout)

    def _blocks(
        self,
        arguments: Mapping[str, np.ndarray],
        codes: list[np.ndarray],
        places: Sequence[np.ndarray],
        numbers: Sequence[np.ndarray],
        known: Sequence[KnownGroups],
    ) -> Iterator[Block]:
        n = len(next(iter(arguments.values())))
        integer = np.int64 if self.model.x64 else np.int32
        step = rows_at_once()
        for first in range(0, n, step):
            some = slice(first, first + step)
            here = [np.unique(code[some], return_inverse=True) for code in codes]
            fed = {name: values[some] for name, values in arguments.items()}
            for name, level in self.model.codes.items():
                fed[name] = here[level][1].astype(integer)
            groups = [here[level][0] for level in self.levels]
            there = [its[which] for its, which in zip(places, groups, strict=True)]
            seen = tuple(its >= 0 for its in there)
            effects = tuple(k.effects_at(its) for k, its in zip(known, there, strict=True))
            named = tuple(its[which] for its, which in zip(numbers, groups, strict=True))
            yield Block(some, Rows(fed, seen, effects), named)

    def contents(self, partition: pd.DataFrame, keys: Sequence[Hashable]) -> Contents:
        """Sum up what the rows of a partition hold, as the fit's survey did, by all its `keys`."""
        rows = self._used(partition, keys)
        hashes = [hash_keys(read_keys(rows[name])) for name in keys]
        return contents_of(hashes, list(encode_values(rows, self.layout).values()))

    def _used(self, partition: pd.DataFrame, keys: Sequence[Hashable] = ()) -> pd.DataFrame:
        """Take the columns that are used, one of which may be the index."""
        fed = (column.column for column in self.layout.columns)
        wanted = [*dict.fromkeys([*self.by, *keys, *fed])]
        columns = {
            name: partition[name] if name in partition.columns else partition.index.to_series()
            for name in wanted
        }
        return pd.DataFrame({name: values.array for name, values in columns.items()})

    def _check(self, rows: pd.DataFrame) -> None:
        """Refuse what nothing could be said of."""
        for name in self.by:
            _check_there(rows[name], name)
        for read in read_columns(rows, self.layout):
            column, name, values = read.column, read.column.label, read.values
            if read.lengths is not None:
                none = read.lengths == NONE
                _refuse(none, column.column, "have no value", "drop or fill them first")
                wrong = read.lengths != read.width
                what = f"are no lists of {read.width} numbers, as the fit had"
                _refuse(wrong, column.column, what, "make them as long")
            _check_there(values, name)
            if column.kind != "value":
                continue
            dtype = np.dtype(column.dtype)
            numbers = exact_numbers(values)
            if numbers is None:
                raise ValueError(
                    f"column {name!r} (argument {column.argument!r}) has dtype {values.dtype}, "
                    f"where the fit had {dtype}: convert it with astype"
                )
            _refuse(~np.isfinite(numbers), name, "are infinite", "drop or replace them")
            unlike = unfit(numbers, dtype) | out_of_range(numbers, dtype)
            _refuse(unlike, name, f"are no {dtype}, which the fit had", "convert the column")

    def _check_categories(self, arguments: Mapping[str, np.ndarray]) -> None:
        for column in self.layout.columns:
            if column.kind == "category":
                unknown = arguments[column.argument] < 0
                what = "are categories that the fit had not"
                _refuse(unknown, column.column, what, "map or drop them")


def reader(
    frame: dd.DataFrame,
    recalled: Recalled,
    needed: set[str],
    columns: Mapping[str, Hashable],
) -> RowReader:
    """Find the columns of a frame that `needed` arguments of a model are fed by.

    Raises
    ------
    ValueError
        If one is missing, or `columns` names an argument that no column fed in the fit.
    """
    layout = _layout(frame, recalled, needed, columns)
    constant = tuple(pair for pair in recalled.dtypes.items() if pair[0] not in needed)
    levels = tuple(tier.level for tier in returned(recalled.model))
    used = max([*recalled.model.codes.values(), *levels], default=-1)
    by = _keys_upto(used + 1, frame, recalled, columns)
    return RowReader(recalled.model, layout, by, levels, constant)


def _numbers(keys: Sequence[Keys]) -> np.ndarray:
    """Name groups by their keys, whatever dtype these are of."""
    number = np.zeros(1, np.uint64)
    for key in keys:
        number = mix(number * np.uint64(31) + hash_keys(key))
    return (number >> np.uint64(32)).astype(np.uint32)


def _layout(
    frame: dd.DataFrame, recalled: Recalled, needed: set[str], columns: Mapping[str, Hashable]
) -> Layout:
    """Find the columns that are needed."""
    groups = {argument.name for argument in recalled.arguments if argument.kind == "group"}
    sources = columns_fed(frame, recalled, columns, needed - groups)
    found = []
    for argument in recalled.arguments:
        if argument.name not in needed or argument.kind == "group":
            continue
        fed = sources[argument.name]
        column = fed[argument.entry] if isinstance(fed, list) else fed
        kind: Any = argument.kind
        categories = tuple(map(category_of, argument.categories))
        found.append(
            Column(
                argument.name,
                column,
                kind,
                categories=categories,
                dtype=argument.dtype,
                entry=argument.entry,
                item=argument.item,
            )
        )
    return Layout((), tuple(found), recalled.model.x64, responses=recalled.responses)


def columns_fed(
    frame: dd.DataFrame, recalled: Recalled, columns: Mapping[str, Hashable], needed: set[str]
) -> dict[str, Any]:
    """Find the column, or the columns of its matrix, that feed each argument that is needed.

    Raises
    ------
    ValueError
        If one is missing, or `columns` names an argument that no column fed in the fit, or too few.
    """
    names = dict.fromkeys(argument.name for argument in recalled.arguments)
    for name in columns:
        if name not in names:
            raise ValueError(
                f"columns names {name!r}, which no column fed in the fit; those that one did are "
                f"{', '.join(names)}"
            )
    fed: dict[str, Any] = {}
    for argument in recalled.arguments:
        name = argument.name
        if name not in needed or name in fed:
            continue
        given = columns.get(name, argument.column)
        if argument.entry < 0 or argument.item >= 0:
            fed[name] = find(frame, given, name)
            continue
        several: list[Hashable] = [a.column for a in recalled.arguments if a.name == name]
        if name in columns:
            several = columns_named(given, list(frame.columns)) or [given]
        if len(several) != recalled.widths[name]:
            raise ValueError(
                f"columns names {len(several)} columns for argument {name!r}, which received "
                f"{recalled.widths[name]} in the fit"
            )
        fed[name] = [find(frame, column, name) for column in several]
    return fed


def key_columns(
    frame: dd.DataFrame, recalled: Recalled, columns: Mapping[str, Hashable]
) -> tuple[Hashable, ...]:
    """Find the key columns of all levels that a fit had.

    Raises
    ------
    ValueError
        If one is missing.
    """
    return _keys_upto(len(recalled.by), frame, recalled, columns)


def _keys_upto(
    levels: int, frame: dd.DataFrame, recalled: Recalled, columns: Mapping[str, Hashable]
) -> tuple[Hashable, ...]:
    renamed = {
        argument.level: columns[argument.name]
        for argument in recalled.arguments
        if argument.kind == "group" and argument.name in columns
    }
    return tuple(
        find(frame, renamed.get(level, name), "key")
        for level, name in enumerate(recalled.by[:levels])
    )


def find(frame: dd.DataFrame, wanted: Hashable, what: str) -> Hashable:
    """Find a column of a frame, or its index, by the name that it had in the fit.

    Raises
    ------
    ValueError
        If there is none, saying what it was wanted for.
    """
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


def _check_there(values: pd.Series, name: Hashable) -> None:
    null, nan = missing(values)
    _refuse(null | nan, name, "have no value", "drop or fill them first")


def _refuse(wrong: np.ndarray, name: Hashable, what: str, remedy: str) -> None:
    if wrong.any():
        raise ValueError(
            f"column {name!r}: {np.count_nonzero(wrong):,} of the {len(wrong):,} values of a "
            f"partition {what} (the first in row {int(np.argmax(wrong)):,} of it); {remedy}"
        )
