"""What lies beyond the points: tails that no weight can show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..shard.target import log_prior
from ..shard_data import Data
from .emulator import Emulator
from .likelihood import LogPosterior, _likelihoods, _working
from .proposals import Array, Proposal
from .weights import log_mixture

_PROBED = (2.0, 4.0, 8.0, 16.0, 32.0)  # distances, in sds, at which tails are probed
_WORTH_SPLITTING = 1.3  # a reach below this is noise, or what a t distribution covers anyway
_LONGEST = 6.0


# Tails
class _Probes(NamedTuple):
    """Log density of the posterior far out along each coordinate's regression line."""

    points: Array  # (steps, d, d): step, coordinate that leads, point
    height: Array  # (steps, d)


_STEPS = np.concatenate([-np.array(_PROBED), [0.0], _PROBED])


def _probe(
    asked: LogPosterior, example: Data, mean: Array, covariance: Array, center: Array, nodes: int
) -> _Probes:
    """Ask for the posterior where no point may ever be drawn.

    A tail that no point has seen has no weight, and no diagnostic of the weights misses it.
    """
    d = len(mean)
    directions = covariance / np.sqrt(np.diag(covariance))  # column j: coordinate j by one sd
    points = mean + (_STEPS[:, None, None] * directions.T).reshape(-1, d)
    points = _working(asked.model, points)
    answer = _likelihoods(asked, points, center, nodes, "probing tails")
    height = log_prior(asked.model, example, points) + answer.log_likelihood
    height = np.where(np.isfinite(height), height, -np.inf)
    return _Probes(points.reshape(-1, d, d), height.reshape(-1, d))


def _reach(probes: _Probes) -> tuple[Array, Array]:
    """How much further than a Gaussian the posterior reaches, below and above, by coordinate.

    A scale s covers a point at distance x whose log density is lower by y if s is at least
    x / sqrt(2 y) (Geweke 1989, eq. 4.1).
    """
    below = np.maximum(probes.height.max(axis=0) - probes.height, 1e-3)
    scale = np.abs(_STEPS)[:, None] / np.sqrt(2 * below)
    scale = np.where(scale < _WORTH_SPLITTING, 1.0, np.minimum(scale, _LONGEST))
    return scale[: len(_PROBED)].max(axis=0), scale[-len(_PROBED) :].max(axis=0)


def _missed(
    probes: _Probes,
    emulator: Emulator,
    proposals: Sequence[Proposal],
    counts: Sequence[int],
    seen: Array,
) -> float:
    """Largest weight at a probe that an emulator misses or makes up, in largest weights seen."""
    flat = probes.points.reshape(-1, probes.points.shape[-1])
    scale = log_mixture(flat, proposals, counts) + seen.max()
    true, emulated = (
        np.exp(np.minimum(height - scale, 700.0))
        for height in (probes.height.ravel(), emulator.log_density(flat))
    )
    return float(np.abs(true - emulated).max())


def _beyond(
    probes: _Probes, proposals: Sequence[Proposal], counts: Sequence[int], seen: Array
) -> Array:
    """Log of how much larger weights would be at a probe than any weight seen, by coordinate."""
    flat = probes.points.reshape(-1, probes.points.shape[-1])
    weights = probes.height.ravel() - log_mixture(flat, proposals, counts)
    return weights.reshape(probes.height.shape).max(axis=0) - seen.max()
