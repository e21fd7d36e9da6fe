"""The correction: what makes the answer the full model's, and proves it.

The combination of shards is a proposal; the target is known, ``log p(u) + sum_k log l_k(u)``.
Points are drawn once, every shard returns its log likelihood of each, the sums are weighted by
importance. Where a polynomial fits the log density at these points, it carries the answer between
them. Otherwise, or where the weights are poor, the weighted points make the next proposal, and
all points so far count, weighted by the mixture of all proposals (Veach and Guibas 1995; Cornuet,
Marin, Mira and Robert 2012).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from . import gaussian
from .cluster import mapreduce
from .cluster.arrays import Shard, pad
from .cluster.mapreduce import Travel
from .cluster.sizes import Sharded, Size
from .emulator import Emulator
from .emulator import fit as emulate
from .proposals import Proposal, mixture_of, resample, single, split
from .shard.compiling import seconds_compiling
from .shard.marginal import log_likelihoods
from .shard.model import ShardModel
from .shard.quadrature import ladder
from .shard.target import Data, log_prior
from .shard.units import effects_per_unit
from .weights import (
    Estimate,
    Weighed,
    log_mixture,
    shrunk_moments,
    tempered_weights,
    weigh,
    weighted_moments,
)

Array = npt.NDArray[np.float64]

_POINTS_A_DIMENSION = 10  # of the first turn, at least
_PROBE = 32  # points on which node counts are compared
_INTEGRATION = 0.02  # sd, over points, of the log weight's integration error that is accepted
_MISSED = 0.1  # weight, in largest weights seen, that an emulator may miss in the tails
_SHAPED_UP_TO = 8  # dimensions in which a mixture can follow a shape that one t does not have
_USABLE_K_HAT = 1.0  # above it not even the mean of the weights exists
_PROBED = (2.0, 4.0, 8.0, 16.0, 32.0)  # distances, in sds, at which tails are probed
_WORTH_SPLITTING = 1.3  # a reach below this is noise, or what a t distribution covers anyway
_LONGEST = 6.0
_TAIL = 0.005  # share of the points on either side that equal-weight draws are not matched in
_FIRST_WIDER = 1.5  # covariance of the first proposal, in units of the combination's
_LATER_WIDER = 1.15  # of the later ones, in units of the weighted points'


class Correction(NamedTuple):
    """Expectations under the full posterior, and the points they rest on.

    Attributes
    ----------
    points : (G, d) array
        Where the posterior was evaluated, in unconstrained space.
    weights : (G,) array
        Pareto-smoothed importance weights, adding up to 1.
    turn : (G,) int array
        The proposal each point was drawn from.
    k_hat : float
        Shape of the weights' tail (Vehtari et al. 2024); below 0.7 they may be used.
    estimate : Estimate
        By the weights alone, or by an emulator and what it misses at the points.
    emulator_error : float
        Sd, over the posterior, of the emulated log density's error; NaN without an emulator.
    integration_error : (d,) array
        Change of the mean with the next number of nodes, in posterior sds.
    nodes : int
        Nodes an axis (of a grid) or in all; 0 without local effects.
    log_evidence, log_evidence_error : float
        Log of the marginal likelihood, and its Monte Carlo error.
    lost : float
        Share of units whose mode was not found, on average over the weighted points.
    coupling : float
        Largest deviation of a shard's Hessian from block-diagonal.
    beyond : (d,) array
        Log of how much larger a weight would be far out along each coordinate than any seen.
    seconds, compile_seconds : float
        Wall time, and what of it the slowest shards spent compiling.
    """

    points: Array
    weights: Array
    turn: npt.NDArray[np.int64]
    k_hat: float
    estimate: Estimate
    emulator_error: float
    integration_error: Array
    nodes: int
    log_evidence: float
    log_evidence_error: float
    lost: float
    coupling: float
    beyond: Array
    seconds: float
    compile_seconds: float


class Asked(NamedTuple):
    """Whose likelihood is asked for, and how to reach it."""

    model: ShardModel
    shards: Sharded
    travel: Travel


def correct(
    asked: Asked,
    example: Data,
    mean: Array,
    covariance: Array,
    *,
    seed: int,
    first: int,
    later: int,
    turns: int,
    enough: float,
    k_hat: float,
    sd_error: float,
    tolerance: float,
) -> Correction:
    """Weight points of a proposal by the full posterior, and adapt it until they are enough.

    Parameters
    ----------
    asked : Asked
    example : Data
        Any data the model accepts, for its prior.
    mean : (d,) array
    covariance : (d, d) array
        Of the combination, the first proposal.
    seed : int
    first, later : int
        Points of the first turn (more in many dimensions) and of each later one; rounded up to
        powers of two.
    turns : int
        Most turns.
    enough, k_hat, sd_error : float
        Stop when means are known as well as from so many independent draws, the weights' tail has
        at most this shape, and every sd at most this relative Monte Carlo error.
    tolerance : float
        Largest error of an emulator, as the sd of its log density's error.
    """
    began = time.perf_counter()
    model = asked.model
    d = model.dim
    center = _working(model, mean)
    proposal = single(mean, _FIRST_WIDER * covariance)
    proposals: list[Proposal] = []
    batches: list[Array] = []
    likelihoods: list[Array] = []
    lost: list[Array] = []
    nodes = 0
    coupling = compile_seconds = 0.0
    long_tailed = False
    for turn in range(turns):
        number = max(first, _POINTS_A_DIMENSION * d) if turn == 0 else later
        points = _working(model, proposal.draw(number, (seed, turn)))
        if turn == 0:
            nodes, compile_seconds = _enough_nodes(asked, points[:_PROBE], center)
        answer = _likelihoods(asked, points, center, nodes, f"correction, turn {turn + 1}")
        proposals.append(proposal)
        batches.append(points)
        likelihoods.append(answer.log_likelihood)
        lost.append(answer.lost)
        coupling = max(coupling, answer.coupling)
        compile_seconds += answer.compile_seconds

        everything, counts = np.concatenate(batches), [len(batch) for batch in batches]
        log_target = log_prior(model, example, everything) + np.concatenate(likelihoods)
        log_target = np.where(np.isfinite(log_target), log_target, -np.inf)
        weighed = weigh(log_target, everything, proposals, counts)
        estimate, emulator_error, probes = weighed.estimate(everything), np.nan, None
        emulator = emulate(everything, log_target, weighed.weights, mean, covariance)
        if emulator is not None and emulator.error < tolerance:
            emulated = emulator.estimate(everything, log_target, proposals, counts, (seed, turn, 1))
            if np.isfinite(emulated.ess):
                probes = _probe(asked, example, emulated.mean, emulated.covariance, center, nodes)
            # What holds at the points has to hold in the tails as well.
            if probes and _missed(probes, emulator, proposals, counts, weighed.raw) < _MISSED:
                estimate, emulator_error = emulated, emulator.error
        tempered = tempered_weights(weighed.raw, 10.0 * d)
        moments = shrunk_moments(everything, tempered, covariance)
        if turn == 0:
            probes = probes or _probe(asked, example, *moments, center, nodes)
            long_tailed = bool(np.max(_reach(probes)) > 1)
        # A long tail, once found, is worth a turn that follows it.
        adapted = turn > int(long_tailed) or np.isfinite(emulator_error)
        precise = estimate.ess >= enough and estimate.sd_error.max() < sd_error
        if (adapted and precise and weighed.k_hat < k_hat) or turn == turns - 1:
            break
        if turn == 0 or d > _SHAPED_UP_TO:
            probes = probes or _probe(asked, example, *moments, center, nodes)
            proposal = split(moments[0], _LATER_WIDER * moments[1], *_reach(probes))
        else:
            # One t was not enough: follow the points' own shape, and its tails twice.
            rng = np.random.default_rng([seed, turn])
            flatter = tempered_weights(weighed.raw / 2, 10.0 * d)
            proposal = mixture_of(everything, (tempered + flatter) / 2, *moments, rng)

    sd = np.sqrt(np.diag(estimate.covariance))
    wrong = _integration_error(asked, batches[-1], likelihoods[-1], center, nodes, weighed, sd)
    if probes is None or not np.isfinite(emulator_error):
        probes = _probe(asked, example, estimate.mean, estimate.covariance, center, nodes)
    return Correction(
        points=everything,
        weights=weighed.weights,
        turn=np.repeat(np.arange(len(batches)), counts),
        k_hat=weighed.k_hat,
        estimate=estimate,
        emulator_error=emulator_error,
        integration_error=wrong,
        nodes=nodes,
        log_evidence=estimate.log_total + answer.at_center,
        log_evidence_error=estimate.log_total_error,
        lost=float(weighed.weights @ np.concatenate(lost)),
        coupling=coupling,
        beyond=_beyond(probes, proposals, counts, weighed.raw),
        seconds=time.perf_counter() - began,
        compile_seconds=compile_seconds,
    )


def usable(correction: Correction) -> bool:
    """Tell whether the weighted points describe the posterior at all, if not precisely."""
    estimate = correction.estimate
    return correction.k_hat < _USABLE_K_HAT and estimate.ess > 5.0 * len(estimate.mean)


def equal_weight_draws(
    estimate: Estimate, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Draws of equal weight, ``shape + (d,)``, that agree with an estimate.

    Systematic resampling along the first principal axis (Kitagawa 1996) leaves a remainder that
    shrinks with the number of draws; an affine map takes it out of mean and covariance, but for
    the outermost hundredth of each coordinate: a far point that happened to be chosen, or not,
    must not stretch all the others.
    """
    points, weights = estimate.population
    number = shape[0] * shape[1]
    axis = scipy.linalg.eigh(estimate.covariance)[1][:, -1]
    draws = points[rng.permutation(resample(points, weights, axis, number, rng))]
    low, high = (_quantile(points, weights, q) for q in (_TAIL, 1 - _TAIL))
    everywhere, measure = estimate.measure
    wanted = weighted_moments(np.clip(everywhere, low, high), measure)
    # Fewer distinct points than dimensions have no covariance to match.
    with contextlib.suppress(np.linalg.LinAlgError):
        own = gaussian.moments(np.clip(draws, low, high))
        draws = gaussian.matched(draws, *wanted, of=own)
    return draws.reshape(*shape, -1)


def _quantile(points: Array, weights: Array, q: float) -> Array:
    """Weighted quantile of each coordinate."""
    order = np.argsort(points, axis=0)
    below = np.cumsum(weights[order], axis=0) <= q * weights.sum()
    position = np.minimum(below.sum(axis=0), len(points) - 1)
    return np.take_along_axis(points, np.take_along_axis(order, position[None], 0), 0)[0]


def _working(model: ShardModel, points: Array) -> Array:
    """Round points to the precision in which shards evaluate them, so that all mean the same."""
    return points if model.x64 else points.astype(np.float32).astype(np.float64)


# Tails


class _Probes(NamedTuple):
    """Log density of the posterior far out along each coordinate's regression line."""

    points: Array  # (steps, d, d): step, coordinate that leads, point
    height: Array  # (steps, d)


_STEPS = np.concatenate([-np.array(_PROBED), [0.0], _PROBED])


def _probe(
    asked: Asked, example: Data, mean: Array, covariance: Array, center: Array, nodes: int
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


# Asking the shards


class _Answer(NamedTuple):
    """Sums over shards, and the worst of what they reported."""

    log_likelihood: Array
    at_center: float
    lost: Array
    coupling: float
    compile_seconds: float


def _likelihoods(asked: Asked, points: Array, center: Array, nodes: int, title: str) -> _Answer:
    """Sum the log likelihoods of all shards at points, as differences to the center."""
    question = mapreduce.broadcast((asked.model, points, center, nodes))
    mapped = mapreduce.map_reduce(
        mapreduce.each(_evaluate),
        asked.shards.parts,
        [(padded,) for padded in asked.shards.padded],
        [question],
        _add,
        travel=asked.travel,
        title=title,
    )
    values, at_center, lost, units = mapped.total
    coupling, compiling = (max(part) for part in zip(*mapped.reports, strict=True))
    return _Answer(values, at_center, lost / max(units, 1), coupling, compiling)


def _evaluate(
    shard: Shard, padded: Size, question: tuple[ShardModel, Array, Array, int]
) -> tuple[tuple[Array, float, Array, int], tuple[float, float], None]:
    """One shard's log likelihoods; runs on a worker."""
    model, points, center, nodes = question
    before = seconds_compiling()
    found = log_likelihoods(model, Data(*pad(shard, *padded)), points, center, max(nodes, 1))
    values = (found.log_likelihood, found.at_center, found.lost, found.units)
    return values, (found.coupling, seconds_compiling() - before), None


def _add(parts: list[Any]) -> tuple[Array, float, Array, int]:
    values, at_center, lost, units = zip(*parts, strict=True)
    return np.sum(values, axis=0), float(sum(at_center)), np.sum(lost, axis=0), sum(units)


def _enough_nodes(asked: Asked, points: Array, center: Array) -> tuple[int, float]:
    """Take as few nodes as agree with the next number of them on a few points.

    Returns
    -------
    nodes : int
    compile_seconds : float
        This is where the code of all later turns is compiled.
    """
    q = effects_per_unit(asked.model)
    if not q:
        return 0, 0.0
    steps = ladder(q)
    fewest = _likelihoods(asked, points, center, steps[0], "nodes")
    values = fewest.log_likelihood
    for fewer, more in itertools.pairwise(steps):
        better = _likelihoods(asked, points, center, more, "nodes").log_likelihood
        if np.std(better - values) < _INTEGRATION:
            return fewer, fewest.compile_seconds
        values = better
    return steps[-1], fewest.compile_seconds


def _integration_error(
    asked: Asked,
    points: Array,
    values: Array,
    center: Array,
    nodes: int,
    weighed: Weighed,
    sd: Array,
) -> Array:
    """First-order change of the mean, in sds, if points had the next number of nodes."""
    q = effects_per_unit(asked.model)
    if not q:
        return np.zeros_like(sd)
    steps = ladder(q)
    position = min(steps.index(nodes), len(steps) - 2)
    other = steps[position + 1] if steps[position] == nodes else steps[position]
    weights = weighed.weights[-len(points) :]
    chosen = np.argsort(-weights, kind="stable")[:_PROBE]
    compared = _likelihoods(asked, points[chosen], center, other, "nodes").log_likelihood
    change = compared - values[chosen]
    share = weights[chosen] / weights[chosen].sum()
    away = (points[chosen] - share @ points[chosen]) / sd
    return np.abs((share * (change - share @ change)) @ away)
