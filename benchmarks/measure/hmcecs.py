"""HMC on subsamples: NumPyro's ``HMCECS`` with a second-order Taylor proxy, on ``logistic``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro.infer import HMCECS, MCMC, NUTS, init_to_value
from numpyro.infer.util import potential_energy

from ..cases.sized import logistic_matrix, sized_case
from ..cases.sound import PREDICTORS
from .chains import Sampling, joined, side_by_side
from .clock import Clock


def measure(
    sampling: Sampling, rows: int, subsample: int, blocks: int, here: bool
) -> dict[str, Any]:
    """Run chains with a subsample of so many rows, renewed in blocks.

    Each has a process of its own: its proxy does not survive ``chain_method="parallel"``.
    """
    row = joined(side_by_side(_chain, sampling, here, rows, subsample, blocks))
    return {**row, "subsample": subsample, "blocks": blocks}


def _chain(
    sampling: Sampling, number: int, rows: int, subsample: int, blocks: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    frame = sized_case("logistic", rows).frame()
    x, y = (np.asarray(frame[column], np.float32) for column in (PREDICTORS, "y"))
    clock, key = Clock(), random.fold_in(random.key(sampling.seed), number)
    x, y = jnp.asarray(x), jnp.asarray(y)
    mode = posterior_mode(x, y)
    mode_seconds = clock.seconds
    inner = NUTS(logistic_matrix, dense_mass=True, init_strategy=init_to_value(values=mode))
    sampler = HMCECS(inner, num_blocks=blocks, proxy=HMCECS.taylor_proxy(mode))
    transitions = {"num_warmup": sampling.warmup, "num_samples": sampling.piece}
    mcmc = MCMC(sampler, progress_bar=False, **transitions)
    mcmc.warmup(key, x, y, size=subsample)
    jax.block_until_ready(mcmc.last_state)
    warm_seconds = clock.seconds
    fields = ("accept_prob", "hmc_state.num_steps")
    pieces, flags, sites = [], [], {}
    while not sites or not (clock.seconds >= sampling.seconds or sampling.enough(sites)):
        mcmc.run(mcmc.post_warmup_state.rng_key, x, y, size=subsample, extra_fields=fields)
        mcmc.post_warmup_state = mcmc.last_state
        pieces.append({name: np.asarray(mcmc.get_samples()[name]) for name in mode})
        flags.append([float(mcmc.get_extra_fields()[name].mean()) for name in fields])
        sites = {name: np.concatenate([piece[name] for piece in pieces]) for name in mode}
    accepted, steps = np.mean(flags, axis=0)
    return sites, {
        **clock.read(),
        "mode_seconds": mode_seconds,
        "warm_seconds": warm_seconds,
        "capped": clock.seconds >= sampling.seconds,
        "subsamples_accepted": float(accepted),
        "steps": float(steps),
    }


def posterior_mode(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """The mode that the proxy is expanded around, found in double precision."""
    with jax.enable_x64(True):
        data = {name: jnp.asarray(np.asarray(v, np.float64)) for name, v in (("x", x), ("y", y))}
        # Not from zero: where a logit is exactly 0, NumPyro's gradient of its density is not right.
        start = {"alpha": jnp.full((), 0.01), "beta": jnp.zeros(x.shape[1])}
        u, unravel = ravel_pytree(start)

        def mean_potential(u: jax.Array) -> jax.Array:
            return potential_energy(logistic_matrix, (), data, unravel(u)) / len(data["y"])

        value_and_gradient = jax.jit(jax.value_and_grad(mean_potential))
        peak = scipy.optimize.minimize(value_and_gradient, u, jac=True, method="L-BFGS-B")
        mode = jax.device_get(unravel(jnp.asarray(peak.x)))
    return {name: jnp.asarray(v, x.dtype) for name, v in mode.items()}
