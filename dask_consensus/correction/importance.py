"""The correction: what makes the answer the full model's, and proves it.

The combination of shards is a proposal; the target is known, ``log p(u) + sum_k log l_k(u)``.
Points are drawn once, every shard returns its log likelihood of each, the sums are weighted by
importance. Where a polynomial fits the log density at these points, it carries the answer between
them. Otherwise, or where the weights are poor, the weighted points make the next proposal, and
all points so far count, weighted by the mixture of all proposals (Veach and Guibas 1995; Cornuet,
Marin, Mira and Robert 2012).
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..shard.target import log_prior
from ..shard_data import Data
from .emulator import fit as emulate
from .likelihood import (
    _PROBE,
    LogPosterior,
    _enough_nodes,
    _integration_error,
    _likelihoods,
    _working,
)
from .proposals import Array, Proposal, mixture_of, single, split
from .tails import _beyond, _missed, _probe, _reach
from .weights import Estimate, shrunk_moments, tempered_weights, weigh

_POINTS_A_DIMENSION = 10  # of the first turn, at least
_MISSED = 0.1  # weight, in largest weights seen, that an emulator may miss in the tails
_SHAPED_UP_TO = 8  # dimensions in which a mixture can follow a shape that one t does not have
_USABLE_K_HAT = 1.0  # above it not even the mean of the weights exists
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
    modes_not_found : float
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
    modes_not_found: float
    coupling: float
    beyond: Array
    seconds: float
    compile_seconds: float


def correct(
    asked: LogPosterior,
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
    asked : LogPosterior
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
    modes_not_found: list[Array] = []
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
        modes_not_found.append(answer.modes_not_found)
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
        modes_not_found=float(weighed.weights @ np.concatenate(modes_not_found)),
        coupling=coupling,
        beyond=_beyond(probes, proposals, counts, weighed.raw),
        seconds=time.perf_counter() - began,
        compile_seconds=compile_seconds,
    )


def usable(correction: Correction) -> bool:
    """Tell whether the weighted points describe the posterior at all, if not precisely."""
    estimate = correction.estimate
    return correction.k_hat < _USABLE_K_HAT and estimate.ess > 5.0 * len(estimate.mean)
