"""Rows left out: the smoothing is ArviZ's, the likelihoods are the model's, the sums are right."""

import sys
from functools import cache

import arviz as az
import numpy as np
import pytest
import scipy.special
import scipy.stats
from arviz_stats.base import array_stats

from dask_consensus.local.psis import leave_out

from . import ELPD_LOO, LOO_I, P_LOO, fit, from_pandas, raise_if_dask_computes
from .test_predictions import COLUMNS, FIT, model, table


@cache
def fit_of_table():
    """Fit once a process: groups are left out of what rows are left out of."""
    return fit(from_pandas(table(groups=30)), model, by="who", columns=COLUMNS, **FIT)


@pytest.fixture(scope="module")
def fitted():
    frame = table(groups=30)
    draws = FIT | {"local": "draws", "local_draws": 500}
    drawn = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **draws)
    return frame, fit_of_table(), drawn


@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("n", [50, 400])
def test_smoothing_is_that_of_arviz(spread, n):
    rng = np.random.default_rng(0)
    likely = -0.5 * (spread * rng.normal(size=(n, 60))) ** 2 + spread * rng.normal(size=(n, 60))
    found = leave_out(likely)
    weights, k = array_stats.psislw(likely.T, axis=-1)
    elpd = scipy.special.logsumexp(weights + likely.T, axis=1)
    np.testing.assert_allclose(found.elpd, elpd, atol=1e-10)
    np.testing.assert_allclose(found.pareto_k, k, atol=1e-10)


def test_rows_on_which_draws_agree_lose_nothing():
    found = leave_out(np.full((100, 3), -1.5))
    np.testing.assert_allclose(found.elpd, -1.5)
    assert (found.pareto_k < 0.5).all()
    assert leave_out(np.zeros((100, 0))).elpd.shape == (0,)


def test_rows_that_are_impossible_at_some_draws_are_said_to_be():
    likely = 0.1 * np.random.default_rng(0).normal(size=(400, 4))
    plain = leave_out(likely)
    likely[5, 0] = -np.inf
    likely[6, 1] = np.nan
    likely[:, 2] = -np.inf
    found = leave_out(likely)
    np.testing.assert_array_equal(found.elpd, [-np.inf, np.nan, -np.inf, plain.elpd[3]])
    np.testing.assert_allclose(found.lpd[[0, 3]], plain.lpd[[0, 3]], atol=3e-3)
    np.testing.assert_array_equal(found.lpd[1:3], [np.nan, -np.inf])
    np.testing.assert_array_equal(found.pareto_k, [*[np.inf] * 3, plain.pareto_k[3]])


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_of_draws_it_is_arviz_on_the_same_draws(fitted):
    frame, _, tree = fitted
    found = from_pandas(frame, 4).consensus.loo(tree, model, draws=500)
    shared, local = tree["posterior"].to_dataset(), tree["local"]
    numbers = local["draw"].to_numpy()
    tau, mu, sigma = (
        shared[name].to_numpy()[0, numbers][:, None] for name in ("tau", "mu", "sigma")
    )
    alpha = mu + tau * local["raw"].sel(who=frame["who"].to_numpy()).to_numpy()[0]
    mean = alpha + frame["x"].to_numpy()
    likely = scipy.stats.norm.logpdf(frame["y"].to_numpy(), mean, sigma)
    groups = {"posterior": {"mu": mu.T}, "log_likelihood": {"obs": likely[None]}}
    idata = az.from_dict(**groups) if LOO_I == "loo_i" else az.from_dict(groups)
    theirs = az.loo(idata, pointwise=True, reff=1.0)
    np.testing.assert_allclose(found[LOO_I], theirs[LOO_I], atol=2e-3)
    for name in (ELPD_LOO, "se", P_LOO):
        assert found[name] == pytest.approx(theirs[name], abs=0.02)


def test_it_is_near_the_exact_density_of_the_row_left_out(fitted):
    """Given the shared parameters the row's density without it is a normal one."""
    frame, summary, drawn = fitted
    posterior = summary["posterior"].to_dataset()
    mu, tau, sigma = (posterior[name].to_numpy()[0] for name in ("mu", "tau", "sigma"))
    z = frame["y"] - frame["x"]
    groups = z.groupby(frame["who"])
    others = (groups.transform("sum") - z).to_numpy()[:, None]
    n = (groups.transform("size") - 1).to_numpy()[:, None]
    variance = 1 / (1 / tau**2 + n / sigma**2)
    mean = variance * (mu / tau**2 + others / sigma**2)
    sd = np.sqrt(variance + sigma**2)
    logs = scipy.stats.norm.logpdf(z.to_numpy()[:, None], mean, sd)
    exact = np.log(len(mu)) - scipy.special.logsumexp(-logs, axis=1)
    for tree in (summary, drawn):
        found = from_pandas(frame).consensus.loo(tree, model, draws=500)
        good = found["pareto_k"].to_numpy() < 0.7
        assert good.mean() > 0.95
        away = found[LOO_I].to_numpy() - exact
        assert np.abs(away[good]).max() < 0.25
        assert abs(away.sum()) < 2  # of a p_loo of 26


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_models_are_compared(fitted):
    def without_x(g, x, y=None, *, n_g):
        model(g, 0.0 * x, y, n_g=n_g)

    frame, summary, _ = fitted
    lazy = from_pandas(frame)
    other = fit(lazy, without_x, by="who", columns=COLUMNS, **FIT)
    told = {
        "with x": lazy.consensus.loo(summary, model),
        "without": lazy.consensus.loo(other, without_x),
    }
    assert az.compare(told).index.tolist() == ["with x", "without"]


def test_beside_the_rows_it_is_lazy(fitted):
    frame, tree, _ = fitted
    lazy = from_pandas(frame, 4)
    with raise_if_dask_computes():
        pointwise = lazy.consensus.pointwise(tree, model)
    found = pointwise.compute()
    assert found.columns.tolist() == ["who", "x", "y", "elpd", "lpd", "pareto_k"]
    assert (found["elpd"] <= found["lpd"] + 1e-9).mean() > 0.99
    total = lazy.consensus.loo(tree, model)
    assert total[ELPD_LOO] == pytest.approx(found["elpd"].sum())
    np.testing.assert_array_equal(found.index, frame.index)


def test_what_was_not_fitted_is_not_left_out(fitted):
    frame, tree, _ = fitted
    strange = from_pandas(frame.assign(who=frame["who"] + 25))
    with pytest.raises(ValueError, match="groups that the fit has not seen"):
        strange.consensus.loo(tree, model)
    with pytest.raises(ValueError, match="at least 50"):
        from_pandas(frame).consensus.loo(tree, model, draws=20)
    with pytest.raises(ValueError, match="has a column 'elpd' already"):
        from_pandas(frame.assign(elpd=0.0)).consensus.pointwise(tree, model)
    with pytest.raises(ValueError, match="no column 'y'"):
        from_pandas(frame[["who", "x"]]).consensus.loo(tree, model)
    with pytest.raises(ValueError, match=f"the frame has {len(frame) - 1} rows, and the fit was"):
        from_pandas(frame.iloc[1:]).consensus.loo(tree, model)
    with pytest.raises(ValueError, match="not the one that was fitted: other values in 'x'"):
        from_pandas(frame.assign(x=frame["x"].mask(frame.index == 7, 0.5))).consensus.loo(
            tree, model
        )
    # Two rows that swap their groups leave the groups and their numbers of rows as they were.
    swapped = frame["who"].to_numpy().copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    with pytest.raises(ValueError, match="not the one that was fitted"):
        from_pandas(frame.assign(who=swapped)).consensus.loo(tree, model)
    none = from_pandas(frame)
    none = none[none["x"] > 100]
    with pytest.raises(ValueError, match="no rows"):
        none.consensus.loo(tree, model)


def test_the_same_rows_otherwise_ordered_divided_and_typed_are_what_was_fitted(fitted):
    frame, tree, _ = fitted
    other = frame.sample(frac=1, random_state=1).astype({"who": float, "x": "Float64"})
    there = from_pandas(other, 7).consensus.loo(tree, model)
    here = from_pandas(frame).consensus.loo(tree, model)
    np.testing.assert_allclose(there[ELPD_LOO], here[ELPD_LOO])


def test_without_arviz_it_is_said_before_anything_is_computed(monkeypatch):
    for name in ("arviz_stats", "arviz.stats"):
        monkeypatch.setitem(sys.modules, name, None)
    frame = from_pandas(table(groups=3))
    with raise_if_dask_computes(), pytest.raises(ImportError, match=r"dask_consensus\[plots\]"):
        frame.consensus.loo(None, model)
