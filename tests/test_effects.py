"""Effects of all groups: as labelled data, as draws, as a table, on any scheduler."""

import json

import dask
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr

from dask_consensus import tree_to_frame
from dask_consensus.fit import shard_rows
from dask_consensus.local import effects, written_summary

from . import fit, from_pandas, plan, raise_if_dask_computes

FIT = {"method": "laplace", "correct": "auto", "n_shards": 3, "local": "summary"}


def model(g, x, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("groups", n_g):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
        alpha = numpyro.deterministic("alpha", mu + tau * raw)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[g] + x, sigma), obs=y)


def table(groups=40, seed=0):
    rng = np.random.default_rng(seed)
    alpha = 1 + rng.normal(size=groups)
    g = np.concatenate([np.arange(groups), rng.integers(0, groups, 6 * groups)])
    x = rng.normal(size=len(g))
    y = alpha[g] + x + 0.7 * rng.normal(size=len(g))
    frame = pd.DataFrame({"who": [f"p{i:03d}" for i in g], "x": x, "y": y})
    return frame.sample(frac=1.0, random_state=seed), alpha


COLUMNS = {"g": "who", "x": "x", "y": "y"}


@pytest.fixture(scope="module")
def fitted():
    frame, alpha = table()
    tree = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **FIT)
    return frame, alpha, tree


def test_a_summary_is_labelled_by_the_keys(fitted):
    frame, alpha, tree = fitted
    local = tree["local"]
    assert local["alpha"].dims == ("statistic", "who")
    assert local["statistic"].values.tolist() == ["mean", "sd", "q05", "q50", "q95"]
    assert local["who"].values.tolist() == sorted(set(frame["who"]))
    sizes = frame.groupby("who").size()
    np.testing.assert_array_equal(local["rows"], sizes)
    mean, sd = (local["alpha"].sel(statistic=s).to_numpy() for s in ("mean", "sd"))
    assert np.abs((alpha - mean) / sd).max() < 4
    # Against the conjugate formula at the posterior means: mu and tau are nearly known.
    posterior = tree["posterior"].mean()
    tau2, noise = float(posterior["tau"]) ** 2, float(posterior["sigma"]) ** 2 / sizes.to_numpy()
    expected = frame.assign(z=frame.y - frame.x).groupby("who").z.mean().to_numpy()
    expected = (expected * tau2 + float(posterior["mu"]) * noise) / (tau2 + noise)
    assert np.abs((mean - expected) / sd).max() < 0.05
    np.testing.assert_allclose(local["alpha_shrinkage"], noise / (tau2 + noise), rtol=0.05)
    assert json.loads(tree.attrs["profile"])["local"] > 0


def test_few_draws_do_where_effects_are_normal(fitted):
    """Four candidates at each of 24 draws of the shared parameters, and no word of warning."""
    frame, _, tree = fitted
    few = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **FIT, local_draws=24)
    ours, theirs = few["local"]["alpha"], tree["local"]["alpha"]
    assert few["local"].attrs["draws"] == 24
    sd = theirs.sel(statistic="sd")
    assert float(np.abs((ours - theirs) / sd).max()) < 0.1


# Zarr says of its own defaults that they are not final yet.
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_a_tree_survives_files(fitted, tmp_path):
    tree = fitted[2]
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read["local"].to_dataset(), tree["local"].to_dataset())
    tree.to_zarr(tmp_path / "fit.zarr", consolidated=False)
    with xr.open_datatree(tmp_path / "fit.zarr", engine="zarr", consolidated=False) as read:
        np.testing.assert_array_equal(
            read["local"]["alpha"].sel(who="p007"), tree["local"]["alpha"].sel(who="p007")
        )


def test_the_table_has_one_row_a_group(fitted):
    frame, _, tree = fitted
    lazy = tree_to_frame(tree, rows_per_partition=15)
    assert lazy.npartitions == 3
    found = lazy.compute()
    assert found.columns.tolist()[:3] == ["who", "raw_mean", "raw_sd"]
    assert len(found) == 40
    np.testing.assert_array_equal(found["alpha_q95"], tree["local"]["alpha"].sel(statistic="q95"))
    joined = from_pandas(frame).merge(lazy[["who", "alpha_mean", "rows"]], on="who").compute()
    assert len(joined) == len(frame)
    np.testing.assert_array_equal(joined.groupby("who").size(), joined.groupby("who").rows.first())
    with pytest.raises(ValueError, match="no group effects"):
        tree_to_frame(xr.DataTree.from_dict({"posterior": tree["posterior"].to_dataset()}))


@pytest.mark.parametrize("n_shards", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_shards_do_not_matter(fitted, n_shards):
    """All rows in one shard, or five: the same effects of the same groups."""
    frame, _, tree = fitted
    options = FIT | {"n_shards": n_shards, "num_samples": 2000, "method": "auto"}
    other = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
    ours, theirs = tree["local"]["alpha"], other["local"]["alpha"]
    sd = ours.sel(statistic="sd")
    assert float(np.abs((ours - theirs) / sd).max()) < 0.15
    np.testing.assert_array_equal(ours["who"], theirs["who"])


def test_draws_belong_to_those_of_the_posterior(fitted, tmp_path):
    frame, _, tree = fitted
    options = FIT | {"local": "draws", "local_draws": 200, "num_chains": 2}
    drawn = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
    local, posterior = drawn["local"], drawn["posterior"]
    assert local["alpha"].dims == ("chain", "draw", "who")
    assert local["alpha"].shape == (2, 100, 40)
    of_u = posterior.sel(draw=local["draw"])
    expected = of_u["mu"] + of_u["tau"] * local["raw"]
    np.testing.assert_allclose(
        local["alpha"], expected.transpose("chain", "draw", "who"), rtol=1e-3
    )
    summary = tree["local"]["alpha"]
    mean, sd = (summary.sel(statistic=s) for s in ("mean", "sd"))
    found = local["alpha"].mean(("chain", "draw"))
    assert float(np.abs((found - mean) / sd).max()) < 4.5 / np.sqrt(200)
    # A store holds the same draws, in whatever blocks they are written.
    path = str(tmp_path / "draws.zarr")
    stored = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options, store=path)
    lazily = stored["local"]
    assert lazily["alpha"].chunks is not None
    np.testing.assert_array_equal(
        lazily["alpha"].sel(who=local["who"]).to_numpy(), local["alpha"].to_numpy()
    )
    found = tree_to_frame(stored).compute().set_index("who")
    np.testing.assert_allclose(
        found.loc["p003", "alpha_mean"], float(local["alpha"].sel(who="p003").mean()), rtol=1e-5
    )


def test_a_store_that_cannot_be_written_to_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "draws.zarr")
    lazy = from_pandas(pd.DataFrame({"who": [0, 1], "x": [0.0, 1.0], "y": [0.0, 1.0]}))
    with raise_if_dask_computes(), pytest.raises(OSError, match=r"cannot be written to .* workers"):
        fit(lazy, model, by="who", columns=COLUMNS, local="draws", store=path)


def test_nested_keys_have_a_column_of_each_level():
    def nested(county, y=None, *, n_county):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(2))
        with numpyro.plate("counties", n_county):
            a = numpyro.sample("a", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(a[county], 1.0), obs=y)

    rng = np.random.default_rng(0)
    pairs = [(f"r{r}", c) for r in range(6) for c in range(r + 1)]
    a = rng.normal(size=len(pairs)) * 2
    which = np.repeat(np.arange(len(pairs)), 20)
    frame = pd.DataFrame({
        "region": [pairs[i][0] for i in which],
        "county": [pairs[i][1] for i in which],
        "y": a[which] + rng.normal(size=len(which)),
    })  # fmt: skip
    tree = fit(from_pandas(frame), nested, by=["region", "county"], **FIT)
    local = tree["local"]
    assert local["a"].dims == ("statistic", "county")
    found = list(zip(local["region"].values, local["county"].values.tolist(), strict=True))
    assert found == pairs
    means = frame.groupby(["region", "county"]).y.mean()
    sd = local["a"].sel(statistic="sd")
    assert float(np.abs((local["a"].sel(statistic="mean") - means.to_numpy()) / sd).max()) < 1
    columns = tree_to_frame(tree).columns.tolist()
    assert columns[:2] == ["county", "region"] or columns[:2] == ["region", "county"]


@pytest.mark.distributed
@pytest.mark.slow
def test_on_a_cluster_draws_are_the_same(fitted, tmp_path, cluster):
    frame, *_ = fitted
    options = FIT | {"local": "draws", "local_draws": 40}
    here = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
    with cluster(2, 1):
        path = str(tmp_path / "draws.zarr")
        there = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options, store=path)
        there = there["local"]["raw"].sel(who=here["local"]["who"]).to_numpy()
    np.testing.assert_allclose(there, here["local"]["raw"].to_numpy(), atol=1e-5)


def test_chunks_that_hold_several_shards_and_parts_of_them(fitted, tmp_path, monkeypatch):
    frame, *_ = fitted
    options = FIT | {"local": "draws", "local_draws": 30}
    here = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
    monkeypatch.setattr(effects.DrawStore, "_CHUNK_GROUPS", 15)
    monkeypatch.setattr(effects.DrawStore, "_BLOCK_BYTES", 4 * 40 * 2 * 7)
    path = str(tmp_path / "draws.zarr")
    there = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options, store=path)
    assert there["local"]["raw"].chunks[1:] == ((7, 7, 7, 7, 2), (15, 15, 10))
    np.testing.assert_array_equal(
        there["local"]["raw"].sel(who=here["local"]["who"]).to_numpy(), here["local"]["raw"]
    )


@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_a_summary_that_no_client_holds(fitted, tmp_path, monkeypatch):
    """Workers write it, a few shards at a time; a fit that is asked again finds it there."""
    frame, _, tree = fitted
    monkeypatch.setattr(written_summary, "_CHUNK", 7)
    monkeypatch.setattr(written_summary, "_BLOCK", 1)
    options = FIT | {"store": str(tmp_path / "fit")}
    with dask.config.set({"consensus.local.groups": 39}):
        told = plan(from_pandas(frame), model, by="who", columns=COLUMNS, **FIT)
        assert "40 groups are more than" in told.no_local_because
        assert "store=" in told.no_local_because
        first = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
        again = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
    for found in (first, again):
        assert found["local"]["alpha"].chunks is not None
        same = found["local"].to_dataset().compute().sortby("who").astype("float64")
        xr.testing.assert_allclose(same, tree["local"].to_dataset().astype("float64"), rtol=1e-5)
        assert found["local"].attrs == tree["local"].attrs
    ours, theirs = (
        its["local/given_shared"].to_dataset().assign_coords(who=its["local"]["who"]).sortby("who")
        for its in (again, tree)
    )
    xr.testing.assert_allclose(ours.compute(), theirs, rtol=1e-5)
    table_ = tree_to_frame(again, rows_per_partition=15).compute()
    np.testing.assert_allclose(table_["alpha_q95"], again["local"]["alpha"].sel(statistic="q95"))
    one, other = (
        from_pandas(frame).consensus.predict(its, model, statistics=["mean"], check_verdict=False)
        for its in (again, tree)
    )
    np.testing.assert_allclose(one["obs_mean"].compute(), other["obs_mean"].compute(), rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_every_group_is_written_once(seed, monkeypatch):
    """Whatever the sizes of shards and of chunks, and on several levels."""
    monkeypatch.setattr(written_summary, "_CHUNK", 10)
    monkeypatch.setattr(written_summary, "_BLOCK", 60)
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(1, 9, 12), rng.integers(8, 40, 12)]
    starts = [np.cumsum([0, *its]) for its in sizes]
    totals = [int(its[-1]) for its in starts]
    blocks = written_summary._blocks(starts, totals, 2)
    assert len(blocks) > 3
    for level, (begin, total) in enumerate(zip(starts, totals, strict=True)):
        chunks = [(c.first, c.last) for _, its in blocks for c in its if c.level == level]
        assert chunks == [(at, min(at + 10, total)) for at in range(0, total, 10)]
        for shards, its in blocks:
            for chunk in (c for c in its if c.level == level):
                assert begin[shards[0]] <= chunk.first
                assert chunk.last <= begin[shards[-1] + 1]


def test_modes_of_groups_are_counted_where_no_correction_did():
    from .test_hills import two_populations

    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(30), 5)
    b = np.where(rng.random(30) < 0.3, 3.0, -1.0) + 0.2 * rng.normal(size=30)
    frame = from_pandas(pd.DataFrame({"g": g, "y": b[g] + 2.5 * rng.normal(size=150)}))
    for model_, expected in ((two_populations, 2), (model, 1)):
        binding = {"by": "g"} if model_ is two_populations else {"by": "who", "columns": COLUMNS}
        data = frame if model_ is two_populations else from_pandas(table()[0])
        told = plan(data, model_, n_shards=1, local="summary", **binding)
        shards = shard_rows(data, told, progress=False)
        center = np.array([-1.0, -1.5]) if model_ is two_populations else np.zeros(3)
        assert effects._n_modes(told, shards, center, None) == expected


def test_names_that_stand_in_each_others_way():
    def named(rows, y=None, *, n_rows):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("statistic", n_rows):
            rows_ = numpyro.sample("who", dist.Normal(mu, 1.0))
        numpyro.sample("obs", dist.Normal(rows_[rows], 1.0), obs=y)

    frame, _ = table()
    tree = fit(from_pandas(frame), named, by="who", columns={"rows": "who", "y": "y"}, **FIT)
    local = tree["local"]
    assert local["who"].dims == ("statistic", "who_")
    assert set(local.data_vars) == {"who", "who_shrinkage", "rows"}
    assert tree_to_frame(tree).columns[0] == "who_"


def test_a_site_that_sees_other_groups_is_left_out_and_said_to_be():
    def centred(g, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("groups", n_g):
            a = numpyro.sample("a", dist.Normal(mu, 1.0))
        numpyro.deterministic("twice", 2 * a)
        numpyro.deterministic("centred", a - a.mean())
        numpyro.sample("obs", dist.Normal(a[g], 1.0), obs=y)

    frame, _ = table()
    columns = {"g": "who", "y": "y"}
    told = plan(from_pandas(frame), centred, by="who", columns=columns, n_shards=3, local="summary")
    assert [site.name for site in told.model.derived] == ["twice"]
    assert any("centred: left out of the effects" in note for note in told.notes())


def test_what_has_no_effects_is_said():
    frame, _ = table()
    ddf = from_pandas(frame)

    def flat(x, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        numpyro.sample("obs", dist.Normal(mu + x, 1.0), obs=y)

    def of_rows(x, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("rows", len(x)):
            e = numpyro.sample("e", dist.Normal(0, 1))
            numpyro.sample("obs", dist.Normal(mu + e + x, 1.0), obs=y)

    def because(model, **options):
        return plan(ddf, model, n_shards=2, **options).no_local_because

    grouped = {"by": "who", "columns": COLUMNS}
    assert because(model, **grouped) == "local=None"
    assert because(model, **grouped, local="summary") == ""
    assert "no local sites" in because(flat, local="summary")
    assert "effects of rows" in because(of_rows, local="summary")
    text = repr(plan(ddf, model, n_shards=2, **grouped, local="summary", local_draws=17))
    assert "summary over 17 draws of the shared parameters" in text
    idle = plan(ddf, flat, n_shards=2, local="summary", local_draws=17)
    assert any("local_draws has no effect" in note for note in idle.notes())
    tree = fit(ddf, flat, n_shards=2, local="summary")
    assert "local" not in tree.children


def test_more_than_a_client_can_hold_is_refused(monkeypatch, fitted):
    frame, *_ = fitted
    monkeypatch.setattr(effects, "_MOST_IN_MEMORY", 10_000)
    monkeypatch.setattr("dask_consensus.fit.shard_rows", None)  # nothing is sharded before
    options = FIT | {"local": "draws", "local_draws": 100}
    with pytest.raises(
        ValueError, match=r"100 draws of the effects of 40 groups are .* pass store"
    ):
        fit(from_pandas(frame), model, by="who", columns=COLUMNS, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local": "all"}, "local must be one of 'summary', 'draws'"),
        ({"local_draws": 1}, "local_draws must be at least 2"),
        ({"store": 3}, "store must be a path or URL"),
    ],
)
def test_bad_options(options, message):
    frame, _ = table()
    with pytest.raises((ValueError, TypeError), match=message):
        plan(from_pandas(frame), model, by="who", columns=COLUMNS, **options)
