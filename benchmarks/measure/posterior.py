"""The posterior of all rows: by NUTS, by a sum over a grid, or as somebody wrote it down.

The package is not used. What is returned is the content of a reference: of each scalar shared
parameter mean and sd, with the error that they are known to.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro.distributions import biject_to
from numpyro.infer import init_to_uniform
from numpyro.infer.util import initialize_model, unconstrain_fn

from ..cases import Case
from .chains import Sampling, kernel
from .clock import Clock
from .draws import Moments, summary

SEED = 1_000_003  # far from the seeds of any fit that is compared with it
ENOUGH, CONVERGED = 4_000, 1.01  # effective draws and r_hat of a reference that is complete
POINTS_AT_ONCE = 4_096  # of a grid


def start_near(site: Any = None, values: Mapping[str, Any] | None = None, radius: float = 0.0):
    """Begin chains near given values, each somewhere else; at random where there are none."""
    if site is None:
        return partial(start_near, values=values, radius=radius)
    if site["type"] != "sample" or site["is_observed"] or site["name"] not in (values or {}):
        return init_to_uniform(site)
    to_support = biject_to(site["fn"].support)
    u = to_support.inv(jnp.asarray(values[site["name"]]) * 1.0)
    key = site["kwargs"]["rng_key"]
    return to_support(u + random.uniform(key, u.shape, minval=-radius, maxval=radius))


class Nuts:
    """NumPyro's NUTS on all rows, compiled once for all data of the same shapes.

    Parameters
    ----------
    case : Case
        Its model is sampled, or the one that it has for a full fit.
    args : Namespace
        ``chains``, ``warmup`` and ``piece`` (transitions), ``ess`` to stop at, ``minutes`` to stop
        after; ``together`` for chains in step with each other, which suits few rows.
    """

    def __init__(self, case: Case, args: argparse.Namespace) -> None:
        self._case, self._args = case, args
        problem = case.problem(case.frame())
        start = start_near(values=problem.start, radius=getattr(case, "jitter", 0.0))
        self._key, key = random.split(random.key(SEED))
        info = initialize_model(
            random.split(key, args.chains),
            problem.model,
            init_strategy=start,
            dynamic_args=True,
            model_kwargs=problem.data,
        )
        self._z, self._postprocess = info.param_info.z, info.postprocess_fn
        # All that a model by hand samples is shared, whatever it calls it.
        by_hand = getattr(case, "by_hand", None) is not None
        dense = sorted(self._z if by_hand else set(self._z) & set(problem.shared))
        sampling = Sampling(args.chains, args.warmup, args.piece, args.ess, np.inf, SEED)
        self._begin, advance = kernel(info.potential_fn, dense, sorted(self._z), sampling)
        each = jax.vmap(advance, (0, None)) if args.together else _one_by_one(advance)
        self._advance = jax.jit(each)
        self._values = jax.jit(self._shared_values)

    def __call__(self, case: Case) -> dict[str, Any]:
        """Sample until every shared parameter has enough effective draws, or time is up."""
        frame, args, clock = case.frame(), self._args, Clock()
        data, arguments = case.problem(frame).data, case.arguments(frame)[0]
        keys = random.split(self._key, args.chains)
        state = jax.vmap(lambda z, key: self._begin(z, key, data))(self._z, keys)
        warm, pieces, divergences, least = clock.read(), [], 0, 0.0
        for _ in range(-(-args.warmup // args.piece)):
            state, _ = jax.block_until_ready(self._advance(state, data))
            warm = clock.read()
        while not pieces or (least < args.ess and clock.seconds < 60 * args.minutes):
            state, (z, _, diverging) = self._advance(state, data)
            pieces.append(jax.device_get(self._values(z, data, arguments)))
            divergences += int(diverging.sum())
            constrained, unconstrained = (
                summary({k: np.concatenate([p[k] for p in space], axis=1) for k in space[0]})
                for space in zip(*pieces, strict=True)
            )
            rows = [*constrained.values(), *unconstrained.values()]
            least = min(row["ess"] for row in rows)
        worst = max(row["r_hat"] for row in rows)
        return {
            "complete": bool(least > ENOUGH and worst < CONVERGED),
            "method": "NUTS",
            "unconstrained": unconstrained,
            "constrained": constrained,
            "least_ess": least,
            "worst_r_hat": worst,
            "draws": args.piece * len(pieces),
            "divergences": divergences,
            **_phases(warm, clock.read()),
            "rows": len(frame),
            "chains": args.chains,
        }

    def _shared_values(self, z: Any, data: Any, arguments: Any) -> tuple[Any, Any]:
        """Draws of the shared sites, constrained, and in the space where the user's model has them.

        The model that is sampled may have other sites, of which the shared ones follow.
        """
        case, shared = self._case, sorted(self._case.problem(self._case.frame()).shared)
        given = {**arguments, **case.arguments(case.frame())[1]}
        # Sites that have no draws here get any value: no shared site's support depends on them.
        model = numpyro.handlers.seed(case.model, 0)

        def both(z: Any) -> tuple[Any, Any]:
            values = self._postprocess(**data)(z)
            values = {name: values[name] for name in shared}
            return values, unconstrain_fn(model, (), given, values)

        return jax.lax.map(lambda chain: jax.lax.map(both, chain), z)


def _one_by_one(advance: Any) -> Any:
    return lambda states, data: jax.lax.map(lambda state: advance(state, data), states)


def _phases(warm: Mapping[str, float], done: Mapping[str, float]) -> dict[str, dict[str, float]]:
    compiling, phases = warm["compile_seconds"], {}
    for name in ("seconds", "cpu_seconds"):
        spent = (compiling, warm[name] - compiling, done[name] - warm[name])
        phases[name] = dict(zip(("compile", "warmup", "sampling"), spent, strict=True))
    return phases


def on_grid(case: Any) -> dict[str, Any]:
    """Sum the posterior over a grid of unconstrained coordinates, all of which are shared.

    On a density that is smooth and vanishes at the ends the trapezoidal rule's error falls faster
    than any power of its step.
    """
    frame = case.frame()
    arrays, counts = case.arguments(frame)
    model = partial(case.model, **counts)
    info = initialize_model(random.key(0), model, dynamic_args=True, model_kwargs=arrays)
    potential = info.potential_fn(**arrays)
    axes = [np.linspace(low, high, count) for low, high, count in case.grid.values()]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    names = dict.fromkeys(name.partition("[")[0] for name in case.grid)
    shapes = {name: info.param_info.z[name].shape for name in names}

    def log_density(point: jax.Array) -> jax.Array:
        sites, start = {}, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape, dtype=int))
            sites[name] = point[start : start + size].reshape(shape)
            start += size
        return -potential(sites)

    heights = jax.jit(lambda p: jax.lax.map(log_density, p, batch_size=POINTS_AT_ONCE))(points)
    return {"method": "grid", **_of_grid(np.asarray(heights), points, case.grid)}


def _of_grid(heights: np.ndarray, points: np.ndarray, grid: Mapping[str, Any]) -> dict[str, Any]:
    weights = np.exp(heights - heights.max())
    weights /= weights.sum()
    mean = weights @ points
    sd = np.sqrt(weights @ (points - mean) ** 2)
    edge = np.any((points == points.min(axis=0)) | (points == points.max(axis=0)), axis=1)
    table = dict(zip(grid, zip(mean, sd, strict=True), strict=True))
    return {"complete": bool(weights[edge].sum() < 1e-6), "unconstrained": exactly(table)}


def exactly(moments: Mapping[str, tuple[float, float]]) -> Moments:
    """Moments that have no Monte Carlo error."""
    known = {"mcse": 0.0, "sd_mcse": 0.0}
    return {k: {"mean": float(mean), "sd": float(sd), **known} for k, (mean, sd) in moments.items()}


def posterior(trial: Any, nuts: Nuts | None) -> dict[str, Any]:
    """The reference of a trial, in the way that it says."""
    if trial.exact is not None:
        moments = exactly(trial.exact(trial.frame()))
        return {"method": "closed form", "complete": True, "unconstrained": moments}
    if trial.grid is not None:
        return on_grid(trial)
    if trial.summed is not None:
        return trial.summed(trial.frame())
    assert nuts is not None
    return nuts(trial)
