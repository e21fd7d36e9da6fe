"""Effects of all groups, given the posterior of the shared parameters: one pass over the shards.

What each shard says of its groups is in :mod:`..shard.local_draws`; here draws of the shared
parameters are chosen, answers are gathered, or written where they arise (:mod:`.store`), and
labelled by the values of the key columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..cluster.journal import recalled
from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..combination import gaussian
from ..correction.state import Correction
from ..model.model import ShardModel
from ..result.names import variable_name
from ..shard.effects import unit_level
from ..shard.engine import engine_of
from ..shard.local_draws import (
    STATISTICS,
    GivenShared,
    LocalSite,
    Summary,
    draw_effects,
    local_sites,
    look_at,
    summarize,
)
from ..shard_data import ShardData
from .groups import Groups, free_name, groups_at
from .store import DrawStore

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ..plan.plan import Plan

GIVEN_SHARED = "given_shared"
# Effective points, of weights so uneven, below which statistics of a group are not to be relied on.
_ENOUGH, _UNEVEN = 100, 0.5
_TRIED = 16  # draws that tell how effects are to be drawn
_MOST_IN_MEMORY = 2**28  # bytes of draws that are brought to the client without a store


def local_effects(
    plan: Plan, shards: Shards, draws: np.ndarray, correction: Correction | None
) -> dict[str, xr.Dataset]:
    """Find the effects of all groups at some of the draws ``(chains, draws, d)``.

    Returns
    -------
    dict of Datasets
        ``local``: every site with one entry a group, with dims (statistic, <key>, ...) of a summary
        or (chain, draw, <key>, ...) of draws. Beside a summary, ``local/given_shared``: the normal
        distribution of the raw effects of each group given the shared parameters. Empty where
        :attr:`Plan.no_local_because` says why.
    """
    if plan.no_local_because:
        return {}
    groups = groups_of(plan, shards)
    center = draws.reshape(-1, draws.shape[-1]).mean(axis=0)
    shared = (plan.model, center, _n_modes(plan, shards, center, correction))
    if plan.options.local == "draws":
        return {"local": _draws(plan, shards, draws, groups, shared)}
    return _summary(plan, shards, draws, groups, shared)


def check_memory(plan: Plan) -> None:
    """Refuse more draws than a client should be sent, before anything is sampled.

    Raises
    ------
    ValueError
        Saying how many they are, and what to do.
    """
    options = plan.options
    if options.local != "draws" or options.store is not None or plan.no_local_because:
        return
    chains, groups = options.num_chains, plan.survey.n_groups
    draws = chains * min(options.num_samples, max(1, plan.local_draws // chains))
    size = 4 * draws * groups * sum(math.prod(site.entry) for site in local_sites(plan.model))
    if size > _MOST_IN_MEMORY:
        raise ValueError(
            f"{draws:,} draws of the effects of {groups:,} groups are "
            f"{size / 2**20:,.0f} MiB, too much to be brought to the client: pass store=, a folder "
            "or URL that the workers can write to, or fewer local_draws"
        )


def groups_of(plan: Plan, shards: Shards) -> Groups:
    """Bring the keys of all groups that carry effects to the client."""
    taken = {"statistic", "chain", "draw"}
    for site in local_sites(plan.model):
        taken |= {variable_name(site.name), _shrinkage(site), *entry_dims(site)}
    return groups_at(plan, shards, unit_level(plan.model), taken)


def chosen(draws: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Take evenly spaced draws of each chain: which, and they themselves, ``(chains, n, d)``."""
    chains, n = draws.shape[:2]
    each_ = min(n, max(1, wanted // chains))
    which = np.unique(np.linspace(0, n - 1, each_).round().astype(int))
    return which, draws[:, which]


def representative(draws: np.ndarray, wanted: int) -> np.ndarray:
    """Take few draws ``(n, d)`` that have the mean and the covariance of all of them."""
    flat = draws.reshape(-1, draws.shape[-1])
    _, few = chosen(draws, wanted)
    few = few.reshape(-1, draws.shape[-1])
    if len(few) < len(flat) and len(few) > 2 * flat.shape[1] + 1:
        try:
            return gaussian.matched(few, *gaussian.moments(flat))
        except np.linalg.LinAlgError:  # draws that do not span the space
            return few
    return few + flat.mean(axis=0) - few.mean(axis=0)


# Summaries


def _summary(
    plan: Plan, shards: Shards, draws: np.ndarray, groups: Groups, shared: tuple[Any, ...]
) -> dict[str, xr.Dataset]:
    few = representative(draws, plan.local_draws)
    reports = map_reduce(
        each(_summarize),
        shards,
        [()] * shards.n,
        [broadcast((*shared, few))],
        _nothing,
        title="group effects",
    ).reports
    order = groups.order()
    variables: dict[str, Any] = {}
    for site in local_sites(plan.model):
        dims = (groups.dim, *entry_dims(site))
        summaries = np.concatenate([r.summary.statistics[site.name] for r in reports], axis=1)
        shrunk = np.concatenate([r.summary.shrinkage[site.name] for r in reports])
        name = variable_name(site.name)
        variables[name] = (("statistic", *dims), summaries[:, order])
        variables[_shrinkage(site)] = (
            dims,
            shrunk[order],
            {"long_name": "share of the prior's variance that the group's own rows leave"},
        )
    rows = np.concatenate([report.rows for report in reports])
    efficiency = np.concatenate([report.summary.efficiency for report in reports])
    variables[groups.rows] = (groups.dim, rows[order], {"long_name": "rows of the group"})
    lost = sum(report.summary.modes_not_found for report in reports) / groups.n
    if lost > plan.options.verdict.modes_not_found:
        warnings.warn(
            f"the mode of the effects of {lost:.1%} of the groups was not found, so that what is "
            "said of them may be wrong",
            UserWarning,
            stacklevel=5,
        )
    effective = np.concatenate([report.summary.effective for report in reports])
    thin = int(np.sum((effective < _ENOUGH) & (efficiency < _UNEVEN)))
    if thin:
        warnings.warn(
            f"the effects of {thin:,} of {groups.n:,} groups are far from any distribution that "
            f"they were looked for in: their statistics rest on as few as {effective.min():.0f} "
            f"effective points; raise local_draws, now {len(few)}",
            UserWarning,
            stacklevel=5,
        )
    attributes = {
        "draws": len(few),
        "least_efficiency": float(efficiency.min()),
        "least_effective": float(effective.min()),
        "modes_not_found": float(lost),
    }
    coords = {"statistic": list(STATISTICS), **groups.coords(order)}
    local = xr.Dataset(variables, coords, attributes)
    given = [report.summary.given_shared for report in reports]
    return {"local": local, f"local/{GIVEN_SHARED}": _given_shared(given, groups, order, local)}


def _given_shared(
    given: Sequence[GivenShared], groups: Groups, order: np.ndarray, local: xr.Dataset
) -> xr.Dataset:
    """Lay out the normal distributions of raw effects, in the order of the groups."""
    names: list[str] = []
    for wanted in ("effect", "effect_", "shared"):
        names.append(free_name(wanted, {*map(str, local.dims), *names}))
    effect, other, shared = names
    told = {
        "mean": ((effect,), "mean of the raw effects at that of the shared parameters"),
        "slope": ((effect, shared), "its change with the unconstrained shared parameters"),
        "widening": ((effect, shared), "change of the logarithms of sds with these"),
        "covariance": ((effect, other), "given the shared parameters, at their mean"),
    }
    variables = {}
    for name, (dims, text) in told.items():
        values = np.concatenate([getattr(one, name) for one in given])[order].astype(np.float32)
        variables[name] = ((groups.dim, *dims), values, {"long_name": text})
    return xr.Dataset(variables)


class _Report(NamedTuple):
    summary: Summary
    rows: np.ndarray  # (groups,)


def _summarize(data: ShardData, shared: tuple[ShardModel, np.ndarray, int, np.ndarray]) -> Answer:
    """Summarize the effects of one shard's groups; runs on a worker."""
    model, center, n_modes, draws = shared
    return Answer(
        None, _Report(summarize(model, data, draws, center, n_modes), _rows_of(model, data))
    )


def _rows_of(model: ShardModel, data: ShardData) -> np.ndarray:
    level = unit_level(model)
    argument = next(name for name, its in model.codes.items() if its == level)
    counts = np.bincount(
        np.asarray(data.arguments[argument])[np.asarray(data.rows)],
        minlength=len(data.groups[level]),
    )
    return np.asarray(counts[: int(np.sum(data.groups[level]))])


# Draws


class _Kept(NamedTuple):
    """Draws of the shared parameters for each of which one of every group's effects is drawn."""

    draw: np.ndarray  # (n,) their numbers among those of a chain
    shared: np.ndarray  # (chains, n, d)

    def numbers(self, chain: int) -> np.ndarray:
        """Name the draws of a chain, for their random numbers."""
        return chain * len(self.draw) + np.arange(len(self.draw))


def _draws(
    plan: Plan, shards: Shards, draws: np.ndarray, groups: Groups, shared: tuple[Any, ...]
) -> xr.Dataset:
    options, sites = plan.options, local_sites(plan.model)
    kept = _Kept(*chosen(draws, plan.local_draws))
    chains, n = kept.shared.shape[:2]
    dims = {site.name: ("chain", "draw", groups.dim, *entry_dims(site)) for site in sites}
    shapes = {site.name: (chains, n, groups.n, *site.entry) for site in sites}
    coords = {"chain": np.arange(chains), "draw": kept.draw}
    if options.store is not None:
        coords |= groups.coords(np.arange(groups.n))
        store = DrawStore(options.store)
        block = store.create(dims, shapes, coords)
        _write_draws(plan, shards, kept, shared, store, block)
        return store.opened()
    order = groups.order()
    reports = map_reduce(
        each(_draw),
        shards,
        [(k,) for k in range(shards.n)],
        [broadcast((*shared, options.seed, kept))],
        _nothing,
        title="group effects",
    ).reports
    variables = {}
    for site in sites:
        values = np.concatenate([report[site.name] for report in reports], axis=1)[:, order]
        variables[variable_name(site.name)] = (dims[site.name], values.reshape(shapes[site.name]))
    return xr.Dataset(variables, coords | groups.coords(order))


def _write_draws(
    plan: Plan,
    shards: Shards,
    kept: _Kept,
    shared: tuple[Any, ...],
    store: DrawStore,
    block: int,
) -> None:
    """Draw, and let workers write, some draws of a chain at a time."""
    chains, n = kept.shared.shape[:2]
    level = unit_level(plan.model)
    starts = np.cumsum([0, *(size.groups[level] for size in shards.sizes)])
    looks: Sequence[int | None] = [None] * shards.n
    for chain in range(chains):
        for first in range(0, n, block):
            some = slice(first, min(first + block, n))
            title = f"group effects, {chain * n + some.stop:,} of {chains * n:,} draws"
            given = [broadcast((*shared, plan.options.seed, kept)), broadcast((chain, some))]
            write = partial(store.write, starts=starts, chain=chain, draws=some)
            written: _Written = recalled(
                title,
                ["draws written", list(shards.data), looks, given],
                partial(_write_block, shards, looks, given, title, write),
                partial(_holds, store, chain, some),
            )
            looks = written.looks


class _Written(NamedTuple):
    """What is known of draws that were written."""

    looks: list[int]  # how closely each shard was looked at
    checksums: list[str]  # of the chunks


def _write_block(
    shards: Shards,
    looks: Sequence[int | None],
    given: Sequence[Delayed],
    title: str,
    write: Callable[[Sequence[Delayed]], list[str]],
) -> _Written:
    mapped = map_reduce(
        each(_draw_and_keep),
        shards,
        list(enumerate(looks)),
        given,
        _nothing,
        title=title,
        keep_states=True,
        recorded=False,
    )
    return _Written(mapped.reports, write(mapped.states))


def _holds(store: DrawStore, chain: int, some: slice, written: _Written) -> bool:
    return store.holds(chain, some, written.checksums)


_Shared = tuple[ShardModel, np.ndarray, int, int, _Kept]
"""The model, the center, modes of a group, the seed, and all draws of the shared parameters."""


def _draw(data: ShardData, shard: int, shared: _Shared) -> Answer:
    """Draw the effects of one shard's groups; runs on a worker."""
    look = _look(data, shared)
    chains = range(len(shared[-1].shared))
    parts = [_drawn(data, shard, look, shared, chain, slice(None)) for chain in chains]
    return Answer(None, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def _draw_and_keep(
    data: ShardData,
    shard: int,
    look: int | None,
    shared: _Shared,
    which: tuple[int, slice],
) -> Answer:
    """Draw the effects of one shard's groups, and leave them where they are; runs on a worker."""
    if look is None:
        look = _look(data, shared)
    return Answer(None, look, _drawn(data, shard, look, shared, *which))


def _look(data: ShardData, shared: _Shared) -> int:
    """Tell what all draws of a shard are made with, whichever are made together."""
    model, center, n_modes, _, kept = shared
    return look_at(model, data, kept.shared[0, :_TRIED], center, n_modes)


def _drawn(
    data: ShardData, shard: int, look: int, shared: _Shared, chain: int, some: slice
) -> dict[str, np.ndarray]:
    """Draw at some draws of one chain; single precision is more than draws need."""
    model, center, n_modes, seed, kept = shared
    named = (seed, shard, kept.numbers(chain)[some])
    drawn = draw_effects(model, data, kept.shared[chain, some], center, n_modes, named, look=look)
    return {name: value.astype(np.float32) for name, value in drawn.items()}


# Names, and what else both need


def entry_dims(site: LocalSite) -> tuple[str, ...]:
    """Name the axes that a site has beside that of the groups."""
    names = [variable_name(dim or f"{site.name}_dim_{axis}") for axis, dim in enumerate(site.dims)]
    # No dimension may bear the name of a variable.
    return tuple(
        f"{name}_" if name == variable_name(site.name) else name
        for axis, name in enumerate(names)
        if axis != site.axis
    )


def _shrinkage(site: LocalSite) -> str:
    return f"{variable_name(site.name)}_shrinkage"


def _n_modes(plan: Plan, shards: Shards, center: np.ndarray, correction: Correction | None) -> int:
    """Say around how many modes of a group to look: as the correction did, or a shard has."""
    if correction is not None:
        return int(correction.modes)
    asked = on_worker(shards.execution, _most_modes, shards.data[0], plan.model, center[None])
    return int(compute([asked])[0])


def _most_modes(data: ShardData, model: ShardModel, points: np.ndarray) -> int:
    return engine_of(model).most_modes(data, points)


def _nothing(_: list[None]) -> None:
    return None
