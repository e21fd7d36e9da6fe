"""What is said of groups: against full-data NUTS, against the truth, and what it costs to store.

- ``osic``: means, sds and quantiles of 176 patients' intercepts and slopes on 5 and 20 shards, and
  their correlations, against NumPyro's NUTS on all rows.
- ``coverage``: how often intervals of effects hold the values that the rows were simulated from,
  for binary, count and Gaussian rows, groups of 1, 3 and 30 of them; and how often those of the
  exact posterior at the true shared parameters do, on a grid. Over many fits, their parameters
  drawn from the prior: intervals hold by what is drawn there, too.
- ``stored``: draws of the effects of many groups, written to Zarr by two worker processes: time,
  peaks of memory and size on disk; of no draws (``--stored-draws 0``) their summary.

    python -m benchmarks.effects osic coverage stored
    python -m benchmarks.effects --table
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import scipy.special
import xarray as xr
from distributed import Client
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import dask_consensus  # noqa: F401

from .cases import CASES
from .cases.sized import GROWING, ROWS_A_GROUP
from .measure.fits import quietly
from .measure.machine import MIB, local_cluster, peak_mib
from .measure.script import Store, parse
from .scale import write
from .tables import effects as tables

PARTS = ("osic", "coverage", "stored")
KINDS = ("binary", "counts", "gaussian")
TOY = {
    "parts": ["coverage", "stored"], "kinds": ["binary"], "sizes": [3], "seeds": 1,
    "groups": 60, "draws": 20, "stored_rows": 600, "stored_draws": 8,
}  # fmt: skip


def simulated_model(group, y=None, *, n_group, kind):
    """Random intercepts, whose prior the effects of :func:`simulated` are drawn from."""
    mu = numpyro.sample("mu", dist.Normal(0.5, 0.5))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        if kind == "binary":
            rows = dist.Bernoulli(logits=b[group])
        elif kind == "counts":
            rows = dist.Poisson(jnp.exp(b[group]))
        else:
            rows = dist.Normal(b[group], 1.0)
        numpyro.sample("obs", rows, obs=y)


def simulated(
    kind: str, groups: int, size: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Simulate shared parameters, effects and rows from the model.

    The ranks of the effects in their exact posterior, given the shared parameters, come third.
    """
    rng = np.random.default_rng([seed, size, KINDS.index(kind)])
    mu, tau = _shared(rng)
    b = rng.normal(mu, tau, groups)
    g = np.repeat(np.arange(groups), size)
    if kind == "binary":
        y = (rng.random(len(g)) < 1 / (1 + np.exp(-b[g]))).astype(float)
    else:
        y = rng.poisson(np.exp(b[g])) if kind == "counts" else rng.normal(b[g], 1.0)
    frame = pd.DataFrame({"group": g, "y": np.asarray(y, float)})
    total, grid = frame.groupby("group")["y"].sum().to_numpy()[:, None], np.linspace(-12, 12, 8_001)
    normalizer = {
        "binary": np.logaddexp(0, grid),
        "counts": np.exp(grid),
        "gaussian": grid**2 / 2,
    }[kind]
    log_density = total * grid - size * normalizer - 0.5 * ((grid - mu) / tau) ** 2
    below = np.cumsum(scipy.special.softmax(log_density, axis=1), axis=1)
    ranks = np.array(
        [np.interp(effect, grid, of_one) for effect, of_one in zip(b, below, strict=True)]
    )
    return frame, b, ranks


def shared_of(kind: str, size: int, seed: int) -> tuple[float, float]:
    """Return the mean and the sd of the effects of :func:`simulated`."""
    return _shared(np.random.default_rng([seed, size, KINDS.index(kind)]))


def _shared(rng: np.random.Generator) -> tuple[float, float]:
    return rng.normal(0.5, 0.5), abs(rng.normal(0, 1.0))


def coverage(kind: str, size: int, seed: int, groups: int, draws: int) -> dict[str, Any]:
    """Say how many of the groups' intervals hold the truth, by draws and by the summary."""
    frame, b, ranks = simulated(kind, groups, size, seed)
    ddf = dd.from_pandas(frame, npartitions=4)

    def model(group, y=None, *, n_group):
        simulated_model(group, y, n_group=n_group, kind=kind)

    options = {"by": "group", "n_shards": 4, "seed": seed, "progress": False, "compute": False}
    tree = quietly(ddf.consensus.fit(model, **options, local="draws", local_draws=draws))
    values = tree["local"]["b"].to_numpy().reshape(-1, groups)
    held = {}
    for share in (0.5, 0.9):
        low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2], axis=0)
        held[f"{share:.0%}"] = int(((low < b) & (b < high)).sum())
    summary = quietly(ddf.consensus.fit(model, **options))["local"]["b"]
    low, mid, high = (summary.sel(statistic=q).to_numpy() for q in ("q05", "q50", "q95"))
    return {
        "groups": groups,
        "held": held,
        "held_exactly": {s: int((abs(ranks - 0.5) < float(s[:-1]) / 200).sum()) for s in held},
        "held_summary": int(((low < b) & (b < high)).sum()),
        "below_median": int((b < mid).sum()),
        "good": bool(tree.attrs["verdict_good"]),
    }


def osic(shards: int, draws: int) -> dict[str, Any]:
    """Compare patients' effects with full-data NUTS."""
    case = CASES["osic"]
    frame = case.frame()
    codes, labels = pd.factorize(frame["Patient"], sort=True)
    data = {"weeks": frame["Weeks"].to_numpy(), "fvc": frame["FVC"].to_numpy()}
    sampler = MCMC(
        NUTS(case.model, target_accept_prob=0.9),
        num_warmup=1500,
        num_samples=draws,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    sampler.run(jax.random.key(1), patient=codes, n_patient=len(labels), **data)
    full = {k: np.asarray(v) for k, v in sampler.get_samples(group_by_chain=True).items()}
    ddf = dd.from_pandas(frame, npartitions=4)
    options = {"by": "Patient", "columns": case.columns, "n_shards": shards, "progress": False}
    summary = quietly(ddf.consensus.fit(case.model, **options, compute=False))["local"]
    options |= {"local": "draws", "local_draws": 1000, "compute": False}
    drawn = quietly(ddf.consensus.fit(case.model, **options))
    alone = _alone(frame, labels, shards)
    row: dict[str, Any] = {}
    for site in ("a", "b"):
        mean, sd = full[site].mean(axis=(0, 1)), full[site].std(axis=(0, 1))
        error = 1 / np.sqrt(effective_sample_size(full[site]))
        told = summary[site].sel(Patient=labels)
        away = np.abs(told.sel(statistic="mean").to_numpy() - mean) / sd
        ratio = told.sel(statistic="sd").to_numpy() / sd
        quantiles = [
            np.abs(told.sel(statistic=name).to_numpy() - np.quantile(full[site], q, (0, 1))) / sd
            for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95))
        ]
        apart = alone[site].sel(Patient=labels)
        off = np.abs(apart.sel(statistic="mean").to_numpy() - mean) / sd
        apart_ratio = apart.sel(statistic="sd").to_numpy() / sd
        row[site] = {
            "alone": [float(off.max()), float(apart_ratio.min()), float(apart_ratio.max())],
            "largest": float(away.max()),
            "beyond_error": float(np.max(away - 2 * error)),
            "sd_ratios": [float(ratio.min()), float(ratio.max())],
            "quantiles": [float(q.max()) for q in quantiles],
        }
    of_patients = drawn["local"].to_dataset().sel(Patient=labels)
    ours = {s: of_patients[s].to_numpy().reshape(-1, len(labels)) for s in ("a", "b")}
    theirs = {s: full[s].reshape(-1, len(labels)) for s in ("a", "b")}
    pairs = {"a with b": (ours["a"], ours["b"], theirs["a"], theirs["b"])}
    for name in ("mu_a", "sigma_a", "mu_b", "sigma_b", "sigma"):
        of_draws = drawn["posterior"][name].sel(draw=of_patients["draw"]).to_numpy()
        shared = of_draws.reshape(-1), full[name].reshape(-1)
        pairs[f"b with {name}"] = (ours["b"], shared[0], theirs["b"], shared[1])
    row["correlations"] = {
        name: float(np.sqrt(np.mean((_correlation(x, y) - _correlation(z, w)) ** 2)))
        for name, (x, y, z, w) in pairs.items()
    }
    return row


def _alone(frame: pd.DataFrame, labels: pd.Index, shards: int) -> xr.Dataset:
    """Fit the patients of each shard by themselves, as if there were no others."""
    case = CASES["osic"]
    options = {"by": "Patient", "columns": case.columns, "n_shards": 1, "progress": False}
    parts = []
    for some in np.array_split(np.random.default_rng(0).permutation(labels), shards):
        here = dd.from_pandas(frame[frame["Patient"].isin(some)], npartitions=1)
        tree = quietly(here.consensus.fit(case.model, **options, compute=False))
        parts.append(tree["local"].to_dataset()[["a", "b"]])
    return xr.concat(parts, dim="Patient")


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlate columns, with those of another array or with one number a draw."""
    y = y if y.ndim > 1 else y[:, None]
    x, y = (each - each.mean(axis=0) for each in (x, y))
    return (x * y).mean(axis=0) / (x.std(axis=0) * y.std(axis=0))


def stored(rows: int, draws: int, here: bool) -> dict[str, Any]:
    """Write draws of all groups' intercepts and slopes, or a summary, by two worker processes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "rows", rows, 0, "slopes")
        with local_cluster(folder, 2, 1, here=here) as cluster, Client(cluster) as client:
            frame = dd.read_parquet(Path(folder) / "rows")
            options = {"by": "group", "progress": False, "compute": False}
            if here:
                options["n_shards"] = 2
            path = str(Path(folder) / "draws.zarr")
            options |= {"local": "draws", "local_draws": draws} if draws else {}
            options["store"] = path
            before, began = peak_mib(), time.perf_counter()
            # A summary is written where it is of more groups than the client is to hold.
            with dask.config.set({} if draws else {"consensus.local.groups": 1}):
                tree = quietly(frame.consensus.fit(GROWING["slopes"][0], **options))
            seconds = time.perf_counter() - began
            worker_mib = list(client.run(peak_mib).values())
        disk = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        sizes = dict(tree["local"].sizes)
        sites = len(
            [v for v in tree["local"].data_vars.values() if {"draw", "statistic"} & {*v.dims}]
        )
    profile = json.loads(tree.attrs["profile"])
    return {
        "groups": rows // ROWS_A_GROUP,
        "sites": sites,
        "dims": {str(name): int(size) for name, size in sizes.items()},
        "seconds": seconds,
        "local_seconds": profile["local"],
        "worker_mib": worker_mib,
        "client_mib": peak_mib(),
        "client_before_mib": before,
        "disk_mib": disk / MIB,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 3, 30], help="rows a group")
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--stored-rows", type=int, default=2_000_000)
    parser.add_argument("--stored-draws", type=int, default=500)
    args = parse(parser, argv, TOY)
    store = Store(args, "effects")
    for part in () if args.table else args.parts:
        if part == "osic":
            for shards in (5, 20):
                store.measure({"part": part, "shards": shards}, osic, shards, 5_000)
        elif part == "coverage":
            for kind in args.kinds:
                for size in args.sizes:
                    for seed in range(args.seeds):
                        key = {"part": part, "kind": kind, "size": size, "seed": seed}
                        store.measure(key, coverage, kind, size, seed, args.groups, args.draws)
        else:
            key = {"part": part, "rows": args.stored_rows, "draws": args.stored_draws}
            store.measure(key, stored, args.stored_rows, args.stored_draws, args.toy)
    print(*tables.tables(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
