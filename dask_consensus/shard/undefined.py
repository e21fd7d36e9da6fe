"""Rows whose density is not a number wherever it is asked for: nothing can be fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import ShardModel, precision
from ..shard_data import ROWS, ShardData
from .compiling import Effort, compiled, on_device
from .starts import prior_draw

_NEAR_ZERO = 4  # points of u and of the local sites; of a sound shard the first is enough
_OF_PRIOR = 128  # draws of them, where rows are left: a model may be defined far from zero alone
POINTS = _NEAR_ZERO + _OF_PRIOR


class Undefined(NamedTuple):
    """What of a shard has a density that is not a number, at any point asked."""

    sites: tuple[str, ...]  # terms of the density
    rows: np.ndarray  # numbers of the rows, in the shard
    codes: np.ndarray  # of their outermost groups, each once; empty without groups
    values: dict[str, Any]  # what the model receives of the first row, but codes


def undefined_rows(data: ShardData, model: ShardModel) -> Undefined | None:
    """Find the rows of a shard whose density is a number at no point; None where there are none.

    A density that is zero is another matter: a better point may be found. Of a term that follows
    groups all rows of the group are meant.
    """
    bad: dict[str, np.ndarray] = {}
    with precision(model.x64):
        given = on_device(data)
        for point in range(POINTS):
            arguments = (given, *_point(model, given, point))
            run = compiled(
                model, "undefined", lambda: _undefined(model), *arguments, effort=Effort.ONCE
            )
            found = {name: np.asarray(flags) for name, flags in run(*arguments).items()}
            bad = {name: flags & bad.get(name, flags) for name, flags in found.items()}
            if not any(flags.any() for flags in bad.values()):
                return None
    level_of = {term.name: term.level for term in model.terms}
    rows = np.zeros(len(data.rows), bool)
    for name, flags in bad.items():
        level = level_of[name]
        code = None if level == ROWS else _codes(model, data, level)
        rows |= flags if code is None else flags[code]
    numbers = np.flatnonzero(rows & np.asarray(data.rows))
    if not len(numbers):
        return None
    outermost = _codes(model, data, 0) if data.groups else None
    return Undefined(
        sites=tuple(sorted(name for name, flags in bad.items() if flags.any())),
        rows=numbers,
        codes=np.empty(0, int) if outermost is None else np.unique(outermost[numbers]),
        values={
            name: np.asarray(values)[numbers[0]].tolist()
            for name, values in data.arguments.items()
            if name not in model.codes
        },
    )


def _point(
    model: ShardModel, data: ShardData, number: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Take shared and local sites near zero, then from the prior."""
    if number >= _NEAR_ZERO:
        return prior_draw(model, data, number)
    rng = np.random.default_rng(number)
    u, shapes = rng.uniform(-1.0, 1.0, model.dim), model.local_shapes(*data.size)
    local = {name: rng.uniform(-1.0, 1.0, shape) for name, shape in shapes.items()}
    near: tuple[jax.Array, dict[str, jax.Array]] = on_device((u, local))
    return near


def _codes(model: ShardModel, data: ShardData, level: int | None) -> np.ndarray | None:
    """Return the codes of a level, if the model receives them."""
    fed = (name for name, its in model.codes.items() if its == level)
    name = next(fed, None)
    return None if name is None else np.asarray(data.arguments[name])


def _undefined(model: ShardModel) -> Callable[..., dict[str, jax.Array]]:
    """Tell which entries of each term are no number, as a function of arrays."""

    def run(data: ShardData, u: jax.Array, local: dict[str, jax.Array]) -> dict[str, jax.Array]:
        values = {**model.unravel(u), **local}
        terms, _ = model.log_terms(values, data.arguments, data.size[1])
        flags = {}
        for term in model.terms:
            if term.level is not None:
                entries = jnp.isnan(terms[term.name])
                others = tuple(axis for axis in range(jnp.ndim(entries)) if axis != term.axis)
                flags[term.name] = jnp.any(entries, axis=others) & data.mask(term.level)
        return flags

    return run
