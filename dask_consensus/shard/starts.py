"""Where chains and searches begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random
from numpyro.distributions import biject_to
from numpyro.infer import init_to_median, init_to_sample

from ..model.checks import INITIAL_POINTS
from ..model.model import TRACE_LOCK, ShardModel, precision
from ..shard_data import ShardData
from .compiling import Effort, compiled, on_device
from .coordinates import SHARED, Coordinates, whiten
from .target import terms_of

_PRIOR = 2_000_000  # names the randomness of points of the prior, apart from any round's


class Start(NamedTuple):
    """Where a chain begins, unconstrained, and with what metric."""

    u: Any  # (d,) shared sites
    local: dict[str, Any]  # local sites, of padded shapes
    variances: dict[str, Any]  # of local sites: the diagonal of the inverse mass matrix
    step_size: Any


def key_of(seed: int, *path: int) -> jax.Array:
    """Key of a named piece of randomness, the same in any process."""
    key = random.key(seed)
    for number in path:
        key = random.fold_in(key, number)
    return key


def prior_medians(
    model: ShardModel, data: ShardData, coordinates: Coordinates, key: jax.Array
) -> dict[str, jax.Array]:
    """Medians of a few prior draws of every site, as coordinates of the sampler.

    Of chains started uniformly on (-2, 2), NumPyro's default, several in a hundred never leave
    where they began if the data lie far off; prior draws are of the right size.
    """
    u, local = _prior_point(model, data, init_to_median, key)
    return {SHARED: whiten(coordinates, u)} | local


def _prior_point(
    model: ShardModel, data: ShardData, strategy: Callable[[], Any], key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Take every site from its prior by one of NumPyro's strategies; shared and local sites."""
    seeded = numpyro.handlers.seed(model.function, key)
    placed = numpyro.handlers.substitute(seeded, substitute_fn=strategy())
    keywords = model.keywords(data.arguments, data.size[1])
    trace = numpyro.handlers.trace(placed).get_trace(**keywords)
    values = {
        site.name: biject_to(trace[site.name]["fn"].support).inv(trace[site.name]["value"])
        for site in model.latents
    }
    return jnp.concatenate([jnp.ravel(values.pop(site.name)) for site in model.shared]), values


def prior_points(
    model: ShardModel, data: ShardData, seed: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take points ``(n, d)`` of u from the prior, to begin a search from, given any data.

    The first are medians of a few draws each, close together; the second single draws, far apart.
    """

    def points(data: ShardData, keys: jax.Array) -> list[jax.Array]:
        return [
            jax.vmap(lambda key, how=how: _prior_point(model, data, how, key)[0])(keys)
            for how in (init_to_median, init_to_sample)
        ]

    with precision(model.x64):
        given = on_device(data), random.split(key_of(seed, _PRIOR), n)
        drawn = compiled(model, "prior points", lambda: points, *given, effort=Effort.ONCE)(*given)
    medians, draws = (np.asarray(part, np.float64) for part in drawn)
    return medians, draws


def prior_draw(
    model: ShardModel, data: ShardData, number: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Draw shared and local sites from the prior, unconstrained, on a device; a numbered draw."""

    def draw(data: ShardData, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return _prior_point(model, data, init_to_sample, key)

    given = data, key_of(number, _PRIOR)
    drawn: tuple[jax.Array, dict[str, jax.Array]] = compiled(
        model, "prior draw", lambda: draw, *given, effort=Effort.ONCE
    )(*given)
    return drawn


def starting_point(
    potential: Callable[..., jax.Array], first: dict[str, jax.Array], key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Take the first point, or else draw on (-2, 2) until density and gradient are finite."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        keys = random.split(key, len(first))
        return {
            name: random.uniform(k, value.shape, value.dtype, -2.0, 2.0)
            for k, (name, value) in zip(keys, first.items(), strict=True)
        }

    def valid(z: dict[str, jax.Array]) -> jax.Array:
        value, gradient = jax.value_and_grad(potential)(z)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]
        return jnp.isfinite(value) & jnp.all(jnp.stack(finite))

    def again(state: tuple[Any, ...]) -> tuple[Any, ...]:
        attempt, z, _, key = state
        key, draw_key = random.split(key)
        drawn = draw(draw_key)
        z = jax.tree.map(lambda a, b: jnp.where(attempt == 0, a, b), z, drawn)
        return attempt + 1, z, valid(z), key

    state = (0, first, jnp.zeros((), bool), key)
    state = lax.while_loop(lambda s: (s[0] <= INITIAL_POINTS) & ~s[2], again, state)
    return state[1], state[2]


def why_not_finite(model: ShardModel, data: ShardData) -> str:
    """Name the terms that are not finite at zero, and how many rows or groups have them."""
    shapes = model.local_shapes(*data.size)
    local = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    u = jnp.zeros(model.dim)

    def run(data: ShardData) -> tuple[dict[str, jax.Array], jax.Array]:
        values = {**model.unravel(u), **local}
        terms, _ = model.log_terms(values, data.arguments, data.size[1])
        return terms, terms_of(model, u, local, data).rows

    # Compiled: NumPyro warns of values outside a support wherever it can see them.
    with TRACE_LOCK:
        terms, by_row = jax.jit(run)(data)
    bad = [name for name, value in terms.items() if not bool(jnp.all(jnp.isfinite(value)))]
    rows = int(jnp.sum(~jnp.isfinite(by_row)))
    return (
        f"the log density is not finite at any of {INITIAL_POINTS} starting points; at zero "
        f"(unconstrained) site {', '.join(map(repr, bad)) or 'none'} is not, on {rows} of "
        f"{int(jnp.sum(data.rows))} rows of the shard. Do the observed values lie in the support "
        "of its distribution?"
    )
