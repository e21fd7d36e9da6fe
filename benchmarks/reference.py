"""References: the full data's posterior, by long NUTS or in closed form, as small JSON files.

Writes ``references/<case>.json``: of each scalar shared parameter, constrained and unconstrained,
mean, sd, effective sample size and r_hat; and what it took. NUTS runs on all rows in one process,
from a good starting point, local sites centred as suits the data (which leaves the posterior of
the shared sites as it is), until every shared parameter has ``--ess`` effective draws and r_hat
below 1.01, or time is up, in which case the file says ``"complete": false``. This is independent
of the package: it reads the model with NumPyro alone.

    python benchmarks/reference.py osic lkj --minutes 15
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from cases import CASES, Case, DataAbsent, chosen
from jax import random
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import init_to_value
from numpyro.infer.hmc import hmc
from numpyro.infer.util import initialize_model
from scipy.stats import halfnorm, norm

FOLDER = Path(__file__).parent / "references"
R_HAT = 1.01
CHUNK = 200  # transitions between looks at the clock


class Full(NamedTuple):
    """Options of the full fit."""

    chains: int = 4
    warmup: int = 1000
    vectorized: bool = False
    x64: bool = True
    seed: int = 1_000_003  # far from the seeds of any fit that is compared with it


class Traces(NamedTuple):
    """Draws of the shared sites, ``(chains, draws, d)``, and the seconds they took."""

    unconstrained: np.ndarray
    constrained: np.ndarray
    names: tuple[list[str], list[str]]
    seconds: dict[str, float]
    divergences: int
    steps: float


def sample(case: Case, full: Full, ess: float, minutes: float) -> tuple[Traces, int]:
    """Run NUTS on all rows of a case; return also how many there are."""
    frame = case.frame()
    began = time.perf_counter()
    arrays, counts = case.arguments(frame)
    model = functools.partial(case.reparameterised(frame), **counts)
    data = jax.device_put({name: _working(array) for name, array in arrays.items()})
    keys = random.split(random.key(full.seed), full.chains)
    start = init_to_value(values={name: jnp.asarray(v) for name, v in case.start.items()})
    initial, potential_of, postprocess_of, _ = initialize_model(
        keys, model, init_strategy=start, dynamic_args=True, model_kwargs=data
    )
    shared = [name for name in initial.z if name in case.start]
    begin, advance = _kernel(potential_of, shared, full)
    begin, advance = _over_chains(begin, full), _over_chains(advance, full)

    state = begin(keys, initial.z, data)
    jax.block_until_ready(advance.compile(state, data))
    seconds = {"compile": time.perf_counter() - began}
    began = time.perf_counter()
    for _ in range(full.warmup // CHUNK + 1):
        state, _ = advance(state, data)
    seconds["warmup"] = time.perf_counter() - began
    chunks, flags = [], []
    began = time.perf_counter()
    while True:
        state, (z, diverging, steps) = advance(state, data)
        chunks.append({name: np.asarray(value) for name, value in z.items()})
        flags.append((int(np.sum(diverging)), float(np.mean(steps))))
        seconds["sampling"] = time.perf_counter() - began
        draws = {name: np.concatenate([c[name] for c in chunks], axis=1) for name in shared}
        if sum(seconds.values()) > 60 * minutes or _enough(_flat(draws), ess):
            break
    constrained = _constrained(case, postprocess_of(**data), draws, initial.z)
    return Traces(
        unconstrained=_flat(draws),
        constrained=_flat(constrained),
        names=(_names(draws), _names(constrained)),
        seconds=seconds,
        divergences=sum(diverging for diverging, _ in flags),
        steps=float(np.mean([steps for _, steps in flags])),
    ), len(frame)


def _kernel(
    potential_of: Callable[..., Any], shared: list[str], full: Full
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How one chain begins, and how it advances by a chunk, keeping the shared sites."""
    init, step = hmc(potential_fn_gen=potential_of, algo="NUTS")

    def begin(key: jax.Array, z: Mapping[str, jax.Array], data: Any) -> Any:
        warmup = (full.warmup // CHUNK + 1) * CHUNK
        dense = [tuple(shared)]
        return init(z, warmup, dense_mass=dense, rng_key=key, model_kwargs=data, step_size=0.1)

    def advance(state: Any, data: Any) -> Any:
        def one(state: Any, _: None) -> Any:
            state = step(state, (), data)
            kept = {name: state.z[name] for name in shared}
            return state, (kept, state.diverging, state.num_steps)

        return jax.lax.scan(one, state, None, length=CHUNK)

    return begin, advance


class _over_chains:
    """A function of one chain's state and the data, for all chains: at once, or in turn."""

    def __init__(self, function: Callable[..., Any], full: Full) -> None:
        self._vectorized = full.vectorized
        self._chains = full.chains
        over = jax.vmap(function, in_axes=(0, None)) if full.vectorized else function
        self._run = jax.jit(over)
