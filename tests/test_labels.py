"""Keys read again as they stood in the frame, after they were brought to one form."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from dask_consensus.frame.arrays import Column, Layout, to_shard
from dask_consensus.frame.key_kinds import read_keys
from dask_consensus.frame.keys import common_form, in_form
from dask_consensus.frame.labels import readable

DAY = datetime.date(2024, 2, 29)
KEYS = {
    "int64": ([3, -1, 7], np.dtype("int64")),
    "int8": (np.array([3, -1, 7], np.int8), np.dtype("int8")),
    "uint64": (np.array([2**63, 1], np.uint64), np.dtype("uint64")),
    "nullable": (pd.array([3, 1], dtype="Int32"), np.dtype("int32")),
    "bool": ([True, False], np.dtype(bool)),
    "float": ([0.5, -2.0], np.dtype(float)),
    "text": (["b", "a"], np.dtype(object)),
    "arrow text": (pd.array(["b", "a"], dtype="string[pyarrow]"), np.dtype(object)),
    "categories": (pd.Categorical(["b", "a"]), np.dtype(object)),
    "categories of numbers": (pd.Categorical([20, 10]), np.dtype("int64")),
    "times": (
        pd.to_datetime(["2024-02-29 12:00:00.5", "1969-01-01 00:00:00.0"]),
        np.dtype("M8[ns]"),
    ),
    "durations": (pd.to_timedelta(["1 day", "-2 s"]), np.dtype("m8[ns]")),
}


def reread(values):
    series = pd.Series(values)
    keys = read_keys(series)
    form = common_form(keys.kinds)
    return readable(np.asarray(in_form(keys, form)), form, keys.kinds, series.dtype)


@pytest.mark.parametrize("kind", KEYS)
def test_keys_come_back(kind):
    values, dtype = KEYS[kind]
    found = reread(values)
    assert found.dtype == dtype
    assert pd.Series(found).tolist() == pd.Series(values).tolist()


def test_what_no_file_can_hold_is_text_or_time():
    assert reread([Decimal("1.50"), Decimal("-3")]).tolist() == ["1.5", "-3"]
    assert reread([Decimal("0.1")]).tolist() == ["0.1"]
    periods = pd.period_range("2024-01", periods=2, freq="M")
    assert reread(periods).tolist() == ["2024-01", "2024-02"]
    assert reread([DAY]).astype(object).tolist() == [datetime.datetime(2024, 2, 29)]
    zoned = pd.to_datetime(["2024-02-29 12:00"]).tz_localize("Europe/Rome")
    assert reread(zoned).astype("M8[s]").tolist() == [datetime.datetime(2024, 2, 29, 11)]


def test_integers_that_one_file_held_as_floats_are_integers_again():
    found = readable(np.array([1.0, 7.0]), "float64", ("integers", "floats"), np.dtype("int64"))
    assert found.dtype == np.dtype("int64")
    kept = readable(np.array([1.0, 7.5]), "float64", ("integers", "floats"), np.dtype("int64"))
    assert kept.tolist() == [1.0, 7.5]


def test_a_shard_names_its_groups_in_the_order_of_their_codes():
    frame = pd.DataFrame({
        "region": ["s", "n", "n", "s", "s"],
        "county": [2, 1, 2, 1, 2],
        "y": [1.0, 2.0, 3.0, 4.0, 5.0],
    })  # fmt: skip
    columns = (
        Column("region", "region", "group", level=0),
        Column("county", "county", "group", level=1),
        Column("y", "y", "value"),
    )
    shard = to_shard(frame, Layout(("region", "county"), columns))
    (regions,), (outer, inner) = shard.labels
    assert regions.tolist() == ["n", "s"]
    assert list(zip(outer, inner.tolist(), strict=True)) == [("n", 1), ("n", 2), ("s", 1), ("s", 2)]
    rows = [
        (regions[r], inner[c], y)
        for r, c, y in zip(*(shard.arguments[n] for n in ("region", "county", "y")), strict=True)
    ]
    assert sorted(rows) == sorted(zip(frame.region, frame.county, frame.y, strict=True))
