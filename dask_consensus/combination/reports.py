"""What a fit keeps of each shard, each round, and the combination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..model.model import ShardModel
from .ascent import Peak

if TYPE_CHECKING:
    from .crossed import CrossedEffects


class FitSettings(NamedTuple):
    """What all shards and rounds of a fit share; travels to each worker once."""

    model: ShardModel
    num_chains: int
    diagonal: bool
    seed: int


class NutsDiagnostics(NamedTuple):
    """What sampling a shard showed.

    Attributes
    ----------
    skew : (d,) array
        Skewness of each coordinate.
    joint_skew : (d,) array
        Mean of each standardised coordinate times the squared Mahalanobis distance: what all
        coordinates' skew does to one.
    ess, r_hat : (d,) arrays
    divergences : int
    steps, step_size, accept_prob : float
    """

    skew: np.ndarray
    joint_skew: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    divergences: int
    steps: float
    step_size: float
    accept_prob: float


class Report(NamedTuple):
    """What one shard tells the client of one round.

    Attributes
    ----------
    rows : int
    groups : tuple of int
        Groups at each level.
    weight : float
        Power of the prior.
    mean : (d,) array
    precision : (d, d) or (d,) array
        The shard's subposterior as a Gaussian, the anchor's share included; NaN for a shard alone,
        of which none is needed.
    seconds, compile_seconds : float
    nuts : NutsDiagnostics or None
        None where nothing was sampled.
    """

    rows: int
    groups: tuple[int, ...]
    weight: float
    mean: np.ndarray
    precision: np.ndarray
    seconds: float
    compile_seconds: float
    nuts: NutsDiagnostics | None = None


class Anchor(NamedTuple):
    """The Gaussian that holds every shard near the answer.

    Attributes
    ----------
    mean : (d,) array
    precision : (d, d) array
        Zero without an anchor.
    strength : float
        The precision in units of a shard's own; 0 without an anchor.
    """

    mean: np.ndarray
    precision: np.ndarray
    strength: float


class Round(NamedTuple):
    """One round, as the client saw it.

    Attributes
    ----------
    reports : list of Report
        One a shard.
    mean : (d,) array
    covariance : (d, d) array
        The combination after this round.
    anchor : Anchor
        What the shards were anchored by; of precision zero in a Newton step, about its point.
    movement : float
        Largest change of a mean, in posterior sds, or of a log sd, since the round before.
    noise : float
        The Monte Carlo error that the movement is judged by.
    seconds : float
    """

    reports: list[Report]
    mean: np.ndarray
    covariance: np.ndarray
    anchor: Anchor
    movement: float
    noise: float
    seconds: float


class Combined(NamedTuple):
    """The posterior of all shards together, in unconstrained space.

    Attributes
    ----------
    draws : (chains, draws, d) array
    mean : (d,) array
    covariance : (d, d) array
    rounds : list of Round
    method : str
        What made it: "laplace", "anchored", "consensus", "parametric", or "nuts" on one shard.
    peaks : tuple of Peak
        All modes where there are several, of which mean and covariance describe the first.
    """

    draws: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    rounds: list[Round]
    method: str
    peaks: tuple[Peak, ...] = ()


class Expansions(NamedTuple):
    """Log densities of all shards to second order about one point, and a trace of the third.

    Attributes
    ----------
    u : (d,) array
        The point.
    axes : (d, d) array
        Columns are the steps of the differences.
    step : (d,) array
        From the point to the mode.
    value : (K,) array
        Of each shard ``w log p(u) + log l(u)``.
    gradient : (K, d) array
    precision : (K, d, d) array
        Minus the Hessian.
    third_derivative : (K, d) array
        Summed over the axes it is taken in twice.
    """

    u: np.ndarray
    axes: np.ndarray
    step: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    precision: np.ndarray
    third_derivative: np.ndarray


class LaplaceApproximation(NamedTuple):
    """The posterior about its highest mode.

    Attributes
    ----------
    mean : (d,) array
        The posterior's mean, to first order in its skew (Tierney and Kadane 1986, eq. 2.4).
    covariance : (d, d) array
    shift : (d,) array
        Mean less mode, in sds.
    modes : int
        Modes of comparable height.
    rounds : list of Round
        Newton steps that led there.
    reached, searched : int
        How many of so many searches, of some rows, led there.
    lone : int
        Modes that one of them alone led to, so that there may be others like them.
    height : float
        Log density at the mode.
    others : tuple of Peak
        The other modes that were found.
    along : tuple of Peak
        Places along the curved ridges that modes are pieces of.
    expansions : Expansions or None
        What each shard said of a point at the mode, or near it.
    """

    mean: np.ndarray
    covariance: np.ndarray
    shift: np.ndarray
    modes: int
    rounds: list[Round]
    reached: int = 1
    searched: int = 1
    lone: int = 0
    height: float = 0.0
    others: tuple[Peak, ...] = ()
    along: tuple[Peak, ...] = ()
    expansions: Expansions | None = None


class Guess(NamedTuple):
    """Where the posterior is, before the shards are combined.

    Attributes
    ----------
    mean : (d,) array
    shard_precision : (d, d) array
        Precision of one shard's subposterior, about.
    informed : bool
        Whether all shards were asked, so that an anchor there may be as strong as later ones.
    modes : int
        Separate places of comparable density that were found.
    rounds : sequence of Round
        Rounds that led there, to be counted on from.
    approximation : LaplaceApproximation or None
        Where the mode was found.
    landmarks : sequence of (d,) arrays
        Other places that may have a comparable density.
    crossed : CrossedEffects or None
        Where effects of crossed factors were integrated out: what is known of their modes.
    """

    mean: np.ndarray
    shard_precision: np.ndarray
    informed: bool
    modes: int
    rounds: Sequence[Round] = ()
    approximation: LaplaceApproximation | None = None
    landmarks: Sequence[np.ndarray] = ()
    crossed: CrossedEffects | None = None

    @property
    def expansions(self) -> Expansions | None:
        """What each shard said of a point near the only mode, if it is that."""
        found = self.approximation
        several = found is not None and (found.others or found.along)
        return None if found is None or several else found.expansions
