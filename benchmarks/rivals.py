"""What ``speed.py`` measures: fits by this package and by NumPyro's own ways, one function each.

Each runs in a process of its own, on data that lie in memory before its clock starts, and returns
what the tables need: seconds, effective draws, moments of the shared parameters.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import reference
import scipy.optimize
from agreement import record
from cases import CASES, PLAIN_BETA, PREDICTORS, Case, informed, plain, sizes_of_groups
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import HMCECS, MCMC, NUTS, init_to_value
from numpyro.infer.hmc import hmc
from numpyro.infer.hmc_util import consensus
from numpyro.infer.util import initialize_model, potential_energy

import dask_consensus  # noqa: F401  registers ddf.consensus
from dask_consensus.cluster import mapreduce
from dask_consensus.cluster.shards import persist
from dask_consensus.fit import LazyFit
from dask_consensus.shard import compiling
from dask_consensus.shard import nuts as shard_sample
from dask_consensus.shard_data import pad

PIECE = 10  # transitions between looks at the clock
WARMUP = 400  # transitions NUTS on all rows adapts in; NumPyro's users mostly take 1,000
CHAINS = 2
HAND, HAND_ONCE = "MCMC.run in a loop", "the same, padded and jitted once"
OURS, IN_TURN = "ours", "ours, a shard at a time"
EACH_ITS_OWN = "the same, compiled for each shard"
WHITENED, DEFAULTS = "ours, one anchored round", "ours by default: Newton steps, corrected"

Row = dict[str, Any]


# Models and data


def slopes(group, x, y=None, *, n_group):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 5.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(2.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a[group] + b[group] * x, sigma), obs=y)


def slopes_of_shard(group, x, y, rows, *, n_group, power):
    """The same model as its author would temper it, with a mask for padding rows."""
    with numpyro.handlers.scale(scale=power):
        mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 5.0))
        mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
        sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(2.0))
        sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    mask = contextlib.nullcontext() if rows is None else numpyro.handlers.mask(mask=rows)
    with numpyro.plate("rows", len(x)), mask:
        numpyro.sample("obs", dist.Normal(a[group] + b[group] * x, sigma), obs=y)


def logistic_matrix(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def logistic_subsampled(x, y, *, size):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=size):
        x_some = numpyro.subsample(x, event_dim=1)
        y_some = numpyro.subsample(y, event_dim=0)
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + x_some @ beta), obs=y_some)


TRUTH = {"mu_a": 1.0, "mu_b": 0.5, "sigma_a": 1.0, "sigma_b": 0.7, "sigma": 1.0}


def simulate_slopes(rows: int, *, equal: bool = True) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows of the random intercepts and slopes, and these; 10 rows a group, or 10 on average."""
    rng = np.random.default_rng(51)
    groups = rows // 10
    each = np.full(groups, 10) if equal else sizes_of_groups(rng, groups, rows)
    group = np.repeat(np.arange(groups), each)
    x = rng.normal(size=len(group))
    a = rng.normal(TRUTH["mu_a"], TRUTH["sigma_a"], groups)
    b = rng.normal(TRUTH["mu_b"], TRUTH["sigma_b"], groups)
    y = rng.normal(a[group] + b[group] * x, TRUTH["sigma"])
    return pd.DataFrame({"group": group, "x": x, "y": y}), {"a": a, "b": b}


def case_of(name: str, rows: int) -> Case:
    """A model and its rows, in the form a user would write."""
    if name == "logistic":
        return replace(CASES["logistic-plain"], frame=functools.partial(plain, rows))
    return Case(
        name=name,
        model=slopes,
        frame=lambda: simulate_slopes(rows)[0],
        shards=(),
        start=TRUTH,
        by="group",
    )


FORMS: dict[str, dict[str, Any]] = {
    "slopes": {
        "centred": {},
        "non-centred": {"a": 0.0, "b": 0.0},
        "partly centred": {
            "a": informed("group", TRUTH["sigma_a"] ** 2),
            "b": informed("group", TRUTH["sigma_b"] ** 2),
        },
    },
    "logistic": {"columns": {}, "matrix": {}},
}
ARRANGEMENTS = ("threads", "parallel", "sequential")


class Problem(NamedTuple):
    """What NUTS on all rows is given: a model, its arguments, unconstrained start by value."""

    model: Callable[..., None]
    data: dict[str, np.ndarray]
    start: dict[str, np.ndarray]
    shared: tuple[str, ...]


def problem(name: str, rows: int, form: str) -> Problem:
    """A case in one of the full fit's forms, starting at what the data were drawn from."""
    if name == "logistic":
        frame = plain(rows)
        start = {"alpha": np.array(-0.8), "beta": PLAIN_BETA}
        if form == "matrix":
            data = {"x": frame[PREDICTORS].to_numpy(), "y": frame["y"].to_numpy()}
            return Problem(logistic_matrix, data, start, tuple(start))
        return Problem(
            CASES["logistic-plain"].model,
            {column: frame[column].to_numpy() for column in frame},
            start,
            tuple(start),
        )
    frame, effects = simulate_slopes(rows)
    case = replace(case_of(name, rows), centred=FORMS[name][form])
    data, counts = case.arguments(frame)
    start = {name: np.asarray(value) for name, value in TRUTH.items()}
    for site, value in effects.items():
        how = case.centred.get(site, 1.0)
        c = how(frame) if callable(how) else how
        loc, scale = TRUTH[f"mu_{site}"], TRUTH[f"sigma_{site}"]
        start[site if site not in case.centred else f"{site}_decentered"] = (
            value if site not in case.centred else c * loc + (value - loc) / scale ** (1 - c)
        )
    model = functools.partial(case.reparameterised(frame), **counts)
    return Problem(model, data, start, tuple(TRUTH))


# Clocks


class Clock:
    """Wall and processor seconds of a measurement, and those in which something was compiled."""

    def __init__(self) -> None:
        self._compiled: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        self._spent = time.process_time()
        self._began = time.perf_counter()

    def _heard(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._compiled.append((now - duration, now))

    @property
    def seconds(self) -> float:
        """Wall seconds since the clock was made."""
        return time.perf_counter() - self._began

    def read(self) -> Row:
        """All three; tracing counts as compiling, and what threads compile at once counts once."""
        seconds, cpu = self.seconds, time.process_time() - self._spent
        compiling, end = 0.0, -np.inf
        for start, stop in sorted(self._compiled):
            compiling += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return {"seconds": seconds, "cpu_seconds": cpu, "compile_seconds": compiling}


# Ours


def frame_in_memory(frame: pd.DataFrame, n_shards: int) -> dd.DataFrame:
    """A Dask DataFrame that lies in memory, in as many partitions as there will be shards."""
    return dd.from_pandas(frame, npartitions=n_shards, sort=False).persist()


def ours(name: str, rows: int, seed: int) -> Row:
    """Fit with the package's defaults, on Dask's threads."""
    case = case_of(name, rows)
    n_shards = max(4, rows // 50_000)
    ddf = frame_in_memory(case.frame(), n_shards)
    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ddf.consensus.fit(
            case.model, by=case.by, n_shards=n_shards, seed=seed, progress=False
        )
    took = clock.read()
    return {**record(tree), **took, **accuracy(tree), "n_shards": n_shards}


def accuracy(tree: Any) -> Row:
    """Effective draws of a corrected fit, and where its time went.

    Effective are as many independent draws as would know the worst mean and the worst sd as well:
    the variance of a mean of n normal draws is 1 / n, of the log of their sd 1 / (2 n).
    """
    profile = tree.attrs.get("profile")
    row: Row = {"profile": json.loads(profile) if isinstance(profile, str) else profile}
    if "correction" in tree.children:
        made = tree["correction"]
        worst = max((made["error"].values ** 2).max(), 2 * (made["sd_error"].values ** 2).max())
        row |= {"ess": float(1 / worst)}
    row["steps"] = float(tree["shards"]["steps"].isel(round=-1).mean())
    return row


# NUTS on all rows


class How(NamedTuple):
    """How the full fit is made.

    Attributes
    ----------
    form : str
        Of the model, see `FORMS`.
    arrangement : {"threads", "parallel", "sequential"}
        A chain to a thread, NumPyro's ``chain_method="parallel"`` on two host devices, or one
        chain after the other, the cores left to XLA.
    x64 : bool
    """

    form: str
    arrangement: str
    x64: bool


class Stop(NamedTuple):
    """When the full fit ends: at so many effective draws, so many draws a chain, or the cap."""

    ess: float
    draws: float
    cap: float


class Traces:
    """Draws of all chains as they come; says when they are enough."""

    def __init__(self, stop: Stop, clock: Clock) -> None:
        self.stop, self.clock = stop, clock
        self.pieces: list[list[Any]] = [[] for _ in range(CHAINS)]
        self.warm: list[float] = []
        self.over = False
        self._lock = threading.Lock()
        self._next = 50

    def draws(self) -> np.ndarray:
        """Unconstrained draws after warm-up that all chains have, ``(chains, draws, d)``."""
        kept = [pieces[WARMUP // PIECE :] for pieces in self.pieces]
        n = min(map(len, kept))
        if not n:
            return np.empty((CHAINS, 0, 0))
        return np.stack([np.concatenate([u for u, *_ in pieces[:n]]) for pieces in kept])

    def add(self, chains: Sequence[int], pieces: Sequence[Any]) -> bool:
        """Keep what some chains did; return whether to go on."""
        for chain, piece in zip(chains, pieces, strict=True):
            self.pieces[chain].append(piece)
            if len(self.pieces[chain]) == WARMUP // PIECE:
                self.warm.append(self.clock.seconds)
        with self._lock:
            n = min(map(len, self.pieces)) * PIECE - WARMUP
            if n >= self._next and np.isfinite(self.stop.ess):
                self._next = int(1.1 * n) + 1
                self.over |= least_ess(self.draws()) >= self.stop.ess
            self.over |= n >= self.stop.draws or self.clock.seconds > self.stop.cap
        return not self.over


def least_ess(draws: np.ndarray) -> float:
    """Smallest effective sample size of draws ``(chains, draws, d)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = effective_sample_size(draws)
    return float(np.where(np.isfinite(found), found, 0.0).min())


def full(name: str, rows: int, seed: int, how: How, stop: Stop) -> Row:
    """Run NUTS on all rows, in pieces, so that it can stop at any time.

    A compiled scan over the kernel, faster than ``MCMC.run``; the shared sites have a dense mass
    matrix, the effects of groups a diagonal one.
    """
    if how.arrangement == "parallel":
        numpyro.set_host_device_count(CHAINS)
    jax.config.update("jax_enable_x64", how.x64)
    made = problem(name, rows, how.form)
    clock = Clock()
    working = np.dtype(jnp.result_type(float))
    data = {
        key: jnp.asarray(value, working if value.dtype.kind == "f" else None)
        for key, value in made.data.items()
    }
    keys = random.split(random.key(seed), CHAINS)
    initial, potential_of, _, _ = initialize_model(
        keys[0],
        made.model,
        init_strategy=init_to_value(values={k: jnp.asarray(v) for k, v in made.start.items()}),
        dynamic_args=True,
        model_kwargs=data,
    )
    traces = Traces(stop, clock)
    begin, advance = kernel(potential_of, made.shared)
    run_chains(begin, advance, keys, initial.z, data, how.arrangement, traces)
    return {**clock.read(), **summary(traces, initial.z, made.shared), **how._asdict()}


def kernel(
    potential_of: Callable[..., Any], shared: Sequence[str]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How a chain begins, and how it advances by a piece, keeping the shared sites."""
    init, step = hmc(potential_fn_gen=potential_of, algo="NUTS")

    def begin(key: jax.Array, z: Mapping[str, jax.Array], data: Any) -> Any:
        dense = [tuple(name for name in sorted(z) if name in shared)]
        return init(z, WARMUP, rng_key=key, dense_mass=dense, step_size=0.1, model_kwargs=data)

    def advance(state: Any, data: Any) -> Any:
        def one(state: Any, _: None) -> Any:
            state = step(state, (), data)
            u = jnp.concatenate([jnp.ravel(state.z[name]) for name in sorted(shared)])
            return state, (u, state.num_steps, state.diverging, state.accept_prob)

        return jax.lax.scan(one, state, None, length=PIECE)

    return begin, advance


def run_chains(
    begin: Callable[..., Any],
    advance: Callable[..., Any],
    keys: jax.Array,
    z: Any,
    data: Any,
    arrangement: str,
    traces: Traces,
) -> None:
    """Advance all chains until the traces are enough."""
    if arrangement == "parallel":
        start = jax.pmap(begin, in_axes=(0, None, None))(keys, z, data)
        copies = jax.pmap(lambda _, data: data, in_axes=(0, None))(keys, data)
        both = jax.pmap(advance)

        def step_both(states: Any) -> Any:
            states, kept = both(states, copies)
            return states, [jax.tree.map(lambda leaf, c=c: leaf[c], kept) for c in range(CHAINS)]

        loops = [((0, 1), step_both, start)]
    else:
        first = jax.jit(begin)
        states = [first(key, z, data) for key in keys]
        code = jax.jit(advance).lower(states[0], data).compile()

        def step(states: Any) -> Any:
            pairs = [code(state, data) for state in states]
            return [state for state, _ in pairs], [kept for _, kept in pairs]

        loops = (
            [((c,), step, [states[c]]) for c in range(CHAINS)]
            if arrangement == "threads"
            else [(tuple(range(CHAINS)), step, states)]
        )

    def loop(chains: Sequence[int], step: Callable[..., Any], states: Any) -> None:
        going = True
        while going:
            states, kept = step(states)
            going = traces.add(chains, jax.device_get(kept))

    with ThreadPoolExecutor(len(loops)) as pool:
        for future in [pool.submit(loop, *one) for one in loops]:
            future.result()


def summary(traces: Traces, z: Mapping[str, jax.Array], shared: Sequence[str]) -> Row:
    """Moments of the draws there are, or how far warm-up came."""
    row: Row = {
        "iterations": PIECE * min(map(len, traces.pieces)),
        "capped": traces.clock.seconds > traces.stop.cap,
        "draws": 0,
        "ess": 0.0,
    }
    draws = traces.draws()
    if draws.shape[1] < 4:
        return row
    shapes = {name: np.empty((1, 1, *z[name].shape)) for name in sorted(shared)}
    table = reference.summary(draws.astype(np.float64), reference.scalar_names(shapes))
    flags = [p[1:] for pieces in traces.pieces for p in pieces[WARMUP // PIECE :]]
    steps, diverging, accept = (np.concatenate(values) for values in zip(*flags, strict=True))
    return row | {
        "draws": draws.shape[1],
        "ess": least_ess(draws.astype(np.float64)),
        "r_hat": max(one["r_hat"] for one in table.values()),
        "warm_seconds": float(np.mean(traces.warm)),
        "steps": float(steps.mean()),
        "divergences": int(diverging.sum()),
        "accept_prob": float(accept.mean()),
        "unconstrained": table,
    }


# A loop over shards


class Loop(NamedTuple):
    """Rows in so many shards, and transitions on each."""

    rows: int
    n_shards: int
    num_warmup: int
    num_samples: int


def loop_fit(loop: Loop, seed: int, **options: Any) -> LazyFit:
    """One-shot consensus on unequal shards of whole groups, or whatever is asked for."""
    ddf = frame_in_memory(simulate_slopes(loop.rows, equal=False)[0], loop.n_shards)
    sampling = {
        "method": "consensus",
        "correct": False,
        "num_warmup": loop.num_warmup,
        "num_samples": loop.num_samples,
    }
    return ddf.consensus.fit(
        slopes,
        by="group",
        n_shards=loop.n_shards,
        seed=seed,
        progress=False,
        compute=False,
        **(options or sampling),
    )


def loop_ours(loop: Loop, seed: int, name: str) -> Row:
    """Our one-shot consensus, with something switched off."""
    if name == EACH_ITS_OWN:
        shard_sample.compiled = forgetful
    options: dict[str, Row] = {
        DEFAULTS: {"correct": "auto"},
        WHITENED: {
            "method": "anchored",
            "correct": False,
            "rounds": 1,
            "num_samples": loop.num_samples,
        },
    }
    lazy = loop_fit(loop, seed, **options.get(name, {}))
    scheduler = "threads" if name in (OURS, *options) else "synchronous"
    clock = Clock()
    with warnings.catch_warnings(), dask.config.set(scheduler=scheduler):
        warnings.simplefilter("ignore")
        tree = lazy.compute()
    return {**clock.read(), **record(tree), **accuracy(tree)}


def forgetful(*arguments: Any) -> Any:
    """Compile as if nothing had been compiled before."""
    compiling._COMPILED.clear()
    return compiling.compiled(*arguments)


def loop_by_hand(loop: Loop, seed: int, name: str) -> Row:
    """``MCMC.run`` for each shard, one after another, and NumPyro's consensus."""
    lazy = loop_fit(loop, seed)
    sharded = persist(lazy.frame, lazy.plan())
    shards, powers = mapreduce.compute(sharded.parts), sharded.weights
    settings: Row = {"num_warmup": loop.num_warmup, "num_samples": loop.num_samples}
    settings["progress_bar"] = False
    clock = Clock()

    def run(key: jax.Array, n_group: int, **arguments: Any) -> tuple[Any, jax.Array]:
        mcmc = MCMC(NUTS(functools.partial(slopes_of_shard, n_group=n_group)), **settings)
        mcmc.run(key, **arguments, extra_fields=("num_steps",))
        found = mcmc.get_samples()
        return {site: found[site] for site in TRUTH}, mcmc.get_extra_fields()["num_steps"].mean()

    # With `jit_model_args=True` a second run still compiles its start anew; so jitted, none does.
    once = jax.jit(run, static_argnames="n_group")
    draws, steps = [], []
    for k, (shard, power) in enumerate(zip(shards, powers, strict=True)):
        key = random.fold_in(random.key(seed), k)
        if name == HAND:
            arguments, (n_group,) = shard.arguments, shard.groups
            found, taken = run(key, n_group, **arguments, rows=None, power=power)
        else:
            padded = pad(shard, *sharded.padded[k])
            more = {"rows": padded.rows, "power": power}
            found, taken = once(key, len(padded.groups[0]), **padded.arguments, **more)
        draws.append(found)
        steps.append(float(taken))
    combined = jax.block_until_ready(consensus(draws))
    took = clock.read()
    moments = {
        site: {"mean": float(value.mean()), "sd": float(value.std())}
        for site, value in combined.items()
    }
    shapes = len({tuple(size) for size in sharded.sizes})
    return {**took, "constrained": moments, "steps": float(np.mean(steps)), "shapes": shapes}


LOOP: dict[str, Callable[..., Row]] = {
    HAND: loop_by_hand,
    HAND_ONCE: loop_by_hand,
    OURS: loop_ours,
    IN_TURN: loop_ours,
    EACH_ITS_OWN: loop_ours,
    WHITENED: loop_ours,
    DEFAULTS: loop_ours,
}


# HMC with energy-conserving subsampling


def hmcecs(rows: int, seed: int, size: int, blocks: int, stop: Stop) -> Row:
    """Run NumPyro's HMCECS around the posterior mode until it has as many effective draws.

    Each chain has a process of its own: its proxy does not survive ``chain_method="parallel"``.
    """
    half = stop._replace(ess=stop.ess / CHAINS)
    with ProcessPoolExecutor(CHAINS, mp_context=multiprocessing.get_context("spawn")) as pool:
        keys = [(seed, chain) for chain in range(CHAINS)]
        jobs = [pool.submit(hmcecs_chain, rows, key, size, blocks, half) for key in keys]
        chains = [job.result() for job in jobs]
    values = [values for values, _ in chains]
    rest = [row for _, row in chains]
    n = min(len(one["alpha"]) for one in values)
    joined = {name: np.stack([one[name][:n] for one in values]) for name in values[0]}
    draws = reference.flat(joined)
    table = reference.summary(draws, reference.scalar_names(joined))
    return {
        **{name: max(row[name] for row in rest) for name in rest[0]},
        "subsample": size,
        "blocks": blocks,
        "draws": n,
        "ess": least_ess(draws),
        "r_hat": max(one["r_hat"] for one in table.values()),
        "unconstrained": table,
    }


def hmcecs_chain(
    rows: int, key: tuple[int, int], size: int, blocks: int, stop: Stop
) -> tuple[dict[str, np.ndarray], Row]:
    """One chain, in pieces: its draws, and what it took."""
    frame = plain(rows)
    x, y = (np.asarray(frame[c], np.float32) for c in (PREDICTORS, "y"))
    clock = Clock()
    x, y = jnp.asarray(x), jnp.asarray(y)
    mode = posterior_mode(x, y)
    found = clock.seconds
    inner = NUTS(logistic_subsampled, dense_mass=True, init_strategy=init_to_value(values=mode))
    sampler = HMCECS(inner, num_blocks=blocks, proxy=HMCECS.taylor_proxy(mode))
    mcmc = MCMC(sampler, num_warmup=WARMUP, num_samples=1_000, progress_bar=False)
    mcmc.warmup(random.fold_in(random.key(key[0]), key[1]), x, y, size=size)
    jax.block_until_ready(mcmc.last_state)
    warm = clock.seconds
    chunks, flags = [], []
    fields = ("accept_prob", "hmc_state.num_steps")
    while True:
        mcmc.run(mcmc.post_warmup_state.rng_key, x, y, size=size, extra_fields=fields)
        mcmc.post_warmup_state = mcmc.last_state
        chunks.append({name: np.asarray(mcmc.get_samples()[name]) for name in mode})
        flags.append([float(mcmc.get_extra_fields()[name].mean()) for name in fields])
        values = {name: np.concatenate([c[name] for c in chunks]) for name in mode}
        if least_ess(reference.flat({n: v[None] for n, v in values.items()})) >= stop.ess:
            break
        if clock.seconds > stop.cap:
            break
    accepted, steps = np.mean(flags, axis=0)
    return values, {
        **clock.read(),
        "mode_seconds": found,
        "warm_seconds": warm,
        "capped": clock.seconds > stop.cap,
        "subsamples_accepted": float(accepted),
        "steps": float(steps),
    }


def posterior_mode(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """The mode that the proxy is expanded around, found in double precision."""
    with jax.enable_x64(True):
        x64, y64 = (jnp.asarray(np.asarray(one, np.float64)) for one in (x, y))
        # Not from zero: where a logit is exactly 0, NumPyro's gradient of its density is not right.
        near_zero = {"alpha": jnp.full((), 0.01), "beta": jnp.zeros(x.shape[1])}
        start, unravel = ravel_pytree(near_zero)

        @jax.jit
        def slope(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            def potential(u: jax.Array) -> jax.Array:
                data = {"x": x64, "y": y64}
                return potential_energy(logistic_matrix, (), data, unravel(u)) / len(x64)

            return jax.value_and_grad(potential)(u)

        def value_and_gradient(u: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = slope(jnp.asarray(u))
            return float(value), np.asarray(gradient)

        found = scipy.optimize.minimize(
            value_and_gradient, np.asarray(start), jac=True, method="L-BFGS-B"
        )
        assert found.success, found.message
        mode = {name: np.asarray(value) for name, value in unravel(jnp.asarray(found.x)).items()}
    return {name: jnp.asarray(value, x.dtype) for name, value in mode.items()}
