"""How a plan reads: as tables, and as notes of what the user should know before running."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from ..model.model import ShardModel, Term
from ..shard.effects import effects_per_unit
from ..shard.nuts import NutsSettings
from ..shard_data import ROWS, Size, padded_sizes
from .tables import Table

if TYPE_CHECKING:
    from .plan import Plan

_SHARDING = {
    "whole": "one shard, the full model",
    "divisions": "whole partitions, no shuffle",
    "hash": "rows shuffled by group, groups kept whole",
    "rows": "rows dealt out, rows being exchangeable",
}


def tables_of(plan: Plan) -> list[Table]:
    """Lay a plan out in tables."""
    sites = ("site", "role", "shape", "support", "distribution", "in each shard")
    return [
        Table("fit", (), _summary(plan)),
        Table("arguments of the model", ("argument", "column", "receives"), _arguments(plan)),
        Table("sites", sites, _sites(plan)),
        Table("shards", (), _shards(plan)),
    ]


def notes_of(plan: Plan) -> list[str]:
    """Say what the user should know before running."""
    notes = options_without_effect(plan)
    if plan.n_shards == 1:
        return notes
    notes += [
        f"{site.name}: {site.prior} prior, {site.note}" for site in plan.model.shared if site.note
    ]
    if not plan.model.double:
        notes.append(
            "the model cannot be evaluated in double precision (it holds constants of single "
            "precision, perhaps), so log likelihoods are added up in single precision, which "
            "loses digits with many rows"
        )
    if plan.assignment.largest is not None:
        notes.append(largest_group_message(plan))
    if plan.model.coupled:
        notes.append(coupled_message(plan.model))
    return notes


def options_without_effect(plan: Plan) -> list[str]:
    """Name the options that were given and change nothing on the path taken."""
    options = plan.options
    idle: dict[str, str] = {}
    if "n_shards" in options.given and "rows_per_shard" in options.given:
        idle["rows_per_shard"] = "n_shards says how many shards there are"
    if plan.n_shards == 1:
        reason = "one shard is sampled by plain NUTS, and there is nothing to combine"
        idle |= dict.fromkeys(("method", "weights", "rounds", "correct", "shards_per_task"), reason)
    elif plan.method in ("consensus", "parametric"):
        idle["rounds"] = "one-shot methods have one round"
    elif plan.method == "laplace":
        reason = "Newton steps sample nothing"
        if not plan.uncorrected_because:
            reason += "; only if their correction fails do rounds of NUTS follow, which heed it"
        sampling = ("num_warmup", "target_accept_prob", "rounds", "weights")
        idle |= dict.fromkeys(sampling, reason)
    return [
        f"{name} has no effect: {reason}" for name, reason in idle.items() if name in options.given
    ]


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


# The tables


def _summary(plan: Plan) -> list[list[str]]:
    options = plan.options
    tempering = "none"
    if plan.n_shards > 1:
        weights = _range(plan.assignment.rows / plan.assignment.rows.sum(), "{:.3g}")
        tempering = f"priors, Jacobian included, to the power w = rows / all rows, {weights}"
    return [
        ["method", _method(plan)],
        ["sharding", _SHARDING[plan.assignment.kind]],
        ["tempering", tempering],
        ["sampling", _sampling(plan)],
        ["correction", _correction(plan)],
        ["result", f"{_chains(options.num_chains)} of {options.num_samples:,} draws"],
        ["shared dimensions", str(plan.model.dim)],
        ["precision", "float64" if plan.model.x64 else "float32"],
    ]


def _method(plan: Plan) -> str:
    if plan.n_shards == 1:
        return "NUTS on everything"
    if plan.method == "laplace":
        return "laplace, Newton steps on all shards, local effects integrated out"
    return f"{plan.method}, {plan.options.weights} weights"


def _sampling(plan: Plan) -> str:
    """Say what NUTS does on shards: the numbers that the fit will use."""
    chains = _chains(plan.options.num_chains)
    if plan.n_shards == 1:
        return f"{_transitions(plan.one_shot_nuts)}, {chains}"
    if plan.method in ("consensus", "parametric"):
        return f"{_transitions(plan.one_shot_nuts)}, {chains} a shard"
    if plan.method == "laplace":
        return "none of the shards"
    short = not plan.uncorrected_because
    most, nuts = plan.most_rounds(short=short), plan.round_nuts(short=short)
    rounds = f"up to {most} rounds" if most > 1 else "one round"
    return f"{rounds} of {_transitions(nuts)}, {chains} a shard"


def _transitions(nuts: NutsSettings) -> str:
    return f"{nuts.num_warmup} warm-up + {nuts.num_samples} draws"


def _chains(n: int) -> str:
    return f"{n} chain{'s' if n != 1 else ''}"


def _correction(plan: Plan) -> str:
    because = plan.uncorrected_because
    if because:
        return f"none, because {because}" if plan.n_shards > 1 else "none needed"
    q = effects_per_unit(plan.model)
    return "points weighted by the full posterior" + (
        f", {q} effect{'s' if q > 1 else ''} a group integrated out" if q else ""
    )


def _arguments(plan: Plan) -> list[list[str]]:
    bindings = plan.bindings
    kinds = {"group": "group codes, local to a shard", "value": "values"}
    rows = []
    for column in bindings.layout.columns:
        kind = kinds.get(column.kind, f"codes of {len(column.categories)} categories")
        rows.append([column.argument, str(column.column), kind])
    for name, level in bindings.counts.items():
        rows.append([name, "", f"number of groups of {plan.model.levels[level]}"])
    for name, count in bindings.constants.items():
        rows.append([name, "", f"{count}, the number of categories"])
    return rows + [[name, "", "its default"] for name in bindings.defaults]


def _sites(plan: Plan) -> list[list[str]]:
    model = plan.model
    tempered = "whole" if plan.n_shards == 1 else "to the power w"
    rows = []
    latent = {site.name for site in model.latents}
    for site in model.latents:
        shape = _shape(site.shape, site.level, site.axis, model)
        role, share = ("shared", tempered) if site.level is None else ("local", "whole")
        rows.append([site.name, role, shape, site.support, site.prior, share])
    for term in model.terms:
        if term.name not in latent and not term.name.endswith("_log_det"):
            role, share = ("prior", tempered) if term.level is None else ("observed", "whole")
            rows.append([term.name, role, _level(term, model), "", "", share])
    return rows + [[name, "deterministic", "", "", "", ""] for name in model.deterministics]


def _shards(plan: Plan) -> list[list[str]]:
    assignment, by = plan.assignment, plan.bindings.layout.by
    rows = [
        ["shards", f"{plan.n_shards:,}"],
        ["rows", f"{plan.survey.rows:,}"],
        ["rows a shard", _range(assignment.rows, "{:,.0f}")],
    ]
    if by:
        about = "" if plan.survey.groups_exact else "about "
        rows += [
            [f"groups of {by[0]}", f"{about}{plan.survey.n_groups:,}"],
            [f"groups of {by[0]} a shard", about + _range(assignment.groups, "{:,.0f}")],
        ]
    groups = assignment.groups.tolist() if by else [()] * plan.n_shards
    sizes = [
        Size(int(count), (n_groups,) if by else ())
        for count, n_groups in zip(assignment.rows, groups, strict=True)
    ]
    padded = padded_sizes(sizes)
    extra = sum(size.rows for size in padded) - int(assignment.rows.sum())
    share = extra / assignment.rows.sum()
    rows.append(["padding rows", f"{extra:,} ({share:.1%})" if extra else "none"])
    rows.append(["shapes to compile", str(len(set(padded)))])
    return rows


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
