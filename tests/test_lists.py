from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dask_consensus.frame.lists import NO_LIST, NONE, Seen, look_at, read_lists


def arrow(rows: list, of: pa.DataType, width: int = -1) -> pd.Series:
    return pd.Series(rows, dtype=pd.ArrowDtype(pa.list_(of, width)))


ROWS = [[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]]


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(ROWS),
        pd.Series([None if row is None else np.array(row) for row in ROWS]),
        pd.Series([np.nan if row is None else tuple(row) for row in ROWS]),
        arrow(ROWS, pa.float64()),
        arrow(ROWS, pa.float64(), 2),
        arrow(ROWS, pa.float32()).iloc[::-1].iloc[::-1],
    ],
    ids=["lists", "arrays", "tuples", "arrow", "fixed size", "sliced"],
)
def test_any_list_is_read(values):
    numbers, lengths = read_lists(values, 2)
    assert numbers.tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]]
    assert lengths.tolist() == [2, 2, NONE, 2]
    assert look_at(values) == Seen(2, "f")


def test_chunks_of_arrow_are_one_column():
    values = pd.concat([arrow([[1.0]], pa.float64()), arrow([[2.0], [3.0]], pa.float64())])
    assert read_lists(values, 1)[0].tolist() == [[1.0], [2.0], [3.0]]
    assert read_lists(values.iloc[:0], 1)[0].shape == (0, 1)


def test_what_is_no_list_of_this_length_has_none():
    rows = [[1, 2], [1], [], 3, "ab", np.ones((2, 2)), None, np.array([3, 4])]
    numbers, lengths = read_lists(pd.Series(rows, dtype=object), 2)
    assert lengths.tolist() == [2, 1, 0, NO_LIST, NO_LIST, NO_LIST, NONE, 2]
    assert numbers[[0, -1]].tolist() == [[1, 2], [3, 4]]
    assert not numbers[1:-1].any()


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (pd.Series([[1, 2]]), Seen(2, "i")),
        (pd.Series([[1, 2], [0.5, 1]]), Seen(2, "f")),
        (pd.Series([[True, False]]), Seen(2, "b")),
        (pd.Series([[True, 2]]), Seen(2, "i")),
        (pd.Series([[1, None]]), Seen(2, "i")),
        (pd.Series([[None, 0.5]]), Seen(2, "f")),
        (pd.Series([np.array([1, 2], np.uint8)]), Seen(2, "i")),
        (arrow([[1, None, 3]], pa.int64()), Seen(3, "f")),
        (arrow([[True]], pa.bool_()), Seen(1, "b")),
        (pd.Series([None, None]), None),
        (pd.Series([[], [1.0]]), Seen(0, "empty lists")),
        (pd.Series(["a"], dtype=object), Seen(NO_LIST, "values of type str")),
        (pd.Series([["a", "b"]]), Seen(NO_LIST, "lists of str")),
        (pd.Series([[[1], [2]]]), Seen(NO_LIST, "lists of list")),
        (pd.Series([np.ones((2, 3))]), Seen(NO_LIST, "arrays of 2 axes")),
        (arrow([["a"]], pa.string()), Seen(NO_LIST, "lists of str")),
    ],
)
def test_what_lists_hold(values, seen):
    assert look_at(values) == seen
