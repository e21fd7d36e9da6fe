from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.defects import (
    INFINITE,
    MISSING,
    RANGE,
    UNKNOWN,
    count_defects,
    explain_defects,
)

VALUE = Column("y", "fvc", "value")
CATEGORY = Column("y", "fvc", "category", categories=("a", "b"))
NONE = {}


@pytest.mark.parametrize(
    ("values", "column", "x64", "expected"),
    [
        (pd.Series([1.0, np.nan, np.nan]), VALUE, False, {MISSING: 2}),
        (pd.Series([1.0, None, np.nan], dtype="Float64"), VALUE, False, {MISSING: 2}),
        (pd.Series([1.0, None, np.nan], dtype="double[pyarrow]"), VALUE, False, {MISSING: 2}),
        (pd.Series([1, None], dtype="Int64"), VALUE, False, {MISSING: 1}),
        (pd.Series([True, None], dtype="boolean"), VALUE, False, {MISSING: 1}),
        (pd.Series([np.inf, -np.inf, 1e39, -3e38]), VALUE, False, {INFINITE: 3}),
        (pd.Series([np.inf, -np.inf, 1e39, -3e38]), VALUE, True, {INFINITE: 2}),
        (pd.Series([np.inf, np.nan], dtype="float32"), VALUE, False, {INFINITE: 1, MISSING: 1}),
        (pd.Series([2**31 - 1, -(2**31)]), VALUE, False, NONE),
        (pd.Series([2**31, -(2**31) - 1, 0]), VALUE, False, {RANGE: 2}),
        (pd.Series([2**31, -(2**31) - 1, 0]), VALUE, True, NONE),
        (pd.Series([2**40, None], dtype="Int64"), VALUE, False, {RANGE: 1, MISSING: 1}),
        (pd.Series([2**63, 1], dtype="uint64"), VALUE, True, {RANGE: 1}),
        (pd.Series([2**40], dtype="int64[pyarrow]"), VALUE, False, {RANGE: 1}),
        (pd.Series([True, False]), VALUE, False, NONE),
        (pd.Series(["a", "c", None]), CATEGORY, False, {UNKNOWN: 1, MISSING: 1}),
        (pd.Series(["a", "c", None], dtype="category"), CATEGORY, False, {UNKNOWN: 1, MISSING: 1}),
        (pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["c", "b", "a"])), CATEGORY, False, NONE),
    ],
)
def test_defects_of_a_value(values, column, x64, expected):
    counts = count_defects(pd.DataFrame({"fvc": values}), Layout((), (column,), x64))
    assert {kind: n for kind, n in enumerate(counts[0]) if n} == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (pd.Series(["a", None]), {MISSING: 1}),
        (pd.Series([1.0, np.nan, np.inf, 1e39]), {MISSING: 1, INFINITE: 1}),
        (pd.Series([2**40, 1]), NONE),
        (pd.Series(pd.to_datetime(["2020-01-01", None])), {MISSING: 1}),
        (pd.Series(["a", None], dtype="category"), {MISSING: 1}),
    ],
)
def test_defects_of_a_key(key, expected):
    layout = Layout(("who",), (Column("who", "who", "group", level=0),))
    counts = count_defects(pd.DataFrame({"who": key}), layout)
    assert counts.shape == (1, 7)
    assert {kind: n for kind, n in enumerate(counts[0]) if n} == expected


def test_explanation_names_column_count_place_and_remedy():
    layout = Layout(("who",), (Column("who", "who", "group", level=0), VALUE))
    counts, first = np.zeros((2, 7), int), np.full((2, 7), -1)
    assert explain_defects(counts, first, layout) == []
    counts[0, MISSING], first[0, MISSING] = 1_200, 3
    counts[1, RANGE], first[1, RANGE] = 1, 0
    assert explain_defects(counts, first, layout) == [
        "key 'who': missing values, null or NaN (1,200, the first in partition 3); drop those rows "
        "(`ddf.dropna(subset=['who'])`) or fill the values in",
        "argument 'y' (column 'fvc'): integers too large for 32 bits (1, the first in partition "
        "0); convert the column to float, rescale it, or enable 64-bit numbers in JAX",
    ]
    counts[0, INFINITE], counts[1, UNKNOWN] = 1, 1
    assert len(explain_defects(counts, first, layout._replace(x64=True))) == 4
