"""Effects of rows, given their responses: against closed forms and grids."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import xarray as xr

from dask_consensus import tree_to_frame
from dask_consensus.shard.at_draws import Normals, Rows, make_design
from dask_consensus.shard.row_effects import row_effects, unobserved_sites

from . import fit, from_pandas, plan
from .models import ZOO, frame

SHARES = (0.05, 0.975)


def read(model, **options):
    """Read a model, and name its sites that have an entry a row and are not observed."""
    made = plan(from_pandas(frame()), model, **options).model
    dtypes = {name: "float32" for name in options.get("columns") or ("x", "y")}
    dtypes |= {name: "int32" for name in made.codes}
    return made, unobserved_sites(made, dtypes)


def noisy(county, x, y=None, *, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(mu, 0.7))
    with numpyro.plate("rows", len(x)):
        raw = numpyro.sample("raw", dist.Normal(0, 1))
        level = numpyro.deterministic("level", b[county] + 0.8 * raw)
        numpyro.sample("obs", dist.Normal(level + x, 0.5), obs=y)


def test_normal_effects_of_rows_within_groups():
    """Given u and the group's effect a row's own has a closed form; all are averaged over."""
    model, sites = read(noisy, by="county")
    assert [site.name for site in sites] == ["raw", "level"]
    rng = np.random.default_rng(0)
    design = make_design(model, rng.normal(1.0, 0.4, (300, 1)))
    mean, slope = np.array([[0.5], [2.0]]), np.array([[[0.3]], [[-0.6]]])
    factor = np.sqrt(np.array([[[0.2]], [[0.05]]]))
    effects = Normals(*(part.astype(np.float32) for part in (mean, slope, 0 * slope, factor)))
    code = np.array([0, 0, 1, 1, 1], np.int32)
    x, y = rng.normal(size=(2, 5)).astype(np.float32)
    rows = Rows({"county": code, "x": x, "y": y}, (np.ones(2, bool),), (effects,))
    raw, level = row_effects(model, sites, SHARES, design, rows)

    away = design.u - design.center
    b = (mean + slope[:, 0] * away.T + factor[:, 0] * design.normal[:, 0])[code]  # (R, S)
    share = 0.8 / (0.8**2 + 0.5**2)
    given = share * ((y - x)[:, None] - b)
    variance = 1 - 0.8 * share
    for found, values, each in ((raw, given, variance), (level, b + 0.8 * given, 0.64 * variance)):
        sd = np.sqrt(each + values.var(axis=1))
        np.testing.assert_allclose(found[:, 0, 0], values.mean(axis=1), atol=2e-3)
        np.testing.assert_allclose(found[:, 0, 1], sd, rtol=2e-3)
        mixture = scipy.stats.norm(values, np.sqrt(each))
        for i, wanted in enumerate(SHARES):
            upto = mixture.cdf(found[:, 0, 2 + i, None]).mean(axis=1)
            np.testing.assert_allclose(upto, wanted, atol=5e-3)


@pytest.mark.parametrize("spread", [2.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_skewed_effects_against_a_grid(spread):
    """Of no events a wide prior leaves a long tail downwards, which normal candidates miss."""

    def counts(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            e = numpyro.sample("e", dist.Normal(mu, spread))
            numpyro.sample("obs", dist.Poisson(jnp.exp(e)), obs=y)

    model, sites = read(counts, columns={"y": "count"})
    design = make_design(model, np.random.default_rng(0).normal(0.3, 0.2, (128, 1)))
    y = np.array([0, 1, 3, 40], np.float32)
    (found,) = row_effects(model, sites, SHARES, design, Rows({"y": y}, (), ()))
    grid = np.linspace(-14, 8, 4401)
    log = y[:, None, None] * grid - np.exp(grid)
    log = log - 0.5 * ((grid - design.u) / spread) ** 2
    density = scipy.special.softmax(log, axis=2).mean(axis=1)
    mean = density @ grid
    sd = np.sqrt(density @ grid**2 - mean**2)
    np.testing.assert_allclose((found[:, 0, 0] - mean) / sd, 0, atol=0.02)
    np.testing.assert_allclose(found[:, 0, 1] / sd, 1, atol=0.02)
    below = np.cumsum(density, axis=1)
    for i, wanted in enumerate(SHARES):
        upto = [np.interp(q, grid, b) for q, b in zip(found[:, 0, 2 + i], below, strict=True)]
        np.testing.assert_allclose(upto, wanted, atol=0.02)


def test_a_model_of_groups_alone_has_none():
    with pytest.raises(ValueError, match=r"no latent or deterministic site .*tree_to_frame"):
        read(ZOO["intercepts"].model, by="county", columns=None)


def measured(error, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("rows", len(error)):
        true = numpyro.sample("true", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(true, error), obs=y)


@pytest.mark.slow
def test_true_values_behind_measurements(tmp_path):
    """They stand beside the rows, from a tree that was read from a file; none of rows unmeasured.

    What has no labels in the tree is said to be beside the rows, wherever one would look.
    """
    rng = np.random.default_rng(0)
    error = rng.uniform(0.2, 1.5, 300)
    y = 1.5 + 0.8 * rng.normal(size=300) + error * rng.normal(size=300)
    rows = pd.DataFrame({"error": error, "y": y}, index=3 * np.arange(300))
    ddf = from_pandas(rows)
    options = {"method": "laplace", "correct": "auto", "n_shards": 2, "local": "summary"}
    assert "kind='effects'" in plan(ddf, measured, **options).no_local_because
    fitted = fit(ddf, measured, **options)
    with pytest.raises(ValueError, match=r"effects of rows \(true\) .* kind='effects'"):
        tree_to_frame(fitted)
    fitted.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    some = from_pandas(rows.assign(y=rows["y"].where(rows.index != 15)), 4)
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as tree:
        found = some.consensus.predict(tree, measured, kind="effects").compute()
    names = [f"true_{name}" for name in ("mean", "sd", "q05", "q95")]
    assert found.columns.tolist() == ["error", "y", *names]
    assert found.index.tolist() == rows.index.tolist()
    assert found.loc[[15], names].isna().all(axis=None)
    mu, tau = (fitted["posterior"][name].to_numpy().reshape(-1, 1) for name in ("mu", "tau"))
    share = tau**2 / (tau**2 + error**2)
    mean = mu + share * (y - mu)
    sd = np.sqrt((share * error**2).mean(axis=0) + mean.var(axis=0))
    there = rows.index != 15
    off = (found["true_mean"] - mean.mean(axis=0)) / sd
    assert np.abs(off[there]).max() < 0.01
    assert np.abs(found["true_sd"] / sd - 1)[there].max() < 0.01
