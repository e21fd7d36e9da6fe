"""Chains on all rows, each in a process of its own, in pieces so that they can stop at any time.

NUTS is a compiled scan over NumPyro's kernel, faster than ``MCMC.run``; shared sites have a dense
mass matrix, effects of groups a diagonal one. Nothing here knows of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.infer import init_to_value
from numpyro.infer.hmc import hmc
from numpyro.infer.util import initialize_model

from ..cases import Problem
from ..cases.sized import full_problem
from .clock import Clock
from .draws import least_ess, summary

Sites = dict[str, np.ndarray]  # draws by site, (draws, ...)


class Sampling(NamedTuple):
    """How chains run, and when they stop: at so many effective draws of all, or seconds."""

    chains: int
    warmup: int  # transitions, in whole pieces
    piece: int  # transitions between looks at the clock
    ess: float
    seconds: float
    seed: int

    def enough(self, sites: Sites) -> bool:
        """Whether a chain has its share of effective draws."""
        n = len(next(iter(sites.values()), ()))
        # Looked at each time there are a tenth more draws.
        look = n >= 50 and int(10 * np.log(n)) > int(10 * np.log(max(n - self.piece, 1)))
        return look and least_ess(sites) >= self.ess / self.chains


def side_by_side(chain: Callable[..., Any], sampling: Sampling, here: bool, *arguments: Any) -> Any:
    """Run ``chain(sampling, number, *arguments)`` for every chain, in processes unless `here`."""
    calls = [(sampling, number, *arguments) for number in range(sampling.chains)]
    if here:
        return [chain(*call) for call in calls]
    with ProcessPoolExecutor(sampling.chains, mp_context=get_context("spawn")) as pool:
        return list(pool.map(chain, *zip(*calls, strict=True)))


def joined(chains: list[tuple[Sites, dict[str, Any]]]) -> dict[str, Any]:
    """One row of chains that ran side by side, from draws that all have."""
    n = min(len(next(iter(sites.values()))) for sites, _ in chains)
    rows = [row for _, row in chains]
    row = {key: max(row[key] for row in rows) for key in set.intersection(*map(set, rows))}
    if n < 4:
        return row | {"draws": 0, "ess": 0.0}
    draws = {name: np.stack([sites[name][:n] for sites, _ in chains]) for name in chains[0][0]}
    table = summary(draws)
    return row | {
        "draws": n,
        "ess": min(scalar["ess"] for scalar in table.values()),
        "r_hat": max(scalar["r_hat"] for scalar in table.values()),
        "unconstrained": table,
    }


def nuts(sampling: Sampling, number: int, problem: Problem) -> tuple[Sites, dict[str, Any]]:
    """One chain of NUTS: unconstrained draws of the shared sites, and what they took."""
    clock, key = Clock(), random.fold_in(random.key(sampling.seed), number)
    data = {name: jnp.asarray(value) for name, value in problem.data.items()}
    start = {name: jnp.asarray(value) for name, value in problem.start.items()}
    initial, potential_of, *_ = initialize_model(
        key,
        problem.model,
        init_strategy=init_to_value(values=start),
        dynamic_args=True,
        model_kwargs=data,
    )
    shared = sorted(problem.shared)
    begin, advance = kernel(potential_of, shared, shared, sampling)
    state = begin(initial.z, key, data)
    code = jax.jit(advance).lower(state, data).compile()
    n_warm, pieces, sites, more = sampling.warmup // sampling.piece, [], {}, {}
    while clock.seconds < sampling.seconds and not sampling.enough(sites):
        state, piece = code(state, data)
        pieces.append(jax.device_get(piece))
        if len(pieces) == n_warm:
            more["warm_seconds"] = clock.seconds
        drawn, steps, diverging = zip(*pieces[min(n_warm, len(pieces) - 1) :], strict=True)
        sites = {name: np.concatenate([z[name] for z in drawn]) for name in drawn[0]}
    if len(pieces) > n_warm:
        more |= {"steps": float(np.mean(steps)), "divergences": int(np.sum(diverging))}
    else:
        sites = {name: value[:0] for name, value in sites.items()}
    capped = clock.seconds >= sampling.seconds
    iterations = sampling.piece * len(pieces)
    return sites, {**clock.read(), "iterations": iterations, "capped": capped, **more}


def kernel(
    potential_of: Any, dense: Sequence[str], kept: Sequence[str], sampling: Sampling
) -> tuple[Any, Any]:
    """How a chain begins, and how it advances by a piece, keeping some sites.

    `dense` sites share a mass matrix.
    """
    init, step = hmc(potential_fn_gen=potential_of, algo="NUTS")
    options = {"dense_mass": [tuple(dense)], "step_size": 0.1}

    def begin(z: Any, key: jax.Array, data: Any) -> Any:
        return init(z, sampling.warmup, rng_key=key, model_kwargs=data, **options)

    def transition(data: Any, state: Any, _: None) -> Any:
        state = step(state, (), data)
        z = {name: state.z[name] for name in kept}
        return state, (z, state.num_steps, state.diverging)

    def advance(state: Any, data: Any) -> Any:
        return jax.lax.scan(partial(transition, data), state, None, length=sampling.piece)

    return begin, advance


def full(sampling: Sampling, name: str, rows: int, here: bool) -> dict[str, Any]:
    """NUTS on all rows of a sized case: moments of its draws, or how far warm-up came."""
    return joined(side_by_side(_sized, sampling, here, name, rows))


def _sized(sampling: Sampling, number: int, name: str, rows: int) -> tuple[Sites, dict[str, Any]]:
    return nuts(sampling, number, full_problem(name, rows))
