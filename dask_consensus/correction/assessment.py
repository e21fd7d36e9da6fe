"""What all points so far say of the posterior, what is looked at in the end, and which is best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..combination.gaussian import square_root
from .emulator import fit as emulate
from .far import MOST_DIMENSIONS, Beyond, beyond, level_sides
from .likelihood import Evaluated, LogPosterior
from .peaks import refitted
from .proposals import Array, MixtureProposal
from .state import (
    Assessment,
    Correction,
    CorrectionSettings,
    CorrectionState,
    Known,
    SamplingError,
)
from .tails import Probes, missed_by, probe, tail_log_ratio, unreached, without_variance
from .weights import Estimate, shrunk_moments, tempered_weights, weigh

TEMPERED_DRAWS_A_DIMENSION = 10.0  # that the next proposal is made from, at least
USABLE_DRAWS_A_DIMENSION = 5.0  # fewer do not even describe the posterior
USABLE_K_HAT = 1.0  # above it not even the mean of the weights exists
_RIM = 2.0  # sds from the mean, along each of the axes at once,
_RIM_POINTS = 4  # at which all shards are asked,
_RIM_ERROR, _RIM_ERRORS = 0.2, 5.0  # and a sample may differ by, and times its error
_TAIL_ERRORS = 2.0  # times its error that a tail may be higher than a sample says
MISSED = 0.1  # weight, in largest weights seen, that an emulator may miss in the tails


def usable(correction: Correction) -> bool:
    """Tell whether the weighted points describe the posterior at all, if not precisely."""
    estimate = correction.estimate
    return correction.k_hat < USABLE_K_HAT and estimate.ess > USABLE_DRAWS_A_DIMENSION * len(
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


def assess(
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
        if probes and missed_by(emulator, probes, mixture, weighed.raw) < MISSED:
            estimate, emulator_error = emulated, emulator.error
    d = len(settings.mean)
    tempered = tempered_weights(weighed.raw, TEMPERED_DRAWS_A_DIMENSION * d)
    moments = shrunk_moments(points, tempered, settings.mean, settings.covariance)
    return Assessment(weighed, estimate, emulator_error, probes, tempered, *moments)


def probed(log_posterior: LogPosterior, assessment: Assessment) -> Assessment:
    """Look at the tails, unless that was done."""
    if assessment.probes is not None:
        return assessment
    probes = probe(log_posterior, assessment.mean, assessment.covariance)
    return assessment._replace(probes=probes)


def sampling_error(log_posterior: LogPosterior, state: CorrectionState) -> SamplingError:
    """Say how far means and sds may be from those that all shards would give."""
    sample, assessment = log_posterior.sample, state.assessment
    d = state.points.shape[1]
    if sample is None or assessment is None or state.last is None:
        return SamplingError.none(d)
    moved = moved_by(state.remainders, state.points, assessment.weighed.weights)
    there = state.last.remainders_at_center[:, None]
    error = sample.error(np.concatenate([moved[:, :-1], moved[:, -1:] + there], axis=1))
    return SamplingError(error[:d], error[d:-1], float(error[-1]))


def contradicted(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> bool:
    """Ask all shards of a few points at the rim of the posterior, where a sample has answered.

    An edge beyond which one shard knows the density to be zero, or whatever else no expansion
    shows and no sample holds, shows there.
    """
    sample, assessment = log_posterior.sample, state.assessment
    assert sample is not None
    assert assessment is not None
    rng = np.random.default_rng([settings.seed, 6])
    signs = rng.choice([-1.0, 1.0], size=(_RIM_POINTS // 2, len(settings.mean)))
    mean, covariance = assessment.estimate.mean, assessment.estimate.covariance
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return True
    root = square_root(covariance)
    points = mean + _RIM * np.concatenate([np.zeros_like(signs[:1]), signs, -signs]) @ root.T
    # A coarser rule shows an edge or a stranger as well, and every row pays for nodes.
    quick = log_posterior.with_fewer_nodes()
    told = quick(points, "the rim, by a sample")
    true = quick.everywhere(points, "the rim, by all shards")
    lower = told.log_density - told.log_density[0]
    with np.errstate(invalid="ignore"):
        apart = np.abs(lower - (true - true[0]))
    same = np.isneginf(lower) & np.isneginf(true)
    error = sample.error(told.remainders - told.remainders[:, :1])
    return not bool((same | (apart <= _RIM_ERROR + _RIM_ERRORS * error)).all())


def moved_by(changes: Array, points: Array, weights: Array) -> Array:
    """Say by how much changes of the log density move means, log sds and the log of the integral.

    To first order a change h moves a mean by E[t h], in sds, and a log sd by E[(t^2 - 1) h] / 2, t
    being the coordinate in sds.

    Parameters
    ----------
    changes : (m, G) array
    points : (G, d) array
    weights : (G,) array
        Adding up to 1.

    Returns
    -------
    (m, 2 d + 1) array
    """
    away = points - weights @ points
    t = away / np.sqrt(weights @ away**2)
    moving = np.concatenate([t, (t**2 - 1) / 2], axis=1)
    centred = moving - weights @ moving
    every = np.concatenate([centred, np.ones((len(points), 1))], axis=1)
    return np.asarray(changes @ (weights[:, None] * every), np.float64)


class Outskirts(NamedTuple):
    """What lies far out, around the answer: on straight lines, and off them if that was looked at.

    Where a polynomial holds, what its points see has no arms off them; a place apart from all of
    these is for the searches to find. Weights that cannot be used say so themselves.
    """

    probes: Probes
    far: Beyond | None
    unreached: MixtureProposal

    @property
    def missed(self) -> MixtureProposal | None:
        """What to draw from, to see mass that no point has; None where none is known."""
        off = () if self.far is None else self.far.places.proposals
        places = (*self.unreached.proposals, *off)
        return MixtureProposal(places, (1,) * len(places)) if places else None


def outskirts_of(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> Outskirts:
    """Look far out around the answer."""
    assert state.assessment is not None
    weighed, estimate, emulator_error, probes, *_ = state.assessment
    moments = _moments(settings, estimate)
    if probes is None or not np.isfinite(emulator_error):
        probes = probe(log_posterior, *moments)
    along, telling = MixtureProposal(), weighed.k_hat < USABLE_K_HAT
    if telling and len(settings.mean) <= MOST_DIMENSIONS:
        limit = settings.limits.tail_log_ratio
        along = unreached(probes, state.mixture, weighed.raw, *moments, limit)
    if np.isfinite(emulator_error) or not telling:
        return Outskirts(probes, None, along)
    everyone = log_posterior._replace(sample=None)

    def ask(points: Array) -> Array:
        return everyone(points, "far out").log_density

    return Outskirts(probes, beyond(ask, estimate, level_sides(probes.height)), along)


def _moments(settings: CorrectionSettings, estimate: Estimate) -> tuple[Array, Array]:
    """Say where to look: weights without a moment say nothing of that."""
    mean, covariance = estimate.mean, estimate.covariance
    if np.isfinite(mean).all() and np.isfinite(covariance).all():
        return mean, covariance
    return settings.mean, settings.covariance


def finished(
    settings: CorrectionSettings,
    log_posterior: LogPosterior,
    state: CorrectionState,
    outskirts: Outskirts,
    began: float,
) -> Correction:
    """Look at the tails and at the integrals once more, around the final answer."""
    assert state.assessment is not None
    assert state.last is not None
    weighed, estimate, emulator_error, *_ = state.assessment
    center, shape = mean, covariance = _moments(settings, estimate)
    if settings.peaks:
        # Between modes there may be no posterior to speak of: look around the highest.
        peaks = refitted(settings.peaks, state.points, weighed.weights)
        center, shape, _ = max(peaks, key=lambda peak: peak.height)
    around = log_posterior._replace(center=center)
    integration_error, integration_sd_error = around.integration_error(axes_of(shape))
    probes, far, _ = outskirts
    everyone, tails = log_posterior._replace(sample=None), probes
    if log_posterior.sample is not None:
        # Far out expansions say little, and all that a sample tells is multiplied.
        highest = probes._replace(height=probes.height + _TAIL_ERRORS * probes.error)
        at_most = tail_log_ratio(highest, state.mixture, weighed.raw)
        if not (at_most <= settings.limits.tail_log_ratio).all():
            tails = probe(everyone, mean, covariance)
    ratio = tail_log_ratio(tails, state.mixture, weighed.raw)
    endless = without_variance(tails, state.points, weighed.weights, mean, covariance)
    missed, marks = -np.inf, None
    if len(settings.landmarks):
        marks = everyone(np.array(settings.landmarks), "probing landmarks")
        above = marks.log_density - state.mixture.log_density(marks.points)
        missed = float(above.max() - weighed.raw.max())
    counts, sample, sampling = state.mixture.counts, log_posterior.sample, state.sampling_error
    return Correction(
        points=state.points,
        weights=weighed.weights,
        iteration=np.repeat(np.arange(len(counts)), np.array(counts, int)),
        k_hat=weighed.k_hat,
        estimate=estimate,
        emulator_error=emulator_error,
        integration_error=integration_error,
        integration_sd_error=integration_sd_error,
        sampling_error=sampling.mean,
        sampling_sd_error=sampling.sd,
        sampled_shards=0 if sample is None else len(sample.chosen),
        nodes=log_posterior.rule.n_nodes,
        modes=log_posterior.rule.n_modes,
        log_evidence=estimate.log_total + state.last.at_center,
        log_evidence_error=float(np.hypot(estimate.log_total_error, sampling.log_evidence)),
        modes_not_found=float(weighed.weights @ state.modes_not_found),
        coupling=state.coupling,
        tail_log_ratio=np.where(endless, np.inf, ratio),
        landmark_log_ratio=missed,
        discrepancy=_discrepancy(state),
        seconds=time.perf_counter() - began,
        compile_seconds=state.compile_seconds,
        known=_known(state, tails, marks),
        beyond=far,
    )


def _known(state: CorrectionState, tails: Probes, landmarks: Evaluated | None) -> Known:
    """Write down what was found of the posterior, with its constant."""
    assert state.last is not None
    constant, leader = state.last.at_center, tails.leader
    marks, height, drawn = [tails.flat], [tails.height.ravel()], tails.log_proposal(state.mixture)
    if landmarks is not None:
        marks, height = [*marks, landmarks.points], [*height, landmarks.log_density]
        leader = np.append(leader, np.full(len(landmarks.points), -1))
        drawn = np.append(drawn, state.mixture.log_density(landmarks.points))
    return Known(
        log_density=state.log_density + constant,
        log_proposal=state.mixture.log_density(state.points),
        marks=np.concatenate(marks),
        mark_log_density=np.concatenate(height) + constant,
        mark_log_proposal=drawn,
        mark_leader=leader,
    )


def axes_of(covariance: Array) -> Array:
    """Columns of a covariance, each over its sd: along one, its coordinate by one sd."""
    return covariance / np.sqrt(np.diag(covariance))


def _discrepancy(state: CorrectionState) -> float:
    """Sd of the log weights of the first iteration; infinite where a point has no density."""
    first = slice(state.mixture.counts[0])
    weights = state.log_density[first] - state.mixture.proposals[0].log_density(state.points[first])
    return float(weights.std()) if np.isfinite(weights).all() else np.inf
