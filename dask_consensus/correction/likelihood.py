"""What the shards say of points: the log posterior, added up over all of them, or from a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..model.model import ShardModel
from ..shard.compiling import seconds_compiling
from ..shard.effects import unit_level
from ..shard.engine import engine_of
from ..shard.quadrature import Rule
from ..shard.second_opinion import Opinions
from ..shard.subsets import PIECE, few_units, pieces_of
from ..shard.target import log_prior
from ..shard_data import ROWS, ShardData
from .proposals import Array
from .sample import Sample, polynomials

_SHARDS = 3  # of which some units are looked at more closely
_FEW_DRAWN = 2  # of a sample, whose nodes are compared
_T, _W = scipy.special.roots_hermitenorm(5)
_DISTANCES, _SHARES = np.delete(_T, 2), np.delete(_W / _W.sum(), 2)  # nodes but for the center
_SCOUTED = 65_536  # rows whose groups' modes are counted at one point, where rows are no more all
_TORN = 2  # pieces of shards, beside others, whose integrals are looked at again
_MODES_AT = 8  # points at which modes of local effects are counted, beside those on axes
_FEW = 0.1  # share of all rows up to which fewer points are looked at
_OF_HALVES = 2.0  # times what the halves of a second opinion differ by, that it may differ by
_MANY_UNITS = 1_000_000  # from which on a second opinion takes more points
_BY_CHANCE = 1e-3  # how often it differs by more than its Monte Carlo error explains
_PROBE = 32  # points on which node counts are compared
_INTEGRATION = 0.02  # sd, over points, of the log weight's integration error that is accepted


class Evaluated(NamedTuple):
    """The log posterior at points, up to one constant.

    Attributes
    ----------
    points : (G, d) array
    log_density : (G,) array
        Prior and likelihood; minus infinity where it is not finite.
    log_likelihood : (G,) array
        Less that at the center.
    at_center : float
        The log likelihood at the center.
    modes_not_found : (G,) array
        Share of the groups whose mode was not found.
    coupling : float
        Largest deviation of a shard's Hessian from block-diagonal.
    compile_seconds : float
        What the slowest shard spent compiling.
    remainders : (m, G) array
        What each of the m shards of a sample adds that its expansion does not say, less the same
        at the center; none where all were asked.
    remainders_at_center : (m,) array
        The latter.
    """

    points: Array
    log_density: Array
    log_likelihood: Array
    at_center: float
    modes_not_found: Array
    coupling: float
    compile_seconds: float
    remainders: Array
    remainders_at_center: Array


class _Told(NamedTuple):
    """What shards say of points by each of R rules: a sum, or of each of m shards."""

    log_likelihood: Array  # (R, G), or (m, R, G)
    at_center: Array  # (R,), or (m, R)
    modes_not_found: Array  # likewise
    units: Array


class LogPosterior(NamedTuple):
    """The log posterior of all shards, as a function of points.

    Attributes
    ----------
    model : ShardModel
    shards : Shards
    example : ShardData
        Any data the model accepts, for its prior.
    center : (d,) array
        Where likelihoods are taken as differences to.
    rule : Rule
        How the local effects are integrated out.
    sample : Sample or None
        Shards that are asked, and speak for all; None for all.
    torn : tuple of pairs of int
        Shards, and pieces of them, with groups whose effects have more modes than those have that
        integrals are looked at again of.
    """

    model: ShardModel
    shards: Shards
    example: ShardData
    center: Array
    rule: Rule = Rule(0)
    sample: Sample | None = None
    torn: tuple[tuple[int, int], ...] = ()

    @property
    def few_points(self) -> bool:
        """Whether a few points tell as much as a sample of shards can."""
        return self.sample is not None

    def __call__(self, points: Array, title: str) -> Evaluated:
        """Evaluate it at ``(G, d)`` points, by one pass over the shards."""
        return self.by_rules((self.rule,), points, title)[0]

    def by_rules(self, rules: Sequence[Rule], points: Array, title: str) -> list[Evaluated]:
        """Evaluate it by several rules for the local effects, by one pass over the shards."""
        points = self.rounded(points)
        asked, sample = self.shards, self.sample
        if sample is not None:
            asked = asked.some(sample.chosen.tolist())
        mapped = map_reduce(
            each(_evaluate if sample is None else _evaluate_apart),
            asked,
            [()] * asked.n,
            [broadcast((self.model, points, self.rounded(self.center), tuple(rules)))],
            _add if sample is None else _nothing,
            title=title,
        )
        if sample is None:
            added, timings = self._added(mapped.total, points), mapped.reports
        else:
            timings = [timing for _, timing in mapped.reports]
            told = _Told(*map(np.stack, zip(*(part for part, _ in mapped.reports), strict=True)))
            added = self._from_sample(sample, told, points)
        # NaN passes through NumPy's maximum, not through Python's.
        coupling, compiling = np.max(timings, axis=0).tolist()
        return [one._replace(coupling=coupling, compile_seconds=compiling) for one in added]

    def error_of(self, evaluated: Evaluated) -> Array:
        """How far log densities, less that at the center, may be from those of all shards.

        Returns
        -------
        (G,) array
            0 where all shards were asked.
        """
        if self.sample is None:
            return np.zeros(len(evaluated.points))
        return self.sample.error(evaluated.remainders)

    def everywhere(self, points: Array, title: str) -> Array:
        """Log density of all shards at a few points ``(G, d)``, up to another constant.

        For so few points the modes of effects are found at each of them sooner than at a center
        with all that is needed to follow them from there.
        """
        mapped = map_reduce(
            each(_height),
            self.shards,
            [(weight,) for weight in self.shards.weights],
            [broadcast((self.model, self.rounded(points), self.rule))],
            sum,
            title=title,
        )
        return np.asarray(mapped.total, np.float64)

    def _added(self, total: _Told, points: Array) -> Iterator[Evaluated]:
        """Add the prior to the likelihood of all shards."""
        log_prior_there = log_prior(self.model, self.example, points)
        for log_likelihood, at_center, not_found, units in zip(*total, strict=True):
            yield _evaluated(
                points, log_prior_there, log_likelihood, at_center, not_found / max(units, 1)
            )

    def _from_sample(self, sample: Sample, told: _Told, points: Array) -> Iterator[Evaluated]:
        """Add up what is known of all shards, and what some of them say beyond that."""
        with_center = np.concatenate([self.rounded(self.center)[None], points])
        prior = log_prior(self.model, self.example, with_center)
        of_each, factors = polynomials(sample.expansions), sample.factors
        all_shards = of_each.total()(with_center)[0]
        # What the expansions of those asked say of their likelihoods.
        weights = sample.weights[sample.chosen]
        own = of_each.of(sample.chosen)(with_center) - np.multiply.outer(weights, prior)
        for i in range(told.at_center.shape[1]):
            at_center = told.at_center[:, i] - own[:, 0]
            with np.errstate(invalid="ignore"):
                remainders = told.log_likelihood[:, i] - (own[:, 1:] - own[:, :1])
                log_density = all_shards[1:] - all_shards[0] + factors @ remainders
            yield _evaluated(
                points,
                prior[1:],
                log_density - (prior[1:] - prior[0]),
                all_shards[0] - prior[0] + factors @ at_center,
                factors @ told.modes_not_found[:, i] / max(float(factors @ told.units[:, i]), 1.0),
            )._replace(
                remainders=np.where(np.isfinite(remainders), remainders, 0.0),
                remainders_at_center=at_center,
            )

    def rounded(self, points: Array) -> Array:
        """Round points to the precision in which shards evaluate them: all then mean the same."""
        return points if self.model.x64 else points.astype(np.float32).astype(np.float64)

    def with_enough_nodes(
        self, points: Array, axes: Array, share: float = 1.0
    ) -> tuple[LogPosterior, float]:
        """Take as few nodes as agree with the next number of them on a few points.

        Parameters
        ----------
        points : (G, d) array
            Of the first proposal.
        axes : (d, d) array
            Columns that :func:`along_axes` steps along from the center.
        share : float
            Of these rows in all that the posterior is of.

        Returns
        -------
        log_posterior : LogPosterior
        compile_seconds : float
            This is where the code of all later passes is compiled.
        """
        return self.with_nodes_for(points, along_axes(self.center, axes), share)

    def with_nodes_for(
        self, points: Array, along: Array, share: float = 1.0
    ) -> tuple[LogPosterior, float]:
        """Take as few nodes as agree at points, some of them :func:`along_axes`, as above.

        No fewer than it has, if its number is one of those there are.
        """
        ladder = engine_of(self.model).value_nodes
        if self.rule.n_nodes in ladder:
            ladder = ladder[ladder.index(self.rule.n_nodes) :]
        if len(ladder) == 1:
            return self._replace(rule=Rule(ladder[0])), 0.0
        # What integrals of few rows miss moves little, and is in the error that is stated.
        modes_on, n_probe = (along, _PROBE) if share > _FEW else (along[:1], _MODES_AT)
        n_modes, torn = self._most_modes(np.concatenate([modes_on, points[:_MODES_AT]]))
        there = self._replace(torn=torn)
        few = np.concatenate([along, points[:n_probe]])
        rules = [Rule(n_nodes, n_modes) for n_nodes in ladder]
        asked = self._fewer()
        by_rule = asked.by_rules(rules[:2], few, "nodes")
        compile_seconds = by_rule[0].compile_seconds
        for rule, finer in pairwise(rules):
            if len(by_rule) == 1:
                by_rule += asked.by_rules([finer], few, "nodes")
            change = by_rule[1].log_likelihood - by_rule[0].log_likelihood
            moved = first_order(change[: len(along)])
            if np.std(change) < _INTEGRATION and np.max(np.abs(moved)) < _INTEGRATION:
                return there._replace(rule=rule), compile_seconds
            by_rule = by_rule[1:]
        return there._replace(rule=rules[-1]), compile_seconds

    def with_fewer_nodes(self) -> LogPosterior:
        """Take the next coarser rule, but for the coarsest: that of Laplace errs by far more."""
        ladder = engine_of(self.model).value_nodes
        coarser = max(ladder.index(self.rule.n_nodes) - 1, min(1, len(ladder) - 1))
        return self._replace(rule=self.rule._replace(n_nodes=ladder[coarser]))

    def _most_modes(self, points: Array) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Count the modes of the local effects of those groups that have most.

        Some groups of some shards are looked at at all points. One group of all may be torn between
        two places, and matter: as many as time allows are looked at at the first point, and pieces
        of shards are named in which one has more modes than any of the former.
        """
        execution, chosen = self.shards.execution, self._some_shards()
        usual = [
            on_worker(execution, _modes_of_some, self.shards.data[k], self.model, points)
            for k in chosen
        ]
        scouted, rows = self._scouted()
        everywhere = [
            on_worker(execution, _modes_of_many, self.shards.data[k], self.model, points[:1], rows)
            for k in scouted
        ]
        answers = compute([*usual, *everywhere])
        most = max(answers[: len(usual)])
        counted = [
            (count, (k, i))
            for k, counts in zip(scouted, answers[len(usual) :], strict=True)
            for i, count in enumerate(counts)
            if count > most and not (i == 0 and k in chosen)
        ]
        counted.sort(key=lambda pair: -pair[0])
        return max([most, *(count for count, _ in counted)]), tuple(
            where for _, where in counted[:_TORN]
        )

    def _fewer(self) -> LogPosterior:
        """Ask fewer shards of a sample for what is looked at again in the end."""
        if self.sample is None:
            return self
        return self._replace(sample=self.sample.fewer(_FEW_DRAWN))

    def _n_units(self) -> int:
        """Count the groups, or rows, that have local effects."""
        level = unit_level(self.model)
        sizes = self.shards.sizes
        return sum(size.rows if level == ROWS else size.groups[level] for size in sizes)

    def _scouted(self) -> tuple[list[int], int]:
        """Choose shards whose groups' modes are counted at one point, and the rows of each."""
        of_each = min(PIECE, max(size.rows for size in self.shards.sizes))
        n = min(self.shards.n, max(_SHARDS, _SCOUTED // of_each))
        chosen = np.linspace(0, self.shards.n - 1, n).round().astype(int)
        return chosen.tolist(), max(1, _SCOUTED // n)

    def _some_shards(self) -> list[int]:
        """Take a few shards that stand for all, which are alike: groups are dealt out by a hash."""
        chosen = np.linspace(0, self.shards.n - 1, _SHARDS).round().astype(int)
        return sorted(set(chosen.tolist()))

    def integration_error(self, axes: Array, share: float = 1.0) -> tuple[Array, Array]:
        """First-order change of means, in sds, and of log sds, were integrals taken otherwise.

        Otherwise is by the next number of nodes, and by a rule of another kind, whose Monte Carlo
        error leaves a range: what the nodes say counts as far as it lies within that.

        Parameters
        ----------
        axes : (d, d) array
            Columns that :func:`along_axes` steps along from the center.
        share : float
            Of these rows in all that the posterior is of: what is unsure of few moves little.
        """
        return self.integration_error_at(along_axes(self.center, axes), share)

    def integration_error_at(self, points: Array, share: float = 1.0) -> tuple[Array, Array]:
        """Say what integrals taken otherwise change, at points :func:`along_axes`, as above."""
        ladder = engine_of(self.model).value_nodes
        if len(ladder) == 1:
            none = np.zeros((len(points) - 1) // len(_DISTANCES))
            return none, none
        position = ladder.index(self.rule.n_nodes)
        other = ladder[position + 1 if position + 1 < len(ladder) else position - 1]
        # Beside the finest rule there is only a coarser one, whose error is the larger.
        rules = self.rule, self.rule._replace(n_nodes=other)
        here, finer = self.by_rules(rules, points, "nodes")
        change = finer.log_likelihood - here.log_likelihood
        nodes = np.abs(first_order(change))
        least, most = self._second_opinion(points, share)
        error = np.fmax(least, np.fmin(nodes, most))
        # Without a second opinion nobody knows what all nodes miss.
        mean, log_sd = np.where(np.isnan(most), np.inf, error)
        return mean, log_sd

    def _second_opinion(self, points: Array, share: float = 1.0) -> tuple[Array, Array]:
        """First-order changes by a rule of another kind, at least and at most: ``(2, d)`` each."""
        # The more groups some speak for, the better must be known what they say.
        effort = max(1.0, self._n_units() / _MANY_UNITS) ** 0.5 * share
        execution, question = self.shards.execution, (self.rounded(points), self.rule, effort)
        _, each = self._scouted()
        pieces = [*((k, 0, 1) for k in self._some_shards()), *((k, i, each) for k, i in self.torn)]
        tasks = [
            on_worker(
                execution, _opinions_of_some, self.shards.data[k], self.model, i, rows, *question
            )
            for k, i, rows in pieces
        ]
        opinions = compute(tasks)
        n_usual = len(pieces) - len(self.torn)
        # Pieces with torn groups speak for themselves, the others for all the rest.
        alone = sum(opinion.units for opinion in opinions[n_usual:])
        looked_at = sum(opinion.units for opinion in opinions[:n_usual])
        asked = looked_at / max(self._n_units() - alone, looked_at)
        told = list(zip(opinions, [asked] * n_usual + [1.0] * len(self.torn), strict=True))
        change = sum((opinion.second - opinion.first) / part for opinion, part in told)
        of_units = np.concatenate([opinion.noise / part for opinion, part in told], axis=1)
        bias = np.abs(first_order(sum(opinion.bias / part for opinion, part in told)))
        size = np.abs(first_order(change))
        # Of few units the halves differ by chance; of skewed ones all may err alike.
        by_halves = np.abs(first_order(of_units.sum(axis=1)))
        by_units = np.sqrt((first_order(of_units) ** 2).sum(axis=-1))
        # One of all these numbers may well be off by three times what is usual.
        unusual = scipy.stats.norm.isf(_BY_CHANCE / 2 / size.size)
        unsure = np.maximum(_OF_HALVES * by_halves, unusual * by_units) + bias
        return np.maximum(size - unsure, 0.0), size + unsure


def along_axes(center: Array, axes: Array) -> Array:
    """Take the center, and points either way along every axis; ``(1 + 4 d, d)``.

    Axes that are columns of a covariance, each over its sd, are what :func:`first_order` needs.
    """
    points = [center + distance * axes.T for distance in _DISTANCES]
    return np.concatenate([center[None], *points])


def first_order(change: Array) -> Array:
    """Change of each mean, in sds, and of each log sd, to first order; ``(2, d, ...)``.

    For a small change h of the log density they are E[t h] and E[(t^2 - 1) h] / 2, t being the
    coordinate in sds: averages, by five nodes of a Gauss-Hermite rule, along the line on which the
    other coordinates follow by regression.
    """
    away = np.stack(np.split(change[1:] - change[0], len(_DISTANCES)))
    mean = np.tensordot(_SHARES * _DISTANCES, away, 1)
    return np.array([mean, np.tensordot(_SHARES * (_DISTANCES**2 - 1), away, 1) / 2])


def _modes_of_some(data: ShardData, model: ShardModel, points: Array) -> int:
    """Most modes of a unit, of some of a shard's, at any point; runs on a worker."""
    return engine_of(model).most_modes(few_units(data, model.codes), points)


def _modes_of_many(data: ShardData, model: ShardModel, points: Array, rows: int) -> list[int]:
    """Most modes of a unit at points, in pieces of so many of a shard's rows; runs on a worker."""
    engine = engine_of(model)
    return [engine.most_modes(piece, points) for piece in pieces_of(data, model.codes, 0, rows)]


def _opinions_of_some(
    data: ShardData,
    model: ShardModel,
    number: int,
    rows: int,
    points: Array,
    rule: Rule,
    effort: float,
) -> Opinions:
    """Two opinions on the units of one of the pieces of a shard's rows; runs on a worker."""
    piece = next(islice(pieces_of(data, model.codes, 0, rows), number, None))
    return engine_of(model).opinions(piece, points, rule, data.size, effort)


def _evaluate(data: ShardData, question: tuple[ShardModel, Array, Array, Sequence[Rule]]) -> Answer:
    """One shard's log likelihoods by each rule; runs on a worker."""
    model, points, center, rules = question
    before, engine = seconds_compiling(), engine_of(model)
    by_rule = [engine.values(data, points, center, rule) for rule in rules]
    contribution = _Told(
        np.array([values.log_likelihood for values in by_rule]),
        np.array([values.at_center for values in by_rule]),
        np.array([values.modes_not_found for values in by_rule]),
        np.array([values.units for values in by_rule]),
    )
    coupling = np.max([values.coupling for values in by_rule])
    return Answer(contribution, (coupling, seconds_compiling() - before))


def _height(data: ShardData, weight: float, question: tuple[ShardModel, Array, Rule]) -> Answer:
    """One shard's log density at points; runs on a worker."""
    model, points, rule = question
    return Answer(engine_of(model).heights(data, points, weight, rule), None)


def _evaluate_apart(
    data: ShardData, question: tuple[ShardModel, Array, Array, Sequence[Rule]]
) -> Answer:
    """One shard's log likelihoods, to be added up by whoever asks; runs on a worker."""
    contribution, report, _ = _evaluate(data, question)
    return Answer(None, (contribution, report))


def _add(parts: list[_Told]) -> _Told:
    return _Told(*(np.sum(part, axis=0) for part in zip(*parts, strict=True)))


def _nothing(_: list[None]) -> None:
    return None


def _evaluated(
    points: Array,
    log_prior_there: Array,
    log_likelihood: Array,
    at_center: float,
    modes_not_found: Array,
) -> Evaluated:
    log_density = log_prior_there + log_likelihood
    return Evaluated(
        points=points,
        log_density=np.where(np.isfinite(log_density), log_density, -np.inf),
        log_likelihood=log_likelihood,
        at_center=float(at_center),
        modes_not_found=modes_not_found,
        coupling=np.nan,
        compile_seconds=np.nan,
        remainders=np.empty((0, len(points))),
        remainders_at_center=np.empty(0),
    )
