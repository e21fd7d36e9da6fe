"""How a plan reads: as tables, and as notes of what the user should know before running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..frame.arrays import Column, Layout, matrices_of
from ..frame.survey import far_columns
from ..shard.tiers import tiers
from ..shard_data import ROWS, Size, padded_sizes
from ..warned import warn
from .tables import Table

if TYPE_CHECKING:
    from .plan import Plan

_SHARDING = {
    "whole": "all rows in one shard, the full model",
    "divisions": "whole partitions, no shuffle",
    "hash": "rows shuffled by group, groups kept whole",
    "rows": "rows dealt out, rows being exchangeable",
}
_MOST_CODES = 8  # that are listed
_WIDEST = 80  # text of a prior


def tables_of(plan: Plan) -> list[Table]:
    """Lay a plan out in tables."""
    sites = ("site", "role", "shape", "support", "distribution", "in each shard")
    return [
        *_formula(plan),
        Table("fit", (), _summary(plan)),
        Table("arguments of the model", ("argument", "column", "receives"), _arguments(plan)),
        Table("sites", sites, _sites(plan)),
        Table("shards", (), _shards(plan)),
    ]


def notes_of(plan: Plan) -> list[str]:
    """Say what the user should know before running."""
    notes = options_without_effect(plan)
    if plan.model.dropped:
        notes.append(
            f"{', '.join(plan.model.dropped)}: deterministic sites of rows, or of all groups "
            "together, are not in the result; ddf.consensus.predict(tree, model, kind='expected') "
            "sets the expected response beside each row"
        )
    if plan.survey.unanswered:
        told = ", ".join(
            columns_told(plan.bindings.layout)[r] for r in plan.bindings.layout.responses
        )
        notes.append(
            f"{_count(plan.survey.unanswered, 'row')} without a value of {told}: left out of the "
            "fit; `predict` says what would be observed there"
        )
    if plan.method == "nuts":
        return notes + _costs(plan)
    notes += [
        f"{site.name}: {site.prior} prior, {site.note}"
        for site in plan.model.shared
        if site.note and plan.n_shards > 1  # in one shard nothing is tempered
    ]
    if not plan.model.double:
        notes.append(
            "the model cannot be evaluated in double precision (it holds constants of single "
            "precision, perhaps), so log likelihoods are added up in single precision, which "
            "loses digits with many rows"
        )
    if plan.model.foreign and not plan.no_local_because:
        notes.append(
            f"{', '.join(plan.model.foreign)}: left out of the effects of groups, since the value "
            "for one group changes with the other groups, of which a shard has only some"
        )
    if plan.model.crossed:
        size = sum(one.size for one in plan.model.crossed)
        notes.append(
            f"{', '.join(one.site for one in plan.model.crossed)}: {size:,} effects that meet in "
            f"all shards are integrated out, given the other {plan.model.dim_without_crossed} "
            "shared parameters, by Laplace's method and its next order; at some hundred values of "
            f"these each shard sends a matrix of {size**2 * 8 / 2**20:,.1f} MiB"
        )
    of_rows = [site.name for site in plan.model.local if site.level == ROWS]
    if of_rows and not plan.no_local_because:
        notes.append(
            f"{', '.join(of_rows)}: effects of rows are integrated out, and have no labels in the "
            "tree: predict(tree, model, kind='effects') sets them beside each row"
        )
    if plan.fits_one_shard:
        notes.append(
            f"all {plan.survey.rows:,} rows fit in one shard (rows_per_shard is "
            f"{plan.options.rows_per_shard:,}), where the same is done without moving or combining "
            "anything: leave n_shards out"
        )
    return notes + _costs(plan)


def options_without_effect(plan: Plan) -> list[str]:
    """Name the options that were given and change nothing on the path taken."""
    options = plan.options
    idle: dict[str, str] = {}
    if "n_shards" in options.given and "rows_per_shard" in options.given:
        idle["rows_per_shard"] = "n_shards says how many shards there are"
    if options.method == "nuts":
        idle["rows_per_shard"] = "NUTS samples all rows together"
    if plan.n_shards == 1:
        reason = "one shard holds all rows, and there is nothing to combine"
        idle |= dict.fromkeys(("weights", "rounds", "shards_per_task"), reason)
    if plan.method == "nuts":
        idle["correct"] = "NUTS samples all rows, and there is nothing to correct"
    elif plan.method in ("consensus", "parametric"):
        idle["rounds"] = "one-shot methods have one round"
    elif plan.method == "laplace":
        reason, alone = "Newton steps sample nothing", plan.n_shards == 1
        if plan.gives_up or not (alone or plan.uncorrected_because):
            follows = "does NUTS on all rows follow" if alone else "do rounds of NUTS follow"
            reason += f"; only if their correction fails {follows}, which heeds it"
        sampling = ("num_warmup", "target_accept_prob", *(() if alone else ("rounds", "weights")))
        idle |= dict.fromkeys(sampling, reason)
    if plan.no_local_because:
        reason = f"there are no effects of groups, because {plan.no_local_because}"
        idle["local_draws"] = reason
    if plan.obstacle and options.correct is False and plan.method != "nuts":
        idle["correct"] = f"there is no correction in any case, because {plan.obstacle}"
    return [
        f"{name} has no effect: {reason}" for name, reason in idle.items() if name in options.given
    ]


def not_run(lazy: object, what: str) -> str:
    """Say of a lazy fit that it is no result, and how it becomes one."""
    name = type(lazy).__name__
    return f"<{name} of {what}: nothing has run; .plan() says what it would do, .compute() runs it>"


def warn_before_sampling(plan: Plan) -> None:
    """Warn of what will cost accuracy or time whatever the draws are."""
    for message in _costs(plan):
        warn(message)


def _costs(plan: Plan) -> list[str]:
    """Say what lies far off, which group is larger than a shard, where groups are coupled."""
    messages = far_columns(plan.survey, plan.bindings.layout)
    if plan.n_shards == 1:
        return messages
    if plan.assignment.largest is not None:
        label, rows = plan.assignment.largest
        mean, most = plan.survey.rows / plan.n_shards, plan.survey.rows // rows
        messages.append(
            f"group {label!r} of {plan.bindings.layout.by[0]!r} has {rows:,} rows, more than the "
            f"{mean:,.0f} rows of a balanced shard; a group is never split, so one shard is larger "
            f"and takes longer. No more than {_count(most, 'shard')} can be balanced."
        )
    if plan.model.coupled:
        messages.append(
            f"the density of {', '.join(plan.model.coupled)} in one group changes with other "
            "groups' rows or effects, so groups are not independent given the shared sites and the "
            "shards cannot give the full model's posterior. Centre and scale columns beforehand, "
            "over the whole frame, as in ddf.assign(x=ddf.x / ddf.x.max()); or have all rows "
            "sampled together, method='nuts'."
        )
    return messages


# The tables


def _formula(plan: Plan) -> list[Table]:
    """Say what a formula was taken for, and which priors it has."""
    if plan.formula is None:
        return []
    asked = plan.formula.asked
    rows = [
        ["formula", asked.text],
        ["family", f"{asked.family.name}, {asked.link} link"],
        ["groups", asked.grouping.told or ", ".join(asked.grouping.by) or "none"],
        ["NumPyro code", "plan.model_source"],
    ]
    priors = [[name, _shortened(text)] for name, text in plan.formula.priors.items()]
    return [Table("formula", (), rows), Table("priors", ("of", "prior"), priors)]


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 5]} ...)"


def _summary(plan: Plan) -> list[list[str]]:
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
        *_instead(plan),
        ["result", _result(plan)],
        ["group effects", _local(plan)],
        ["shared dimensions", str(plan.model.dim)],
        ["precision", "float64" if plan.model.x64 else "float32"],
    ]


def _method(plan: Plan) -> str:
    if plan.method == "nuts":
        because = f", because {plan.nuts_because}" if plan.nuts_because else ""
        return f"NUTS on all rows together{because}"
    if plan.method == "laplace":
        effects = "local and crossed" if plan.model.crossed else "local"
        where = "all shards" if plan.n_shards > 1 else "all rows"
        return f"laplace, Newton steps on {where}, {effects} effects integrated out"
    return f"{plan.method}, {plan.options.weights} weights"


def _sampling(plan: Plan) -> str:
    """Say what NUTS does on shards: the numbers that the fit will use."""
    nuts, rounds, each = plan.one_shot_nuts, "", " a shard" if plan.n_shards > 1 else ""
    if plan.method == "laplace":
        return "none of the shards" if plan.n_shards > 1 else "none of the rows"
    if plan.method == "anchored":
        short = not plan.uncorrected_because
        most, nuts = plan.most_rounds(short=short), plan.round_nuts(short=short)
        rounds = f"up to {most} rounds of " if most > 1 else "one round of "
    chains = _count(plan.chains_sampled, "chain")
    return f"{rounds}{nuts.num_warmup} warm-up + {nuts.num_samples} draws, {chains}{each}"


def _result(plan: Plan) -> str:
    """Say of what the result is made, and whether its draws follow from one another."""
    sampled = plan.method != "laplace" and bool(plan.uncorrected_because)
    chains = plan.chains_sampled if sampled else plan.options.num_chains
    kind = "draws" if sampled else "independent draws"
    return f"{_count(chains, 'chain')} of {plan.options.num_samples:,} {kind}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' if n != 1 else ''}"


def _correction(plan: Plan) -> str:
    because = plan.uncorrected_because
    if because:
        return f"none, because {because}" if plan.method != "nuts" else "none needed"
    return f"points weighted by the full posterior{_integrated(plan)}"


def _instead(plan: Plan) -> list[list[str]]:
    """Say what becomes of few rows whose correction fails."""
    if not plan.gives_up or plan.uncorrected_because:
        return []
    nuts, chains = plan.one_shot_nuts, _count(plan.options.num_chains, "chain")
    warmup = f"{nuts.num_warmup} warm-up + {nuts.num_samples} draws"
    return [["if that fails", f"NUTS on all rows together, {warmup}, {chains}"]]


def _integrated(plan: Plan) -> str:
    """Say which effects are integrated out, the outermost first."""
    all_tiers = tiers(plan.model)
    if not all_tiers:
        return ""
    if len(all_tiers) == 1:
        return f", {_count(all_tiers[0].q, 'effect')} a group integrated out"
    levels = plan.model.levels
    told = [
        f"{_count(tier.q, 'effect')} a {'row' if tier.level == ROWS else levels[tier.level]}"
        for tier in all_tiers
    ]
    return f", {' around '.join(told)} integrated out, the inner ones first"


def _local(plan: Plan) -> str:
    because = plan.no_local_because
    if because:
        return f"none, because {because}"
    summary = plan.options.local == "summary"
    least, most = plan.looks_for_effects
    draws = f"{plan.local_draws:,} draws of the shared parameters"
    what = f"summary over {draws}" if summary else f"one draw of each group for {draws}"
    return f"{what}, for each {least:,} to {most:,} evaluations of every row"


def _arguments(plan: Plan) -> list[list[str]]:
    bindings = plan.bindings
    layout, told = bindings.layout, columns_told(bindings.layout)
    rows = []
    for argument, columns in matrices_of(layout).items():
        column = columns[0]
        kind = {"group": "group codes, local to a shard", "category": _codes(column)}.get(
            column.kind, "values" if column.entry < 0 else f"a matrix, (rows, {len(columns)})"
        )
        rows.append([argument, told[argument], kind])
    unfed = {n: f"number of groups of {plan.model.levels[i]}" for n, i in bindings.counts.items()}
    unfed |= {n: f"{size}, the number of categories" for n, size in bindings.constants.items()}
    unfed |= dict.fromkeys(bindings.defaults, "its default")
    return rows + [[name, "", receives] for name, receives in unfed.items()]


def columns_told(layout: Layout) -> dict[str, str]:
    """Name the columns that feed each argument: of a matrix the first and the last of them."""
    told = {}
    for argument, columns in matrices_of(layout).items():
        first, last = str(columns[0].label), str(columns[-1].label)
        between = ", ..., " if len(columns) > 2 else ", "
        told[argument] = first if len(columns) == 1 else f"{first}{between}{last}"
    return told


def _codes(column: Column) -> str:
    """Say which code stands for which category."""
    n = len(column.categories)
    listed = [f"{code} {category}" for code, category in enumerate(column.categories)]
    if n > _MOST_CODES:
        listed = [*listed[: _MOST_CODES - 1], "...", listed[-1]]
    return f"codes of {n:,} {'category' if n == 1 else 'categories'}: {', '.join(listed)}"


def _sites(plan: Plan) -> list[list[str]]:
    model = plan.model
    names = {ROWS: "rows", **dict(enumerate(model.levels))}
    crossed = {one.site: one for one in model.crossed}
    tempered = "whole" if plan.n_shards == 1 else "to the power w"
    rows = []
    for site in model.latents:
        shape, role, share = [str(size) for size in site.shape], "shared", tempered
        if site.level is not None:
            shape[site.axis], role, share = names[site.level], "local", "whole"
        if site.name in crossed:
            role, share = f"crossed, by {crossed[site.name].argument}", "given the rest"
        rows.append([site.name, role, f"({', '.join(shape)})", site.support, site.prior, share])
    latent = {site.name for site in model.latents}
    for term in model.terms:
        if term.name not in latent and not term.name.endswith("_log_det"):
            role, share = ("prior", tempered) if term.level is None else ("observed", "whole")
            level = "" if term.level is None else f"({names[term.level]})"
            rows.append([term.name, role, level, "", "", share])
    rows += [[name, "deterministic", "", "", "", ""] for name in model.deterministics]
    for derived in model.derived:
        shape = [str(size) for size in derived.shape]
        shape[derived.axis] = names[derived.level]
        rows.append([derived.name, "deterministic", f"({', '.join(shape)})", "", "", ""])
    return rows


def _shards(plan: Plan) -> list[list[str]]:
    assignment, by = plan.assignment, plan.bindings.layout.by
    rows = [
        ["shards", f"{plan.n_shards:,}"],
        ["rows", f"{plan.survey.rows:,}{_unanswered(plan)}"],
        ["rows a shard", _range(assignment.rows, "{:,.0f}")],
    ]
    if by:
        about = "" if plan.survey.groups_exact else "about "
        rows += [
            [f"groups of {by[0]}", f"{about}{plan.survey.n_groups:,}"],
            [f"groups of {by[0]} a shard", about + _range(assignment.groups, "{:,.0f}")],
        ]
    groups = [(count,) if by else () for count in assignment.groups.tolist()]
    padded = padded_sizes(list(map(Size, assignment.rows.tolist(), groups)))
    n_rows = assignment.rows.sum()
    extra = sum(size.rows for size in padded) - int(n_rows)
    padding = f"{extra:,} ({extra / n_rows:.1%})" if extra else "none"
    return [*rows, ["padding rows", padding], ["shapes to compile", str(len(set(padded)))]]


def _unanswered(plan: Plan) -> str:
    left_out = plan.survey.unanswered
    return f", {left_out:,} without a response left out" if left_out else ""


def _range(values: np.ndarray, pattern: str) -> str:
    low, high = pattern.format(values.min()), pattern.format(values.max())
    return low if low == high else f"{low} to {high}"
