"""Which shared sites are effects of a factor whose levels meet in many shards.

Items, months, products: a plate over the levels of a column that is no key of the groups. Its
effects are shared, and may be hundreds, but each row depends on those of one level alone::

    with numpyro.plate("items", 1128):
        b = numpyro.sample("b", dist.Normal(0, tau))
    ...
    mu + b[item]

Where the model looks its effects up by such a column it can be asked what it says of rows whose
effects are all their own: the looked-up values stand in place of the site, and 0, 1, 2, ... in
place of the column. What a row adds to the density then depends on its own entry alone, so that one
product with the Hessian gives that of every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer.util import _unconstrain_reparam, compute_log_probs

from .checks import draw_values
from .model import Arrays, Latent, ShardModel, precision

if TYPE_CHECKING:
    from .examples import Example

FEWEST_LEVELS = 17  # of a factor that is treated as one; fewer are shared parameters as any
MOST_CROSSED = 2048  # effects, whose Hessian is kept as one matrix
_TOLERANCE = 1e-5  # relative, of densities of rows in single precision


class Crossed(NamedTuple):
    """A shared site with effects of a crossed factor.

    Attributes
    ----------
    site : str
    argument : str
        Receives the level of each row, from 0 on.
    axis : int
        Of the site's value that follows the levels.
    levels, effects : int
        How many levels, and numbers a level.
    entry : tuple of int
        Shape of a level's numbers.
    """

    site: str
    argument: str
    axis: int
    levels: int
    effects: int
    entry: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.levels * self.effects

    def looked_up(self, value: Any, codes: Any) -> Any:
        """Give each row the value of its level, along the axis of the levels."""
        return jnp.take(value, codes, axis=self.axis)


def coordinates(model: ShardModel) -> tuple[np.ndarray, np.ndarray]:
    """Say which coordinates of ``u`` are effects of crossed factors, and which are the others.

    Returns
    -------
    effects : (J,) int array
        In the order of the factors, level by level.
    others : (p,) int array
    """
    ends = np.cumsum([0, *(site.size for site in model.shared)])
    places = {
        site.name: np.arange(end - site.size, end).reshape(site.unconstrained)
        for site, end in zip(model.shared, ends[1:], strict=True)
    }
    effects = [np.moveaxis(places[one.site], one.axis, 0).ravel() for one in model.crossed]
    taken = np.concatenate([*effects, np.empty(0, int)])
    return taken, np.setdiff1d(np.arange(model.dim), taken)


def crossed_factors(model: ShardModel, example: Example, seed: int = 2) -> tuple[Crossed, ...]:
    """Find the crossed factors of a model by asking whether they can be looked up beforehand."""
    codes = [
        name
        for name, values in example.arguments.items()
        if name not in model.codes and values.dtype.kind in "iu" and values.ndim == 1
    ]
    found: list[Crossed] = []
    for site in model.shared:
        for argument in codes:
            one = _factor(site, argument, example)
            if one is not None and _can_be_looked_up(model, example, [*found, one], seed):
                found.append(one)
                break
    return tuple(found) if sum(one.size for one in found) < model.dim else ()


def _factor(site: Latent, argument: str, example: Example) -> Crossed | None:
    """Take a site for the effects of a factor, if its shape allows that."""
    plates = [axis for axis, name in enumerate(site.dims) if name]
    if site.unconstrained != site.shape or not site.support.startswith("real") or not plates:
        return None
    axis = max(plates, key=lambda axis: site.shape[axis])
    levels = site.shape[axis]
    codes = example.arguments[argument]
    if levels < FEWEST_LEVELS or codes.min() < 0 or codes.max() >= levels:
        return None
    entry = tuple(np.delete(site.shape, axis).tolist())
    return Crossed(site.name, argument, axis, levels, site.size // levels, entry)


def _can_be_looked_up(
    model: ShardModel, example: Example, factors: Sequence[Crossed], seed: int
) -> bool:
    values = draw_values(model, example, seed)
    names = [term.name for term in model.terms if term.level is not None]

    def run(values: Any, arguments: Any) -> tuple[Any, Any]:
        usual, _ = model.log_terms(values, arguments, example.groups)
        rows = {
            one.site: one.looked_up(values[one.site], arguments[one.argument]) for one in factors
        }
        looked_up = rowwise_terms(model, values, rows, factors, arguments, example.groups)
        return [usual[name] for name in names], [looked_up[name] for name in names]

    try:
        with precision(model.x64):
            pairs = zip(*jax.jit(run)(values, example.arguments), strict=True)
    except Exception:  # whatever the model makes of values in another shape
        return False
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for a, b in pairs
    )


def rowwise_terms(
    model: ShardModel,
    values: Arrays,
    rows: Arrays,
    factors: Sequence[Crossed],
    arguments: Arrays,
    groups: tuple[int, ...],
) -> dict[str, jax.Array]:
    """Log density of each site but those of the factors, whose effects are given row by row.

    Unconstrained `values` are those of all other latent sites; `rows` those of the factors' sites,
    with an entry for each row along the axis of the levels. Run it under :data:`TRACE_LOCK`.
    """
    n_rows = next(jnp.shape(rows[one.site])[one.axis] for one in factors)
    own = jnp.arange(n_rows)
    arguments = {**arguments, **{one.argument: own for one in factors}}
    given = _Given(model.function, {one.site: rows[one.site] for one in factors})
    others = {name: value for name, value in values.items() if name not in rows}
    seeded = numpyro.handlers.seed(given, jax.random.key(0))
    placed = numpyro.handlers.substitute(
        seeded, substitute_fn=partial(_unconstrain_reparam, others)
    )
    keywords = model.keywords(arguments, groups)
    terms, _ = compute_log_probs(placed, (), keywords, {}, sum_log_prob=False)
    return dict(terms)


class _Given(numpyro.primitives.Messenger):
    """Some sites have values that are given, whatever their shape, and no density."""

    def __init__(self, fn: Any, values: Mapping[str, Any]) -> None:
        self.values = values
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] in self.values:
            msg["type"] = "deterministic"
            msg["value"] = self.values[msg["name"]]
