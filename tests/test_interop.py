"""Results go into ArviZ, NumPyro and files; models and frames come as they are elsewhere."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Predictive

from dask_consensus.cluster.tasks import compute
from dask_consensus.frame.survey import survey
from dask_consensus.local.loo import _added_up, _estimated
from dask_consensus.local.psis import Left
from dask_consensus.local.subsample import Estimate
from dask_consensus.plan.bindings import bind

from . import ELPD_LOO, LOO_I, P_LOO, fit, from_pandas
from .test_predictions import COLUMNS, FIT, model, table

# The model of other tests, whose compiled code is at hand then.
OPTIONS: dict[str, Any] = {"by": "who", "columns": COLUMNS, **FIT, "num_chains": 2}
SHARED = ("mu", "tau", "sigma")
# Dask and ArviZ call pandas in a way that its version 3.1 is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")


@pytest.fixture(scope="module")
def fitted() -> xr.DataTree:
    tree: xr.DataTree = fit(from_pandas(table()), model, **OPTIONS)
    assert tree.attrs["verdict_good"]
    return tree


# ArviZ


@pytest.fixture
def az(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    arviz = pytest.importorskip("arviz")
    yield arviz
    import matplotlib.pyplot as plt

    plt.close("all")


def version(arviz: Any) -> int:
    return int(arviz.__version__.split(".")[0])


def centred(x, y=None):
    """Rows that depend on each other, which no integral parts."""
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(slope * (x - x.mean()), 1.0), obs=y)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_arviz_compares_the_chains_of_few_rows_that_nothing_corrects(az):
    tree = from_pandas(table()).consensus.fit(
        centred, num_warmup=200, num_samples=600, local=None, progress=False
    )
    assert tree.attrs["method_used"] == "nuts"
    assert "together, because groups depend on each other (obs): 4 chains" in tree.attrs["verdict"]
    posterior = tree["posterior"].to_dataset()
    assert dict(posterior.sizes) == {"chain": 4, "draw": 600}
    found = az.summary(posterior)
    assert 0.9 < found["r_hat"].item() < 1.05
    assert len(np.unique(posterior["slope"])) > 500


# ArviZ before 1 announces its successor, and what it will be called there.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_arviz_summarizes_a_result(az, fitted):
    posterior = fitted["posterior"].to_dataset()
    known = [az.summary(posterior)]  # as the README says
    if version(az) >= 1:
        known.append(az.summary(fitted))
    for found in known:
        assert set(found.index) == set(SHARED)
        # Independent draws in two chains: nothing for the diagnostics to complain about.
        assert (found["r_hat"].astype(float) < 1.02).all()
        assert (found["ess_bulk"].astype(float) > 500).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:arviz")
@pytest.mark.slow
def test_arviz_draws_a_result(az, fitted):
    posterior = fitted["posterior"].to_dataset()
    others = fitted["uncorrected"].to_dataset()
    if version(az) < 1:
        assert az.plot_trace(posterior).shape == (len(SHARED), 2)
        (ax,) = az.plot_forest([posterior, others], model_names=["corrected", "before"])
        assert len(ax.get_yticklabels()) == len(SHARED)
        idata = az.from_datatree(fitted)
        assert "posterior" in idata.groups()
    else:
        az.plot_trace(fitted)
        az.plot_forest({"corrected": fitted, "before": {"posterior": others}})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_arviz_compares_models_by_loo(az, fitted):
    ddf = from_pandas(table())
    left_out = ddf.consensus.loo(fitted, model)
    ranks = az.compare({"one": left_out, "again": left_out})
    # ArviZ 1.3 shows as many digits as the standard error leaves.
    np.testing.assert_allclose(ranks[ELPD_LOO].astype(float), left_out[ELPD_LOO], rtol=3e-2)
    assert re.search(rf"{len(table())} (observations|observed)", str(left_out))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_was_left_out_is_what_arviz_compares(az):
    """Made of numbers, so that it can be tried quickly with any version of ArviZ."""
    elpd = np.random.default_rng(0).normal(-1, 0.2, (2, 60))
    index = {"row": np.arange(60)}
    told = {
        name: _added_up(Left(each, each + 0.01, np.zeros(60)), "row", index, 400)
        for name, each in zip(("worse", "better"), elpd - [[0.5], [0.0]], strict=True)
    }
    assert az.compare(told).index.tolist() == ["better", "worse"]
    assert told["better"][ELPD_LOO] == pytest.approx(elpd[1].sum())
    np.testing.assert_array_equal(told["better"][LOO_I], elpd[1])
    left = Left(elpd[0, :10], elpd[0, :10], np.zeros(10))
    some = _estimated(Estimate(-60.0, 2.0, 0.5, 1.0, np.arange(10), left), 60, 400)
    assert (some[ELPD_LOO], some["subsampling_se"], some[P_LOO]) == (-60.0, 0.5, 1.0)
    assert "60" in str(some)


# Files


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_a_result_of_a_file_is_the_same_and_predicts(fitted, tmp_path, kind):
    path = tmp_path / f"fit.{kind}"
    if kind == "nc":
        pytest.importorskip("netCDF4")
        fitted.to_netcdf(path)
    else:
        pytest.importorskip("zarr")
        fitted.to_zarr(path)
    with xr.open_datatree(path, engine=None if kind == "nc" else "zarr") as back:
        xr.testing.assert_identical(back.load(), fitted)
        rows = from_pandas(table().head(20), 1)
        found, expected = (
            rows.consensus.predict(tree, model, statistics=["mean"]).compute()
            for tree in (back, fitted)
        )
    pd.testing.assert_frame_equal(found, expected)


# NumPyro


def test_numpyro_predicts_from_the_draws_of_a_result(fitted):
    """`Predictive` draws rows of new groups; they are what `predict` says of such rows."""
    draws = {
        name: jnp.asarray(values.to_numpy().reshape(-1, *values.shape[2:]))
        for name, values in fitted["posterior"].data_vars.items()
    }
    new = pd.DataFrame({"who": [-1, -2, -3], "x": [-1.0, 0.0, 2.0]})
    told = from_pandas(new, 1).consensus.predict(fitted, model, statistics=["mean", "sd"]).compute()
    assert told["new_group"].all()
    made = Predictive(model, draws)(
        jax.random.key(0), g=np.arange(3), x=new["x"].to_numpy(), n_g=3
    )["obs"]
    n = len(draws["mu"])
    sd = told["obs_sd"].to_numpy()
    # Four standard errors of means and of sds of so many draws.
    np.testing.assert_allclose(made.mean(0), told["obs_mean"], atol=4 * sd.max() / np.sqrt(n))
    np.testing.assert_allclose(made.std(0), sd, rtol=4 / np.sqrt(2 * n))


@pytest.mark.slow
def test_a_model_for_mcmc_is_fitted_as_it_is(fitted):
    """The function that is sampled here is the one that was fitted, on all rows at once."""
    frame = table()
    codes, groups = pd.factorize(frame["who"])
    mcmc = MCMC(NUTS(model), num_warmup=150, num_samples=300, progress_bar=False)
    data = {name: frame[name].to_numpy() for name in ("x", "y")}
    mcmc.run(jax.random.key(1), g=codes, n_g=len(groups), **data)
    sampled = {name: np.asarray(draws) for name, draws in mcmc.get_samples().items()}
    # Errors of NUTS by its effective draws; four of them, and room for those of the fit itself.
    for name in SHARED:
        expected, found = sampled[name], fitted["posterior"][name].values
        error = expected.std() / np.sqrt(effective_sample_size(expected[None]))
        assert abs(found.mean() - expected.mean()) < 4 * error + 0.1 * expected.std()
        assert found.std() == pytest.approx(expected.std(), rel=0.25)
    expected = sampled["alpha"]
    error = expected.std(0) / np.sqrt(effective_sample_size(expected[None]))
    alpha = fitted["local"]["alpha"].sel(statistic="mean", who=groups).values
    assert (abs(alpha - expected.mean(0)) < 5 * error + 0.05 * expected.std(0)).all()


# Frames


def shops() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    shop = rng.integers(0, 40, 300)
    # Eighths are numbers that text holds as they are.
    dose, sales = rng.integers(-80, 80, (2, 300)) / 8
    return pd.DataFrame({"shop": [f"shop {i}" for i in shop], "dose": dose, "sales": sales})


def of_shops(shop, dose, sales=None, *, n_shop):
    raise NotImplementedError


def _delayed(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    parts = [frame[i::3] for i in range(3)]
    return dd.from_delayed([dask.delayed(part) for part in parts], meta=frame.head(0))


def _part(number: int, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[number::4]


def _mapped(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    return dd.from_map(_part, range(4), frame=frame, meta=frame.head(0))


def _parquet(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    from_pandas(frame).to_parquet(folder)
    return dd.read_parquet(folder)


def _csv(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    from_pandas(frame).to_csv(folder / "*.csv", index=False)
    return dd.read_csv(folder / "*.csv")


def _arrow(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    return from_pandas(frame.convert_dtypes(dtype_backend="pyarrow"))


def _objects(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    with dask.config.set({"dataframe.convert-string": False}):
        return from_pandas(frame.astype({"shop": object}))


def _joined(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    """Means of a group beside its rows, and a column of another table."""
    ddf = from_pandas(frame.drop(columns="dose").assign(number=np.arange(len(frame))))
    doses = from_pandas(frame[["dose"]].assign(number=np.arange(len(frame))), 2)
    means = ddf.groupby("shop")["sales"].mean().rename("mean").reset_index()
    return ddf.merge(doses, on="number").merge(means, on="shop")


def _optimized(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    more = pd.concat([frame, frame.assign(shop="none")]).assign(unused=1)
    ddf = _parquet(more, folder)
    return ddf[ddf["shop"] != "none"].optimize()


def _filtered(frame: pd.DataFrame, folder: Path) -> dd.DataFrame:
    more = pd.concat([frame, frame.assign(shop="none")])
    ddf = _parquet(more.assign(half=more["dose"] / 2), folder)
    ddf = ddf[ddf["shop"] != "none"]
    return ddf.assign(dose=2 * ddf["half"]).persist()


FRAMES = (
    _parquet, _csv, _delayed, _mapped, _arrow, _objects, _joined, _optimized, _filtered,
)  # fmt: skip


def surveyed(ddf: dd.DataFrame) -> Any:
    layout = bind(ddf, of_shops, "shop", None, False).layout
    (found,) = compute([survey(ddf, layout)])
    return found


@pytest.fixture(scope="module")
def expected() -> Any:
    return surveyed(from_pandas(shops()))


@pytest.mark.parametrize("make", FRAMES, ids=lambda make: make.__name__.strip("_"))
def test_rows_are_the_same_however_the_frame_was_made(make, expected, tmp_path):
    """What rows hold is summed up, whatever their order and their partitions."""
    found = surveyed(make(shops(), tmp_path))
    assert found.rows == expected.rows
    assert found.contents.checksums == expected.contents.checksums
    sums = (list(itertools.chain(*each.contents.sums)) for each in (found, expected))
    np.testing.assert_allclose(*sums, rtol=1e-12)


@pytest.mark.slow
def test_a_frame_of_joins_gives_the_draws_of_a_plain_one(fitted):
    frame = table().assign(number=range(len(table())))
    ddf = from_pandas(frame.drop(columns="x"))
    sizes = ddf.groupby("who")["y"].count().rename("size").reset_index()
    ddf = ddf.merge(from_pandas(frame[["number", "x"]], 2), on="number").merge(sizes, on="who")
    tree = fit(ddf, model, **OPTIONS)
    posteriors = (each["posterior"].to_dataset().drop_attrs() for each in (tree, fitted))
    xr.testing.assert_identical(*posteriors)
