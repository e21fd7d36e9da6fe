"""A loop over shards, as written by hand and as this package runs it.

Both sides sample the package's shards, so that the subposteriors are the same ones; cutting them
counts towards the package's time alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import random
from numpyro.infer import MCMC, NUTS
from numpyro.infer.hmc_util import consensus

from ..cases.case import sizes_of_groups
from ..cases.sized import ROWS_A_GROUP, TRUTH, simulate_slopes, slopes, slopes_of_shard
from . import internals
from .clock import Clock
from .draws import moments
from .fits import in_memory, quietly, record

HAND, HAND_ONCE = "MCMC.run in a loop", "the same, padded and jitted once"
OURS, DEFAULTS = "ours", "ours by default: Newton steps, corrected"
WAYS = (HAND, HAND_ONCE, OURS, DEFAULTS)


class Loop(NamedTuple):
    """Rows in so many shards, and transitions on each."""

    rows: int
    n_shards: int
    num_warmup: int
    num_samples: int


def measure(loop: Loop, seed: int, way: str) -> dict[str, Any]:
    """Run the loop one way, from unequal shards of whole groups."""
    rng = np.random.default_rng(51)
    sizes = sizes_of_groups(rng, loop.rows // ROWS_A_GROUP, loop.rows)
    ddf = in_memory(simulate_slopes(rng, sizes)[0], loop.n_shards)
    transitions = {"num_warmup": loop.num_warmup, "num_samples": loop.num_samples}
    options = {"by": "group", "n_shards": loop.n_shards, "seed": seed, "progress": False}
    if way != DEFAULTS:
        options |= {"method": "consensus", "correct": False, **transitions}
    lazy = ddf.consensus.fit(slopes, compute=False, **options)
    if way in (HAND, HAND_ONCE):
        return _by_hand(internals.shards_of(lazy), transitions, seed, once=way == HAND_ONCE)
    clock = Clock()
    tree = quietly(lazy)
    return {**clock.read(), **record(tree)}


def _by_hand(
    shards: list[tuple[Any, Any, float]], transitions: dict[str, int], seed: int, *, once: bool
) -> dict[str, Any]:
    """``MCMC.run`` for each shard, one after another, and NumPyro's consensus."""
    clock = Clock()

    def run(key: jax.Array, n_group: int, **arguments: Any) -> tuple[Any, jax.Array]:
        kernel = NUTS(functools.partial(slopes_of_shard, n_group=n_group))
        mcmc = MCMC(kernel, progress_bar=False, **transitions)
        mcmc.run(key, **arguments, extra_fields=("num_steps",))
        draws = mcmc.get_samples()
        return {site: draws[site] for site in TRUTH}, mcmc.get_extra_fields()["num_steps"].mean()

    # With `jit_model_args=True` a second run still compiles its start anew; so jitted, none does.
    jitted = jax.jit(run, static_argnames="n_group")
    draws, steps = [], []
    for k, (data, size, power) in enumerate(shards):
        key = random.fold_in(random.key(seed), k)
        if once:
            more = {"rows": data.rows, "power": power}
            subposterior, taken = jitted(key, len(data.groups[0]), **data.arguments, **more)
        else:
            arguments = {name: values[: size.rows] for name, values in data.arguments.items()}
            subposterior, taken = run(key, size.groups[0], **arguments, rows=None, power=power)
        draws.append(subposterior)
        steps.append(float(taken))
    combined = jax.block_until_ready(consensus(draws))
    took = clock.read()
    return {
        **took,
        "constrained": moments({site: np.asarray(v)[None] for site, v in combined.items()}),
        "steps": float(np.mean(steps)),
        "shapes": len({size for _, size, _ in shards}),
    }
