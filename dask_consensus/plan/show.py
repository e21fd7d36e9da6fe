"""How a plan reads: as tables, and as notes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from ..model.model import ShardModel, Term
from ..shard_data import ROWS

if TYPE_CHECKING:
    from .plan import Plan


def warn_before_sampling(plan: Plan) -> None:
    """Warn of what will cost accuracy or time whatever the draws are."""
    if plan.n_shards == 1:
        return
    if plan.assignment.largest is not None:
        warnings.warn(largest_group_message(plan), UserWarning, stacklevel=4)
    if plan.model.coupled:
        warnings.warn(coupled_message(plan.model), UserWarning, stacklevel=4)


def largest_group_message(plan: Plan) -> str:
    """Say which group is larger than a shard, and what that costs."""
    assert plan.assignment.largest is not None
    label, rows = plan.assignment.largest
    mean, most = plan.survey.rows / plan.n_shards, plan.survey.rows // rows
    return (
        f"group {label!r} of {plan.bindings.layout.by[0]!r} has {rows:,} rows, more than the "
        f"{mean:,.0f} rows of a balanced shard; a group is never split, so one shard is larger and "
        f"takes longer. No more than {most} shard{'s' if most != 1 else ''} can be balanced."
    )


def coupled_message(model: ShardModel) -> str:
    """Say that no product over shards is the full model's posterior."""
    return (
        f"the density of {', '.join(model.coupled)} in one group changes with other groups' rows "
        "or effects, so groups are not independent given the shared sites and the shards cannot "
        "give the full model's posterior. Centre and scale columns beforehand, over the whole "
        "frame; or fit with n_shards=1."
    )


def _range(values: np.ndarray, pattern: str) -> str:
    low, high = pattern.format(values.min()), pattern.format(values.max())
    return low if low == high else f"{low} to {high}"


def _shape(shape: tuple[int, ...], level: int | None, axis: int, model: ShardModel) -> str:
    entries = [str(size) for size in shape]
    if level is not None:
        entries[axis] = "rows" if level == ROWS else model.levels[level]
    return f"({', '.join(entries)})"


def _level(term: Term, model: ShardModel) -> str:
    if term.level is None:
        return ""
    return "(rows)" if term.level == ROWS else f"({model.levels[term.level]})"
