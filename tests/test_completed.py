from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dask_consensus.frame.completed as module
from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.completed import completed
from dask_consensus.frame.survey import check, survey

from . import raise_if_dask_computes

CATEGORY = Layout((), (Column("c", "c", "category"), Column("x", "x", "value")))
LISTS = Layout((), (Column("x", "x", "value"), Column("v", "v", "list")))


def of_partitions(*parts: pd.DataFrame) -> dd.DataFrame:
    # Dask would write lists as text.
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(lambda part: part, list(parts), meta=parts[0].iloc[:0])


def categorical(*orders: str) -> dd.DataFrame:
    """A partition a string: its letters are the categories, in this order, that some rows have."""
    return of_partitions(
        *(
            pd.DataFrame({"c": pd.Categorical(list(o[:1]), list(o)), "x": np.ones(len(o[:1]))})
            for o in orders
        )
    )


def lists(*rows: list) -> dd.DataFrame:
    return of_partitions(
        *(pd.DataFrame({"v": pd.Series(part, dtype=object), "x": 1.0}) for part in rows)
    )


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        (["lmh", "lmh"], "lmh"),
        (["lm", "lmh", "h"], "lmh"),
        (["lm", "ml"], "lm"),
        (["zy", "x"], "xyz"),
        (["ba", "", "ba"], "ba"),
    ],
    ids=["the same", "parts of one", "contradicting", "apart", "an empty partition"],
)
@pytest.mark.parametrize("split_every", [2, 8])
def test_categories_come_in_the_order_of_the_dtype_else_sorted(orders, expected, split_every):
    (column, other) = completed(categorical(*orders), CATEGORY, split_every).columns
    assert "".join(column.categories) == expected
    assert other == CATEGORY.columns[1]


def test_many_orders_are_none(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ORDERS", 2)
    frame = categorical("cba", "cb", "ca", "c", "c")
    assert completed(frame, CATEGORY, 2).columns[0].categories == ("a", "b", "c")


def test_categories_of_several_types_have_an_order():
    parts = [pd.DataFrame({"c": pd.Categorical([v]), "x": 1.0}) for v in (2, "a", 1)]
    assert completed(of_partitions(*parts), CATEGORY).columns[0].categories == (1, 2, "a")


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # Dask's, as it reads
@pytest.mark.parametrize("options", [{}, {"dtype_backend": "pyarrow"}])
def test_categories_of_parquet_files(tmp_path, options):
    """Those that each file lists in its own order; with Arrow's dtype as with pandas'."""
    for i, values in enumerate(["ba", "cb"]):
        table = pa.table({"c": pa.array(list(values)).dictionary_encode(), "x": [1.0, 2.0]})
        pq.write_table(table, tmp_path / f"{i}.parquet")
    frame = dd.read_parquet(tmp_path, **options)
    layout = completed(frame, CATEGORY)
    assert layout.columns[0].categories == ("a", "b", "c")
    check(survey(frame, layout).compute(), layout)


def test_known_columns_cost_nothing():
    known = Layout((), (Column("c", "c", "category", categories=("a",)),))
    with raise_if_dask_computes():
        assert completed(categorical("a"), known) is known


@pytest.mark.parametrize(
    ("frame", "layout", "message"),
    [
        (categorical("", ""), CATEGORY, r"column 'c' \(argument 'c'\).*no value in any row"),
        (categorical("abc", "d"), CATEGORY, r"'c'.* has 4 categories, more than 3.*by="),
        (lists([None], [None]), LISTS, r"column 'v' \(argument 'v'\) has no value in any row"),
        (lists([[]]), LISTS, r"'v'.*holds empty lists; a list needs one number"),
        (lists(["ab"]), LISTS, r"'v'.*holds values of type str.*astype\('category'\).*by="),
        (lists([[["a"]]]), LISTS, r"'v'.*holds lists of list.*one-dimensional arrays"),
    ],
)
def test_what_tells_nothing_is_refused(monkeypatch, frame, layout, message):
    monkeypatch.setattr(module, "MOST_CATEGORIES", 3)
    with pytest.raises(ValueError, match=message):
        completed(frame, layout)


def test_lists_become_columns_of_a_matrix():
    """Floats if any of the lists seen has some; found in whatever partition has any."""
    frame = lists([None], [None], [None], [[1, 2, 3]], [None], [None], [[1, 2, 0.5]])
    layout = completed(frame, LISTS)
    assert [(c.name, c.label, c.dtype) for c in layout.columns[1:]] == [
        ("v[, 0]", "v[0]", "float32"),
        ("v[, 1]", "v[1]", "float32"),
        ("v[, 2]", "v[2]", "float32"),
    ]
    later = completed(lists([None], [None], [None], [[1, 2]], [None]), LISTS).columns[1:]
    assert [column.dtype for column in later] == ["int32", "int32"]


def test_lists_that_the_model_cannot_use_are_named():
    frame = lists([[1.0, 2.0], [1.0]], [None, [np.nan, 1.0], ["a", 1.0]])
    layout = completed(frame, LISTS).typed(frame._meta)
    with pytest.raises(ValueError, match="the frame holds values") as told:
        check(survey(frame, layout).compute(), layout)
    for complaint in (
        "column 'v[0]'): missing values, null or NaN (2, the first in partition 1); drop those ",
        "rows, or fill the values in where the lists are made",
        "values that are no lists of 2 numbers (1, the first in partition 0); drop",
        "'v[0]'): values of dtype object where float32 is expected that lose",
    ):
        assert complaint in str(told.value)
    assert "'v[1]'" not in str(told.value)


def test_few_of_many_columns_are_named():
    rows = [[np.inf] * 40]
    frame = lists(rows)
    layout = completed(frame, LISTS).typed(frame._meta)
    with pytest.raises(
        ValueError, match=r"'v\[4\]'.*\n- argument 'v': likewise in 35 more"
    ) as told:
        check(survey(frame, layout).compute(), layout)
    assert "'v[5]'" not in str(told.value)
