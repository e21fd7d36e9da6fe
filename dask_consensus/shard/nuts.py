"""NUTS on one shard, compiled once a process for all shards of a shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer.hmc import hmc

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from .compiling import Effort, compiled, on_device
from .coordinates import SHARED, Coordinates, unwhitened, whiten
from .starts import Start, key_of, prior_medians, starting_point, why_not_finite
from .target import PriorFactor, log_density

_DENSE_UP_TO = 256  # dimensions of u for which a dense mass matrix is adapted


class NutsSettings(NamedTuple):
    """How to sample, in NumPyro's words; part of what is compiled."""

    num_warmup: int
    num_samples: int
    target_accept_prob: float = 0.8
    max_tree_depth: int = 10
    adapt_mass: bool = True


class Draws(NamedTuple):
    """What NUTS gave on one shard, after warm-up.

    Compilation is not part of `seconds`, the wall time of sampling. `compile_seconds` may be those
    of waiting for another thread's, and are near 0 where it was done.
    """

    u: np.ndarray  # (chains, draws, d) float64, unconstrained
    ess: np.ndarray  # (d,) of all chains
    r_hat: np.ndarray  # (d,) split
    divergences: int
    steps: float  # leapfrog steps a transition, on average
    step_size: float  # average over chains
    accept_prob: float  # average over chains
    seconds: float
    compile_seconds: float


class _Chain(NamedTuple):
    u: jax.Array
    accept_prob: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    valid: jax.Array
    end: Start


def sample_shard(
    model: ShardModel,
    data: ShardData,
    factor: PriorFactor,
    settings: NutsSettings,
    key: tuple[int, ...],
    *,
    coordinates: Coordinates | None = None,
    starts: Sequence[Start] | None = None,
) -> tuple[Draws, tuple[Start, ...]]:
    """Sample one shard's density by NUTS, as :func:`sample_shards` does several."""
    return sample_shards(
        model, [data], [factor], settings, [key], coordinates=coordinates, starts=[starts]
    )[0]


class NotFiniteError(ValueError):
    """No starting point of a shard has a finite density; `which` is its place among those given."""

    def __init__(self, which: int, message: str) -> None:
        super().__init__(message)
        self.which = which


def sample_shards(
    model: ShardModel,
    data: Sequence[ShardData],
    factors: Sequence[PriorFactor],
    settings: NutsSettings,
    keys: Sequence[tuple[int, ...]],
    *,
    coordinates: Coordinates | None = None,
    starts: Sequence[Sequence[Start] | None] | None = None,
    num_chains: int = 1,
) -> list[tuple[Draws, tuple[Start, ...]]]:
    """Sample several shards of one padded shape at once, each chain after the other.

    They run in step under ``vmap``: a way to fill a GPU, but slower than one after another on a
    CPU, where a shard waits for the longest tree of all.

    Parameters
    ----------
    factors
        Each shard's share of the prior, and its anchor.
    keys
        Name each shard's randomness: seed, round, shard.
    coordinates
        Where the sampler works; ``z = u`` if absent.
    starts
        Of each shard one for each chain; medians of a few prior draws if absent.

    Returns
    -------
    list
        Of each shard its draws, and where each chain came to, for the next round to begin from.

    Raises
    ------
    NotFiniteError
        If no starting point has a finite density; the message names the site.
    """
    coordinates = coordinates or unwhitened(model.dim)
    several = len(data) > 1

    def together(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if several else trees[0]

    with precision(model.x64):
        arrays, factor = on_device((together(data), together(factors)))
        space = on_device(coordinates)
        named = [key_of(*key) for key in keys]
        chains = []
        compiling = -time.perf_counter()
        for chain in range(num_chains):
            folded = [random.fold_in(key, chain) for key in named]
            key = jnp.stack(folded) if several else folded[0]
            begin = None
            if starts is not None and starts[0] is not None:
                begin = on_device(together([start[chain] for start in starts if start is not None]))
            arguments = (arrays, factor, space, begin, key)
            run = compiled(
                model,
                ("nuts", settings),
                lambda: _chain_of(model, settings, several),
                *arguments,
                effort=Effort.MOST,
            )
            if not chain:
                began = time.perf_counter()
                compiling += began
            chains.append(jax.device_get(run(*arguments)))
        if not several:
            chains = [jax.tree.map(lambda leaf: leaf[None], chain) for chain in chains]
        for which in range(len(data)):
            if not all(chain.valid[which] for chain in chains):
                raise NotFiniteError(which, why_not_finite(model, on_device(data[which])))
    seconds = (time.perf_counter() - began) / len(data)
    sampled = []
    for which in range(len(data)):
        mine = [jax.tree.map(lambda leaf, k=which: leaf[k], chain) for chain in chains]
        draws = _summary(mine, settings, seconds, compiling / len(data))
        sampled.append((draws, tuple(chain.end for chain in mine)))
    return sampled


def _chain_of(model: ShardModel, settings: NutsSettings, several: bool) -> Callable[..., _Chain]:
    """One chain of NUTS, as a function of arrays alone; of several shards, one each."""

    def chain(
        data: ShardData,
        factor: PriorFactor,
        coordinates: Coordinates,
        start: Start | None,
        key: jax.Array,
    ) -> _Chain:
        def to_u(z: dict[str, jax.Array]) -> jax.Array:
            return coordinates.center + coordinates.scale @ z[SHARED]

        def potential(z: dict[str, jax.Array]) -> jax.Array:
            return -log_density(model, to_u(z), _local(z), data, factor)

        start_key, run_key = random.split(key)
        if start is None:
            first = prior_medians(model, data, coordinates, start_key)
            z, valid = starting_point(potential, first, start_key)
            given: dict[str, Any] = {}
        else:
            z = {SHARED: whiten(coordinates, start.u), **start.local}
            valid = jnp.isfinite(potential(z))
            given = {
                "step_size": start.step_size,
                "inverse_mass_matrix": _inverse_mass(model, start.variances),
            }
        init, step = hmc(potential, algo="NUTS")
        state = init(
            z,
            settings.num_warmup,
            adapt_mass_matrix=settings.adapt_mass,
            dense_mass=[(SHARED,)] if model.dim <= _DENSE_UP_TO else [],
            target_accept_prob=settings.target_accept_prob,
            max_tree_depth=settings.max_tree_depth,
            rng_key=run_key,
            **given,
        )
        nothing = jax.tree.map(jnp.zeros_like, _local(z))
        sums = (jnp.zeros(()), nothing, nothing)

        # Warm-up and sampling share one loop: the tree is compiled once, not twice.
        def advance(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, ...]]:
            state, sums = carry
            state = step(state)
            sums = _welford(sums, _local(state.z), state.i > settings.num_warmup)
            kept = (to_u(state.z), state.accept_prob, state.num_steps, state.diverging)
            return (state, sums), kept

        length = settings.num_warmup + settings.num_samples
        (state, sums), kept = lax.scan(advance, (state, sums), None, length=length)
        u, accept_prob, num_steps, diverging = (values[settings.num_warmup :] for values in kept)
        count, _, squares = sums
        variances = jax.tree.map(lambda total: total / count, squares)
        end = Start(to_u(state.z), _local(state.z), variances, state.adapt_state.step_size)
        return _Chain(u, accept_prob, num_steps, diverging, valid, end)

    return jax.vmap(chain, (0, 0, None, 0, 0)) if several else chain


def _local(z: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: value for name, value in z.items() if name != SHARED}


def _inverse_mass(
    model: ShardModel, variances: dict[str, jax.Array]
) -> dict[tuple[str, ...], jax.Array]:
    """NumPyro's blocks of the inverse mass matrix: u is white, local sites have variances."""
    d = model.dim
    blocks: dict[tuple[str, ...], jax.Array] = {
        (SHARED,): jnp.eye(d) if d <= _DENSE_UP_TO else jnp.ones(d)
    }
    if variances:
        names = tuple(sorted(variances))
        blocks[names] = jnp.concatenate([variances[name].ravel() for name in names])
    return blocks


def _welford(sums: Any, values: dict[str, jax.Array], counts: jax.Array) -> Any:
    """Add one draw to the running mean and sum of squares of the local sites."""
    count, mean, squares = sums
    use = counts.astype(jnp.result_type(float))
    count = count + use
    away = jax.tree.map(lambda value, m: use * (value - m), values, mean)
    mean = jax.tree.map(lambda m, a: m + a / jnp.maximum(count, 1.0), mean, away)
    squares = jax.tree.map(
        lambda total, a, value, m: total + a * (value - m), squares, away, values, mean
    )
    return count, mean, squares


def _summary(
    chains: list[_Chain], settings: NutsSettings, seconds: float, compile_seconds: float
) -> Draws:
    u = np.stack([np.asarray(chain.u, dtype=np.float64) for chain in chains])
    enough = settings.num_samples >= 4
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = effective_sample_size(u) if enough else np.full(u.shape[-1], np.nan)
        r_hat = split_gelman_rubin(u) if enough else np.full(u.shape[-1], np.nan)
    # A coordinate that never moved has no effective draws, not an undefined number of them.
    ess = np.where(np.isfinite(ess), ess, 0.0)
    return Draws(
        u=u,
        ess=ess,
        r_hat=np.asarray(r_hat),
        divergences=int(sum(chain.diverging.sum() for chain in chains)),
        steps=float(np.mean([chain.num_steps.mean() for chain in chains])),
        step_size=float(np.mean([chain.end.step_size for chain in chains])),
        accept_prob=float(np.mean([chain.accept_prob.mean() for chain in chains])),
        seconds=seconds,
        compile_seconds=compile_seconds,
    )
