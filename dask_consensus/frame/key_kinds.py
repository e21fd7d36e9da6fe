"""Of which kind are the keys of a partition? Each dtype, and each type of Python, has a reader."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from .keys import EXACT, FINE, FLOATS, INTEGERS, LARGE, UNSIGNED, UNUSABLE, WIDE, Keys

_FURTHEST = (2**63 - 1) // 1000  # microseconds that nanoseconds can hold
_PER_MICROSECOND = {"ns": 1000, "us": 1}
_MICROSECONDS = {"ms": 1_000, "s": 1_000_000}


def read_keys(key: pd.Series) -> Keys:
    """Read keys without missing values; computes their kinds and a form that holds them."""
    dtype, types = key.dtype, pd.api.types
    if key.empty:  # whose dtype says nothing
        return Keys((), "text", np.empty(0, object))
    if isinstance(dtype, pd.CategoricalDtype):
        return _categories(key)
    if isinstance(dtype, pd.SparseDtype):
        return read_keys(key.sparse.to_dense())
    if isinstance(dtype, pd.ArrowDtype) and dtype.kind in "Mm" and _counted(dtype):
        return _arrow_times(key)
    if types.is_bool_dtype(dtype) and not types.is_object_dtype(dtype):
        return _integers(key.to_numpy(dtype=bool).astype(np.int64))
    if types.is_unsigned_integer_dtype(dtype) and dtype.itemsize == 8:
        return _integers(key.to_numpy(dtype=np.uint64))
    if types.is_integer_dtype(dtype):
        return _integers(key.to_numpy(dtype=np.int64))
    if types.is_float_dtype(dtype):
        return _floats(key.to_numpy(dtype=np.float64, na_value=np.nan))
    if isinstance(dtype, pd.DatetimeTZDtype) or types.is_datetime64_dtype(dtype):
        zoned = isinstance(dtype, pd.DatetimeTZDtype)
        naive = key.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else key
        return _times("times with a zone" if zoned else "times", naive.to_numpy())
    if types.is_timedelta64_dtype(dtype):
        return _times("durations", key.to_numpy())
    if isinstance(dtype, pd.PeriodDtype):
        return Keys((f"periods ({dtype.freq.freqstr})",), "int64", key.array.asi8)
    if isinstance(dtype, pd.StringDtype):
        codes, distinct = pd.factorize(key.array)
        return Keys(("text",), "text", np.asarray(distinct, dtype=object), codes)
    return _objects(key)


def _categories(key: pd.Series) -> Keys:
    """Read the categories that occur, and take them by their codes."""
    used, codes = np.unique(key.cat.codes.to_numpy(), return_inverse=True)
    keys = read_keys(pd.Series(key.cat.categories.take(used)))
    return keys._replace(codes=codes if keys.codes is None else keys.codes[codes])


def _integers(values: np.ndarray) -> Keys:
    if values.dtype == np.uint64:
        large = (values > EXACT).any()
        return Keys(_marked(UNSIGNED, {LARGE: large}), "uint64", values)
    large = ((values > EXACT) | (values < -EXACT)).any()
    return Keys(_marked(INTEGERS, {LARGE: large}), "int64", values)


def _floats(values: np.ndarray) -> Keys:
    large = (np.isfinite(values) & (np.abs(values) > EXACT)).any()
    # -0.0 and 0.0 are one key.
    return Keys(_marked(FLOATS, {LARGE: large}), "float64", values + 0.0)


def _times(kind: str, times: np.ndarray) -> Keys:
    """Read instants or durations of any unit."""
    unit = np.datetime_data(times.dtype)[0]
    if unit not in (*_PER_MICROSECOND, *_MICROSECONDS):
        times, unit = times.astype(f"{times.dtype.kind}8[s]"), "s"
    return _counts(kind, times.view(np.int64), unit)


def _counts(kind: str, counts: np.ndarray, unit: str) -> Keys:
    """Read whole numbers of a unit of time."""
    rest = None
    if unit in _MICROSECONDS:
        factor = _MICROSECONDS[unit]
        if (np.abs(counts) > (2**63 - 1) // factor).any():
            return _unusable("time, too far from 1970", len(counts))
        counts = counts * factor
    elif unit == "ns":
        counts, rest = counts // 1000, counts % 1000
        rest = rest if rest.any() else None
    marks = {WIDE: (np.abs(counts) >= _FURTHEST).any(), FINE: rest is not None}
    kinds = _marked(kind, marks)
    return Keys(kinds, "us" if WIDE in kinds else "ns", counts, None, rest)


def _counted(dtype: pd.ArrowDtype) -> bool:
    """Tell instants and durations of Arrow from its dates, which pandas gives as such."""
    return str(dtype.pyarrow_dtype).startswith(("timestamp", "duration"))


def _arrow_times(key: pd.Series) -> Keys:
    import pyarrow as pa

    dtype = key.dtype.pyarrow_dtype
    counts = pa.chunked_array(pa.array(key.array).cast(dtype)).cast(pa.int64()).to_numpy()
    if pa.types.is_duration(dtype):
        return _counts("durations", counts, dtype.unit)
    return _counts("times with a zone" if dtype.tz else "times", counts, dtype.unit)


def _objects(key: pd.Series) -> Keys:
    """Read Python objects: few are distinct, and each is looked at once."""
    values = np.empty(len(key), object)
    values[:] = list(key)
    try:
        codes, distinct = pd.factorize(values)
    except TypeError:  # not hashable
        return _unusable(type(values[0]).__name__, len(values))
    by_kind: dict[str, list[int]] = {}
    for i, value in enumerate(distinct):
        by_kind.setdefault(_kind_of(value), []).append(i)
    read = [_READERS.get(kind, _as_text)(kind, [distinct[i] for i in where])
            for kind, where in by_kind.items()]  # fmt: skip
    if len(read) == 1:
        return read[0]._replace(codes=codes)
    kinds = tuple(dict.fromkeys(kind for keys in read for kind in keys.kinds))
    return Keys(kinds, "int64", np.zeros(len(distinct), np.int64), codes)


_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((bool, np.bool_, int, np.integer, float, np.floating), "numbers"),
    (Decimal, "decimals"),
    (str, "text"),
    (bytes, "bytes"),
    ((datetime.datetime, np.datetime64), "times"),
    (datetime.date, "dates"),
    ((datetime.timedelta, np.timedelta64), "durations"),
    (datetime.time, "times of day"),
    (uuid.UUID, "UUIDs"),
    (pd.Period, "periods"),
    (pd.Interval, "intervals"),
)


def _kind_of(value: Any) -> str:
    """Name the kind of one object."""
    for known, kind in _TYPES:
        if isinstance(value, known):
            if kind == "times" and getattr(value, "tzinfo", None) is not None:
                return "times with a zone"
            return f"periods ({value.freqstr})" if isinstance(value, pd.Period) else kind
    return UNUSABLE + type(value).__name__


def _python_numbers(_: str, values: list[Any]) -> Keys:
    """Read numbers of any Python or NumPy type."""
    integers = [int(value) for value in values if not isinstance(value, float | np.floating)]
    lowest, highest = min(integers, default=0), max(integers, default=0)
    if lowest < -(2**63) or highest >= (2**63 if lowest < 0 else 2**64):
        return _unusable("int, of more than 64 bits", len(values))
    whole = _integers(np.array(integers, np.int64 if highest < 2**63 else np.uint64))
    if len(integers) == len(values):
        return whole
    read = _floats(np.array(values, np.float64))
    kinds = [*(whole.kinds if integers else ()), *read.kinds]
    return read._replace(kinds=tuple(dict.fromkeys(kinds)))


def _python_times(kind: str, values: list[Any]) -> Keys:
    """Read instants or durations of any Python, NumPy or pandas type."""
    maker = pd.Timedelta if kind == "durations" else pd.Timestamp
    parts = [_counts(kind, np.array([time.asm8.view(np.int64)]), time.unit)
             for time in map(maker, values)]  # fmt: skip
    bad = next((part for part in parts if part.kinds[0] != kind), None)
    if bad is not None:
        return bad._replace(distinct=np.zeros(len(values), np.int64))
    rest = np.array([0 if part.rest is None else part.rest[0] for part in parts])
    kinds = tuple(dict.fromkeys(kind for part in parts for kind in part.kinds))
    counts = np.array([part.distinct[0] for part in parts], np.int64)
    return Keys(kinds, "us" if WIDE in kinds else "ns", counts, None, rest if rest.any() else None)


def _dates(kind: str, values: list[Any]) -> Keys:
    return Keys((kind,), "int64", np.array([value.toordinal() for value in values], np.int64))


def _as_text(kind: str, values: list[Any]) -> Keys:
    """Write values as text, the same for equal ones; periods as their number."""
    if kind.startswith(UNUSABLE):
        return _unusable(kind.removeprefix(UNUSABLE), len(values))
    if kind.startswith("periods"):
        return Keys((kind,), "int64", np.array([value.ordinal for value in values], np.int64))
    texts = np.empty(len(values), object)
    try:
        texts[:] = [_TEXTS.get(kind, str)(value) for value in values]
    except (ValueError, OverflowError):  # a decimal that is infinite
        return _unusable(type(values[0]).__name__ + ", infinite", len(values))
    if kind == "intervals":
        kind = f"intervals closed {'/'.join(sorted({value.closed for value in values}))}"
    return Keys((kind,), "text", texts)


def _interval(value: pd.Interval) -> str:
    ends = [_as_end(end) for end in (value.left, value.right)]
    return f"{value.closed} {ends[0]} {ends[1]}"


def _as_end(end: Any) -> str:
    """Write an end of an interval, equal ends alike."""
    if isinstance(end, int | float | np.number):
        return repr(float(end) + 0.0)
    return end.tz_convert("UTC").isoformat() if getattr(end, "tzinfo", None) else end.isoformat()


_TEXTS: dict[str, Callable[[Any], str]] = {
    "text": str.__str__,
    "bytes": lambda value: value.decode("latin-1"),
    "decimals": lambda value: str(Fraction(value)),
    "times of day": lambda value: value.isoformat(),
    "intervals": _interval,
}
_READERS: dict[str, Callable[[str, list[Any]], Keys]] = {
    "numbers": _python_numbers,
    "times": _python_times,
    "times with a zone": _python_times,
    "durations": _python_times,
    "dates": _dates,
}


def _marked(kind: str, marks: dict[str, Any]) -> tuple[str, ...]:
    return (kind, *(mark for mark, present in marks.items() if present))


def _unusable(what: str, rows: int) -> Keys:
    """Say that keys have no form; they are refused, their values do not matter."""
    return Keys((UNUSABLE + what,), "int64", np.zeros(rows, np.int64))
