from __future__ import annotations

from decimal import Decimal

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.assign import assign, shards
from dask_consensus.frame.survey import check, survey
from dask_consensus.frame.values import exact_numbers, missing
from dask_consensus.shard_data import Shard

LAYOUT = Layout((), (Column("y", "y", "value"),))


def pick(number: int, frames: list[pd.DataFrame]) -> pd.DataFrame:
    return frames[number]


def frame_of(*values: pd.Series, name: str = "y") -> dd.DataFrame:
    frames = [column.rename(name).to_frame().reset_index(drop=True) for column in values]
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(pick, range(len(frames)), frames=frames, meta=frames[0].iloc[:0])


def made(frame: dd.DataFrame, layout: Layout = LAYOUT, n_shards: int = 1) -> tuple[Shard, ...]:
    counted = survey(frame, layout).compute(scheduler="sync")
    check(counted, layout)
    assignment = assign(counted, frame, layout, n_shards=n_shards)
    return dask.compute(*shards(frame, layout, assignment), scheduler="sync")


def arrow(*values: float | None) -> pd.Series:
    """Floats of Arrow among which NaN is no null."""
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, pa.float64())))


NUMBERS = pd.Series([0, 1, 1, 0])
HELD = {
    **{
        dtype: NUMBERS.astype(dtype)
        for dtype in (
            *("int64", "int8", "uint64", "Int64", "int64[pyarrow]", "bool", "boolean"),
            *("bool[pyarrow]", "float64", "float32", "Float64", "double[pyarrow]", "category"),
        )
    },
    "objects": pd.Series([0, True, 1.0, False], dtype=object),
    "decimals": pd.Series(list(map(Decimal, NUMBERS)), dtype=object),
    "decimals of Arrow": pd.Series(
        list(map(Decimal, NUMBERS)), dtype=pd.ArrowDtype(pa.decimal128(9, 3))
    ),
}


@pytest.mark.parametrize("meta", ["int64", "bool", "float64", "Float64", "int64[pyarrow]"])
@pytest.mark.parametrize("other", HELD)
@pytest.mark.parametrize("n_shards", [1, 2])
def test_the_dtype_is_that_of_the_frame(meta, other, n_shards):
    found = made(frame_of(HELD[meta], HELD[other]), n_shards=n_shards)
    expected = {"int64": "int32", "int64[pyarrow]": "int32", "bool": "bool"}.get(meta, "float32")
    assert {str(shard.arguments["y"].dtype) for shard in found} == {expected}
    assert sorted(np.concatenate([shard.arguments["y"] for shard in found])) == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("meta", "other", "message"),
    [
        (
            "int64",
            pd.Series([0.5, 1.0]),
            r"dtype float64 where int32 is expected.*\(1, the first in ",
        ),
        (
            "bool",
            pd.Series([2, 1, 0]),
            r"dtype int64 where bool is expected.*\(1, the first in part",
        ),
        ("float64", pd.Series(["1", "2"], dtype="str"), r"dtype str where float32 is expected"),
        (
            "float64",
            pd.Series(["a", "b"], dtype="category"),
            "dtype category where float32 is expected",
        ),
        (
            "int64",
            pd.Series(pd.to_datetime(["2020-01-01"])),
            r"dtype datetime64.* where int32 is expected",
        ),
        ("int64", pd.Series([1, "x"], dtype=object), "dtype object where int32 is expected"),
        ("float64", pd.Series([1j]), "dtype complex128 where float32 is expected"),
        ("int64", pd.Series([2.0**40]), "integers too large for 32 bits"),
        ("int64", pd.Series([np.inf]), "infinite"),
        ("int64", pd.Series([1.0, np.nan]), "missing values"),
    ],
)
def test_values_that_do_not_fit_are_counted_and_named(meta, other, message):
    with pytest.raises(ValueError, match=rf"argument 'y' \(column 'y'\): .*{message}"):
        made(frame_of(HELD[meta], other))


def test_the_remedy_for_values_that_do_not_fit():
    frame = frame_of(HELD["int64"], pd.Series([0.5, 1.0]))
    (shard,) = made(frame.astype({"y": "float64"}))
    assert sorted(shard.arguments["y"]) == [0, 0, 0.5, 1, 1, 1]


@pytest.mark.parametrize("empty", ["object", "str", "float64", "datetime64[ns]", "category"])
def test_partitions_without_rows_may_be_of_any_dtype(empty):
    (shard,) = made(frame_of(HELD["int64"], pd.Series([], dtype=empty)))
    assert shard.arguments["y"].dtype == np.int32


NOT_NULL = {
    "Arrow": arrow(1.0, np.nan),
    "Arrow, and null": arrow(1.0, None, np.nan),
    "nullable": pd.Series(
        pd.arrays.FloatingArray(np.array([1.0, np.nan]), np.array([False, False]))
    ),
    "float32 of Arrow": pd.Series(
        pd.arrays.ArrowExtensionArray(pa.array([1.0, np.nan], pa.float32()))
    ),
    "category": pd.Series(pd.Categorical.from_codes([0, 1], arrow(1.0, np.nan))),
}


@pytest.mark.parametrize("values", NOT_NULL.values(), ids=NOT_NULL)
def test_nan_that_is_not_null(values):
    null, nan = missing(values)
    assert (null | nan).sum() == values.isna().sum() + nan.sum() >= 1
    by = Layout(("g",), (Column("g", "g", "group", level=0),))
    for layout, name in ((LAYOUT, "y"), (by, "g")):
        frame = frame_of(pd.Series([1.0, 2.0]), values, name=name)
        with pytest.raises(
            ValueError, match=rf"'{name}'\)?: (missing values|NaN that is not null)"
        ):
            made(frame, layout)
        with pytest.raises(ValueError, match=rf"'{name}'\)?: NaN that is not null|missing"):
            made(frame.dropna(subset=[name]), layout)
        clean = frame[frame[name] == frame[name]].dropna()
        if not isinstance(values.dtype, pd.CategoricalDtype):  # the remedy of the message
            assert made(clean, layout)[0].rows == 3


@pytest.mark.parametrize(
    "key",
    [
        pd.Series([1, None, 2], dtype=object),
        pd.Series([Decimal("NaN"), Decimal(1)], dtype=object),
        pd.Series(["a", float("nan")], dtype=object),
        pd.Series([pd.NaT, pd.Timestamp("2020")], dtype=object),
        pd.Series([pd.NA, 1], dtype="Int64"),
        pd.Series([None, "a"], dtype="string[pyarrow]"),
        pd.to_datetime(pd.Series(["2020-01-01", None])).astype("timestamp[us][pyarrow]"),
    ],
)
def test_missing_keys_of_every_kind(key):
    layout = Layout(("g",), (Column("g", "g", "group", level=0),))
    with pytest.raises(ValueError, match="key 'g': missing values"):
        made(frame_of(key, name="g"), layout)
    frame = frame_of(key, name="g").dropna(subset=["g"])
    assert made(frame, layout)[0].rows == key.notna().sum()


@pytest.mark.parametrize("values", HELD.values(), ids=HELD)
def test_exact_numbers_are_those_of_the_column(values):
    np.testing.assert_array_equal(exact_numbers(values), NUMBERS)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, 2, 3]),
        pd.Series([1.0, 2.0, 3.0]),
        pd.Series([1, 2, 3], dtype="Int8"),
        pd.Series([1, 2, 3], dtype=object),
        pd.Series([3, 2, 1], dtype="category").iloc[::-1],
    ],
)
def test_categories_are_found_whatever_holds_the_values(values):
    layout = Layout((), (Column("y", "y", "category", categories=(1, 2, 3)),))
    first = pd.Series([1, 2, 3], dtype="category")
    (shard,) = made(frame_of(first, values), layout)
    assert sorted(shard.arguments["y"]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("values", [["1", "2"], [pd.Timestamp("2020")], [1.5], [4]])
def test_values_of_another_kind_are_no_category(values):
    layout = Layout((), (Column("y", "y", "category", categories=(1, 2, 3)),))
    first = pd.Series([1, 2, 3], dtype="category")
    with pytest.raises(ValueError, match="not among the known categories"):
        made(frame_of(first, pd.Series(values)), layout)
