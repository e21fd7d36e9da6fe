"""Models that are another one each time their code runs."""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from . import fit, from_pandas, plan
from .models import frame, normal_rows


def beta() -> Any:
    return numpyro.sample("beta", dist.Normal(0, 1))


def numpy_generator(y):
    normal_rows(beta() + np.random.normal(), 1.0, y)  # noqa: NPY002


def noise_of_rows(y):
    normal_rows(beta() + np.random.default_rng().normal(size=len(y)), 1.0, y)


def python_generator(y):
    normal_rows(beta() * random.random(), 1.0, y)


def clock(y):
    """In single precision the same for two minutes."""
    normal_rows(beta() + time.time(), 1.0, y)


CALLS = [0]


def counter(y):
    CALLS[0] += 1
    normal_rows(beta() + 1e-9 * CALLS[0], 1.0, y)


def list_that_grows(y, seen=[]):  # noqa: B006
    seen.append(1)
    normal_rows(beta() * len(seen), 1.0, y)


NUMBERS = itertools.cycle(range(1000))


def iterator(y):
    normal_rows(beta() + next(NUMBERS), 1.0, y)


def ambient_key(y):
    normal_rows(beta() + jax.random.normal(numpyro.prng_key()), 1.0, y)


def key_in_a_loop(y):
    noise = jax.lax.map(jax.random.normal, jax.random.split(numpyro.prng_key(), 3))
    normal_rows(beta() + noise.sum(), 1.0, y)


def random_prior(y):
    normal_rows(numpyro.sample("beta", dist.Normal(np.random.uniform(), 1)), 1.0, y)  # noqa: NPY002


class Stateful:
    """An object that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, y):
        self.calls += 1
        normal_rows(beta(), float(self.calls), y)


def sites_at_random(y):
    CALLS[0] += 1
    extra = numpyro.sample("extra", dist.Normal(0, 1)) if CALLS[0] % 2 else 0.0
    normal_rows(beta() + extra, 1.0, y)


@pytest.mark.parametrize(
    ("model", "term"),
    [
        (numpy_generator, "obs"),
        (noise_of_rows, "obs"),
        (python_generator, "obs"),
        (clock, "obs"),
        (counter, "obs"),
        (list_that_grows, "obs"),
        (iterator, "obs"),
        (ambient_key, "obs"),
        (key_in_a_loop, "obs"),
        (random_prior, "beta"),
        (Stateful(), "obs"),
        (sites_at_random, "extra"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
def test_refused(model, term: str):
    message = f"density of {term} at one point is another one each time .*functools.partial"
    with pytest.raises(ValueError, match=message):
        plan(from_pandas(frame()), model, n_shards=2)


KEY = jax.random.key(3)


def fixed_keys(y):
    noise = jax.random.normal(KEY) + jax.random.normal(jax.random.key(1))
    normal_rows(beta() + noise + np.random.default_rng(0).normal(), 1.0, y)


CACHE: dict[str, Any] = {}


def remembered(y):
    """It computes once what never changes, and keeps it."""
    if "scale" not in CACHE:
        CACHE["scale"] = np.linspace(0, 1, 5).sum()
    normal_rows(beta() * CACHE["scale"], 1.0, y)


def without_effect(y):
    CALLS[0] += 1
    normal_rows(beta() + jnp.minimum(CALLS[0], 0), 1.0, y)


@pytest.mark.parametrize("model", [fixed_keys, remembered, without_effect])
def test_what_is_fixed_is_fine(model):
    assert plan(from_pandas(frame()), model, n_shards=2).model.coupled == ()


def generator(y):
    normal_rows(beta() + next(GENERATOR), 1.0, y)


GENERATOR = (float(i) for i in range(100))


def test_what_cannot_be_sent():
    with pytest.raises(ValueError, match=r"cannot be sent to workers.*'generator'"):
        plan(from_pandas(frame()), generator)


def surroundings(y):
    normal_rows(beta(), float(os.environ.get("HERE_ALONE", "2")), y)


@pytest.mark.distributed
def test_the_surroundings_of_workers(cluster, monkeypatch):
    with cluster(1, 1):
        monkeypatch.setenv("HERE_ALONE", "1")
        with pytest.raises(
            ValueError, match=r"density of obs .* another one on a worker than here"
        ):
            fit(from_pandas(frame()), surroundings, n_shards=2)


def test_constants_of_double_precision_are_not_random():
    """JAX may keep them in single precision in one trace and in double in the next."""

    def kinds(g, y=None, *, n_g):
        gap = numpyro.sample("gap", dist.HalfNormal(3))
        with numpyro.plate("g", n_g):
            halves = dist.Categorical(np.array([0.3, 0.7]))
            locations = dist.Normal(jnp.stack([-gap, gap]), 1.0)
            b = numpyro.sample("b", dist.MixtureSameFamily(halves, locations))
        numpyro.sample("y", dist.Normal(b[g], 1.0), obs=y)

    table = pd.DataFrame({"g": np.repeat(np.arange(10), 3), "y": np.linspace(-1, 1, 30)})
    assert from_pandas(table).consensus.plan(kinds, by="g", n_shards=2).n_shards == 2
