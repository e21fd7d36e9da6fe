"""What is said of the effects of each group: statistics, and a normal distribution given u."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..cluster.mapreduce import Answer, each, map_reduce
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast
from ..model.model import ShardModel
from ..result.names import variable_name
from ..shard.engine import engine_of
from ..shard.local_sites import returned
from ..shard.summaries import STATISTICS, Summary
from ..shard_data import ShardData
from ..warned import warn
from .few_draws import representative
from .groups import free_name
from .levels import Level, entry_coords, entry_dims, shrinkage_name

if TYPE_CHECKING:
    from ..plan.plan import Plan

GIVEN_SHARED = "given_shared"
# Effective points, of weights so uneven, below which statistics of a group are not to be relied on.
_ENOUGH, _UNEVEN = 100, 0.5


class OfLevel(NamedTuple):
    """What a shard says of its groups at one level."""

    summary: Summary
    rows: np.ndarray  # (groups,)


class Report(NamedTuple):
    """What a shard says of its groups."""

    of_levels: tuple[OfLevel, ...]


class Variable(NamedTuple):
    """A variable of the result with one entry a group, and what of a shard's report it holds."""

    node: str  # below the group of local effects; empty for itself
    name: str
    dims: tuple[str, ...]
    axis: int  # of the groups
    long_name: str
    level: int  # its place among those that are returned
    part: str  # of a report of that level
    key: str

    def of(self, report: Report) -> np.ndarray:
        """Take the values of a shard's groups."""
        its = report.of_levels[self.level]
        if self.part == "rows":
            return its.rows
        part = getattr(its.summary, self.part)
        return np.asarray(part[self.key] if isinstance(part, dict) else getattr(part, self.key))


def summary(
    plan: Plan,
    shards: Shards,
    draws: np.ndarray,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
) -> dict[str, xr.Dataset]:
    """Bring to the client what is said of all groups, in the order of their keys."""
    few = representative(draws, plan.local_draws)
    reports = map_reduce(
        each(summarize),
        shards,
        [()] * shards.n,
        [broadcast((*shared, few))],
        _nothing,
        title="group effects",
    ).reports
    orders = [its.groups.order() for its in levels]
    nodes: dict[str, dict[str, Any]] = {"": {}}
    for its in variables_of(plan, levels, reports[0]):
        values = np.concatenate([its.of(report) for report in reports], axis=its.axis)
        values = np.take(values, orders[its.level], axis=its.axis)
        if its.node:
            values = values.astype(np.float32)
        told = {"long_name": its.long_name} if its.long_name else {}
        nodes.setdefault(its.node, {})[its.name] = (its.dims, values, told)
    coords: dict[str, Any] = {"statistic": list(STATISTICS), **entry_coords(plan, levels)}
    for its_level, order in zip(levels, orders, strict=True):
        coords |= its_level.groups.coords(order)
    local = xr.Dataset(nodes.pop(""), coords)
    qualities = [[quality_of(its) for its in report.of_levels] for report in reports]
    attributes = checked(plan, levels, qualities, len(few))
    given = {f"local/{node}": xr.Dataset(variables) for node, variables in nodes.items()}
    return {"local": local.assign_attrs(attributes), **given}


def variables_of(plan: Plan, levels: Sequence[Level], report: Report) -> tuple[Variable, ...]:
    """Say which variables there are, from what one shard says; warn of sites that are none."""
    found: list[Variable] = []
    for t, (its, told) in enumerate(zip(levels, report.of_levels, strict=True)):
        groups = its.groups
        for site in its.sites:
            if site.name not in told.summary.statistics:
                continue
            dims = (groups.dim, *entry_dims(site))
            name, less = variable_name(site.name), shrinkage_name(site)
            text = "share of the prior's variance that the group's own rows leave"
            found.append(
                Variable("", name, ("statistic", *dims), 1, "", t, "statistics", site.name)
            )
            found.append(Variable("", less, dims, 0, text, t, "shrinkage", site.name))
        text = "rows of the group"
        found.append(Variable("", groups.rows, (groups.dim,), 0, text, t, "rows", ""))
    _warn_of_missing(levels, {its.name for its in found})
    if plan.model.crossed:
        # Hundreds of slopes a group, most of them zero: only draws tell how they belong together.
        return tuple(found)
    taken = {dim for its in found for dim in its.dims}
    names: list[str] = []
    for wanted in ("effect", "effect_", "shared", "outer_effect"):
        names.append(free_name(wanted, {*taken, *names}))
    effect, other, shared, outer = names
    of_given = {
        "mean": ((effect,), "mean of the raw effects at that of the shared parameters"),
        "slope": ((effect, shared), "its change with the unconstrained shared parameters"),
        "widening": ((effect, shared), "change of the logarithms of sds with these"),
        "covariance": ((effect, other), "given the shared parameters, at their mean"),
        "outer": ((effect, outer), "change of the mean with raw effects of the levels outside"),
    }
    for t, (its, told) in enumerate(zip(levels, report.of_levels, strict=True)):
        dim = its.groups.dim
        node = f"{GIVEN_SHARED}/{given_node(dim)}" if len(levels) > 1 else GIVEN_SHARED
        for name, (dims, text) in of_given.items():
            if getattr(told.summary.given_shared, name).size:
                found.append(Variable(node, name, (dim, *dims), 0, text, t, "given_shared", name))
    return tuple(found)


def given_node(dim: str) -> str:
    """Name the node of a level's normal distributions, where there are several."""
    return f"of_{dim}"


class Quality(NamedTuple):
    """How well the effects of some groups are known."""

    efficiency: float  # the least
    effective: float  # the least number of points, as good
    thin: int  # groups whose statistics are not to be relied on
    lost: float  # groups whose mode was not found


def quality_of(told: OfLevel) -> Quality:
    """Sum up how well the effects of a shard's groups are known."""
    efficiency, effective = told.summary.efficiency, told.summary.effective
    thin = np.sum((effective < _ENOUGH) & (efficiency < _UNEVEN))
    least = float(efficiency.min(initial=1.0)), float(effective.min(initial=np.inf))
    return Quality(*least, int(thin), float(told.summary.modes_not_found))


def checked(
    plan: Plan, levels: Sequence[Level], qualities: Sequence[Sequence[Quality]], draws: int
) -> dict[str, Any]:
    """Say how well effects are known, and warn where that is not enough; `qualities` of shards."""
    worst_lost, efficiency, effective = 0.0, np.inf, np.inf
    for level, of_shards in zip(levels, zip(*qualities, strict=True), strict=True):
        n = level.groups.n
        least = min(its.efficiency for its in of_shards)
        fewest = min(its.effective for its in of_shards)
        thin, lost = sum(its.thin for its in of_shards), sum(its.lost for its in of_shards)
        if lost / n > plan.options.verdict.modes_not_found:
            warn(
                f"the mode of the effects of {lost / n:.1%} of the groups was not found, so that "
                "what is said of them may be wrong",
            )
        if thin:
            warn(
                f"the effects of {thin:,} of {n:,} groups are far from any distribution that they "
                f"were looked for in: their statistics rest on as few as {fewest:.0f} effective "
                f"points; raise local_draws, now {draws}",
            )
        efficiency, effective = min(efficiency, least), min(effective, fewest)
        worst_lost = max(worst_lost, lost / n)
    return {
        "draws": draws,
        "least_efficiency": float(efficiency),
        "least_effective": float(effective),
        "modes_not_found": float(worst_lost),
    }


def _warn_of_missing(levels: Sequence[Level], present: set[str]) -> None:
    missing = [s.name for its in levels for s in its.sites if variable_name(s.name) not in present]
    if missing:
        warn(
            f"{', '.join(missing)}: left out of the summary, since the value for one group depends "
            "on the effects of groups within it; local='draws' has it",
        )


def summarize(data: ShardData, shared: tuple[ShardModel, np.ndarray, int, np.ndarray]) -> Answer:
    """Summarize the effects of one shard's groups; runs on a worker."""
    return Answer(None, report_of(data, shared))


def report_of(data: ShardData, shared: tuple[ShardModel, np.ndarray, int, np.ndarray]) -> Report:
    """Say what a shard says of its groups."""
    model, center, n_modes, draws = shared
    summaries = engine_of(model).summaries(data, draws, center, n_modes)
    levels = [tier.level for tier in returned(model)]
    pairs = zip(summaries, levels, strict=True)
    return Report(tuple(OfLevel(s, _rows_of(model, data, level)) for s, level in pairs))


def _rows_of(model: ShardModel, data: ShardData, level: int) -> np.ndarray:
    argument = next(name for name, its in model.codes.items() if its == level)
    counts = np.bincount(
        np.asarray(data.arguments[argument])[np.asarray(data.rows)],
        minlength=len(data.groups[level]),
    )
    return np.asarray(counts[: int(np.sum(data.groups[level]))])


def _nothing(_: list[None]) -> None:
    return None
