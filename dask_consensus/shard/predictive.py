"""What a model says of rows, averaged over draws of the shared parameters and of effects.

At each draw (:mod:`.at_draws`) the model gives the distribution of each row. The mixture of these
over draws is the predictive distribution, and the draws of their means are those of the expected
value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from ..model.model import TRACE_LOCK, ShardModel, precision
from ..model.remembered import example
from ..shard_data import ROWS
from .at_draws import Design, Rows, base_of, by_row, draws_of, padded, shared_normals, traced_at
from .compiling import compiled, on_device
from .effects import effects_per_unit
from .mixtures import Mixture, RowSite, statistics_of
from .tiers import tiers

_ORDERS = 64
_AT_ONCE = 32  # draws, at most: one after another takes as long to ask as to answer

CENSORED: tuple[Any, ...] = tuple(
    getattr(dist, f"{side}CensoredDistribution")
    for side in ("Left", "Right", "Interval")
    if hasattr(dist, f"{side}CensoredDistribution")
)
"""Distributions of NumPyro, or of what version of it there is, in which rows may be censored."""


class Asked(NamedTuple):
    """What is asked of a row: ``mean``, ``sd``, ``q05``, ``q99.5``, ``p0`` of each site."""

    sites: tuple[RowSite, ...]
    statistics: tuple[tuple[str, ...], ...]  # of each site
    expected: bool  # of the expected value, not of what would be observed


def row_sites(model: ShardModel, dtypes: Mapping[str, str]) -> tuple[RowSite, ...]:
    """Find the observed sites that follow the rows.

    Raises
    ------
    ValueError
        If there is none, or a likelihood is written by ``numpyro.factor``.
    """
    arguments, groups = example(model, dtypes)
    axes = {t.name: t.axis for t in model.terms if t.observed and t.level == ROWS}
    of_groups = {t.name for t in model.terms if t.observed and t.level not in (None, ROWS)}
    found: dict[str, RowSite] = {}

    def read(arguments: Mapping[str, Any]) -> Any:
        u, q = jnp.zeros(model.dim), effects_per_unit(model) if model.local else 0
        normals = shared_normals(model, groups, arguments, jnp.zeros(q))
        rows = Rows(arguments, (), ())
        draw = (u, normals, jax.random.key(0), ())
        trace = traced_at(model, rows, groups, draw, u)
        fns, factors = _distributions(model, trace)
        refused = sorted(factors & ({*axes} | of_groups))
        if refused:
            raise ValueError(
                f"site {refused[0]!r} is a numpyro.factor: a log density without a distribution "
                "says nothing of what would be observed. Write it as numpyro.sample(..., obs=...) "
                "with a distribution of numpyro, or one of your own that has `sample`, `mean` and "
                "`variance`"
            )
        for name, fn in fns.items():
            if name not in axes:
                continue
            axis, shape = axes[name], list(fn.shape())
            del shape[axis]
            categorical = isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits)
            categories = _n_categories(fn) if categorical else 0
            discrete = bool(fn.support.is_discrete)
            hidden = _censored(trace[name]["fn"])
            found[name] = RowSite(name, axis, tuple(shape), categories, discrete, (), hidden)
        return {name: jax.tree.leaves(fns[name]) for name in found}

    with precision(model.x64), TRACE_LOCK:
        ready = {name: jnp.asarray(value) for name, value in arguments.items()}
        traced = jax.make_jaxpr(read, return_shape=True)(ready)
    if not found:
        raise ValueError("the model has no observed site with one entry a row to predict")
    needs = _needs(*traced, list(ready))
    return tuple(site._replace(needs=needs[name]) for name, site in found.items())


def _needs(traced: Any, shapes: Any, arguments: list[str]) -> dict[str, tuple[str, ...]]:
    """Tell which arguments each output depends on."""
    jaxpr = traced.jaxpr
    after: dict[Any, frozenset[str]] = {}
    # The leaves of a dict are in the order of its sorted keys.
    for variable, name in zip(jaxpr.invars, sorted(arguments), strict=True):
        after[variable] = frozenset([name])

    def of(variable: Any) -> frozenset[str]:
        return frozenset() if hasattr(variable, "val") else after.get(variable, frozenset())

    for equation in jaxpr.eqns:
        together = frozenset().union(*map(of, equation.invars))
        after |= dict.fromkeys(equation.outvars, together)
    outputs = iter(map(of, jaxpr.outvars))
    return {
        name: tuple(sorted(frozenset().union(*(next(outputs) for _ in leaves))))
        for name, leaves in sorted(shapes.items())
    }


def ask(model: ShardModel, asked: Asked, design: Design, rows: Rows) -> list[np.ndarray]:
    """Answer what is asked of each site, ``(R, entries, statistics)``.

    Codes of groups among the arguments rise from 0 within `rows`, of which there are at most
    :func:`.at_draws.rows_at_once`.
    """
    levels = tuple(tier.level for tier in tiers(model))
    sizes, whole = padded(model, rows)
    with precision(model.x64):
        given = on_device((tuple(design), whole.arguments, whole.known, whole.effects))

        def build() -> Callable[..., Any]:
            def run(
                design: tuple[Any, ...], arguments: Any, known: Any, effects: Any
            ) -> list[jax.Array]:
                return _answers(
                    model, asked, sizes, Design(*design), Rows(arguments, known, effects)
                )

            return run

        kind = ("predictive", asked, sizes, levels)
        run = compiled(model, kind, build, *given)
        answers = jax.device_get(run(*given))
    n = len(next(iter(rows.arguments.values())))
    return [np.asarray(answer[:n], np.float64) for answer in answers]


@lru_cache(maxsize=4)
def _orders(draws: int) -> np.ndarray:
    """Make some orders of all draws, ``(orders, draws)``, each of which can begin anywhere."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(draws) for _ in range(_ORDERS)]).astype(np.int32)


class Replicas(NamedTuple):
    """What was observed in some rows at a site, and what might have been."""

    observed: np.ndarray  # (R, entries)
    counted: np.ndarray  # (R,) rows that a mask of the model does not leave out
    replicated: np.ndarray  # (S, R, entries)


def replicate(
    model: ShardModel,
    sites: tuple[RowSite, ...],
    design: Design,
    rows: Rows,
    named: tuple[tuple[np.ndarray, ...], int],
) -> list[Replicas]:
    """Draw what might have been observed in some rows, once at each draw of a design.

    Parameters
    ----------
    named : tuple of (G,) arrays of uint32, and int
        What the random numbers of the effects of each group follow from, wherever its rows are, on
        each level that has effects; and those of the rows.
    """
    told = _asked_of_groups(model, ("replicas", sites), _replicated, sites, design, rows, named)
    n = len(next(iter(rows.arguments.values())))
    return [Replicas(seen[:n], counted[:n], might[:, :n]) for seen, counted, might in told]


def log_likelihoods(
    model: ShardModel,
    sites: tuple[RowSite, ...],
    design: Design,
    rows: Rows,
    named: tuple[tuple[np.ndarray, ...], int] | None,
) -> np.ndarray:
    """Log likelihood of each row at each draw of a design, ``(S, R)``; see :func:`replicate`.

    Without names all groups have the design's own numbers, of exact moments: each row by itself is
    then known better, and errors of all rows are alike.
    """
    # Random numbers anew for each group and draw would take longer than the likelihood.
    told = _asked_of_groups(
        model, ("likely", sites), _likely, sites, design, rows, named, reordered=True
    )
    return np.asarray(told[:, : len(next(iter(rows.arguments.values())))])


def _asked_of_groups(
    model: ShardModel,
    kind: tuple[Any, ...],
    answer: Callable[..., Any],
    sites: tuple[RowSite, ...],
    design: Design,
    rows: Rows,
    named: tuple[tuple[np.ndarray, ...], int] | None,
    *,
    reordered: bool = False,
) -> Any:
    """Compile and run what is asked of rows whose groups have effects of their own.

    Their standard normal numbers are random, or the design's own, `reordered` at random.
    """
    sizes, whole = padded(model, rows)
    own: tuple[Any, ...] = ()
    if named is not None:
        numbers = [
            np.resize(its, sizes[tier.level]) if len(its) else np.zeros(sizes[tier.level])
            for tier, its in zip(tiers(model), named[0], strict=False)
        ]
        own = (
            tuple(its.astype(np.uint32) for its in numbers),
            np.uint32(named[1]),
            _orders(len(design.u)) if reordered else None,
        )

    def build() -> Callable[..., Any]:
        def run(
            design: tuple[Any, ...], arguments: Any, known: Any, effects: Any, *named: Any
        ) -> Any:
            rows = Rows(arguments, known, effects)
            return answer(model, sites, sizes, Design(*design), rows, named)

        return run

    with precision(model.x64):
        given = on_device((tuple(design), whole.arguments, whole.known, whole.effects))
        given = (*given, *own)
        run = compiled(model, (*kind, sizes), build, *given)
        return jax.device_get(run(*given))


def _replicated(
    model: ShardModel,
    sites: tuple[RowSite, ...],
    groups: tuple[int, ...],
    design: Design,
    rows: Rows,
    named: tuple[Any, ...],
) -> list[tuple[Any, ...]]:
    def told(trace: dict[str, Any], key: jax.Array) -> list[tuple[jax.Array, ...]]:
        fns, _ = _distributions(model, trace)
        parts: list[tuple[jax.Array, ...]] = []
        for i, site in enumerate(sites):
            fn = fns[site.name]
            might = fn.sample(jax.random.fold_in(key, i))
            counted = jnp.broadcast_to(_mask(trace[site.name]["fn"]), fn.batch_shape)
            value = jnp.asarray(trace[site.name]["value"], might.dtype)
            seen = by_row(jnp.broadcast_to(value, might.shape), site)
            parts.append((seen, by_row(counted, site).all(axis=1), by_row(might, site)))
        return parts

    found = _at_draws(model, groups, design, rows, named, told)
    return [(seen[0], counted[0], might) for seen, counted, might in found]


def _likely(
    model: ShardModel,
    sites: tuple[RowSite, ...],
    groups: tuple[int, ...],
    design: Design,
    rows: Rows,
    named: tuple[Any, ...],
) -> jax.Array:
    def told(trace: dict[str, Any], _: jax.Array) -> jax.Array:
        total: Any = 0.0
        for site in sites:
            fn, value = trace[site.name]["fn"], trace[site.name]["value"]
            density, scale = fn.log_prob(value), trace[site.name]["scale"]
            # A row of weight three is left out three times.
            weighed = density if scale is None else jnp.asarray(scale) * density
            total += by_row(weighed, site).sum(axis=1)
        return jnp.asarray(total)

    return jnp.asarray(_at_draws(model, groups, design, rows, named, told))


def _at_draws(
    model: ShardModel,
    groups: tuple[int, ...],
    design: Design,
    rows: Rows,
    named: tuple[Any, ...],
    told: Callable[[dict[str, Any], jax.Array], Any],
) -> Any:
    """Run the model at each draw, every group with effects of its own, and say what is `told`."""
    n_draws = len(design.u)
    keys = jax.random.split(jax.random.key(1), n_draws)

    def at_draw(given: tuple[jax.Array, jax.Array, jax.Array, Any, jax.Array]) -> Any:
        u, shared, key, drawn, draw = given
        if not named:
            same = shared_normals(model, groups, rows.arguments, shared)
            return told(traced_at(model, rows, groups, (u, same, key, drawn), design.center), key)
        numbers, block, orders = named
        own = jax.random.fold_in(jax.random.fold_in(key, 0), block)
        of_groups = jax.random.fold_in(key, 1)
        normals: tuple[jax.Array, ...] = ()
        begin = 0
        for t, tier in enumerate(tiers(model)):
            columns = slice(begin, begin + tier.q)
            begin += tier.q
            if tier.level == ROWS:
                n_rows = len(next(iter(rows.arguments.values())))
                normals = (*normals, jax.random.normal(own, (n_rows, tier.q)))
            elif orders is not None:
                which = orders[numbers[t] % _ORDERS, (draw + numbers[t] // _ORDERS) % n_draws]
                normals = (*normals, design.normal[which, columns])
            else:
                of_tier = jax.random.fold_in(of_groups, t) if t else of_groups
                named_so = jax.vmap(lambda number, key=of_tier: jax.random.fold_in(key, number))
                its_keys = named_so(numbers[t])
                each = jax.vmap(lambda k, q=tier.q: jax.random.normal(k, (q,)))
                normals = (*normals, each(its_keys))
        return told(traced_at(model, rows, groups, (u, normals, own, drawn), design.center), own)

    which_draw = jnp.arange(n_draws, dtype=jnp.uint32)
    at_once = max(n for n in range(1, _AT_ONCE + 1) if n_draws % n == 0)
    given = (design.u, design.normal, keys, draws_of(rows), which_draw)
    return lax.map(at_draw, given, batch_size=at_once)


def _mask(fn: Any) -> jax.Array:
    """Tell which entries a likelihood counts."""
    if isinstance(fn, dist.MaskedDistribution):
        return jnp.asarray(fn._mask) & _mask(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution):
        return _mask(fn.base_dist)
    return jnp.asarray(True)


def _distributions(model: ShardModel, trace: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Distributions of the observed sites, and the names of those that are factors."""
    latent = {site.name for site in model.latents}
    observed = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and name not in latent
    }
    factors = {
        name for name, site in observed.items() if isinstance(base_of(site["fn"]), dist.Unit)
    }
    fns = {
        name: _row_by_row(site["fn"], site["value"])
        for name, site in observed.items()
        if name not in factors
    }
    return fns, factors


def _row_by_row(fn: Any, value: jax.Array) -> Any:
    """Give a distribution the batch shape of its log density, which one without a plate lacks."""
    batch = jax.eval_shape(fn.log_prob, value).shape
    fn = _without_mask(fn)
    return fn if fn.batch_shape == batch else fn.expand(batch)


def _without_mask(fn: Any) -> Any:
    """Leave out which rows a likelihood counts, and which it knows a limit of: all are predicted.

    What is said of a censored row is what would be observed if nothing hid it.
    """
    if isinstance(fn, dist.MaskedDistribution):
        return _without_mask(fn.base_dist)
    wrappers: tuple[Any, ...] = (dist.ExpandedDistribution, *CENSORED)
    if isinstance(fn, wrappers):
        inner = _without_mask(fn.base_dist)
        return inner if inner.batch_shape == fn.batch_shape else inner.expand(fn.batch_shape)
    return fn


def _censored(fn: Any) -> bool:
    while hasattr(fn, "base_dist") and not isinstance(fn, CENSORED):
        fn = fn.base_dist
    return isinstance(fn, CENSORED)


def _n_categories(fn: Any) -> int:
    parameters = fn.probs if isinstance(fn, dist.CategoricalProbs) else fn.logits
    return int(parameters.shape[-1])


# Statistics of a mixture


def _answers(
    model: ShardModel, asked: Asked, groups: tuple[int, ...], design: Design, rows: Rows
) -> list[jax.Array]:
    """Statistics of each site, ``(R, entries, statistics)``."""
    keys = jax.random.split(jax.random.key(0), len(design.u))

    def at_draw(u: jax.Array, normal: jax.Array, key: jax.Array, drawn: Any) -> dict[str, Any]:
        normals = shared_normals(model, groups, rows.arguments, normal)
        draw = (u, normals, key, drawn)
        fns, _ = _distributions(model, traced_at(model, rows, groups, draw, design.center))
        return {site.name: fns[site.name] for site in asked.sites}

    mixtures = jax.vmap(at_draw)(design.u, design.normal, keys, draws_of(rows))
    answers = []
    for site, statistics in zip(asked.sites, asked.statistics, strict=True):
        told = statistics_of(Mixture(mixtures[site.name], keys, site), statistics, asked.expected)
        rows_first = [jnp.moveaxis(value, site.axis, 0) for value in told]
        flat = [value.reshape(len(value), -1) for value in rows_first]
        answers.append(jnp.stack(flat, axis=2))
    return answers
