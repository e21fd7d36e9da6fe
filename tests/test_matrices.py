"""Matrices and categories, from the frame to the result and back."""

from __future__ import annotations

import json
from typing import Any

import dask.dataframe as dd
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr

import dask_consensus

from . import fit, from_pandas

NAMES = ["x0", "x1", "x2"]
LISTS = pd.ArrowDtype(pa.list_(pa.float64()))
TRUTH = np.array([1.0, -1.0, 0.5])


def table(n: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    made = pd.DataFrame(rng.normal(size=(n, 3)), columns=NAMES)
    made["x1"] = (made["x1"] > 0).astype(int)
    made["sex"] = pd.Categorical(rng.choice(["m", "f"], n))
    mean = made[NAMES].to_numpy() @ TRUTH + (made["sex"] == "m")
    made["y"] = mean + rng.normal(0, 0.5, n)
    made["all"] = pd.Series(made[NAMES].to_numpy().tolist(), dtype=LISTS)
    return made


def model(X, sex, y=None, *, n_sex):
    with numpyro.plate("sexes", n_sex):
        level = numpyro.sample("level", dist.Normal(0, 2))
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("rows", len(X)):
        numpyro.sample("obs", dist.Normal(X @ beta + level[sex], 0.5), obs=y)


@pytest.fixture(scope="module")
def frame() -> dd.DataFrame:
    """Some of its rows have no response."""
    rows = table()
    made = from_pandas(rows.assign(y=rows["y"].where(rows.index % 40 > 0)))
    return made.assign(sex=made["sex"].cat.as_unknown())


@pytest.fixture(scope="module")
def tree(frame, tmp_path_factory) -> xr.DataTree:
    """What a fit gives, as a file holds it."""
    made = fit(frame, model, columns={"X": "x*"}, n_shards=2, method="laplace", correct="auto")
    path = tmp_path_factory.mktemp("fit") / "fit.nc"
    made.to_netcdf(path, engine="netcdf4")
    return xr.load_datatree(path, engine="netcdf4")


def test_names_of_columns_and_categories_label_the_result(tree):
    posterior = tree["posterior"].to_dataset()
    assert posterior["beta_dim_0"].values.tolist() == NAMES
    assert posterior["sexes"].values.tolist() == ["f", "m"]
    # The verdict, its numbers and the table of parameters speak of the same names.
    names = ["level[f]", "level[m]", *(f"beta[{name}]" for name in NAMES)]
    assert list(json.loads(tree.attrs["accuracy"])) == names
    assert any(f"(on {name})" in tree.attrs["verdict"] for name in names)
    assert tree["correction"]["coordinate"].values.tolist() == names
    assert [row[0] for row in dask_consensus.summary(tree).parameters] == sorted(names)
    # Least squares, all but: the prior moves it by less than its Monte Carlo error.
    rows = table()
    rows = rows[rows.index % 40 > 0]
    columns = np.column_stack([rows[NAMES], rows["sex"] == "f", rows["sex"] == "m"])
    inverse = np.linalg.inv(columns.T @ columns / 0.25 + np.eye(5) / 4)
    mean, sd = inverse @ columns.T @ rows["y"] / 0.25, np.sqrt(np.diag(inverse))
    told = [posterior["beta"].sel(beta_dim_0=name).mean() for name in NAMES]
    told += [posterior["level"].sel(sexes=sex).mean() for sex in ("f", "m")]
    # 1,000 draws stratified by weight: 0.05 sds is more than five times their error.
    assert np.abs((np.array(told) - mean) / sd).max() < 0.05


def test_rows_left_out(frame, tree):
    told = frame.consensus.pointwise(tree, model, columns={"X": "x?"}, draws=60).compute()
    unanswered = told["y"].isna()
    assert told["elpd"].isna().equals(unanswered)
    assert unanswered.sum() == 5
    assert (told["elpd"] < told["lpd"])[~unanswered].all()
    # Of normal rows it is -log(0.5 sqrt(2 pi e)) = -0.726, give or take 1/sqrt(2 n) = 0.05.
    assert told["elpd"].mean() == pytest.approx(-0.726, abs=0.2)
    frame.consensus.loo(tree, model)
    with pytest.raises(ValueError, match="other values in 'x1', 'x2'"):
        frame.assign(x1=1 - frame["x1"]).consensus.loo(tree, model)


def predicted(frame: dd.DataFrame, tree: Any, **options: Any) -> pd.DataFrame:
    return frame.consensus.predict(tree, model, statistics=["mean"], **options).compute()


def test_predictions_of_another_frame(tree):
    """Whose columns have other names and another order, the response among those missing."""
    rows = table(50, seed=1)
    expected = rows[NAMES].to_numpy() @ TRUTH + (rows["sex"] == "m")
    other = rows.rename(columns={"x2": "a", "x0": "b", "x1": "c"}).drop(columns="y")
    told = predicted(from_pandas(other), tree, columns={"X": ["b", "c", "a"]})
    assert np.abs(told["obs_mean"] - expected).max() < 0.4
    for wrong in (["b", "c"], "b"):
        with pytest.raises(ValueError, match=r"names . columns for argument 'X', which received 3"):
            predicted(from_pandas(other), tree, columns={"X": wrong})
    holes = other.assign(c=other["c"].where(other["c"] > 0))
    with pytest.raises(ValueError, match=r"column 'c': .* of the 50 values of a partition have no"):
        predicted(from_pandas(holes, 1), tree, columns={"X": ["b", "c", "a"]})


def test_data_that_the_model_makes(frame, tree):
    made = frame.consensus.check(tree, model, statistics=["mean", "sd"], draws=40)
    assert ((made["obs_p"] > 0.01) & (made["obs_p"] < 0.99)).all()
    assert int(made["rows"]) == 195


@pytest.mark.slow
def test_rows_of_lists_come_back():
    rows = table(60)
    columns = {"X": "all"}
    made = fit(rows, model, columns=columns, n_shards=2, method="laplace", correct=False)
    told = made["posterior"].to_dataset()
    assert told["beta_dim_0"].values.tolist() == [0, 1, 2]
    again = predicted(rows, made, check_verdict=False)
    assert np.corrcoef(again["obs_mean"], rows["y"])[0, 1] > 0.9
    short = rows.assign(all=pd.Series([[1.0, 2.0]] * 60, dtype=LISTS))
    with pytest.raises(ValueError, match=r"column 'all': 60 of the 60 .* no lists of 3 numbers"):
        predicted(short, made, check_verdict=False)
