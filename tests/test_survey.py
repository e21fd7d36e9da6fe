from __future__ import annotations

from collections.abc import Sequence

import dask
import dask.dataframe as dd
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.survey import (
    HEAVIEST,
    SKETCH,
    Survey,
    check,
    hash_key,
    merge,
    survey,
    survey_partition,
    used,
)

LAYOUT = Layout(
    ("patient",), (Column("patient", "patient", "group", level=0), Column("y", "y", "value"))
)


def frame_of(patients: Sequence) -> pd.DataFrame:
    return pd.DataFrame({"patient": patients, "y": np.arange(len(patients), dtype=float)})


def assert_same(one: Survey, other: Survey) -> None:
    for name in set(Survey._fields) - {"found", "contents", "sample"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.found == other.found
    assert one.contents.checksums == other.contents.checksums
    # Sums of floats depend on the order of summation in their last digits.
    np.testing.assert_allclose(one.contents.sums, other.contents.sums, rtol=1e-12)
    for left, right in zip(one.sample, other.sample, strict=True):
        np.testing.assert_array_equal(left, right)


def refuse(*args, **kwargs):
    raise AssertionError("computed too early")


def integers_of(patients: list[int]) -> pd.DataFrame:
    return frame_of(np.array(patients, dtype=np.int64))


partitions = st.lists(
    st.lists(st.integers(0, 60), max_size=40).map(integers_of), min_size=1, max_size=6
)


@given(partitions, st.integers(2, 70), st.data())
def test_merging_is_associative(frames, limit, data):
    """Any tree of merges gives the survey that merging all at once gives."""
    parts = [survey_partition(frame, LAYOUT, limit) for frame in frames]
    flat = merge(parts, limit)
    while len(parts) > 1:
        start = data.draw(st.integers(0, len(parts) - 2))
        stop = data.draw(st.integers(start + 2, len(parts)))
        parts[start:stop] = [merge(parts[start:stop], limit)]
    # The limit on the heaviest groups makes their rows depend on the tree; it is not reached here
    # with fewer groups.
    few = len(flat.heaviest) < HEAVIEST
    nothing = {} if few else {"heaviest": ()}
    assert_same(parts[0]._replace(**nothing), flat._replace(**nothing))


@given(partitions, st.integers(2, 70))
def test_merging_equals_one_survey_of_all_rows(frames, limit):
    merged = merge([survey_partition(frame, LAYOUT, limit) for frame in frames], limit)
    whole = survey_partition(pd.concat(frames), LAYOUT, limit)
    for name in ("buckets", "bucket_rows", "shift", "sketch"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name), err_msg=name)
    assert merged.rows == whole.rows
    assert merged.partition_rows.tolist() == [len(frame) for frame in frames]
    assert merged.partition_groups.tolist() == [frame["patient"].nunique() for frame in frames]


@given(partitions, st.integers(2, 70))
def test_merging_is_commutative_but_for_the_order_of_partitions(frames, limit):
    parts = [survey_partition(frame, LAYOUT, limit) for frame in frames]
    one, other = merge(parts, limit), merge(parts[::-1], limit)
    for name in ("buckets", "bucket_rows", "shift", "sketch", "defects"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.partition_rows.tolist() == other.partition_rows.tolist()[::-1]


@given(partitions, st.integers(2, 70))
def test_buckets_count_the_rows_of_a_group_by(frames, limit):
    merged = merge([survey_partition(frame, LAYOUT, limit) for frame in frames], limit)
    rows = pd.concat(frames)
    expected = rows.groupby(hash_key(rows["patient"]) >> merged.shift).size()
    np.testing.assert_array_equal(merged.buckets, expected.index.to_numpy())
    np.testing.assert_array_equal(merged.bucket_rows, expected.to_numpy())
    assert len(merged.buckets) <= limit
    assert merged.groups_exact == (rows["patient"].nunique() <= limit)
    if merged.groups_exact:
        assert merged.n_groups == rows["patient"].nunique()
    if len(merged.heaviest) < HEAVIEST:
        assert merged.largest[1] == rows["patient"].value_counts().to_numpy().max(initial=0)


def test_many_groups_are_estimated_within_a_bounded_size():
    groups, limit = 60_000, 4096
    parts = [
        survey_partition(frame_of(part), LAYOUT, limit)
        for part in np.array_split(np.random.default_rng(0).permutation(groups), 3)
    ]
    merged = merge(parts, limit)
    assert not merged.groups_exact
    assert limit / 2 <= len(merged.buckets) <= limit
    assert len(merged.sketch) == SKETCH
    assert len(merged.heaviest) <= HEAVIEST
    # The relative error has a standard deviation of 1/sqrt(SKETCH): four of them.
    assert abs(merged.n_groups / groups - 1) < 4 / np.sqrt(SKETCH)


def test_largest_group_is_named_among_many():
    patients = np.random.default_rng(1).permutation([*range(5000), *[4321] * 30])
    parts = [survey_partition(frame_of(p), LAYOUT, 1024) for p in np.array_split(patients, 4)]
    merged = merge(parts, 1024)
    assert not merged.groups_exact
    assert merged.largest == ("4321", 31)


def test_rows_of_the_largest_group_are_exact_where_groups_are():
    # In its first partition group 39 is not among the heaviest.
    parts = [frame_of(np.repeat(np.arange(40), [2] * 39 + [1])), frame_of([39] * 10)]
    merged = merge([survey_partition(part, LAYOUT) for part in parts])
    assert merged.heaviest[0].rows == 10
    assert merged.largest == ("39", 11)


def test_largest_of_no_groups():
    assert survey_partition(frame_of([]), LAYOUT).largest == ("", 0)


@pytest.mark.parametrize(
    "key",
    [
        pd.Series(["b", "a"], dtype=object),
        pd.Series(["b", "a"], dtype="string[pyarrow]"),
        pd.Series(["b", "a"], dtype="category"),
        pd.Series(["b", "a"], dtype=pd.CategoricalDtype(["unused", "b", "a"])),
    ],
)
def test_equal_keys_hash_alike_in_every_partition(key):
    np.testing.assert_array_equal(hash_key(key), hash_key(pd.Series(["b", "a"], dtype="str")))


@pytest.mark.parametrize("dtype", ["int8", "int32", "Int16", "int64[pyarrow]", "category"])
def test_equal_integers_hash_alike_in_every_partition(dtype):
    key = pd.Series([-1, 7])
    np.testing.assert_array_equal(hash_key(key.astype(dtype)), hash_key(key))


def test_zeros_of_both_signs_are_one_group():
    assert survey_partition(frame_of([0.0, -0.0]), LAYOUT).n_groups == 1


@pytest.mark.parametrize("split_every", [2, 3, 8, 100])
def test_survey_of_a_dask_frame(split_every):
    frame = frame_of(np.random.default_rng(2).integers(0, HEAVIEST, 500))
    ddf = dd.from_pandas(frame, npartitions=7)
    computed = survey(ddf, LAYOUT, split_every=split_every).compute(scheduler="synchronous")
    parts = dask.compute(*ddf.partitions, scheduler="synchronous")
    layout = LAYOUT.typed(ddf._meta)
    assert_same(computed, merge([survey_partition(part, layout) for part in parts]))
    assert computed.rows == 500
    assert computed.n_groups == frame["patient"].nunique()


def test_nothing_runs_before_it_is_asked_for():
    ddf = dd.from_map(refuse, range(3), meta=frame_of([1]))
    with dask.config.set(scheduler=refuse):
        lazy = survey(ddf, LAYOUT)
        assert lazy.key == survey(ddf, LAYOUT).key
        with pytest.raises(AssertionError, match="too early"):
            lazy.compute()


def test_unusable_dtype_is_told_before_anything_runs():
    ddf = dd.from_map(refuse, range(3), meta=frame_of([1]).astype({"y": "str"}))
    with pytest.raises(TypeError, match="column 'y' has dtype str"):
        survey(ddf, LAYOUT)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split_every": 1}, "at least 2, got 1"), ({"buckets": 100}, "at least 1024, got 100")],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        survey(dd.from_pandas(frame_of([1])), LAYOUT, **options)


def test_used_columns_may_be_the_index():
    frame = frame_of([3, 1, 2]).assign(unused=0).set_index("patient")
    rows = used(dd.from_pandas(frame, npartitions=2), LAYOUT)
    assert rows.columns.tolist() == ["patient", "y"]
    assert rows.compute()["patient"].tolist() == [1, 2, 3]


def test_missing_column_is_named():
    with pytest.raises(ValueError, match=r"no column \['patient'\] in the frame; it has \['y'\]"):
        used(dd.from_pandas(frame_of([1])[["y"]]), LAYOUT)


def test_check_passes_a_clean_frame():
    check(survey_partition(frame_of([1, 2]), LAYOUT), LAYOUT)


def test_check_names_an_empty_frame():
    with pytest.raises(ValueError, match="the frame has no rows"):
        check(survey_partition(frame_of([]), LAYOUT), LAYOUT)


def test_check_names_every_defect_and_its_first_partition():
    frames = [frame_of([1.0, 2.0]), frame_of([1.0, None]), frame_of([None, 2.0]), frame_of([1.0])]
    frames[2].loc[0, "y"] = np.inf
    frames[3].loc[0, "y"] = np.nan
    parts = [survey_partition(frame, LAYOUT) for frame in frames]
    merged = merge([merge(parts[:2]), merge(parts[2:])])
    with pytest.raises(ValueError, match="cannot use") as error:
        check(merged, LAYOUT)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "key 'patient': missing" in lines[1]
    assert "(2, the first in partition 1)" in lines[1]
    assert "argument 'y' (column 'y'): missing" in lines[2]
    assert "(1, the first in partition 3)" in lines[2]
    assert "infinite" in lines[3]
    assert "(1, the first in partition 2)" in lines[3]
