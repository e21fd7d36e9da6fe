from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from dask_consensus.frame.arrays import Column, Layout, encode, row_order, to_shard
from dask_consensus.shard_data import Shard, Size, pad, size_of

VISITS = Layout(
    by=("region", "county"),
    columns=(
        Column("region", "region", "group", level=0),
        Column("county", "county", "group", level=1),
        Column("sex", "sex", "category", categories=("male", "female")),
        Column("y", "y", "value"),
    ),
)


@st.composite
def visits(draw: st.DrawFn) -> pd.DataFrame:
    """Rows with ties in every column, zeros of both signs and counties named alike."""
    rows = draw(st.integers(1, 30))

    def column(values: list) -> list:
        return draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows))

    return pd.DataFrame(
        {
            "region": column(["north", "south", "Ost", ""]),
            "county": column([-3, 10, 2]),
            "sex": pd.Categorical(column(["female", "male"])),
            "y": column([0.0, -0.0, 0.1, -7.5, 1e30]),
        }
    )


def assert_same_shard(one: Shard, other: Shard) -> None:
    plain: dict[str, Any] = {"arguments": {}, "labels": ()}
    assert one._replace(**plain) == other._replace(**plain)
    assert repr(one.labels) == repr(other.labels)
    assert list(one.arguments) == list(other.arguments)
    for name, values in one.arguments.items():
        assert values.dtype == other.arguments[name].dtype
        # Bytes, since -0.0 == 0.0.
        assert values.tobytes() == other.arguments[name].tobytes(), name


@given(visits(), st.randoms(use_true_random=False))
def test_shard_does_not_depend_on_the_order_of_rows(frame, random):
    order = random.sample(range(len(frame)), len(frame))
    assert_same_shard(to_shard(frame, VISITS), to_shard(frame.iloc[order], VISITS))


@given(visits())
def test_codes_are_those_of_a_group_by(frame):
    shard = to_shard(frame, VISITS)
    for level, name in enumerate(VISITS.by):
        keys = list(VISITS.by[: level + 1])
        expected = frame.groupby(keys, sort=True).ngroup()
        np.testing.assert_array_equal(shard.arguments[name], np.sort(expected))
        assert shard.groups[level] == expected.nunique()
    # Row by row: each row keeps its own key and its own values.
    merged = pd.DataFrame(shard.arguments).astype("float64")
    whole = frame.assign(
        region=frame.groupby("region").ngroup(),
        county=frame.groupby(["region", "county"]).ngroup(),
        sex=frame["sex"].map({"male": 0, "female": 1}),
    ).astype("float64")
    whole["y"] = whole["y"].astype("float32").astype("float64")
    columns = list(merged)
    pd.testing.assert_frame_equal(
        merged.sort_values(columns, ignore_index=True),
        whole[columns].sort_values(columns, ignore_index=True),
    )


def test_inner_codes_tell_counties_of_two_regions_apart():
    frame = pd.DataFrame(
        {
            "region": ["b", "a", "a", "b"],
            "county": [1, 1, 2, 1],
            "sex": "male",
            "y": [4.0, 1.0, 2.0, 3.0],
        }
    )
    shard = to_shard(frame, VISITS)
    assert shard.arguments["region"].tolist() == [0, 0, 1, 1]
    assert shard.arguments["county"].tolist() == [0, 1, 2, 2]
    assert shard.arguments["y"].tolist() == [1, 2, 3, 4]
    assert shard.groups == (2, 3)
    assert shard.levels == {"region": 0, "county": 1}


DAYS = pd.Series(pd.to_datetime(["2020-03-01", "2020-01-01", "2020-02-01", "2020-01-01"]))
NAMES = pd.Series(["c", "a", "b", "a"], dtype="str")
NUMBERS = pd.Series([3, -1, 2, -1])


@pytest.mark.parametrize(
    "key",
    [
        NAMES,
        NAMES.astype(object),
        NAMES.astype("string[pyarrow]"),
        NAMES.astype("category"),
        NAMES.astype(pd.CategoricalDtype(["c", "b", "unused", "a"], ordered=True)),
        NUMBERS,
        NUMBERS.astype("int8"),
        NUMBERS.astype("Int64"),
        NUMBERS.astype("int64[pyarrow]"),
        NUMBERS / 3,
        NUMBERS.astype("category"),
        DAYS,
        DAYS.dt.tz_localize("UTC"),
        DAYS.dt.date,
        DAYS.astype("category"),
        DAYS.dt.to_period("M"),
    ],
    ids=lambda key: str(key.dtype),
)
def test_keys_sort_by_value_whatever_their_dtype(key):
    layout = Layout(("k",), (Column("k", "k", "group", level=0), Column("y", "y", "value")))
    shard = to_shard(pd.DataFrame({"k": key, "y": [4.0, 2.0, 3.0, 1.0]}), layout)
    assert shard.arguments["k"].tolist() == [0, 0, 1, 2]
    assert shard.arguments["y"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("dtype", "narrow", "wide"),
    [
        ("bool", "bool", "bool"),
        ("boolean", "bool", "bool"),
        ("bool[pyarrow]", "bool", "bool"),
        ("int8", "int32", "int64"),
        ("uint64", "int32", "int64"),
        ("Int64", "int32", "int64"),
        ("int64[pyarrow]", "int32", "int64"),
        ("float16", "float32", "float64"),
        ("float64", "float32", "float64"),
        ("Float64", "float32", "float64"),
        ("double[pyarrow]", "float32", "float64"),
    ],
)
def test_values_take_the_dtype_of_the_model(dtype, narrow, wide):
    frame = pd.DataFrame({"y": pd.Series([1, 0, 1]).astype(dtype)})
    for x64, expected in ((False, narrow), (True, wide)):
        y = to_shard(frame, Layout((), (Column("y", "y", "value"),), x64)).arguments["y"]
        assert y.dtype == expected
        assert y.tolist() == [0, 1, 1]


def test_codes_are_wide_where_numbers_are():
    frame = pd.DataFrame({"region": [1], "county": [2], "sex": ["female"], "y": [0.5]})
    for x64, expected in ((False, np.int32), (True, np.int64)):
        arguments = to_shard(frame, VISITS._replace(x64=x64)).arguments
        assert {arguments[name].dtype for name in ("region", "county", "sex")} == {
            np.dtype(expected)
        }


@pytest.mark.parametrize(
    "sex",
    [
        pd.Categorical(["female", "male"]),
        pd.Categorical(["female", "male"], categories=["male", "female"]),
        pd.Categorical(["female", "male"], categories=["other", "male", "female"]),
        np.array(["female", "male"], dtype=object),
    ],
)
def test_categories_are_coded_alike_whatever_a_partition_carries(sex):
    frame = pd.DataFrame({"region": [1, 2], "county": 1, "sex": sex, "y": [1.0, 2.0]})
    assert to_shard(frame, VISITS).arguments["sex"].tolist() == [1, 0]


def test_missing_category_has_a_code_of_no_category():
    frame = pd.DataFrame({"sex": pd.Categorical([None, "male"])})
    layout = Layout((), (Column("sex", "sex", "category", categories=("male",)),))
    assert encode(frame, layout)["sex"].tolist() == [-1, 0]


@pytest.mark.parametrize(
    "values",
    [NAMES, NAMES.astype("category"), DAYS, pd.Series([1j] * 4), pd.Series([True] * 4, dtype="O")],
    ids=lambda values: str(values.dtype),
)
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(TypeError, match=r"column 'y' has dtype .* a model takes numbers"):
        to_shard(pd.DataFrame({"y": values}), Layout((), (Column("y", "y", "value"),)))


def test_columns_may_have_any_label_and_feed_two_arguments():
    frame = pd.DataFrame({0: [2, 1], ("a", "b"): [0.5, 0.25]})
    layout = Layout(
        (0,),
        (
            Column("who", 0, "group", level=0),
            Column("dose", 0, "value"),
            Column("y", ("a", "b"), "value"),
        ),
    )
    arguments = to_shard(frame, layout).arguments
    assert {name: values.tolist() for name, values in arguments.items()} == {
        "who": [0, 1],
        "dose": [1, 2],
        "y": [0.25, 0.5],
    }


def test_without_keys_rows_sort_by_value():
    shard = to_shard(pd.DataFrame({"y": [2.0, 1.0]}), Layout((), (Column("y", "y", "value"),)))
    assert shard.arguments["y"].tolist() == [1, 2]
    assert (shard.rows, shard.groups) == (2, ())


@given(visits(), st.integers(0, 5), st.integers(1, 3))
def test_padding_changes_no_sum_over_a_real_group(frame, more_rows, more_groups):
    shard = to_shard(frame, VISITS)
    groups = tuple(n + more_groups for n in shard.groups)
    padded = pad(shard, Size(shard.rows + more_rows, groups))

    assert padded.rows.sum() == shard.rows
    for level, name in enumerate(VISITS.by):
        assert padded.groups[level].sum() == shard.groups[level]
        assert padded.groups[level].shape == (groups[level],)
        codes = padded.arguments[name]
        np.testing.assert_array_equal(
            np.bincount(codes, padded.arguments["y"])[: shard.groups[level]],
            np.bincount(shard.arguments[name], shard.arguments["y"]),
        )
        # Padding rows lie in padding groups, one in each as far as they go.
        assert (codes[~padded.rows] >= shard.groups[level]).all()
        assert len(set(codes[~padded.rows])) == min(more_rows, more_groups)
    for name, values in shard.arguments.items():
        extended = padded.arguments[name]
        assert extended.dtype == values.dtype
        np.testing.assert_array_equal(extended[padded.rows], values)
        if name not in shard.levels:
            assert (extended[~padded.rows] == values[-1]).all()


def test_no_padding_where_sizes_are_equal():
    frame = pd.DataFrame({"region": ["a", "b"], "county": 1, "sex": "male", "y": [1.0, 2.0]})
    shard = to_shard(frame, VISITS)
    padded = pad(shard, size_of(shard))
    assert padded.rows.all()
    assert all(mask.all() for mask in padded.groups)
    assert_same_shard(shard, shard._replace(arguments=padded.arguments))


@pytest.mark.parametrize(
    ("rows", "groups", "message"),
    [
        (1, (2, 2), "does not fit"),
        (2, (1, 2), "does not fit"),
        (3, (2, 3), "padding group at every level"),
        (3, (3, 2), "padding group at every level"),
        (3, (3,), "expected 2 numbers of groups, got 1"),
    ],
)
def test_padding_without_room_is_refused(rows, groups, message):
    frame = pd.DataFrame({"region": ["a", "b"], "county": 1, "sex": "male", "y": [1.0, 2.0]})
    with pytest.raises(ValueError, match=message):
        pad(to_shard(frame, VISITS), Size(rows, groups))


def test_shard_without_rows_has_nothing_to_repeat():
    frame = pd.DataFrame({"region": [], "county": [], "sex": [], "y": []})
    shard = to_shard(frame, VISITS)
    assert (shard.rows, shard.groups) == (0, (0, 0))
    with pytest.raises(ValueError, match="without rows"):
        pad(shard, Size(1, (1, 1)))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u8", "?"])
@pytest.mark.parametrize("ranks", [1, 300, 2**40])
def test_the_order_of_rows_is_that_of_one_column_after_another(ranks, dtype):
    rng = np.random.default_rng(0)
    values = rng.choice([-2.5, -1e-30, -0.0, 0.0, 1.0, 3e9], 500)
    extreme = rng.choice([np.iinfo(np.int64).min, -1, 0, np.iinfo(np.int64).max], 500)
    columns = [
        rng.integers(0, ranks, 500),
        values.astype(dtype) if dtype in ("f4", "f8", "?") else extreme.astype(dtype),
        rng.normal(size=500).round(1).astype("f4"),
        rng.normal(size=500),
    ]
    for n in range(len(columns) + 1):
        ordered = [column[row_order(columns[:n], 500)] for column in columns[:n]]
        expected = [column[np.lexsort(columns[:n][::-1])] for column in columns[:n]]
        for a, b in zip(ordered, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(row_order([np.empty(0)], 0)) == 0


def test_a_matrix_is_made_of_columns_or_of_lists():
    """In the order of `columns`, whatever the order of rows."""
    frame = pd.DataFrame({"g": list("babab"), "one": np.arange(5.0), "two": [5, 4, 3, 2, 1]})
    frame["both"] = [np.array(pair, float) for pair in zip(frame["two"], frame["one"], strict=True)]
    key = Column("g", "g", "group", level=0)
    columns = [Column("X", name, "value", entry=i) for i, name in enumerate(["two", "one"])]
    lists = [Column("X", "both", "value", dtype="float32", entry=i, item=i) for i in range(2)]
    by_columns = to_shard(frame, Layout(("g",), (key, *columns)).typed(frame))
    by_lists = to_shard(frame.iloc[::-1], Layout(("g",), (key, *lists)).typed(frame))
    expected = np.array([[2, 3], [4, 1], [1, 4], [3, 2], [5, 0]], np.float32)
    np.testing.assert_array_equal(by_columns.arguments["X"], expected)
    np.testing.assert_array_equal(by_lists.arguments["X"], expected)
    assert by_lists.arguments["X"].dtype == by_columns.arguments["X"].dtype == np.float32
    assert by_lists.contents == by_columns.contents
    padded = pad(by_lists, Size(8, (4,))).arguments["X"]
    np.testing.assert_array_equal(padded, np.concatenate([expected, expected[[-1] * 3]]))
