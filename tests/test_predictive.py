"""What a model says of rows, against mixtures written out by hand and by scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import _unconstrain_reparam

from dask_consensus.model import remembered
from dask_consensus.shard.at_draws import Normals, Rows, make_design
from dask_consensus.shard.mixtures import share_of, student_cdf
from dask_consensus.shard.predictive import Asked, ask, row_sites

from . import from_pandas, plan
from .models import ZOO, frame

STATISTICS = ("mean", "sd", "q05", "q50", "q97.5")


def read(model, **options):
    """Read a model, and say of which dtype its arguments are."""
    made = plan(from_pandas(frame()), model, **options)
    dtypes = {name: str(value.dtype) for name, value in made.example.arguments.items()}
    return made.model, dtypes


def answer(model, dtypes, u, x, statistics=STATISTICS, expected=False, effects=None, known=None):
    """Ask of the first site; all rows belong to groups 0, 1, ... in turn, if there are any."""
    sites = row_sites(model, dtypes)
    asked = Asked(sites[:1], (statistics,), expected)
    arguments = {name: np.zeros(len(x), dtype) for name, dtype in dtypes.items()}
    arguments |= {"x": x.astype(np.float32)} if "x" in dtypes else {}
    for name in model.codes:
        arguments[name] = (np.arange(len(x)) % len(known)).astype(np.int32)
    known = np.zeros(0, bool) if known is None else known
    of_groups = ((), ()) if effects is None else ((known,), (effects,))
    (found,) = ask(model, asked, make_design(model, u), Rows(arguments, *of_groups))
    return dict(zip(statistics, np.moveaxis(found, 2, 0), strict=True))


# model's distribution of a row, at mu + x and s; the same of scipy
FAMILIES = {
    "normal": (lambda m, s: dist.Normal(m, s), lambda m, s: scipy.stats.norm(m, s)),
    "student": (lambda m, s: dist.StudentT(4.0, m, s), lambda m, s: scipy.stats.t(4, m, s)),
    "lognormal": (
        lambda m, s: dist.LogNormal(m, s), lambda m, s: scipy.stats.lognorm(s, scale=np.exp(m))
    ),
    "gamma": (
        lambda m, s: dist.Gamma(2.0, jnp.exp(m)),
        lambda m, s: scipy.stats.gamma(2, scale=np.exp(-m)),
    ),
    "poisson": (
        lambda m, s: dist.Poisson(jnp.exp(m)), lambda m, s: scipy.stats.poisson(np.exp(m))
    ),
    "binary": (
        lambda m, s: dist.Bernoulli(logits=m),
        lambda m, s: scipy.stats.bernoulli(1 / (1 + np.exp(-m))),
    ),
    "negative-binomial": (
        lambda m, s: dist.NegativeBinomial2(jnp.exp(m), 3.0),
        lambda m, s: scipy.stats.nbinom(3, 3 / (3 + np.exp(m))),
    ),
    "binomial": (
        lambda m, s: dist.Binomial(7, logits=m),
        lambda m, s: scipy.stats.binom(7, 1 / (1 + np.exp(-m))),
    ),
}  # fmt: skip
COUNTS = {"poisson", "binary", "negative-binomial", "binomial"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prediction_is_the_mixture_over_draws(family):
    ours, theirs = FAMILIES[family]

    def model(x, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        s = numpyro.sample("s", dist.HalfNormal(1))
        numpyro.sample("obs", ours(mu + x, s), obs=y)

    response = "flag" if family == "binary" else "count" if family in COUNTS else "share"
    read_model, dtypes = read(model, columns={"x": "x", "y": response})
    assert row_sites(read_model, dtypes)[0].needs == ("x",)
    rng = np.random.default_rng(0)
    u = np.column_stack([rng.normal(0, 0.4, 50), rng.normal(-0.5, 0.3, 50)])
    x = np.array([-1.0, 0.3, 1.2])
    told = answer(read_model, dtypes, u, x)
    each = theirs(u[:, :1] + x, np.exp(u[:, 1:]))
    np.testing.assert_allclose(told["mean"][:, 0], each.mean().mean(axis=0), rtol=1e-5)
    sd = np.sqrt(each.var().mean(axis=0) + each.mean().var(axis=0))
    np.testing.assert_allclose(told["sd"][:, 0], sd, rtol=1e-4)
    for name in STATISTICS[2:]:
        found, share = told[name][:, 0], share_of(name)
        upto = each.cdf(found).mean(axis=0)
        if family in COUNTS:
            assert (upto >= share - 1e-6).all()
            assert (each.cdf(found - 1).mean(axis=0) < share).all()
        else:
            # Of normals the quantiles follow from moments, not from each of the few draws.
            assert np.abs(upto - share).max() < (0.005 if family == "normal" else 0.001)
    if family in COUNTS:
        told = answer(read_model, dtypes, u, x, ("p0", "p1"))
        for value in (0, 1):
            expected = each.pmf(value).mean(axis=0)
            np.testing.assert_allclose(told[f"p{value}"][:, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("df", [0.2, 0.9, 1.0, 1.5, 4.0, 29.0, 31.0, 1e4])
def test_the_distribution_function_of_students_t(df):
    """Sixteen nodes leave 2e-5 at most; in single precision, however many degrees there are."""
    x = np.concatenate([-np.logspace(-2, 3, 40)[::-1], [0.0], np.logspace(-2, 3, 40)])
    fn = dist.StudentT(df, 0.5, 2.0)
    found = student_cdf(fn, jnp.asarray(2 * x + 0.5, jnp.float32), jnp.asarray(df < 1))
    np.testing.assert_allclose(found, scipy.stats.t(df).cdf(x), atol=2e-5)


def test_the_expected_value_is_uncertain_by_its_parameters_alone():
    model, dtypes = read(ZOO["intercepts"].model, by="county", columns=None)
    rng = np.random.default_rng(1)
    u = rng.normal(0, 0.3, (400, model.dim))
    told = answer(model, dtypes, u, np.zeros(2), expected=True, known=np.zeros(2, bool))
    observed = answer(model, dtypes, u, np.zeros(2), known=np.zeros(2, bool))
    np.testing.assert_allclose(told["mean"], observed["mean"], rtol=1e-5)
    assert (told["sd"] < observed["sd"]).all()


def model_of_groups(county, x, y=None, *, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(mu, 0.7))
        positive = numpyro.sample("positive", dist.LogNormal(0.0, 0.5))
    numpyro.sample("obs", dist.Normal(b[county] + positive[county] * x, 0.5), obs=y)


@pytest.fixture(scope="module")
def grouped():
    return read(model_of_groups, by="county")


def test_groups_never_seen_are_of_the_population(grouped):
    model, dtypes = grouped
    u = np.random.default_rng(0).normal(1.0, 0.4, (300, 1))
    told = answer(model, dtypes, u, np.zeros(3), known=np.zeros(3, bool))
    np.testing.assert_allclose(told["mean"][:, 0], u.mean(), atol=1e-5)
    sd = np.sqrt(u.var() + 0.7**2 + 0.5**2)
    np.testing.assert_allclose(told["sd"][:, 0], sd, rtol=1e-4)
    upto = scipy.stats.norm.cdf(told["q05"][0, 0], u, np.hypot(0.7, 0.5)).mean()
    assert abs(upto - 0.05) < 0.005


def test_effects_move_with_the_shared_parameters(grouped):
    """Moments of a seen group's rows follow from its normal distribution in closed form."""
    model, dtypes = grouped
    u = np.random.default_rng(0).normal(1.0, 0.4, (300, 1))
    mean = np.array([[0.5, -1.0], [2.0, 0.2]], np.float32)
    slope = np.array([[[-0.8], [0.1]], [[0.5], [-0.2]]], np.float32)
    factor = np.linalg.cholesky(np.array([[[0.2, 0.05], [0.05, 0.1]], [[0.3, 0.0], [0.0, 0.2]]]))
    effects = Normals(mean, slope, 0 * slope, factor.astype(np.float32))
    x = np.array([0.0, 0.0])
    told = answer(model, dtypes, u, x, effects=effects, known=np.ones(2, bool))
    np.testing.assert_allclose(told["mean"][:, 0], mean[:, 0], atol=1e-5)
    variance = slope[:, 0, 0] ** 2 * u.var() + np.array([0.2, 0.3]) + 0.25
    np.testing.assert_allclose(told["sd"][:, 0], np.sqrt(variance), rtol=1e-4)
    told = answer(model, dtypes, u, np.ones(2), effects=effects, known=np.array([True, False]))
    # Raw effects of a positive site are its logarithms.
    total = np.exp(-1.0 + (0.1**2 * u.var() + 0.1) / 2)
    np.testing.assert_allclose(told["mean"][0, 0], mean[0, 0] + total, rtol=0.01)
    np.testing.assert_allclose(told["mean"][1, 0], u.mean() + np.exp(0.125), rtol=0.01)


def test_categories_have_probabilities():
    def model(x, y=None):
        cuts = jnp.array([-1.0, 1.0])
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("obs", dist.OrderedLogistic(slope * x, cuts), obs=y)

    read_model, dtypes = read(model, columns={"y": "smoking"})
    (site,) = row_sites(read_model, dtypes)
    assert (site.categories, site.discrete) == (3, True)
    u, x = np.array([[0.5], [1.5]]), np.array([0.0, 2.0])
    told = answer(read_model, dtypes, u, x, ("p0", "p1", "p2", "q50"))
    cut = np.array([-np.inf, -1, 1, np.inf])
    below = 1 / (1 + np.exp(-(cut - (u * x)[:, :, None])))
    expected = np.diff(below, axis=2).mean(axis=0)
    for k in range(3):
        np.testing.assert_allclose(told[f"p{k}"][:, 0], expected[:, k], rtol=1e-4)
    median = (np.cumsum(expected, axis=1) < 0.5 - 1e-6).sum(axis=1)
    np.testing.assert_array_equal(told["q50"][:, 0], median)


def test_a_row_may_have_several_entries_and_no_quantile_function():
    model, dtypes = read(ZOO["cholesky_correlation"].model)
    rng = np.random.default_rng(0)
    u = rng.normal(0, 0.2, (200, model.dim))
    told = answer(model, dtypes, u, np.zeros(4))
    assert told["mean"].shape == (4, 3)
    z = (told["q97.5"] - told["mean"]) / told["sd"]
    np.testing.assert_allclose(z, 1.96, atol=0.35)  # from 3,200 samples


def test_what_is_observed_may_be_needed():
    def mediated(x, z=None, y=None):
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.sample("between", dist.Normal(a * x, 1), obs=z)
        numpyro.sample("obs", dist.Normal(a * z, 1), obs=y)

    model, dtypes = read(mediated)
    needs = {site.name: site.needs for site in row_sites(model, dtypes)}
    assert needs == {"between": ("x",), "obs": ("z",)}


def test_masked_rows_are_predicted_too():
    model, dtypes = read(ZOO["own_masks"].model)
    told = answer(model, dtypes, np.full((20, 1), 0.3), np.zeros(2), ("mean", "sd"))
    np.testing.assert_allclose(told["mean"], 0.3, rtol=1e-5)
    np.testing.assert_allclose(told["sd"], 1.0, rtol=1e-5)


def test_a_factor_says_nothing_of_rows():
    def by_factor(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("rows", len(y)):
            numpyro.factor("likelihood", -0.5 * (y - mu) ** 2)

    model, dtypes = read(by_factor)
    with pytest.raises(ValueError, match=r"'likelihood' is a numpyro\.factor"):
        row_sites(model, dtypes)


@pytest.mark.parametrize("name", ["walk_by_scan", "without_plate", "own_scales"])
def test_every_way_to_write_a_model_is_predicted(name):
    """Against draws of NumPyro's own at the same parameters."""
    case = ZOO[name]
    model, dtypes = read(case.model, by=case.by or None)
    u, x = np.random.default_rng(0).normal(0, 0.3, (1, model.dim)), np.array([0.2, -0.4])
    told = answer(model, dtypes, u.repeat(2, axis=0), x, ("mean", "sd"))
    arguments, groups = remembered.example(model, dtypes)
    del groups
    arguments = {name: value[:2] for name, value in arguments.items()} | {"x": x}
    arguments = {name: jnp.asarray(arguments[name]) for name in dtypes}
    given = functools.partial(_unconstrain_reparam, model.unravel(jnp.asarray(u[0])))
    free = handlers.uncondition(handlers.substitute(case.model, substitute_fn=given))
    site = row_sites(model, dtypes)[0].name
    draws = np.array(Predictive(free, num_samples=20_000)(jax.random.key(0), **arguments)[site])
    np.testing.assert_allclose(told["mean"][:, 0], draws.mean(axis=0), atol=0.06)
    np.testing.assert_allclose(told["sd"][:, 0], draws.std(axis=0), rtol=0.03)
