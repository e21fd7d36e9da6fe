"""How a category is written as JSON, and read again as what it was."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

# Kind -> its types, how one is written, and how it is read. Of several the first that fits.
_KINDS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "time": (
        (datetime.datetime, np.datetime64),
        lambda value: _timestamp(value).isoformat(),
        lambda text: _timestamp(text),
    ),
    "date": (datetime.date, lambda value: value.isoformat(), datetime.date.fromisoformat),
    "duration": (
        (datetime.timedelta, np.timedelta64),
        lambda value: pd.Timedelta(value).isoformat(),
        pd.Timedelta,
    ),
    "time of day": (
        datetime.time,
        lambda value: value.isoformat(),
        datetime.time.fromisoformat,
    ),
    "period": (
        pd.Period,
        lambda value: [str(value), value.freqstr],
        lambda told: pd.Period(*told),
    ),
    "interval": (
        pd.Interval,
        lambda value: [written(value.left), written(value.right), value.closed],
        lambda told: pd.Interval(category_of(told[0]), category_of(told[1]), told[2]),
    ),
    "decimal": (Decimal, str, Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "bytes": (
        bytes,
        lambda value: value.decode("latin-1"),
        lambda text: text.encode("latin-1"),
    ),
}


def written(entry: Any) -> Any:
    """Say in terms of JSON what a category is; of what is known to no reader, how it reads.

    Examples
    --------
    >>> written(pd.Timestamp("2026-02-01")), written("north"), written(np.int64(3))
    ({'time': '2026-02-01T00:00:00'}, 'north', 3)
    >>> category_of(written(pd.Interval(0, 10)))
    Interval(0, 10, closed='right')
    """
    for kind, (types, write, _) in _KINDS.items():
        if isinstance(entry, types):
            return {kind: write(entry)}
    entry = entry.item() if isinstance(entry, np.generic) else entry
    return entry if isinstance(entry, bool | int | float | str) else str(entry)


def category_of(told: Any) -> Any:
    """Make a category of what was written."""
    if not isinstance(told, dict):
        return told
    ((kind, value),) = told.items()
    return _KINDS[kind][2](value)


def _timestamp(value: Any) -> pd.Timestamp:
    """Make an instant; of those with a zone, which may change its offset over a year, in UTC."""
    made = pd.Timestamp(value)
    return made.tz_convert("UTC") if made.tzinfo is not None else made
