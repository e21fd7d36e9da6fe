from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.resolution import (
    ROWS,
    Sample,
    cancelled,
    merge_samples,
    sample_rows,
    too_coarse,
)
from dask_consensus.frame.survey import check, merge, survey_partition

from . import plan

N = 20_000
RNG = np.random.default_rng(0)
GROUP = np.repeat(np.arange(N // 20), 20)
NO_GROUPS = np.empty(0, np.uint64)
NORMAL = RNG.normal(size=N)

COARSE = {
    "level and noise": 1e7 + NORMAL,
    "level and more noise": 1e7 + 10 * NORMAL,
    "seconds of an hour": 1.7e9 + RNG.uniform(0, 3600, N),
    "whole seconds": (1.7e9 + RNG.integers(0, 3600, N)).astype("int64"),
    "negative": -1e7 - NORMAL,
    "one outlier": np.where(np.arange(N) == 5, 0.0, 1e7 + NORMAL),
    "a few outliers": np.where(np.arange(N) % 500 == 5, 1e12, 1e7 + NORMAL),
    "an outlier of like size": np.where(np.arange(N) % 500 == 5, 1.5e7, 1e7 + NORMAL),
    "zero where it does not apply": np.where(np.arange(N) % 3 == 0, 1e7 + NORMAL, 0.0),
    "levels of groups": 1e7 * (1 + 0.2 * RNG.normal(size=N // 20))[GROUP] + NORMAL,
    "two levels": np.where(np.arange(N) % 2 == 0, 1.0e7, 1.3e7) + NORMAL,
    "both signs": np.where(np.arange(N) % 2 == 0, -1e7, 1e7) + NORMAL,
    "steps of a float's own": np.round((1e7 + 4 * NORMAL) / 4) * 4,
}
FINE = {
    "normal": NORMAL,
    "years": RNG.integers(2000, 2021, N),
    "years, and parts": 2000 + RNG.uniform(0, 20, N),
    "kelvin": 290 + 10 * NORMAL,
    "level and wide noise": 1e5 + 100 * NORMAL,
    "identifiers": RNG.integers(0, 10**9, N),
    "identifiers from a number on": 10**6 + np.arange(N),
    "constant": np.full(N, 1e7 + 0.3),
    "constant but for rounding": np.where(np.arange(N) % 2 == 0, 0.3, 0.1 + 0.2),
    "zeros and ones": (NORMAL > 0).astype(float),
    "booleans": NORMAL > 0,
    "counts": RNG.poisson(3, N),
    "counts with huge ones": np.where(
        np.arange(N) % 400 == 0, 10**9 + np.arange(N), RNG.poisson(3, N)
    ),
    "heavy tails": RNG.standard_cauchy(N),
    "lognormal": np.exp(5 * NORMAL),
    "tiny": 1e-30 * NORMAL,
    "a missing code": np.where(NORMAL > 1, -9999.0, NORMAL),
    "a few levels": RNG.choice([0.1, 0.25, 1e6], N),
    "money": np.round(np.exp(10 + NORMAL), 2),
    "degrees of a city": 52.52 + 0.05 * NORMAL,
}


def complaint(values: np.ndarray, x64: bool = False, parts: int = 3, by: bool = True) -> str:
    frame = pd.DataFrame({"g": GROUP, "y": values})
    columns = (Column("g", "g", "group", level=0), Column("y", "y", "value"))
    layout = Layout(("g",), columns, x64) if by else Layout((), columns[1:], x64)
    layout = layout.typed(frame)
    counted = merge([survey_partition(frame.iloc[i::parts], layout) for i in range(parts)])
    try:
        check(counted, layout)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("values", COARSE.values(), ids=COARSE)
def test_columns_that_single_precision_rounds_are_refused(values):
    assert "32-bit floats are too coarse" in complaint(values)
    assert not complaint(values, x64=True)
    # The remedy, as the message gives it; one level for all is not enough where there are two.
    if np.ptp(np.quantile(values, [0.01, 0.99])) < 1e5:
        assert not complaint(values - np.median(values))


@pytest.mark.parametrize("values", FINE.values(), ids=FINE)
@pytest.mark.parametrize("by", [True, False])
def test_ordinary_columns_pass(values, by):
    assert not complaint(values, by=by)


def test_rounding_grows_with_the_number_of_rows():
    """A half step of 0.0006 sds is 0.01 posterior sds of a mean of 400 rows, 0.6 of a million."""
    sample = sample_rows(None, NO_GROUPS, [1.0e5 + 10 * NORMAL], N)
    assert not too_coarse(sample, 0, 400, np.dtype("float32"))
    assert "rounded by" in too_coarse(sample, 0, 10**6, np.dtype("float32"))


def test_sample_does_not_depend_on_the_cut():
    hashes = np.random.default_rng(1).integers(0, 2**63, 300).astype(np.uint64)[GROUP % 300]
    whole = sample_rows(hashes, np.unique(hashes), [NORMAL], N)
    parts = [
        sample_rows(hashes[i::4], np.unique(hashes[i::4]), [NORMAL[i::4]], N // 4)
        for i in (2, 0, 3, 1)
    ]
    for merged in (merge_samples(parts), merge_samples([merge_samples(parts[:2]), *parts[2:]])):
        for one, other in zip(whole, merged, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(whole.row) <= ROWS


def test_sample_of_nothing():
    empty = sample_rows(NO_GROUPS, NO_GROUPS, [np.empty(0)], 0)
    assert isinstance(empty, Sample)
    assert len(merge_samples([empty, sample_rows(None, NO_GROUPS, [np.empty(0)], 0)]).row) == 0
    assert not too_coarse(empty, 0, 0, np.dtype("float32"))


def test_a_plan_names_column_and_remedy():
    import numpyro
    import numpyro.distributions as dist

    def model(t, y):
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("obs", dist.Normal(b * t, 1), obs=y)

    frame = dd.from_pandas(
        pd.DataFrame({"time": COARSE["whole seconds"], "y": NORMAL}), npartitions=2
    )
    columns = {"t": "time"}
    with pytest.raises(
        ValueError, match=r"argument 't' \(column 'time'\): 32-bit.*ddf\['time'\].mean"
    ):
        plan(frame, model, columns=columns)
    frame = frame.assign(**{"time": frame["time"] - frame["time"].mean()})
    assert plan(frame, model, columns=columns).n_shards == 1


BEGIN = 1.6e9 + RNG.uniform(0, 1e8, N)
PAIRS = {
    "begin and end": ((BEGIN, BEGIN + RNG.gamma(4.0, 30.0, N)), True),
    "with a few that lasted long": (
        (BEGIN, BEGIN + np.where(np.arange(N) % 100, RNG.gamma(4.0, 30.0, N), 1e7)),
        True,
    ),
    "before and after": ((1e6 * NORMAL, 1e6 * NORMAL + RNG.normal(size=N)), True),
    "begin alone": ((BEGIN, RNG.gamma(4.0, 30.0, N)), False),
    "a minute later": ((BEGIN, BEGIN + 60.0), False),
    "the same": ((BEGIN, BEGIN), False),
    "whole days": ((86_400.0 * np.arange(N), 86_400.0 * (np.arange(N) + 1)), False),
    "months later": ((BEGIN, BEGIN + 1e7 * RNG.random(N)), False),
    "a tenth more": ((1e5 * NORMAL, 1.1e5 * NORMAL), False),
    "collinear": ((np.exp(10 + NORMAL / 2), 1.01 * np.exp(10 + NORMAL / 2) + 300 * NORMAL), False),
    "noise of measurement": ((NORMAL, NORMAL + 0.01 * RNG.normal(size=N)), False),
}


@pytest.mark.parametrize(("columns", "coarse"), PAIRS.values(), ids=PAIRS)
def test_columns_whose_difference_is_rounded_away_are_refused(columns, coarse):
    values = [np.asarray(column, np.float64) for column in columns]
    sample = merge_samples([sample_rows(None, NO_GROUPS, values, N)])
    found = cancelled(sample, np.dtype("float32"))
    assert [pair[:2] for pair in found] == ([(0, 1)] if coarse else [])
    assert not cancelled(sample, np.dtype("float64"))


def test_a_plan_names_both_columns_and_the_remedy():
    import numpyro
    import numpyro.distributions as dist

    def model(begin, end, y=None):
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("rows", len(begin)):
            numpyro.sample("obs", dist.Normal(b * (end - begin), 1), obs=y)

    frame = pd.DataFrame({"begin": BEGIN, "end": BEGIN + RNG.gamma(4.0, 30.0, N), "y": NORMAL})
    with pytest.raises(ValueError, match=r"'begin'.*'end'.*32-bit.*give the model the difference"):
        plan(dd.from_pandas(frame, npartitions=1), model)
