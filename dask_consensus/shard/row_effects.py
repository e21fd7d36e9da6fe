"""What is known of the effects of each row, given its response: of errors, of over-dispersion.

At each draw of u, and of the effects of groups that goes with it, a row's own effects are
independent of those of all other rows. Around their mode candidates are drawn and weighted as those
of groups are (:mod:`.local_draws`), and what they say is averaged over the draws. Sites that are
computed row by row come with them, whether the model has effects of rows or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax

from ..model.model import TRACE_LOCK, ShardModel, precision
from ..model.remembered import example
from ..shard_data import ROWS
from . import hills, newton
from .at_draws import Design, Rows, by_row, draws_of, log_terms_at, padded, shared_normals
from .candidates import LOOKS, QUADRATURE, Around, Look, log_shares, points_of
from .compiling import compiled, on_device
from .mixtures import RowSite
from .summaries import normalised, statistics_of
from .tiers import Tier, tiers, unpack

_NONE = Look(1, (1.0,), normal=True, followed=False, kept=1, enough=0.0)
# Fewer are kept of each draw than of groups: rows are many.
_LAST = LOOKS[-1]._replace(kept=8)
_NEAR, _LOST = 0.03, 0.5  # squared Newton decrement at which a climb ends, and beyond which in vain
_MORE_ROWS = 4  # than in the example: an axis that follows them grows by as many


def unobserved_sites(model: ShardModel, dtypes: Mapping[str, str]) -> tuple[RowSite, ...]:
    """Name the latent and the deterministic sites that have an entry a row.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = []
    for site in model.local:
        if site.level == ROWS:
            entry = tuple(n for axis, n in enumerate(site.shape) if axis != site.axis)
            found.append(RowSite(site.name, site.axis, entry, 0, False, ()))
    few, more = (_deterministics(model, dtypes, rows) for rows in (0, _MORE_ROWS))
    for name, shape in few.items():
        grown = np.subtract(more[name], shape) if len(more[name]) == len(shape) else np.zeros(0)
        if np.count_nonzero(grown) == 1 and grown.max() == _MORE_ROWS:
            axis = int(np.argmax(grown))
            entry = tuple(n for i, n in enumerate(shape) if i != axis)
            found.append(RowSite(name, axis, entry, 0, False, ()))
    if not found:
        raise ValueError(
            "kind='effects', but the model has no latent or deterministic site with one entry a "
            "row: effects of groups are in tree['local'], and dask_consensus.tree_to_frame(tree) "
            "is their table"
        )
    return tuple(found)


def _deterministics(
    model: ShardModel, dtypes: Mapping[str, str], more: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of deterministic sites, on data of so many more rows than the example."""
    arguments, groups = example(model, dtypes)
    wider = {
        name: np.concatenate([values, np.zeros((more, *values.shape[1:]), values.dtype)])
        for name, values in arguments.items()
    }

    def read(arguments: Mapping[str, Any]) -> dict[str, Any]:
        seeded = numpyro.handlers.seed(model.function, jax.random.key(0))
        sites = numpyro.handlers.trace(seeded).get_trace(**model.keywords(arguments, groups))
        return {name: s["value"] for name, s in sites.items() if s["type"] == "deterministic"}

    with precision(model.x64), TRACE_LOCK:
        shapes = jax.eval_shape(read, {name: jnp.asarray(value) for name, value in wider.items()})
    return {name: tuple(its.shape) for name, its in shapes.items()}


def row_effects(
    model: ShardModel,
    sites: tuple[RowSite, ...],
    quantiles: tuple[float, ...],
    design: Design,
    rows: Rows,
) -> list[np.ndarray]:
    """Return mean, sd and quantiles of each site, ``(R, entries, statistics)``.

    Rows whose mode is not found, or is of no density, have NaN.
    """
    tier = next((tier for tier in tiers(model) if tier.level == ROWS), None)
    n = len(next(iter(rows.arguments.values())))
    answers: list[np.ndarray] = []
    unsure = np.ones(n, bool)
    for look in _looks(tier):
        told = _asked(model, tier, sites, look, design, rows)
        efficiency = np.where(told.lost, np.nan, told.efficiency)[:n]
        enough = efficiency >= look.enough
        for i, site in enumerate(sites):
            values, far = statistics_of(
                told.origin[i][:n],
                told.moments[i][:, :n],
                told.kept[i].reshape(-1, *told.kept[i].shape[2:])[:, :n],
                by_order=look is _LAST,
                quantiles=quantiles,
            )
            if look.nodes:
                enough &= ~far.any(axis=1)
            values[:, np.isnan(efficiency)] = np.nan
            stacked = np.moveaxis(values, 0, 2)
            if len(answers) <= i:
                answers.append(np.empty((n, *stacked.shape[1:])))
            answers[i][unsure] = stacked[unsure]
            assert answers[i].shape[1] == int(np.prod(site.entry, dtype=int))
        unsure &= ~enough
        if not unsure.any():
            break
    return answers


def _looks(tier: Tier | None) -> tuple[Look, ...]:
    if tier is None:
        return (_NONE,)
    return (*((QUADRATURE[tier.q],) if tier.q in QUADRATURE else ()), LOOKS[1], _LAST)


class _Told(NamedTuple):
    """What candidates say of R rows, site by site."""

    origin: Any  # (R, entries) values at the mode, at the first draw
    moments: Any  # (4, R, entries) mean powers of what values are beyond that
    kept: Any  # (S, kept, R, entries) candidates, as often as their weights say
    efficiency: Any  # (R,) effective share of the candidates
    lost: Any  # (R,) whether the mode was not found at most draws


def _asked(
    model: ShardModel,
    tier: Tier | None,
    sites: tuple[RowSite, ...],
    look: Look,
    design: Design,
    rows: Rows,
) -> _Told:
    sizes, its = padded(model, rows)
    q = 0 if tier is None else tier.q
    n_draws = len(design.u)
    points, shares = points_of(q, n_draws, look) if q else (np.zeros((n_draws, 1, 0)), None)
    shares = np.full(n_draws, 0.5) if shares is None else shares
    with precision(model.x64):
        given = on_device(
            (tuple(design), its.arguments, its.known, its.effects, np.asarray(points), shares)
        )

        def build() -> Callable[..., Any]:
            def run(
                design: tuple[Any, ...],
                arguments: Any,
                known: Any,
                effects: Any,
                points: jax.Array,
                shares: jax.Array,
            ) -> _Told:
                here = Rows(arguments, known, effects)
                at = _Here(model, tier, sites, sizes, Design(*design), here)
                return _over_draws(at, look, points, shares)

            return run

        levels = tuple(one.level for one in tiers(model))
        run = compiled(model, ("row effects", sites, sizes, levels, look), build, *given)
        told: _Told = jax.device_get(run(*given))
        return told


class _Here(NamedTuple):
    """Some rows, and all that is asked of them."""

    model: ShardModel
    tier: Tier | None  # of the rows
    sites: tuple[RowSite, ...]
    groups: tuple[int, ...]
    design: Design
    rows: Rows

    def look(self, draw: tuple[Any, ...], effects: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Log density of each row ``(R,)`` with these effects; values of sites ``(R, entries)``."""
        u, shared, key, drawn = draw
        normals = shared_normals(self.model, self.groups, self.rows.arguments, shared)
        own = {} if self.tier is None else unpack(self.tier.sites, effects)
        terms, trace = log_terms_at(
            self.model, self.rows, self.groups, (u, normals, key, drawn), self.design.center, own
        )
        density = jnp.zeros(len(effects), u.dtype)
        for term in self.model.terms:
            if term.level == ROWS and term.name in terms:
                entries = terms[term.name]
                others = tuple(axis for axis in range(jnp.ndim(entries)) if axis != term.axis)
                density += jnp.sum(entries, axis=others)
        values = [by_row(jnp.asarray(trace[s.name]["value"], u.dtype), s) for s in self.sites]
        return density, values


def _over_draws(at: _Here, look: Look, points: jax.Array, shares: jax.Array) -> _Told:
    """Average what candidates say at each draw, modes being followed from one to the next."""
    design, rows = at.design, at.rows
    n, q = len(next(iter(rows.arguments.values()))), points.shape[2]
    keys = jax.random.split(jax.random.key(0), len(design.u))
    draws = (design.u, design.normal, keys, draws_of(rows))
    first = jax.tree.map(lambda values: values[0], draws)
    nowhere = jnp.zeros((n, q), points.dtype)
    log_share = jnp.asarray(log_shares(q, look) if q else np.zeros(1), points.dtype)[:, None]

    def climbed(draw: Any, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mode, Cholesky factor of the curvature there, and whether it is a mode."""
        if not q:
            return start, jnp.zeros((n, 0, 0), start.dtype), jnp.ones(n, bool)
        there = newton.ascend(
            lambda effects: (at.look(draw, effects)[0], None), start, newton.MOST_LOOKS, _NEAR
        )
        arrived = (there.decrement < _LOST) & jnp.isfinite(there.value)
        mode = there.effects + jnp.where(arrived[:, None], there.step, 0.0)
        return jnp.where(jnp.isfinite(mode), mode, 0.0), there.factor, arrived

    def candidates(
        draw: Any, mode: jax.Array, factor: jax.Array, points: jax.Array, share: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        """Values of sites ``(candidates, R, entries)``, and their weights, which add up to 1."""
        if not q:
            values = [value[None] for value in at.look(draw, mode)[1]]
            return values, jnp.ones((1, n), mode.dtype)
        level = jnp.zeros((1, n), mode.dtype)
        around = Around(
            lambda effects: (at.look(draw, effects)[0], None),
            hills.Hills(mode[None], factor[None], level),
            jnp.zeros((), int),
            look,
        )

        def one(point: jax.Array) -> tuple[list[jax.Array], jax.Array]:
            effects, log_weight = around.candidate(jnp.broadcast_to(point, (n, q)), share)
            return at.look(draw, effects)[1], log_weight

        values, log_weight = lax.map(one, points)
        return values, normalised(log_weight + log_share)

    mode, _, _ = climbed(first, nowhere)
    origin = at.look(first, mode)[1]

    def at_draw(carry: Any, given: Any) -> tuple[Any, Any]:
        mode, sums, efficiency, lost = carry
        draw, points, share = given
        mode, factor, arrived = climbed(draw, mode)
        values, weights = candidates(draw, mode, factor, points, share)
        so_far = jnp.cumsum(weights, axis=0)
        taken = (jnp.arange(look.kept) + share) / look.kept
        which = jnp.sum(so_far[None, :-1] < taken[:, None, None], axis=1)  # (kept, R)
        added, kept = [], []
        for total, its, begin in zip(sums, values, origin, strict=True):
            away = its - begin
            powers = jnp.stack(
                [jnp.einsum("cr,cre->re", weights, away**power) for power in (1, 2, 3, 4)]
            )
            added.append(total + powers)
            kept.append(jnp.take_along_axis(its, which[:, :, None], axis=0))
        efficiency += 1 / jnp.sum(weights**2 / jnp.exp(log_share), axis=0)
        return (mode, added, efficiency, lost + ~arrived), kept

    nothing = [jnp.zeros((4, *value.shape), value.dtype) for value in origin]
    start = (mode, nothing, jnp.zeros(n, points.dtype), jnp.zeros(n, int))
    end, kept = lax.scan(at_draw, start, (draws, points, shares))
    _, sums, efficiency, lost = end
    n_draws = len(design.u)
    moments = [total / n_draws for total in sums]
    return _Told(origin, moments, kept, efficiency / n_draws, lost > n_draws / 2)
