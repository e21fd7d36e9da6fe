"""Effects of groups on two levels: labelled, drawn, written, joined, predicted from."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from dask_consensus import tree_to_frame
from dask_consensus.shard.at_draws import Normals, Rows, make_design
from dask_consensus.shard.predictive import Asked, ask, log_likelihoods, replicate, row_sites

from . import fit, from_pandas
from .test_marginal import read

FIT = {"method": "laplace", "correct": "auto", "n_shards": 3, "local": "summary"}
BY = {"by": ["region", "county"], "columns": {"y": "y", "x": "x"}}


def model(region, county, x, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(1).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    region_of = jnp.zeros(n_county, region.dtype).at[county].set(region)
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(mu, tau[0]))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0, tau[1]))
        numpyro.deterministic("level", a[region_of] + b)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a[region] + b[county] + x, sigma), obs=y)


def table(regions=12, counties=5, rows=4, seed=0):
    """Counties of all regions have the same names."""
    rng = np.random.default_rng(seed)
    a, b = 1 + rng.normal(size=regions), 0.7 * rng.normal(size=(regions, counties))
    region = np.repeat(np.arange(regions), counties * rows)
    county = np.tile(np.repeat(np.arange(counties), rows), regions)
    x = rng.normal(size=len(region))
    y = a[region] + b[region, county] + x + 0.5 * rng.normal(size=len(x))
    frame = pd.DataFrame(
        {"region": [f"r{i:02d}" for i in region], "county": county, "x": x, "y": y}
    )
    return frame.sample(frac=1.0, random_state=seed)


def by_hand():
    """Effects in a tree, with coordinates in an order that a file may give them in."""
    said = {"statistic": ["mean", "sd"]}
    one, two = np.array([[1.0, 2.0], [0.1, 0.2]]), np.arange(6.0).reshape(2, 3)
    coords = {
        "county": ("county", [0, 1, 0], {"key": 1}),
        "region_of_county": ("county", ["r0", "r0", "r1"], {"key": 0}),
        "region": ("region", ["r0", "r1"], {"key": 0}),
    }
    variables = {
        "b": (("statistic", "county"), two),
        "county_rows": ("county", [3, 4, 5]),
        "a": (("statistic", "region"), one),
        "region_rows": ("region", [7, 5]),
    }
    return xr.DataTree.from_dict({"local": xr.Dataset(variables, coords | said)})


def test_a_table_has_one_level():
    counties = tree_to_frame(by_hand()).compute()
    assert counties.columns.tolist() == ["region", "county", "b_mean", "b_sd", "rows"]
    assert counties["region"].tolist() == ["r0", "r0", "r1"]
    regions = tree_to_frame(by_hand(), "region").compute()
    assert regions.to_dict("list") == {
        "region": ["r0", "r1"],
        "a_mean": [1.0, 2.0],
        "a_sd": [0.1, 0.2],
        "rows": [7, 5],
    }
    with pytest.raises(ValueError, match="there are effects of the groups of region, county"):
        tree_to_frame(by_hand(), "state")


def test_a_row_has_the_effects_of_both_its_groups():
    """Known ones as they belong together, new counties as the population, around their region."""
    values = {"x": np.zeros(8), "y": np.zeros(8)}
    shard_model = read(model, values, groups=["region", "county"])
    rng = np.random.default_rng(0)
    u = np.tile([0.5, np.log(1.0), np.log(0.7), np.log(0.3)], (128, 1))
    u += 1e-6 * rng.normal(size=u.shape)  # as good as known
    slope = np.zeros((2, 1, 4), np.float32)
    wide = [np.sqrt(np.full((2, 1, 1), v, np.float32)) for v in (0.3, 0.2)]
    upper = Normals(np.array([[2.0], [0.0]], np.float32), slope, None, wide[0])
    outer = np.full((2, 1, 1), -0.8, np.float32)
    lower = Normals(np.array([[0.4], [0.0]], np.float32), slope, None, wide[1], outer)
    lower = Normals(*(None if p is None else p[[0, 1, 1]] for p in lower))
    # A known county of a known region, a new one there, and one of a new region.
    arguments = {
        "region": np.array([0, 0, 1], np.int32),
        "county": np.array([0, 1, 2], np.int32),
        "x": np.zeros(3, np.float32),
        "y": np.zeros(3, np.float32),
    }
    known = np.array([True, False]), np.array([True, False, False])
    rows = Rows(arguments, known, (upper, lower))
    dtypes = {"region": "int32", "county": "int32", "x": "float32", "y": "float32"}
    asked = Asked(row_sites(shard_model, dtypes), (("mean", "sd"),), True)
    ((mean, sd),) = np.moveaxis(ask(shard_model, asked, make_design(shard_model, u), rows)[0], 0, 2)
    np.testing.assert_allclose(mean, [2.4, 2.0, 0.5], atol=1e-3)
    variances = [0.2**2 * 0.3 + 0.2, 0.3 + 0.49, 1.0 + 0.49]
    np.testing.assert_allclose(sd, np.sqrt(variances), rtol=1e-3)


def test_rows_and_draws_of_both_levels_meet():
    """What rows left out rest on: the likelihood of a row at a draw of both its groups' effects."""
    values = {"x": np.zeros(8), "y": np.zeros(8)}
    shard_model = read(model, values, groups=["region", "county"])
    rng = np.random.default_rng(0)
    u, a, b = rng.normal(size=(20, 4)), rng.normal(size=(20, 2)), rng.normal(size=(20, 3))
    region, county = np.array([0, 0, 1, 1, 0], np.int32), np.array([0, 1, 2, 2, 0], np.int32)
    x, y = (rng.normal(size=5).astype(np.float32) for _ in "xy")
    arguments = {"region": region, "county": county, "x": x, "y": y}
    known, effects = (np.ones(2, bool), np.ones(3, bool)), ({"a": a}, {"b": b})
    dtypes = {"region": "int32", "county": "int32", "x": "float32", "y": "float32"}
    sites, numbers = row_sites(shard_model, dtypes), np.arange(3, dtype=np.uint32)
    given = (
        make_design(shard_model, u),
        Rows(arguments, known, effects),
        ((numbers[:2], numbers), 0),
    )
    mean, sd = a[:, region] + b[:, county] + x, np.exp(u[:, 3:])
    found = log_likelihoods(shard_model, sites, *given)
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf(y, mean, sd), rtol=1e-4, atol=1e-4)
    (made,) = replicate(shard_model, sites, *given)
    away = (made.replicated[:, :, 0] - mean) / sd
    assert 0.7 < away.std() < 1.3
    np.testing.assert_array_equal(made.observed[:, 0], y)


@pytest.fixture(scope="module")
def fitted():
    frame = table()
    return frame, fit(from_pandas(frame), model, **BY, **FIT)


@pytest.fixture(scope="module")
def drawn():
    options = FIT | {"local": "draws", "local_draws": 400}
    return fit(from_pandas(table()), model, **BY, **options)


def exact(tree, frame):
    """Means and covariances of a and b given the posterior's own draws, by the closed form."""
    keys = sorted(set(zip(frame["region"], frame["county"], strict=True)))
    regions = sorted(set(frame["region"]))
    n, m, rows = len(regions), len(keys), len(frame)
    z = np.zeros((rows, n + m))
    z[np.arange(rows), [regions.index(r) for r in frame["region"]]] = 1
    pairs = zip(frame["region"], frame["county"], strict=True)
    z[np.arange(rows), [n + keys.index(pair) for pair in pairs]] = 1
    few = tree["posterior"].to_dataset().isel(chain=0, draw=slice(None, None, 10))
    gram, rest = z.T @ z, (frame["y"] - frame["x"]).to_numpy()
    means, covariances = [], []
    for i in range(few.sizes["draw"]):
        u = few.isel(draw=i)
        tau, noise = u["tau"].to_numpy() ** 2, float(u["sigma"]) ** 2
        prior = 1 / np.repeat(tau, [n, m])
        cov = np.linalg.inv(gram / noise + np.diag(prior))
        goal = z.T @ rest / noise + prior * np.repeat([float(u["mu"]), 0.0], [n, m])
        means.append(cov @ goal)
        covariances.append(cov)
    mean = np.mean(means, axis=0)
    return mean, np.mean(covariances, axis=0) + np.cov(np.array(means), rowvar=False), n


@pytest.mark.slow
def test_a_summary_of_both_levels(fitted):
    frame, tree = fitted
    local = tree["local"]
    assert local["a"].dims == ("statistic", "region")
    assert local["b"].dims == local["level"].dims == ("statistic", "county")
    assert local["region"].to_numpy().tolist() == sorted(set(frame["region"]))
    # Counties have the same names in all regions.
    pairs = pd.MultiIndex.from_arrays([local["region_of_county"].values, local["county"].values])
    sizes = frame.groupby(["region", "county"]).size()
    assert pairs.equals(sizes.index.set_names([None, None]))
    np.testing.assert_array_equal(local["county_rows"], sizes)
    np.testing.assert_array_equal(local["region_rows"], frame.groupby("region").size())
    mean, covariance, n = exact(tree, frame)
    sd = np.sqrt(covariance.diagonal())
    told = np.concatenate([local["a"].to_numpy(), local["b"].to_numpy()], axis=1)
    assert np.abs((told[0] - mean) / sd).max() < 0.1
    assert np.abs(told[1] / sd - 1).max() < 0.06
    into = np.repeat(np.arange(n), 5)
    both = sd[n:] ** 2 + (sd**2)[into] + 2 * covariance[n + np.arange(60), into]
    np.testing.assert_allclose(local["level"].sel(statistic="sd"), np.sqrt(both), rtol=0.06)
    # A county's rows alone, its region being known.
    tau, sigma = tree["posterior"]["tau"].mean(("chain", "draw")), tree["posterior"]["sigma"].mean()
    expected = 1 / (1 + 4 * float(tau[1] / sigma) ** 2)
    np.testing.assert_allclose(local["b_shrinkage"], expected, rtol=0.1)


@pytest.mark.slow
def test_draws_of_both_levels_belong_together(fitted, drawn, tmp_path):
    frame, summary = fitted
    local = drawn["local"]
    assert local["a"].dims == ("chain", "draw", "region")
    assert local["b"].shape == (1, 400, 60)
    upper = local["a"].sel(region=local["region_of_county"])
    np.testing.assert_allclose(local["level"], upper + local["b"], rtol=1e-3, atol=1e-3)
    _, covariance, n = exact(summary, frame)
    sd = np.sqrt(covariance.diagonal())
    correlation = (covariance / np.outer(sd, sd))[n + np.arange(60), np.repeat(np.arange(n), 5)]
    found = [np.corrcoef(upper[0, :, j], local["b"][0, :, j])[0, 1] for j in range(60)]
    assert np.abs(np.array(found) - correlation).max() < 4.5 / np.sqrt(400)
    assert abs(np.mean(found) - correlation.mean()) < 0.04
    path = str(tmp_path / "draws.zarr")
    options = FIT | {"local": "draws", "local_draws": 400, "store": path}
    stored = fit(from_pandas(frame), model, **BY, **options)["local"]
    labels = stored["region_of_county"].to_numpy(), stored["county"].to_numpy()
    order = np.lexsort(labels[::-1])
    np.testing.assert_array_equal(stored["b"].isel(county=order), local["b"])
    np.testing.assert_array_equal(stored["a"].sel(region=local["region"]), local["a"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_a_tree_survives_files(fitted, tmp_path):
    frame, tree = fitted
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    tree.to_zarr(tmp_path / "fit.zarr", consolidated=False)
    rows = from_pandas(frame.iloc[:20], 1)
    expected = rows.consensus.predict(tree, model).compute()
    for name, options in (("nc", {"engine": "h5netcdf"}), ("zarr", {"consolidated": False})):
        with xr.open_datatree(tmp_path / f"fit.{name}", **options) as read:
            xr.testing.assert_equal(read["local"].to_dataset(), tree["local"].to_dataset())
            pd.testing.assert_frame_equal(rows.consensus.predict(read, model).compute(), expected)


@pytest.mark.slow
def test_the_table_is_of_one_level(fitted, drawn):
    frame, tree = fitted
    counties = tree_to_frame(tree).compute()
    assert counties.columns.tolist()[:3] == ["region", "county", "b_mean"]
    assert len(counties) == 60
    regions = tree_to_frame(tree, "region").compute()
    assert regions.columns.tolist()[:2] == ["region", "a_mean"]
    assert "rows" in regions.columns
    np.testing.assert_array_equal(regions["a_q95"], tree["local"]["a"].sel(statistic="q95"))
    joined = from_pandas(frame).merge(tree_to_frame(tree), on=["region", "county"]).compute()
    assert len(joined) == len(frame)
    assert (joined["rows"] == 4).all()
    of_draws = tree_to_frame(drawn, "county").compute()
    assert of_draws.columns.tolist()[:3] == ["region", "county", "b_mean"]
    with pytest.raises(ValueError, match="there are effects of the groups of region, county"):
        tree_to_frame(tree, "state")


@pytest.mark.slow
@pytest.mark.parametrize("of", ["summary", "draws"])
def test_predictions_of_known_and_new_groups(fitted, drawn, of):
    frame, summary = fitted
    tree = summary if of == "summary" else drawn
    rows = frame.drop_duplicates(["region", "county"]).sort_values(["region", "county"])
    rows = rows.assign(x=0.0).drop(columns="y")
    new = rows.iloc[[0, 0]].assign(county=[99, 0], region=["r00", "nowhere"])
    asked = from_pandas(pd.concat([rows, new]), 2)
    found = asked.consensus.predict(tree, model, kind="expected").compute()
    assert found["new_region"].tolist() == [False] * 60 + [False, True]
    assert found["new_group"].tolist() == [False] * 60 + [True, True]
    level = summary["local"]["level"]
    mean, sd = found["obs_mean"].to_numpy(), found["obs_sd"].to_numpy()
    known = level.sel(statistic="sd").to_numpy()
    assert np.abs((mean[:60] - level.sel(statistic="mean")) / known).max() < 0.35
    np.testing.assert_allclose(sd[:60] / known, 1, atol=0.2)
    # A new county of a known region has the region's effect, one of a new region no more than mu.
    posterior = summary["posterior"]
    tau = (posterior["tau"] ** 2).mean(("chain", "draw")).to_numpy()
    a_mean, a_sd = (
        float(summary["local"]["a"].sel(region="r00", statistic=s)) for s in ("mean", "sd")
    )
    assert abs(mean[60] - a_mean) < 0.3
    assert sd[60] == pytest.approx(np.sqrt(a_sd**2 + tau[1]), rel=0.15)
    assert abs(mean[61] - float(posterior["mu"].mean())) < 0.3
    of_mu = float(posterior["mu"].var())
    assert sd[61] == pytest.approx(np.sqrt(of_mu + tau.sum()), rel=0.2)
