from __future__ import annotations

import itertools
import warnings

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from dask_consensus.frame.arrays import Column, Layout, collate, encode
from dask_consensus.frame.assign import assign, shards
from dask_consensus.frame.survey import check, hash_key, merge, survey, survey_partition
from dask_consensus.frame.unchanged import unchanged
from dask_consensus.shard_data import Shard, summary_of

from .strategies import KEYS, key_partitions

LAYOUT = Layout(("g",), (Column("g", "g", "group", level=0), Column("y", "y", "value")))


def pick(number: int, frames: list[pd.DataFrame]) -> pd.DataFrame:
    return frames[number]


def frames_of(keys: list[pd.Series]) -> list[pd.DataFrame]:
    """A partition for each, whose other column numbers the rows."""
    start = np.cumsum([0, *map(len, keys)])
    return [
        pd.DataFrame({"g": key.reset_index(drop=True), "y": start[i] + np.arange(float(len(key)))})
        for i, key in enumerate(keys)
    ]


def frame_of(keys: list[pd.Series], meta: int = 0) -> dd.DataFrame:
    frames = frames_of(keys)
    # Dask would else make text of objects before anything else sees them.
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(pick, range(len(frames)), frames=frames, meta=frames[meta].iloc[:0])


def sharded(frame: dd.DataFrame, n_shards: int = 1, layout: Layout = LAYOUT) -> tuple[Shard, ...]:
    counted = survey(frame, layout).compute(scheduler="sync")
    check(counted, layout)
    n_shards = min(n_shards, counted.n_groups)
    assignment = assign(counted, frame, layout, n_shards=n_shards)
    made = dask.compute(*shards(frame, layout, assignment), scheduler="sync")
    unchanged(counted, layout)([summary_of(shard) for shard in made])
    return made


def groups_of(made: tuple[Shard, ...]) -> set[frozenset[int]]:
    """The rows of each group, by their numbers."""
    rows = pd.DataFrame(
        [
            (number, code, int(y))
            for number, shard in enumerate(made)
            for code, y in zip(shard.arguments["g"], shard.arguments["y"], strict=True)
        ],
        columns=["shard", "g", "y"],
    )
    return {frozenset(part["y"]) for _, part in rows.groupby(["shard", "g"])}


def groups_of_pandas(keys: list[pd.Series]) -> set[frozenset[int]]:
    """What pandas makes of all partitions in one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            whole = pd.concat(keys, ignore_index=True)
        except pd.errors.OutOfBoundsDatetime:  # nanoseconds for all
            whole = pd.concat([key.astype(object) for key in keys], ignore_index=True)
    if pd.api.types.is_float_dtype(whole.dtype):
        whole = whole + 0.0  # pandas keeps zeros of both signs apart in columns of Arrow
    numbers = pd.Series(np.arange(len(whole)))
    # Sorting is not asked for: keys of several types have no order.
    return {frozenset(part) for _, part in numbers.groupby(whole, sort=False, observed=True)}


def assert_groups_of_pandas(keys: list[pd.Series], meta: int = 0) -> bool:
    """Check the groups of keys in several partitions; True where they are refused instead.

    It goes without a scheduler, as a thousand pairs are tried.
    """
    frames = frames_of(keys)
    layout = LAYOUT.typed(frames[meta])
    counted = merge([survey_partition(frame, layout) for frame in frames])
    try:
        check(counted, layout)
    except ValueError as error:
        if "key 'g'" not in str(error):
            raise
        return True
    layout = layout._replace(forms=counted.forms(layout))
    encoded = [encode(frame, layout) for frame in frames]
    assert len({str(part.dtypes.to_dict()) for part in encoded}) == 1
    shard = collate(pd.concat(encoded, ignore_index=True), layout)
    assert groups_of((shard,)) == groups_of_pandas(keys)
    assert counted.n_groups == shard.groups[0]
    unchanged(counted, layout)([summary_of(shard)])
    return False


@given(key_partitions())
@settings(max_examples=100)
def test_groups_are_those_of_pandas_or_refused(keys):
    if sum(map(len, keys)):
        assert_groups_of_pandas(keys)


@pytest.mark.parametrize("one", sorted(KEYS))
def test_every_pair_of_dtypes(one):
    ways = sorted(KEYS)
    for i, other in enumerate(ways[ways.index(one) :]):
        keys = [KEYS[way]([0, 1, 2, 2, 5]) for way in (one, other)]
        refused = assert_groups_of_pandas(keys, meta=i % 2)
        assert not (refused and one == other) or one in ("pairs", "numbers and text")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *itertools.combinations(
            ["int64", "int8", "Int64", "int64[pyarrow]", "uint64", "float64", "float32", "Float64"],
            2,
        ),
        *itertools.product(["object", "category", "numbers of Python"], ["int64", "float64"]),
        *itertools.combinations(["str", "string[pyarrow]", "categories of text"], 2),
        *itertools.combinations(
            ["times in s", "times in ns", "times of Arrow", "times of Python"], 2
        ),
        ("times in UTC", "times in Tokyo"),
        ("dates", "dates of Arrow"),
        ("durations in s", "durations of Arrow"),
        ("decimals", "decimals of Arrow"),
        ("intervals", "intervals of floats"),
    ],
)
def test_equal_keys_are_one_group_whatever_holds_them(one, other):
    keys = [KEYS[way]([1, 2, 3, 3]) for way in (one, other)]
    assert len(groups_of(sharded(frame_of(keys), n_shards=2))) == 3
    np.testing.assert_array_equal(*map(hash_key, keys))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("int64", "str", r"integers \(int64, first in partition 0\) and text \(str, first in part"),
        ("times in ns", "times in UTC", "mixed kinds of key"),
        ("large", "float64", r"integers beyond 2\*\*53 .* read the column as one dtype"),
        ("int64", "large floats", r"as floats they may be rounded"),
        ("times with nanoseconds", "times long ago", "no unit holds both"),
        ("pairs", "pairs", "values of type tuple .* write them as text"),
        ("months", "days", "mixed kinds of key"),
        ("int64", "decimals", "mixed kinds of key"),
    ],
)
def test_keys_that_no_form_holds_are_named(one, other, message):
    keys = [KEYS[way]([1, 2]) for way in (one, other)]
    with pytest.raises(ValueError, match=message):
        sharded(frame_of(keys))


def test_large_integers_stay_apart():
    (shard,) = sharded(frame_of([KEYS["large"]([0, 1, 2]), KEYS["large"]([1, 2, 3])]))
    assert shard.groups == (4,)


def test_partitions_without_rows_have_no_kind():
    keys = [KEYS["large"]([1, 2]), *(KEYS[way]([]) for way in ("float64", "str", "times in s"))]
    for meta in range(4):
        assert sharded(frame_of(keys, meta))[0].groups == (2,)


def test_inner_keys_too():
    keys = [KEYS["int64"]([1, 2, 3]), KEYS["float64"]([1, 2, 3])]
    frame = frame_of(keys).assign(top=1)
    layout = Layout(("top", "g"), (Column("g", "g", "group", level=1), Column("y", "y", "value")))
    assert sharded(frame, layout=layout)[0].groups == (1, 3)
    mixed = frame_of([keys[0], KEYS["str"]([1])]).assign(top=1)
    with pytest.raises(ValueError, match=r"key 'g'.*mixed kinds"):
        sharded(mixed, layout=layout)


def test_integers_of_a_file_with_missing_keys(tmp_path):
    """What our own remedy for missing keys makes of two files."""
    (tmp_path / "0.csv").write_text("g,y\n1,0\n2,1\n3,2\n")
    (tmp_path / "1.csv").write_text("g,y\n1,3\n,9\n2,4\n3,5\n")
    files = [str(tmp_path / name) for name in ("0.csv", "1.csv")]
    frame = dd.from_map(pd.read_csv, files).dropna(subset=["g"])
    assert len(groups_of(sharded(frame.astype({"y": "float64"}), n_shards=3))) == 3
