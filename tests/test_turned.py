"""Nodes in more than a few dimensions: what they are exact for, and what is left to chance."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard.marginal import unit_log_likelihoods
from dask_consensus.shard.quadrature import Rule, gradient_ladder, ladder, rule
from dask_consensus.shard.turned import offsets, rotations
from dask_consensus.shard_data import ShardData

from .test_marginal import read


def shares(nodes):
    return np.exp(nodes.log_weights - (nodes.points**2).sum(axis=1) / 2)


@pytest.mark.parametrize("q", [4, 5, 10])
def test_rules_are_exact_to_the_third_degree_and_in_the_length(q):
    for n in dict.fromkeys((*ladder(q)[1:3], gradient_ladder(q)[0])):
        nodes = rule(q, n)
        share = shares(nodes)
        assert len(share) == n
        assert (share > 0).all()
        # Exact rules: rounding alone is left.
        np.testing.assert_allclose(share.sum(), 1, rtol=1e-12)
        np.testing.assert_allclose(share @ nodes.points, 0, atol=1e-12)
        second = (nodes.points * share[:, None]).T @ nodes.points
        np.testing.assert_allclose(second, np.eye(q), atol=1e-12)
        third = np.einsum("n,ni,nj,nk->ijk", share, *[nodes.points] * 3)
        np.testing.assert_allclose(third, 0, atol=1e-12)
        if n == 2 * q:
            continue
        # Moments of a chi-squared variable of q degrees.
        length = (nodes.points**2).sum(axis=1)
        expected = np.cumprod(q + 2.0 * np.arange(5))
        np.testing.assert_allclose([share @ length**k for k in range(1, 6)], expected, rtol=1e-10)


@pytest.mark.parametrize(("place", "bound"), [(1, 0.25), (2, 0.1)])
@pytest.mark.parametrize("q", [5, 10])
def test_fourth_powers_err_by_little_whatever_the_rotation(q, place, bound):
    """E (a'x)^4 = 3 for unit a: of so many directions at random the error would be 0.6 and 0.4."""
    nodes = rule(q, ladder(q)[place])
    along = np.random.default_rng(0).standard_normal((400, q))
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    error = ((nodes.points @ along.T) ** 4 * shares(nodes)[:, None]).sum(axis=0) - 3
    # The mean over directions is exact but for their number; sds are 1.5 times what was seen.
    assert abs(error.mean()) < 5 * error.std() / 20 + 1e-9
    assert error.std() < bound * 3


def test_every_unit_has_a_rotation_of_its_own_that_does_not_depend_on_the_others():
    with precision(True):
        turns = np.asarray(rotations(6, 5, jnp.float64))
        more = np.asarray(rotations(9, 5, jnp.float64))
        assert rotations(6, 3, jnp.float64) is None
    # Orthogonal but for rounding.
    products = np.einsum("uij,ukj->uik", turns, turns)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(5), products.shape), atol=1e-12)
    np.testing.assert_array_equal(more[:6], turns)
    assert np.abs(turns[0] - turns[1]).max() > 0.1


def test_nodes_lie_by_the_curvature():
    """Offsets have the covariance that the curvature says, whichever way they are turned."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 4, 4))
    precisions = mixing @ np.swapaxes(mixing, 1, 2) + np.eye(4)
    nodes = rule(4, ladder(4)[1])
    with precision(True):
        factor = jnp.asarray(np.linalg.cholesky(precisions))
        place = offsets(factor, rotations(3, 4, factor.dtype))
        away = np.asarray(jax.vmap(place)(jnp.asarray(nodes.points)))
    covariance = np.einsum("n,nui,nuj->uij", shares(nodes), away, away)
    np.testing.assert_allclose(covariance, np.linalg.inv(precisions), atol=1e-10)


def effects(q, family):
    def model(g, x, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([q]).to_event(1))
        tau = numpyro.sample("tau", dist.HalfNormal(2).expand([q]).to_event(1))
        corr = numpyro.sample("corr", dist.LKJCholesky(q, 2.0))
        with numpyro.plate("g", n_g):
            b = numpyro.sample("b", dist.MultivariateNormal(mu, scale_tril=tau[:, None] * corr))
        with numpyro.plate("rows", len(g)):
            numpyro.sample("y", family((x * b[g]).sum(axis=1)), obs=y)

    return model


FAMILIES = {
    "gaussian": (lambda eta: dist.Normal(eta, 1.0), lambda rng, eta: rng.normal(eta)),
    "binary": (
        lambda eta: dist.Bernoulli(logits=eta),
        lambda rng, eta: (rng.random(eta.shape) < scipy.special.expit(eta)).astype(float),
    ),
    "poisson": (
        lambda eta: dist.Poisson(jnp.exp(eta)),
        lambda rng, eta: rng.poisson(np.exp(eta)).astype(float),
    ),
}


def case(q, family, groups, rows):
    rng = np.random.default_rng(q)
    g = np.repeat(np.arange(groups), rows).astype(np.int32)
    x = rng.normal(size=(groups * rows, q))
    tau = np.linspace(0.9, 0.4, q)
    eta = (x * (0.1 + tau * rng.normal(size=(groups, q)))[g]).sum(axis=1)
    density, draw = FAMILIES[family]
    values = {"x": x, "y": draw(rng, eta)}
    model = read(effects(q, density), values, groups=["g"])
    real = np.ones(len(g), bool), (np.ones(groups, bool),)
    center = np.zeros(model.dim)
    center[[i for i, name in enumerate(names_of(model)) if name == "tau"]] = np.log(tau)
    return model, ShardData({**values, "g": g}, *real), center, x.reshape(groups, rows, q)


def names_of(model):
    return np.repeat([s.name for s in model.shared], [int(np.prod(s.shape)) for s in model.shared])


def priors(model, u):
    """Mean and covariance of the effects at unconstrained `u`."""
    sites = {name: np.asarray(value) for name, value in model.unravel(jnp.asarray(u)).items()}
    q = len(sites["mu"])
    corr = dist.biject_to(dist.LKJCholesky(q, 2.0).support)(jnp.asarray(sites["corr"]))
    scale = np.exp(sites["tau"])[:, None] * np.asarray(corr)
    return sites["mu"], scale


def log_density(family, y, eta):
    if family == "binary":
        return y * eta - np.logaddexp(0, eta)
    if family == "poisson":
        return y * eta - np.exp(eta) - scipy.special.gammaln(y + 1)
    return scipy.stats.norm.logpdf(y, eta, 1.0)


def score_and_weights(family, y, eta):
    if family == "gaussian":
        return y - eta, np.ones_like(eta)
    mean = scipy.special.expit(eta) if family == "binary" else np.exp(np.minimum(eta, 20.0))
    return y - mean, mean * (1 - mean) if family == "binary" else mean


def by_importance(family, x, y, mean, scale, n=2**14):
    """Log integral of one group, by points of a wide t distribution about its mode; its error."""
    prior = scipy.stats.multivariate_normal(mean, scale @ scale.T)
    mode, precision_ = mean, np.linalg.inv(scale @ scale.T)
    for _ in range(50):
        score, weights = score_and_weights(family, y, x @ mode)
        curved = x.T @ (weights[:, None] * x) + precision_
        step = np.linalg.solve(curved, x.T @ score - precision_ @ (mode - mean))
        mode = mode + step / max(1.0, np.linalg.norm(step))
    t = scipy.stats.multivariate_t(mode, 1.3 * np.linalg.inv(curved), df=6, seed=0)
    parts = []
    for b in np.split(t.rvs(n), 4):
        height = log_density(family, y, b @ x.T).sum(axis=-1) + prior.logpdf(b)
        parts.append(scipy.special.logsumexp(height - t.logpdf(b)) - np.log(len(b)))
    return scipy.special.logsumexp(parts) - np.log(4), np.std(parts) / 2


def against_importance(q, family, groups, rows):
    with precision(True):
        model, data, center, x = case(q, family, groups, rows)
        points = center + 0.2 * np.random.default_rng(1).normal(size=(2, model.dim))
        by_rule = {
            n: next(iter(unit_log_likelihoods(model, data, points, center, Rule(n)))).units
            for n in ladder(q)
        }
        y = data.arguments["y"].reshape(groups, rows)
        sought = np.array(
            [
                [by_importance(family, x[j], y[j], *priors(model, u)) for j in range(groups)]
                for u in points
            ]
        )
    return by_rule, sought[..., 0], sought[..., 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "family", "rows"),
    [(4, "binary", 5), (5, "binary", 4), (5, "poisson", 5), (10, "binary", 6), (10, "poisson", 4)],
)
def test_skewed_groups_against_importance_sampling(q, family, rows):
    by_rule, expected, noise = against_importance(q, family, 8, rows)
    laplace, coarse, *_, finest = (np.abs(v - expected) for v in by_rule.values())
    # What a group errs by: a few shells leave a tenth of Laplace's error at most.
    assert coarse.mean() < laplace.mean() / 10 + 3 * noise.mean()
    assert finest.mean() < 0.002 + 3 * noise.mean()
    # And it is by chance that they err: sums over groups are better than their terms.
    sums = (list(by_rule.values())[1] - expected).sum(axis=1)
    assert (np.abs(sums) < 5 * np.sqrt((coarse**2 + noise**2).sum(axis=1)) + 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("q", [5, 10])
def test_gaussian_rows_have_their_closed_form_whatever_the_nodes(q):
    with precision(True):
        model, data, center, x = case(q, "gaussian", 8, 7)
        points = center + 0.2 * np.random.default_rng(1).normal(size=(2, model.dim))
        y = data.arguments["y"].reshape(8, 7)
        expected = []
        for u in points:
            mean, scale = priors(model, u)
            for j in range(8):
                covariance = x[j] @ scale @ scale.T @ x[j].T + np.eye(7)
                normal = scipy.stats.multivariate_normal(x[j] @ mean, covariance)
                expected.append(normal.logpdf(y[j]))
        for n in ladder(q)[:3]:
            found = next(iter(unit_log_likelihoods(model, data, points, center, Rule(n)))).units
            # Exact for any rule: rounding alone is left.
            np.testing.assert_allclose(found.ravel(), expected, atol=1e-8)
