"""Variational inference by NumPyro's automatic guides, on all rows of a sized case."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.example_libraries.optimizers import exponential_decay
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_value
from numpyro.optim import Adam

from ..cases import Problem
from ..cases.sized import full_problem
from .clock import Clock
from .draws import summary

GUIDES = ("AutoNormal", "AutoLowRankMultivariateNormal", "AutoMultivariateNormal")
_FASTEST, _SLOWEST = 0.02, 0.0002  # steps of Adam, the first and the last
_DRAWS = 4_000


def measure(name: str, rows: int, guide_name: str, steps: int, seed: int) -> dict[str, Any]:
    """Fit a guide to all rows, from where NUTS begins, and draw from it."""
    problem = full_problem(name, rows)
    clock = Clock()
    data = {name: jnp.asarray(value) for name, value in problem.data.items()}
    start = {name: jnp.asarray(value) for name, value in problem.start.items()}
    guide = getattr(autoguide, guide_name)(
        problem.model, init_loc_fn=init_to_value(values=start), init_scale=0.01
    )
    rate = exponential_decay(_FASTEST, steps, _SLOWEST / _FASTEST)
    key, of_draws = random.split(random.key(seed))
    svi = SVI(problem.model, guide, Adam(rate), Trace_ELBO())
    fitted = svi.run(key, steps, progress_bar=False, **data)
    draws = guide.sample_posterior(of_draws, fitted.params, sample_shape=(_DRAWS,))
    took = clock.read()
    losses = np.asarray(fitted.losses)
    tenth = max(steps // 10, 1)
    return {
        **took,
        "steps": steps,
        "unconstrained": summary(_unconstrained(problem, data, draws)),
        # What the last tenth still gained, in nats: little where it has arrived.
        "gained": float(losses[-2 * tenth : -tenth].mean() - losses[-tenth:].mean()),
    }


def _unconstrained(problem: Problem, data: Any, draws: dict[str, jax.Array]) -> dict[str, Any]:
    """Draws of shared sites ``(1, draws, ...)`` on the real line."""
    sites = handlers.trace(handlers.seed(problem.model, random.key(0))).get_trace(**data)
    return {
        name: np.asarray(biject_to(sites[name]["fn"].support).inv(draws[name]))[None]
        for name in problem.shared
    }
