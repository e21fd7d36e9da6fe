"""Whose effects come back, level by level: groups, sites, and the names of what these have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cluster.shards import Shards
from ..result.names import axis_labels, variable_name
from ..shard.local_sites import LocalSite, local_sites, returned
from .groups import Groups, groups_at

if TYPE_CHECKING:
    from ..plan.plan import Plan


class Level(NamedTuple):
    """A level whose effects are returned: its groups, and its sites."""

    level: int
    groups: Groups
    sites: tuple[LocalSite, ...]


def levels_of(plan: Plan, shards: Shards) -> tuple[Level, ...]:
    """Bring the keys of all groups that carry effects to the client, the outermost first."""
    taken = {"statistic", "chain", "draw"}
    sites = local_sites(plan.model)
    for site in sites:
        taken |= {variable_name(site.name), shrinkage_name(site), *entry_dims(site)}
    levels = [tier.level for tier in returned(plan.model)]
    return tuple(
        Level(level, groups, tuple(site for site in sites if site.level == level))
        for level, groups in zip(levels, groups_at(plan, shards, levels, taken), strict=True)
    )


def entry_dims(site: LocalSite) -> tuple[str, ...]:
    """Name the axes that a site has beside that of the groups."""
    names = [variable_name(dim or f"{site.name}_dim_{axis}") for axis, dim in enumerate(site.dims)]
    # No dimension may bear the name of a variable.
    return tuple(
        f"{name}_" if name == variable_name(site.name) else name
        for axis, name in enumerate(names)
        if axis != site.axis
    )


def entry_coords(plan: Plan, levels: Sequence[Level]) -> dict[str, Any]:
    """Label the axes that sites have beside that of the groups, where something names entries."""
    coords = {}
    for site in (site for its in levels for site in its.sites):
        axes = [axis for axis in range(len(site.dims)) if axis != site.axis]
        for axis, dim in zip(axes, entry_dims(site), strict=True):
            labels = axis_labels(plan.model, plan.labels, site.name, axis)
            if labels is not None:
                coords[dim] = labels
    return coords


def shrinkage_name(site: LocalSite) -> str:
    """Name the variable that holds the shrinkage of a site."""
    return f"{variable_name(site.name)}_shrinkage"
