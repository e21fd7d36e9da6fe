"""Values written as Parquet, and read without being trusted."""

import json
import pickle
from typing import NamedTuple

import hypothesis.extra.numpy as arrays
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_consensus.cluster import records
from dask_consensus.cluster.records import (
    UnreadableError,
    UnrecordableError,
    decoded,
    digest,
    encoded,
)
from dask_consensus.combination.gaussian import GaussianFactor
from dask_consensus.combination.reports import Anchor, Round
from dask_consensus.shard_data import Size

NUMBERS = arrays.arrays(
    st.sampled_from(
        ["f8", "f4", "i8", "i4", "u8", "u4", "i2", "bool", "c16", "M8[s]", ">f8", "S3", "U4"]
    ),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=4)
    | NUMBERS
    | st.floats(width=32).map(np.float32),
    lambda values: (
        st.lists(values, max_size=3)
        | st.lists(values, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), values, max_size=3)
        | st.builds(Size, values, values)
        | st.builds(Anchor, values, values, values)
    ),
    max_leaves=8,
)


def assert_same(one, other):
    """Types, and every bit: NaN is no other NaN, and minus zero no zero."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray | np.generic):
        assert one.dtype == other.dtype
        assert one.dtype.byteorder == other.dtype.byteorder
        assert np.shape(one) == np.shape(other)
        if one.dtype == object:
            assert one.tolist() == other.tolist()
        else:
            assert one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, float):
        assert np.float64(one).tobytes() == np.float64(other).tobytes() or one != one
    else:
        assert one == other


@given(VALUES)
def test_what_was_written_is_read_again(value):
    assert_same(decoded("a", encoded("a", value)), value)


def test_arrays_lie_in_memory_as_they_did():
    """The last bits of a product depend on it."""
    value = np.arange(6.0).reshape(2, 3)
    for order in (value, value.T, np.asfortranarray(value)):
        read = decoded("a", encoded("a", order))
        assert_same(read, order)
        assert read.flags.f_contiguous == order.flags.f_contiguous
        assert read.flags.writeable
        assert read.flags.aligned


def test_texts_of_any_length_are_kept():
    value = np.array(["", "é" * 1000, "\0", None, "../x"], object).reshape(5, 1)
    assert_same(decoded("a", encoded("a", value)), value)


class Stranger(NamedTuple):
    x: int


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, np.array([object()]), np.array([{}], object), {1: open}, type],
    ids=["object", "function", "objects", "dicts", "builtin", "class"],
)  # fmt: skip
def test_what_would_need_a_pickle_is_not_written(value):
    with pytest.raises(UnrecordableError, match="cannot hold"):
        encoded("a", value)


def test_a_record_is_a_table_that_others_read(tmp_path):
    """With what Parquet has for everyone: names, dtypes, shapes and bytes."""
    factor = GaussianFactor(np.eye(2), np.ones(2), np.zeros((1, 3, 2), np.float32))
    (tmp_path / "r.parquet").write_bytes(encoded("a", {"total": factor}))
    table = pq.read_table(tmp_path / "r.parquet").to_pandas().set_index("path")
    row = table.loc["value['total'].precision"]
    there = np.frombuffer(row["bytes"], row["dtype"]).reshape(row["shape"])
    np.testing.assert_array_equal(there, factor.precision)


# Hostile files


def told(name, value, metadata):
    """A record whose metadata are others."""
    import io

    import pyarrow as pa

    table = pq.read_table(pa.BufferReader(encoded(name, value)))
    table = table.replace_schema_metadata({b"dask_consensus": metadata.encode()})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "dask_consensus.cluster.store:os",  # a module, within this package
        "dask_consensus.cluster.store:fsspec.open",
        "dask_consensus.cluster.journal:kept",  # a function
        "dask_consensus.config:Options",  # a class, and no tuple
        "dask_consensus.cluster.records:_Parts",
        "dask_consensus.not_imported:Thing",
        "dask_consensus_evil:Thing",
        "tests.test_records:Stranger",
        "",
        ":",
    ],
)
def test_a_record_names_no_class_but_named_tuples_of_this_package(kind):
    hostile = json.dumps({"name": "a", "value": {"named": kind, "fields": {"x": "id"}}})
    with pytest.raises(UnreadableError):
        decoded("a", told("a", np.ones(2), hostile))


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "[]",
        "{}",
        '{"name": "b", "value": 1}',  # of another name
        '{"name": "a"}',
        '{"name": "a", "value": {"array": 7}}',
        '{"name": "a", "value": {"array": "x"}}',
        '{"name": "a", "value": {"pickle": "gASV"}}',
        '{"name": "a", "value": {"__class__": "x"}}',
        '{"name": "a", "value": {}}',
        '{"name": "a", "value": {"float": "one"}}',
        '{"name": "a", "value": {"named": "dask_consensus.shard_data:Size", "fields": {"x": 1}}}',
        '{"name": "a", "value": {"dict": [[{"list": []}, 1]]}}',  # no key
        '{"name": "a", "value": {"dict": 3}}',
    ],
)
def test_metadata_that_nobody_wrote_are_unreadable(metadata):
    with pytest.raises(UnreadableError):
        decoded("a", told("a", np.ones(2), metadata))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 9, b"\x80\x04N.", pickle.dumps([1])])
def test_what_is_no_parquet_is_unreadable(content):
    with pytest.raises(UnreadableError):
        decoded("a", content)


def test_an_array_of_objects_is_not_made_of_bytes():
    """Its bytes would be addresses in memory."""
    for dtype in ("|O", "O", "V8", "f8,O"):
        row = {"dtype": dtype, "shape": [1], "order": "C", "bytes": b"\0" * 16}
        with pytest.raises((UnreadableError, ValueError)):
            records._array(row)


# Digests


def test_a_digest_tells_any_two_questions_apart():
    anchor = Anchor(np.zeros(2), np.eye(2), 1.0)
    questions = [
        1, 1.0, True, "1", None, [1], (1,), {"a": 1}, {1: "a"}, {1}, frozenset({1}), b"1",
        np.float64(1), np.array(1.0), np.array([1.0]), np.array([[1.0]]), np.array([1.0], "f4"),
        np.nextafter(1.0, 2.0), np.array([1, 0]), np.array([0, 1]), -0.0, 0.0, float("nan"),
        anchor, anchor._replace(strength=1), tuple(anchor), Round(*range(7)),
    ]  # fmt: skip
    digests = [digest(question, lambda value: value) for question in questions]
    assert len(set(digests)) == len(digests)


def test_a_digest_of_sets_is_the_same_in_every_process():
    sets = [{f"name {i}" for i in range(50)}, {f"name {i}" for i in reversed(range(50))}]
    assert digest(sets[0], repr) == digest(sets[1], repr)
