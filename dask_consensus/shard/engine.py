"""Which engine answers for a shard's likelihood: the seam behind which another one fits.

Everything that combines shards, corrects them or starts their chains asks for one of a few things,
each with the local effects integrated out or given their modes; and once there is an answer, what
the effects are. :func:`engine_of` says who answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..model.model import ShardModel
from ..shard_data import ShardData, Size
from . import (
    descent,
    local_draws,
    marginal,
    nested,
    nested_draws,
    nested_marginal,
    nested_opinion,
    nested_summaries,
    score,
    second_opinion,
)
from .descent import Descents
from .effects import effects_per_unit, obstacle
from .marginal import Modes, UnitValues, Values
from .quadrature import Rule, gradient_ladder, ladder
from .score import Expansion, Score, expanded
from .second_opinion import Opinions
from .summaries import Summary
from .tiers import tiers


class Functions(NamedTuple):
    """What an engine answers with; each takes the model first."""

    values: Callable[..., Values]
    unit_values: Callable[..., Iterator[UnitValues]]
    gradient: Callable[..., Score]
    heights: Callable[..., np.ndarray]
    descents: Callable[..., Descents]
    opinions: Callable[..., Opinions]
    most_modes: Callable[..., int]
    modes: Callable[..., Modes]
    summaries: Callable[..., tuple[Summary, ...]]
    draws: Callable[..., dict[str, np.ndarray]]
    look: Callable[..., int]
    looks_at_rows: Callable[..., tuple[int, int]]


@dataclass(frozen=True)
class Engine(ABC):
    """What is asked of a shard, whoever answers."""

    model: ShardModel
    functions: ClassVar[Functions]

    @property
    def obstacle(self) -> str:
        """Why a model's likelihood cannot be had from this engine; empty where it can."""
        return obstacle(self.model)

    @property
    @abstractmethod
    def value_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for values, in rising order."""

    @property
    @abstractmethod
    def gradient_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for gradients."""

    @property
    def search_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes that a search for a mode chooses from: of few, that few do or not."""
        return self.gradient_nodes[:2]

    def values(self, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule) -> Values:
        """Log likelihood at points ``(G, d)``, less that at the center."""
        return self.functions.values(self.model, data, points, center, rule)

    def unit_values(
        self, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
    ) -> Iterator[UnitValues]:
        """Log likelihood of each outermost unit at points ``(G, d)``, some of them at a time."""
        return self.functions.unit_values(self.model, data, points, center, rule)

    def gradient(self, data: ShardData, points: np.ndarray, weight: float, rule: Rule) -> Score:
        """Log density under the prior to the power `weight`, and its gradient."""
        return self.functions.gradient(self.model, data, points, weight, rule)

    def heights(self, data: ShardData, points: np.ndarray, weight: float, rule: Rule) -> np.ndarray:
        """Log density under the prior to the power `weight`, ``(G,)``."""
        return self.functions.heights(self.model, data, points, weight, rule)

    def descents(
        self, data: ShardData, starts: np.ndarray, scale: np.ndarray, most: int, n_nodes: int
    ) -> Descents:
        """Search for maxima of the log density under the full prior, from ``(n, d)`` points.

        At most so many evaluations are made from each; of none, heights are told. Nodes are
        :attr:`search_nodes`.
        """
        return self.functions.descents(self.model, data, starts, scale, n_nodes, most)

    def expansion(
        self, data: ShardData, u: np.ndarray, axes: np.ndarray, weight: float, rule: Rule
    ) -> Expansion:
        """Log density to second order about `u`, and a trace of the third."""
        return expanded(u, axes, lambda points: self.gradient(data, points, weight, rule))

    def opinions(
        self, data: ShardData, points: np.ndarray, rule: Rule, size: Size, effort: float
    ) -> Opinions:
        """Log likelihood of some units of a shard by two unlike rules, less the first point's."""
        return self.functions.opinions(self.model, data, points, rule, size, effort)

    def most_modes(self, data: ShardData, points: np.ndarray) -> int:
        """Count the modes that a group has at ``(G, d)`` points, where it has most."""
        return self.functions.most_modes(self.model, data, points)

    def modes(self, data: ShardData, u: np.ndarray) -> Modes:
        """Modes of the local effects given `u`."""
        return self.functions.modes(self.model, data, u)

    def summaries(
        self, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
    ) -> tuple[Summary, ...]:
        """Statistics of the local effects over draws ``(G, d)`` of u, for each tier."""
        return self.functions.summaries(self.model, data, draws, center, n_modes)

    def look(self, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int) -> int:
        """Tell how closely effects are to be looked at for draws of them."""
        return self.functions.look(self.model, data, draws, center, n_modes)

    def looks_at_rows(self, *, summary: bool) -> tuple[int, int]:
        """Count the looks at every row that effects take at a draw of u, at least and at most."""
        return self.functions.looks_at_rows(self.model, summary=summary)

    def draws(
        self,
        data: ShardData,
        draws: np.ndarray,
        center: np.ndarray,
        n_modes: int,
        named: tuple[int, int, np.ndarray],
        look: int,
    ) -> dict[str, np.ndarray]:
        """Draw the local effects once for each of the draws ``(G, d)`` of u."""
        given = (self.model, data, draws, center, n_modes, named)
        return self.functions.draws(*given, look=look)


class AdaptiveQuadrature(Engine):
    """Local effects of one level integrated out around their modes, or none at all."""

    functions = Functions(
        values=marginal.log_likelihoods,
        unit_values=marginal.unit_log_likelihoods,
        gradient=score.score,
        heights=score.heights,
        descents=descent.descend,
        opinions=second_opinion.second_opinion,
        most_modes=marginal.most_modes,
        modes=marginal.modes_at,
        summaries=local_draws.summaries_of_one,
        draws=local_draws.draw_effects,
        look=local_draws.look_at,
        looks_at_rows=local_draws.looks_at_rows,
    )

    @property
    def value_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for values, in rising order; 0 without local effects."""
        q = effects_per_unit(self.model)
        return ladder(q) if q else (0,)

    @property
    def gradient_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for gradients."""
        return gradient_ladder(effects_per_unit(self.model))


class NestedQuadrature(Engine):
    """Local effects of several levels integrated out, one level inside the other."""

    functions = Functions(
        values=nested_marginal.log_likelihoods,
        unit_values=nested_marginal.unit_log_likelihoods,
        gradient=nested_marginal.score,
        heights=nested_marginal.heights,
        descents=nested_marginal.descend,
        opinions=nested_opinion.second_opinion,
        most_modes=nested_opinion.most_modes,
        modes=nested_marginal.modes_at,
        summaries=nested_summaries.summarize,
        draws=nested_draws.draw_effects,
        look=nested_draws.look_at,
        looks_at_rows=nested_summaries.looks_at_rows,
    )

    @property
    def value_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for values, of all levels together, in rising order."""
        return nested.value_nodes(self.model)

    @property
    def gradient_nodes(self) -> tuple[int, ...]:
        """Numbers of nodes to try for gradients, of all levels together."""
        return nested.gradient_nodes(self.model)

    @property
    def search_nodes(self) -> tuple[int, ...]:
        """The fewest, which are enough for rows of any kind."""
        return self.gradient_nodes[:1]


def engine_of(model: ShardModel) -> Engine:
    """Choose the engine for a model; another one, with the same methods, enters here."""
    return NestedQuadrature(model) if len(tiers(model)) > 1 else AdaptiveQuadrature(model)
