"""How near the gradient of a shard's density comes to what the machine could do.

Takes the random intercept and slope (50,000 rows, 5,000 groups) and the logistic regression on 20
predictors, in single and in double precision, and measures on one processor, in a loop as NUTS
has it, the gradient as a shard computes it; as NumPyro computes it, with several ways to look
values of groups up and to sum over their rows again, which is the gradient of looking up, and
without any, or with the predictors in one matrix; and the memory traffic it cannot do without.
All ways take turns, so that what else the machine does disturbs them alike; the least time counts.

    python -m benchmarks.gradient
    python -m benchmarks.gradient --cases lung --unequal
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import potential_energy

from .cases.case import sizes_of_groups
from .cases.sized import logistic_matrix, simulate_slopes, sized_case, slopes, slopes_by
from .cases.sound import PREDICTORS
from .measure.internals import shard_gradient
from .measure.script import Store, parse
from .tables import cost

LOOP = 50  # gradients in one call
TOY = {"rows": 200, "groups": 20, "turns": 1, "big": 1_000}
MODEL, BOUND = "the model's", "(no looking up at all)"
Calls = dict[str, Callable[[], Any]]


def sorted_hint(values: jax.Array, codes: jax.Array) -> jax.Array:
    return values.at[codes].get(mode="promise_in_bounds", indices_are_sorted=True)


def summing(total: Callable[[jax.Array, Any], jax.Array]) -> Callable[..., jax.Array]:
    """Look up as ever, but sum as told in the gradient."""
    look_up = jax.custom_vjp(lambda values, codes: values[codes])
    look_up.defvjp(
        lambda values, codes: (values[codes], codes),
        lambda codes, slope: (total(slope, codes), None),
    )
    return look_up


def look_ups(sizes: np.ndarray) -> dict[str, Callable[..., jax.Array]]:
    """Ways to look values up for rows that lie sorted by group."""
    n, ends = len(sizes), np.cumsum(sizes)
    hints = {"num_segments": n, "indices_are_sorted": True, "mode": "promise_in_bounds"}
    ways = {
        "NumPyro's": lambda values, codes: values[codes],
        "... in bounds, sorted": sorted_hint,
        "... segment_sum, in bounds, sorted": summing(partial(jax.ops.segment_sum, **hints)),
        "... differences of a cumulative sum": summing(
            lambda slope, _: jnp.diff(jnp.cumsum(slope)[ends - 1], prepend=0)
        ),
    }
    if len(set(sizes)) == 1:
        by_shape = summing(lambda slope, _: slope.reshape(n, -1).sum(1))
        ways["... reshape (equal groups)"] = by_shape
    return ways | {BOUND: lambda values, _: values[0]}


def calls(name: str, rows: int, groups: int, unequal: bool, dtype: type) -> tuple[Calls, float]:
    """All ways to many gradients in one call; bytes a row that one reads and writes."""
    if name == "logistic":
        frame, local = sized_case("logistic", rows).frame(), {}
        arguments = {column: frame[column].to_numpy(dtype) for column in frame}
        start = {"alpha": np.full((), 0.1, dtype), "beta": np.full(len(PREDICTORS), 0.1, dtype)}
        own, fixed = shard_gradient(sized_case("logistic", rows).model, arguments, None, 0)
        models = {"NumPyro's": (sized_case("logistic", rows).model, arguments)}
        matrix = np.stack([arguments[column] for column in PREDICTORS], axis=1)
        models["... as matrix"] = (logistic_matrix, {"x": matrix, "y": arguments["y"]})
    else:
        rng = np.random.default_rng(2)
        sizes = np.full(groups, rows // groups)
        sizes = sizes_of_groups(rng, groups, rows) if unequal else sizes
        frame, effects = simulate_slopes(rng, sizes)
        arguments = {column: frame[column].to_numpy(dtype) for column in ("x", "y")}
        arguments["group"] = frame["group"].to_numpy(np.int32)
        start = dict.fromkeys(("mu_a", "mu_b", "sigma_a", "sigma_b", "sigma"), dtype(0.1))
        local = {site: effect.astype(dtype) for site, effect in effects.items()}
        own, fixed = shard_gradient(slopes, arguments, "group", groups)
        ways = look_ups(sizes).items()
        models = {way: (partial(slopes_by(f), n_group=groups), arguments) for way, f in ways}
    # Equal values, so that their order does not matter.
    u = np.full(sum(np.size(value) for value in start.values()), 0.1, dtype)
    made: Calls = {MODEL: partial(jax.jit(_looped(own)), (u, local), *jax.device_put(fixed))}
    for way, (model, data) in models.items():
        gradient = jax.value_and_grad(partial(_minus_potential, model), (0, 1))
        made[way] = partial(jax.jit(_looped(gradient)), (start, local), jax.device_put(data))
    leaves = jax.tree.leaves(((u, local), (u, local), arguments))
    return made, sum(leaf.nbytes for leaf in leaves) / rows


def _minus_potential(model: Any, shared: Any, local: Any, data: Any) -> jax.Array:
    return -potential_energy(model, (), data, {**shared, **local})


def _looped(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Many gradients in one call, each at a point that depends on the last."""

    def loop(point: Any, *fixed: Any) -> Any:
        def step(point: Any, _: None) -> Any:
            value, slopes = gradient(*point, *fixed)
            moved = jax.tree.map(lambda x, slope: x + 1e-12 * slope, point, slopes)
            return moved, (value, slopes[1])

        return jax.lax.scan(step, point, None, length=LOOP)[1]

    return loop


def take_turns(calls: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Least processor time of each call, in seconds, over turns of all of them.

    Of the whole process: waiting for a processor that others use does not count.
    """
    best = dict.fromkeys(calls, np.inf)
    for _ in range(turns):
        for name, call in calls.items():
            began = time.process_time()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.process_time() - began)
    return best


def measure(name: str, rows: int, groups: int, unequal: bool, x64: bool, turns: int, big: int):
    """Measure one model in one precision."""
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        ways, bytes_a_row = calls(name, rows, groups, unequal, dtype)
        values = {way: jax.device_get(call()) for way, call in ways.items()}
        for way in values.keys() - {BOUND}:
            for leaf, expected in zip(*map(jax.tree.leaves, (values[way], values[MODEL])), strict=True):
                away = np.abs(leaf - expected).max() / np.abs(expected).max()
                assert away < (1e-8 if x64 else 2e-3), f"{way} is {away:.1e} from the model's"
        seconds = take_turns(ways, turns)
    a, b, c = (np.ones(big, dtype) for _ in range(3))
    traffic = take_turns({"add": lambda: np.add(b, c, out=a)}, 3)["add"]
    return {
        "bytes_a_row": bytes_a_row,
        "memory_bytes_a_second": 3 * a.nbytes / traffic,
        "ns_a_row": {"in_a_loop": {w: s / LOOP / rows * 1e9 for w, s in seconds.items()}},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("lung", "logistic")
    parser.add_argument("--cases", nargs="+", choices=names, default=list(names))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--groups", type=int, default=5_000)
    parser.add_argument("--unequal", action="store_true", help="groups of unequal sizes")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--big", type=int, default=2**25, help="numbers that no cache holds")
    args = parse(parser, argv, TOY)
    if not args.toy:
        # Inherited by the processes that measure.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    store = Store(args, "gradient")
    for name in () if args.table else args.cases:
        grouped = (args.groups, args.unequal) if name == "lung" else (0, False)
        for x64 in (False, True):
            sizes = dict(zip(("rows", "groups", "unequal"), (args.rows, *grouped), strict=True))
            arguments = (name, args.rows, *grouped, x64, args.turns, args.big)
            store.measure({"x64": x64, **sizes}, measure, *arguments)
    print(*cost.gradient(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
