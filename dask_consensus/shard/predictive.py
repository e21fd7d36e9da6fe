"""What a model says of rows, averaged over draws of the shared parameters and of effects.

At each draw of u the effects of known groups are drawn given it, and those of groups never seen
from the population; the model then gives the distribution of each row. The mixture of these over
draws is the predictive distribution, and the draws of their means are those of the expected value.
Standard normal numbers behind the effects are the same in every group, and of exactly the mean,
the covariance and the lack of correlation with u that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
import scipy.stats
from jax import lax
from numpyro.distributions import constraints
from numpyro.infer.util import _unconstrain_reparam as _placed

from ..model.model import TRACE_LOCK, ShardModel, precision
from ..model.remembered import example
from ..shard_data import ROWS
from .compiling import compiled, on_device
from .effects import effects_per_unit, relative_sds
from .mixtures import UNKNOWN, Mixture, RowSite, statistics_of
from .tiers import Tier, tiers, unpack

ROWS_AT_ONCE, _LEAST_GROUPS = 2**14, 16  # answered by one call

CENSORED: tuple[Any, ...] = tuple(
    getattr(dist, f"{side}CensoredDistribution")
    for side in ("Left", "Right", "Interval")
    if hasattr(dist, f"{side}CensoredDistribution")
)
"""Distributions of NumPyro, or of what version of it there is, in which rows may be censored."""
_WIDE, _HALVINGS = 40.0, 40  # range of the inverse hyperbolic sine of effects; steps to find one


class Asked(NamedTuple):
    """What is asked of a row: ``mean``, ``sd``, ``q05``, ``q99.5``, ``p0`` of each site."""

    sites: tuple[RowSite, ...]
    statistics: tuple[tuple[str, ...], ...]  # of each site
    expected: bool  # of the expected value, not of what would be observed


class Design(NamedTuple):
    """At which draws rows are predicted: S of them."""

    center: Any  # (d,) their mean
    u: Any  # (S, d)
    normal: Any  # (S, q), standard normal, uncorrelated with u


class Normals(NamedTuple):
    """Effects of G groups as normal distributions given u, and given those of levels outside."""

    mean: Any  # (G, q) at the center
    slope: Any  # (G, q, d)
    widening: Any  # (G, q, d), of the logarithms of sds; None where they stay as they are
    factor: Any  # (G, q, q), of the covariance, lower triangular
    outer: Any = None  # (G, q, Q), with effects of the levels outside; None without any


class Rows(NamedTuple):
    """Some rows, their groups coded from 0, and the effects of these on each level that has some.

    The outermost level comes first; there is none where all groups are drawn from the population.
    """

    arguments: Mapping[str, Any]  # (R,) each
    known: tuple[Any, ...]  # (G,) whether the fit has seen the group
    effects: tuple[Any, ...]  # Normals; or draws of sites as the model has them, (S, ..., G, ...)


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
        normals = _shared_normals(model, groups, arguments, jnp.zeros(q))
        rows = Rows(arguments, (), ())
        draw = (u, normals, jax.random.key(0), ())
        trace = _trace(model, rows, groups, draw, u)
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


def make_design(model: ShardModel, u: np.ndarray) -> Design:
    """Set standard normal numbers beside draws ``(S, d)`` of u."""
    n, d = u.shape
    q = effects_per_unit(model) if model.local else 0
    if not q:
        return Design(u.mean(axis=0), u, np.zeros((n, 0)))
    uniform = scipy.stats.qmc.Halton(q, rng=0).random(n)
    normal = scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    beside = np.column_stack([np.ones(n), u])
    if n > d + 1 + q:
        normal -= beside @ np.linalg.lstsq(beside, normal, rcond=None)[0]
        factor = np.linalg.cholesky(normal.T @ normal / n)
        normal = np.linalg.solve(factor, normal.T).T
    return Design(u.mean(axis=0), u, normal)


def ask(model: ShardModel, asked: Asked, design: Design, rows: Rows) -> list[np.ndarray]:
    """Answer what is asked of each site, ``(R, entries, statistics)``.

    Codes of groups among the arguments rise from 0 within `rows`, of which there are at most
    :data:`ROWS_AT_ONCE`.
    """
    levels = tuple(tier.level for tier in tiers(model))
    sizes, padded = _padded(model, rows)
    with precision(model.x64):
        given = on_device((tuple(design), padded.arguments, padded.known, padded.effects))

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
    told = _asked_of_groups(model, ("likely", sites), _likely, sites, design, rows, named)
    return np.asarray(told[:, : len(next(iter(rows.arguments.values())))], np.float64)


def _asked_of_groups(
    model: ShardModel,
    kind: tuple[Any, ...],
    answer: Callable[..., Any],
    sites: tuple[RowSite, ...],
    design: Design,
    rows: Rows,
    named: tuple[tuple[np.ndarray, ...], int] | None,
) -> Any:
    """Compile and run what is asked of rows whose groups have effects of their own."""
    sizes, padded = _padded(model, rows)
    own: tuple[Any, ...] = ()
    if named is not None:
        numbers = [
            np.resize(its, sizes[tier.level]) if len(its) else np.zeros(sizes[tier.level])
            for tier, its in zip(tiers(model), named[0], strict=False)
        ]
        own = tuple(its.astype(np.uint32) for its in numbers), np.uint32(named[1])

    def build() -> Callable[..., Any]:
        def run(
            design: tuple[Any, ...], arguments: Any, known: Any, effects: Any, *named: Any
        ) -> Any:
            rows = Rows(arguments, known, effects)
            return answer(model, sites, sizes, Design(*design), rows, named)

        return run

    with precision(model.x64):
        given = on_device((tuple(design), padded.arguments, padded.known, padded.effects))
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
            seen = _by_row(jnp.broadcast_to(value, might.shape), site)
            parts.append((seen, _by_row(counted, site).all(axis=1), _by_row(might, site)))
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
            total += _by_row(weighed, site).sum(axis=1)
        return jnp.asarray(total)

    return jnp.asarray(_at_draws(model, groups, design, rows, named, told))


def _by_row(values: jax.Array, site: RowSite) -> jax.Array:
    moved = jnp.moveaxis(values, site.axis, 0)
    return moved.reshape(len(moved), -1)


def _at_draws(
    model: ShardModel,
    groups: tuple[int, ...],
    design: Design,
    rows: Rows,
    named: tuple[Any, ...],
    told: Callable[[dict[str, Any], jax.Array], Any],
) -> Any:
    """Run the model at each draw, every group with effects of its own, and say what is `told`."""
    keys = jax.random.split(jax.random.key(1), len(design.u))

    def at_draw(given: tuple[jax.Array, jax.Array, jax.Array, Any]) -> Any:
        u, shared, key, drawn = given
        if not named:
            normals = _shared_normals(model, groups, rows.arguments, shared)
            return told(_trace(model, rows, groups, (u, normals, key, drawn), design.center), key)
        numbers, block = named
        own = jax.random.fold_in(jax.random.fold_in(key, 0), block)
        of_groups = jax.random.fold_in(key, 1)
        normals = ()
        for t, tier in enumerate(tiers(model)):
            if tier.level == ROWS:
                n_rows = len(next(iter(rows.arguments.values())))
                normals = (*normals, jax.random.normal(own, (n_rows, tier.q)))
                continue
            of_tier = jax.random.fold_in(of_groups, t) if t else of_groups
            named_so = jax.vmap(lambda number, key=of_tier: jax.random.fold_in(key, number))
            its_keys = named_so(numbers[t])
            normals = (*normals, jax.vmap(lambda k, q=tier.q: jax.random.normal(k, (q,)))(its_keys))
        return told(_trace(model, rows, groups, (u, normals, own, drawn), design.center), own)

    return lax.map(at_draw, (design.u, design.normal, keys, _draws_of(rows)))


def _draws_of(rows: Rows) -> Any:
    """Give effects that are draws, an axis of these in front; None for those that are not."""
    return [its if isinstance(its, dict) else None for its in rows.effects]


def _shared_normals(
    model: ShardModel,
    groups: tuple[int, ...],
    arguments: Mapping[str, Any],
    normal: jax.Array,
) -> tuple[jax.Array, ...]:
    """Give all groups of a level the same standard normal numbers, of ``(q,)`` for all levels."""
    n_rows = len(next(iter(arguments.values())))
    normals, begin = [], 0
    for tier in tiers(model):
        its = normal[begin : begin + tier.q]
        begin += tier.q
        units = model.size_of(tier.level, n_rows, groups)
        normals.append(jnp.broadcast_to(its, (units, tier.q)))
    return tuple(normals)


def _mask(fn: Any) -> jax.Array:
    """Tell which entries a likelihood counts."""
    if isinstance(fn, dist.MaskedDistribution):
        return jnp.asarray(fn._mask) & _mask(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution):
        return _mask(fn.base_dist)
    return jnp.asarray(True)


def _padded(model: ShardModel, rows: Rows) -> tuple[tuple[int, ...], Rows]:
    """Bring rows and groups to one of few shapes."""
    n = len(next(iter(rows.arguments.values())))
    n_rows = min(ROWS_AT_ONCE, 1 << max(n - 1, 255).bit_length())
    arguments = {
        name: np.concatenate([values, np.repeat(values[-1:], n_rows - n, axis=0)])
        for name, values in rows.arguments.items()
    }
    counts = {level: 0 for level in range(len(model.levels))}
    for name, level in model.codes.items():
        counts[level] = max(counts[level], int(rows.arguments[name].max(initial=-1)) + 1)
    sizes = tuple(_rounded(count) for count in counts.values())
    known: list[np.ndarray] = []
    effects: list[Any] = []
    for tier, seen, its in zip(tiers(model), rows.known, rows.effects, strict=False):
        more = sizes[tier.level] - len(seen)

        def pad(values: np.ndarray, axis: int = 0, more: int = more) -> np.ndarray:
            return np.pad(values, [(0, more if i == axis else 0) for i in range(values.ndim)])

        known.append(pad(seen))
        if isinstance(its, Normals):
            effects.append(Normals(*(part if part is None else pad(part) for part in its)))
        else:
            axes = {site.name: site.axis + 1 for site in tier.sites}
            effects.append({name: pad(values, axes[name]) for name, values in its.items()})
    return sizes, Rows(arguments, tuple(known), tuple(effects))


def _rounded(count: int) -> int:
    """Round up to 16, 64, 256, ..."""
    size = _LEAST_GROUPS
    while size < count:
        size *= 4
    return size


# The model at a draw


def _trace(
    model: ShardModel,
    rows: Rows,
    groups: tuple[int, ...],
    draw: tuple[jax.Array, tuple[jax.Array, ...], jax.Array, Any],
    center: jax.Array,
) -> dict[str, Any]:
    """Run the model at a draw: of u, of standard normal numbers ``(U, q)``, of all effects."""
    u, normals, key, drawn = draw
    shared = model.unravel(u)
    levels = {site.name: site for site in model.local}
    standard: dict[str, jax.Array] = {}
    for tier, its in zip(tiers(model), normals, strict=True):
        standard |= unpack(tier.sites, its)
    given = _effects_given(model, rows, normals, u, center)
    seen_at = {
        site.name: (rows.known[t], None if drawn[t] is None else drawn[t][site.name])
        for t, tier in enumerate(tiers(model)[: len(rows.known)])
        for site in tier.sites
    }

    def place(site: dict[str, Any]) -> jax.Array | None:
        if site["type"] != "sample" or site["is_observed"]:
            return None
        name, fn = site["name"], site["fn"]
        if name in shared:
            return _placed(shared, site)
        if name not in levels:
            return None
        unseen = _from_population(
            fn, standard[name], jax.random.fold_in(key, list(levels).index(name))
        )
        if name not in seen_at:
            return unseen
        known, its_draw = seen_at[name]
        seen = _placed(given, site) if its_draw is None else its_draw
        shape = [1] * unseen.ndim
        shape[levels[name].axis] = -1
        return jnp.where(known.reshape(shape), seen, unseen)

    seeded = numpyro.handlers.seed(model.function, key)
    placed = numpyro.handlers.substitute(seeded, substitute_fn=place)
    trace: dict[str, Any] = numpyro.handlers.trace(placed).get_trace(
        **model.keywords(rows.arguments, groups)
    )
    return trace


def _effects_given(
    model: ShardModel,
    rows: Rows,
    normals: tuple[jax.Array, ...],
    u: jax.Array,
    center: jax.Array,
) -> dict[str, jax.Array]:
    """Turn standard normal numbers into the raw effects of known groups, outer levels first."""
    given: dict[str, jax.Array] = {}
    away: list[jax.Array] = []  # from means at the center, level by level
    for tier, its, normal in zip(tiers(model), rows.effects, normals, strict=False):
        if not isinstance(its, Normals):
            continue
        spread = jnp.sum(its.factor * normal[:, None, :], axis=2)
        if its.widening is not None:
            spread *= relative_sds(its.widening, u - center)
        moved = its.slope @ (u - center) + spread
        if its.outer is not None:
            around = [
                before[_parents(model, rows.arguments, tier, outer, len(moved))]
                for outer, before in zip(tiers(model), away, strict=False)
            ]
            moved += jnp.einsum("gij,gj->gi", its.outer, jnp.concatenate(around, axis=1))
        away.append(moved)
        given |= unpack(tier.sites, its.mean + moved)
    return given


def _parents(
    model: ShardModel, arguments: Mapping[str, Any], inner: Tier, outer: Tier, n: int
) -> jax.Array:
    """Give the group of an outer level that each of `n` groups of an inner one lies in."""
    codes = {level: arguments[name] for name, level in model.codes.items()}
    into = jnp.zeros(n, codes[outer.level].dtype)
    return into.at[codes[inner.level]].set(codes[outer.level])


def _distributions(model: ShardModel, trace: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Distributions of the observed sites, and the names of those that are factors."""
    latent = {site.name for site in model.latents}
    observed = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and name not in latent
    }
    factors = {name for name, site in observed.items() if isinstance(_base(site["fn"]), dist.Unit)}
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


def _base(fn: Any) -> Any:
    wrappers = (dist.ExpandedDistribution, dist.MaskedDistribution, dist.Independent)
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn


def _n_categories(fn: Any) -> int:
    parameters = fn.probs if isinstance(fn, dist.CategoricalProbs) else fn.logits
    return int(parameters.shape[-1])


def _from_population(fn: Any, normal: jax.Array, key: jax.Array) -> jax.Array:
    """Turn standard normal numbers into draws of a distribution, where there is a way."""
    base = _base(fn)
    if tuple(fn.shape()) != normal.shape:
        return fn.sample(key)
    if isinstance(base, dist.TransformedDistribution):
        inner = base.base_dist
        if tuple(inner.shape()) != tuple(base.shape()):
            return fn.sample(key)
        value = _from_population(inner.expand(fn.batch_shape), normal, key)
        for transform in base.transforms:
            value = transform(value)
        return value
    if isinstance(base, dist.Normal):
        return jnp.broadcast_to(base.loc + base.scale * normal, fn.shape())
    if isinstance(base, dist.MultivariateNormal):
        return base.loc + jnp.einsum("...ij,...j->...i", base.scale_tril, normal)
    uniform = jnp.clip(jax.scipy.special.ndtr(normal), 1e-7, 1 - 1e-7)
    try:
        return jnp.broadcast_to(base.icdf(uniform), fn.shape())
    except UNKNOWN:
        pass
    try:
        return _where_cdf_is(base, jnp.broadcast_to(uniform, fn.shape()))
    except UNKNOWN:
        return fn.sample(key)


def _where_cdf_is(fn: Any, share: jax.Array) -> jax.Array:
    """Invert a distribution function on the real line by bisection."""
    if fn.support is not constraints.real:
        raise NotImplementedError

    def halve(_: int, limits: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = limits
        middle = (low + high) / 2
        below = fn.cdf(jnp.sinh(middle)) < share
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    everywhere = jnp.full(share.shape, _WIDE)
    low, high = lax.fori_loop(0, _HALVINGS, halve, (-everywhere, everywhere))
    return jnp.sinh((low + high) / 2)


# Statistics of a mixture


def _answers(
    model: ShardModel, asked: Asked, groups: tuple[int, ...], design: Design, rows: Rows
) -> list[jax.Array]:
    """Statistics of each site, ``(R, entries, statistics)``."""
    keys = jax.random.split(jax.random.key(0), len(design.u))

    def at_draw(u: jax.Array, normal: jax.Array, key: jax.Array, drawn: Any) -> dict[str, Any]:
        normals = _shared_normals(model, groups, rows.arguments, normal)
        draw = (u, normals, key, drawn)
        fns, _ = _distributions(model, _trace(model, rows, groups, draw, design.center))
        return {site.name: fns[site.name] for site in asked.sites}

    mixtures = jax.vmap(at_draw)(design.u, design.normal, keys, _draws_of(rows))
    answers = []
    for site, statistics in zip(asked.sites, asked.statistics, strict=True):
        told = statistics_of(Mixture(mixtures[site.name], keys, site), statistics, asked.expected)
        rows_first = [jnp.moveaxis(value, site.axis, 0) for value in told]
        flat = [value.reshape(len(value), -1) for value in rows_first]
        answers.append(jnp.stack(flat, axis=2))
    return answers
