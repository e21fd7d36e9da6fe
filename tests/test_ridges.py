"""Curved ridges: told from peaks, followed both ways to their ends, and answered right."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.combination.ascent import Peak
from dask_consensus.combination.ridges import bends, close_to, follow, widest
from dask_consensus.shard.quadrature import Rule
from dask_consensus.shard.score import Expansion

from . import from_pandas
from .test_marginal import data_of, read

WIDTH, PRIOR = 0.02, 1.5


def expand(f, slope, curve):
    """Expansions of ``-(f(u) / width)^2 / 2 - |u|^2 / 2 prior^2`` in two and more dimensions."""

    def at(u, axes):
        value = f(u) / WIDTH
        gradient = slope(u) / WIDTH
        hessian = np.outer(gradient, gradient) + value * curve(u) / WIDTH
        return Expansion(
            float(-(value**2) / 2 - u @ u / (2 * PRIOR**2)),
            -value * gradient - u / PRIOR**2,
            hessian + np.eye(len(u)) / PRIOR**2,
            np.zeros(len(u)),
        )

    return at


CIRCLE = expand(lambda u: u @ u - 4, lambda u: 2 * u, lambda u: 2 * np.eye(len(u)))
PARABOLA = expand(
    lambda u: u[0] + u[1] ** 2 - 2,
    lambda u: np.array([1.0, 2 * u[1]]),
    lambda u: np.diag([0.0, 2.0]),
)
LINE = expand(lambda u: u[0] + u[1], lambda u: np.ones(2), lambda u: np.zeros((2, 2)))  # a Gaussian


def peak_at(expand, u, along):
    """A peak as narrow across as the density, and a step long along it."""
    u, along = np.array(u), np.array(along)
    there = expand(u, np.eye(len(u)))
    unit = along / np.linalg.norm(along)
    across = np.eye(len(u)) - np.outer(unit, unit)
    precision = across @ there.precision @ across + np.outer(unit, unit) / (along @ along)
    return Peak(u, np.linalg.inv(precision), there.value)


def test_a_circle_is_closed():
    start = peak_at(CIRCLE, [0.0, 2.0], [0.3, 0.0])
    ridge = follow(CIRCLE, start, np.array([0.3, 0.0]), np.ones(2))
    radius = np.array([np.linalg.norm(place.u) for place in ridge.places])
    np.testing.assert_allclose(radius, 2.0, atol=WIDTH)
    angles = np.sort([np.arctan2(*place.u) for place in ridge.places])
    # No gap that the places, as wide as their steps, do not reach across.
    assert np.diff([*angles, angles[0] + 2 * np.pi]).max() < 0.6
    assert not ridge.beyond


def test_a_parabola_is_followed_to_both_ends():
    start = peak_at(PARABOLA, [1.0, 1.0], [-0.2, 0.1])
    ridge = follow(PARABOLA, start, np.array([-0.2, 0.1]), np.ones(2))
    points = np.array([place.u for place in ridge.places])
    np.testing.assert_allclose(points[:, 0], 2 - points[:, 1] ** 2, atol=3 * WIDTH)
    low = -1 / PRIOR**2 - 13.5
    for side in (points[points[:, 1] > 0], points[points[:, 1] < 0]):
        assert (-(side**2).sum(axis=1) / (2 * PRIOR**2)).min() < low
    assert not ridge.beyond


def test_what_is_straight_is_no_ridge():
    """Its tails are then probed as those of any peak, by points that do not follow them."""
    start = Peak(np.zeros(2), np.linalg.inv(LINE(np.zeros(2), np.eye(2)).precision), 0.0)
    assert follow(LINE, start, widest(start), np.ones(2)) == ([], [])

    def quartic(u, axes):
        value = float(-(u[0] ** 4))
        return Expansion(value, -4 * u**3, np.array([[12 * u[0] ** 2]]), np.zeros(1))

    alone = Peak(np.zeros(1), np.eye(1), 0.0)
    assert follow(quartic, alone, np.ones(1), np.ones(1)) == ([], [])


def test_a_ridge_without_an_end_says_where_it_was_left():
    """A wave that no prior ends."""
    wave = expand(
        lambda u: u[0] - np.sin(u[1]),
        lambda u: np.array([1.0, -np.cos(u[1])]),
        lambda u: np.diag([0.0, np.sin(u[1])]),
    )

    def endless(u, axes):
        there = wave(u, axes)
        return there._replace(
            value=there.value + u @ u / (2 * PRIOR**2),
            gradient=there.gradient + u / PRIOR**2,
            precision=there.precision - np.eye(2) / PRIOR**2,
        )

    start = peak_at(endless, [0.0, 0.0], [0.2, 0.2])
    ridge = follow(endless, start, np.array([0.2, 0.2]), np.ones(2))
    furthest = max(abs(place.u[1]) for place in ridge.places)
    assert max(abs(place.u[1]) for place in ridge.beyond) > furthest


def test_a_peak_on_a_ridge_is_known_again():
    start = peak_at(CIRCLE, [0.0, 2.0], [0.3, 0.0])
    places = follow(CIRCLE, start, np.array([0.3, 0.0]), np.ones(2)).places
    other = peak_at(CIRCLE, [2.0, 0.0], [0.0, 0.3])
    aside = peak_at(CIRCLE, [2.5, 0.0], [0.0, 0.3])
    assert any(close_to(other, place) for place in places)
    assert not any(close_to(aside, place) for place in places)


# Fits


def bent(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(1.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b**2, 1.0), obs=y)


def straight(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(1.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "along", "expected"), [(bent, [-2.5, 1.0], 1), (straight, [-1.0, 1.0], 0)]
)
def test_a_ridge_is_told_from_a_peak(model, along, expected):
    """By a fall of the log density along the tangent that no Gaussian has, on one shard."""
    y = np.random.default_rng(0).normal(2.0, 1.0, 400)
    y += 2.0 - y.mean()
    read_model = read(model, {"y": y})
    tangent = np.array(along) / np.linalg.norm(along)
    across = np.array([tangent[1], -tangent[0]])
    sds = (0.53, 0.02) if expected else (np.sqrt(0.8), 0.036)
    covariance = sds[0] ** 2 * np.outer(tangent, tangent) + sds[1] ** 2 * np.outer(across, across)
    mode = [0.4375, 1.25] if expected else [0.8, 1.2]
    data, peak = data_of({"y": y}), Peak(np.array(mode), covariance, 0.0)
    found = bends(data, read_model, peak, 1, Rule(0))
    assert len(found) == expected
    for line in found:
        assert abs(line @ tangent) > 0.99 * np.linalg.norm(line)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [400, 4_000])
def test_a_parabola_is_answered_right(rows):
    """Of which Newton's method sees a piece; against a grid."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"g": np.repeat(np.arange(rows // 10), 10), "y": rng.normal(2, 1, rows)})
    tree = from_pandas(table).consensus.fit(bent, by="g", n_shards=4, progress=False)
    a, b = np.meshgrid(np.linspace(-16, 4, 3001), np.linspace(-5, 5, 3001), indexing="ij")
    log = -rows * (a + b**2 - table["y"].mean()) ** 2 / 2 - a**2 / 8 - (b - 1) ** 2 / 2
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    for name, values in {"a": a, "b": b}.items():
        mean = (weights * values).sum()
        sd = np.sqrt((weights * (values - mean) ** 2).sum())
        draws = tree["posterior"][name]
        assert abs(float(draws.mean()) - mean) < 0.1 * sd
        assert 0.92 < float(draws.std()) / sd < 1.08


@pytest.mark.slow
def test_a_piece_of_a_ridge_is_not_called_the_posterior():
    """Without a correction nothing reaches the rest of it."""
    y = np.random.default_rng(0).normal(2.0, 1.0, 400)
    table = pd.DataFrame({"g": np.repeat(np.arange(40), 10), "y": y})
    options = {"by": "g", "n_shards": 4, "method": "laplace", "correct": False}
    with pytest.warns(UserWarning, match="a curved ridge, of which a piece is described"):
        tree = from_pandas(table).consensus.fit(bent, progress=False, **options)
    assert not tree.attrs["verdict_good"]
