"""What a fit keeps of each shard, each round, and the combination."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..model.model import ShardModel


class FitSettings(NamedTuple):
    """What all shards and rounds of a fit share; travels to each worker once."""

    model: ShardModel
    num_chains: int
    diagonal: bool
    seed: int


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
        Moments of the unconstrained draws, in natural form, the anchor's included; NaN for a
        shard alone, of which none is needed.
    skew : (d,) array
        Skewness of each coordinate.
    joint_skew : (d,) array
        Mean of each standardised coordinate times the squared Mahalanobis distance: what all
        coordinates' skew does to one.
    ess, r_hat : (d,) arrays
    divergences : int
    steps, step_size, accept_prob : float
    seconds, compile_seconds : float
    """

    rows: int
    groups: tuple[int, ...]
    weight: float
    mean: np.ndarray
    precision: np.ndarray
    skew: np.ndarray
    joint_skew: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    divergences: int
    steps: float
    step_size: float
    accept_prob: float
    seconds: float
    compile_seconds: float


class Round(NamedTuple):
    """One round, as the client saw it.

    Attributes
    ----------
    reports : list of Report
        One a shard.
    mean : (d,) array
    covariance : (d, d) array
        The combination after this round.
    anchor_mean : (d,) array
    anchor_precision : (d, d) array
        What the shards were anchored by.
    strength : float
        Of the anchor: its precision in units of a site's; 0 without.
    movement : float
        Largest change of a mean, in posterior sds, or of a log sd, since the round before.
    noise : float
        The Monte Carlo error that the movement is judged by.
    seconds : float
    """

    reports: list[Report]
    mean: np.ndarray
    covariance: np.ndarray
    anchor_mean: np.ndarray
    anchor_precision: np.ndarray
    strength: float
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
    """

    draws: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    rounds: list[Round]
