from __future__ import annotations

import pickle
import re
import subprocess
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.infer.reparam import LocScaleReparam

from dask_consensus.model.model import Latent, ShardModel, pickle_by_value, precision
from dask_consensus.shard_data import ROWS

from . import from_pandas, plan
from .models import ZOO, frame, normal_rows, planned


def level(model: ShardModel, number: int | None) -> str | None:
    if number is None:
        return None
    return "rows" if number == ROWS else model.levels[number]


# The roles of sites


@pytest.mark.parametrize("name", ZOO)
def test_roles(name: str):
    case, model = ZOO[name], planned(name).model
    latent = {site.name for site in model.latents}
    others = {
        term.name: level(model, term.level)
        for term in model.terms
        if term.name not in latent and not term.name.endswith("_log_det")
    }
    assert tuple(site.name for site in model.shared) == case.shared
    assert {site.name: level(model, site.level) for site in model.local} == dict(case.local)
    assert others == {**case.data, **dict.fromkeys(case.prior)}
    assert tuple(model.deterministics) == case.deterministics
    assert model.coupled == ()


@pytest.mark.parametrize("name", ZOO)
def test_every_latent_site_has_its_term_and_its_jacobian(name: str):
    model = planned(name).model
    levels = {term.name: term.level for term in model.terms}
    for site in model.latents:
        assert levels[site.name] == site.level
        # A scope goes before the name that NumPyro gives to the Jacobian.
        jacobians = [term for term in levels if term.endswith(f"_{site.name}_log_det")]
        straight = site.support in ("real", "real vector", "real matrix")
        assert [levels[term] for term in jacobians] == ([] if straight else [site.level])


def site(model: str, name: str) -> Latent:
    return next(site for site in planned(model).model.latents if site.name == name)


def test_supports():
    assert site("simplex_and_ordered", "share").support == "simplex"
    assert site("simplex_and_ordered", "loc").support == "ordered vector"
    assert site("cholesky_correlation", "corr").support == "corr cholesky"
    assert site("unit_interval", "rate").support == "unit interval"
    assert site("unit_interval", "third_derivative").support == "[-2, 3]"
    assert site("vectors_and_matrices", "B").support == "real"


def test_shapes_and_plates():
    share = site("simplex_and_ordered", "share")
    assert (share.shape, share.unconstrained, share.size) == ((3,), (2,), 2)
    corr = site("cholesky_correlation", "corr")
    assert (corr.shape, corr.unconstrained, corr.size) == ((3, 3), (3,), 3)
    assert site("vectors_and_matrices", "B").size == 6
    assert site("categories", "beta").dims == ("smoking",)
    assert site("heavy_tails", "beta").dims == ("",)
    # A local site's group axis may be any one of its axes.
    assert site("second_axis", "alpha").axis == 1
    assert site("correlated_effects", "effects").axis == 0
    assert planned("local_simplex").model.local_shapes(9, (4,)) == {"shares": (4, 2)}


def test_coordinates_are_named():
    names = planned("vectors_and_matrices").model.coordinate_names()
    assert names[:7] == ["B[0, 0]", "B[0, 1]", "B[0, 2]", "B[1, 0]", "B[1, 1]", "B[1, 2]", "q[0]"]
    assert planned("positive").model.coordinate_names() == ["mu", "sigma"]


# What cannot be fitted shard by shard


def np_unique(county, y):
    with numpyro.plate("county", len(np.unique(county))):
        alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    normal_rows(alpha[county], 1.0, y)


def length_of_a_set(county, y, n_county):
    with numpyro.plate("county", len(set(county))):
        alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    normal_rows(alpha[county], 1.0, y)


def branch_on_data(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1 if y.mean() > 0 else 2))
    normal_rows(mu, 1.0, y)


def discrete_latent(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    normal_rows(k + numpyro.sample("mu", dist.Normal(0, 1)), 1.0, y)


def subsampling(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y), subsample_size=2) as i:
        numpyro.sample("obs", dist.Normal(mu, 1), obs=y[i])


def parameter(y):
    normal_rows(numpyro.param("mu", 0.0) + numpyro.sample("nu", dist.Normal(0, 1)), 1.0, y)


def learned_reparam(y):
    with numpyro.handlers.reparam(config={"mu": LocScaleReparam()}):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
    normal_rows(mu, 1.0, y)


def groups_in_an_event(county, y, n_county):
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    alpha = numpyro.sample("alpha", dist.Normal(0, tau).expand([n_county]).to_event(1))
    normal_rows(alpha[county], 1.0, y)


def groups_in_a_covariance(county, y, n_county):
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    near = jnp.eye(n_county) * tau
    alpha = numpyro.sample("alpha", dist.MultivariateNormal(jnp.zeros(n_county), near))
    normal_rows(alpha[county], 1.0, y)


def groups_in_two_axes(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    pairs = numpyro.sample("pairs", dist.Normal(mu, jnp.ones((n_county, n_county))))
    normal_rows(pairs[county, county], 1.0, y)


def differences_of_groups(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    numpyro.factor("smooth", -(jnp.diff(alpha) ** 2))
    normal_rows(alpha[county], 1.0, y)


def rows_in_an_event(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("obs", dist.Normal(mu, 1).expand([len(y)]).to_event(1), obs=y)


def prior_from_the_data(x, y):
    mu = numpyro.sample("mu", dist.Normal(y.mean(), 1))
    normal_rows(mu + x, 1.0, y)


def total_as_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.factor("likelihood", jnp.sum(dist.Normal(mu, 1).log_prob(y)))
    normal_rows(mu, 1.0, y)


def prior_from_local_sites(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    numpyro.factor("centred", -(jnp.sum(alpha) ** 2))
    normal_rows(alpha[county], 1.0, y)


def prior_from_counts(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1 / n_county))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    normal_rows(alpha[county], 1.0, y)


def prior_scaled_by_rows(y):
    with numpyro.handlers.scale(scale=1 / len(y)):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
    normal_rows(mu, 1.0, y)


def fixed_size_indexed_by_codes(county, y, n_county):
    """What the forum's user did: out of range in a shard of the frame, and clamped in silence."""
    with numpyro.plate("county", 5):
        alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    normal_rows(alpha[county], 1.0, y)


def fixed_size_without_a_count(county, y):
    alpha = numpyro.sample("alpha", dist.Normal(0, 1).expand([5]))
    normal_rows(alpha[county], 1.0, y)


def order_of_rows(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    before = jnp.concatenate([jnp.zeros(1), y[:-1]])
    normal_rows(mu * before, 1.0, y)


def nothing_observed(y, outcome=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(mu, 1), obs=outcome)


def nothing_shared(county, y, n_county):
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    normal_rows(alpha[county], 1.0, y)


def sites_that_come_and_go(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    if n_county > 4:
        mu = mu + numpyro.sample("more", dist.Normal(0, 1))
    normal_rows(mu, 1.0, y)


def undefined_in_some_rows(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("obs", dist.Normal(mu + 0 * jnp.log(y), 1.0), obs=y)


def outside_the_support(y):
    numpyro.sample("rate", dist.Gamma(1, 1))
    numpyro.sample("obs", dist.Gamma(2.0, 1.0), obs=-1 - jnp.abs(y))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (np_unique, r"needs the values of its data.*np\.unique.*take the argument n_county;"),
        (length_of_a_set, r"len\(set\(\.\.\.\)\).*take the argument n_county;"),
        (branch_on_data, r"an if on data.*use jax\.numpy"),
        (discrete_latent, r"'k' is a discrete latent site \(Bernoulli.*Sum it out"),
        (subsampling, r"plate 'rows' subsamples 2 of \d+ rows.*remove subsample_size"),
        (parameter, r"'mu' is a numpyro\.param.*Use numpyro\.sample"),
        (learned_reparam, r"is a numpyro\.param.*give `centered` a number"),
        (groups_in_an_event, r"'alpha': the groups of 'county' are an event dimension of Normal"),
        (groups_in_a_covariance, r"'alpha': .*event dimension of MultivariateNormal.*a plate"),
        (groups_in_two_axes, r"'pairs' has shape .*one axis may follow"),
        (differences_of_groups, r"'smooth' has shape \(2,\) .*one axis may follow"),
        (rows_in_an_event, r"'obs': its rows are an event dimension.*a plate, without to_event"),
        (prior_from_the_data, r"term 'mu' .*depends on y \(column 'y'\).*pass it as a constant"),
        (total_as_factor, r"term 'likelihood' .*depends on y .*Give it an axis"),
        (prior_from_local_sites, r"term 'centred' .*depends on alpha\."),
        (prior_from_counts, r"\['mu'\] change with the number of rows or groups.*Use a constant"),
        (prior_scaled_by_rows, r"\['mu'\] change with the number of rows or groups"),
        (fixed_size_indexed_by_codes, r"take its size from n_county.*'alpha' \(5,\)"),
        (fixed_size_without_a_count, r"take its size from n_county.*'alpha' \(5,\)"),
        (order_of_rows, r"of obs changes when .*rows reordered.*Rows must be independent"),
        (nothing_observed, r"no observed site .*column to the argument given as obs="),
        (nothing_shared, r"no shared latent site"),
        (sites_that_come_and_go, r"sites \['more'\] exist for some numbers"),
        (undefined_in_some_rows, r"in \d+ of \d+ rows, the first of which has y=-\d"),
        (outside_the_support, r"not finite at any of 100 .*site 'obs' is the cause.*support"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused(model, message: str):
    by = "county" if "county" in model.__code__.co_varnames else None
    with pytest.raises(ValueError, match=message):
        plan(from_pandas(frame()), model, by=by)


def test_errors_of_the_model_itself_say_where_they_arose():
    def broken(y):
        raise KeyError("theta")

    with pytest.raises(KeyError, match="theta") as caught:
        plan(from_pandas(frame()), broken)
    assert any("while it was traced on a small sample" in note for note in caught.value.__notes__)


def added_up(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    normal_rows(alpha + y, 1.0, y)


def test_the_traceback_of_an_error_of_the_model_ends_at_its_own_line():
    """JAX and NumPyro put dozens of frames between, and chain some dozens more."""
    with pytest.raises(TypeError, match="incompatible shapes") as caught:
        plan(from_pandas(frame()), added_up, by="county")
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].line == "normal_rows(alpha + y, 1.0, y)"
    assert not [f for f in frames if "/jax/" in f.filename or "/numpyro/" in f.filename]
    text = "".join(traceback.format_exception(caught.value))
    assert len(text.splitlines()) < 40
    assert re.search(r"small sample of the frame: \d+ rows, n_county=\d+\n$", text)


def test_a_value_that_is_needed_is_named_with_its_line():
    with pytest.raises(
        ValueError, match=r"test_roles\.py, line \d+: .*np\.unique\(county"
    ) as caught:
        plan(from_pandas(frame()), np_unique, by="county")
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) < 40


def test_an_outcome_without_a_column_is_named():
    def misspelt(x, yy=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("obs", dist.Normal(mu + x, 1.0), obs=yy)

    def measured(yy=None):
        normal_rows(numpyro.sample("mu", dist.Normal(0, 1)), 1.0, yy)

    message = r"No column feeds 'yy' \(did you mean 'y'\?\): name it in columns="
    with pytest.raises(ValueError, match=message):
        plan(from_pandas(frame()), misspelt)
    with pytest.raises(TypeError, match="NoneType") as caught:  # of its length
        plan(from_pandas(frame()), measured)
    assert "no column feeds 'yy' (did you mean 'y'?)" in caught.value.__notes__[0]


# Sites that no result has


def deterministics(county, x, y, n_county):
    mu = numpyro.deterministic("twice", 2 * numpyro.sample("mu", dist.Normal(0, 1)))
    with numpyro.plate("county", n_county):
        alpha = numpyro.deterministic("shifted", 1 + numpyro.sample("alpha", dist.Normal(mu, 1)))
    numpyro.deterministic("mean_alpha", alpha.mean())
    mean = numpyro.deterministic("linear", alpha[county] + x)
    normal_rows(mean, 1.0, y)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_deterministic_sites_that_are_left_out_are_said_to_be(n_shards):
    found = plan(from_pandas(frame()), deterministics, by="county", n_shards=n_shards)
    assert found.model.dropped == ("mean_alpha", "linear")
    assert any(note.startswith("mean_alpha, linear: determ") for note in found.notes())
    assert re.search(r"shifted +deterministic +\(county\)", repr(found))


# Groups that are not independent


def standardised(x, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1))
    normal_rows(beta * (x - x.mean()) / x.std(), 1.0, y)


def ranked(county, x, y, n_county):
    beta = numpyro.sample("beta", dist.Normal(0, 1))
    normal_rows(beta * (x > jnp.median(x)), 1.0, y)


def centred_effects(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    normal_rows((alpha - alpha.mean())[county], 1.0, y)


def neighbours(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
        numpyro.factor("smooth", -((alpha - jnp.mean(alpha)) ** 2))
    normal_rows(alpha[county], 1.0, y)


@pytest.mark.parametrize(
    ("model", "terms"),
    [
        (standardised, ("obs",)),
        (ranked, ("obs",)),
        (centred_effects, ("obs",)),
        (neighbours, ("smooth",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_coupled_groups_are_noticed(model, terms):
    by = "county" if "county" in model.__code__.co_varnames else None
    found = plan(from_pandas(frame()), model, by=by, n_shards=2)
    assert found.model.coupled == terms
    assert f"density of {terms[0]} in one group changes with other groups'" in repr(found)


def test_columns_standardised_beforehand_are_fine():
    table = frame()
    table["x"] = (table["x"] - table["x"].mean()) / table["x"].std()
    model = planned("intercepts").model
    assert plan(from_pandas(table), ZOO["intercepts"].model, by="county").model == model


def test_a_sorted_frame_shows_its_coupling_too():
    """The first rows may all agree in a column: samples come from several partitions."""
    table = frame(((200,), (200,))).assign(x=np.repeat([0.0, 1.0], 200))
    assert plan(from_pandas(table, 4), standardised, n_shards=2).model.coupled == ("obs",)


def far_from_zero(table: pd.DataFrame) -> pd.DataFrame:
    """Values as users have them, in units that make them large: log densities of 1e13."""
    return table.assign(y=1e7 + 1e6 * table["y"], x=2000 + table["x"])


def test_units_hide_nothing():
    """Single precision would lose the effect of a wrong group code on such values."""
    table = from_pandas(far_from_zero(frame()))
    assert plan(table, standardised, n_shards=2).model.coupled == ("obs",)
    with pytest.raises(ValueError, match="take its size from n_county"):
        plan(table, fixed_size_indexed_by_codes, by="county")
    for name in ("intercepts", "data_of_groups", "nested_in_priors", "flat_priors"):
        case = ZOO[name]
        found = plan(table, case.model, by=list(case.by) or None, n_shards=1).model
        assert found == planned(name).model


def single_precision(x, y):
    """It computes in float32 whatever it is given, and sums rows whose order means nothing."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    weights = jnp.ones(len(x), jnp.float32)
    _, path = jax.lax.scan(lambda c, v: (c, c * v), jnp.ones((), jnp.float32), weights)
    normal_rows(mu * path + x.astype(jnp.float32), 1.0, y)


CONSTANT = np.array([1.0, 2.0])


@jax.jit
def with_a_constant(value):
    return value * CONSTANT


def compiled_helper(x, y):
    """JAX keeps the constants of what it has traced, and cannot trace it in another precision."""
    mu = numpyro.sample("mu", dist.Normal(0, CONSTANT).to_event(1))
    normal_rows(jnp.sum(with_a_constant(mu)) + x, 1.0, y)


@pytest.mark.parametrize("first", [True, False])
def test_constants_have_the_precision_that_is_worked_in(first):
    """Whichever of the two was met before: searches work in double precision, chains may not."""
    read = plan(from_pandas(frame()), compiled_helper, n_shards=2).model
    arguments = {name: np.linspace(-1.0, 1.0, 7) for name in "xy"}
    for x64 in (first, not first):
        with precision(x64):
            terms = jax.jit(lambda mu: read.log_terms({"mu": mu}, arguments, ())[0])
            there = terms(jnp.full(2, 0.1))
            assert there["obs"].dtype == there["mu"].dtype == jnp.result_type(float)


@pytest.mark.parametrize("model", [single_precision, compiled_helper])
def test_a_model_may_insist_on_single_precision(model):
    assert plan(from_pandas(frame()), model, n_shards=2).model.coupled == ()


# A model travels, and names its compiled code


def scaled(smoking, y, n_smoking):
    normal_rows(numpyro.sample("mu", dist.Normal(0, n_smoking)), 1.0, y)


def test_equal_models_share_a_name_and_no_others():
    """The number of categories is part of the code, although no shape need show it."""
    table = frame()
    first = plan(from_pandas(table), scaled).model
    again = plan(from_pandas(table.iloc[::-1]), scaled).model
    more = table.assign(smoking=table["smoking"].cat.add_categories(["pipe"]))
    other = plan(from_pandas(more), scaled).model
    assert first.token == again.token != other.token


def test_models_travel_by_value(tmp_path):
    """A worker need not have the user's module, whether or not a handler wraps the model."""
    pickled = [pickle_by_value(ZOO[name].model) for name in ("positive", "decentered")]
    (tmp_path / "models.pickle").write_bytes(pickle.dumps(pickled))
    load = "import pickle; print(*map(pickle.loads, pickle.load(open('models.pickle', 'rb'))))"
    shown = subprocess.run(
        [sys.executable, "-c", load], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "function positive" in shown
    assert "reparam object" in shown


def test_reading_under_double_precision():
    with precision(True):
        model = plan(from_pandas(frame()), ZOO["intercepts"].model, by="county").model
    assert model.x64
    assert not planned("intercepts").model.x64
