"""How near the gradient of a shard's density comes to what the machine could do.

Takes the random intercept and slope (10 rows a group) and the logistic regression on 20
predictors, in single and in double precision, and measures on one processor, or on a GPU with
``--gpu``, the gradient as a shard computes it, in a loop as NUTS has it, and the memory traffic it
cannot do without. Other ways to the gradient, as tried at commit 4dac8fc, are in
``results/gradient.json``.

    python -m benchmarks.gradient
    python -m benchmarks.gradient --gpu --rows 10000000
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .cases.sized import ROWS_A_GROUP, sized_case
from .measure.internals import accelerated, shard_gradient
from .measure.script import Store, parse
from .tables import cost

LOOP = 50  # gradients in one call
TOY = {"rows": 200, "turns": 1, "big": 1_000}


def looped(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Many gradients in one call, each at a point that depends on the last."""

    def loop(point: Any, fixed: Any) -> Any:
        def step(point: Any, _: None) -> Any:
            value, slopes = gradient(*point, *fixed)
            return jax.tree.map(lambda x, slope: x + 1e-12 * slope, point, slopes), value

        return jax.lax.scan(step, point, None, length=LOOP)

    return jax.jit(loop)


def least_seconds(call: Callable[[], Any], turns: int) -> float:
    """Least seconds of a call: of a GPU, or of this processor, whatever else runs on it."""
    clock = time.perf_counter if accelerated() else time.process_time
    jax.block_until_ready(call())
    seconds = []
    for _ in range(turns):
        began = clock()
        jax.block_until_ready(call())
        seconds.append(clock() - began)
    return max(min(seconds), 1e-9)


_add = jax.jit(jax.numpy.add)


def measure(name: str, rows: int, x64: bool, turns: int, big: int) -> dict[str, Any]:
    """Measure one model in one precision."""
    case, dtype = sized_case(name, rows), np.float64 if x64 else np.float32
    arrays, counts = case.arguments(case.frame())
    arguments = {key: v.astype(dtype) if v.dtype.kind == "f" else v for key, v in arrays.items()}
    n = next(iter(counts.values()), 0)
    local = dict.fromkeys(("a", "b"), np.full(n, 0.1, dtype)) if n else {}
    point = np.full(sum(map(np.size, case.start.values())), 0.1, dtype), local
    with jax.enable_x64(x64):
        gradient, fixed = shard_gradient(case.model, arguments, case.by, n)
        loop, at = looped(gradient), jax.device_put((point, fixed))
        seconds = least_seconds(lambda: loop(*at), turns) / LOOP
        a, b, c = (np.ones(big, dtype) for _ in range(3))
        if accelerated():
            b, c = jax.device_put((b, c))
            traffic = least_seconds(lambda: _add(b, c), turns)
        else:
            traffic = least_seconds(lambda: np.add(b, c, out=a), turns)
    # What must be read once, and written once as gradient.
    leaves = jax.tree.leaves((point, point, arguments))
    return {
        "bytes_a_row": sum(leaf.nbytes for leaf in leaves) / rows,
        "memory_bytes_a_second": 3 * a.nbytes / traffic,
        "ns_a_row": {"in_a_loop": {cost.MODEL: seconds / rows * 1e9}},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--big", type=int, default=2**25, help="numbers that no cache holds")
    parser.add_argument("--gpu", action="store_true", help="on JAX's device instead")
    args = parse(parser, argv, TOY)
    if not args.toy and not args.gpu:
        # Inherited by the processes that measure.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    store = Store(args, "gradient")
    for name, groups in (
        () if args.table else (("slopes", args.rows // ROWS_A_GROUP), ("logistic", 0))
    ):
        for x64 in (False, True):
            key = {"x64": x64, "rows": args.rows, "groups": groups, "gpu": args.gpu}
            store.measure(key, measure, name, args.rows, x64, args.turns, args.big)
    print(*cost.gradient(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
