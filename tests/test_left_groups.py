"""Groups left out: closed forms, posteriors without the group, and what is refused."""

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import xarray as xr

from dask_consensus.local import groups_left_out
from dask_consensus.local.few_draws import representative
from dask_consensus.local.psis import leave_out
from dask_consensus.local.surfaces import surfaces_of
from dask_consensus.result.recall import recall

from . import ELPD_LOO, LOO_I, fit, from_pandas
from .test_loo import fit_of_table
from .test_predictions import COLUMNS, FIT, model, table

GROUPS = 30
OPTIONS = {"by": "who", "columns": COLUMNS}


@pytest.fixture(scope="module")
def fitted():
    return table(groups=GROUPS), fit_of_table()


def closed_form(mu, tau, sigma, frame):
    """Log density of the rows of each group at draws, ``(S, groups)``: means, and what is about."""
    residual = (frame["y"] - frame["x"]).groupby(frame["who"])
    n, mean = residual.size().to_numpy(), residual.mean().to_numpy()
    about = residual.var(ddof=0).fillna(0).to_numpy() * n
    mu, tau, sigma = (np.asarray(part)[:, None] for part in (mu, tau, sigma))
    of_mean = scipy.stats.norm.logpdf(mean, mu, np.sqrt(tau**2 + sigma**2 / n))
    log_sigma = np.log(sigma) + np.log(2 * np.pi) / 2
    return of_mean - (n - 1) * log_sigma - about / (2 * sigma**2) - np.log(n) / 2


def test_at_the_same_draws_it_is_the_closed_form(fitted):
    frame, tree = fitted
    found = from_pandas(frame, 4).consensus.pointwise(tree, model, unit="group").compute()
    mu, log_tau, log_sigma = representative(recall(tree, model, check_verdict=True).draws, 4000).T
    wanted = leave_out(closed_form(mu, np.exp(log_tau), np.exp(log_sigma), frame))
    assert found.columns.tolist() == ["who", "rows", "elpd", "lpd", "pareto_k"]
    np.testing.assert_array_equal(found["who"], np.arange(GROUPS))
    np.testing.assert_array_equal(found["rows"], frame.groupby("who").size())
    np.testing.assert_allclose(found["elpd"], wanted.elpd, atol=2e-4)
    np.testing.assert_allclose(found["lpd"], wanted.lpd, atol=2e-4)
    np.testing.assert_allclose(found["pareto_k"], wanted.pareto_k, atol=0.02)


def test_it_is_the_density_under_the_posterior_without_the_group(fitted):
    """Each posterior is made anew, on a grid: the evidence of all groups over that of the rest."""
    frame, tree = fitted
    axes = np.meshgrid(
        np.linspace(-1, 3, 61), np.linspace(-1.5, 1.5, 61), np.linspace(-0.8, 0.2, 61)
    )
    mu, log_tau, log_sigma = (axis.ravel() for axis in axes)
    tau, sigma = np.exp(log_tau), np.exp(log_sigma)
    prior = scipy.stats.norm.logpdf(mu, 0, 5) - tau**2 / 8 - sigma**2 / 8 + log_tau + log_sigma
    likelihood = closed_form(mu, tau, sigma, frame)
    whole = prior + likelihood.sum(axis=1)
    edge = scipy.special.logsumexp(whole[(np.abs(log_tau) > 1.4) | (np.abs(mu - 1) > 1.9)])
    assert edge < scipy.special.logsumexp(whole) - 7
    without = whole[:, None] - likelihood
    exact = scipy.special.logsumexp(whole) - scipy.special.logsumexp(without, axis=0)
    found = from_pandas(frame).consensus.loo(tree, model, unit="group", draws=500)
    away = found[LOO_I].to_numpy() - exact
    good = found["pareto_k"].to_numpy() < 0.7
    assert good.sum() >= GROUPS - 2
    # The sd of a mean over 500 draws, weighed; groups' own effect is 0.01 to 0.6 (lpd - elpd).
    assert np.abs(away[good]).max() < 0.06
    assert found[ELPD_LOO] == pytest.approx(exact.sum(), abs=0.3)
    assert found[LOO_I].dims == ("who",)


def test_polynomials_are_exact_where_they_hold_and_noticed_where_not():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) + 5
    surfaces = surfaces_of(draws)
    x = (draws - draws.mean(axis=0)) @ rng.normal(size=(3, 4))
    bent = np.column_stack([2 * x[:, 0] - x[:, 1] ** 2 + x[:, 0] * x[:, 2], np.full(400, 3.0)])
    others = np.column_stack([np.abs(x[:, 0]), np.exp(x[:, 1])])
    rare = np.where(np.argsort(np.argsort(-np.abs(x[:, 0]))) < 5, 50.0, x[:, 0])
    values = np.column_stack([bent, others, rare])
    found, sound = surfaces.filled(values[surfaces.asked])
    assert sound.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(found[:, sound], bent, atol=1e-9)
    assert sorted([*surfaces.asked, *surfaces.rest]) == list(range(400))
    broken = values[surfaces.asked] * np.where(np.arange(5) == 1, np.nan, 1)
    assert not surfaces.filled(broken)[1][1]


def test_many_parameters_are_asked_at_all_draws():
    rng = np.random.default_rng(0)
    assert surfaces_of(rng.normal(size=(400, 12))) is None
    flat = np.column_stack([rng.normal(size=(400, 2)), np.zeros(400)])
    surfaces = surfaces_of(flat)
    found, sound = surfaces.filled(flat[surfaces.asked] ** 2)
    np.testing.assert_allclose(found, flat**2, atol=1e-9)
    assert sound.all()


@pytest.mark.slow
def test_asked_at_few_draws_it_says_what_it_says_at_all(monkeypatch):
    """Of some hundred groups some bend too much for a polynomial: these are asked alone."""
    n = 400
    lazy = from_pandas(table(groups=n))
    tree = fit(lazy, model, **OPTIONS, **FIT)
    asked = []
    real = groups_left_out._likelihoods

    def likelihoods(data, question):
        asked.append((len(question.points), int(data.groups[0].sum())))
        return real(data, question)

    monkeypatch.setattr(groups_left_out, "_likelihoods", likelihoods)
    few = lazy.consensus.pointwise(tree, model, unit="group").compute()
    of_few = asked[-2:]
    monkeypatch.setattr(groups_left_out, "surfaces_of", lambda _: None)
    everywhere = lazy.consensus.pointwise(tree, model, unit="group").compute()
    assert of_few[0] == (32, n)
    assert of_few[1][0] == 468
    assert 0 < of_few[1][1] < n
    assert asked[-1] == (500, n)
    # A likelihood far out may be off by 2% of its sd over the draws, at most 0.4 here.
    np.testing.assert_allclose(few["elpd"], everywhere["elpd"], atol=8e-3)
    np.testing.assert_allclose(few["lpd"], everywhere["lpd"], atol=8e-3)
    assert abs((few["elpd"] - everywhere["elpd"]).sum()) < 0.02


def pooled(x, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(mu + x, sigma), obs=y)


def test_without_effects_the_rows_of_a_group_are_added_up(fitted):
    frame, _ = fitted
    lazy = from_pandas(frame)
    tree = fit(lazy, pooled, n_shards=3, method="laplace", correct="auto")
    with pytest.raises(ValueError, match="the fit had no groups: pass by="):
        lazy.consensus.loo(tree, pooled, unit="group")
    found = lazy.consensus.pointwise(tree, pooled, unit="group", by="who").compute()
    mu, log_sigma = representative(recall(tree, pooled, check_verdict=True).draws, 4000).T
    rows = scipy.stats.norm.logpdf(
        frame["y"].to_numpy(), mu[:, None] + frame["x"].to_numpy(), np.exp(log_sigma)[:, None]
    )
    wanted = leave_out(rows @ np.eye(GROUPS)[frame["who"]])
    np.testing.assert_allclose(found["elpd"], wanted.elpd, atol=2e-3)
    # By two keys, a group is a pair of them.
    halves = frame.assign(half=np.arange(len(frame)) % 2)
    both = from_pandas(halves).consensus.pointwise(tree, pooled, unit="group", by=["who", "half"])
    pairs = halves.groupby(["who", "half"])
    found = both.compute()
    np.testing.assert_array_equal(found[["who", "half"]], list(pairs.groups))
    np.testing.assert_array_equal(found["rows"], pairs.size())
    wanted = leave_out(rows @ np.eye(len(pairs))[pairs.ngroup()])
    np.testing.assert_allclose(found["elpd"], wanted.elpd, atol=2e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_models_with_and_without_effects_are_compared(fitted):
    frame, tree = fitted
    lazy = from_pandas(frame)
    other = fit(lazy, pooled, by="who", n_shards=3, method="laplace", correct="auto")
    told = {
        "pooled": lazy.consensus.loo(other, pooled, unit="group"),
        "groups": lazy.consensus.loo(tree, model, unit="group"),
    }
    table = az.compare(told)
    assert table.index.tolist() == ["groups", "pooled"]
    xr.testing.assert_equal(told["pooled"][LOO_I]["who"], told["groups"][LOO_I]["who"])


def overdispersed(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("rows", len(g)):
        e = numpyro.sample("e", dist.Normal(0, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + e)), obs=y)


@pytest.mark.slow
def test_effects_of_rows_are_integrated_row_by_row():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(25), 4)
    frame = pd.DataFrame({"g": g, "y": rng.poisson(np.exp(0.5 + 0.6 * rng.normal(size=100)))})
    tree = fit(from_pandas(frame), overdispersed, by="g", **FIT)
    found = from_pandas(frame).consensus.pointwise(
        tree, overdispersed, unit="group", check_verdict=False
    )
    draws = representative(recall(tree, overdispersed, check_verdict=False).draws, 4000)
    mu, tau = draws[:, :1, None], np.exp(draws[:, 1:, None])
    x, w = scipy.special.roots_hermitenorm(80)
    rate = np.exp(mu + tau * x)  # (S, 1, nodes)
    density = scipy.stats.poisson.pmf(frame["y"].to_numpy()[:, None], rate)
    rows = np.log(density @ (w / w.sum()))
    wanted = leave_out(rows.reshape(-1, 25, 4).sum(axis=2))
    np.testing.assert_allclose(found.compute()["elpd"], wanted.elpd, atol=5e-3)


def inner(region, county, x, y=None, *, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("counties", n_county):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a[county] + x, sigma), obs=y)


@pytest.mark.slow
def test_of_nested_groups_those_with_effects_are_left_out():
    frame = table(groups=20).rename(columns={"who": "unit"})
    # A county's name occurs in several regions, and rows of a county in all partitions.
    frame = frame.assign(region=frame["unit"] // 5, county=frame["unit"] % 5)
    frame = frame.sample(frac=1, random_state=0)
    lazy = from_pandas(frame, 4)
    tree = fit(lazy, inner, by=["region", "county"], **(FIT | {"n_shards": 2}))
    found = lazy.consensus.loo(tree, inner, unit="group")
    assert found[LOO_I].dims == ("county",)
    np.testing.assert_array_equal(found[LOO_I]["region"], np.repeat(np.arange(4), 5))
    np.testing.assert_array_equal(found[LOO_I]["county"], np.tile(np.arange(5), 4))
    mu, log_tau, log_sigma = representative(recall(tree, inner, check_verdict=True).draws, 4000).T
    likelihood = closed_form(
        mu, np.exp(log_tau), np.exp(log_sigma), frame.rename(columns={"unit": "who"})
    )
    np.testing.assert_allclose(found[LOO_I], leave_out(likelihood).elpd, atol=5e-3)


def by_factor(g, x, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("g", n_g):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.factor("likelihood", dist.Normal(a[g] + x, 1).log_prob(y))


def test_what_cannot_be_left_out_is_refused(fitted):
    frame, tree = fitted
    lazy = from_pandas(frame)

    def left_out(frame, tree=tree, model=model, **options):
        return from_pandas(frame).consensus.loo(tree, model, unit="group", **options)

    with pytest.raises(ValueError, match="unit must be 'row' or 'group', not 'patient'"):
        lazy.consensus.loo(tree, model, unit="patient")
    with pytest.raises(ValueError, match="pass unit='group' with it"):
        lazy.consensus.pointwise(tree, model, by="who")
    with pytest.raises(ValueError, match="the model sees the groups of who"):
        left_out(frame, by="x")
    with pytest.raises(ValueError, match=f"the frame has {len(frame) - 1} rows, and the fit was"):
        left_out(frame.iloc[1:])
    with pytest.raises(ValueError, match="not the one that was fitted: other values in 'y'"):
        left_out(frame.assign(y=frame["y"].mask(frame.index == 3, 1.25)))
    with pytest.raises(ValueError, match="other values in 'who'"):
        left_out(frame.assign(who=frame["who"].mask(frame["who"] == 3, 4)))
    with pytest.raises(ValueError, match="no column 'y', which the fit had"):
        left_out(frame.drop(columns="y"))
    with pytest.raises(ValueError, match=r"dtype 'int32', where the fit had 'float32'"):
        left_out(frame.assign(x=frame["x"].astype(int)))
    briefly = FIT | {"correct": False, "local": None}
    other = fit(lazy, by_factor, **OPTIONS, **briefly)
    with pytest.raises(ValueError, match=r"is a numpyro.factor"):
        left_out(frame, other, by_factor, check_verdict=False)


def nested(region, county, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("rows", len(county)):
        numpyro.sample("obs", dist.Normal(a[region] + b[county], 1), obs=y)


@pytest.mark.slow
def test_of_effects_on_several_levels_the_outermost_groups_are_left_out():
    frame = table(groups=20).rename(columns={"who": "county"})
    frame = frame.assign(region=frame["county"] // 5)
    lazy = from_pandas(frame)
    tree = fit(lazy, nested, by=["region", "county"], **FIT)
    found = lazy.consensus.loo(tree, nested, unit="group")
    (mu,) = representative(recall(tree, nested, check_verdict=True).draws, 4000).T
    likelihood = []
    for _, rows in frame.groupby("region"):
        same = rows["county"].to_numpy()[:, None] == rows["county"].to_numpy()
        normal = scipy.stats.multivariate_normal(cov=1.0 + same + np.eye(len(rows)))
        likelihood.append(normal.logpdf(rows["y"].to_numpy() - mu[:, None]))
    np.testing.assert_array_equal(found[LOO_I]["region"], np.arange(4))
    # As for one level: what polynomials stand for in place of draws.
    expected = leave_out(np.array(likelihood).T).elpd
    np.testing.assert_allclose(found[LOO_I], expected, atol=0.02)


def test_columns_of_another_name_and_order(fitted):
    frame, tree = fitted
    renamed = frame.rename(columns={"who": "patient", "x": "dose"}).iloc[::-1]
    columns = {"g": "patient", "x": "dose"}
    there = from_pandas(renamed, 2).consensus.loo(tree, model, unit="group", columns=columns)
    here = from_pandas(frame).consensus.loo(tree, model, unit="group")
    assert there[LOO_I].dims == ("patient",)
    np.testing.assert_allclose(there[LOO_I], here[LOO_I], atol=1e-6)


def test_what_is_unsure_is_said(fitted, monkeypatch):
    frame, tree = fitted
    lazy = from_pandas(frame)
    real = groups_left_out._likelihoods
    monkeypatch.setattr(groups_left_out, "_likelihoods", lambda *given: (real(*given)[0], 0.25))
    with pytest.warns(UserWarning, match=r"mode of 25\.0% of the effects"):
        lazy.consensus.loo(tree, model, unit="group")
    monkeypatch.setattr(groups_left_out, "_likelihoods", real)
    monkeypatch.setattr(groups_left_out, "_OF_GROUP", 0.0)
    with pytest.warns(UserWarning, match="between the two finest rules"):
        lazy.consensus.loo(tree, model, unit="group")
