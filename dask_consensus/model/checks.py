"""What a model must not do, found by data flow and by its values on small examples.

A shard is the full data with rows and groups left out and the rest renumbered. A term of the
density that such a change alters, where it should not, is told apart from one that is sound by
evaluating it before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from numpyro.ops.provenance import eval_provenance

from ..shard_data import ROWS
from .examples import Example, embed, extract
from .model import ShardModel, log_terms, precision

INITIAL_POINTS = 100  # NumPyro gives up after as many
Source = tuple[str, str]  # ("data" or "local", name)


def draw_values(
    model: ShardModel, example: Example, seed: int, radius: float = 1.0
) -> dict[str, np.ndarray]:
    """Draw unconstrained values of all latent sites; shared ones depend on `seed` alone."""
    rng = np.random.default_rng(seed)
    values = {site.name: rng.uniform(-radius, radius, site.unconstrained) for site in model.shared}
    for name, shape in model.local_shapes(example.rows, example.groups).items():
        values[name] = rng.uniform(-radius, radius, shape)
    return values


# Data flow


def sources(
    model: ShardModel, example: Example, terms: Sequence[str], sites: Sequence[str]
) -> tuple[dict[str, frozenset[Source]], dict[str, frozenset[Source]]]:
    """Tell on which data and local sites some terms, and the values of some sites, depend."""
    values = draw_values(model, example, seed=0)
    shared = {site.name: jnp.asarray(values.pop(site.name)) for site in model.shared}
    inputs = {("data", name): jnp.asarray(value) for name, value in example.arguments.items()}
    inputs |= {("local", name): jnp.asarray(value) for name, value in values.items()}
    labels = {f"input {i}": source for i, source in enumerate(inputs)}

    def run(shared: dict[str, Any], **labelled: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        given = {source: labelled[label] for label, source in labels.items()}
        arguments = {name: value for (kind, name), value in given.items() if kind == "data"}
        local = {name: value for (kind, name), value in given.items() if kind == "local"}
        log_terms, trace = model.log_terms({**local, **shared}, arguments, example.groups)
        return {n: log_terms[n] for n in terms}, {n: trace[n]["value"] for n in sites}

    labelled = dict(zip(labels, inputs.values(), strict=True))
    provenance = eval_provenance(run, shared=shared, **labelled)

    def named(depends_on: frozenset[str]) -> frozenset[Source]:
        return frozenset(labels[label] for label in depends_on if label in labels)

    in_terms, in_sites = (
        {name: named(depends_on) for name, depends_on in part.items()} for part in provenance
    )
    return in_terms, in_sites


def check_prior_term(name: str, depends_on: frozenset[Source], columns: Mapping[str, str]) -> None:
    """Refuse a prior term that depends on the data or on local sites."""
    if not depends_on:
        return
    data = sorted(
        f"{source} (column {columns.get(source, source)!r})"
        for kind, source in depends_on
        if kind == "data"
    )
    local = sorted(source for kind, source in depends_on if kind == "local")
    raise ValueError(
        f"term {name!r} has no axis of rows or groups, so every shard takes a share of it as part "
        f"of the prior, but its value depends on {', '.join([*data, *local])}. Each shard would "
        "see another value. Give it an axis (one value a row or a group, not their sum), or "
        "compute what it needs from the full data beforehand and pass it as a constant."
    )


# Values


class Probe:
    """Evaluates the terms of a model on small examples; compiles once for each shape of them.

    Two evaluations are compared in double precision where the model bears it, whatever the user
    works in: an effect of 1 on values of 10,000 is lost in the rounding of single precision.
    """

    def __init__(self, model: ShardModel, example: Example) -> None:
        self.model = model
        # JAX keeps the constants of a function in the precision in which it was first traced: a
        # function of its own for each precision, the user's first.
        self._terms, self._exact_terms = (_terms_of(model) for _ in range(2))
        self.terms(draw_values(model, example, seed=0), example)
        traced = self._traced_in_double(example)
        #: Whether the model can be evaluated in double precision.
        self.double = traced is not None
        self._exact = traced is not None and not rounds(traced.jaxpr)

    def _traced_in_double(self, example: Example) -> ClosedJaxpr | None:
        """Trace density and gradient in double precision; None where the model does not bear it."""
        values, arguments = draw_values(self.model, example, seed=0), _doubles(example)

        def total(values: Any) -> jax.Array:
            terms = self.model.log_terms(values, arguments, example.groups)[0]
            return sum((jnp.sum(term) for term in terms.values()), start=jnp.zeros(()))

        # Nothing but the precision is new, and that was not the user's choice: whatever is raised
        # now comes of it.
        try:
            with precision(True):
                traced = self._exact_terms.trace(values, arguments, example.groups, _key(0))
                traced.lower()
                jax.eval_shape(jax.grad(total), {k: jnp.asarray(v) for k, v in values.items()})
        except Exception:
            return None
        return traced.jaxpr

    def terms(
        self, values: Mapping[str, Any], example: Example, key: int = 0
    ) -> dict[str, np.ndarray]:
        """Every term of the density, entry by entry, in the user's precision."""
        terms = self._terms(values, example.arguments, example.groups, _key(key))
        return {name: np.asarray(term) for name, term in terms.items()}

    def exact_terms(
        self, values: Mapping[str, Any], example: Example, key: int = 0
    ) -> dict[str, np.ndarray]:
        """Every term of the density, entry by entry, in double precision if possible."""
        if not self._exact:
            return self.terms(values, example, key)
        with precision(True):
            terms = self._exact_terms(values, _doubles(example), example.groups, _key(key))
            return {name: np.asarray(term) for name, term in terms.items()}

    def changed_terms(self, small: Example, other: Example, *, local: bool) -> set[str]:
        """Name the terms whose entries for the small example differ within the other example.

        The other one holds the rows and groups of the small one, in another order. Looked at are
        `local` terms, those with an axis of rows or groups, or else the others.
        """
        model = self.model
        values, others = _same_values(model, small, other)
        ours, theirs = self.exact_terms(values, small), self.exact_terms(others, other)
        # Sums in another order differ by a few roundings of their largest term.
        relative = 1e-11 if self._exact else 1e-4
        changed = set()
        for term in model.terms:
            if (term.level is not None) is not local:
                continue
            a, b = ours[term.name], theirs[term.name]
            if term.level is not None:
                b = extract(b, a.shape[term.axis], term.axis)
            tolerance = relative * (1 + np.abs(np.where(np.isfinite(a), a, 0.0)).max(initial=0.0))
            if not np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
                changed.add(term.name)
        return changed


def _same_values(
    model: ShardModel, small: Example, other: Example
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw values for both examples, the same where the other one holds the small one's groups."""
    values, others = (draw_values(model, example, seed=1) for example in (small, other))
    for site in model.local:
        others[site.name] = embed(values[site.name], others[site.name], site.axis)
    return values, others


def sites_of_other_groups(model: ShardModel, small: Example, large: Example) -> set[str]:
    """Name the derived sites whose values for a group, or row, change with other groups beside it.

    Its values in a shard are then not those in the full model.
    """
    values, others = _same_values(model, small, large)

    def derived(values: Mapping[str, Any], example: Example) -> dict[str, np.ndarray]:
        def run(values: Any, arguments: Any) -> dict[str, jax.Array]:
            _, trace = model.log_terms(values, arguments, example.groups)
            return {site.name: trace[site.name]["value"] for site in model.derived}

        return {k: np.asarray(v) for k, v in jax.jit(run)(values, example.arguments).items()}

    ours, theirs = derived(values, small), derived(others, large)
    changed = set()
    for site in model.derived:
        a, b = ours[site.name], theirs[site.name]
        b = extract(b, a.shape[site.axis], site.axis)
        size = np.abs(np.where(np.isfinite(a), a, 0.0)).max(initial=0.0)
        if not np.allclose(a, b, rtol=0, atol=1e-4 * (1 + size), equal_nan=True):
            changed.add(site.name)
    return changed


def _terms_of(model: ShardModel) -> Any:
    def terms(
        values: Any, arguments: Any, groups: tuple[int, ...], key: jax.Array
    ) -> dict[str, jax.Array]:
        return log_terms(model.function, values, model.keywords(arguments, groups), key)[0]

    return jax.jit(terms, static_argnums=2)


def _key(seed: int) -> jax.Array:
    return jax.random.key(seed)


def _doubles(example: Example) -> dict[str, np.ndarray]:
    return {
        name: value.astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in example.arguments.items()
    }


def rounds(jaxpr: Jaxpr) -> bool:
    """Tell whether anything is computed in less than double precision."""
    for equation in jaxpr.eqns:
        types = [getattr(var.aval, "dtype", np.dtype(bool)) for var in equation.outvars]
        if any(jnp.issubdtype(t, jnp.floating) and jnp.finfo(t).bits < 64 for t in types):
            return True
        for inner in inner_jaxprs(equation):
            if rounds(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner):
                return True
    return False


def inner_jaxprs(equation: Any) -> list[ClosedJaxpr | Jaxpr]:
    """Return the computations inside of an equation: of a loop, a branch, a compiled function."""
    inner = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda p: isinstance(p, ClosedJaxpr | Jaxpr)
    )
    return [each for each in inner if isinstance(each, ClosedJaxpr | Jaxpr)]


def check_renumbering(
    probe: Probe, small: Example, renumbered: Example, counts: Sequence[str]
) -> None:
    """Refuse a model in which the numbers of groups or the order of rows mean something."""
    changed = probe.changed_terms(small, renumbered, local=True)
    if not changed:
        return
    sized = [f"{site.name!r} {site.shape}" for site in probe.model.shared if site.shape]
    fixed = f" (shared sites of a fixed size: {', '.join(sized)})" if sized else ""
    remedy = (
        "A site indexed by group codes must have one entry a group: take its size from "
        f"{', '.join(counts)}{fixed}. Rows must be independent given the latent sites."
        if counts
        else "Rows must be independent given the latent sites."
    )
    raise ValueError(
        f"the density of {', '.join(sorted(changed))} changes when groups are renumbered and rows "
        "reordered, but codes are local to each shard and rows have no order there. " + remedy
    )


def check_prior_counts(probe: Probe, small: Example, large: Example) -> None:
    """Refuse prior terms that change with the number of rows or groups."""
    changed = probe.changed_terms(small, large, local=False)
    if changed:
        raise ValueError(
            f"prior terms {sorted(changed)} change with the number of rows or groups (through "
            "len(...) or n_<argument>), so they would differ from shard to shard. Use a constant."
        )


def check_initial_density(probe: Probe, example: Example) -> None:
    """Refuse a model that has no finite density anywhere near zero on real rows."""
    names = [term.name for term in probe.model.terms]
    of_rows = {term.name: term.axis for term in probe.model.terms if term.level == ROWS}
    ever = {name: np.zeros(example.rows, bool) for name in of_rows}
    finite_at: list[list[bool]] = []
    for seed in range(INITIAL_POINTS):
        terms = probe.terms(draw_values(probe.model, example, seed, radius=2.0), example)
        finite_at.append([bool(np.isfinite(terms[name]).all()) for name in names])
        if all(finite_at[-1]):
            return
        for name, axis in of_rows.items():
            entries = np.moveaxis(np.isfinite(terms[name]), axis, 0)
            ever[name] |= entries.reshape(example.rows, -1).all(axis=1)
    columns = list(zip(names, zip(*finite_at, strict=True), strict=True))
    never = [name for name, finite in columns if not any(finite)]
    seldom = [name for name, finite in columns if not all(finite)]
    bad = np.flatnonzero(~np.all([ever[name] for name in of_rows if name in seldom], axis=0))
    raise ValueError(
        f"the log density is not finite at any of {INITIAL_POINTS} starting points on a "
        f"sample of the frame; site {', '.join(map(repr, never or seldom))} is the cause"
        f"{_told(probe.model, example, bad)}. Do the "
        "observed values lie in the support of its distribution, and do its parameters stay valid, "
        "also where a column is zero in all rows of a sample?"
    )


def _told(model: ShardModel, example: Example, rows: np.ndarray) -> str:
    """Say of how many rows that is, and what the first of them holds; nothing of none, or all."""
    if not 0 < len(rows) < example.rows:
        return ""
    held = [
        f"{name}={np.asarray(values)[rows[0]].tolist()!r}"
        for name, values in example.arguments.items()
        if name not in model.codes
    ]
    return f", in {len(rows):,} of {example.rows:,} rows, the first of which has {', '.join(held)}"
