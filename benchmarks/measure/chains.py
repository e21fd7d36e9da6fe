"""Chains on all rows, each in a process of its own, in pieces so that they can stop at any time.

NUTS is a compiled scan over NumPyro's kernel, faster than ``MCMC.run``; shared sites have a dense
mass matrix, effects of groups a diagonal one. Nothing here knows of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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
    x64: bool = False

    def enough(self, sites: Sites, clock: Clock) -> bool:
        """Whether a chain has its share of effective draws, or no time left."""
        n = len(next(iter(sites.values())))
        # Looked at each time there are a tenth more draws.
        look = n >= 50 and int(np.log(n) / 0.1) > int(np.log(max(n - self.piece, 1)) / 0.1)
        has_share = look and least_ess(sites) >= self.ess / self.chains
        return has_share or clock.seconds > self.seconds


def side_by_side(chain: Callable[..., Any], sampling: Sampling, here: bool, *arguments: Any) -> Any:
    """Run ``chain(sampling, number, *arguments)`` for every chain, in processes unless `here`."""
    given = [[value] * sampling.chains for value in arguments]
    numbers = range(sampling.chains)
    if here:
        return list(map(chain, [sampling] * sampling.chains, numbers, *given))
    with ProcessPoolExecutor(sampling.chains, mp_context=get_context("spawn")) as pool:
        return list(pool.map(chain, [sampling] * sampling.chains, numbers, *given))


def joined(chains: list[tuple[Sites, dict[str, Any]]]) -> dict[str, Any]:
    """One row of chains that ran side by side, from draws that all have."""
    n = min(len(next(iter(sites.values()))) for sites, _ in chains)
    row = {key: max(row[key] for _, row in chains) for key in chains[-1][1]}
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


class Chain(NamedTuple):
    """Unconstrained draws of the shared sites, what they took, and their way to the constrained."""

    sites: Sites
    row: dict[str, Any]
    marks: Mapping[str, tuple[float, float]]  # wall and processor seconds at the end of phases
    constrain: Callable[[Sites], Sites]


def nuts(sampling: Sampling, number: int, problem: Problem) -> Chain:
    """Run one chain of NUTS until it has its share of draws."""
    with jax.enable_x64(sampling.x64):
        clock, key = Clock(), random.fold_in(random.key(sampling.seed), number)
        working = np.dtype(jnp.result_type(float))
        data = {
            name: jnp.asarray(value, working if value.dtype.kind == "f" else None)
            for name, value in problem.data.items()
        }
        start = {name: jnp.asarray(value) for name, value in problem.start.items()}
        initial, potential_of, postprocess_of, _ = initialize_model(
            key,
            problem.model,
            init_strategy=init_to_value(values=start),
            dynamic_args=True,
            model_kwargs=data,
        )
        begin, advance = _kernel(potential_of, sorted(problem.shared), sampling)
        state = begin(initial.z, key, data)
        code = jax.jit(advance).lower(state, data).compile()
        clock.mark("compile")
        for done in range(sampling.warmup // sampling.piece):
            state, (z, *_) = jax.device_get(code(state, data))
            if clock.seconds > sampling.seconds:
                none = {name: value[:0] for name, value in z.items()}
                return Chain(none, _row(clock, sampling, done + 1, []), clock.marks, dict)
        clock.mark("warmup")
        pieces, sites = [], {}
        while not sites or not sampling.enough(sites, clock):
            state, piece = jax.device_get(code(state, data))
            pieces.append(piece)
            draws = [z for z, *_ in pieces]
            sites = {name: np.concatenate([z[name] for z in draws]) for name in draws[0]}
        clock.mark("sampling")
        local = {name: z for name, z in initial.z.items() if name not in problem.shared}
        postprocess = postprocess_of(**data)

    def constrain(sites: Sites) -> Sites:
        def at(point: Sites) -> Sites:
            values = postprocess({**local, **point})
            return {name: values[name] for name in sites}

        with jax.enable_x64(sampling.x64):
            over_all = jax.jit(lambda points: jax.lax.map(at, points, batch_size=256))
            return jax.device_get(over_all(sites))

    row = _row(clock, sampling, sampling.warmup // sampling.piece + len(pieces), pieces)
    return Chain(sites, row, clock.marks, constrain)


def _kernel(potential_of: Any, shared: Sequence[str], sampling: Sampling) -> tuple[Any, Any]:
    """How a chain begins, and how it advances by a piece, keeping the shared sites."""
    init, step = hmc(potential_fn_gen=potential_of, algo="NUTS")

    def begin(z: Any, key: jax.Array, data: Any) -> Any:
        options = {"dense_mass": [tuple(shared)], "step_size": 0.1, "model_kwargs": data}
        return init(z, sampling.warmup, rng_key=key, **options)

    def advance(state: Any, data: Any) -> Any:
        def transition(state: Any, _: None) -> Any:
            state = step(state, (), data)
            return state, (
                {name: state.z[name] for name in shared},
                state.num_steps,
                state.diverging,
            )

        return jax.lax.scan(transition, state, None, length=sampling.piece)

    return begin, advance


def _row(clock: Clock, sampling: Sampling, n_pieces: int, pieces: Sequence[Any]) -> dict[str, Any]:
    row = {
        **clock.read(),
        "iterations": sampling.piece * n_pieces,
        "capped": clock.seconds > sampling.seconds,
    }
    if pieces:
        row["warm_seconds"] = clock.marks["warmup"][0]
        row["steps"] = float(np.mean([steps for _, steps, _ in pieces]))
        row["divergences"] = int(np.sum([diverging for *_, diverging in pieces]))
    return row


def full(sampling: Sampling, name: str, rows: int, here: bool) -> dict[str, Any]:
    """NUTS on all rows of a sized case: moments of its draws, or how far warm-up came."""
    return joined(side_by_side(_sized, sampling, here, name, rows))


def _sized(sampling: Sampling, number: int, name: str, rows: int) -> tuple[Sites, dict[str, Any]]:
    return nuts(sampling, number, full_problem(name, rows))[:2]
