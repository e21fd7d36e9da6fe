"""Predictions as columns of a Dask frame: right, lazy, and refused where they would mislead."""

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr

from dask_consensus import tree_to_frame
from dask_consensus.local.predictions import NEW

from . import fit, from_pandas, raise_if_dask_computes

FIT = {"method": "laplace", "correct": "auto", "n_shards": 3, "local": "summary"}
COLUMNS = {"g": "who", "x": "x", "y": "y"}
DAYS = np.array(["2026-01-01", "2026-02-01"], "M8[ns]")
REGIONS = {"north": pd.Timestamp("2026-05-01"), "south": pd.Timestamp("2026-06-01")}


def model(g, x, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("groups", n_g):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
        alpha = numpyro.deterministic("alpha", mu + tau * raw)
    with numpyro.plate("rows", len(x)):
        level = numpyro.deterministic("level", alpha[g] + x)
        numpyro.sample("obs", dist.Normal(level, sigma), obs=y)


def table(groups=40, seed=0):
    rng = np.random.default_rng(seed)
    alpha = 1 + rng.normal(size=groups)
    g = np.concatenate([np.arange(groups), rng.integers(0, groups, 6 * groups)])
    x = rng.normal(size=len(g))
    y = alpha[g] + x + 0.7 * rng.normal(size=len(g))
    return pd.DataFrame({"who": g, "x": x, "y": y})


@pytest.fixture(scope="module")
def fitted():
    frame = table()
    return frame, fit(from_pandas(frame), model, by="who", columns=COLUMNS, **FIT)


@pytest.fixture(scope="module")
def drawn(fitted):
    options = FIT | {"local": "draws", "local_draws": 400}
    return fit(from_pandas(fitted[0]), model, by="who", columns=COLUMNS, **options)


def predicted(frame, tree, npartitions=3, **options):
    return from_pandas(frame, npartitions).consensus.predict(tree, model, **options)


def conjugate(frame, tree, who, x):
    """Mean and variance of new rows of groups, given the posterior's draws, in closed form."""
    sums = frame.assign(z=frame["y"] - frame["x"]).groupby("who")["z"].agg(["sum", "size"])
    total, size = sums["sum"].reindex(who).to_numpy(), sums["size"].reindex(who).to_numpy()
    total, size = np.nan_to_num(total), np.nan_to_num(size)
    shared = tree["posterior"].to_dataset().stack(sample=["chain", "draw"])
    mu, tau, sigma = (shared[name].to_numpy()[:, None] for name in ("mu", "tau", "sigma"))
    variance = 1 / (1 / tau**2 + size / sigma**2)
    mean = variance * (mu / tau**2 + total / sigma**2)
    return (mean + x).mean(axis=0), (variance + sigma**2).mean(axis=0) + mean.var(axis=0)


@pytest.mark.parametrize("effects", ["summary", "draws"])
def test_predictions_are_those_of_the_closed_form(fitted, drawn, effects):
    frame, tree = fitted
    who = np.append(np.arange(40), [77, 78])
    asked = pd.DataFrame({"who": who, "x": np.linspace(-2, 2, 42)})
    found = predicted(asked, tree if effects == "summary" else drawn).compute()
    mean, variance = conjugate(frame, tree, who, asked["x"].to_numpy())
    sd = np.sqrt(variance)
    close = 0.03 if effects == "summary" else 0.2  # 128 draws of each effect
    assert np.abs((found["obs_mean"] - mean) / sd).max() < close
    assert np.abs(found["obs_sd"] / sd - 1).max() < close
    assert np.abs((found["obs_q95"] - mean) / sd - 1.645).max() < 0.05 + close
    np.testing.assert_array_equal(found[NEW], who >= 70)


def test_the_frame_stays_as_it_was(fitted):
    """Its partitions, its index, its columns and their order; and nothing is computed before."""
    frame, tree = fitted
    frame = frame.sample(frac=1.0, random_state=1).set_index(np.repeat(np.arange(140), 2))
    frame["other"] = pd.Categorical(np.where(frame["x"] > 0, "a", "b"))
    lazy = from_pandas(frame, 4)
    with raise_if_dask_computes():
        predictions = lazy.consensus.predict(tree, model)
    assert predictions.npartitions == 4
    found = predictions.compute()
    pd.testing.assert_frame_equal(found[frame.columns], frame)
    assert found.columns.tolist() == [
        *frame.columns, "obs_mean", "obs_sd", "obs_q05", "obs_q95", NEW,
    ]  # fmt: skip
    pd.testing.assert_series_equal(found.dtypes, predictions.dtypes)
    np.testing.assert_array_equal(predictions.get_partition(2).compute(), found.iloc[140:210])


def test_sites_of_rows_are_those_of_their_groups(fitted):
    """What is computed row by row comes back beside it; nothing where nothing is known of the row.

    Here it is the expected value, so that both ways to it meet.
    """
    frame, tree = fitted
    asked = frame.head(60).assign(y=frame["y"].where(frame.index != 3))
    asked = pd.concat([asked, pd.DataFrame({"who": [3, 77], "x": 0.5, "y": [np.nan, 1.0]})])
    found = predicted(asked, tree, kind="effects", statistics=["q95", "mean"]).compute()
    assert found.columns.tolist() == ["who", "x", "y", "level_q95", "level_mean", NEW]
    expected = predicted(asked, tree, kind="expected").compute()
    told = np.ones(62, bool)
    told[[3, 60, 61]] = False
    for name in ("mean", "q95"):
        assert found[f"level_{name}"][~told].isna().all()
        sd = expected["obs_sd"][told]
        off = (found[f"level_{name}"] - expected[f"obs_{name}"])[told] / sd
        assert np.abs(off).max() < (1e-3 if name == "mean" else 0.05)
    assert found[NEW].tolist() == [False] * 61 + [True]


def test_another_frame_another_day(fitted, tmp_path):
    """Another dtype of the key, other names, a response without values, a tree from a file."""
    frame, tree = fitted
    plain = predicted(frame, tree).compute()
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    other = pd.DataFrame(
        {"WHO": frame["who"].astype("float32"), "x": frame["x"], "y": np.nan}, frame.index
    )
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as read:
        lazy = from_pandas(other, 2).consensus.predict(read, model, columns={"g": "WHO"})
        found = lazy.compute()
    pd.testing.assert_series_equal(found["obs_q95"], plain["obs_q95"], rtol=1e-6)
    assert not found[NEW].any()
    # The key may be the index, and there may be no response.
    lazy = dd.from_pandas(frame[["who", "x"]].set_index("who").sort_index(), npartitions=2)
    found = lazy.consensus.predict(tree, model, statistics=["mean"]).compute()
    assert not found[NEW].any()
    np.testing.assert_allclose(found["obs_mean"].sum(), plain["obs_mean"].sum(), rtol=1e-5)


def test_rows_may_be_many_and_partitions_empty(fitted):
    """Blocks of rows are put together again; a partition without rows has the columns."""
    frame, tree = fitted
    many = pd.concat([frame] * 130, ignore_index=True)
    found = predicted(many, tree, 1, statistics=["mean"]).compute()["obs_mean"].to_numpy()
    np.testing.assert_allclose(found, np.tile(found[: len(frame)], 130), rtol=1e-4, atol=1e-5)
    lazy = from_pandas(frame, 3)
    none = lazy[lazy["x"] > 100]
    assert none.consensus.predict(tree, model).compute().shape == (0, 8)


# Zarr says of its own defaults that they are not final yet.
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_nested_keys_and_categories(tmp_path):
    """A county's name may occur in two regions; a category keeps its code whatever the order.

    Keys and categories that are dates are dates again, in the tree, in its files and beside rows.
    """

    def nested(county, kind, y=None, *, n_county, n_kind):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        with numpyro.plate("kinds", n_kind):
            beta = numpyro.sample("beta", dist.Normal(0, 2))
        with numpyro.plate("counties", n_county):
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("obs", dist.Normal(mu + beta[kind] + b[county], 0.3), obs=y)

    rng = np.random.default_rng(0)
    n = 600
    frame = pd.DataFrame(
        {
            "region": rng.choice(["north", "south"], n),
            "county": rng.choice(["a", "b", "c", "d"], n),
            "kind": pd.Categorical(pd.to_datetime(rng.choice(DAYS, n))),
        }
    )
    level = frame["region"].eq("north") * 2.0 + frame["county"].eq("b") * frame["region"].eq(
        "south"
    )
    frame["region"] = frame["region"].map(REGIONS)
    frame["y"] = level + frame["kind"].eq(DAYS[1]) + rng.normal(0, 0.3, n)
    options = {"by": ["region", "county"], "rows_per_shard": 300} | FIT | {"n_shards": 2}
    tree = fit(from_pandas(frame), nested, **options)
    asked = frame.groupby(["region", "county", "kind"], observed=True, as_index=False)["y"].mean()
    asked["kind"] = pd.Categorical(asked["kind"], DAYS[::-1])
    asked.loc[0, "county"] = "none"
    np.testing.assert_array_equal(tree["posterior"]["kinds"], DAYS)
    assert set(tree["local"]["region"].to_numpy()) == {*REGIONS.values()}
    assert tree_to_frame(tree).dtypes["region"].kind == "M"
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    tree.to_zarr(tmp_path / "fit.zarr", consolidated=False)
    zarr = {"engine": "zarr", "consolidated": False}
    with (
        xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as again,
        xr.open_datatree(tmp_path / "fit.zarr", **zarr) as of_zarr,
    ):
        for one in (again, of_zarr):
            np.testing.assert_array_equal(one["posterior"]["kinds"], DAYS)
            assert tree_to_frame(one).dtypes["region"].kind == "M"
        found = from_pandas(asked, 2).consensus.predict(again, nested).compute()
    assert found[NEW].tolist() == [True] + [False] * (len(asked) - 1)
    np.testing.assert_allclose(found["obs_mean"][1:], asked["y"][1:], atol=0.15)
    asked["kind"] = pd.Categorical(asked["kind"].astype(DAYS.dtype) + pd.Timedelta(days=1))
    with pytest.raises(ValueError, match=r"column 'kind'.* categories that the fit had not"):
        from_pandas(asked, 1).consensus.predict(tree, nested).compute()


def test_several_sites_and_no_groups():
    def two(x, count, y):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        numpyro.sample("seen", dist.Normal(mu + x, 1.0), obs=y)
        numpyro.sample("counted", dist.Poisson(jnp.exp(0.1 * mu)), obs=count)

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=300), "count": rng.poisson(1.1, 300)})
    frame["y"] = 1 + frame["x"] + rng.normal(size=300)
    tree = fit(from_pandas(frame), two, **FIT)
    lazy = from_pandas(frame[["x"]]).consensus.predict(tree, two, statistics=["mean", "q50"])
    found = lazy.compute()
    names = ["seen_mean", "seen_q50", "counted_mean", "counted_q50"]
    assert found.columns.tolist() == ["x", *names]
    np.testing.assert_allclose(found["seen_mean"], 1 + found["x"], atol=0.2)
    probabilities = from_pandas(frame).consensus.predict(tree, two, kind="expected")
    assert "counted_q05" in probabilities.columns


def other_model(g, x, y=None, *, n_g):
    numpyro.sample("nu", dist.Normal(0, 5))
    model(g, x, y, n_g=n_g)


def edited_model(g, x, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("groups", n_g):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
    numpyro.sample("obs", dist.Normal((mu + tau * raw)[g] + x, sigma), obs=y)


BAD = {
    "a tree without its model": (
        lambda tree: {"tree": xr.DataTree()}, "does not say what was fitted"
    ),
    "another model": (
        lambda tree: {"model": other_model}, "sites 'nu' .*shape .* here, absent in the fit"
    ),
    "another prior": (
        lambda tree: {"model": edited_model}, "density of 'tau' is another at the same values"
    ),
    "a bad verdict": (
        lambda tree: {"tree": with_attributes(tree, verdict_good=0)}, "not to be relied on"
    ),
    "no effects": (
        lambda tree: {"tree": without_local(tree)},
        "no effects of groups",
    ),
    "a missing column": (lambda tree: {"frame": table()[["who", "y"]]}, "no column 'x'"),
    "no key": (lambda tree: {"frame": table()[["x", "y"]]}, "no column 'who'"),
    "a column of that name": (
        lambda tree: {"frame": table().assign(obs_sd=1)}, "has a column 'obs_sd' already"
    ),
    "an unknown statistic": (lambda tree: {"statistics": ["median"]}, "'median' is none of"),
    "a quantile of nothing": (lambda tree: {"statistics": ["q100"]}, "'q100' is none of"),
    "text for a list": (lambda tree: {"statistics": "mean"}, "list of names"),
    "a probability": (lambda tree: {"statistics": ["p1"]}, "site 'obs' is continuous"),
    "an unknown argument": (lambda tree: {"columns": {"z": "x"}}, "columns names 'z'"),
    "an unknown kind": (lambda tree: {"kind": "mean"}, "kind must be"),
    "a probability of an effect": (
        lambda tree: {"kind": "effects", "statistics": ["p1"]}, "site 'level' is continuous"
    ),
    "too few draws": (lambda tree: {"draws": 1}, "draws must be"),
}  # fmt: skip


def with_attributes(tree, **attributes):
    other = tree.copy()
    other.attrs |= attributes
    return other


def without_local(tree):
    other = tree.copy()
    del other["local"]
    return other


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_refused_at_once(fitted, what):
    change, message = BAD[what]
    given = {"frame": table(), "tree": fitted[1], "model": model} | change(fitted[1])
    lazy = from_pandas(given.pop("frame"))
    with raise_if_dask_computes(), pytest.raises(ValueError, match=message):
        lazy.consensus.predict(given.pop("tree"), given.pop("model"), **given)


ROWS = {
    "a null key": ({"who": [1, None, 2]}, "column 'who': 1 of the 3 values .* have no value"),
    "a key of text": ({"who": ["1", "2", "3"]}, "key 'who': text where the fit had integers"),
    "a missing value": ({"x": [0.1, np.nan, np.nan]}, "column 'x': 2 of the 3 .*row 1"),
    "an infinite value": ({"x": [0.1, np.inf, 0.2]}, "column 'x': 1 of the 3 .* infinite"),
    "text for a number": ({"x": ["a", "b", "c"]}, "column 'x' .*float32"),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_that_cannot_be_predicted_are_named(fitted, what):
    change, message = ROWS[what]
    frame = pd.DataFrame({"who": [1, 2, 3], "x": [0.1, 0.2, 0.3]} | change)
    with pytest.raises(ValueError, match=message):
        predicted(frame, fitted[1], 1).compute()


def test_a_bad_fit_predicts_if_told_to(fitted):
    frame, tree = fitted
    bad = with_attributes(tree, verdict_good=0)
    found = predicted(frame, bad, check_verdict=False, statistics=["mean"]).compute()
    right = predicted(frame, tree, statistics=["mean"]).compute()
    pd.testing.assert_frame_equal(found, right)


def one_row_each(group, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.5, 0.5))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Normal(mu, tau))
    numpyro.sample("obs", dist.Normal(b[group], 1.0), obs=y)


@pytest.mark.parametrize("scale", ["well known", "hardly known"])
def test_sds_of_effects_follow_a_scale(fitted, scale):
    """Raw effects turn with `tau` where they are written non-centred; far out nothing explodes."""
    if scale == "well known":
        frame, tree = fitted
        z, who, written, close = frame["y"] - frame["x"], frame["who"], model, 0.03
    else:
        rng = np.random.default_rng(2)
        frame = pd.DataFrame({"group": np.arange(150), "y": 0.5 + 1.05 * rng.normal(size=150)})
        z, who, written, close = frame["y"], frame["group"], one_row_each, 0.12
        tree = fit(from_pandas(frame), one_row_each, by="group", **FIT)
    shared = tree["posterior"].to_dataset().stack(sample=["chain", "draw"])
    mu, tau = shared["mu"].to_numpy(), shared["tau"].to_numpy()
    sigma = shared["sigma"].to_numpy() if "sigma" in shared else 1.0
    groups = z.groupby(who)
    total, size = (part.to_numpy()[:, None] for part in (groups.sum(), groups.size()))
    variance = 1 / (1 / tau**2 + size / sigma**2)
    mean = variance * (mu / tau**2 + total / sigma**2)
    exact = np.sqrt(variance.mean(axis=1) + mean.var(axis=1))
    asked = pd.DataFrame({who.name: groups.size().index, "x": 0.0})
    lazy = from_pandas(asked).consensus.predict(
        tree, written, kind="expected", statistics=["mean", "sd"], draws=300
    )
    found = lazy.compute()
    ratio = found["obs_sd"] / exact
    np.testing.assert_allclose(ratio, 1.0, atol=close)
    if scale == "well known":
        assert abs(np.median(ratio) - 1) < 0.01
    away = (found["obs_mean"] - mean.mean(axis=1)) / exact
    assert np.abs(away).max() < close
