"""Statistics of a mixture of distributions: that of a row over draws of all that is unknown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.special
from jax import lax
from jax.scipy.special import gammaln

_SAMPLES = 16  # of a row at a draw, where nothing better is known of its distribution
_FAR = 10.0  # beyond samples, in their range, up to which a quantile is looked for
_STEPS, _CLOSE = 30, 1e-3  # towards a quantile of a mixture; in its sds
_GAUSS = np.polynomial.legendre.leggauss(16)
_NODES = tuple(((z + 1) / 2, w / 2) for z, w in zip(*_GAUSS, strict=True))
_NORMAL, _NIL = 30.0, 9.0  # degrees of freedom from which on nothing is left so many scales out
_MOST_COUNTS = 400  # values of a row up to which probabilities are added up

# What a distribution raises that lacks a method, needs another library for it, or values of its
# parameters that compiled code has not.
UNKNOWN = (
    NotImplementedError,
    AttributeError,
    ImportError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
)


class RowSite(NamedTuple):
    """An observed site with one entry, or several, a row."""

    name: str
    axis: int  # of the rows
    entry: tuple[int, ...]  # shape of what a row has
    categories: int  # of a distribution over categories, which has no mean; else 0
    discrete: bool
    needs: tuple[str, ...]  # arguments that its distribution depends on
    censored: bool = False  # whether of some rows only a limit is known


class Mixture(NamedTuple):
    """Distributions of the rows at all draws."""

    fns: Any  # a distribution whose parameters have an axis of draws in front
    keys: jax.Array  # (S,)
    site: RowSite

    def each(self, method: Callable[[Any], jax.Array]) -> jax.Array:
        """Apply a function to the distribution of each draw."""
        return jax.vmap(method)(self.fns)

    def samples(self) -> jax.Array:
        """Draw some values of each row at each draw, ``(S, samples, R, ...)``."""
        return jax.vmap(lambda fn, key: fn.sample(key, (_SAMPLES,)))(self.fns, self.keys)

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each row at each draw, ``(S, R, ...)``."""
        try:
            return self.each(lambda fn: fn.mean), self.each(lambda fn: fn.variance)
        except UNKNOWN:
            samples = self.samples()
            return samples.mean(axis=1), samples.var(axis=1, ddof=1)

    def probability(self, value: jax.Array) -> jax.Array:
        """Probability of a value of a discrete site."""

        def at_draw(fn: Any) -> jax.Array:
            inside = fn.support(value)
            return jnp.where(inside, jnp.exp(fn.log_prob(value)), 0.0)

        return jnp.mean(self.each(at_draw), axis=0)

    def distribution_at(self, value: jax.Array, middle: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Distribution function and density of a continuous site at one value a row.

        Beyond its support the first is 0 below some `middle` value, and 1 above.
        """
        student = isinstance(self.fns, dist.StudentT)
        few = jnp.any(jnp.asarray(self.fns.df if student else 1) < 1)

        def at_draw(fn: Any) -> tuple[jax.Array, jax.Array]:
            inside = fn.support(value)
            beyond = (value > middle).astype(value.dtype)
            below = student_cdf(fn, value, few) if student else fn.cdf(value)
            below = jnp.where(inside, below, beyond)
            return below, jnp.where(inside, jnp.exp(fn.log_prob(value)), 0.0)

        below, density = jax.vmap(at_draw)(self.fns)
        return jnp.mean(below, axis=0), jnp.mean(density, axis=0)


def student_cdf(fn: dist.StudentT, value: jax.Array, few: jax.Array) -> jax.Array:
    """Distribution function of Student's t, by quadrature, which an incomplete beta is slow at.

    With x = sqrt(df) tan(a) it is an integral of cos(a)**(df - 1), which Gauss and Legendre's nodes
    take from 0. Of less than one degree, where there are `few` anywhere, that has a pole at the far
    end: the tail is taken from there, with a in the power of 1 / df, which leaves none.
    """
    df, x = jnp.asarray(fn.df), (value - fn.loc) / fn.scale
    away = jnp.where(df > _NORMAL, jnp.minimum(jnp.abs(x), _NIL), jnp.abs(x))

    def from_the_middle(_: None) -> jax.Array:
        angle = jnp.arctan2(away, jnp.sqrt(df))
        cosines = [(w, jnp.log1p(-(jnp.sin(angle * z) ** 2)) / 2) for z, w in _NODES]
        parts = [w * jnp.exp((df - 1) * cosine) for w, cosine in cosines]
        return 0.5 + constant * angle * sum(parts)

    def from_the_end(_: None) -> jax.Array:
        rest = jnp.arctan2(jnp.sqrt(df), away)
        parts = [w * jnp.sinc(rest * z ** (1 / df) / jnp.pi) ** (df - 1) for z, w in _NODES]
        return jnp.where(df < 1, 1 - constant * rest**df / df * sum(parts), from_the_middle(None))

    # The difference of two large numbers, where there are many degrees, by its expansion.
    ratio = jnp.exp(gammaln((df + 1) / 2) - gammaln(df / 2))
    many = jnp.sqrt(df / 2) * (1 - 1 / (4 * df) + 1 / (32 * df**2))
    constant = jnp.where(df > _NORMAL, many, ratio) / jnp.sqrt(jnp.pi)
    inside = lax.cond(few, from_the_end, from_the_middle, None)
    return jnp.where(x < 0, 1 - inside, inside)


def statistics_of(mixture: Mixture, statistics: tuple[str, ...], expected: bool) -> list[jax.Array]:
    """Find statistics of what is observed, or `expected`; each in the shape of the site."""
    told: dict[str, jax.Array] = {}
    if {"mean", "sd"} & {*statistics} or _quantiles(statistics):
        means, variances = mixture.moments()
        told["mean"] = jnp.mean(means, axis=0)
        variance = jnp.var(means, axis=0)
        if not expected:
            variance += jnp.mean(variances, axis=0)
        told["sd"] = jnp.sqrt(variance)
        shares = [share for _, share in _quantiles(statistics)]
        if shares:
            if expected:
                found = _quantiles_of_draws(means, shares)
            elif mixture.site.discrete:
                found = _discrete_quantiles(mixture, told["mean"], told["sd"], shares)
            elif isinstance(mixture.fns, dist.Normal):
                found = _normal_quantiles(mixture, means, variances, shares)
            else:
                found = _continuous_quantiles(mixture, told["mean"], told["sd"], shares)
            told |= {
                name: value for (name, _), value in zip(_quantiles(statistics), found, strict=True)
            }
    for name in statistics:
        if re.fullmatch(r"p\d+", name):
            told[name] = mixture.probability(jnp.asarray(int(name[1:])))
    return [told[name] for name in statistics]


def _quantiles(statistics: tuple[str, ...]) -> list[tuple[str, float]]:
    return [(name, share_of(name)) for name in statistics if name.startswith("q")]


def share_of(quantile: str) -> float:
    """Return the share of a quantile's name: 0.05 of ``q05``, 0.975 of ``q97.5``."""
    return float(quantile[1:]) / 100


def _quantiles_of_draws(values: jax.Array, shares: list[float]) -> list[jax.Array]:
    """Find quantiles over draws ``(S, ...)``: by their moments where they are nearly normal."""

    def by_order(values: jax.Array) -> list[jax.Array]:
        return _by_order(values, shares)

    return _expanded(_powers(values), shares, (1.1, -0.6, 2.5), by_order, values)


def _normal_quantiles(
    mixture: Mixture, means: jax.Array, variances: jax.Array, shares: list[float]
) -> list[jax.Array]:
    """Find quantiles of mixtures of normals: by their moments where these are nearly normal.

    Draws are few, and their mixture is lumpy where they differ by more than each is wide; its
    moments are not.
    """
    mean = jnp.mean(means, axis=0)
    away, spread = means - mean, jnp.mean(variances, axis=0)
    second, third, fourth = (jnp.mean(away**power, axis=0) for power in (2, 3, 4))
    third += 3 * jnp.mean(away * variances, axis=0)
    fourth += jnp.mean(6 * away**2 * variances + 3 * variances**2, axis=0)
    sd = jnp.sqrt(second + spread)

    def solved(_: None) -> list[jax.Array]:
        return _continuous_quantiles(mixture, mean, sd, shares)

    return _expanded((mean, sd, third, fourth), shares, (0.5, -0.6, 0.6), solved, None)


def _powers(values: jax.Array) -> tuple[jax.Array, ...]:
    """Mean, sd, third and fourth central moment over draws ``(S, ...)``."""
    mean = jnp.mean(values, axis=0)
    away = values - mean
    third, fourth = (jnp.mean(away**power, axis=0) for power in (3, 4))
    return mean, jnp.std(values, axis=0), third, fourth


def _expanded(
    moments: tuple[jax.Array, ...],
    shares: list[float],
    limits: tuple[float, float, float],
    otherwise: Callable[[Any], list[jax.Array]],
    given: Any,
) -> list[jax.Array]:
    """Expand quantiles about those of a normal (Cornish and Fisher 1938), or find them otherwise.

    `limits` are the largest skewness, the least and the largest excess with which that will do.
    """
    mean, sd, third, fourth = moments
    scale = jnp.where(sd > 0, sd, 1.0)
    skew = third / scale**3
    excess = jnp.where(sd > 0, fourth / scale**4 - 3, 0.0)
    near = (jnp.abs(skew) < limits[0]) & (excess > limits[1]) & (excess < limits[2])

    def not_needed(_: Any) -> list[jax.Array]:
        return [jnp.zeros_like(mean)] * len(shares)

    exact = lax.cond(jnp.all(near), not_needed, otherwise, given)
    found = []
    for share, exactly in zip(shares, exact, strict=True):
        z = float(scipy.special.ndtri(share))
        expanded = z + skew * (z**2 - 1) / 6 + excess * (z**3 - 3 * z) / 24
        expanded -= skew**2 * (2 * z**3 - 5 * z) / 36
        found.append(jnp.where(near, mean + sd * expanded, exactly))
    return found


def _by_order(values: jax.Array, shares: list[float]) -> list[jax.Array]:
    """Interpolate between ordered values, each in the middle of its share (Hazen's rule)."""
    ordered = jnp.sort(values, axis=0)
    found = []
    for share in shares:
        at = min(max(share * len(values) - 0.5, 0.0), len(values) - 1.0)
        below = min(int(at), len(values) - 2)
        found.append(ordered[below] + (at - below) * (ordered[below + 1] - ordered[below]))
    return found


def _of_samples(mixture: Mixture, shares: list[float]) -> list[jax.Array]:
    samples = mixture.samples()
    flat = samples.reshape(-1, *samples.shape[2:])
    if mixture.site.discrete:
        ordered = jnp.sort(flat, axis=0)
        return [ordered[min(int(share * len(flat)), len(flat) - 1)] for share in shares]
    return _by_order(flat, shares)


def _continuous_quantiles(
    mixture: Mixture, mean: jax.Array, sd: jax.Array, shares: list[float]
) -> list[jax.Array]:
    """Solve for quantiles by Newton's method, kept between those of single draws."""
    try:
        mixture.each(lambda fn: fn.cdf(mean))
    except UNKNOWN:
        return _of_samples(mixture, shares)
    try:
        limits = [_range(mixture.each(lambda fn, p=share: fn.icdf(p))) for share in shares]  # type: ignore[misc]
    except UNKNOWN:
        samples = mixture.samples()
        least, middle, most = _range(samples.reshape(-1, *samples.shape[2:]))
        wide = _FAR * (most - least)
        limits = [(least - wide, middle, most + wide)] * len(shares)

    def solve(share: float, limit: tuple[jax.Array, ...]) -> jax.Array:
        low, middle, high = limit
        guess = mean + float(scipy.special.ndtri(share)) * sd
        guess = jnp.where(jnp.isfinite(guess), guess, middle)
        start = jnp.clip(guess, low, high)

        def go_on(state: Any) -> jax.Array:
            step, *_, moved = state
            return (step < _STEPS) & jnp.any(moved > _CLOSE)

        def improve(state: Any) -> Any:
            step, low, high, at, _ = state
            below, density = mixture.distribution_at(at, middle)
            low = jnp.where(below < share, at, low)
            high = jnp.where(below < share, high, at)
            newton = at - (below - share) / density
            inside = (newton >= low) & (newton <= high)
            there = jnp.where(inside, newton, (low + high) / 2)
            moved = jnp.abs(there - at) / (jnp.where(jnp.isfinite(sd), sd, high - low) + 1e-30)
            return step + 1, low, high, there, moved

        everything = jnp.full(mean.shape, jnp.inf)
        found: jax.Array = lax.while_loop(go_on, improve, (0, low, high, start, everything))[3]
        return found

    return [solve(share, limit) for share, limit in zip(shares, limits, strict=True)]


def _range(values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.min(values, axis=0), jnp.median(values, axis=0), jnp.max(values, axis=0)


def _discrete_quantiles(
    mixture: Mixture, mean: jax.Array, sd: jax.Array, shares: list[float]
) -> list[jax.Array]:
    """Add up probabilities from the least value on, unless there are too many of them."""
    support = mixture.fns.support
    base = getattr(support, "base_constraint", support)
    least = jnp.floor(jnp.min(jnp.asarray(getattr(base, "lower_bound", 0)))).astype(int)
    if mixture.site.categories:
        most = jnp.asarray(mixture.site.categories - 1)
    else:
        most = jnp.max(jnp.where(jnp.isfinite(mean + sd), jnp.ceil(mean + 8 * sd), 0)).astype(int)
        most = jnp.maximum(most, least + 1)

    def added(_: None) -> tuple[jax.Array, ...]:
        def go_on(state: tuple[jax.Array, ...]) -> jax.Array:
            value, below, *_ = state
            return (value <= most) & jnp.any(below < max(shares))

        def add(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            value, below, *found = state
            now = below + mixture.probability(value)
            found = [
                jnp.where((below < share) & (now >= share), value.astype(now.dtype), at)
                for share, at in zip(shares, found, strict=True)
            ]
            return value + 1, now, *found

        nowhere = jnp.broadcast_to(most.astype(mean.dtype), mean.shape)
        start = (least, jnp.zeros_like(mean), *[nowhere] * len(shares))
        return lax.while_loop(go_on, add, start)[2:]

    def sampled(_: None) -> tuple[jax.Array, ...]:
        return tuple(value.astype(mean.dtype) for value in _of_samples(mixture, shares))

    try:
        jax.eval_shape(sampled, None)
    except UNKNOWN:
        return list(added(None))
    few = most - least <= _MOST_COUNTS
    return list(lax.cond(few, added, sampled, None))
