"""Rows left out by a sample of them: the estimator, its error, and the whole way."""

import numpy as np
import pytest

from dask_consensus.local.psis import Left, log_mean_exp
from dask_consensus.local.subsample import Rough, estimate, part, rough

from . import ELPD_LOO, LOO_I, P_LOO, fit, from_pandas
from .test_predictions import COLUMNS, FIT, model, table


def estimated(elpd, lpd, roughly, share, rng):
    """Estimate from a sample of the rows of three partitions."""
    parts = []
    for some in np.array_split(np.arange(len(elpd)), 3):
        chosen = np.flatnonzero(rng.random(len(some)) < share)
        here = some[chosen]
        left = Left(elpd[here], lpd[here], np.zeros(len(here)))
        parts.append(part(Rough(*(values[some] for values in roughly)), chosen, left))
    return estimate(parts)


def test_the_error_is_what_estimates_are_off_by():
    rng = np.random.default_rng(0)
    n = 4000
    elpd = rng.normal(-1, 0.7, n)
    lpd = elpd + rng.exponential(0.1, n)
    roughly = Rough(elpd + 0.05 * rng.normal(size=n) + 0.02, lpd - elpd + 0.01)
    found = [estimated(elpd, lpd, roughly, 0.1, rng) for _ in range(400)]
    off = np.array([one.elpd for one in found]) - elpd.sum()
    stated = np.array([one.subsampling_se for one in found])
    assert stated.mean() == pytest.approx(0.05 * n / np.sqrt(0.1 * n) * np.sqrt(0.9), rel=0.05)
    assert off.std() == pytest.approx(stated.mean(), rel=0.15)
    assert abs(off.mean()) < 4 * stated.mean() / np.sqrt(400)
    whole = np.sqrt(n * elpd.var())
    assert np.mean([one.se for one in found]) == pytest.approx(whole, rel=0.01)
    p = [one.p for one in found]
    assert np.mean(p) == pytest.approx((lpd - elpd).sum(), rel=0.02)


def test_all_rows_need_no_estimate():
    rng = np.random.default_rng(0)
    elpd = rng.normal(size=300)
    found = estimated(elpd, elpd + 0.1, Rough(elpd + rng.normal(size=300), np.ones(300)), 1.0, rng)
    assert found.elpd == pytest.approx(elpd.sum())
    assert found.se == pytest.approx(np.sqrt(300 * elpd.var()))
    assert found.subsampling_se == 0
    assert found.p == pytest.approx(30)
    np.testing.assert_array_equal(found.rows, np.arange(300))


def test_rough_numbers_are_those_of_the_information_criterion():
    rng = np.random.default_rng(0)
    likely = -1 + 0.2 * rng.normal(size=(1000, 4))
    elpd, effective = rough(likely)
    np.testing.assert_allclose(effective, 0.04, rtol=0.2)
    np.testing.assert_allclose(elpd, -1 + 0.02 - 0.04, atol=0.02)


def test_arviz_estimates_the_same():
    pytest.importorskip("arviz_base")
    from arviz_stats.loo import loo_subsample
    from xarray import DataArray, Dataset, DataTree

    rng = np.random.default_rng(0)
    y, mu = rng.standard_t(5, 400), 0.1 * rng.normal(size=(4, 250, 1))
    likely = -((y - mu) ** 2) / 2 - 0.9 + 0.3 * rng.normal(size=(4, 250, 400))
    dims = ["chain", "draw", "row"]
    tree = DataTree.from_dict(
        {
            "posterior": Dataset({"mu": DataArray(mu[..., 0], dims=dims[:2])}),
            "log_likelihood": Dataset({"y": DataArray(likely, dims=dims)}),
        }
    )
    chosen = np.sort(rng.choice(400, 120, replace=False))
    theirs = loo_subsample(tree, chosen, reff=1.0, pointwise=True)
    elpd = theirs.elpd_i.values[chosen]  # smoothed by ArviZ, in whose versions that differs
    flat = likely.reshape(-1, 400)
    roughly = Rough(log_mean_exp(flat), np.zeros(400))
    ours = estimate([part(roughly, chosen, Left(elpd, roughly.elpd[chosen], elpd))])
    assert ours.elpd == pytest.approx(theirs.elpd, rel=1e-9)
    assert ours.subsampling_se == pytest.approx(theirs.subsampling_se, rel=1e-9)
    assert ours.se == pytest.approx(theirs.se, rel=1e-9)


@pytest.fixture(scope="module")
def fitted():
    frame = table(groups=150)
    lazy = from_pandas(frame, 4)
    options = {"by": "who", "columns": COLUMNS, **FIT}
    drawn = options | {"local": "draws", "local_draws": 400}
    return lazy, fit(lazy, model, **options), fit(lazy, model, **drawn)


@pytest.mark.parametrize(("which", "share"), [(1, 0.15), (2, 0.25)])
def test_some_rows_speak_for_all(fitted, which, share):
    lazy, tree = fitted[0], fitted[which]
    every = lazy.consensus.loo(tree, model)
    some = lazy.consensus.loo(tree, model, subsample=300)
    n = every["n_data_points"]
    assert some["n_data_points"] == n
    assert 230 < some["subsample_size"] < 370
    assert some["subsampling_se"] < share * every["se"]
    assert abs(some[ELPD_LOO] - every[ELPD_LOO]) < 4 * some["subsampling_se"]
    assert some["se"] == pytest.approx(every["se"], rel=0.02)
    assert some[P_LOO] == pytest.approx(every[P_LOO], rel=0.1)
    assert getattr(some, LOO_I, None) is None  # the compare of an ArviZ before 1 would misread it
    rows = some["loo_subsample_observations"]
    np.testing.assert_allclose(some["pareto_k"], every["pareto_k"][rows], atol=1e-6)
    again = lazy.consensus.loo(tree, model, subsample=300)
    assert again[ELPD_LOO] == some[ELPD_LOO]


def test_a_sample_of_all_is_all(fitted):
    lazy, tree, _ = fitted
    every = lazy.consensus.loo(tree, model, subsample=10**6)
    assert every[LOO_I].sizes["row"] == every["n_data_points"]


def test_what_cannot_be_sampled_is_refused(fitted):
    lazy, tree, _ = fitted
    with pytest.raises(ValueError, match="at least 100 rows, not 20"):
        lazy.consensus.loo(tree, model, subsample=20)
    with pytest.raises(ValueError, match="subsample= is for rows"):
        lazy.consensus.loo(tree, model, unit="group", subsample=1000)
    with pytest.raises(ValueError, match="the frame has 6 rows"):
        from_pandas(lazy.head(6), 1).consensus.loo(tree, model, subsample=300)
