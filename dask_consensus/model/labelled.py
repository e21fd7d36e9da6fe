"""Which axes of sites bear labels? Those of a category, or of the columns of a matrix.

An axis bears them that grows by one when there is one category, or one column, more. Where the
model cannot be run so, having the number written in its code, an axis of a shared site does if its
first and its last entry alone touch the rows when these have the first, or the last, category or
column alone; that of a single column, if it does not touch rows where the column is zero. What
shares a plate with such an axis bears the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checks import draw_values
from .examples import Example
from .model import ShardModel

Shapes = Mapping[str, tuple[int, ...]]


def with_labels(
    model: ShardModel,
    example: Example,
    categories: Mapping[str, int],
    shapes_of: Callable[[Mapping[str, int], Example], Shapes],
) -> ShardModel:
    """Find the axes that have an entry a category, or a column of a matrix.

    Parameters
    ----------
    model : ShardModel
        Read, but for this.
    example : Example
        Small data that it accepts.
    categories : mapping
        Argument -> number of its categories.
    shapes_of : callable
        Gives the shapes of all sites with other constants and data.
    """
    axes: dict[str, list[str]] = {name: [""] * len(dims) for name, dims in _dims(model).items()}
    sources = dict(categories)
    sources |= {n: v.shape[1] for n, v in example.arguments.items() if v.ndim == 2}
    if not sources:
        return model
    before = shapes_of(model.constants, example)
    for argument, size in sources.items():
        grown = _grown(model, example, argument, before, shapes_of)
        if grown is None:
            grown = _touched(model, example, argument, size)
        for name, axis in grown:
            if name in axes and before[name][axis] == size:
                axes[name][axis] = argument
    _share_plates(model, axes, before, sources)
    found = {name: tuple(its) for name, its in axes.items() if any(its)}
    return replace(model, labelled=found)


def _dims(model: ShardModel) -> dict[str, tuple[str, ...]]:
    """Name the axes of all sites whose values are given out."""
    dims = {site.name: site.dims for site in model.latents}
    return dims | {site.name: site.dims for site in model.derived} | dict(model.deterministics)


def _grown(
    model: ShardModel,
    example: Example,
    argument: str,
    before: Shapes,
    shapes_of: Callable[[Mapping[str, int], Example], Shapes],
) -> list[tuple[str, int]] | None:
    """Return the axes that grow with a category or a column; None where that cannot be tried."""
    constants, count = dict(model.constants), f"n_{argument}"
    values = example.arguments[argument]
    if values.ndim == 2:
        wider = np.concatenate([values, values[:, -1:]], axis=1)
        example = example._replace(arguments=example.arguments | {argument: wider})
    elif count in constants:
        constants[count] += 1
    else:
        return None
    try:
        after = shapes_of(constants, example)
    except Exception:  # whatever a model makes of data that it was not written for
        return None
    return [
        (name, axis)
        for name, shape in before.items()
        if len(shape) == len(after.get(name, ()))
        for axis, (old, new) in enumerate(zip(shape, after[name], strict=True))
        if new == old + 1
    ]


def _touched(
    model: ShardModel, example: Example, argument: str, size: int
) -> list[tuple[str, int]]:
    """Return the axes of shared sites that rows of one category, or column, touch at one entry."""
    sites = [s for s in model.shared if size in s.shape and s.shape == s.unconstrained]
    matrix = example.arguments[argument].ndim == 2
    if not sites or (size < 2 and not matrix):
        return []
    values = {k: jnp.asarray(v) for k, v in draw_values(model, example, seed=2).items()}

    @jax.jit
    def slopes(arguments: Any) -> dict[str, jax.Array]:
        def likelihood(shared: dict[str, jax.Array]) -> jax.Array:
            terms, _ = model.log_terms({**values, **shared}, arguments, example.groups)
            own = [terms[term.name] for term in model.terms if term.level is not None]
            return sum((jnp.sum(term) for term in own), start=jnp.zeros(()))

        return jax.grad(likelihood)({site.name: values[site.name] for site in sites})

    axes = {(s.name, axis) for s in sites for axis, n in enumerate(s.shape) if n == size}
    if size == 1:
        # Its only entry is touched whichever site it is of: what counts is that zeros leave it be.
        found = slopes(example.arguments | {argument: np.zeros_like(example.arguments[argument])})
        axes = {(name, axis) for name, axis in axes if not np.any(found[name])}
    for entry in (0, size - 1):
        found = slopes(example.arguments | {argument: _alone(example, argument, entry)})
        for name, axis in tuple(axes):
            others = tuple(a for a in range(found[name].ndim) if a != axis)
            moved = np.abs(np.asarray(found[name])).sum(axis=others) != 0
            if np.flatnonzero(moved).tolist() != [entry]:
                axes.discard((name, axis))
    return sorted(axes)


def _alone(example: Example, argument: str, entry: int) -> np.ndarray:
    """Give all rows one category, or one column that is not zero."""
    values = example.arguments[argument]
    if values.ndim == 1:
        return np.full_like(values, entry)
    alone = np.zeros_like(values)
    alone[:, entry] = values[:, entry] + (values[:, entry] == 0)
    return alone


def _share_plates(
    model: ShardModel, axes: dict[str, list[str]], shapes: Shapes, sources: Mapping[str, int]
) -> None:
    """Give all axes of a plate the labels that one has, or those of the argument of its name."""
    plates: dict[str, set[str]] = {}
    for name, axis, plate in _plated(model):
        plates.setdefault(plate, set()).update({axes[name][axis]} - {""})
        if sources.get(plate) == shapes[name][axis]:
            plates[plate].add(plate)
    for name, axis, plate in _plated(model):
        if len(plates[plate]) == 1:
            (source,) = plates[plate]
            if sources[source] == shapes[name][axis]:
                axes[name][axis] = source


def _plated(model: ShardModel) -> Iterator[tuple[str, int, str]]:
    for name, dims in _dims(model).items():
        for axis, plate in enumerate(dims):
            if plate:
                yield name, axis, plate
