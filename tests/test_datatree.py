from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from numpyro.handlers import reparam, scope
from numpyro.infer.reparam import LocScaleReparam

from dask_consensus.result.datatree import posterior_dataset

from . import fit, from_pandas
from .models import SMOKING, frame, normal_rows, planned


def study(county, smoking, x, y, n_county, n_smoking):
    log_sigma = numpyro.sample("log_sigma", dist.Normal(0, 1))
    sigma = numpyro.deterministic("sigma", jnp.exp(log_sigma))
    share = numpyro.sample("share", dist.Dirichlet(jnp.full(3, 5.0)))
    with numpyro.plate("smoking", n_smoking):
        beta = numpyro.sample("beta", dist.Normal(0, 1))
        numpyro.deterministic("odds", jnp.exp(beta))
    with numpyro.plate("term", 2), reparam(config={"slope": LocScaleReparam(0)}):
        slope = numpyro.sample("slope", dist.Normal(0, 2))
    with scope(prefix="inner"), numpyro.plate("axis", 2):
        # NumPyro's scopes put slashes into names, which an xarray tree takes for paths.
        loc = numpyro.sample("loc", dist.Normal(0, 1).expand([2, 3]).to_event(1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(loc[0, 0], 1))
    normal_rows(alpha[county] + beta[smoking] + (share[0] + slope[0]) * x, sigma, y)


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    rows = from_pandas(frame(((20, 30, 25, 19, 33),) * 3))
    options = {"by": "county", "n_shards": 2, "num_chains": 2, "seed": 3}
    return fit(rows, study, num_warmup=150, num_samples=100, **options)


# Names


def test_dims_are_named_after_plates(tree):
    posterior = tree["posterior"]
    dims = {name: variable.dims[2:] for name, variable in posterior.data_vars.items()}
    assert dims == {
        "log_sigma": (),
        "share": ("share_dim_0",),
        "beta": ("smoking",),
        "slope_decentered": ("term",),
        "inner.loc": ("inner.axis", "inner.loc_dim_1"),
        "sigma": (),
        "odds": ("smoking",),
        "slope": ("term",),
    }
    assert all(variable.dims[:2] == ("chain", "draw") for variable in posterior.data_vars.values())
    assert dict(posterior.sizes)["chain"] == 2
    assert dict(posterior.sizes)["draw"] == 100
    assert posterior["smoking"].values.tolist() == list(SMOKING)


def test_local_sites_are_not_in_the_posterior(tree):
    assert "alpha" not in tree["posterior"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (lambda x: pd.cut(x, [-9, 0, 9]), ["(-9, 0]", "(0, 9]"]),
        (lambda x: (x > 0).astype("category"), [False, True]),
        (lambda x: (x > 0).astype(int).astype("category"), [0, 1]),
    ],
    ids=["intervals", "booleans", "integers"],
)
def test_labels_that_a_file_can_hold(values, labels, tmp_path):
    model = planned("categories").model
    categories = tuple(values(frame()["x"]).cat.categories)
    draws = {"beta": np.zeros((1, 4, len(categories)))}
    posterior = posterior_dataset(model, draws, {"smoking": categories})
    assert posterior["smoking"].values.tolist() == labels
    posterior.to_netcdf(tmp_path / "posterior.nc", engine="netcdf4")


# Values


def test_deterministics_are_recomputed_from_the_combined_draws(tree):
    posterior = tree["posterior"].to_dataset()
    # Computed twice in float32: equal to a few units in the last place.
    np.testing.assert_allclose(posterior["sigma"], np.exp(posterior["log_sigma"]), rtol=1e-5)
    np.testing.assert_allclose(posterior["odds"], np.exp(posterior["beta"]), rtol=1e-5)
    np.testing.assert_allclose(posterior["slope"], 2 * posterior["slope_decentered"], rtol=1e-5)


def test_draws_lie_in_their_supports(tree):
    """Combination in unconstrained space cannot leave them; averages on the simplex could."""
    share = tree["posterior"]["share"]
    assert (share > 0).all()
    np.testing.assert_allclose(share.sum("share_dim_0"), 1, rtol=1e-5)


def test_shards_are_diagnosed(tree):
    shards = tree["shards"]
    assert dict(shards.sizes) == {
        "round": 1, "shard": 2, "coordinate": 14, "coordinate_": 14, "level": 1,
    }  # fmt: skip
    names = {
        "rows", "groups", "weight", "mean", "precision", "ess", "r_hat", "divergences", "steps",
        "step_size", "accept_prob", "seconds", "compile_seconds",
    }  # fmt: skip
    assert names <= set(shards.data_vars)
    assert all("long_name" in variable.attrs for variable in shards.data_vars.values())
    assert int(shards["rows"].sum()) == 381
    assert int(shards["groups"].sum()) == 5
    np.testing.assert_allclose(shards["weight"].sum("shard"), 1, rtol=1e-12)
    assert shards["coordinate"].values[:4].tolist() == [
        "log_sigma",
        "share[0]",
        "share[1]",
        "beta[current]",
    ]
    assert (shards["ess"] > 0).all()
    assert (shards["accept_prob"] > 0.5).all()


def test_attributes(tree):
    for node in (tree, tree["posterior"]):
        attributes = node.attrs
        assert attributes["inference_library"] == attributes["creation_library"] == "dask_consensus"
        assert set(json.loads(attributes["versions"])) >= {"numpyro", "jax", "dask", "xarray"}
        assert json.loads(attributes["by"]) == ["county"]
        assert (attributes["method"], attributes["seed"], attributes["n_shards"]) == (
            "consensus",
            3,
            2,
        )
        assert attributes["sampling_time"] > 0
        assert "created_at" in attributes


def test_combined_draws_have_no_sample_stats(tree):
    """No Hamiltonian visited them."""
    assert "sample_stats" not in tree.children


# Files


@pytest.mark.parametrize(("engine", "package"), [("netcdf4", "netCDF4"), ("h5netcdf", "h5py")])
def test_netcdf_round_trip(tree, tmp_path, engine, package):
    pytest.importorskip(package)
    tree.to_netcdf(tmp_path / "tree.nc", engine=engine)
    with xr.open_datatree(tmp_path / "tree.nc", engine=engine) as back:
        xr.testing.assert_identical(back.load(), tree)


# Zarr says of its own defaults that they are not final yet.
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_zarr_round_trip(tree, tmp_path):
    tree.to_zarr(tmp_path / "tree.zarr")
    with xr.open_datatree(tmp_path / "tree.zarr", engine="zarr") as back:
        xr.testing.assert_identical(back.load(), tree)


# ArviZ


# ArviZ 0.23 announces its successor.
@pytest.mark.filterwarnings("ignore::FutureWarning:arviz")
def test_summary(tree):
    az = pytest.importorskip("arviz")
    posterior = tree["posterior"].to_dataset()
    if int(az.__version__.split(".")[0]) < 1:
        tables = [az.summary(az.from_datatree(tree)), az.summary(posterior)]
    else:
        tables = [az.summary(tree), az.summary(posterior)]
    for table in tables:
        assert {"log_sigma", "beta[current]", "odds[never]", "slope[1]"} <= set(table.index)
        # Tables are rounded to two or three digits.
        mean = float(table.loc["log_sigma", "mean"])
        assert mean == pytest.approx(float(posterior["log_sigma"].mean()), abs=0.01)
