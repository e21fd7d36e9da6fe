"""How near the gradient of a shard's density comes to what the machine could do.

Takes a random intercept and slope (50,000 rows, 5,000 groups) and a logistic regression on 20
predictors, in single and in double precision, and measures on one processor

- the gradient as a shard computes it, called alone, and in a loop as NUTS does;
- the memory traffic it cannot do without, at the bandwidth of this machine;
- the same arithmetic by hand, in NumPy and in JAX, the latter with several ways to look values of
  groups up and to sum over their rows again, which is the gradient of looking up; and without any;
- these ways alone.

All ways take turns, so that what else the machine does disturbs them alike; the least time of all
turns counts. With ``--profile`` also where XLA spends the time.

    python benchmarks/gradient.py
    python benchmarks/gradient.py --cases lung --unequal --profile
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import PREDICTORS, logistic_plain, lung, sizes_of_groups
from jax import lax
from machine import facts, in_own_process, load, print_rows, save
from scipy.special import expit

from dask_consensus.model.roles import ModelInputs, read_model
from dask_consensus.shard.target import PriorFactor, log_density
from dask_consensus.shard_data import Data

OUT = Path(__file__).parent / "results" / "gradient.json"
LOOP = 50  # gradients in one call
BIG = 2**25  # numbers of arrays that no cache holds
HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)

MODEL, NUMPY, BOUND = "the model's", "NumPy by hand", "(no looking up at all)"
Gradient = Callable[..., Any]  # (u, local, data, factor) -> value, (gradients)


class Case(NamedTuple):
    """What is measured; without groups a logistic regression."""

    x64: bool
    rows: int
    groups: int
    unequal: bool


class Problem(NamedTuple):
    """Where a density is evaluated, and all ways to its gradient."""

    at: tuple[np.ndarray, dict[str, np.ndarray], Data, PriorFactor]
    ways: dict[str, Gradient]


def problem_of(case: Case) -> Problem:
    dtype = np.float64 if case.x64 else np.float32
    if not case.groups:
        return logistic_problem(case.rows, dtype)
    sizes = np.full(case.groups, case.rows // case.groups)
    if case.unequal:
        sizes = sizes_of_groups(np.random.default_rng(2), case.groups, case.rows)
    return lung_problem(np.repeat(np.arange(case.groups, dtype=np.int32), sizes), dtype)


def lung_problem(codes: np.ndarray, dtype: type) -> Problem:
    """A random intercept and slope of groups, whose rows lie sorted."""
    rng = np.random.default_rng(0)
    rows, groups = len(codes), int(codes[-1]) + 1
    weeks = rng.uniform(0, 52, rows)
    a, b = 2800 + 800 * rng.normal(size=groups), -4 + 4 * rng.normal(size=groups)
    fvc = rng.normal(a[codes] + b[codes] * weeks, 130.0)
    values = {"weeks": weeks.astype(dtype), "fvc": fvc.astype(dtype)}
    offered = ModelInputs(values, {"patient": 0}, ("patient",), {"n_patient": 0}, {}, {})
    u = np.array([2800.0, np.log(800.0), -4.0, np.log(4.0), np.log(130.0)], dtype)
    local = {"a": a.astype(dtype), "b": b.astype(dtype)}
    data = Data({**values, "patient": codes}, np.ones(rows, bool), (np.ones(groups, bool),))
    by_hand = {
        NUMPY: lung_by_numpy(np.searchsorted(codes, np.arange(groups))),
        "JAX by hand": lung_by_hand(plainly),
        "... in bounds, sorted": lung_by_hand(hinted),
    }
    for name, total in totals(codes).items():
        by_hand[f"... {name}"] = lung_by_hand(summing(total))
    by_hand[BOUND] = lung_by_hand(lambda values, codes: values[0])
    return _problem(lung, offered, u, local, data, by_hand)


def logistic_problem(rows: int, dtype: type) -> Problem:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(len(PREDICTORS), rows)).astype(dtype)
    beta = np.linspace(-0.5, 0.5, len(PREDICTORS))
    y = (rng.random(rows) < expit(-0.8 + beta @ x)).astype(dtype)
    arguments = {**dict(zip(PREDICTORS, x, strict=True)), "y": y}
    offered = ModelInputs(arguments, {}, (), {}, {}, {})
    u, data = np.append(-0.8, beta).astype(dtype), Data(arguments, np.ones(rows, bool), ())
    by_hand = {
        NUMPY: lambda u, _, *rest: logistic_by_hand(np, u, x, *rest),
        "JAX by hand, as matrix": lambda u, _, data, factor: logistic_by_hand(
            jnp, u, jnp.stack([data.arguments[name] for name in PREDICTORS]), data, factor
        ),
    }
    return _problem(logistic_plain, offered, u, {}, data, by_hand)


def _problem(function, offered, u, local, data, by_hand) -> Problem:
    gradient = jax.value_and_grad(partial(log_density, read_model(function, offered)), (0, 1))
    factor = PriorFactor(u.dtype.type(0.1), np.zeros_like(u), np.eye(len(u), dtype=u.dtype))
    return Problem((u, local, data, factor), {MODEL: gradient, **by_hand})


# By hand, random intercept and slope

MEANS, LOGS = np.array([0, 2]), np.array([1, 3, 4])  # of a, b; sds of a, b and rows
WIDTHS, SCALES = np.array([500.0, 3.0]), np.array([100.0, 3.0, 100.0])  # of their priors


def lung_shared(np_, u, factor):
    """Tempered prior of means and log sds, with the Jacobian; and the anchor."""
    prior = np_.sum(u[LOGS] - 0.5 * (np_.exp(u[LOGS]) / SCALES) ** 2 + np.log(2 / SCALES))
    prior -= 0.5 * np_.sum((u[MEANS] / WIDTHS) ** 2) + np.log(WIDTHS).sum() + 5 * HALF_LOG_2PI
    away = u - factor.anchor_mean
    return factor.weight * prior - 0.5 * away @ (factor.anchor_precision @ away)


def lung_by_hand(look_up: Callable[[Any, Any], Any]) -> Gradient:
    """The gradient of the density in JAX, group values looked up as told."""

    def normal(x, mean, sd):
        return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - HALF_LOG_2PI

    def density(u, local, data, factor):
        mu_a, mu_b = u[MEANS]
        sd_a, sd_b, sigma = jnp.exp(u[LOGS])
        groups = normal(local["a"], mu_a, sd_a) + normal(local["b"], mu_b, sd_b)
        a, b = (look_up(local[name], data.arguments["patient"]) for name in "ab")
        rows = normal(data.arguments["fvc"], a + b * data.arguments["weeks"], sigma)
        own = jnp.sum(jnp.where(data.groups[0], groups, 0.0))
        return lung_shared(jnp, u, factor) + own + jnp.sum(jnp.where(data.rows, rows, 0.0))

    return jax.value_and_grad(density, argnums=(0, 1))


def lung_by_numpy(starts: np.ndarray) -> Gradient:
    """Value and gradient in NumPy, over rows sorted by group."""

    def gradient(u, local, data, factor):
        codes, weeks, fvc = (data.arguments[name] for name in ("patient", "weeks", "fvc"))
        (mu_a, mu_b), sds = u[MEANS], np.exp(u[LOGS])
        sd_a, sd_b, sigma = sds
        z = (fvc - local["a"][codes] - local["b"][codes] * weeks) / sigma
        z = np.where(data.rows, z, u.dtype.type(0))
        z_a, z_b = (local["a"] - mu_a) / sd_a, (local["b"] - mu_b) / sd_b
        squares = np.array([np.sum(q * q) for q in (z_a, z_b, z)])
        counts = np.array([len(z_a), len(z_b), len(z)])
        value = lung_shared(np, u, factor) - 0.5 * squares.sum()
        value -= counts @ (u[LOGS] + HALF_LOG_2PI)
        slope_rows = z / sigma
        slopes = {
            "a": np.add.reduceat(slope_rows, starts) - z_a / sd_a,
            "b": np.add.reduceat(slope_rows * weeks, starts) - z_b / sd_b,
        }
        slope = -factor.anchor_precision @ (u - factor.anchor_mean)
        slope[MEANS] += np.array([z_a.sum(), z_b.sum()]) / sds[:2]
        slope[MEANS] -= factor.weight * u[MEANS] / WIDTHS**2
        slope[LOGS] += squares - counts + factor.weight * (1 - (sds / SCALES) ** 2)
        return value, (slope, slopes)

    return gradient


# By hand, logistic


def logistic_by_hand(np_, u, x, data, factor):
    """Value and gradient; one product of matrix and vector there, one back."""
    logits, y = u[0] + u[1:] @ x, data.arguments["y"]
    softplus = np_.maximum(logits, 0) + np_.log1p(np_.exp(-np_.abs(logits)))
    sds = np.append(5.0, np.full(len(PREDICTORS), 2.0)).astype(u.dtype)
    prior = -0.5 * np_.sum((u / sds) ** 2) - np.log(sds).sum() - len(sds) * HALF_LOG_2PI
    away = u - factor.anchor_mean
    value = np_.sum(np_.where(data.rows, y * logits - softplus, 0.0))
    value += factor.weight * prior - 0.5 * away @ (factor.anchor_precision @ away)
    slope = np_.where(data.rows, y - 1 / (1 + np_.exp(-logits)), 0.0).astype(u.dtype)
    slopes = np_.concatenate([np_.sum(slope)[None], x @ slope])
    return value, (slopes - factor.weight * u / sds**2 - factor.anchor_precision @ away, {})


# Ways to look up and to sum


def plainly(values, codes):
    return values[codes]


def hinted(values, codes):
    return values.at[codes].get(mode="promise_in_bounds", indices_are_sorted=True)


def summing(total: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Look up as ever, but sum as told in the gradient."""
    look_up = jax.custom_vjp(plainly)
    look_up.defvjp(lambda v, codes: (v[codes], codes), lambda codes, s: (total(s, codes), None))
    return look_up


def totals(codes: np.ndarray) -> dict[str, Callable[[Any, Any], Any]]:
    """Ways to sum over the rows of each group, which lie sorted."""
    sizes = np.bincount(codes)
    groups, ends = len(sizes), np.cumsum(sizes)
    hints = {"indices_are_sorted": True, "mode": "promise_in_bounds"}
    found = {
        "segment_sum, in bounds, sorted": partial(
            jax.ops.segment_sum, num_segments=groups, **hints
        ),
        "differences of a cumulative sum": lambda values, _: jnp.diff(
            jnp.cumsum(values)[ends - 1], prepend=0
        ),
    }
    if len(set(sizes)) == 1:
        found["reshape (equal groups)"] = lambda values, _: values.reshape(groups, -1).sum(1)
    return found


# Measuring


def take_turns(calls: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Least processor time of each call, in seconds, over turns of all of them.

    Of the whole process: waiting for a processor that others use does not count.
    """
    best = dict.fromkeys(calls, np.inf)
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(turns):
        for name, call in calls.items():
            began = time.process_time()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.process_time() - began)
    return best


def looped(gradient: Gradient) -> Gradient:
    """Many gradients in one call, each at a point that depends on the last."""

    def loop(u, local, data, factor):
        def step(point, _):
            value, slopes = gradient(*point, data, factor)
            return jax.tree.map(lambda x, slope: x + 1e-12 * slope, point, slopes), value

        return lax.scan(step, (u, local), None, length=LOOP)

    return loop


def calls_of(problem: Problem, change: Callable[[Gradient], Gradient]) -> dict[str, Any]:
    """Calls of all ways, those of JAX changed."""
    at = jax.device_put(problem.at)
    calls = {name: partial(jax.jit(change(way)), *at) for name, way in problem.ways.items()}
    return {**calls, NUMPY: partial(problem.ways[NUMPY], *problem.at)}


def check(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Raise unless all ways give one value and gradient."""
    expected = jax.tree.leaves(calls[MODEL]())
    tolerance = 1e-8 if expected[0].dtype == np.float64 else 2e-3
    for name in [name for name in calls if name != BOUND]:
        for a, b in zip(jax.tree.leaves(calls[name]()), expected, strict=True):
            away = np.abs(np.subtract(a, b, dtype=float)).max() / np.abs(b).max()
            if not away < tolerance:
                raise AssertionError(f"{name} is {away:.1e} away from the model's")


def alone(problem: Problem, turns: int) -> dict[str, float]:
    """Seconds of looking up, of its gradient, and of each way to sum; less those of the call."""
    _, local, data, _ = problem.at
    values, weights, codes = local["a"], data.arguments["weeks"], data.arguments["patient"]
    starts = np.searchsorted(codes, np.arange(len(values)))
    v, w, c = jax.device_put((values, weights, codes))
    slope = jax.grad(lambda v, c, w: jnp.sum(v[c] * w))
    empty = "(an empty call)"
    by_jax = {
        empty: partial(jax.jit(lambda w: w[:1] + 1), w),
        "a[codes]": partial(jax.jit(plainly), v, c),
        "a[codes], in bounds, sorted": partial(jax.jit(hinted), v, c),
        "gradient of a[codes]": partial(jax.jit(slope), v, c, w),
        **{name: partial(jax.jit(total), w, c) for name, total in totals(codes).items()},
    }
    by_numpy = {
        "np.take": partial(np.take, values, codes),
        "np.add.reduceat": partial(np.add.reduceat, weights, starts),
        "np.bincount": partial(np.bincount, codes, weights),
    }
    took = take_turns({**by_jax, **by_numpy}, turns)
    return took | {name: max(took[name] - took[empty], 0.0) for name in by_jax if name != empty}


def bandwidth(numbers: int, dtype: type, turns: int) -> float:
    """Bytes a second of ``a = b + c`` in NumPy."""
    a, b, c = (np.ones(numbers, dtype) for _ in range(3))
    repeats = max(1, 2**22 // numbers)

    def add() -> None:
        for _ in range(repeats):
            np.add(b, c, out=a)

    return 3 * a.nbytes * repeats / take_turns({"add": add}, turns)["add"]


def measure(case: Case, turns: int) -> dict[str, Any]:
    """Measure one case, in a process of its own."""
    machine = facts()
    with jax.enable_x64(case.x64):
        problem = problem_of(case)
        calls = calls_of(problem, lambda gradient: gradient)
        check(calls)
        one = take_turns(calls, 4 * turns)
        many = take_turns(calls_of(problem, looped), turns)
        parts = alone(problem, 4 * turns) if case.groups else {}
    # NumPy has no loop but Python's.
    loops = {name: took / LOOP for name, took in many.items()} | {NUMPY: one[NUMPY]}
    # What must be read once, and written once as gradient.
    leaves = jax.tree.leaves((problem.at, problem.at[:2]))
    dtype = problem.at[0].dtype.type
    times = {"one_call": one, "in_a_loop": loops, "alone": parts}
    return {
        **case._asdict(),
        "bytes_a_row": sum(leaf.nbytes for leaf in leaves) / case.rows,
        "memory_bytes_a_second": bandwidth(BIG, dtype, 3),
        "cache_bytes_a_second": bandwidth(case.rows, dtype, 5 * turns),
        "ns_a_row": {
            how: {name: seconds / case.rows * 1e9 for name, seconds in found.items()}
            for how, found in times.items()
        },
        "machine": {**machine, "load_after": round(os.getloadavg()[0], 2)},
    }


def profile(case: Case) -> list[tuple[str, str, str]]:
    """Operations of the compiled gradient: name, what of the model, microseconds a gradient."""
    with jax.enable_x64(case.x64), tempfile.TemporaryDirectory() as folder:
        problem = problem_of(case)
        at = jax.device_put(problem.at)
        run = jax.jit(looped(problem.ways[MODEL])).lower(*at).compile()
        jax.block_until_ready(run(*at))
        with jax.profiler.trace(folder):
            jax.block_until_ready(run(*at))
        of = dict(re.findall(r"%([\w.\-]+) = .*?op_name=\"([^\"]*)\"", run.as_text()))
        spent: Counter[str] = Counter()
        for path in Path(folder).rglob("*.xplane.pb"):
            planes = jax.profiler.ProfileData.from_file(str(path)).planes
            for event in (e for plane in planes for line in plane.lines for e in line.events):
                if event.name in of and not event.name.startswith("while"):
                    spent[event.name] += event.duration_ns
    return [
        (name, f"`{'/'.join(of[name].split('/')[-2:])}`", f"{took / LOOP / 1e3:.1f}")
        for name, took in spent.most_common(12)
    ]


# Tables


def title(one: Mapping[str, Any]) -> str:
    groups = f", {one['groups']:,} {'unequal' if one['unequal'] else 'equal'} groups"
    name, precision = "lung" if one["groups"] else "logistic", "f64" if one["x64"] else "f32"
    return f"{name}, {precision}: {one['rows']:,} rows{groups if one['groups'] else ''}"


def print_one(one: Mapping[str, Any]) -> None:
    """Print what was measured of a case."""
    machine, times = one["machine"], one["ns_a_row"]
    print(f"\n{title(one)}, load {machine['load_before']} - {machine['load_after']}\n")
    calls, loops = times["one_call"], dict(times["in_a_loop"])
    for where in ("memory", "cache"):
        speed = one[f"{where}_bytes_a_second"] / 1e9
        least = one["bytes_a_row"] / speed
        loops[f"({one['bytes_a_row']:.1f} bytes a row, {where}, {speed:.0f} GB/s)"] = least
    print_rows(
        ("gradient", "in a loop, ns a row", "times as fast as the model's", "one call, ns a row"),
        [
            (
                way,
                f"{took:.2f}",
                f"{loops[MODEL] / took:.2f}",
                f"{calls[way]:.2f}" if way in calls else "-",
            )
            for way, took in loops.items()
        ],
    )
    if times["alone"]:
        print()
        rows = [(way, f"{took:.2f}") for way, took in times["alone"].items()]
        print_rows(("alone; JAX's less an empty call", "ns a row"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("lung", "logistic")
    parser.add_argument("--cases", nargs="+", choices=names, default=list(names))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--groups", type=int, default=5_000)
    parser.add_argument("--unequal", action="store_true", help="groups of unequal sizes")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="where XLA spends the time")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    args = parser.parse_args()
    # Inherited by the processes that measure.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    for name in () if args.table else args.cases:
        groups = (args.groups, args.unequal) if name == "lung" else (0, False)
        for x64 in (False, True):
            case = Case(x64, args.rows, *groups)
            one = in_own_process(measure, case, args.turns)
            save(args.out, [*(o for o in load(args.out) if title(o) != title(one)), one])
            if args.profile:
                print(f"\n{title(one)}, microseconds a gradient\n")
                print_rows(("operation", "of", "us"), in_own_process(profile, case))
    for one in load(args.out):
        print_one(one)


if __name__ == "__main__":
    main()
