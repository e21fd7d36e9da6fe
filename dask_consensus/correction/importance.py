"""The correction: what makes the answer the full model's, and proves it.

The combination of shards is a proposal; the target is known, ``log p(u) + sum_k log l_k(u)``.
Points are drawn once, every shard returns its log likelihood of each, the sums are weighted by
importance. Where a polynomial fits the log density at these points, it carries the answer between
them. Otherwise, or where the weights are poor, the weighted points make the next proposal, and
all points so far count, weighted by the mixture of all proposals (Veach and Guibas 1995; Cornuet,
Marin, Mira and Robert 2012). The loop is a state and three functions: `init`, `step`, `done`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..combination.ascent import Peak
from ..config import CorrectionOptions, VerdictOptions
from .emulator import fit as emulate
from .likelihood import Evaluated, LogPosterior
from .peaks import around_peaks, refitted
from .proposals import Array, MixtureProposal, Proposal, mixture_of, single, split
from .tails import Probes, missed_by, probe, reach, tail_log_ratio
from .weights import Estimate, Weighed, shrunk_moments, tempered_weights, weigh

_POINTS_A_DIMENSION = 10  # of the first iteration, at least
_DRAWS_A_DIMENSION = 20  # that the estimate should be worth, at least
_TEMPERED_DRAWS_A_DIMENSION = 10.0  # that the next proposal is made from, at least
_MISSED = 0.1  # weight, in largest weights seen, that an emulator may miss in the tails
_SHAPED_UP_TO = 8  # dimensions in which a mixture can follow a shape that one t does not have
USABLE_DRAWS_A_DIMENSION = 5.0  # fewer do not even describe the posterior
_USABLE_K_HAT = 1.0  # above it not even the mean of the weights exists
_FIRST_WIDER = 0.5  # how much wider the first proposal's covariance is than the combination's
_LATER_WIDER = 0.15  # and the later ones' than that of the weighted points
_PATIENCE = 5  # iterations after which what the verdict asks is enough
_WIDER_IN_MANY = 1.5  # over sqrt(d), at most: of exp(-d x^2 / 2) points all the others are lost


class Correction(NamedTuple):
    """Expectations under the full posterior, and the points they rest on.

    Attributes
    ----------
    points : (G, d) array
        Where the posterior was evaluated, in unconstrained space.
    weights : (G,) array
        Pareto-smoothed importance weights, adding up to 1.
    iteration : (G,) int array
        The iteration each point was drawn in.
    k_hat : float
        Shape of the weights' tail (Vehtari et al. 2024); below 0.7 they may be used.
    estimate : Estimate
        By the weights alone, or by an emulator and what it misses at the points.
    emulator_error : float
        Sd, over the posterior, of the emulated log density's error; NaN without an emulator.
    integration_error, integration_sd_error : (d,) arrays
        Change of the mean, in posterior sds, and of the log sd, with the next number of nodes or
        by another rule.
    nodes : int
        Nodes an axis (of a grid) or in all; 0 without local effects.
    modes : int
        Modes of a group's effects, around each of which nodes are placed.
    log_evidence, log_evidence_error : float
        Log of the marginal likelihood, and its Monte Carlo error.
    modes_not_found : float
        Share of the groups whose mode was not found, averaged over the weighted points.
    coupling : float
        Largest deviation of a shard's Hessian from block-diagonal.
    tail_log_ratio : (d,) array
        Log of how much larger a weight would be far out along each coordinate than any seen.
    landmark_log_ratio : float
        The same of the landmarks; minus infinity without any.
    discrepancy : float
        Sd of the log weights of the first iteration: how unlike the posterior the combination is.
    seconds, compile_seconds : float
        Wall time, and what of it the slowest shards spent compiling.
    """

    points: Array
    weights: Array
    iteration: npt.NDArray[np.int64]
    k_hat: float
    estimate: Estimate
    emulator_error: float
    integration_error: Array
    integration_sd_error: Array
    nodes: int
    modes: int
    log_evidence: float
    log_evidence_error: float
    modes_not_found: float
    coupling: float
    tail_log_ratio: Array
    landmark_log_ratio: float
    discrepancy: float
    seconds: float
    compile_seconds: float


class CorrectionSettings(NamedTuple):
    """What all iterations share.

    Attributes
    ----------
    mean : (d,) array
    covariance : (d, d) array
        Of the combination, the first proposal.
    peaks : tuple of Peak
        Other modes of the posterior, with that of the combination; empty where there is one.
    landmarks : sequence of (d,) arrays
        Places that may have a comparable density, and must not be missed.
    seed : int
    options : CorrectionOptions
    limits : VerdictOptions
        What the verdict will ask of the estimate.
    """

    mean: Array
    covariance: Array
    peaks: tuple[Peak, ...]
    landmarks: Sequence[Array]
    seed: int
    options: CorrectionOptions
    limits: VerdictOptions


class Assessment(NamedTuple):
    """What all points so far say.

    Attributes
    ----------
    weighed : Weighed
    estimate : Estimate
    emulator_error : float
        NaN where no emulator is trusted.
    probes : Probes or None
        The tails, where they were looked at.
    tempered : (G,) array
        Weights to the power at which enough of them count to make a proposal from.
    mean : (d,) array
    covariance : (d, d) array
        Of the points so weighted.
    """

    weighed: Weighed
    estimate: Estimate
    emulator_error: float
    probes: Probes | None
    tempered: Array
    mean: Array
    covariance: Array


class CorrectionState(NamedTuple):
    """All that one iteration hands to the next.

    Attributes
    ----------
    mixture : MixtureProposal
        What the points were drawn from.
    points : (G, d) array
    log_density : (G,) array
        Of the posterior there, up to one constant.
    modes_not_found : (G,) array
    last : Evaluated or None
        The newest points.
    assessment : Assessment or None
        None before the first iteration.
    long_tailed : bool
        Whether the first look at the tails found one longer than a Gaussian's.
    coupling, compile_seconds : float
    """

    mixture: MixtureProposal
    points: Array
    log_density: Array
    modes_not_found: Array
    last: Evaluated | None
    assessment: Assessment | None
    long_tailed: bool
    coupling: float
    compile_seconds: float

    @property
    def iterations(self) -> int:
        """Iterations done."""
        return len(self.mixture.counts)


def correct(settings: CorrectionSettings, log_posterior: LogPosterior) -> Correction:
    """Weight points of a proposal by the full posterior, and adapt it until they are enough.

    Parameters
    ----------
    settings : CorrectionSettings
    log_posterior : LogPosterior
        Its number of nodes is chosen here.

    Raises
    ------
    ValueError
        If the posterior is not finite at any point.
    """
    began = time.perf_counter()
    log_posterior, state = init(settings, log_posterior)
    while not done(settings, state):
        state = step(settings, log_posterior, state)
    return _finished(settings, log_posterior, state, began)


def init(
    settings: CorrectionSettings, log_posterior: LogPosterior
) -> tuple[LogPosterior, CorrectionState]:
    """Choose the number of nodes on some points of the first proposal."""
    d = len(settings.mean)
    points = _first_proposal(settings).draw(_n_points(settings, 0), (settings.seed, 0))
    shape = settings.peaks[0].covariance if settings.peaks else settings.covariance
    axes = _axes(shape)
    log_posterior, compile_seconds = log_posterior.with_enough_nodes(points, axes)
    nothing = np.empty(0)
    return log_posterior, CorrectionState(
        mixture=MixtureProposal(),
        points=np.empty((0, d)),
        log_density=nothing,
        modes_not_found=nothing,
        last=None,
        assessment=None,
        long_tailed=False,
        coupling=0.0,
        compile_seconds=compile_seconds,
    )


def step(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> CorrectionState:
    """Draw points of the next proposal, evaluate them, and assess all points so far."""
    index = state.iterations
    proposal = _next_proposal(settings, log_posterior, state)
    points = proposal.draw(_n_points(settings, index), (settings.seed, index))
    evaluated = log_posterior(points, f"correction, iteration {index + 1}")
    state = state._replace(
        mixture=state.mixture.and_from(proposal, len(points)),
        points=np.concatenate([state.points, evaluated.points]),
        log_density=np.concatenate([state.log_density, evaluated.log_density]),
        modes_not_found=np.concatenate([state.modes_not_found, evaluated.modes_not_found]),
        last=evaluated,
        coupling=max(state.coupling, evaluated.coupling),
        compile_seconds=state.compile_seconds + evaluated.compile_seconds,
    )
    assessment = _assess(settings, log_posterior, state)
    if index == 0:
        # A long tail, once found, is worth an iteration that follows it.
        assessment = _probed(log_posterior, assessment)
        assert assessment.probes is not None
        state = state._replace(long_tailed=bool(np.max(reach(assessment.probes)) > 1))
    return state._replace(assessment=assessment)


def done(settings: CorrectionSettings, state: CorrectionState) -> bool:
    """Stop when the estimate is precise, its weights are well-behaved, and tails were followed.

    Where it does not come to that soon, stop at what the verdict asks, if it may be had at all
    within the iterations that are allowed.
    """
    if state.assessment is None:
        return False
    options, iterations = settings.options, state.iterations
    if iterations >= options.iterations:
        return True
    d = len(settings.mean)
    _, estimate, emulator_error, *_ = state.assessment
    k_hat = state.assessment.weighed.k_hat
    adapted = iterations > 1 + state.long_tailed or np.isfinite(emulator_error)
    wanted = max(options.ess, _DRAWS_A_DIMENSION * d)
    if adapted and k_hat < options.k_hat and _precise(estimate, wanted, options.sd_error):
        return True
    if iterations < _PATIENCE:
        return False
    limits = settings.limits
    least = max(limits.ess, USABLE_DRAWS_A_DIMENSION * d)
    enough = k_hat <= limits.k_hat and _precise(estimate, least, limits.sd_error)
    # Were all iterations as good as those so far: errors fall as one over the root of points.
    more = options.iterations / iterations
    within_reach = k_hat < _USABLE_K_HAT and _precise(
        estimate, least / more, limits.sd_error * np.sqrt(more)
    )
    return enough or not within_reach


def _precise(estimate: Estimate, ess: float, sd_error: float) -> bool:
    return bool(estimate.ess >= ess and estimate.sd_error.max() <= sd_error)


def usable(correction: Correction) -> bool:
    """Tell whether the weighted points describe the posterior at all, if not precisely."""
    estimate = correction.estimate
    return correction.k_hat < _USABLE_K_HAT and estimate.ess > USABLE_DRAWS_A_DIMENSION * len(
        estimate.mean
    )


def nearest(corrections: Sequence[Correction]) -> int:
    """Choose among corrections of several combinations: the number of the best.

    One that is usable comes first; where none is, the combination whose own points have the most
    even weights, since the posterior is most like it.
    """
    return min(
        range(len(corrections)),
        key=lambda i: (not usable(corrections[i]), corrections[i].discrepancy),
    )


# Proposals


def _n_points(settings: CorrectionSettings, index: int) -> int:
    options, d = settings.options, len(settings.mean)
    return options.later_points if index else max(options.first_points, _POINTS_A_DIMENSION * d)


def _first_proposal(settings: CorrectionSettings) -> Proposal | MixtureProposal:
    if settings.peaks:
        return around_peaks(settings.peaks, _wider_by(len(settings.mean), _FIRST_WIDER))
    return single(settings.mean, _wider(settings.covariance, _FIRST_WIDER))


def _wider(covariance: Array, share: float) -> Array:
    return covariance * _wider_by(len(covariance), share)


def _wider_by(d: int, share: float) -> float:
    """Widen a proposal, by less in many dimensions, where every bit of width costs weights."""
    return 1 + min(share, _WIDER_IN_MANY / np.sqrt(d))


def _next_proposal(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> Proposal | MixtureProposal:
    """Make a proposal of what the points so far say."""
    assessment = state.assessment
    if assessment is None:
        return _first_proposal(settings)
    d, before = len(settings.mean), state.iterations - 1
    mean, covariance = assessment.mean, assessment.covariance
    if settings.peaks and (before == 0 or d > _SHAPED_UP_TO):
        moved = refitted(settings.peaks, state.points, assessment.tempered)
        return around_peaks(moved, _wider_by(d, _LATER_WIDER))
    if before == 0 or d > _SHAPED_UP_TO:
        probes = _probed(log_posterior, assessment).probes
        assert probes is not None
        return split(mean, _wider(covariance, _LATER_WIDER), *reach(probes))
    # One t was not enough: follow the points' own shape, and its tails twice.
    rng = np.random.default_rng([settings.seed, before])
    flatter = tempered_weights(assessment.weighed.raw / 2, _TEMPERED_DRAWS_A_DIMENSION * d)
    weights = (assessment.tempered + flatter) / 2
    return mixture_of(state.points, weights, mean, covariance, rng)


# Assessment


def _assess(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> Assessment:
    """Weight all points, and see whether an emulator does better."""
    points, log_density, mixture = state.points, state.log_density, state.mixture
    weighed = weigh(log_density, points, mixture)
    estimate, emulator_error, probes = weighed.estimate(points), np.nan, None
    emulator = emulate(points, log_density, weighed.weights, settings.mean, settings.covariance)
    if emulator is not None and emulator.error < settings.options.emulator_error:
        seed = (settings.seed, state.iterations - 1, 1)
        emulated = emulator.estimate(points, log_density, mixture, seed)
        if np.isfinite(emulated.ess):
            probes = probe(log_posterior, emulated.mean, emulated.covariance)
        # What holds at the points has to hold in the tails as well.
        if probes and missed_by(emulator, probes, mixture, weighed.raw) < _MISSED:
            estimate, emulator_error = emulated, emulator.error
    d = len(settings.mean)
    tempered = tempered_weights(weighed.raw, _TEMPERED_DRAWS_A_DIMENSION * d)
    moments = shrunk_moments(points, tempered, settings.mean, settings.covariance)
    return Assessment(weighed, estimate, emulator_error, probes, tempered, *moments)


def _probed(log_posterior: LogPosterior, assessment: Assessment) -> Assessment:
    """Look at the tails, unless that was done."""
    if assessment.probes is not None:
        return assessment
    probes = probe(log_posterior, assessment.mean, assessment.covariance)
    return assessment._replace(probes=probes)


def _finished(
    settings: CorrectionSettings,
    log_posterior: LogPosterior,
    state: CorrectionState,
    began: float,
) -> Correction:
    """Look at the tails and at the integrals once more, around the final answer."""
    assert state.assessment is not None
    assert state.last is not None
    weighed, estimate, emulator_error, probes, *_ = state.assessment
    mean, covariance = estimate.mean, estimate.covariance
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        # Weights without a moment say nothing of where to look.
        mean, covariance = settings.mean, settings.covariance
    center, shape = mean, covariance
    if settings.peaks:
        # Between modes there may be no posterior to speak of: look around the highest.
        peaks = refitted(settings.peaks, state.points, weighed.weights)
        center, shape, _ = max(peaks, key=lambda peak: peak.height)
    around = log_posterior._replace(center=center)
    integration_error, integration_sd_error = around.integration_error(_axes(shape))
    if probes is None or not np.isfinite(emulator_error):
        probes = probe(log_posterior, mean, covariance)
    missed = -np.inf
    if len(settings.landmarks):
        marks = log_posterior(np.array(settings.landmarks), "probing landmarks")
        above = marks.log_density - state.mixture.log_density(marks.points)
        missed = float(above.max() - weighed.raw.max())
    counts = state.mixture.counts
    return Correction(
        points=state.points,
        weights=weighed.weights,
        iteration=np.repeat(np.arange(len(counts)), np.array(counts, int)),
        k_hat=weighed.k_hat,
        estimate=estimate,
        emulator_error=emulator_error,
        integration_error=integration_error,
        integration_sd_error=integration_sd_error,
        nodes=log_posterior.rule.n_nodes,
        modes=log_posterior.rule.n_modes,
        log_evidence=estimate.log_total + state.last.at_center,
        log_evidence_error=estimate.log_total_error,
        modes_not_found=float(weighed.weights @ state.modes_not_found),
        coupling=state.coupling,
        tail_log_ratio=tail_log_ratio(probes, state.mixture, weighed.raw),
        landmark_log_ratio=missed,
        discrepancy=_discrepancy(state),
        seconds=time.perf_counter() - began,
        compile_seconds=state.compile_seconds,
    )


def _axes(covariance: Array) -> Array:
    """Columns of a covariance, each over its sd: along one, its coordinate by one sd."""
    return covariance / np.sqrt(np.diag(covariance))


def _discrepancy(state: CorrectionState) -> float:
    """Sd of the log weights of the first iteration; infinite where a point has no density."""
    first = slice(state.mixture.counts[0])
    weights = state.log_density[first] - state.mixture.proposals[0].log_density(state.points[first])
    return float(weights.std()) if np.isfinite(weights).all() else np.inf
