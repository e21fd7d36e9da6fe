"""Which engine answers for a shard's likelihood: the seam behind which another one fits.

Everything that combines shards, corrects them or starts their chains asks for one of a few things,
each with the local effects integrated out or given their modes. :func:`engine_of` says who answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..model.model import ShardModel
from ..shard_data import ShardData, Size
from . import nested, nested_opinion
from .descent import Descents, descend
from .effects import effects_per_unit, obstacle
from .marginal import (
    Modes,
    UnitValues,
    Values,
    log_likelihoods,
    modes_at,
    most_modes,
    unit_log_likelihoods,
)
from .quadrature import Rule, gradient_ladder, ladder
from .score import Expansion, Score, expanded, expansion, heights, score
from .second_opinion import Opinions, second_opinion
from .tiers import tiers


@dataclass(frozen=True)
class AdaptiveQuadrature:
    """Local effects of one level integrated out around their modes, or none at all."""

    model: ShardModel

    @property
    def obstacle(self) -> str:
        """Why a model's likelihood cannot be had from this engine; empty where it can."""
        return obstacle(self.model)

    @property
    def value_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for values, in rising order; 0 without local effects."""
        q = effects_per_unit(self.model)
        return ladder(q) if q else (0,)

    @property
    def gradient_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for gradients."""
        return gradient_ladder(effects_per_unit(self.model))

    def values(self, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule) -> Values:
        """Log likelihood at points ``(G, d)``, less that at the center."""
        return log_likelihoods(self.model, data, points, center, rule)

    def unit_values(
        self, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
    ) -> Iterator[UnitValues]:
        """Log likelihood of each unit at points ``(G, d)``, some of them at a time."""
        return unit_log_likelihoods(self.model, data, points, center, rule)

    def gradient(self, data: ShardData, points: np.ndarray, weight: float, rule: Rule) -> Score:
        """Log density under the prior to the power `weight`, and its gradient."""
        return score(self.model, data, points, weight, rule)

    def heights(self, data: ShardData, points: np.ndarray, weight: float, rule: Rule) -> np.ndarray:
        """Log density under the prior to the power `weight`, ``(G,)``."""
        return heights(self.model, data, points, weight, rule)

    def descents(
        self, data: ShardData, starts: np.ndarray, scale: np.ndarray, most: int
    ) -> Descents:
        """Search for maxima of the log density under the full prior, from ``(n, d)`` points."""
        return descend(self.model, data, starts, scale, self.gradient_nodes[0], most)

    def expansion(
        self, data: ShardData, u: np.ndarray, axes: np.ndarray, weight: float, rule: Rule
    ) -> Expansion:
        """Log density to second order about `u`, and a trace of the third."""
        return expansion(self.model, data, u, axes, weight, rule)

    def opinions(
        self, data: ShardData, points: np.ndarray, rule: Rule, size: Size, effort: float
    ) -> Opinions:
        """Log likelihood of some units of a shard by two unlike rules, less the first point's."""
        return second_opinion(self.model, data, points, rule, size, effort)

    def most_modes(self, data: ShardData, points: np.ndarray) -> int:
        """Count the modes that a group has at ``(G, d)`` points, where it has most."""
        return most_modes(self.model, data, points)

    def modes(self, data: ShardData, u: np.ndarray) -> Modes:
        """Modes of the local effects given `u`."""
        return modes_at(self.model, data, u)


@dataclass(frozen=True)
class NestedQuadrature:
    """Local effects of several levels integrated out, one level inside the other."""

    model: ShardModel

    @property
    def obstacle(self) -> str:
        """Why a model's likelihood cannot be had from this engine; empty where it can."""
        return obstacle(self.model)

    @property
    def value_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for values, of all levels together, in rising order."""
        return nested.value_nodes(self.model)

    @property
    def gradient_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for gradients."""
        return nested.gradient_nodes(self.model)

    def values(self, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule) -> Values:
        """Log likelihood at points ``(G, d)``, less that at the center."""
        return nested.log_likelihoods(self.model, data, points, center, self._position(rule))

    def unit_values(
        self, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
    ) -> Iterator[UnitValues]:
        """Log likelihood of each outermost unit at points ``(G, d)``, some of them at a time."""
        position = self._position(rule)
        return nested.unit_log_likelihoods(self.model, data, points, center, position)

    def gradient(self, data: ShardData, points: np.ndarray, weight: float, rule: Rule) -> Score:
        """Log density under the prior to the power `weight`, and its gradient."""
        position = self.gradient_nodes.index(rule.n_nodes)
        return nested.score(self.model, data, points, weight, position)

    def heights(self, data: ShardData, points: np.ndarray, weight: float, rule: Rule) -> np.ndarray:
        """Log density under the prior to the power `weight`, ``(G,)``."""
        return nested.heights(self.model, data, points, weight, self._position(rule))

    def descents(
        self, data: ShardData, starts: np.ndarray, scale: np.ndarray, most: int
    ) -> Descents:
        """Search for maxima of the log density under the full prior, from ``(n, d)`` points."""
        return nested.descend(self.model, data, starts, scale, most)

    def expansion(
        self, data: ShardData, u: np.ndarray, axes: np.ndarray, weight: float, rule: Rule
    ) -> Expansion:
        """Log density to second order about `u`, and a trace of the third."""
        return expanded(u, axes, lambda points: self.gradient(data, points, weight, rule))

    def opinions(
        self, data: ShardData, points: np.ndarray, rule: Rule, size: Size, effort: float
    ) -> Opinions:
        """Log likelihood of some units of a shard by two unlike rules, less the first point's."""
        position = self._position(rule)
        return nested_opinion.second_opinion(self.model, data, points, position, size, effort)

    def most_modes(self, data: ShardData, points: np.ndarray) -> int:
        """Count the modes that a group has at ``(G, d)`` points, where it has most."""
        return nested_opinion.most_modes(self.model, data, points)

    def modes(self, data: ShardData, u: np.ndarray) -> Modes:
        """Modes of the local effects given `u`."""
        return nested.modes_at(self.model, data, u)

    def _position(self, rule: Rule) -> int:
        return self.value_nodes.index(rule.n_nodes)


def engine_of(model: ShardModel) -> AdaptiveQuadrature | NestedQuadrature:
    """Choose the engine for a model; another one, with the same methods, enters here."""
    return NestedQuadrature(model) if len(tiers(model)) > 1 else AdaptiveQuadrature(model)
