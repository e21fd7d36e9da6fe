"""Hypothesis strategies: tables of nested groups, and ways to cut them into shards."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st

from .models import frame

# Rows of each county of each region. Every other shape costs a compilation of every model.
TABLES = (((2, 1, 3), (4,), (1, 3)), ((3, 2),))


class Cut(NamedTuple):
    """A table, the shard of each row, and whether shards are padded to one shape."""

    table: pd.DataFrame
    shard: np.ndarray
    padded: bool
    seed: int


seeds = st.integers(0, 2**31)


@st.composite
def cuts(draw: Any, by: tuple[str, ...]) -> Cut:
    """Cut rows into shards at random, without splitting an outermost group."""
    seed = draw(seeds)
    table = frame(draw(st.sampled_from(TABLES)), seed)
    codes, labels = pd.factorize(table[by[0]] if by else table.index)
    n_shards = draw(st.integers(1, min(len(labels), 4)))
    # The first groups fill the shards one by one, so that none is empty.
    rng = np.random.default_rng(seed)
    dealt = np.append(np.arange(n_shards), rng.integers(n_shards, size=len(labels) - n_shards))
    return Cut(table, dealt[codes], draw(st.booleans()), seed)


@st.composite
def draws(draw: Any, max_shards: int = 9) -> np.ndarray:
    """Draws ``(shards, chains, draws, d)`` of correlated coordinates on different scales."""
    n_shards, dim = draw(st.integers(1, max_shards)), draw(st.integers(1, 4))
    chains = draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(seeds))
    mixing = rng.normal(size=(n_shards, dim, dim)) + 2 * np.eye(dim)
    scales = np.exp(rng.normal(size=dim))
    z = rng.normal(size=(n_shards, chains, 40, dim))
    return np.einsum("sij,scnj->scni", mixing, z) * scales + rng.normal(size=dim)


# Ways to hold keys in a partition, each from small integers
_DAYS = np.datetime64("2020-01-01", "s")


def _dates(values: list[int], unit: str = "ns") -> pd.Series:
    return pd.Series(_DAYS + np.array(values, "timedelta64[D]")).astype(f"datetime64[{unit}]")


KEYS: dict[str, Any] = {
    **{
        dtype: lambda values, dtype=dtype: pd.Series(values).astype(dtype)
        for dtype in (
            *("int64", "int32", "int8", "Int64", "Int8", "int64[pyarrow]", "float64", "float32"),
            *("Float64", "double[pyarrow]", "float[pyarrow]"),
            *("object", "category", "str", "string", "string[pyarrow]"),
        )
    },
    **{
        dtype: lambda values, dtype=dtype: pd.Series(np.abs(values)).astype(dtype)
        for dtype in ("uint64", "uint8", "UInt32", "uint64[pyarrow]")
    },
    **{
        dtype: lambda values, dtype=dtype: (pd.Series(values, dtype="int64") > 0).astype(dtype)
        for dtype in ("bool", "boolean", "bool[pyarrow]")
    },
    "tenths": lambda values: pd.Series(values) / 10,
    "tenths in float32": lambda values: (pd.Series(values) / 10).astype("float32"),
    "zeros of both signs": lambda values: pd.Series([-0.0 if v == 0 else float(v) for v in values]),
    "large": lambda values: pd.Series(values).astype("int64") + 2**53,
    "large floats": lambda values: (pd.Series(values).astype("int64") + 2**53).astype("float64"),
    "large unsigned": lambda values: pd.Series(np.abs(values)).astype("uint64") + 2**53,
    "numbers of Python": lambda values: pd.Series(
        [(bool, int, float)[i % 3](v) if v in (0, 1) else v for i, v in enumerate(values)],
        dtype=object,
    ),
    "numbers and text": lambda values: pd.Series(
        [v if v % 2 else str(v) for v in values], dtype=object
    ),
    "decimals": lambda values: pd.Series([Decimal(v) / 10 for v in values], dtype=object),
    "decimals of Arrow": lambda values: pd.Series(
        [Decimal(v) / 10 for v in values], dtype=pd.ArrowDtype(pa.decimal128(9, 3))
    ),
    "categories of floats": lambda values: pd.Series(values).astype("float64").astype("category"),
    "categories of text": lambda values: pd.Series(values).astype("str").astype("category"),
    "text of Python": lambda values: pd.Series([str(v) for v in values], dtype=object),
    "bytes": lambda values: pd.Series([str(v).encode() for v in values], dtype=object),
    **{f"times in {unit}": partial(_dates, unit=unit) for unit in ("s", "ms", "us", "ns")},
    "times of Arrow": lambda values: _dates(values).astype("timestamp[ms][pyarrow]"),
    "times of Python": lambda values: pd.Series(
        [t.to_pydatetime() for t in _dates(values)], dtype=object
    ),
    "times in UTC": lambda values: _dates(values).dt.tz_localize("UTC"),
    "times in Tokyo": lambda values: (
        _dates(values).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    ),
    "times in UTC of Arrow": lambda values: _dates(values).astype("timestamp[us, UTC][pyarrow]"),
    "times with nanoseconds": lambda values: _dates(values) + pd.Timedelta(1, "ns"),
    "times long ago": lambda values: _dates(values, "us") - np.timedelta64(400_000, "D"),
    "dates": lambda values: _dates(values).dt.date,
    "dates of Arrow": lambda values: _dates(values).astype("date32[pyarrow]"),
    "durations in s": lambda values: pd.Series(np.array(values, "timedelta64[s]")),
    "durations in ns": lambda values: pd.Series(np.array(values, "timedelta64[s]")).astype(
        "timedelta64[ns]"
    ),
    "durations of Arrow": lambda values: pd.Series(np.array(values, "timedelta64[s]")).astype(
        "duration[us][pyarrow]"
    ),
    "months": lambda values: _dates(values).dt.to_period("M"),
    "days": lambda values: _dates(values).dt.to_period("D"),
    "intervals": lambda values: (
        pd.Series(pd.arrays.IntervalArray.from_breaks([0, *range(1, 99)]))
        .take(np.abs(values))
        .reset_index(drop=True)
    ),
    "intervals of floats": lambda values: pd.Series(
        [pd.Interval(float(abs(v)), abs(v) + 1.0) for v in values]
    ),
    "pairs": lambda values: pd.Series([(v, 1) for v in values], dtype=object),
}


@st.composite
def key_partitions(draw: Any) -> list[pd.Series]:
    """Keys of two to four partitions, each held in a way of its own, often of equal values."""
    ways = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=2, max_size=2))
    used = draw(st.lists(st.sampled_from(ways), min_size=2, max_size=4))
    numbers = st.lists(st.integers(-3, 6), min_size=0, max_size=6)
    return [KEYS[way](draw(numbers)).reset_index(drop=True) for way in used]
