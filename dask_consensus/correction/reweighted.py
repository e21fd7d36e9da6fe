"""What the points of an earlier fit say once rows have arrived.

An earlier fit knows the log posterior of its rows at its points, and from which density these were
drawn. The log likelihood of new rows at the same points is one pass over them; the sum is the log
posterior of all rows, exactly, and the weights of the points follow from it (sequential importance
sampling without a move: Chopin 2002, Biometrika 89, section 2). The emulator is fitted anew and
carries the answer between the points. No old row is read.

What the earlier fit did not know exactly it still does not: the errors of its integrals, and of a
sample of its shards, are carried along. Where the posterior is about to leave the points, new ones
are drawn, at which an emulator stands in for the old rows. Its error, told by points that it has
not seen, moves no mean by more sds than it has itself, by Cauchy and Schwarz, and is carried along
too. Where the posterior has left the points, their weights say so, and the verdict does.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import CorrectionOptions
from ..shard.quadrature import Rule
from .assessment import (
    MISSED,
    TEMPERED_DRAWS_A_DIMENSION,
    USABLE_DRAWS_A_DIMENSION,
    USABLE_K_HAT,
    axes_of,
)
from .emulator import Emulator
from .emulator import fit as emulate
from .likelihood import Evaluated, LogPosterior
from .proposals import Array, Proposal, single
from .state import Correction, Known
from .tails import drawn_there, log_volume
from .weights import (
    Estimate,
    Weighed,
    shrunk_moments,
    tempered_weights,
    weigh_drawn,
    weighted_moments,
)

_FIRST_WIDER = 1.5  # how much wider a proposal's covariance is than that of the Gaussian
_SPARE = 4  # points for each that counts, at most
_WIDER = 1.15  # times the covariance of the weighted points, around which the emulator is averaged


class Before(NamedTuple):
    """What a fit before says of its correction.

    Attributes
    ----------
    points : (G, d) array
    iteration : (G,) int array
    known : Known
        The log posterior there.
    sd : (d,) array
        Of the posterior then, which errors are in units of.
    integration_error, integration_sd_error, sampling_error, sampling_sd_error : (d,) arrays
    log_evidence_error, modes_not_found, coupling : float
    sampled_shards, nodes, modes : int
        As in `Correction`.
    """

    points: Array
    iteration: npt.NDArray[np.int64]
    known: Known
    sd: Array
    integration_error: Array
    integration_sd_error: Array
    sampling_error: Array
    sampling_sd_error: Array
    log_evidence_error: float
    modes_not_found: float
    coupling: float
    sampled_shards: int
    nodes: int
    modes: int


class NewRows(NamedTuple):
    """The log likelihood of what is added to a posterior, and of what is taken out of it.

    Attributes
    ----------
    added : LogPosterior
        Of new rows, and of the old ones of their groups; its prior is not used.
    removed : LogPosterior or None
        Of these old rows alone.
    share : float
        Rows added, over all there are then.
    """

    added: LogPosterior
    removed: LogPosterior | None
    share: float


def reweighted(
    before: Before,
    rows: NewRows,
    mean: Array,
    covariance: Array,
    options: CorrectionOptions,
    seed: int,
) -> Correction:
    """Weight the points of a fit by the posterior that further rows make of it.

    Parameters
    ----------
    before : Before
    rows : NewRows
        The number of nodes is chosen here.
    mean : (d,) array
    covariance : (d, d) array
        About those of the new posterior.
    options : CorrectionOptions
    seed : int

    Raises
    ------
    ValueError
        If the new posterior is not finite at any point.
    """
    began = time.perf_counter()
    axes = axes_of(covariance)
    # Few rows move little, whatever integrates their effects; many times few, they would not.
    added = rows.added._replace(center=mean, rule=Rule(before.nodes))
    added, compile_seconds = added.with_enough_nodes(before.points, axes, rows.share)
    rows = rows._replace(added=added)
    change, evaluated = _change(rows, np.concatenate([before.points, before.known.marks]))
    known = before.known._replace(
        log_density=before.known.log_density + change[: len(before.points)],
        mark_log_density=before.known.mark_log_density + change[len(before.points) :],
    )
    there = _weighed(before.points, before.iteration, known, mean, covariance, options, seed)
    if not _enough(there, options):
        renewed = _renewed(before, there, rows, mean, covariance, options, seed)
        if renewed is not None and (
            _enough(renewed, options) or renewed.weighed.k_hat < there.weighed.k_hat
        ):
            there = renewed
    points, known, weighed, estimate = there.points, there.known, there.weighed, there.estimate
    center, shape = estimate.mean, estimate.covariance
    if not (np.isfinite(center).all() and np.isfinite(shape).all()):
        center, shape = mean, covariance
    integration = added._replace(center=center).integration_error(axes_of(shape), rows.share)
    # Errors of the log density move a narrower posterior by less, and a wider one by more.
    wider = np.maximum(np.sqrt(np.diag(shape)) / before.sd, 1.0)
    above = _log_weights_of_marks(known, known.mark_log_density, shape) - weighed.raw.max()
    # Of the points where most is known: they stand for those that may have been drawn since.
    lost = float(np.mean(evaluated.modes_not_found[: len(before.points)]))
    return Correction(
        points=points,
        weights=weighed.weights,
        iteration=there.iteration,
        k_hat=weighed.k_hat,
        estimate=estimate,
        emulator_error=there.emulator_error,
        integration_error=before.integration_error * wider + integration[0],
        integration_sd_error=before.integration_sd_error * wider**2 + integration[1],
        sampling_error=np.hypot(before.sampling_error * wider, there.stand_in),
        sampling_sd_error=np.hypot(
            before.sampling_sd_error * wider**2, there.stand_in / np.sqrt(2)
        ),
        sampled_shards=before.sampled_shards,
        nodes=added.rule.n_nodes,
        modes=max(before.modes, added.rule.n_modes),
        log_evidence=estimate.log_total,
        log_evidence_error=float(
            np.hypot(np.hypot(estimate.log_total_error, before.log_evidence_error), there.stand_in)
        ),
        modes_not_found=before.modes_not_found * (1 - rows.share) + lost * rows.share,
        coupling=max(before.coupling, evaluated.coupling),
        tail_log_ratio=np.array(
            [above[known.mark_leader == j].max(initial=-np.inf) for j in range(len(mean))]
        ),
        landmark_log_ratio=float(above[known.mark_leader < 0].max(initial=-np.inf)),
        discrepancy=_spread(change[: len(before.points)]),
        seconds=time.perf_counter() - began,
        compile_seconds=compile_seconds + evaluated.compile_seconds,
        known=known,
    )


class _Weighed(NamedTuple):
    """Points, and what they say."""

    points: Array
    iteration: npt.NDArray[np.int64]
    known: Known
    weighed: Weighed
    estimate: Estimate
    emulator_error: float  # NaN without an emulator
    stand_in: float = 0.0  # error (sd) of log densities for which an emulator stood in


def _change(rows: NewRows, where: Array) -> tuple[Array, Evaluated]:
    """Log likelihood that comes to points ``(n, d)``; minus infinity where not finite."""
    evaluated = rows.added(where, "new rows, at points of the earlier fit")
    change = evaluated.log_likelihood + evaluated.at_center
    if rows.removed is not None:
        rule = rows.added.rule
        old = rows.removed._replace(center=rows.added.center, rule=rule)
        told = old(where, "old rows of their groups, likewise")
        change = change - (told.log_likelihood + told.at_center)
    return np.where(np.isfinite(change), change, -np.inf), evaluated


def _weighed(
    points: Array,
    iteration: npt.NDArray[np.int64],
    known: Known,
    mean: Array,
    covariance: Array,
    options: CorrectionOptions,
    seed: int,
) -> _Weighed:
    """Weight points, and see whether an emulator does better."""
    weighed = weigh_drawn(known.log_density, known.log_proposal)
    plain = _Weighed(points, iteration, known, weighed, weighed.estimate(points), np.nan)
    emulator = emulate(points, known.log_density, weighed.weights, mean, covariance)
    if emulator is None or not emulator.error < options.emulator_error:
        return plain
    tempered = tempered_weights(weighed.raw, TEMPERED_DRAWS_A_DIMENSION * len(mean))
    center, shape = shrunk_moments(points, tempered, mean, covariance)
    emulated = emulator.estimate_drawn(
        points, known.log_density, known.log_proposal, single(center, _WIDER * shape), (seed, 2)
    )
    if np.isfinite(emulated.ess) and _missed(emulator, known, weighed, covariance) < MISSED:
        return plain._replace(estimate=emulated, emulator_error=emulator.error)
    return plain


def _enough(there: _Weighed, options: CorrectionOptions) -> bool:
    """Tell whether points are as good as a correction's last ones must be, with some to spare.

    A quarter of them should still count: of fewer not much would be left to the next update.
    """
    estimate, weights = there.estimate, _normalised(there.weighed.raw)
    return bool(
        there.weighed.k_hat < options.k_hat
        and _SPARE / (weights @ weights) > len(weights)
        and estimate.ess >= options.ess
        and estimate.sd_error.max() <= options.sd_error
    )


def _normalised(raw: Array) -> Array:
    weights = np.exp(raw - raw.max())
    return weights / weights.sum()


def _renewed(
    before: Before,
    there: _Weighed,
    rows: NewRows,
    mean: Array,
    covariance: Array,
    options: CorrectionOptions,
    seed: int,
) -> _Weighed | None:
    """Draw new points, at which an emulator stands in for what was known of the old rows.

    None where the posterior is so far from the points that nothing tells how well that is done, or
    where it is not done well.
    """
    d, points, old = len(mean), before.points, before.known
    raw, k_hat = there.weighed.raw, there.weighed.k_hat
    weights = _normalised(raw)
    if not (k_hat < USABLE_K_HAT and 1 / (weights @ weights) > USABLE_DRAWS_A_DIMENSION * d):
        return None
    then = weigh_drawn(old.log_density, old.log_proposal).weights
    tempered = tempered_weights(raw, TEMPERED_DRAWS_A_DIMENSION * d)
    # Fitted where the new posterior is; what is left of it there, by points that it has not seen.
    emulator = emulate(points, old.log_density, tempered, *weighted_moments(points, then))
    if emulator is None:
        return None
    missed = np.where(np.isfinite(old.log_density), old.log_density - emulator.at_points, 0.0)
    error = max(emulator.error, float(np.sqrt(weights @ (missed - weights @ missed) ** 2)))
    if not np.hypot(error, before.sampling_error.max()) < options.emulator_error:
        return None
    proposal = single(mean, covariance * _FIRST_WIDER)
    n_points = max(options.first_points, 10 * d)
    drawn = rows.added.rounded(proposal.draw(n_points, (seed, 3)))
    change, _ = _change(rows, drawn)
    known = there.known._replace(
        log_density=emulator.log_density(drawn) + change,
        log_proposal=proposal.log_density(drawn),
        mark_log_proposal=_drawn_there(proposal, old),
    )
    iteration = np.full(len(drawn), before.iteration.max() + 1)
    renewed = _weighed(drawn, iteration, known, mean, covariance, options, seed)
    return renewed._replace(stand_in=error)


def _missed(emulator: Emulator, known: Known, weighed: Weighed, covariance: Array) -> float:
    """Largest weight far out that an emulator misses or makes up, in largest weights seen."""
    true, emulated = (
        np.exp(
            np.minimum(_log_weights_of_marks(known, height, covariance) - weighed.raw.max(), 700)
        )
        for height in (known.mark_log_density, emulator.log_density(known.marks))
    )
    return float(np.abs(true - emulated)[known.mark_leader >= 0].max(initial=0.0))


def _log_weights_of_marks(known: Known, height: Array, covariance: Array) -> Array:
    """Log of the weight that a point at each mark would stand for, as of :class:`.tails.Probes`."""
    volume = np.append(log_volume(covariance), 0.0)  # of the leader -1: none
    return np.asarray(height + volume[known.mark_leader] - known.mark_log_proposal, np.float64)


def _drawn_there(proposal: Proposal, known: Known) -> Array:
    """Log density of a proposal at marks, as of :class:`.tails.Probes` where one leads."""
    on_lines = drawn_there(proposal, known.marks, np.maximum(known.mark_leader, 0))
    return np.where(known.mark_leader < 0, proposal.log_density(known.marks), on_lines)


def _spread(change: Array) -> float:
    """Sd of what came to the points: how unlike the posteriors before and after are."""
    finite = change[np.isfinite(change)]
    return float(finite.std()) if finite.size else np.inf
