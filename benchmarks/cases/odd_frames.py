"""Frames drawn at random: keys and values in every guise, defects, odd shapes.

A number names a frame for good. What it holds is known apart from how: which rows there are, which
of them are of one group, and whether a value is there that no model can use.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa

from .case import takes


class OddFrame(NamedTuple):
    """A frame, how it is named to a fit, and what is known of it."""

    frame: dd.DataFrame
    named: dict[str, Any]  # `by` and `columns`
    n_shards: int | None
    group: np.ndarray | None  # (rows,) which rows are of one group
    x: np.ndarray  # (rows,) float64
    y: np.ndarray
    defect: str  # why a fit must be refused; empty where it need not be
    what: str  # how it was made


@takes(["g", "x", "y", "n_g"])
def grouped(**_: Any) -> None:
    """Stand for a model of groups."""


@takes(["x", "y"])
def of_rows(**_: Any) -> None:
    """Stand for a model of rows."""


Guise = Callable[[np.ndarray], Any]
_DAY = np.datetime64("2021-03-01", "s")

KEY_DTYPES = (
    "int64", "int32", "int16", "uint8", "uint64", "float64", "float32", "Int64", "UInt16",
    "Float64", "int64[pyarrow]", "double[pyarrow]", "str", "string", "string[pyarrow]",
    "category", "object",
)  # fmt: skip
# Of integers 0, 1, 2, ... keys that are equal where those are.
KEYS: dict[str, Guise] = {
    **{dtype: lambda g, dtype=dtype: pd.Series(g).astype(dtype) for dtype in KEY_DTYPES},
    "negative": lambda g: pd.Series(-g - 1),
    "large": lambda g: pd.Series(g + 2**53),
    "wide apart": lambda g: pd.Series(g * 2**40),
    "halves": lambda g: pd.Series(g / 2),
    "tenths": lambda g: pd.Series(g / 10),
    "other byte order": lambda g: pd.Series(g.astype(">i8")),
    "categories of text": lambda g: pd.Series([f"k{v}" for v in g]).astype("category"),
    "text with odd letters": lambda g: pd.Series([f"{v} ü\n'\"," for v in g]),
    "text of numbers": lambda g: pd.Series([f"{v:03d}" for v in g]),
    "empty text": lambda g: pd.Series(["" if v == 0 else f"{v}" for v in g]),
    "bytes": lambda g: pd.Series([str(v).encode() for v in g], dtype=object),
    "decimals": lambda g: pd.Series([Decimal(int(v)) / 10 for v in g], dtype=object),
    "decimals of Arrow": lambda g: pd.Series(
        [Decimal(int(v)) / 10 for v in g], dtype=pd.ArrowDtype(pa.decimal128(12, 3))
    ),
    "times": lambda g: pd.Series(_DAY + g.astype("timedelta64[D]")),
    "times in UTC": lambda g: pd.Series(_DAY + g.astype("timedelta64[D]")).dt.tz_localize("UTC"),
    "dates": lambda g: pd.Series(_DAY + g.astype("timedelta64[D]")).dt.date,
    "durations": lambda g: pd.Series(g.astype("timedelta64[s]")),
    "months": lambda g: pd.Series(pd.PeriodIndex.from_ordinals(g + 600, freq="M")),
    "pairs": lambda g: pd.Series([(int(v), "a") for v in g], dtype=object),
    "numbers and text": lambda g: pd.Series(
        [int(v) if v % 2 else f"t{v}" for v in g], dtype=object
    ),
}
VALUES: dict[str, Guise] = {
    **{
        dtype: lambda v, dtype=dtype: pd.Series(v).astype(dtype)
        for dtype in ("float64", "float32", "Float64", "Float32", "double[pyarrow]", "object")
    },
    "other byte order": lambda v: pd.Series(v.astype(">f8")),
    "Decimal": lambda v: pd.Series([Decimal(repr(float(one))) for one in v], dtype=object),
}
# Objects are refused, whatever they are.
_RARE = {"object": 0.2, "Decimal": 0.2}
_WEIGHTS = np.array([_RARE.get(name, 1.0) for name in VALUES])
_LIKELY = _WEIGHTS / _WEIGHTS.sum()
# Of a column of values, what no model can use.
DEFECTS: dict[str, Any] = {
    "NaN": np.nan,
    "infinite": np.inf,
    "minus infinite": -np.inf,
    "beyond single precision": 1e300,
}
NAMES: tuple[Any, ...] = ("x", "a b", "ж", 7, ("a", 1), "", "y'", "n_g2", "__x")


def odd_frame(number: int) -> OddFrame:
    """Draw the frame that has this number."""
    rng = np.random.default_rng([20_262, number])
    rows = int(rng.choice([1, 2, 7, 30, 120, 400]))
    n_groups = int(rng.choice([1, 2, 5, 17, 60]))
    group = rng.integers(0, n_groups, rows)
    # Exact in single precision, so that any column may hold them.
    x, y = (np.round(rng.normal(size=rows) * 64) / 64 for _ in range(2))
    has_groups = bool(rng.random() < 0.8)
    key = str(rng.choice(list(KEYS)))
    kinds = [str(rng.choice(list(VALUES), p=_LIKELY)) for _ in range(2)]
    named = [NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False)]
    key_name = str(rng.choice(["g", "who is it", "G"]))
    table = pd.concat([VALUES[kinds[0]](x), VALUES[kinds[1]](y)], axis=1)
    table.columns = pd.Index(named, tupleize_cols=False)
    what = [f"{rows} rows", f"values {kinds[0]} and {kinds[1]} named {named}"]
    columns: dict[str, Any] = {"x": named[0], "y": named[1]}
    if has_groups:
        table[key_name] = KEYS[key](group)
        columns["g"] = key_name
        what.append(f"key {key} named {key_name!r}")
    defect = _spoilt(rng, table, named, key_name if has_groups else None)
    how = {"columns": columns} | ({"by": key_name} if has_groups else {})
    frame = _divided(rng, table, key_name if has_groups else None, what)
    most = len(np.unique(group)) if has_groups else rows
    n_shards = None if rng.random() < 0.2 else min(int(rng.choice([1, 2, 3, 7])), most)
    said = ", ".join(what) + (f"; {defect}" if defect else "")
    return OddFrame(frame, how, n_shards, group if has_groups else None, x, y, defect, said)


def _spoilt(
    rng: np.random.Generator, table: pd.DataFrame, named: list[Any], key: str | None
) -> str:
    """Put a value into a table that no model can use, sometimes; say which."""
    if rng.random() > 0.35:
        return ""
    at = int(rng.integers(len(table)))
    if key is not None and rng.random() < 0.4:
        values = table[key].astype(object)
        values[at] = None
        dtype = table[key].dtype
        with_none = values if _holds_no_missing(dtype) else values.astype(dtype)
        table[key] = with_none
        return f"a key is missing in row {at}"
    which = int(rng.integers(2))
    values = table[named[which]]
    kind = str(rng.choice([*DEFECTS, "missing", "text"]))
    place = f"in row {at} of {named[which]!r}"
    if kind in DEFECTS:
        if values.dtype == object and isinstance(values.iloc[0], Decimal):
            values = values.map(float)
        if kind == "beyond single precision" and "32" in str(values.dtype):
            kind = "infinite"
        changed = values.astype("float64") if values.dtype != object else values.copy()
        changed[at] = DEFECTS[kind]
    else:
        changed = values.astype(object)
        changed[at] = None if kind == "missing" else "seven"
    table[named[which]] = changed
    return f"{kind} {place}"


def _holds_no_missing(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "iubO"


def _divided(
    rng: np.random.Generator, table: pd.DataFrame, key: str | None, what: list[str]
) -> dd.DataFrame:
    """Cut a table into partitions, some of them empty, under an index of any kind."""
    cuts = np.sort(rng.integers(0, len(table) + 1, int(rng.integers(0, 5))))
    index = str(rng.choice(["numbers", "all the same", "text", "key"]))
    if index == "all the same":
        table.index = pd.Index(np.zeros(len(table), int))
    elif index == "text":
        table.index = pd.Index([f"r{i % 3}" for i in range(len(table))], name="index of rows")
    elif index == "key" and key is not None:
        try:
            table = table.set_index(key)
            what.append("the key is the index")
        except TypeError:
            pass
    ends = [0, *cuts.tolist(), len(table)]
    pieces = [table.iloc[a:b] for a, b in pairwise(ends)]
    what.append(f"partitions of {[len(piece) for piece in pieces]} rows, index: {index}")
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(lambda i: pieces[i], range(len(pieces)), meta=table.iloc[:0])
