"""What the loop of the correction hands on, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..combination.ascent import Peak
from ..combination.reports import Expansions
from ..config import CorrectionOptions, VerdictOptions
from .far import Beyond
from .likelihood import Evaluated
from .proposals import Array, MixtureProposal
from .tails import Probes
from .weights import Estimate, Weighed

if TYPE_CHECKING:
    from .levels import Levels


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
    expansions : Expansions or None
        What each shard said of a point near the mode; without it all are asked everything.
    """

    mean: Array
    covariance: Array
    peaks: tuple[Peak, ...]
    landmarks: Sequence[Array]
    seed: int
    options: CorrectionOptions
    limits: VerdictOptions
    expansions: Expansions | None = None


class SamplingError(NamedTuple):
    """How far an answer may be from that of all shards, some of them having been asked.

    Attributes
    ----------
    mean : (d,) array
        Of each mean, in posterior sds.
    sd : (d,) array
        Of each log sd.
    log_evidence : float
    """

    mean: Array
    sd: Array
    log_evidence: float

    @property
    def largest(self) -> float:
        """Largest error of a mean or a log sd."""
        return float(np.max([self.mean, self.sd]))

    @classmethod
    def none(cls, d: int) -> Self:
        """Give what all shards err by."""
        return cls(np.zeros(d), np.zeros(d), 0.0)


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
    remainders : (m, G) array
        What the shards of a sample add beyond their expansions; none where all were asked.
    last : Evaluated or None
        The newest points.
    assessment : Assessment or None
        None before the first iteration.
    sampling_error : SamplingError
    long_tailed : bool
        Whether the first look at the tails found one longer than a Gaussian's.
    coupling, compile_seconds : float
    """

    mixture: MixtureProposal
    points: Array
    log_density: Array
    modes_not_found: Array
    remainders: Array
    last: Evaluated | None
    assessment: Assessment | None
    sampling_error: SamplingError
    long_tailed: bool
    coupling: float
    compile_seconds: float

    @property
    def iterations(self) -> int:
        """Iterations done."""
        return len(self.mixture.counts)


class Known(NamedTuple):
    """The log posterior wherever it was looked at, so that that of rows to come can be added.

    Marks are where no point may ever lie: far out along each coordinate, and where searches ended.

    Attributes
    ----------
    log_density : (G,) array
        Log of the prior times the likelihood of all rows at the correction's points.
    log_proposal : (G,) array
        Log density of all that the points were drawn from.
    marks : (m, d) array
    mark_log_density, mark_log_proposal : (m,) arrays
        The same of them; in many dimensions, of the leading coordinate alone in what points were
        drawn from.
    mark_leader : (m,) int array
        The coordinate along whose regression line each lies; -1 where a search ended.
    """

    log_density: Array
    log_proposal: Array
    marks: Array
    mark_log_density: Array
    mark_log_proposal: Array
    mark_leader: npt.NDArray[np.int64]


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
    sampling_error, sampling_sd_error : (d,) arrays
        Error of the mean, in posterior sds, and of the log sd, by asking a sample of the shards;
        0 where all were asked.
    sampled_shards : int
        Shards that were asked; 0 for all.
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
        Log of how much larger a weight would be far out along each coordinate than any seen;
        infinite of a coordinate that has no variance.
    landmark_log_ratio : float
        The same of the landmarks; minus infinity without any.
    discrepancy : float
        Sd of the log weights of the first iteration: how unlike the posterior the combination is.
    seconds, compile_seconds : float
        Wall time, and what of it the slowest shards spent compiling.
    coordinates : (p,) int array or None
        Coordinates of u that all of this is about; None for all d.
    levels : Levels or None
        What is known of the others, effects of crossed factors.
    known : Known or None
        What an update by further rows begins from.
    beyond : Beyond or None
        What lies far out, off every straight line, would change; None where that was not asked.
    """

    points: Array
    weights: Array
    iteration: npt.NDArray[np.int64]
    k_hat: float
    estimate: Estimate
    emulator_error: float
    integration_error: Array
    integration_sd_error: Array
    sampling_error: Array
    sampling_sd_error: Array
    sampled_shards: int
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
    coordinates: npt.NDArray[np.int64] | None = None
    levels: Levels | None = None
    known: Known | None = None
    beyond: Beyond | None = None
