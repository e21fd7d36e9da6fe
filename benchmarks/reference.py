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
from cases import CASES, Case, DataAbsent, chosen
from jax import random
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import init_to_value
from numpyro.infer.hmc import hmc
from numpyro.infer.util import initialize_model
from scipy.stats import halfnorm

SCRIPT = "benchmarks/reference.py"
FOLDER = Path(__file__).parent / "references"
R_HAT = 1.01
LEAST_ESS = 4_000


class Full(NamedTuple):
    """Options of the full fit."""

    chains: int = 4
    warmup: int = 600  # in whole chunks
    chunk: int = 200  # transitions of each chain between looks at the clock
    x64: bool = True
    seed: int = 1_000_003  # far from the seeds of any fit that is compared with it


class Clock:
    """Wall and processor seconds, by what they were spent on.

    Processor seconds do not depend on what else the machine does.
    """

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """Count the time since the last lap towards `name`."""
        now = time.perf_counter(), time.process_time()
        for spent, then, here in zip((self.wall, self.cpu), self._last, now, strict=True):
            spent[name] = spent.get(name, 0.0) + here - then
        self._last = now


class Traces(NamedTuple):
    """Draws of the shared sites, ``(chains, draws, d)``, and the time they took."""

    unconstrained: np.ndarray
    constrained: np.ndarray
    names: tuple[list[str], list[str]]
    clock: Clock
    divergences: int
    steps: float


def sample(case: Case, full: Full, ess: float, minutes: float) -> tuple[Traces, int]:
    """Run NUTS on all rows of a case; return also how many there are."""
    frame = case.frame()
    clock = Clock()
    arrays, counts = case.arguments(frame)
    model = functools.partial(case.reparameterised(frame), **counts)
    data = jax.device_put({name: _working(array) for name, array in arrays.items()})
    keys = random.split(random.key(full.seed), full.chains)
    start = init_to_value(values={name: jnp.asarray(v) for name, v in case.start.items()})
    initial, potential_of, postprocess_of, _ = initialize_model(
        keys, model, init_strategy=start, dynamic_args=True, model_kwargs=data
    )
    shared = [name for name in initial.z if name in case.start]
    begin, advance = (_over_chains(f) for f in _kernel(potential_of, shared, full))

    state = jax.jit(begin)((keys, initial.z), data)
    advance = jax.jit(advance).lower(state, data).compile()
    clock.lap("compile")
    for _ in range(full.warmup // full.chunk):
        state, _ = jax.block_until_ready(advance(state, data))
    clock.lap("warmup")
    chunks, flags = [], []
    while True:
        state, (z, diverging, steps) = advance(state, data)
        chunks.append({name: np.asarray(value) for name, value in z.items()})
        flags.append((int(np.sum(diverging)), float(np.mean(steps))))
        clock.lap("sampling")
        draws = {name: np.concatenate([c[name] for c in chunks], axis=1) for name in shared}
        if sum(clock.cpu.values()) > 60 * minutes or _enough(flat(draws), ess):
            break
    constrained = _constrained(case, postprocess_of(**data), draws, initial.z)
    return Traces(
        unconstrained=flat(draws),
        constrained=flat(constrained),
        names=(scalar_names(draws), scalar_names(constrained)),
        clock=clock,
        divergences=sum(diverging for diverging, _ in flags),
        steps=float(np.mean([steps for _, steps in flags])),
    ), len(frame)


def _kernel(
    potential_of: Callable[..., Any], shared: list[str], full: Full
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How one chain begins, and how it advances by a chunk, keeping the shared sites."""
    init, step = hmc(potential_fn_gen=potential_of, algo="NUTS")

    def begin(start: tuple[jax.Array, Mapping[str, jax.Array]], data: Any) -> Any:
        key, z = start
        options = {"dense_mass": [tuple(shared)], "step_size": 0.1, "model_kwargs": data}
        return init(z, full.warmup, rng_key=key, **options)

    def advance(state: Any, data: Any) -> Any:
        def one(state: Any, _: None) -> Any:
            state = step(state, (), data)
            kept = {name: state.z[name] for name in shared}
            return state, (kept, state.diverging, state.num_steps)

        return jax.lax.scan(one, state, None, length=full.chunk)

    return begin, advance


def _over_chains(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take a function of one chain's state and the data over all chains, one after another."""
    return lambda states, data: jax.lax.map(lambda state: function(state, data), states)


def _working(array: np.ndarray) -> np.ndarray:
    return array.astype(np.result_type(jnp.result_type(float))) if array.dtype == float else array


def flat(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Join sites ``(chains, draws, ...)`` to ``(chains, draws, d)``."""
    parts = [np.asarray(v, np.float64).reshape(*v.shape[:2], -1) for v in values.values()]
    return np.concatenate(parts, axis=-1)


def scalar_names(values: Mapping[str, np.ndarray]) -> list[str]:
    """Name the scalars of sites ``(chains, draws, ...)``, as in ``beta[1, 0]``."""
    return [
        site + (f"[{', '.join(map(str, index))}]" if index else "")
        for site, value in values.items()
        for index in np.ndindex(value.shape[2:])
    ]


def _enough(draws: np.ndarray, ess: float) -> bool:
    found = effective_sample_size(draws).min(), split_gelman_rubin(draws).max()
    return bool(found[0] >= ess and found[1] < R_HAT)


def _constrained(
    case: Case,
    postprocess: Callable[..., Any],
    draws: Mapping[str, np.ndarray],
    z: Mapping[str, jax.Array],
) -> dict[str, np.ndarray]:
    """Map draws of the shared sites to their own supports."""
    local = {name: value[0] for name, value in z.items() if name not in draws}

    def one(point: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        values = postprocess({**local, **point})
        return {name: values[name] for name in case.start}

    points = {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}
    mapped = jax.jit(lambda points: jax.lax.map(one, points, batch_size=256))(points)
    shape = next(iter(draws.values())).shape[:2]
    return {
        name: np.asarray(value).reshape(*shape, *value.shape[1:]) for name, value in mapped.items()
    }


# Closed form


def integrate(case: Case) -> dict[str, dict[str, dict[str, float]]]:
    """Moments of tau and its log where ``y ~ N(0, tau^2 + s^2)``, by the trapezoidal rule.

    On a density that is smooth and vanishes at both ends the rule's error falls faster than any
    power of its step.
    """
    y = case.frame()["y"].to_numpy()
    log_tau = np.linspace(-14.0, 4.0, 40_001)
    tau = np.exp(log_tau)
    sd = np.sqrt(tau**2 + case.variance)
    log_density = -len(y) * np.log(sd) - 0.5 * (y @ y) / sd**2
    log_density += halfnorm.logpdf(tau, scale=5.0) + log_tau
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()

    def moments(values: np.ndarray) -> dict[str, float]:
        mean = weights @ values
        sd = np.sqrt(weights @ (values - mean) ** 2)
        return {"mean": float(mean), "sd": float(sd), "mcse": 0.0}

    return {"unconstrained": {"tau": moments(log_tau)}, "constrained": {"tau": moments(tau)}}


# Files


def summary(draws: np.ndarray, names: list[str]) -> dict[str, dict[str, float]]:
    """Summarise draws ``(chains, draws, d)``; scalars that do not vary are left out."""
    every = draws.reshape(-1, draws.shape[-1])
    mean, sd = every.mean(axis=0), every.std(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ess, r_hat = effective_sample_size(draws), split_gelman_rubin(draws)
    table = {
        "mean": mean,
        "sd": sd,
        "ess": ess,
        "r_hat": r_hat,
        "mcse": sd / np.sqrt(ess),
    }
    return {
        name: {key: float(values[i]) for key, values in table.items()}
        for i, name in enumerate(names)
        if sd[i] > 1e-9 * (1 + abs(mean[i]))
    }


def by_nuts(case: Case, ess: float, minutes: float) -> dict[str, Any]:
    """Content of the file of a case that NUTS is run on."""
    full = Full(**case.full)
    with jax.enable_x64(full.x64):
        traces, rows = sample(case, full, ess, minutes)
    spaces = (traces.unconstrained, traces.constrained)
    tables = [summary(draws, names) for draws, names in zip(spaces, traces.names, strict=True)]
    least = min(row["ess"] for row in tables[0].values())
    worst = max(row["r_hat"] for row in tables[0].values())
    return {
        "complete": bool(least > LEAST_ESS and worst < R_HAT),
        "method": "NUTS",
        "unconstrained": tables[0],
        "constrained": tables[1],
        "least_ess": least,
        "worst_r_hat": worst,
        "draws": traces.unconstrained.shape[1],
        "divergences": traces.divergences,
        "steps": traces.steps,
        "seconds": traces.clock.wall,
        "cpu_seconds": traces.clock.cpu,
        "rows": rows,
        **full._asdict(),
    }


def closed_form(case: Case) -> dict[str, Any]:
    """Content of the file of a case that is integrated numerically."""
    return {"complete": True, "method": "numerical integration", **integrate(case)}


def write(case: Case, ess: float, minutes: float) -> Path:
    """Make the reference of one case."""
    found = by_nuts(case, ess, minutes) if case.variance is None else closed_form(case)
    libraries = ("jax", "jaxlib", "numpyro", "numpy")
    made = {
        "case": case.name,
        **found,
        "versions": {"python": platform.python_version()} | {x: version(x) for x in libraries},
        "cpus": os.cpu_count(),
        "command": f"python {SCRIPT} {case.name} --ess {ess:g} --minutes {minutes:g}",
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{case.name}.json"
    path.write_text(json.dumps(made, indent=1) + "\n")
    return path


def read(case: Case) -> dict[str, Any] | None:
    """Read the reference of a case; None where there is none."""
    path = FOLDER / f"{case.name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}; default: those missing")
    parser.add_argument("--ess", type=float, default=10_000, help="stop at, default %(default)g")
    parser.add_argument(
        "--minutes",
        type=float,
        default=15,
        help="of processor time to stop after, default %(default)g",
    )
    args = parser.parse_args()
    for case in chosen(args.case):
        if case.full is None or (not args.case and read(case) is not None):
            continue
        try:
            path = write(case, args.ess, args.minutes)
        except DataAbsent as error:
            print(f"{case.name}: skipped, {error}")
            continue
        made = json.loads(path.read_text())
        took = made.get("cpu_seconds", {})
        print(
            f"{case.name}: ess {made.get('least_ess', np.inf):,.0f}, "
            f"r_hat {made.get('worst_r_hat', 1.0):.4f}, {sum(took.values()):.0f} s, "
            f"{'complete' if made['complete'] else 'NOT complete'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
