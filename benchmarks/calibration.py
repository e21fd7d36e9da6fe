"""Calibration by simulation: what is true has a uniform rank among the draws of a right posterior.

Shared parameters, effects and rows are drawn from a model, the rows are fitted, and what they were
drawn from is ranked among the draws, many times over (Talts et al. 2018): every shared parameter,
effects of groups, and the log likelihood of all rows at parameters and effects together, which
tells draws that know too little of the rows (Modrák et al. 2023). The models are binary rows,
counts, and Gaussian rows with correlated intercepts and slopes; simulations of a model differ in
values alone, so that one compilation serves all. No fit is left out: one whose verdict is not good
has its ranks, too, and one that raises is counted.

    python -m benchmarks.calibration --simulations 200
    python -m benchmarks.calibration --models gaussian --simulations 20
    python -m benchmarks.calibration --table
    python -m benchmarks.calibration --picture calibration.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import xarray as xr
from numpyro.handlers import seed, trace
from numpyro.infer import log_likelihood

import dask_consensus  # noqa: F401

from .measure.clock import Clock
from .measure.fits import quietly
from .measure.machine import facts
from .measure.script import Store, parse
from .tables import calibration as tables

N_SHARDS = 4
LEAST_ROWS, MOST_ROWS = 3, 12  # of a group
RANKED_GROUPS = 3  # drawn anew in each simulation; the first alone is tested for uniformity
TOY = {"models": ["counts"], "simulations": 2, "groups": 24, "draws": 19}


class Simulated(NamedTuple):
    """A model, and the numbers that are ranked: name -> site, and index of its entry."""

    model: Callable[..., None]
    shared: dict[str, tuple[str, tuple[int, ...]]]
    effects: dict[str, tuple[str, tuple[int, ...]]]


def binary(group, x, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Bernoulli(logits=a[group] + beta * x), obs=y)


def counts(group, x, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.5, 0.7))
    beta = numpyro.sample("beta", dist.Normal(0.0, 0.4))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 4.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Poisson(jnp.exp(a[group] + beta * x)), obs=y)


def gaussian(group, x, y=None, *, n_group):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 1.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 1.0))
    tau_a = numpyro.sample("tau_a", dist.HalfNormal(1.0))
    tau_b = numpyro.sample("tau_b", dist.LogNormal(-0.7, 0.5))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.3))
    mean, scale = jnp.stack([mu_a, mu_b]), jnp.stack([tau_a, tau_b])[:, None] * corr
    with numpyro.plate("groups", n_group):
        ab = numpyro.sample("ab", dist.MultivariateNormal(mean, scale_tril=scale))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(ab[group, 0] + ab[group, 1] * x, sigma), obs=y)


def _scalars(*names: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (name, ()) for name in names}


MODELS = {
    "binary": Simulated(binary, _scalars("mu", "beta", "tau"), _scalars("a")),
    "counts": Simulated(counts, _scalars("mu", "beta", "tau"), _scalars("a")),
    "gaussian": Simulated(
        gaussian,
        {**_scalars("mu_a", "mu_b", "tau_a", "tau_b", "sigma"), "rho": ("corr", (1, 0))},
        {"a": ("ab", (0,)), "b": ("ab", (1,))},
    ),
}


def simulated(
    model: Callable[..., None], groups: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw rows from a model, always as many of each group, and all values behind them."""
    sizes = LEAST_ROWS + np.arange(groups) % (MOST_ROWS + 1 - LEAST_ROWS)
    group = np.repeat(np.arange(groups), sizes)
    x = rng.normal(size=len(group)).astype(np.float32)
    key = jax.random.key(rng.integers(2**31))
    sites = trace(seed(model, key)).get_trace(group=group, x=x, n_group=groups)
    values = {
        name: np.asarray(site["value"]) for name, site in sites.items() if site["type"] == "sample"
    }
    y = values.pop("obs").astype(np.float32)
    return {"group": group, "x": x, "y": y}, values


def fitted(name: str, groups: int, number: int, draws: int) -> dict[str, Any]:
    """Simulate rows, fit them, and rank what they were drawn from among the draws."""
    rng = np.random.default_rng([number, list(MODELS).index(name)])
    rows, truth = simulated(MODELS[name].model, groups, rng)
    some = rng.choice(groups, RANKED_GROUPS, replace=False)
    ddf = dd.from_pandas(pd.DataFrame(rows), npartitions=N_SHARDS)
    options = {"by": "group", "n_shards": N_SHARDS, "seed": number, "progress": False}
    options["num_chains"] = 1  # the draws of one, side by side
    options |= {"local": "draws", "local_draws": draws}
    clock = Clock()
    try:
        tree = quietly(ddf.consensus.fit(MODELS[name].model, compute=False, **options))
    except Exception as error:  # whatever it is, the simulation counts
        return {"failed": f"{type(error).__name__}: {error}", **clock.read()}
    reasons = json.loads(tree.attrs["verdict_reasons"])
    return {
        "good": bool(tree.attrs["verdict_good"]),
        "reasons": [[reason["code"], reason["where"]] for reason in reasons],
        **clock.read(),
        "groups_ranked": some.tolist(),
        "ranks": ranks_of(MODELS[name], tree, rows, truth, some, draws),
    }


def ranks_of(
    of: Simulated,
    tree: xr.DataTree,
    rows: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    groups: np.ndarray,
    draws: int,
) -> dict[str, list[int]]:
    """Rank what is true among `draws` draws; of effects, that of some groups each.

    A fit without effects has ranks of the shared parameters alone.
    """
    posterior = tree["posterior"].to_dataset()
    has_effects = "local" in tree.children
    if has_effects:
        local = tree["local"].to_dataset()
        posterior = posterior.sel(draw=local["draw"]).merge(local)
    else:
        which = np.linspace(0, posterior.sizes["draw"] - 1, draws).round().astype(int)
        posterior = posterior.isel(draw=which)
    assert posterior.sizes["chain"] == 1
    assert posterior.sizes["draw"] == draws
    # What is true comes first, and its draws after it.
    values = {
        name: np.concatenate([truth[name][None], array.to_numpy()[0]])
        for name, array in posterior.data_vars.items()
    }
    ranked = {name: values[site][(..., *at)][:, None] for name, (site, at) in of.shared.items()}
    if has_effects:
        for name, (site, at) in of.effects.items():
            ranked[name] = values[site][(slice(None), groups, *at)]
        data = {**rows, "n_group": len(local["group"])}
        ranked["log lik"] = _log_likelihood(of.model, values, data)[:, None]
    return {name: (v[1:] < v[0]).sum(axis=0).tolist() for name, v in ranked.items()}


def _log_likelihood(
    model: Callable[..., None], values: dict[str, np.ndarray], data: dict[str, Any]
) -> np.ndarray:
    of_rows = log_likelihood(model, values, parallel=True, **data)["obs"]
    return np.asarray(of_rows, np.float64).sum(axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--simulations", type=int, default=200, help="of each model")
    add("--groups", type=int, default=80)
    add("--draws", type=int, default=199, help="that ranks are taken among")
    add("--picture", type=Path, help="draw the ECDFs of what is in the file; measure nothing")
    args = parse(parser, argv, TOY)
    store = Store(args, "calibration")
    measured = not (args.table or args.picture) or args.toy
    # Models take turns, so that a run that is cut off has as many simulations of each.
    for number in range(args.simulations if measured else 0):
        for name in args.models:
            key = {"model": name, "groups": args.groups, "draws": args.draws, "simulation": number}
            if store.get(key) is None:
                machine = facts()
                row = fitted(name, args.groups, number, args.draws)
                store.put(key, {**row, "machine": machine})
                print(name, number, tables.outcome(row), f"{row['seconds']:.1f} s", flush=True)
    rows = store.rows()
    print(*tables.tables(rows), sep="\n")
    if args.picture and rows:
        tables.picture(rows, args.picture)


if __name__ == "__main__":
    main()
