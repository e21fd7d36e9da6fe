"""Compiled code: what may run beside what."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from dask_consensus.model.model import precision
from dask_consensus.shard.compiling import compiled

from .test_marginal import intercepts, read

BATCH = (2, 10, 61)


def test_batches_of_triangular_systems_do_not_wait_for_each_other():
    """Two at once never return from jaxlib 0.10 on a CPU of two cores."""
    rng = np.random.default_rng(0)
    factor = np.tril(rng.uniform(size=(*BATCH, 4, 4))) + np.eye(4)
    right = rng.normal(size=(*BATCH, 4, 21))

    def build():
        def add(i, total):
            right_side = jnp.asarray(right) + total
            solved = jax.scipy.linalg.solve_triangular(jnp.asarray(factor), right_side, lower=True)
            return total + 1e-9 * solved.sum()

        return lambda x: jax.lax.fori_loop(0, 300, add, x)

    model = read(intercepts, {"y": np.zeros(4, int)}, groups=["g"])
    with precision(True):
        zero = jnp.zeros(())
        run = compiled(model, "systems", build, zero)
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.extend(float(run(zero)) for _ in range(3)), daemon=True
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(answers)) == 1
    assert len(answers) == 6
