"""All that the benchmarks take from inside of the package, in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import jax
import numpy as np
import pandas as pd
from dask.callbacks import Callback
from numpyro.infer.util import potential_energy

from dask_consensus import fit
from dask_consensus.cluster.mapreduce import Answer, each, map_reduce
from dask_consensus.cluster.placement import Execution
from dask_consensus.cluster.progress import Progress
from dask_consensus.cluster.shards import Shards, persist
from dask_consensus.combination import gaussian
from dask_consensus.combination.gaussian import GaussianFactor
from dask_consensus.combination.methods import combine, locate
from dask_consensus.combination.subposterior import SamplingFailed as SamplingFailed
from dask_consensus.config import Options
from dask_consensus.correction.assessment import moved_by
from dask_consensus.correction.likelihood import LogPosterior
from dask_consensus.correction.sample import Sample, first_sample, larger_sample
from dask_consensus.fit import correct_combination, shard_rows
from dask_consensus.frame import assign
from dask_consensus.frame.survey import check, survey
from dask_consensus.frame.unchanged import unchanged
from dask_consensus.model.model import precision
from dask_consensus.model.roles import ModelInputs, read_model
from dask_consensus.plan.bindings import bind
from dask_consensus.plan.plan import Plan
from dask_consensus.result.clock import Clock
from dask_consensus.result.verdict import evidence_of, judge
from dask_consensus.shard.constrain import constrain
from dask_consensus.shard.device import accelerated as accelerated
from dask_consensus.shard.quadrature import Rule
from dask_consensus.shard.target import log_density, tempered
from dask_consensus.shard_data import Shard, ShardData, Size, pad, size_of, summary_of

# Shards, for the loop written by hand


def shards_of(lazy: Any) -> list[tuple[ShardData, Size, float]]:
    """Cut the shards of a fit that has not run: padded, their own sizes, powers of the prior."""
    plan = lazy.plan()
    unpadded = assign.shards(lazy.frame, plan.bindings.layout, plan.assignment)
    shards = persist(unpadded, Execution())
    return list(zip(dask.compute(*shards.data), shards.sizes, shards.weights, strict=True))


# Draws of shards, for NumPyro's consensus


class ShardDraws(Callback):
    """Keeps the contribution of every shard as the local scheduler sees it."""

    def __init__(self) -> None:
        self._factors: list[GaussianFactor] = []
        super().__init__(posttask=self._keep)

    def _keep(self, key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, tuple) and result and isinstance(result[0], GaussianFactor):
            self._factors.append(result[0])

    def constrained(self, lazy: Any) -> list[dict[str, np.ndarray]]:
        """Draws of the shared sites of every shard, ``(draws, ...)``."""
        plan = lazy.plan()
        sites = [site.name for site in plan.model.shared]
        shards = []
        for factor in self._factors:
            u = gaussian.solve(factor.precision, factor.draws)
            values = constrain(plan.model, u, plan.example)
            shards.append({site: np.concatenate(values[site]) for site in sites})
        return shards


# The tree of sums


def make_factor(number: int, dim: int, draws: int) -> GaussianFactor:
    """Make a shard's contribution from its number, the same one in any process.

    Without linear algebra, whose time would hide that of the reduction.
    """
    rng = np.random.default_rng([20_260, number])
    vector = rng.normal(size=dim)
    precision = np.diag(rng.uniform(0.5, 2.0, dim)) + np.outer(vector, vector)
    return GaussianFactor(precision, rng.normal(size=dim), rng.normal(size=(1, draws, dim)))


def add(total: GaussianFactor, factor: GaussianFactor) -> GaussianFactor:
    """Add one contribution."""
    return gaussian.add([total, factor])


def _map_factor(number: int, dim: int, draws: int) -> Answer:
    return Answer(make_factor(number, dim, draws), number)


def tree_of_sums(
    sites: int, dim: int, draws: int, split_every: int, shards_per_task: int
) -> GaussianFactor:
    """Add all contributions by the package's tree, on whatever scheduler is there."""
    execution = Execution(split_every, progress=False, shards_per_task=shards_per_task)
    shards = Shards(range(sites), [], [], execution)  # numbers in place of data
    given, shared = [()] * sites, [dim, draws]
    return map_reduce(each(_map_factor), shards, given, shared, gaussian.add, title="sites").total


# Samples of shards


class Drawn(NamedTuple):
    """What one sample would have said, less what all shards say."""

    certain: int
    asked: int
    away: np.ndarray  # (2 d,) of means, in posterior sds, and log sds
    error: np.ndarray  # (2 d,) as the sample says it may be


class Sampled:
    """A fit on all shards, and what samples of them would have said at its points."""

    def __init__(self, lazy: Any) -> None:
        plan = lazy.plan()
        self._options = replace(plan.options.correction, sampled_shards=10**9)
        plan = replace(plan, options=replace(plan.options, correction=self._options))
        self._wanted = lazy.options.correction
        shards = shard_rows(lazy.frame, plan, False)
        guess = locate(plan, shards)
        combined = combine(plan, shards, guess)
        correction = correct_combination(plan, shards, guess, combined)
        verdict = judge(evidence_of(plan, guess, combined, correction))
        self.n_shards, self.good, self.verdict = shards.n, verdict.good, verdict.text
        self._expansions, self._sizes = guess.expansions, shards.sizes
        weights = np.array(shards.weights)
        everyone = Sample(
            self._expansions, weights, np.empty(0, int), np.arange(shards.n), shards.n
        )
        rule = Rule(correction.nodes, correction.modes)
        log_posterior = LogPosterior(
            plan.model, shards, plan.example, combined.mean, rule, everyone
        )
        remainders = log_posterior(correction.points, "all shards").remainders
        self._moved = moved_by(remainders, correction.points, correction.weights)[:, :-1]

    def sample(self, seed: int) -> Drawn | None:
        """Draw a sample and let it grow, as a fit does; None where all shards would be asked."""
        sample = first_sample(self._expansions, self._sizes, self._wanted, seed)
        while sample is not None:
            values = self._moved[sample.chosen]
            error = sample.error(values)
            if error.max() <= self._wanted.sampling_error:
                away = sample.factors @ values - self._moved.sum(axis=0)
                return Drawn(len(sample.certain), len(sample.chosen), away, error)
            sample = larger_sample(sample, float(error.max()), self._wanted.sampling_error)
        return None


# The density a shard samples


def shard_gradient(
    model: Callable[..., None], arguments: Mapping[str, np.ndarray], by: str | None, n_groups: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``(u, local, *data) -> value, gradients`` of the full density of one shard; its data."""
    values = {name: value for name, value in arguments.items() if name != by}
    groups = ({by: 0}, (by,), {f"n_{by}": 0}) if by else ({}, (), {})
    read = read_model(model, ModelInputs(values, *groups, {}, {}))
    n_rows = len(next(iter(arguments.values())))
    masks = (np.ones(n_groups, bool),) if by else ()
    data = ShardData(dict(arguments), np.ones(n_rows, bool), masks)
    return jax.value_and_grad(partial(log_density, read), (0, 1)), (data, tempered(1.0, read.dim))


# Faults


class _Told(Clock):
    """Tells as each phase of a fit begins."""

    def __init__(self, tell: Callable[[str], None], progress: Progress) -> None:
        super().__init__(progress)
        self._tell = tell

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._tell(phase)
        with super().__call__(phase):
            yield


@contextlib.contextmanager
def phases_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Within, fits of this process tell the name of each phase that they begin."""
    usual = fit.Clock
    fit.Clock = partial(_Told, tell)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        fit.Clock = usual  # type: ignore[misc]


class Cut(NamedTuple):
    """A frame cut into shards as a fit cuts it, before any model is read."""

    shards: list[Shard]
    rows: int
    groups: int


def cut(frame: Any, model: Callable[..., Any], n_shards: int | None, **named: Any) -> Cut:
    """Count the rows of a frame, look at their values, and send each to its shard."""
    layout = bind(frame, model, named.get("by"), named.get("columns"), False).layout
    (counted,) = dask.compute(survey(frame, layout))
    check(counted, layout)
    limit = Options.frozen().rows_per_shard
    assignment = assign.assign(counted, frame, layout, n_shards=n_shards, rows_per_shard=limit)
    shards = dask.compute(*assign.shards(frame, layout, assignment))
    unchanged(counted, layout)([summary_of(shard) for shard in shards])
    return Cut(list(shards), counted.rows, counted.n_groups)


def densities(odd: Any) -> tuple[Plan, float, float, float]:
    """Log density of all shards together, NumPyro's of all rows at the same point, and its scale.

    At shared and local values drawn at random, in double precision; operations are run one by one,
    since to compile a model takes longer.
    """
    frame = dd.from_pandas(odd.frame, npartitions=3, sort=False)
    with precision(True), jax.disable_jit():
        plan = frame.consensus.plan(odd.model, by=odd.by, n_shards=3)
        model, layout = plan.model, plan.bindings.layout
        cut_up = dask.compute(*assign.shards(frame, layout, plan.assignment))
        table, rng = odd.frame, np.random.default_rng(0)
        codes = [pd.factorize(table[odd.by], sort=True)[0]] if odd.by else []
        sizes = len(table), tuple(int(c.max()) + 1 for c in codes)
        u = rng.uniform(-1, 1, model.dim)
        whole = {
            site: rng.uniform(-1, 1, shape) for site, shape in model.local_shapes(*sizes).items()
        }
        values = {
            column.argument: codes[0] if column.kind == "group" else table[column.column].to_numpy()
            for column in layout.columns
        }
        full = {**model.unravel(u), **whole}
        theirs = -float(potential_energy(odd.model, (), model.keywords(values, sizes[1]), full))
        keys = np.unique(table[odd.by]) if odd.by else np.empty(0)
        total = size = 0.0
        for shard in cut_up:
            data = pad(shard, size_of(shard))
            local = {}
            for site in model.local:
                at = np.searchsorted(keys, shard.labels[0][0])
                entries = np.moveaxis(whole[site.name], site.axis, 0)[at]
                local[site.name] = np.moveaxis(entries, 0, site.axis)
            factor = tempered(shard.rows / len(table), model.dim)
            value = float(log_density(model, u, local, data, factor))
            total, size = total + value, size + abs(value)
    return plan, total, theirs, size + 1.0
