"""Rows that arrive after a fit: exact in closed form, and what a fit of all rows gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from dask_consensus.combination.grown import Added, grown_by_sampling
from dask_consensus.combination.reports import FitSettings
from dask_consensus.fit import shard_rows
from dask_consensus.frame.arrays import Column, Layout, to_shard
from dask_consensus.frame.key_kinds import read_keys
from dask_consensus.frame.keys import hash_keys
from dask_consensus.frame.seen import hashes_of, names_of, rows_of, seen
from dask_consensus.frame.survey import survey
from dask_consensus.result.earlier import earlier_fit
from dask_consensus.resume import StoreMismatch
from dask_consensus.shard.nuts import NutsSettings
from dask_consensus.update import update_of, warn_if_repeated

from . import from_pandas, raise_if_dask_computes
from .test_resume import Crash, Passes, assert_same


def fit(table, model, **options):
    """Fit as a user would."""
    frame = table if isinstance(table, dd.DataFrame) else from_pandas(table)
    return frame.consensus.fit(model, **({"progress": False} | options))


def accuracy(tree):
    sizes = json.loads(tree.attrs["accuracy"]).values()
    return np.array([np.inf if size is None else size for size in sizes])


# Closed forms


def regression(x, z, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x + beta[2] * z, 1.5), obs=y)


def rows(n, seed, groups=range(100, 104)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    z = 0.9 * x + 0.3 * rng.normal(size=n)
    y = 1 + x - z + 1.5 * rng.normal(size=n)
    return pd.DataFrame({"group": np.resize(groups, n), "x": x, "z": z, "y": y})


def exact(table):
    """Posterior mean and covariance, and log evidence."""
    design = np.column_stack([np.ones(len(table)), table["x"], table["z"]])
    covariance = np.linalg.inv(design.T @ design / 1.5**2 + np.eye(3) / 4)
    mean = covariance @ design.T @ table["y"].to_numpy() / 1.5**2
    marginal = 1.5**2 * np.eye(len(table)) + 4 * design @ design.T
    evidence = scipy.stats.multivariate_normal.logpdf(table["y"], np.zeros(len(table)), marginal)
    return mean, covariance, evidence


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The store of a fit by groups that the model does not see, kept whole all the same."""
    path = tmp_path_factory.mktemp("base") / "store"
    table = rows(400, 0, groups=range(40))
    return path, table, fit(table, regression, by="group", n_shards=2, store=str(path))


@pytest.fixture(scope="module")
def base(stored):
    """Its rows, and its tree."""
    return stored[1:]


def holds(tree, table):
    """Hold a corrected fit against the closed form, within what it states."""
    mean, covariance, evidence = exact(table)
    sd, correction = np.sqrt(np.diag(covariance)), tree["correction"]
    # The error is stated at one standard error of each mean; four of them.
    off = np.abs(correction["mean"].to_numpy() - mean) / sd
    np.testing.assert_array_less(off, 4 * accuracy(tree))
    np.testing.assert_allclose(correction["sd"], sd, rtol=4 * float(correction["sd_error"].max()))
    error = float(correction["log_evidence_error"])
    # Rows are added up from single precision.
    assert abs(float(correction["log_evidence"]) - evidence) < 4 * error + 1e-3
    assert tree.attrs["verdict_good"]
    assert tree.attrs["n_rows"] == tree["posterior"].attrs["n_rows"] == len(table)
    assert tree.attrs["n_groups"] == table["group"].nunique()
    draws = tree["posterior"]["beta"].to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.05 * sd.max())


def test_updates_in_a_row_have_their_closed_form(base, tmp_path):
    """New groups, and once new rows of old ones; the tree has been in files."""
    table, tree = base
    for number, (first, last) in enumerate([(40, 44), (42, 48), (48, 50)], 1):
        new = rows(40, number, groups=range(first, last))
        if number == 1:
            tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
            tree = xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf")
        update = (tree, from_pandas(table)) if number == 2 else tree
        tree = fit(new, regression, update=update)
        verdict = tree.attrs["verdict"]
        assert (
            f"40 new rows were added to the posterior of {len(table)} (update {number})" in verdict
        )
        table = pd.concat([table, new])
        holds(tree, table)
        assert accuracy(tree).max() < 0.02
        assert json.loads(tree.attrs["update"]) == {
            "rows": 40,
            "groups_again": 2 * (number == 2),
        }
        assert tree.attrs["n_updates"] == number
        assert tree["group_keys"].sizes["group"] == table["group"].nunique()


def test_without_a_correction_gaussians_add(base):
    table, tree = base
    new = rows(100, 1)
    tree = fit(new, regression, update=tree, correct=False)
    mean, covariance, _ = exact(pd.concat([table, new]))
    draws, sd = tree["posterior"]["beta"].to_numpy().reshape(-1, 3), np.sqrt(np.diag(covariance))
    # The earlier moments are known to 0.006 sds, those of draws are exactly the Gaussian's.
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.03 * sd.max())
    np.testing.assert_allclose(
        np.cov(draws.T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.03
    )
    assert "taken to be Gaussian (update 1)" in tree.attrs["verdict"]
    assert "not corrected, because correct=False" in tree.attrs["verdict"]
    assert "correction" not in tree.children


def test_too_many_new_rows_are_no_good_verdict(base):
    """The posterior leaves the points, all at once."""
    _, tree = base
    new = rows(400, 1)
    with pytest.warns(UserWarning, match="Not to be relied on"):
        alone = fit(new.assign(y=new["y"] + 3), regression, update=tree)
    assert not alone.attrs["verdict_good"]
    assert np.isinf(accuracy(alone)).all()
    reasons = json.loads(alone.attrs["verdict_reasons"])
    assert {reason["code"] for reason in reasons} <= {"k-hat", "ess", "sd-error", "tail"}
    assert all("fit all rows together" in reason["remedy"] for reason in reasons)


@pytest.mark.slow
def test_points_are_renewed_before_they_are_too_few(base):
    """An emulator stands in for old rows there, and its error is in the accuracy."""
    table, tree = base
    for number in (1, 2):
        new = rows(320, number, groups=range(100 * number, 100 * number + 20))
        table = pd.concat([table, new])
        tree = fit(new, regression, update=tree)
        holds(tree, table)
    correction = tree["correction"]
    assert correction["iteration"].to_numpy().min() > 0
    assert 0 < correction["sampling_error"].max() < 0.1
    assert "speaks for old rows adds" in tree.attrs["verdict"]


@pytest.mark.slow
def test_with_the_old_rows_too_many_new_ones_are_fitted_with_them(base):
    table, tree = base
    new = rows(400, 1)
    new["y"] += 3
    with pytest.warns(UserWarning, match="all rows are fitted together"):
        both = fit(new, regression, update=(tree, from_pandas(table)), n_shards=2)
    holds(both, pd.concat([table, new]))
    assert both.attrs["n_updates"] == 0


def test_a_bad_fit_stays_bad(base):
    _, tree = base
    reason = {"code": "tail", "value": 9, "threshold": 2, "where": "", "problem": "", "remedy": ""}
    bad = tree.copy()
    bad.attrs |= {"verdict_good": 0, "verdict_reasons": json.dumps([reason])}
    with pytest.warns(UserWarning, match=r"was not to be relied on \(tail\)"):
        after = fit(rows(40, 1), regression, update=bad)
    assert np.isinf(accuracy(after)).all()


@pytest.mark.slow
def test_sampled_shards_add_to_an_earlier_posterior():
    """As where effects cannot be integrated out: the earlier posterior counts once."""
    table, new = rows(400, 0), rows(400, 1, groups=range(40))
    mean, covariance, _ = exact(table)
    frame = from_pandas(new)
    plan = frame.consensus.plan(regression, by="group", n_shards=3)
    shards = shard_rows(frame, plan, False)
    settings = FitSettings(plan.model, 2, False, 0)
    nuts = NutsSettings(300, 2000, 0.8)
    grown = grown_by_sampling(settings, nuts, Added(shards, None, 800), mean, covariance, 1)
    wanted, wanted_covariance, _ = exact(pd.concat([table, new]))
    sd, combined = np.sqrt(np.diag(wanted_covariance)), grown.combined
    # Noise of three anchored shards, sqrt(3 / ess), in units of the narrower posterior's sds.
    error = 4 * 1.5 * combined.rounds[-1].noise
    np.testing.assert_array_less(np.abs(combined.mean - wanted) / sd, error)
    ratio = np.log(np.sqrt(np.diag(combined.covariance)) / sd)
    np.testing.assert_array_less(np.abs(ratio), error)


def test_rows_that_were_added_already_are_noticed(base):
    """By what they hold, in whatever order; the model need not know of groups."""
    table, tree = base
    new = rows(40, 1, groups=range(40, 44))
    tree = fit(new, regression, update=tree, correct=False)
    old = from_pandas(pd.concat([table, new]))
    for again, what in ((new.iloc[::-1], "update 1"), (table, "the fit")):
        lazy = fit(again, regression, update=(tree, old), compute=False)
        with pytest.warns(UserWarning, match=f"just what the rows of {what} held"):
            warn_if_repeated(earlier_fit(tree, regression), lazy.plan().new)
    # Other groups, or another value, are other rows.
    for other in (new.assign(group=new["group"] + 10), new.assign(x=new["x"] + 1e-3)):
        planned = fit(other, regression, update=(tree, old), compute=False).plan()
        warn_if_repeated(earlier_fit(tree, regression), planned.new)


# What is refused


def test_new_rows_of_old_groups_are_named(base):
    table, tree = base
    new = rows(50, 1, groups=range(37, 44))
    with pytest.raises(ValueError, match=r"3 of 7 groups of 'group' have rows .*\(37, 38, 39\)"):
        fit(new, regression, update=tree)
    with pytest.raises(ValueError, match="ddf_old has 390 rows, and the tree is of 400"):
        fit(new, regression, update=(tree, from_pandas(table[table["group"] < 39])))
    others = table.assign(group=table["group"].replace(39, 99))
    with pytest.raises(ValueError, match="ddf_old has rows of 2 of them"):
        fit(new, regression, update=(tree, from_pandas(others)))


def another_prior(x, z, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x + beta[2] * z, 1.5), obs=y)


def another_noise(x, z, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x + beta[2] * z, 1), obs=y)


def another_each_time(x, z, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([3]).to_event(1))
    scale = 1.5 + np.random.default_rng().uniform(0.01, 0.1)
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x + beta[2] * z, scale), obs=y)


def another_support(x, z, y=None):
    beta = numpyro.sample("beta", dist.HalfNormal(2).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x + beta[2] * z, 1.5), obs=y)


def another_site(x, z, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(slope * x, 1.5), obs=y)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (another_prior, {}, "the density of 'beta'"),
        (another_noise, {}, "the density of 'y'"),
        (another_each_time, {}, "the density of 'y'"),
        (another_support, {}, "site 'beta' has support"),
        (another_site, {}, "'beta' .*absent here"),
        (regression, {"by": "x"}, "the earlier fit was by group"),
        (regression, {"correct": True, "bare": True}, "has no correction.*fit all rows together"),
    ],
    ids=["prior", "noise", "chance", "support", "site", "by", "correction"],
)
def test_another_model_is_refused_saying_what_differs(base, model, change, message):
    _, tree = base
    change = dict(change)
    if change.pop("bare", False):
        tree = tree.filter(lambda node: node.name not in ("correction", "uncorrected"))
    with pytest.raises(ValueError, match=message):
        fit(rows(40, 1), model, update=tree, **change)


def test_keys_of_another_kind_are_refused(base):
    new = rows(40, 1).astype({"group": str})
    with pytest.raises(ValueError, match="no group would be known again"):
        fit(new, regression, update=base[1])


def test_what_update_takes(base):
    table, tree = base
    old = from_pandas(table)
    assert update_of(tree) == (tree, None)
    assert update_of((tree, old))[1] is old
    for wrong in (1, (tree, "rows"), (tree, old, old)):
        with pytest.raises(TypeError, match="update="):
            update_of(wrong)
    with raise_if_dask_computes():
        lazy = fit(rows(40, 1), regression, update=tree, compute=False)
    planned = lazy.plan()
    assert planned.new.survey.rows == 40
    assert "a fit of 400 rows, as update 1" in repr(planned)
    assert "NUTS" not in repr(planned)
    bare = tree.copy()
    del bare.attrs["n_updates"]
    with pytest.raises(ValueError, match="made by a version"):
        fit(rows(40, 1), regression, update=bare)


# From a store, and in one


def test_a_store_is_updated_as_its_tree_is(stored):
    path, table, tree = stored
    for given in (str(path), path, f"file://{path}"):
        assert update_of(given)[0].identical(tree)
    old = from_pandas(table)
    assert update_of((path, old))[1] is old
    planned = fit(rows(40, 1), regression, update=path, compute=False).plan()
    assert "a fit of 400 rows, as update 1" in repr(planned)
    with pytest.raises(ValueError, match="the density of 'beta'"):
        fit(rows(40, 1), another_prior, update=path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "nothing is there; give the store= of a fit"),
        (lambda path: (path / "dask_consensus.json").unlink(), ValueError, "no store of a fit"),
        (
            lambda path: (path / "dask_consensus.json").rename(path / "zarr.json"),
            ValueError,
            r"open it: update=xr\.open_datatree\(.*, engine=\"zarr\"\)",
        ),
        (
            lambda path: (path / "dask_consensus.json").write_text("{}"),
            ValueError,
            r"dask_consensus\.json there is damaged",
        ),
        (
            lambda path: next(path.glob("steps/finished-*")).unlink(),
            ValueError,
            r"\(of the model 'regression' to 400 rows\) has not finished",
        ),
        (lambda path: next(path.glob("steps/tree-*")).unlink(), ValueError, "is not kept with it"),
    ],
    ids=["nothing", "no store", "saved tree", "damaged", "unfinished", "without tree"],
)
def test_a_store_without_a_finished_fit_is_refused(stored, tmp_path, change, error, message):
    path = shutil.copytree(stored[0], tmp_path / "store")
    change(path)
    with pytest.raises(error, match=f"update=.*{message}"):
        fit(rows(40, 1), regression, update=path)


def test_a_damaged_result_in_a_store_is_named(stored, tmp_path):
    path = shutil.copytree(stored[0], tmp_path / "store")
    file = next(path.glob("steps/tree-*"))
    file.write_bytes(file.read_bytes()[:-9])
    with (
        pytest.warns(UserWarning, match=f"{file.name} of store"),
        pytest.raises(ValueError, match="not kept with it, or is damaged"),
    ):
        update_of(path)


@pytest.mark.slow
def test_an_update_that_crashes_in_every_pass_goes_on(stored, tmp_path, monkeypatch):
    """New groups and old ones; what it keeps is updated in turn, and by no other update."""
    path, table, tree = stored
    new, store = rows(60, 1, groups=range(36, 46)), str(tmp_path / "store")
    update, options = (path, from_pandas(table)), {"local": None}
    with dask.config.set(scheduler="synchronous"):
        passes = Passes(monkeypatch)
        whole = fit(new, regression, update=(tree, from_pandas(table)), **options)
        total, done = len(passes.ran), 0
        while True:
            passes.ran.clear()
            passes.crash = 2
            try:
                after = fit(new, regression, update=update, store=store, **options)
                break
            except Crash:
                done += 1
        assert done + len(passes.ran) == total
        passes.ran.clear()
        passes.crash = None
        assert_same(after, whole)
        with monkeypatch.context() as without_rows:
            without_rows.setattr("dask_consensus.fit.rows_to_shards", None)
            assert_same(fit(new, regression, update=update, store=store, **options), whole)
        assert passes.ran == []
        assert update_of(store)[0].attrs["n_updates"] == 1
        with (
            pytest.warns(UserWarning, match="just what the rows of update 1 held"),
            pytest.raises(StoreMismatch, match="it began from another earlier fit"),
        ):
            fit(new, regression, update=(after, update[1]), store=store, **options)
        with pytest.raises(StoreMismatch, match=r"holds an update .* and this is no update"):
            fit(new, regression, by="group", store=store, **options)
        twice = fit(rows(40, 2, groups=range(50, 54)), regression, update=store)
    holds(twice, pd.concat([table, new, rows(40, 2, groups=range(50, 54))]))


SCRIPT = """
import sys
import xarray as xr
from tests.test_update import fit, of_groups, intercepts
given = sys.argv[1]
tree = xr.open_datatree(given, engine=sys.argv[2]) if sys.argv[2] else given
fit(of_groups(100, 104, 2), intercepts, update=tree).to_netcdf(sys.argv[3], engine="h5netcdf")
"""


@pytest.mark.slow
def test_another_process_updates_what_was_saved_or_kept(tmp_path):
    table, store = of_groups(0, 100, 0), str(tmp_path / "store")
    tree = fit(table, intercepts, by="group", n_shards=2, store=store)
    here = fit(of_groups(100, 104, 2), intercepts, update=tree)
    tree.to_zarr(tmp_path / "tree.zarr", zarr_format=2)
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    ways = {"tree.zarr": "zarr", "tree.nc": "h5netcdf", "store": ""}
    for name, engine in ways.items():
        after = str(tmp_path / "after.nc")
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / name), engine, after]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        with xr.open_datatree(after, engine="h5netcdf") as there:
            np.testing.assert_array_equal(there["posterior"]["mu"], here["posterior"]["mu"])
            np.testing.assert_array_equal(there["local"]["alpha"], here["local"]["alpha"])


# Which groups were there


def layout():
    return Layout(("who",), (Column("y", "y", "value"),))


def test_groups_are_known_whatever_holds_their_keys():
    """The survey's hashes are those of shards, and of keys that a partition holds as floats."""
    table = pd.DataFrame({"who": [3, 1, 3, 7], "y": 1.0})
    frame = from_pandas(table, npartitions=2)
    counted = survey(frame, layout()).compute()
    shard = to_shard(table, layout())
    np.testing.assert_array_equal(seen(counted, ()), np.sort(hashes_of(shard, "int64")))
    # Where the survey counts buckets of many groups, shards are asked.
    np.testing.assert_array_equal(
        seen(counted._replace(shift=8), [hashes_of(shard, "int64")]), seen(counted, ())
    )
    assert seen(counted._replace(shift=8), ()) is None
    wanted = hash_keys(read_keys(pd.Series([3.0, 7.0])))
    assert rows_of(frame, layout(), wanted).compute()["who"].tolist() == [3, 3, 7]
    assert names_of(frame, layout(), wanted) == "3, 7"


# Effects of groups


def intercepts(group, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    numpyro.sample("obs", dist.Normal(alpha[group], 1), obs=y)


def of_groups(first, last, seed, each=5):
    """Rows of groups whose effects are the same in whichever table they are."""
    group = np.repeat(np.arange(first, last), each)
    effects = np.random.default_rng(99).normal(2, 1, 1000)
    y = effects[group] + np.random.default_rng(seed).normal(size=len(group))
    return pd.DataFrame({"group": group, "y": y})


@pytest.fixture(scope="module")
def grouped():
    table = of_groups(0, 100, 0)
    return table, fit(table, intercepts, by="group", n_shards=2)


def agree(tree, reference, times=4):
    """Hold an update against a fit of all rows: within what both state, `times` their error."""
    here, there = tree["correction"], reference["correction"]
    off = np.abs(here["mean"] - there["mean"]).to_numpy() / there["sd"].to_numpy()
    np.testing.assert_array_less(off, times * np.hypot(accuracy(tree), accuracy(reference)))
    error = np.hypot(here["sd_error"], there["sd_error"]).to_numpy()
    np.testing.assert_array_less(np.abs(np.log(here["sd"] / there["sd"]).to_numpy()), times * error)
    assert tree.attrs["verdict_good"]
    for name in ("n_rows", "n_groups"):
        assert tree.attrs[name] == reference.attrs[name]


@pytest.mark.slow
def test_new_and_old_groups_agree_with_a_fit_of_all(grouped, tmp_path):
    """Ten of the new groups have old rows; the tree has been in a file."""
    table, tree = grouped
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    new = pd.concat([of_groups(90, 100, 1, each=2), of_groups(100, 104, 2)])
    reference = fit(pd.concat([table, new]), intercepts, by="group", n_shards=2)
    with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as read:
        update = fit(new, intercepts, update=(read, from_pandas(table)))
    agree(update, reference)
    assert json.loads(update.attrs["update"]) == {"rows": 40, "groups_again": 10}
    np.testing.assert_array_equal(
        update["group_keys"]["key_hash"], reference["group_keys"]["key_hash"]
    )
    local, other = update["local"].to_dataset(), reference["local"].to_dataset()
    assert local["group"].to_numpy().tolist() == list(range(104))
    np.testing.assert_array_equal(local["rows"], other["rows"])
    np.testing.assert_array_equal(local["update"], np.repeat([0, 1], [90, 14]))
    # The mean of a group moves with mu and tau by less than its shrinkage, 0.2 here, times what
    # these moved, less than half a sd of 0.1; those found anew are a fit's but for 256 draws.
    away = np.abs(local["alpha"] - other["alpha"]).sel(statistic="mean")
    assert away.max() < 0.03
    # Predictions go on from both.
    predicted = [
        from_pandas(new).consensus.predict(one, intercepts).compute() for one in (update, reference)
    ]
    assert not predicted[0]["new_group"].any()
    np.testing.assert_allclose(predicted[0]["obs_mean"], predicted[1]["obs_mean"], atol=0.03)
    # And leave-one-out knows the rows again.
    everything = from_pandas(pd.concat([table, new]))
    loo = [everything.consensus.loo(one, intercepts).elpd_loo for one in (update, reference)]
    assert abs(loo[0] - loo[1]) < 0.5


# An effect a row


def overdispersed(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("rows", len(y)):
        effect = numpyro.sample("effect", dist.Normal(0, tau))
        numpyro.sample("obs", dist.Normal(mu + effect, 1), obs=y)


def on_a_grid(y):
    """Means and sds of mu and log tau, the effects integrated by hand: the rows are normal."""
    mu, log_tau = np.meshgrid(np.linspace(-1, 4, 801), np.linspace(-6, 3, 901), indexing="ij")
    tau = np.exp(log_tau)
    scale = np.sqrt(1 + tau**2)
    log_density = (
        -(mu**2) / 18
        - tau**2 / 8
        + log_tau
        - len(y) * np.log(scale)
        - (len(y) * y.var() + len(y) * (y.mean() - mu) ** 2) / (2 * scale**2)
    )
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    means = [float((weight * at).sum()) for at in (mu, log_tau)]
    sds = [
        float(np.sqrt((weight * (at - mean) ** 2).sum()))
        for at, mean in zip((mu, log_tau), means, strict=True)
    ]
    return np.array(means), np.array(sds)


@pytest.mark.slow
def test_rows_with_an_effect_each_are_added_as_any():
    """They straddle nothing, and no key is needed."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"y": 1.5 + np.hypot(1, 1.2) * rng.normal(size=460)})
    tree = fit(table[:400], overdispersed, n_shards=2)
    for begin in (400, 430):
        tree = fit(table[begin : begin + 30], overdispersed, update=tree)
    mean, sd = on_a_grid(table["y"].to_numpy())
    correction = tree["correction"]
    off = np.abs(correction["mean"].to_numpy() - mean) / sd
    np.testing.assert_array_less(off, 4 * accuracy(tree))
    np.testing.assert_allclose(correction["sd"], sd, rtol=4 * float(correction["sd_error"].max()))
    assert tree.attrs["verdict_good"]
    assert tree.attrs["n_rows"] == 460
    assert tree.attrs["n_updates"] == 2


# Ten in a row


@pytest.mark.slow
def test_ten_updates_in_a_row_agree_with_a_fit_of_all():
    table = of_groups(0, 300, 0)
    tree = fit(table, intercepts, by="group", n_shards=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(10):
            new = of_groups(300 + 6 * number, 306 + 6 * number, 1 + number)
            table = pd.concat([table, new])
            tree = fit(new, intercepts, update=tree)
            reference = fit(table, intercepts, by="group", n_shards=4)
            agree(tree, reference)
            assert accuracy(tree).max() < 0.02


def binary(group, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    numpyro.sample("obs", dist.Bernoulli(logits=alpha[group]), obs=y)


@pytest.mark.slow
def test_errors_of_integrals_do_not_add_up_over_small_updates():
    table = of_groups(0, 600, 0)
    table["y"] = (table["y"] > 2).astype(int)
    tree = fit(table.query("group < 500"), binary, by="group", n_shards=4)
    first = accuracy(tree).max()
    for number in range(10):
        new = table[table["group"].between(500 + 10 * number, 509 + 10 * number)]
        tree = fit(new, binary, update=tree)
    assert accuracy(tree).max() < 2 * first + 0.01
    agree(tree, fit(table, binary, by="group", n_shards=4))
