"""How near the gradient of a shard's density comes to what the machine could do.

Takes a random intercept and slope (50,000 rows, 5,000 groups) and a logistic regression on 20
predictors, in single and in double precision, and measures

- the gradient as a shard computes it, called alone, and in a loop as NUTS does;
- the memory traffic it cannot do without, at the bandwidth of this machine;
- the same arithmetic by hand, in NumPy, and in JAX with several ways to look values of groups up
  and to sum over their rows again, which is the gradient of looking up;
- these ways alone.

All ways of a case take turns, so that what else the machine does disturbs them alike; the least
time of all turns is printed. With ``--profile`` also where XLA spends the time.

    python benchmarks/gradient.py
    python benchmarks/gradient.py --cases lung --unequal --profile
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import PREDICTORS, logistic_plain, lung, sizes_of_groups
from dask_consensus.shard.gather import by_rank, ranked, ranks_of
from jax import lax
from machine import facts, in_own_process, load, print_rows, save
from scipy.special import expit

from dask_consensus.shard.reading import Reading, read_model
from dask_consensus.shard.target import Data, PriorFactor, log_density

OUT = Path(__file__).parent / "results" / "gradient.json"
LOOP = 50  # gradients in one call
HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)
BIG = 2**25  # numbers of arrays that no cache holds

Gradient = Callable[..., Any]  # (u, local, data, factor) -> value, (gradients)


class Problem(NamedTuple):
    """A density and where it is evaluated."""

    density: Callable[..., Any]
    u: np.ndarray
    local: dict[str, np.ndarray]
    data: Data
    factor: PriorFactor

    @property
    def at(self) -> tuple[Any, ...]:
        return self.u, self.local, self.data, self.factor

    @property
    def bytes(self) -> int:
        """Bytes that must be read once, or written once as gradient."""
        sizes = [np.asarray(leaf).nbytes for leaf in jax.tree.leaves(self.at)]
        return sum(sizes) + sum(leaf.nbytes for leaf in jax.tree.leaves((self.u, self.local)))


class Way(NamedTuple):
    """A gradient, what it is evaluated at, and in which order its groups come."""

    gradient: Gradient
    at: tuple[Any, ...]
    order: np.ndarray | None = None
    same: bool = True  # as the density, or cheaper than it, as a bound
    by_numpy: bool = False


def lung_problem(codes: np.ndarray, dtype: type) -> Problem:
    rng = np.random.default_rng(0)
    rows, groups = len(codes), int(codes[-1]) + 1
    weeks = rng.uniform(0, 52, rows)
    a, b = 2800 + 800 * rng.normal(size=groups), -4 + 4 * rng.normal(size=groups)
    fvc = rng.normal(a[codes] + b[codes] * weeks, 130.0)
    arguments = {"weeks": weeks.astype(dtype), "fvc": fvc.astype(dtype), "patient": codes}
    u = np.array([2800.0, np.log(800.0), -4.0, np.log(4.0), np.log(130.0)], dtype)
    offered = Reading(
        {name: arguments[name] for name in ("weeks", "fvc")},
        {"patient": 0}, ("patient",), {"n_patient": 0}, {}, {},
    )  # fmt: skip
    local = {"a": a.astype(dtype), "b": b.astype(dtype)}
    return _problem(lung, offered, u, local, arguments, (np.ones(groups, bool),))


def logistic_problem(rows: int, dtype: type) -> Problem:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(len(PREDICTORS), rows)).astype(dtype)
    beta = np.linspace(-0.5, 0.5, len(PREDICTORS))
    y = (rng.random(rows) < expit(-0.8 + beta @ x)).astype(dtype)
    arguments = {**dict(zip(PREDICTORS, x, strict=True)), "y": y}
    offered = Reading(arguments, {}, (), {}, {}, {})
    return _problem(logistic_plain, offered, np.append(-0.8, beta).astype(dtype), {}, arguments, ())


def _problem(function, offered, u, local, arguments, groups) -> Problem:
    model = read_model(function, offered)
    d, dtype = len(u), u.dtype.type
    factor = PriorFactor(dtype(0.1), np.zeros(d, dtype), np.eye(d, dtype=dtype))
    rows = np.ones(len(next(iter(arguments.values()))), bool)

    def density(u, local, data, factor):
        return log_density(model, u, local, data, factor)

    return Problem(density, u, local, Data(arguments, rows, groups), factor)


# By hand, random intercept and slope


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - HALF_LOG_2PI


def half_normal(log_x, scale):
    """Density of x in log x, with its Jacobian."""
    return -0.5 * (jnp.exp(log_x) / scale) ** 2 - np.log(scale) - HALF_LOG_2PI + np.log(2) + log_x


def lung_by_hand(look_up: Callable[..., Any]) -> Gradient:
    """The density of the model, group values looked up as told; and its gradient."""

    def density(u, local, data, factor):
        mu_a, log_a, mu_b, log_b, log_sigma = u
        prior = normal(mu_a, 0.0, 500.0) + normal(mu_b, 0.0, 3.0)
        prior += half_normal(log_a, 100.0) + half_normal(log_b, 3.0)
        prior += half_normal(log_sigma, 100.0)
        groups = normal(local["a"], mu_a, jnp.exp(log_a)) + normal(local["b"], mu_b, jnp.exp(log_b))
        a, b = look_up(local["a"], local["b"], data.arguments["patient"])
        mean = a + b * data.arguments["weeks"]
        rows = normal(data.arguments["fvc"], mean, jnp.exp(log_sigma))
        away = u - factor.anchor_mean
        own = jnp.sum(jnp.where(data.groups[0], groups, 0.0))
        own += jnp.sum(jnp.where(data.rows, rows, 0.0))
        return factor.weight * prior - 0.5 * away @ (factor.anchor_precision @ away) + own

    return jax.value_and_grad(density, argnums=(0, 1))


def lung_by_numpy(starts: np.ndarray) -> Gradient:
    """Value and gradient in NumPy, over rows sorted by group."""

    def gradient(u, local, data, factor):
        mu_a, log_a, mu_b, log_b, log_sigma = u
        sd_a, sd_b, sigma = np.exp(u[[1, 3, 4]])
        codes, weeks, fvc = (data.arguments[name] for name in ("patient", "weeks", "fvc"))
        z = (fvc - local["a"][codes] - local["b"][codes] * weeks) / sigma
        z = np.where(data.rows, z, u.dtype.type(0))
        z_a, z_b = (local["a"] - mu_a) / sd_a, (local["b"] - mu_b) / sd_b
        slope_rows = z / sigma
        slopes = {
            "a": np.add.reduceat(slope_rows, starts) - z_a / sd_a,
            "b": np.add.reduceat(slope_rows * weeks, starts) - z_b / sd_b,
        }
        squares, squares_a, squares_b = (np.sum(q * q) for q in (z, z_a, z_b))
        scales = np.array([100.0, 3.0, 100.0], u.dtype)
        halves = -0.5 * (np.array([sd_a, sd_b, sigma]) / scales) ** 2 - np.log(scales)
        halves += np.log(2) - HALF_LOG_2PI + np.array([log_a, log_b, log_sigma])
        prior = halves.sum() - 0.5 * (mu_a / 500) ** 2 - 0.5 * (mu_b / 3) ** 2
        prior -= np.log(500.0 * 3.0) + 2 * HALF_LOG_2PI
        away = u - factor.anchor_mean
        value = factor.weight * prior - 0.5 * away @ (factor.anchor_precision @ away)
        value -= 0.5 * (squares + squares_a + squares_b)
        value -= len(z) * (log_sigma + HALF_LOG_2PI)
        value -= len(z_a) * (log_a + log_b + 2 * HALF_LOG_2PI)
        slope_u = np.array(
            [z_a.sum() / sd_a, squares_a - len(z_a), z_b.sum() / sd_b, squares_b - len(z_b),
             squares - len(z)],
            u.dtype,
        )  # fmt: skip
        slope_u[[0, 2]] -= factor.weight * np.array([mu_a / 500**2, mu_b / 9], u.dtype)
        slope_u[[1, 3, 4]] += factor.weight * (1 - (np.array([sd_a, sd_b, sigma]) / scales) ** 2)
        return value, (slope_u - factor.anchor_precision @ away, slopes)

    return gradient


# By hand, logistic


def logistic_by_hand(u, local, data, factor):
    x = jnp.stack([data.arguments[name] for name in PREDICTORS])
    return _logistic_of(jnp, u, data, factor, x, jax.nn.softplus, jax.nn.sigmoid)


def logistic_by_numpy(x: np.ndarray) -> Gradient:
    def gradient(u, local, data, factor):
        softplus = lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))  # noqa: E731
        return _logistic_of(np, u, data, factor, x, softplus, expit)

    return gradient


def _logistic_of(np_, u, data, factor, x, softplus, sigmoid):
    """Value and gradient; one product of matrix and vector there, one back."""
    logits = u[0] + u[1:] @ x
    y = data.arguments["y"]
    sds = np.append(5.0, np.full(len(PREDICTORS), 2.0)).astype(u.dtype)
    prior = -0.5 * np_.sum((u / sds) ** 2) - np.log(sds).sum() - len(sds) * HALF_LOG_2PI
    away = u - factor.anchor_mean
    value = np_.sum(np_.where(data.rows, y * logits - softplus(logits), 0.0))
    value += factor.weight * prior - 0.5 * away @ (factor.anchor_precision @ away)
    slope = np_.where(data.rows, y - sigmoid(logits), 0.0).astype(u.dtype)
    slopes = np_.concatenate([np_.sum(slope)[None], x @ slope])
    return value, (slopes - factor.weight * u / sds**2 - factor.anchor_precision @ away, {})


# Ways to look up and to sum


class Layout(NamedTuple):
    """How rows may lie: sorted by codes, or ranked (see ``shard/gather.py``)."""

    starts: np.ndarray  # (G + 1,) where each group's rows start, sorted
    rows: np.ndarray  # order of the sorted rows, ranked
    groups: np.ndarray  # order of the groups, ranked
    codes: np.ndarray  # codes of the rows, ranked
    counts: np.ndarray  # (m,) groups with a row of each rank

    @classmethod
    def of(cls, codes: np.ndarray) -> Layout:
        starts = np.append(0, np.cumsum(np.bincount(codes)))
        rows, groups, new = ranked(codes)
        return cls(starts, rows, groups, new, np.bincount(np.cumsum(new == 0) - 1))


def summing(total: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Look up as ever, but sum as told in the gradient."""

    @jax.custom_vjp
    def look_up(values, codes):
        return values[codes]

    look_up.defvjp(lambda v, codes: (v[codes], codes), lambda codes, s: (total(s, codes), None))
    return both(look_up)


def both(look_up: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda a, b, codes: (look_up(a, codes), look_up(b, codes))


def totals(layout: Layout) -> dict[str, Callable[[Any, Any], Any]]:
    """Ways to sum over the rows of each group, sorted rows given."""
    groups = len(layout.groups)
    equal = bool((layout.counts == groups).all())
    starts = jnp.asarray(layout.starts)

    def differences(values, codes):
        running = jnp.concatenate([jnp.zeros(1, values.dtype), jnp.cumsum(values)])
        return running[starts[1:]] - running[starts[:-1]]

    def segments(values, codes):
        return jax.ops.segment_sum(
            values, codes, groups, indices_are_sorted=True, mode="promise_in_bounds"
        )

    found = {
        "segment_sum, sorted, in bounds": segments,
        "differences of a cumulative sum": differences,
    }
    if equal:
        found["reshape (equal groups)"] = lambda v, codes: v.reshape(groups, -1).sum(axis=1)
    return found


def rank_by_rank(layout: Layout) -> Callable[[Any, Any], Any]:
    """Sum ranked rows, a slice for each rank."""
    groups, counts = len(layout.groups), jnp.asarray(layout.counts)
    begins = jnp.asarray(np.cumsum(layout.counts) - layout.counts)

    def total(values, codes):
        padded = jnp.pad(values, (0, groups))

        def add(k, sums):
            mine = lax.dynamic_slice(padded, (begins[k],), (groups,))
            return sums + jnp.where(jnp.arange(groups) < counts[k], mine, 0)

        return lax.fori_loop(0, len(counts), add, jnp.zeros(groups, values.dtype))

    return total


def exchanged(problem: Problem, codes: np.ndarray) -> Gradient:
    """The model's own gradient, with its look-ups exchanged."""
    ranks = jax.jit(ranks_of)(codes)

    def density(codes, u, local, data, factor):
        placed = data._replace(arguments={**data.arguments, "patient": codes})
        return problem.density(u, local, placed, factor)

    faster = by_rank(density, 0)

    def of(u, local, data, factor):
        return faster(ranks, data.arguments["patient"], u, local, data, factor)

    return jax.value_and_grad(of, argnums=(0, 1))


def hinted(values, codes):
    return values.at[codes].get(mode="promise_in_bounds", indices_are_sorted=True)


def joined(a, b, codes):
    """Look two values up at once."""
    found = jnp.stack([a, b])[:, codes]
    return found[0], found[1]


def ways_of_lung(problem: Problem) -> dict[str, Way]:
    codes = problem.data.arguments["patient"]
    layout = Layout.of(codes)
    groups, each = len(layout.groups), len(codes) // len(layout.groups)
    ranked_rows = {k: v[layout.rows] for k, v in problem.data.arguments.items()}
    at_ranked = (
        problem.u,
        {name: value[layout.groups] for name, value in problem.local.items()},
        problem.data._replace(arguments={**ranked_rows, "patient": layout.codes}),
        problem.factor,
    )
    order = layout.groups
    model = jax.value_and_grad(problem.density, argnums=(0, 1))
    plain = lung_by_hand(both(lambda values, codes: values[codes]))
    ways = {
        "the model's": Way(model, problem.at),
        "the model's, ranked rows": Way(model, at_ranked, order),
        "the model's, by rank": Way(exchanged(problem, layout.codes), at_ranked, order),
        "NumPy by hand": Way(lung_by_numpy(layout.starts[:-1]), problem.at, by_numpy=True),
        "JAX by hand": Way(plain, problem.at),
        "... in bounds, sorted": Way(lung_by_hand(both(hinted)), problem.at),
        "... both at once": Way(lung_by_hand(joined), problem.at),
    }
    for name, total in totals(layout).items():
        ways[f"... {name}"] = Way(lung_by_hand(summing(total)), problem.at)
    ways["... ranked rows"] = Way(plain, at_ranked, order)
    ways["... ranked, both at once"] = Way(lung_by_hand(joined), at_ranked, order)
    ways["... ranked, by rank"] = Way(lung_by_hand(summing(rank_by_rank(layout))), at_ranked, order)
    if bool((layout.counts == groups).all()):
        ways["... no index (equal groups)"] = Way(
            lung_by_hand(both(lambda v, _: jnp.broadcast_to(v[:, None], (groups, each)).ravel())),
            problem.at,
        )
    ways["(no looking up at all)"] = Way(
        lung_by_hand(lambda a, b, _: (a[0], b[0])), problem.at, same=False
    )
    return ways


def ways_of_logistic(problem: Problem) -> dict[str, Way]:
    x = np.stack([problem.data.arguments[name] for name in PREDICTORS])
    return {
        "the model's": Way(jax.value_and_grad(problem.density, argnums=(0, 1)), problem.at),
        "NumPy by hand": Way(logistic_by_numpy(x), problem.at, by_numpy=True),
        "JAX by hand, as matrix": Way(logistic_by_hand, problem.at),
    }


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


def looped(gradient: Gradient) -> Callable[..., Any]:
    """Many gradients in one call, each at a point that depends on the last."""

    def loop(u, local, data, factor):
        def step(point, _):
            value, slopes = gradient(*point, data, factor)
            moved = jax.tree.map(lambda x, slope: x + 1e-12 * slope, point, slopes)
            return moved, value

        return lax.scan(step, (u, local), None, length=LOOP)

    return loop


def call_of(way: Way, loop: bool) -> Callable[[], Any]:
    if way.by_numpy:
        return lambda: way.gradient(*way.at)
    run = jax.jit(looped(way.gradient) if loop else way.gradient)
    at = jax.device_put(way.at)
    return lambda: run(*at)


def check(ways: Mapping[str, Way]) -> None:
    """Raise unless all ways give one value and gradient."""
    first = next(iter(ways.values()))
    value, (slope_u, slopes) = jax.jit(first.gradient)(*first.at)
    tolerance = 1e-8 if first.at[0].dtype == np.float64 else 2e-3
    for name, way in ways.items():
        if not way.same:
            continue
        other, (other_u, others) = way.gradient(*way.at)
        pairs = [(other, value), (other_u, slope_u)]
        for site, slope in slopes.items():
            order = np.arange(len(slope)) if way.order is None else way.order
            pairs.append((others[site], np.asarray(slope)[order]))
        for a, b in pairs:
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            away = np.abs(a - b).max() / np.abs(b).max()
            if not away < tolerance:
                raise AssertionError(f"{name} is {away:.1e} away from the model's")


def alone(problem: Problem, turns: int) -> dict[str, float]:
    """Seconds of looking up, of its gradient, and of each way to sum; the call itself taken off."""
    codes = problem.data.arguments["patient"]
    layout = Layout.of(codes)
    groups = len(layout.groups)
    starts = layout.starts[:-1]
    values, weights = problem.local["a"], problem.data.arguments["weeks"]
    on = jax.device_put({"v": values, "w": weights, "c": codes, "r": layout.codes})

    def jitted(function: Callable[..., Any], *names: str) -> Callable[[], Any]:
        run = jax.jit(function)
        return lambda: run(*(on[name] for name in names))

    def slope(values, codes, weights):
        return jax.grad(lambda v: jnp.sum(v[codes] * weights))(values)

    calls = {
        "(an empty call)": jitted(lambda w: w[:1] + 1, "w"),
        "a[codes]": jitted(lambda v, c: v[c], "v", "c"),
        "a[codes], in bounds, sorted": jitted(hinted, "v", "c"),
        "gradient of a[codes]": jitted(slope, "v", "c", "w"),
        "gradient of a[codes], ranked rows": jitted(slope, "v", "r", "w"),
    }
    for name, total in totals(layout).items():
        calls[name] = jitted(total, "w", "c")
    calls["by rank"] = jitted(rank_by_rank(layout), "w", "r")
    calls["np.add.reduceat"] = lambda: np.add.reduceat(weights, starts)
    calls["np.bincount"] = lambda: np.bincount(codes, weights, groups)
    calls["np.take"] = lambda: np.take(values, codes)
    best = take_turns(calls, turns)
    empty = best["(an empty call)"]
    return {
        name: took if name.startswith(("np.", "(")) else max(took - empty, 0.0)
        for name, took in best.items()
    }


def bandwidth(numbers: int, dtype: type, turns: int) -> float:
    """Bytes a second of ``a = b + c`` in NumPy."""
    a, b, c = (np.ones(numbers, dtype) for _ in range(3))
    repeats = max(1, 2**22 // numbers)

    def add() -> None:
        for _ in range(repeats):
            np.add(b, c, out=a)

    return 3 * a.nbytes * repeats / take_turns({"add": add}, turns)["add"]


def measure(
    name: str, x64: bool, rows: int, groups: int, unequal: bool, cores: int, turns: int
) -> dict[str, Any]:
    """Measure one case in one precision, in a process on so many processors."""
    machine = facts()
    if cores:
        # Before JAX starts its threads.
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-cores:]))
    dtype = np.float64 if x64 else np.float32
    with jax.enable_x64(x64):
        problem, ways = _setup(name, dtype, rows, groups, unequal)
        check(ways)
        one = take_turns({n: call_of(w, loop=False) for n, w in ways.items()}, 4 * turns)
        many = take_turns({n: call_of(w, loop=True) for n, w in ways.items()}, turns)
        parts = alone(problem, 4 * turns) if name == "lung" else {}
    loops = {n: many[n] / LOOP for n in ways}
    for way in (n for n in ways if ways[n].by_numpy):
        # No loop but Python's: twice the same.
        one[way] = loops[way] = min(one[way], many[way])
    return {
        "case": name,
        "precision": "f64" if x64 else "f32",
        "rows": rows,
        "groups": groups if name == "lung" else 0,
        "unequal": unequal,
        "cores": cores,
        "bytes_a_row": problem.bytes / rows,
        "memory_bytes_a_second": bandwidth(BIG, dtype, 3),
        "cache_bytes_a_second": bandwidth(rows, dtype, 5 * turns),
        "one_call_ns_a_row": {n: took / rows * 1e9 for n, took in one.items()},
        "in_a_loop_ns_a_row": {n: took / rows * 1e9 for n, took in loops.items()},
        "alone_ns_a_row": {n: took / rows * 1e9 for n, took in parts.items()},
        "machine": {**machine, "load_after": round(os.getloadavg()[0], 2)},
    }


def _setup(name, dtype, rows, groups, unequal) -> tuple[Problem, dict[str, Way]]:
    if name != "lung":
        problem = logistic_problem(rows, dtype)
        return problem, ways_of_logistic(problem)
    sizes = np.full(groups, rows // groups)
    if unequal:
        sizes = sizes_of_groups(np.random.default_rng(2), groups, rows)
    problem = lung_problem(np.repeat(np.arange(groups, dtype=np.int32), sizes), dtype)
    return problem, ways_of_lung(problem)


def profile(
    name: str, x64: bool, rows: int, groups: int, unequal: bool, cores: int
) -> list[tuple[str, str, float]]:
    """Operations of the compiled gradient: name, what of the model, microseconds a gradient."""
    if cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-cores:]))
    with jax.enable_x64(x64), tempfile.TemporaryDirectory() as folder:
        problem, _ = _setup(name, np.float64 if x64 else np.float32, rows, groups, unequal)
        gradient = jax.value_and_grad(problem.density, argnums=(0, 1))
        at = jax.device_put(problem.at)
        run = jax.jit(looped(gradient)).lower(*at).compile()
        jax.block_until_ready(run(*at))
        with jax.profiler.trace(folder):
            jax.block_until_ready(run(*at))
        of = dict(re.findall(r"%([\w.\-]+) = .*?op_name=\"([^\"]*)\"", run.as_text()))
        spent: Counter[str] = Counter()
        for path in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
            for plane in jax.profiler.ProfileData.from_file(path).planes:
                for line in plane.lines:
                    for event in line.events:
                        if event.name in of:
                            spent[event.name] += event.duration_ns
    return [
        (name, "/".join(of[name].split("/")[-2:]), took / LOOP / 1e3)
        for name, took in spent.most_common(12)
        if not name.startswith("while")
    ]


# Tables


def print_one(one: Mapping[str, Any]) -> None:
    """Print what was measured of a case in one precision."""
    grouped = f", {one['groups']:,} {'unequal' if one['unequal'] else 'equal'} groups"
    print(
        f"\n{one['case']}, {one['precision']}: {one['rows']:,} rows"
        f"{grouped if one['groups'] else ''}, {one['cores'] or 'all'} core(s), load "
        f"{one['machine']['load_before']} - {one['machine']['load_after']}\n"
    )
    least = {
        where: one["bytes_a_row"] / one[f"{where}_bytes_a_second"] * 1e9
        for where in ("memory", "cache")
    }
    model = one["in_a_loop_ns_a_row"]["the model's"]
    for where, took in least.items():
        print(
            f"At least {one['bytes_a_row']:.1f} bytes a row: {took:.2f} ns at "
            f"{one[f'{where}_bytes_a_second'] / 1e9:.0f} GB/s from {where}, {took / model:.0%} of "
            "what the model's gradient takes in a loop."
        )
    print()
    print_rows(
        ("gradient", "in a loop, ns a row", "times as fast as the model's", "one call, ns a row"),
        [
            (way, f"{took:.2f}", f"{model / took:.2f}", f"{one['one_call_ns_a_row'][way]:.2f}")
            for way, took in one["in_a_loop_ns_a_row"].items()
        ],
    )
    if one["alone_ns_a_row"]:
        print()
        print_rows(
            ("alone, less an empty call", "ns a row"),
            [(way, f"{took:.2f}") for way, took in one["alone_ns_a_row"].items()],
        )


def _key(one: Mapping[str, Any]) -> Sequence[Any]:
    names = ("case", "precision", "rows", "groups", "unequal", "cores")
    return [one[name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=("lung", "logistic"))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--groups", type=int, default=5_000)
    parser.add_argument("--unequal", action="store_true", help="groups of unequal sizes")
    parser.add_argument("--cores", type=int, default=1, help="to run on; 0: all")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="where XLA spends the time")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    args = parser.parse_args()
    if args.cores:
        # For NumPy in the processes that measure.
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(args.cores))
    for name in () if args.table else args.cases or ("lung", "logistic"):
        for x64 in (False, True):
            asked = (name, x64, args.rows, args.groups, args.unequal, args.cores)
            one = in_own_process(measure, *asked, args.turns)
            save(args.out, [*(old for old in load(args.out) if _key(old) != _key(one)), one])
            if args.profile:
                print(f"\n{name}, {'f64' if x64 else 'f32'}: microseconds a gradient\n")
                rows = in_own_process(profile, *asked)
                print_rows(
                    ("operation", "of", "us"), [(a, f"`{b}`", f"{c:.1f}") for a, b, c in rows]
                )
    for one in load(args.out):
        print_one(one)


if __name__ == "__main__":
    main()
