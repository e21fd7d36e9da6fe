"""Categories are written down, and are again what they were."""

import datetime
import decimal
import json
import uuid

import numpy as np
import pandas as pd
import pytest

from dask_consensus.frame.values import category_codes
from dask_consensus.result.categories import category_of, written

KINDS = {
    "text": pd.Index(["a", "b", "c"]),
    "integers": pd.Index([3, 1, 2]),
    "floats": pd.Index([0.5, 2.0]),
    "booleans": pd.Index([False, True]),
    "times": pd.date_range("2026-01-01", periods=3),
    "times of seconds": pd.date_range("2026-01-01", periods=3, unit="s"),
    # Between which the clocks change.
    "times with a zone": pd.date_range("2026-03-01", periods=3, freq="30D", tz="Europe/Paris"),
    "dates": pd.Index([datetime.date(2026, 1, 2), datetime.date(2025, 1, 2)]),
    "durations": pd.timedelta_range("1D", periods=3),
    "times of day": pd.Index([datetime.time(8), datetime.time(20, 30)]),
    "periods": pd.period_range("2026-01", periods=3, freq="M"),
    "bins": pd.cut([1, 2, 3], 3).categories,
    "bins of times": pd.interval_range(pd.Timestamp("2026"), periods=3, closed="left"),
    "decimals": pd.Index([decimal.Decimal("1.10"), decimal.Decimal("2")]),
    "UUIDs": pd.Index([uuid.UUID(int=7), uuid.UUID(int=1)]),
    "bytes": pd.Index([b"a", b"\xff"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_category_is_found_again(kind):
    categories = KINDS[kind]
    told = json.dumps([written(category) for category in categories])
    again = tuple(map(category_of, json.loads(told)))
    values = pd.Series(categories)
    np.testing.assert_array_equal(category_codes(values, again), np.arange(len(categories)))
    # Of a frame that lists its categories in another order.
    backwards = values.astype(pd.CategoricalDtype(categories[::-1]))
    np.testing.assert_array_equal(category_codes(backwards, again), np.arange(len(categories)))
