"""Models and data drawn at random: likelihood, link, groups, priors, and how the data are unlike.

A number names a model and its rows for good. What may be asked of a fit of any of them is the same
as of the trials written by hand: the full model's posterior, or a true reason why not.

Numbers from `WIDE` on are drawn from more: priors that are narrow, wide, heavy or bounded, units of
1e-3 to 1e4, groups of a row to thousands, correlated effects, and effects that have heavy tails.
Most have few rows, so that many can be fitted; references are summed (``summed.py``), not sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import expit

from .case import takes
from .hostile.trial import CHAINS, EFFECTS, WEIGHTS, Trial
from .summed import Parts, summed

LIKELIHOODS = (
    "normal",
    "student",
    "bernoulli",
    "probit",
    "poisson",
    "negative-binomial",
    "gamma",
    "weibull",
    "exponential",
    "binomial",
    "ordinal",
)
CONTINUOUS = ("normal", "student")
SPREADS = {
    "half-normal": dist.HalfNormal(1.0),
    "half-Cauchy": dist.HalfCauchy(1.0),
    "exponential": dist.Exponential(1.0),
    "log-normal": dist.LogNormal(-1.0, 1.0),
}
WIDER_SPREADS = SPREADS | {
    "narrow half-normal": dist.HalfNormal(0.1),
    "wide half-Cauchy": dist.HalfCauchy(25.0),
    "bounded": dist.Uniform(0.0, 3.0),
    "inverse gamma": dist.InverseGamma(1.0, 0.2),
}
COEFFICIENTS = {
    "normal": lambda scale: dist.Normal(0.0, scale),
    "student": lambda scale: dist.StudentT(3.0, 0.0, scale),
    "Laplace": lambda scale: dist.Laplace(0.0, scale),
    "bounded": lambda scale: dist.Uniform(-scale, scale),
    "positive": lambda scale: dist.HalfNormal(scale),
}
WIDE = 100  # the first number of the wider ones
CUTS = np.array([-1.0, 0.5, 1.5])
TOTAL = 6  # trials of a binomial row


@dataclass(frozen=True)
class Recipe:
    """What was drawn.

    Attributes
    ----------
    likelihood : str
        One of `LIKELIHOODS`.
    rows, groups, effects, predictors : int
        `effects` a group, 0 without groups.
    centred : bool
        Effects are drawn around their mean, or scaled from a standard normal.
    scale : float
        Prior sd of coefficients.
    spread : str
        Prior of sds, a key of `SPREADS`.
    tau : float
        The effects' sd that data are drawn with.
    unlike : str
        How the data are unlike the model: "", "noise" of every row, "curve", "skew" of effects,
        "outliers".
    sparse, collinear : bool
        Most groups have a row or two; two predictors are nearly the same.
    prior : str
        Of coefficients, a key of `COEFFICIENTS`.
    unit : float
        Of the predictors: what they are multiplied by, and the scale of coefficients is divided by.
    response_unit : float
        Of a continuous response, in which its sd and the effects' are drawn as well.
    correlated : bool
        Effects of a group have an LKJ prior.
    """

    likelihood: str
    rows: int
    groups: int
    effects: int
    predictors: int
    centred: bool
    scale: float
    spread: str
    tau: float
    unlike: str
    sparse: bool
    collinear: bool
    prior: str = "normal"
    unit: float = 1.0
    response_unit: float = 1.0
    correlated: bool = False

    @property
    def columns(self) -> list[str]:
        """Names of the predictors."""
        return [f"x{i}" for i in range(self.predictors)]


def recipe(number: int) -> Recipe:
    """Draw the recipe that has this number."""
    rng = np.random.default_rng([20_261, number])
    if number >= WIDE:
        return _wide_recipe(LIKELIHOODS[number % len(LIKELIHOODS)], rng)
    effects = int(rng.choice([0, 1, 1, 2, 3]))
    return Recipe(
        likelihood=LIKELIHOODS[number % len(LIKELIHOODS)],
        rows=int(rng.choice([300, 600, 1_200, 2_000])),
        groups=int(rng.choice([12, 25, 60])) if effects else 0,
        effects=effects,
        predictors=max(int(rng.integers(1, 5)), effects - 1),
        centred=bool(rng.random() < 0.5),
        scale=float(rng.choice([0.5, 2.0, 10.0])),
        spread=str(rng.choice(list(SPREADS))),
        tau=float(rng.choice([0.05, 0.5, 1.0])),
        unlike=str(rng.choice(["", "", "noise", "curve", "skew", "outliers"])),
        sparse=bool(rng.random() < 0.3),
        collinear=bool(rng.random() < 0.25),
    )


def _wide_recipe(likelihood: str, rng: np.random.Generator) -> Recipe:
    effects = int(rng.choice([0, 1, 1, 1, 2]))
    large = effects < 2 and rng.random() < 0.1  # few, since a reference costs in proportion
    rows = int(10 ** rng.uniform(3.0, 3.7) if large else 10 ** rng.uniform(1.8, 2.6))
    unlike = ["", "", "", "noise", "curve", "skew", "heavy", "outliers"]
    return Recipe(
        likelihood=likelihood,
        rows=rows,
        groups=int(10 ** rng.uniform(0.7, np.log10(rows / 2))) if effects else 0,
        effects=effects,
        predictors=max(int(rng.integers(1, 5)), effects - 1),
        centred=bool(rng.random() < 0.5),
        scale=float(10 ** rng.uniform(-1.0, 2.0)),
        spread=str(rng.choice(list(WIDER_SPREADS))),
        tau=float(rng.choice([0.0, 0.1, 0.5, 1.0, 2.0])),
        unlike=str(rng.choice(unlike)),
        sparse=bool(rng.random() < 0.4),
        collinear=bool(rng.random() < 0.2),
        prior=str(rng.choice(list(COEFFICIENTS))),
        unit=float(10.0 ** rng.integers(-3, 5)) if rng.random() < 0.4 else 1.0,
        response_unit=float(10.0 ** rng.integers(-3, 5))
        if likelihood in CONTINUOUS and rng.random() < 0.4
        else 1.0,
        correlated=bool(effects > 1 and rng.random() < 0.6),
    )


def number_of(name: str) -> int | None:
    """Read the number in the name of a model drawn at random; None for any other trial."""
    number = name.removeprefix("random-")
    return int(number) if number != name and number.isdigit() else None


@cache
def drawn_trial(number: int) -> Trial:
    """Make the model of this number, and what draws its rows."""
    of = recipe(number)
    names = [*of.columns, "y", *(["group", "n_group"] if of.effects else [])]
    start: dict[str, Any] = {"beta": np.zeros(of.predictors)}
    if of.likelihood != "ordinal":
        start["alpha"] = 0.0
    start |= {"tau": np.full(of.effects, 0.5)} if of.effects else {}
    start |= {name: value for name, (_, value) in _own_sites(of).items()}
    if of.correlated:
        start["chol"] = np.eye(of.effects)
    few = of.effects and of.rows < 30 * of.groups
    return Trial(
        f"random-{number}",
        takes(names)(lambda **columns: _model(of, **columns)),
        frame=lambda: drawn_trial(number).at(0).frame(),
        draw=partial(_rows, of),
        by="group" if of.effects else None,
        shards=(4,) if number % 2 else (8,),
        start=start,
        centred={f"b{k}": 0.0 for k in range(of.effects)} if of.centred and few else {},
        truths=(*EFFECTS, *WEIGHTS, *CHAINS),
        summed=partial(_reference, of) if number >= WIDE else None,
    )


def _own_sites(of: Recipe) -> dict[str, tuple[dist.Distribution, Any]]:
    """Shared sites of the likelihood alone: prior, and a value near which chains begin."""
    order = dist.transforms.OrderedTransform()
    steps = dist.TransformedDistribution(dist.Normal(jnp.zeros(3), 2.0).to_event(1), order)
    spread = (WIDER_SPREADS[of.spread], 1.0)
    return {
        "normal": {"sigma": spread},
        "student": {"sigma": spread, "nu": (dist.Gamma(2.0, 0.1), 5.0)},
        "negative-binomial": {"size": (dist.Gamma(2.0, 0.5), 2.0)},
        "gamma": {"size": (dist.Gamma(2.0, 0.5), 2.0)},
        "weibull": {"size": (dist.Gamma(2.0, 1.0), 1.5)},
        "ordinal": {"cuts": (steps, CUTS)},
    }.get(of.likelihood, {})


def _model(of: Recipe, y=None, group=None, n_group=None, **predictors):
    x = [predictors[name] for name in of.columns]
    sites = _shared(of)
    mean = _without_effects(of, sites, x)
    if of.effects:
        for effect, column in zip(_effects(of, sites, n_group), [1.0, *x], strict=False):
            mean += effect[group] * column
    with numpyro.plate("rows", len(x[0])):
        numpyro.sample("obs", _response(of, mean, sites), obs=y)


def _shared(of: Recipe) -> dict[str, Any]:
    """Sample all shared sites."""
    sites = {name: numpyro.sample(name, prior) for name, (prior, _) in _own_sites(of).items()}
    prior = COEFFICIENTS[of.prior](of.scale / of.unit)
    sites["beta"] = numpyro.sample("beta", prior.expand([of.predictors]).to_event(1))
    if of.likelihood != "ordinal":
        sites["alpha"] = numpyro.sample("alpha", dist.Normal(0.0, 2.0 * of.scale))
    if of.effects:
        spread = WIDER_SPREADS[of.spread].expand([of.effects]).to_event(1)
        sites["tau"] = numpyro.sample("tau", spread)
    if of.correlated:
        sites["chol"] = numpyro.sample("chol", dist.LKJCholesky(of.effects, 2.0))
    return sites


def _without_effects(of: Recipe, sites: Mapping[str, Any], x: Sequence[Any]) -> Any:
    mean = sum(b * column for b, column in zip(sites["beta"], x, strict=True))
    return mean + sites.get("alpha", 0.0)


def _effects(of: Recipe, sites: Mapping[str, Any], n_group: int) -> list[Any]:
    tau = sites["tau"]
    with numpyro.plate("groups", n_group):
        if of.centred and not of.correlated:
            return [numpyro.sample(f"b{k}", dist.Normal(0.0, tau[k])) for k in range(of.effects)]
        z = [numpyro.sample(f"z{k}", dist.Normal(0.0, 1.0)) for k in range(of.effects)]
    if of.correlated:
        z = [sum(a * b for a, b in zip(row, z, strict=True)) for row in sites["chol"]]
    return [tau[k] * z[k] for k in range(of.effects)]


def _reference(of: Recipe, frame: pd.DataFrame) -> dict[str, Any]:
    x, y = jnp.asarray(frame[of.columns].to_numpy().T), jnp.asarray(frame["y"].to_numpy())
    along = jnp.stack([jnp.ones(len(frame)), *x], axis=1)[:, : of.effects]

    def rows(sites: Mapping[str, Any]) -> tuple[Any, Any]:
        base = _without_effects(of, sites, x)
        if not of.effects:
            return base, along
        root = sites["tau"][:, None] * sites.get("chol", jnp.eye(of.effects))
        return base, along @ root

    return summed(
        Parts(
            shared=lambda: (_shared(of), None)[1],
            rows=rows,
            density=lambda sites, mean: _response(of, mean, sites).log_prob(y),
            group=pd.factorize(frame["group"], sort=True)[0] if of.effects else np.zeros(0, int),
            effects=of.effects,
        )
    )


def _response(of: Recipe, mean: Any, sites: Mapping[str, Any]) -> dist.Distribution:
    own = {name: sites[name] for name in _own_sites(of)}
    if of.response_unit != 1.0:
        mean, own["sigma"] = of.response_unit * mean, of.response_unit * own["sigma"]
    responses = {
        "normal": lambda sigma: dist.Normal(mean, sigma),
        "student": lambda sigma, nu: dist.StudentT(nu, mean, sigma),
        "bernoulli": lambda: dist.Bernoulli(logits=mean),
        "probit": lambda: dist.Bernoulli(
            probs=dist.Normal(0.0, 1.0).cdf(mean).clip(1e-6, 1 - 1e-6)
        ),
        "poisson": lambda: dist.Poisson(jnp.exp(mean)),
        "negative-binomial": lambda size: dist.NegativeBinomial2(jnp.exp(mean), size),
        "gamma": lambda size: dist.Gamma(size, size * jnp.exp(-mean)),
        "weibull": lambda size: dist.Weibull(jnp.exp(mean), size),
        "exponential": lambda: dist.Exponential(jnp.exp(-mean)),
        "binomial": lambda: dist.Binomial(TOTAL, logits=mean),
        "ordinal": lambda cuts: dist.OrderedLogistic(mean, cuts),
    }
    return responses[of.likelihood](**own)


def _rows(of: Recipe, rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=(of.rows, of.predictors))
    if of.collinear and of.predictors > 1:
        x[:, 1] = x[:, 0] + 0.05 * x[:, 1]
    mean = 0.3 + x @ rng.normal(0.0, 0.4, of.predictors)
    frame = pd.DataFrame(of.unit * x, columns=of.columns)
    # Effects of a predictor are multiples of it as it is, in whatever units.
    scales = np.array([1.0, *np.full(of.predictors, of.unit)])[: of.effects]
    if of.effects:
        group = _group_codes(of, rng)
        b = rng.normal(size=(of.groups, of.effects))
        if of.unlike == "skew":
            b = rng.exponential(size=b.shape) - 1
        elif of.unlike == "heavy":
            b = rng.standard_t(2.0, size=b.shape)
        by = np.column_stack([np.ones(of.rows), x])[:, : of.effects] * scales
        mean = mean + (of.tau * b[group] * by).sum(axis=1)
        frame["group"] = group
    if of.unlike == "noise":
        mean = mean + 0.7 * rng.normal(size=of.rows)
    elif of.unlike == "curve":
        mean = mean + 0.4 * x[:, 0] ** 2
    y = _responses(of.likelihood, np.clip(mean, -4.0, 4.0), rng)
    if of.unlike == "outliers" and of.likelihood not in (
        "bernoulli",
        "probit",
        "binomial",
        "ordinal",
    ):
        far = rng.random(of.rows) < 0.01
        y = np.where(far, 8 * y + (8 if of.likelihood in CONTINUOUS else 0), y)
    return frame.assign(y=of.response_unit * y if of.response_unit != 1.0 else y)


def _group_codes(of: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Every group has a row; of sparse ones most have few, and one many."""
    shares = rng.dirichlet(np.full(of.groups, 0.3 if of.sparse else 5.0))
    rest = rng.choice(of.groups, of.rows - of.groups, p=shares)
    return rng.permutation(np.concatenate([np.arange(of.groups), rest]))


def _responses(name: str, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, positive = len(mean), np.exp(mean)
    draws = {
        "normal": lambda: rng.normal(mean, 1.0),
        "student": lambda: mean + rng.standard_t(3.0, n),
        "bernoulli": lambda: (rng.random(n) < expit(mean)).astype(float),
        "probit": lambda: (rng.normal(mean, 1.0) > 0).astype(float),
        "poisson": lambda: rng.poisson(positive),
        "negative-binomial": lambda: rng.poisson(positive * rng.gamma(2.0, 0.5, n)),
        "gamma": lambda: rng.gamma(2.0, positive / 2.0).clip(1e-4),
        "weibull": lambda: (positive * rng.weibull(1.5, n)).clip(1e-4),
        "exponential": lambda: rng.exponential(positive).clip(1e-5),
        "binomial": lambda: rng.binomial(TOTAL, expit(mean)),
        "ordinal": lambda: np.searchsorted(CUTS, mean + rng.logistic(size=n)),
    }
    return draws[name]()
