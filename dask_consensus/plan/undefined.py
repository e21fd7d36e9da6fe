"""Whether the model has a density on all rows, asked before anything expensive is."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cluster.mapreduce import Answer, each, map_reduce
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..frame.arrays import matrices_of
from ..frame.labels import readable
from ..shard.undefined import POINTS, Undefined, undefined_rows
from ..shard_data import ShardData
from .plan import Plan

_NAMED = 3  # shards, and groups of each, that are named
_VALUES = 20  # of a row, that are named


def check_defined(plan: Plan, shards: Shards) -> None:
    """Refuse rows whose density is not a number, wherever in the prior it is asked for.

    Raises
    ------
    ValueError
        Naming the sites, the shards, the groups and a row.
    """
    told: list[Undefined | None] = map_reduce(
        each(_asked), shards, [()] * shards.n, [broadcast(plan.model)], _nothing, title="densities"
    ).reports
    found = {k: undefined for k, undefined in enumerate(told) if undefined is not None}
    if not found:
        return
    sites = sorted({site for undefined in found.values() for site in undefined.sites})
    rows = sum(len(undefined.rows) for undefined in found.values())
    places = [_place(plan, shards, k, found[k]) for k in list(found)[:_NAMED]]
    more = f"\n- and {len(found) - _NAMED} more shards" if len(found) > _NAMED else ""
    raise ValueError(
        f"the density of {', '.join(map(repr, sites))} is not a number in {rows:,} of "
        f"{plan.survey.rows:,} rows, at each of {POINTS} points, near zero and "
        "drawn from the prior:\n- "
        + "\n- ".join(places)
        + more
        + "\nA value lies outside the support of its distribution, or the model takes the "
        "logarithm or square root of a negative number, or divides by zero. Drop these rows, or "
        "change the model there (jnp.where on its arguments)"
    )


def _place(plan: Plan, shards: Shards, number: int, undefined: Undefined) -> str:
    """Say which rows of a shard they are."""
    columns = matrices_of(plan.bindings.layout)
    held = [
        f"{column.label}={value!r}"
        for name, values in undefined.values.items()
        for column, value in zip(columns[name], np.ravel(values).tolist(), strict=True)
    ]
    values = ", ".join(held[:_VALUES]) + (", ..." if len(held) > _VALUES else "")
    of, groups = shards.sizes[number].rows, _groups(plan, shards, number, undefined)
    return f"shard {number}: {len(undefined.rows):,} of {of:,} rows{groups}; the first has {values}"


def _groups(plan: Plan, shards: Shards, number: int, undefined: Undefined) -> str:
    """Name the groups they are of, where their keys are kept."""
    layout, codes = plan.bindings.layout, undefined.codes
    if not len(codes):
        return ""
    n = f", of {len(codes):,} group{'s' * (len(codes) > 1)} of {layout.by[0]!r}"
    if not shards.labels:
        return n
    (labels,) = compute([shards.labels[number]])
    kinds = [found.what for found in plan.survey.found[0]]
    keys = readable(labels[0][0], plan.survey.forms(layout)[0], kinds, plan.key_dtypes[0])
    some = ", ".join(str(key) for key in np.asarray(keys)[codes[:_NAMED]])
    return f"{n} ({some}{', ...' if len(codes) > _NAMED else ''})"


# Runs on a worker


def _asked(data: ShardData, model: Any) -> Answer:
    return Answer(None, undefined_rows(data, model))


def _nothing(_: list[None]) -> None:
    return None
