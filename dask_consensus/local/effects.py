"""Effects of all groups, given the posterior of the shared parameters: one pass over the shards.

What each shard says of its groups is in :mod:`..shard.local_draws`; here draws of the shared
parameters are chosen, answers are gathered, or written where they arise (:mod:`.store`), and
labelled by the values of the key columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..cluster.client import say
from ..cluster.journal import recalled
from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..correction.state import Correction
from ..model.model import ShardModel
from ..result.names import variable_name
from ..shard.engine import engine_of
from ..shard.local_sites import local_sites, returned
from ..shard_data import ShardData
from .few_draws import chosen
from .levels import Level, entry_coords, entry_dims, levels_of
from .store import DrawStore, writing
from .summary import summary
from .written_summary import written_summary

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ..plan.plan import Plan

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
        or (chain, draw, <key>, ...) of draws; of several levels each has a key of its own. Beside a
        summary, ``local/given_shared``: the normal distribution of the raw effects of each group
        given the shared parameters; of several levels in a node of each. Empty where
        :attr:`Plan.no_local_because` says why.
    """
    if plan.no_local_because:
        say(f"none, because {plan.no_local_because}")
        return {}
    levels = levels_of(plan, shards)
    center = draws.reshape(-1, draws.shape[-1]).mean(axis=0)
    shared = (plan.model, center, _n_modes(plan, shards, center, correction))
    if plan.options.local == "draws":
        return {"local": _draws(plan, shards, draws, levels, shared)}
    many = max(its.groups.n for its in levels) > plan.most_groups
    if many and plan.options.store is not None:
        return written_summary(plan, shards, draws, levels, shared)
    return summary(plan, shards, draws, levels, shared)


def check_memory(plan: Plan) -> None:
    """Refuse more than a client should be sent, before anything is sampled.

    Of inner groups it is not known before there are shards how many there are.

    Raises
    ------
    ValueError
        Saying how many they are, and what to do.
    ImportError
        If they are to be written, and there is no Zarr.
    """
    options = plan.options
    if plan.no_local_because:
        return
    if options.store is not None:
        if max(plan.groups_at(tier.level) for tier in returned(plan.model)) > plan.most_groups:
            _check_zarr()
        return
    if options.local != "draws":
        return
    chains = options.num_chains
    draws = chains * min(options.num_samples, max(1, plan.local_draws // chains))
    sites = local_sites(plan.model)
    numbers = sum(math.prod(site.entry) * plan.groups_at(site.level) for site in sites)
    groups = max(plan.groups_at(tier.level) for tier in returned(plan.model))
    if 4 * draws * numbers > _MOST_IN_MEMORY:
        raise ValueError(
            f"{draws:,} draws of the effects of {groups:,} groups are "
            f"{4 * draws * numbers / 2**20:,.0f} MiB, too much to be brought to the client: pass "
            "store=, a folder or URL that the workers can write to, or fewer local_draws"
        )


def _check_zarr() -> None:
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "effects of so many groups are written to Zarr: install dask_consensus[store], or zarr"
        ) from error


# Draws


class _Kept(NamedTuple):
    """Draws of the shared parameters for each of which one of every group's effects is drawn."""

    draw: np.ndarray  # (n,) their numbers among those of a chain
    shared: np.ndarray  # (chains, n, d)

    def numbers(self, chain: int) -> np.ndarray:
        """Name the draws of a chain, for their random numbers."""
        return chain * len(self.draw) + np.arange(len(self.draw))


def _draws(
    plan: Plan,
    shards: Shards,
    draws: np.ndarray,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
) -> xr.Dataset:
    options = plan.options
    kept = _Kept(*chosen(draws, plan.local_draws))
    chains, n = kept.shared.shape[:2]
    dims: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for _, groups, sites in levels:
        dims |= {s.name: ("chain", "draw", groups.dim, *entry_dims(s)) for s in sites}
        shapes |= {s.name: (chains, n, groups.n, *s.entry) for s in sites}
    coords = {"chain": np.arange(chains), "draw": kept.draw, **entry_coords(plan, levels)}
    if options.store is not None:
        for _, groups, _ in levels:
            coords |= groups.coords(np.arange(groups.n))
        store = DrawStore(options.store)
        with writing("draws", options.store):
            block = store.create(dims, shapes, coords)
            _write_draws(plan, shards, kept, levels, shared, store, block)
        return store.opened()
    reports = map_reduce(
        each(_draw),
        shards,
        [(k,) for k in range(shards.n)],
        [broadcast((*shared, options.seed, kept))],
        _nothing,
        title="group effects",
    ).reports
    variables = {}
    for _, groups, sites in levels:
        order = groups.order()
        coords |= groups.coords(order)
        for site in sites:
            values = np.concatenate([report[site.name] for report in reports], axis=1)[:, order]
            its = variable_name(site.name)
            variables[its] = (dims[site.name], values.reshape(shapes[site.name]))
    return xr.Dataset(variables, coords)


def _write_draws(
    plan: Plan,
    shards: Shards,
    kept: _Kept,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
    store: DrawStore,
    block: int,
) -> None:
    """Draw, and let workers write, some draws of a chain at a time."""
    chains, n = kept.shared.shape[:2]
    starts = {
        groups.dim: np.cumsum([0, *(size.groups[level] for size in shards.sizes)])
        for level, groups, _ in levels
    }
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
    return engine_of(model).look(data, kept.shared[0, :_TRIED], center, n_modes)


def _drawn(
    data: ShardData, shard: int, look: int, shared: _Shared, chain: int, some: slice
) -> dict[str, np.ndarray]:
    """Draw at some draws of one chain; single precision is more than draws need."""
    model, center, n_modes, seed, kept = shared
    named = (seed, shard, kept.numbers(chain)[some])
    u = kept.shared[chain, some]
    drawn = engine_of(model).draws(data, u, center, n_modes, named, look)
    return {name: value.astype(np.float32) for name, value in drawn.items()}


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
