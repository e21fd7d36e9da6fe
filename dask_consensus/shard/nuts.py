"""NUTS on one shard, compiled once a process for all shards of a shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer.hmc import hmc

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from .compiling import Effort, compiled, on_device, seconds_compiling
from .coordinates import SHARED, Coordinates, unwhitened, whiten
from .starts import Start, key_of, prior_medians, starting_point, why_not_finite
from .target import PriorFactor, log_density

_DENSE_UP_TO = 256  # dimensions of u for which a dense mass matrix is adapted
_PIECE = 1.0  # seconds that a chain runs before it looks whether it is still wanted


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
        compiling, began = seconds_compiling(), time.perf_counter()
        for chain in range(num_chains):
            folded = [random.fold_in(key, chain) for key in named]
            key = jnp.stack(folded) if several else folded[0]
            begin = None
            if starts is not None and starts[0] is not None:
                begin = on_device(together([start[chain] for start in starts if start is not None]))
            arguments = (arrays, factor, space, begin, key)
            chains.append(jax.device_get(_run(model, settings, several, arguments)))
        if not several:
            chains = [jax.tree.map(lambda leaf: leaf[None], chain) for chain in chains]
        for which in range(len(data)):
            if not all(chain.valid[which] for chain in chains):
                raise NotFiniteError(which, why_not_finite(model, on_device(data[which])))
    compiling = seconds_compiling() - compiling
    seconds = (time.perf_counter() - began - compiling) / len(data)
    sampled = []
    for which in range(len(data)):
        mine = [jax.tree.map(lambda leaf, k=which: leaf[k], chain) for chain in chains]
        draws = _summary(mine, settings, seconds, compiling / len(data))
        sampled.append((draws, tuple(chain.end for chain in mine)))
    return sampled


class _State(NamedTuple):
    """Where a chain is, and what is kept of it; `begin` and `advance` take its data beside it."""

    hmc: Any  # NumPyro's state
    sums: Any  # of local sites, after warm-up
    kept: tuple[jax.Array, ...]  # of every transition, zeros of those to come
    valid: jax.Array


def trial(
    model: ShardModel,
    data: ShardData,
    factor: PriorFactor,
    settings: NutsSettings,
    key: tuple[int, ...],
    most: float,
) -> float:
    """Begin a chain on a shard, for some seconds at most: seconds a transition, on average.

    The first are those of warm-up, whose trees are the deepest. Nothing of the chain is kept.
    """
    with precision(model.x64):
        arguments = (
            *on_device((data, factor)),
            on_device(unwhitened(model.dim)),
            None,
            random.fold_in(key_of(*key), 0),
        )
        kind, length = ("nuts", settings, False), settings.num_warmup + settings.num_samples
        chain = partial(_chain_of, model, settings, False)
        state = compiled(model, (*kind, "begin"), lambda: chain()[0], *arguments)(*arguments)
        done, seconds = 0, 0.0
        while done < length and seconds < most:
            until = min(max(2 * done, 1), length)
            given = (*arguments, state, *on_device((np.int32(done), np.int32(until))))
            advance = compiled(
                model, (*kind, "advance"), lambda: chain()[1], *given, effort=Effort.MOST
            )
            began = time.perf_counter()
            state = jax.block_until_ready(advance(*given))
            seconds += time.perf_counter() - began
            done = until
    return seconds / done


def _run(model: ShardModel, settings: NutsSettings, several: bool, arguments: Any) -> _Chain:
    """Run a chain piece by piece, each of about a second: between them it may be stopped."""
    kind, length = ("nuts", settings, several), settings.num_warmup + settings.num_samples
    chain = partial(_chain_of, model, settings, several)
    state = compiled(model, (*kind, "begin"), lambda: chain()[0], *arguments)(*arguments)
    done, more = 0, 1
    while done < length:
        until = min(done + more, length)
        given = (*arguments, state, *on_device((np.int32(done), np.int32(until))))
        advance = compiled(
            model, (*kind, "advance"), lambda: chain()[1], *given, effort=Effort.MOST
        )
        began = time.perf_counter()
        state = jax.block_until_ready(advance(*given))
        seconds = max(time.perf_counter() - began, 1e-9)
        # The first trees are the deepest, later ones may be deeper than those before them.
        more = int(np.clip((until - done) * _PIECE / seconds, 1, 4 * more))
        done = until
    return _chain_from(state, settings)


def _chain_of(
    model: ShardModel, settings: NutsSettings, several: bool
) -> tuple[Callable[..., _State], Callable[..., _State]]:
    """One chain of NUTS, as functions of arrays alone; of several shards, one each."""
    length = settings.num_warmup + settings.num_samples

    def initial(
        data: ShardData,
        factor: PriorFactor,
        coordinates: Coordinates,
        start: Start | None,
        key: jax.Array,
    ) -> tuple[Any, Callable[..., Any], jax.Array]:
        """Return the first state, the function that makes a step, and whether both are valid."""

        def potential(z: dict[str, jax.Array]) -> jax.Array:
            return -log_density(model, _to_u(coordinates, z), _local(z), data, factor)

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
        return state, step, valid

    def begin(*arguments: Any) -> _State:
        state, _, valid = initial(*arguments)
        nothing = jax.tree.map(jnp.zeros_like, _local(state.z))
        like = _kept(arguments[2], state)
        kept = tuple(jnp.zeros((length, *jnp.shape(part)), part.dtype) for part in like)
        return _State(state, (jnp.zeros(()), nothing, nothing), kept, valid)

    # Warm-up and sampling share one loop: the tree is compiled once, not twice.
    def advance(*arguments: Any) -> _State:
        *given, before, done, until = arguments
        # NumPyro's step is what it is once the first state was made, which is not used.
        _, step, _ = initial(*given)

        def once(i: jax.Array, now: _State) -> _State:
            state = step(now.hmc)
            sums = _welford(now.sums, _local(state.z), state.i > settings.num_warmup)
            parts = zip(now.kept, _kept(given[2], state), strict=True)
            return _State(state, sums, tuple(all_.at[i].set(p) for all_, p in parts), now.valid)

        return lax.fori_loop(done, until, once, before)

    if not several:
        return begin, advance
    axes = (0, 0, None, 0, 0)
    return jax.vmap(begin, axes), jax.vmap(advance, (*axes, 0, None, None))


def _to_u(coordinates: Coordinates, z: dict[str, jax.Array]) -> jax.Array:
    return coordinates.center + coordinates.scale @ z[SHARED]


def _kept(coordinates: Coordinates, state: Any) -> tuple[jax.Array, ...]:
    """Take from a state what is kept of every transition."""
    u = _to_u(coordinates, state.z)
    return (u, state.accept_prob, state.num_steps, state.diverging)


def _chain_from(state: _State, settings: NutsSettings) -> _Chain:
    """Take from the last state what a chain gave, after warm-up; of several shards, of each."""
    several = state.valid.ndim > 0
    after = (slice(None),) * several + (slice(settings.num_warmup, None),)
    u, accept_prob, num_steps, diverging = (values[after] for values in state.kept)
    count, _, squares = state.sums
    variances = jax.tree.map(
        lambda total: (
            total / jnp.reshape(count, (-1,) + (1,) * (total.ndim - 1))
            if several
            else total / count
        ),
        squares,
    )
    last = state.kept[0][(slice(None),) * several + (-1,)]
    end = Start(last, _local(state.hmc.z), variances, state.hmc.adapt_state.step_size)
    return _Chain(u, accept_prob, num_steps, diverging, state.valid, end)


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
