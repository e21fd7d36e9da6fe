"""Models drawn at random, ordinary and mistaken: priors, effects, likelihoods, handlers, slips.

A number names a model, and its rows, for good. Of those without a mistake the density is a product
over groups, and any way to cut groups into shards must give it; of the others it may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.handlers import mask, reparam, scale, scope
from numpyro.infer.reparam import LocScaleReparam

GROUPS, ROWS = 9, 45


class OddModel(NamedTuple):
    """A model, its rows, and what is known of it."""

    model: Callable[..., Any]
    frame: pd.DataFrame
    by: str | None
    mistake: str  # empty where there is none
    what: str


SHARED: dict[str, dist.Distribution] = {
    "normal": dist.Normal(0.0, 2.0),
    "student": dist.StudentT(3.0, 0.0, 1.0),
    "cauchy": dist.Cauchy(0.0, 1.0),
    "half-normal": dist.HalfNormal(1.0),
    "half-cauchy": dist.HalfCauchy(1.0),
    "gamma": dist.Gamma(2.0, 1.0),
    "inverse-gamma": dist.InverseGamma(3.0, 1.0),
    "log-normal": dist.LogNormal(0.0, 0.5),
    "exponential": dist.Exponential(1.0),
    "beta": dist.Beta(2.0, 3.0),
    "uniform": dist.Uniform(-1.0, 2.0),
    "laplace": dist.Laplace(0.0, 1.0),
    "truncated": dist.TruncatedNormal(0.0, 1.0, low=-0.5),
    "vector": dist.Normal(0.0, 1.0).expand([3]).to_event(1),
    "matrix": dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2),
    "dirichlet": dist.Dirichlet(jnp.ones(3) * 2),
    "cholesky": dist.LKJCholesky(3, 2.0),
    "zero-sum": dist.ZeroSumNormal(1.0, (3,)),
    "multivariate": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2) + 0.3),
    "ordered": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    ),
}
EFFECTS = ("none", "centred", "scaled", "two", "vector", "reparametrised", "positive", "heavy")
LIKELIHOODS: dict[str, Callable[[Any], dist.Distribution]] = {
    "normal": lambda m: dist.Normal(m, 1.0),
    "student": lambda m: dist.StudentT(4.0, m, 1.0),
    "poisson": lambda m: dist.Poisson(jnp.exp(jnp.clip(m, -5, 5))),
    "bernoulli": lambda m: dist.Bernoulli(logits=m),
    "binomial": lambda m: dist.Binomial(5, logits=m),
    "negative-binomial": lambda m: dist.NegativeBinomial2(jnp.exp(jnp.clip(m, -5, 5)), 2.0),
    "gamma": lambda m: dist.Gamma(2.0, jnp.exp(-jnp.clip(m, -5, 5))),
    "log-normal": lambda m: dist.LogNormal(m, 1.0),
    "categorical": lambda m: dist.Categorical(
        logits=jnp.stack([jnp.zeros_like(m), m, -m], axis=-1)
    ),
    "mixture": lambda m: dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.4, 0.6])),
        dist.Normal(jnp.stack([m - 1, m + 1], axis=-1), 1.0),
    ),
    "factor": lambda m: dist.Normal(m, 1.0),
}
RESPONSES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "poisson": lambda rng: rng.poisson(2.0, ROWS),
    "negative-binomial": lambda rng: rng.poisson(2.0, ROWS),
    "bernoulli": lambda rng: rng.integers(0, 2, ROWS),
    "binomial": lambda rng: rng.integers(0, 6, ROWS),
    "categorical": lambda rng: rng.integers(0, 3, ROWS),
    "gamma": lambda rng: rng.gamma(2.0, 1.0, ROWS),
    "log-normal": lambda rng: rng.gamma(2.0, 1.0, ROWS),
}
MISTAKES = (
    "a prior that knows the number of groups",
    "a prior that knows the number of rows",
    "a prior that knows the rows",
    "columns centred over the rows at hand",
    "effects centred over the groups at hand",
    "effects of a random walk over the groups",
    "a sum over the groups at hand",
    "a term of all rows, once",
    "a size written by hand",
    "a discrete site",
    "random numbers of NumPy",
    "random numbers of the system",
    "a subsample of the rows",
    "nothing is observed",
    "a parameter to be optimised",
    "an order of the rows",
    "a meaning of the codes",
    "the count of an effect's rows",
    "state that is kept between runs",
    "the response as a predictor of its prior",
)


def odd_model(number: int) -> OddModel:
    """Draw the model that has this number."""
    rng = np.random.default_rng([20_263, number])
    names = [str(name) for name in rng.choice(list(SHARED), int(rng.integers(1, 4)), False)]
    effects = str(rng.choice(EFFECTS))
    likelihood = str(rng.choice(list(LIKELIHOODS)))
    mistake = str(rng.choice(MISTAKES)) if rng.random() < 0.4 else ""
    around = str(rng.choice(["nothing", "scope", "scale", "mask", "deterministic"]))
    plate = bool(rng.random() < 0.7)
    x = rng.normal(size=ROWS)
    y = RESPONSES.get(likelihood, lambda rng: rng.normal(size=ROWS))(rng)
    g = rng.permutation(np.concatenate([np.arange(GROUPS), rng.integers(0, GROUPS, ROWS - GROUPS)]))
    grouped = effects != "none"
    kept: list[int] = []

    def body(g: Any, x: Any, y: Any, n_g: int) -> None:
        n = len(x)
        level = 0.0
        for name in names:
            value = numpyro.sample(f"p {name}", _prior(SHARED[name], name, mistake, x, y, n, n_g))
            level = level + 0.3 * jnp.sum(value) + 0.1 * jnp.ravel(value)[0] * x
        if mistake == "a discrete site":
            level = level + numpyro.sample("which", dist.Bernoulli(0.5))
        if mistake == "a parameter to be optimised":
            level = level + numpyro.param("free", 0.0)
        if mistake == "columns centred over the rows at hand":
            level = level + 0.5 * (x - x.mean())
        if mistake == "random numbers of NumPy":
            level = level + np.random.normal()  # noqa: NPY002  the mistake
        if mistake == "random numbers of the system":
            level = level + np.random.default_rng().normal()
        if mistake == "state that is kept between runs":
            kept.append(1)
            level = level + 0.01 * len(kept)
        if mistake == "an order of the rows":
            level = level + 0.1 * jnp.arange(n)
        if mistake == "a meaning of the codes" and g is not None:
            level = level + 0.3 * g
        if mistake == "a term of all rows, once":
            numpyro.factor("once", -0.1 * jnp.sum(x) ** 2)
        mean = level + (_effects(effects, mistake, g, n_g, n) if g is not None else 0.0)
        _observe(LIKELIHOODS[likelihood], likelihood, mean, y, n, plate, around, mistake, x)

    if grouped:

        def model(g, x, y=None, *, n_g):
            with scope(prefix="m") if around == "scope" else mask(mask=True):
                body(g, x, y, n_g)
    else:

        def model(x, y=None):  # type: ignore[misc]
            with scope(prefix="m") if around == "scope" else mask(mask=True):
                body(None, x, y, 0)

    frame = pd.DataFrame({"x": x, "y": y}).assign(**({"g": g} if grouped else {}))
    what = f"shared {', '.join(names)}; effects {effects}; {likelihood} rows; {around}"
    return OddModel(model, frame, "g" if grouped else None, mistake, what)


def _prior(
    prior: dist.Distribution, name: str, mistake: str, x: Any, y: Any, n: int, n_g: int
) -> dist.Distribution:
    if name != "normal":
        return prior
    if mistake == "a prior that knows the number of groups" and n_g:
        return dist.Normal(0.0, float(n_g))
    if mistake == "a prior that knows the number of rows":
        return dist.Normal(0.0, n**0.5)
    if mistake == "a prior that knows the rows":
        return dist.Normal(x.mean(), 1.0)
    if mistake == "the response as a predictor of its prior" and y is not None:
        return dist.Normal(jnp.mean(y), 1.0)
    return prior


def _effects(kind: str, mistake: str, g: Any, n_g: int, n: int) -> Any:
    """Draw effects of groups, and give each row its own."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    size = GROUPS if mistake == "a size written by hand" else n_g
    config = {"a": LocScaleReparam(0)} if kind == "reparametrised" else {}
    with numpyro.plate("groups", size), reparam(config=config):
        if kind == "scaled":
            a = tau * numpyro.sample("raw", dist.Normal(0.0, 1.0))
        elif kind == "vector":
            a = numpyro.sample("a", dist.Normal(0.0, tau).expand([2]).to_event(1)).sum(axis=-1)
        elif kind == "positive":
            a = numpyro.sample("a", dist.LogNormal(0.0, tau))
        elif kind == "heavy":
            a = numpyro.sample("a", dist.StudentT(3.0, 0.0, tau))
        else:
            a = numpyro.sample("a", dist.Normal(0.0, tau))
        if kind == "two":
            a = a + numpyro.sample("b", dist.Normal(0.0, 1.0)) ** 2
    if mistake == "effects centred over the groups at hand":
        a = a - a.mean()
    if mistake == "effects of a random walk over the groups":
        a = jnp.cumsum(a)
    if mistake == "a sum over the groups at hand":
        numpyro.factor("sum", -0.5 * jnp.sum(a) ** 2)
    if mistake == "the count of an effect's rows":
        a = a / jnp.zeros(n_g).at[g].add(1.0)
    return a[g]


def _observe(
    distribution: Callable[[Any], dist.Distribution],
    name: str,
    mean: Any,
    y: Any,
    n: int,
    plate: bool,
    around: str,
    mistake: str,
    x: Any,
) -> None:
    mean = jnp.broadcast_to(mean, (n,))
    if mistake == "nothing is observed":
        y = None
    if around == "deterministic":
        numpyro.deterministic("mean", mean)
    handler = scale(scale=0.5) if around == "scale" else mask(mask=_some(around, x))
    subsample = n // 2 if mistake == "a subsample of the rows" else None
    with handler:
        if name == "factor" and y is not None:
            numpyro.factor("obs", distribution(mean).log_prob(y))
        elif subsample is not None:
            with numpyro.plate("rows", n, subsample_size=subsample) as rows:
                observed = None if y is None else y[rows]
                numpyro.sample("obs", distribution(mean[rows]), obs=observed)
        elif plate:
            with numpyro.plate("rows", n):
                numpyro.sample("obs", distribution(mean), obs=y)
        else:
            numpyro.sample("obs", distribution(mean), obs=y)


def _some(around: str, x: Any) -> Any:
    return x > -1.0 if around == "mask" else True
