"""The correction: what makes the answer the full model's, and proves it.

The combination of shards is a proposal; the target is known, ``log p(u) + sum_k log l_k(u)``.
Points are drawn once, every shard returns its log likelihood of each, the sums are weighted by
importance. Where a polynomial fits the log density at these points, it carries the answer between
them. Otherwise, or where the weights are poor, the weighted points make the next proposal, and
all points so far count, weighted by the mixture of all proposals (Veach and Guibas 1995; Cornuet,
Marin, Mira and Robert 2012). The loop is a state and three functions: `init`, `step`, `done`.

Where shards are many, a sample of them answers for all (:mod:`.sample`), as long as they differ so
little that it makes no difference; otherwise the loop begins again with more of them.
"""

from __future__ import annotations

import time

import numpy as np

from ..cluster.client import say
from .assessment import (
    TEMPERED_DRAWS_A_DIMENSION,
    USABLE_DRAWS_A_DIMENSION,
    USABLE_K_HAT,
    Outskirts,
    assess,
    axes_of,
    contradicted,
    finished,
    outskirts_of,
    probed,
    sampling_error,
)
from .likelihood import LogPosterior
from .peaks import around_peaks, refitted
from .proposals import Array, MixtureProposal, Proposal, mixture_of, single, split
from .sample import Sample, first_sample, larger_sample
from .state import Correction, CorrectionSettings, CorrectionState, SamplingError
from .tails import reach
from .weights import Estimate, tempered_weights

_POINTS_A_DIMENSION = 10  # of the first iteration, at least
_FEWEST_POINTS = 64  # and of that of a sample of shards,
_POINTS_A_TERM = 4  # and so many for each term of a quadratic
_DRAWS_A_DIMENSION = 20  # that the estimate should be worth, at least
_SHAPED_UP_TO = 8  # dimensions in which a mixture can follow a shape that one t does not have
_FIRST_WIDER = 0.5  # how much wider the first proposal's covariance is than the combination's
_LATER_WIDER = 0.15  # and the later ones' than that of the weighted points
_PATIENCE = 5  # iterations after which what the verdict asks is enough
_TURNS = 5  # iterations at most that are drawn far out
_WIDER_IN_MANY = 1.5  # over sqrt(d), at most: of exp(-d x^2 / 2) points all the others are lost


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
    sample = None
    if settings.expansions is not None:
        sizes = log_posterior.shards.sizes
        sample = first_sample(settings.expansions, sizes, settings.options, settings.seed)
    while True:
        asked, state = _answered(settings, log_posterior._replace(sample=sample))
        better = _better_sample(settings, asked, state)
        if better is sample:
            state, outskirts = _reaching_far(settings, asked, state)
            return finished(settings, asked, state, outskirts, began)
        sample = better


def _answered(
    settings: CorrectionSettings, log_posterior: LogPosterior
) -> tuple[LogPosterior, CorrectionState]:
    """Go through the loop: to its end, or until a sample shows that it is too rough."""
    log_posterior, state = init(settings, log_posterior)
    while not (done(settings, state) or _too_rough(settings, state)):
        state = step(settings, log_posterior, state)
    return log_posterior, state


def _reaching_far(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> tuple[CorrectionState, Outskirts]:
    """Draw points where mass lies far out that none has seen, as long as there is some."""
    outskirts = outskirts_of(settings, log_posterior, state)
    most = min(settings.options.iterations, state.iterations + _TURNS)
    while outskirts.missed and state.iterations < most:
        state = step(settings, log_posterior, state, outskirts.missed)
        outskirts = outskirts_of(settings, log_posterior, state)
    return state, outskirts


def _better_sample(
    settings: CorrectionSettings, log_posterior: LogPosterior, state: CorrectionState
) -> Sample | None:
    """Give a sample that is to be asked in place of the one that was; the same if it will do."""
    sample = log_posterior.sample
    if sample is not None and _too_rough(settings, state):
        error, wanted = state.sampling_error.largest, settings.options.sampling_error
        return larger_sample(sample, error, wanted)
    if sample is not None and contradicted(settings, log_posterior, state):
        return None
    return sample


def _too_rough(settings: CorrectionSettings, state: CorrectionState) -> bool:
    """Tell whether a sample of shards leaves too much open."""
    return not state.sampling_error.largest <= settings.options.sampling_error


def init(
    settings: CorrectionSettings, log_posterior: LogPosterior
) -> tuple[LogPosterior, CorrectionState]:
    """Choose the number of nodes on some points of the first proposal."""
    d = len(settings.mean)
    n_points = _n_points(settings, log_posterior, 0)
    points = _first_proposal(settings).draw(n_points, (settings.seed, 0))
    shape = settings.peaks[0].covariance if settings.peaks else settings.covariance
    axes = axes_of(shape)
    log_posterior, compile_seconds = log_posterior.with_enough_nodes(points, axes)
    nothing, sample = np.empty(0), log_posterior.sample
    return log_posterior, CorrectionState(
        mixture=MixtureProposal(),
        points=np.empty((0, d)),
        log_density=nothing,
        modes_not_found=nothing,
        remainders=np.empty((0 if sample is None else len(sample.chosen), 0)),
        last=None,
        assessment=None,
        sampling_error=SamplingError.none(d),
        long_tailed=False,
        coupling=0.0,
        compile_seconds=compile_seconds,
    )


def step(
    settings: CorrectionSettings,
    log_posterior: LogPosterior,
    state: CorrectionState,
    missed: MixtureProposal | None = None,
) -> CorrectionState:
    """Draw points of the next proposal, evaluate them, and assess all points so far.

    Half of them are drawn where mass was `missed`, if there is any.
    """
    index = state.iterations
    proposal = _next_proposal(settings, log_posterior, state)
    if missed is not None:
        proposal = MixtureProposal((proposal, missed), (1, 1))
    points = proposal.draw(_n_points(settings, log_posterior, index), (settings.seed, index))
    evaluated = log_posterior(points, f"iteration {index + 1}")
    state = state._replace(
        mixture=state.mixture.and_from(proposal, len(points)),
        points=np.concatenate([state.points, evaluated.points]),
        log_density=np.concatenate([state.log_density, evaluated.log_density]),
        modes_not_found=np.concatenate([state.modes_not_found, evaluated.modes_not_found]),
        remainders=np.concatenate([state.remainders, evaluated.remainders], axis=1),
        last=evaluated,
        coupling=max(state.coupling, evaluated.coupling),
        compile_seconds=state.compile_seconds + evaluated.compile_seconds,
    )
    assessment = assess(settings, log_posterior, state)
    if index == 0:
        # A long tail, once found, is worth an iteration that follows it.
        assessment = probed(log_posterior, assessment)
        assert assessment.probes is not None
        state = state._replace(long_tailed=bool(np.max(reach(assessment.probes)) > 1))
    state = state._replace(assessment=assessment)
    error = sampling_error(log_posterior, state)
    say(
        f"means within {max(assessment.estimate.error.max(), error.mean.max()):.2g} sds, "
        f"k-hat {assessment.weighed.k_hat:.2f}, {assessment.estimate.ess:,.0f} effective draws"
    )
    return state._replace(sampling_error=error)


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
    within_reach = k_hat < USABLE_K_HAT and _precise(
        estimate, least / more, limits.sd_error * np.sqrt(more)
    )
    return enough or not within_reach


def _precise(estimate: Estimate, ess: float, sd_error: float) -> bool:
    return bool(estimate.ess >= ess and estimate.sd_error.max() <= sd_error)


def _n_points(settings: CorrectionSettings, log_posterior: LogPosterior, index: int) -> int:
    """Points of an iteration: fewer at first of many rows, whose posterior is nearly Gaussian."""
    options, d = settings.options, len(settings.mean)
    first = max(options.first_points, _POINTS_A_DIMENSION * max(d, len(settings.peaks)))
    if not log_posterior.few_points:
        return options.later_points if index else first
    quadratic = (d + 1) * (d + 2) // 2
    few = max(_FEWEST_POINTS, _POINTS_A_DIMENSION * d, _POINTS_A_TERM * quadratic)
    later = first if log_posterior.sample is None else options.later_points
    return (min(few, first), first, later)[min(index, 2)]


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
        probes = probed(log_posterior, assessment).probes
        assert probes is not None
        return split(mean, _wider(covariance, _LATER_WIDER), *reach(probes))
    # One t was not enough: follow the points' own shape, and its tails twice.
    rng = np.random.default_rng([settings.seed, before])
    flatter = tempered_weights(assessment.weighed.raw / 2, TEMPERED_DRAWS_A_DIMENSION * d)
    weights = (assessment.tempered + flatter) / 2
    return mixture_of(state.points, weights, mean, covariance, rng)
