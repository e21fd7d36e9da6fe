"""Do the groups of real shards add up? The density of some of them apart, against together.

A shard is the full data with groups left out, so nothing that a group or row adds to the density
may change with what else is there. On the small sample on which a model is read, a statistic over
all rows may be the same by chance: the largest value of a column that is zero but for a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..model.checks import rounds
from ..model.model import TRACE_LOCK, ShardModel, precision
from ..shard_data import Shard, ShardData, Size, pad
from .compiling import Effort, compiled, on_device
from .subsets import Part, parts, together

# Sums in another order differ by a few roundings of their largest term. Where values far from zero
# cancel, an entry has more than its own: 1e7 in the data with an sd of 1 gives 1e-9.
_RELATIVE, _ABSOLUTE = 1e-11, 1e-7
_SINGLE = 1e-4  # both, for a model that computes in single precision
Entries = dict[str, np.ndarray]  # of each term


def changed_terms(
    pieces: Sequence[Shard],
    model: ShardModel,
    points: np.ndarray,
    shapes: tuple[Size, Size],
    seed: int,
) -> tuple[str, ...]:
    """Name the terms in which some units do not add what they add among others; runs on a worker.

    Parameters
    ----------
    pieces : sequence of Shard
        Some units of one shard or of several.
    model : ShardModel
    points : (G, d) array
        Of u. Local effects are drawn at random.
    shapes : tuple of Size
        Those of :func:`.subsets.shapes`.
    seed : int
    """
    size, small = shapes
    whole, origin = together(pieces, size)
    chosen = parts(whole, origin, seed, size, small)
    if not chosen:
        return ()
    data = pad(whole, size)
    local = [_draw_local(model, data, [seed, i]) for i in range(len(points))]
    together_there = entries_at(model, data, points, local)
    changed: set[str] = set()
    exact, known = model.double, False
    for part in chosen:
        moved = [_moved(model, values, part, seed) for values in local]
        apart_there = entries_at(model, part.data, points, moved)
        for reference, apart in zip(together_there, apart_there, strict=True):
            differing = _differing(model, reference, apart, part, exact)
            if differing and exact and not known:
                # Whether it computes in single precision takes a trace to know, seldom needed.
                exact, known = not _computes_in_single(model, data, points[0], local[0]), True
                differing = _differing(model, reference, apart, part, exact)
            changed |= differing
    return tuple(sorted(changed))


def example_entries(model: ShardModel, data: ShardData, points: np.ndarray) -> list[Entries]:
    """Evaluate every term at points ``(G, d)`` of u and the same local effects in any process."""
    local = [_draw_local(model, data, [i]) for i in range(len(points))]
    return entries_at(model, data, points, local)


def differing_terms(model: ShardModel, a: Entries, b: Entries) -> set[str]:
    """Name the terms that differ by more than the rounding of another machine."""
    exact = model.double and all(entries.dtype != np.float32 for entries in (a | b).values())
    return {name for name in a if not _close(a[name], b[name], exact)}


def entries_at(
    model: ShardModel, data: ShardData, points: np.ndarray, local: Sequence[dict[str, np.ndarray]]
) -> list[Entries]:
    """Every term of a shard's density, entry by entry, in double precision where possible.

    There are local effects for each of the points ``(G, d)`` of u.
    """
    with precision(model.double):
        arrays = on_device(data)
        given = [on_device(pair) for pair in zip(points, local, strict=True)]
        run = compiled(
            model, "entries", lambda: _entries(model), arrays, *given[0], effort=Effort.ONCE
        )
        return [jax.device_get(run(arrays, *pair)) for pair in given]


def _entries(model: ShardModel) -> Callable[..., dict[str, jax.Array]]:
    def entries(data: ShardData, u: jax.Array, local: Any) -> dict[str, jax.Array]:
        values = {**model.unravel(u), **local}
        return model.log_terms(values, data.arguments, data.size.groups)[0]

    return entries


def _computes_in_single(
    model: ShardModel, data: ShardData, u: np.ndarray, local: dict[str, np.ndarray]
) -> bool:
    with precision(model.double), TRACE_LOCK:
        return rounds(jax.make_jaxpr(_entries(model))(*on_device((data, u, local))).jaxpr)


def _draw_local(model: ShardModel, data: ShardData, seed: Sequence[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = model.local_shapes(*data.size)
    return {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}


def _moved(
    model: ShardModel, local: dict[str, np.ndarray], part: Part, seed: int
) -> dict[str, np.ndarray]:
    """Give the units of a part the local effects they have in the whole; padding has others."""
    moved = _draw_local(model, part.data, [seed, 1])
    for site in model.local:
        assert site.level is not None
        positions = part.entries[site.level]
        to = np.moveaxis(moved[site.name], site.axis, 0)
        to[: len(positions)] = np.moveaxis(local[site.name], site.axis, 0)[positions]
    return moved


def _differing(
    model: ShardModel, whole: Entries, apart: Entries, part: Part, exact: bool
) -> set[str]:
    """Name the terms whose entries for a part differ from the same entries in the whole."""
    names = set()
    for term in model.terms:
        a, b = whole[term.name], apart[term.name]
        if term.level is not None:
            positions = part.entries[term.level]
            a = np.take(a, positions, term.axis)
            b = np.take(b, np.arange(len(positions)), term.axis)
        if not _close(a, b, exact):
            names.add(term.name)
    return names


def _close(a: np.ndarray, b: np.ndarray, exact: bool) -> bool:
    relative, absolute = (_RELATIVE, _ABSOLUTE) if exact else (_SINGLE, _SINGLE)
    largest = np.abs(np.where(np.isfinite(a), a, 0.0)).max(initial=0.0)
    return np.allclose(a, b, rtol=0, atol=absolute + relative * largest, equal_nan=True)
