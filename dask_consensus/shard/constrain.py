"""Draws of ``u`` back on the scales that the model's sites are written in."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import Arrays, ShardModel, precision
from ..shard_data import ShardData
from .compiling import Effort, in_blocks


def constrain(model: ShardModel, u: np.ndarray, example: ShardData) -> dict[str, np.ndarray]:
    """Map draws of `u` to the shared sites and to the deterministics of shared sites alone.

    Draws ``(..., d)`` become ``(..., *site shape)``, by name. `example` is any data the model
    accepts; nothing that is returned depends on it.
    """
    rows, groups = example.size
    names = [*(site.name for site in model.shared), *model.deterministics]

    def build() -> Callable[[Arrays, jax.Array], dict[str, jax.Array]]:
        def constrained(arguments: Arrays, point: jax.Array) -> dict[str, jax.Array]:
            shapes = model.local_shapes(rows, groups)
            local = {name: jnp.zeros(shape) for name, shape in shapes.items()}
            values = {**model.unravel(point), **local}
            _, trace = model.log_terms(values, arguments, groups)
            return {name: jnp.asarray(trace[name]["value"]) for name in names}

        return jax.vmap(constrained, (None, 0))

    flat = u.reshape(-1, u.shape[-1])
    with precision(model.x64):
        kind = ("constrain", groups)
        values = in_blocks(model, kind, build, dict(example.arguments), flat, Effort.ONCE)
    return {name: value.reshape(*u.shape[:-1], *value.shape[1:]) for name, value in values.items()}
