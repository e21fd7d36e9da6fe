"""A formula goes the way of any model: fitted, stored, met again, added to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from dask_consensus.formula.terms import FormulaError

from . import from_pandas, raise_if_dask_computes
from .test_formula import FRAME, ROWS

pytest.importorskip("formulae")

TEXT = "y ~ x + C(day) + (1 | store)"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    fitted = FRAME.consensus.fit(TEXT, n_shards=2, seed=1, progress=False)
    path = tmp_path_factory.mktemp("formula") / "fit.nc"
    fitted.to_netcdf(path)
    return xr.open_datatree(path)


@pytest.mark.slow
def test_the_source_is_the_model_that_is_fitted(tree):
    """Pasted and fitted on the frame of its columns, it gives the same draws."""
    formula = FRAME.consensus.plan(TEXT, n_shards=2).formula
    names: dict = {}
    exec(formula.source, names)
    again = formula.frame(FRAME).consensus.fit(
        names["model"],
        by=formula.by,
        columns=formula.columns,
        n_shards=2,
        seed=1,
        progress=False,
    )
    for name, values in tree["posterior"].to_dataset().items():
        np.testing.assert_array_equal(values, again["posterior"][name])


@pytest.mark.slow
def test_coefficients_bear_the_names_of_columns(tree):
    labels = tree["posterior"]["beta"].coords["beta_dim_0"].values.tolist()
    assert labels == ["x", *(f"C(day)[{day}]" for day in (2, 3, 4, 5))]
    assert "1|store" in tree["local"]


@pytest.mark.slow
def test_a_tree_from_a_file_needs_no_model(tree):
    """Of a frame without the response, in which not all levels occur."""
    new = ROWS.drop(columns="y").query("day == 3").head(7)
    with raise_if_dask_computes():
        lazy = from_pandas(new, npartitions=2).consensus.predict(tree)
    answer = lazy.compute()
    assert answer.columns.tolist() == [
        *new.columns,
        *(f"y_{statistic}" for statistic in ("mean", "sd", "q05", "q95")),
        "new_group",
    ]
    pd.testing.assert_frame_equal(answer[new.columns.tolist()], new, check_dtype=False)
    unknown = from_pandas(new.assign(day=9))
    with pytest.raises(FormulaError, match=r"C\(day\): 9 is a level that the formula has not been"):
        unknown.consensus.predict(tree).compute()
    elpd = FRAME.consensus.pointwise(tree).compute()
    assert elpd.columns.tolist() == [*ROWS.columns, "elpd", "lpd", "pareto_k"]
    made = FRAME.consensus.check(tree, statistics=["mean", "sd"])
    assert ((made["y_p"] > 0.01) & (made["y_p"] < 0.99)).all()


@pytest.mark.slow
def test_rows_are_added_with_what_was_learned(tree):
    """Levels and means are those of the first fit, not those of the new rows."""
    new = ROWS.query("day == 3").assign(store=lambda rows: rows.store + 100)
    grown = from_pandas(new).consensus.fit(TEXT, update=tree, progress=False)
    assert grown.attrs["formula"] == tree.attrs["formula"]
    assert int(grown.attrs["n_rows"]) == len(ROWS) + len(new)
    with pytest.raises(FormulaError, match="the earlier fit was of 'y ~ x"):
        from_pandas(new).consensus.fit("y ~ x", update=tree)


def of_every_family() -> pd.DataFrame:
    """Draw responses whose linear predictor is 0.5 x, and effects of stores of sd 0.6."""
    rng = np.random.default_rng(3)
    n = 600
    store, item, x = rng.integers(0, 40, n), rng.integers(0, 24, n), rng.normal(0, 1, n)
    eta = 0.5 * x + rng.normal(0, 0.6, 40)[store]
    of_items = rng.normal(0, 0.5, 24)[item]
    mean, p = np.exp(eta), 1 / (1 + np.exp(-eta))
    w, hours, trials = rng.integers(1, 4, n), rng.gamma(4, 0.5, n), rng.integers(3, 9, n)
    return pd.DataFrame(
        {
            "x": x,
            "store": store,
            "item": item,
            "w": w,
            "hours": hours,
            "trials": trials,
            "number": 1 + eta + rng.normal(0, 1, n),
            "heavy": 1 + eta + rng.standard_t(4, n),
            "bit": (rng.random(n) < p).astype(int),
            "won": rng.binomial(trials, p),
            "calls": rng.poisson(mean),
            "sold": rng.negative_binomial(3, 3 / (3 + mean)),
            "time": rng.gamma(3, mean / 3),
            "share": rng.beta(6 * p, 6 * (1 - p)),
            "grade": np.digitize(eta + rng.logistic(0, 1, n), [-1, 0, 1]),
            "of_items": 1 + eta + of_items + rng.normal(0, 1, n),
            "of_hours": rng.poisson(hours * mean),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "family", "simulated"),
    [
        ("number ~ x + (1 | store)", "gaussian", {"sigma": 1}),
        ("heavy ~ x + (1 | store)", "student", {"sigma": 1, "nu": 4}),
        ("bit ~ x + (1 | store)", "bernoulli", {}),
        ("p(won, trials) ~ x + (1 | store)", "binomial", {}),
        ("calls ~ x + (1 | store)", "poisson", {}),
        ("sold ~ x + (1 | store)", "negativebinomial", {"alpha": 3}),
        ("time ~ x + (1 | store)", "gamma", {"alpha": 3}),
        ("share ~ x + (1 | store)", "beta", {"kappa": 6}),
        ("grade ~ x + (1 | store)", "ordered", {"threshold": [-1, 0, 1]}),
        ("of_items ~ x + (1 | store) + (1 | item)", "gaussian", {"1|item_sigma": 0.5}),
        ("weighted(number, w) ~ x + (1 | store)", "gaussian", {"sigma": 1}),
        ("of_hours ~ x + offset(log(hours)) + (1 | store)", "poisson", {}),
    ],
)
def test_what_was_simulated_is_found(text, family, simulated):
    frame = from_pandas(of_every_family(), npartitions=3)
    tree = frame.consensus.fit(text, family=family, n_shards=3, seed=1, progress=False)
    assert int(tree.attrs["verdict_good"]), tree.attrs["verdict"]
    posterior = tree["posterior"].to_dataset()
    assert posterior["beta"].coords["beta_dim_0"].values.tolist() == ["x"]
    stores = next(name for name in posterior if "store" in name and name.endswith("_sigma"))
    for name, value in ({"beta": [0.5], stores: 0.6} | simulated).items():
        draws = posterior[name].stack(all=("chain", "draw"))
        far = np.abs(draws.mean("all") - value) / draws.std("all")
        # Effects of 40 stores, of which a binary response says little, are drawn as well.
        assert (far < 3.5).all(), f"{name}: {far.values} sds"


def test_what_is_of_models_and_what_of_formulas():
    with raise_if_dask_computes():
        lazy = FRAME.consensus.fit(TEXT, n_shards=2, compute=False)
        with pytest.raises(ValueError, match=r"by= is for models: it follows from the formula"):
            FRAME.consensus.fit(TEXT, by="store")
        with pytest.raises(ValueError, match="family= is for formulas"):
            FRAME.consensus.plan(len, family="poisson")
        with pytest.raises(FormulaError, match="fitted by a model: pass it after the tree"):
            FRAME.consensus.predict(xr.DataTree())
    assert lazy.text == TEXT
