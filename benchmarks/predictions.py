"""Predictions: against full-data NUTS, against what came, and how many rows a second.

- ``osic``: mean, sd and quantiles of every visit of 176 patients, and of a patient never seen,
  against NumPyro's NUTS on all rows: the mixture over its draws.
- ``coverage``: how often 50% and 90% intervals hold new rows of groups of 1, 3 and 30 rows, seen
  and unseen, for binary, count and Gaussian rows.
- ``speed``: rows a second, by statistic, with as many groups as a tenth of the rows.

    python -m benchmarks.predictions osic coverage speed
    python -m benchmarks.predictions --table
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import dask.dataframe as dd
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import scipy.special
from numpyro.infer import MCMC, NUTS

import dask_consensus  # noqa: F401

from .cases import CASES
from .effects import KINDS, shared_of, simulated, simulated_model
from .measure.fits import quietly
from .measure.script import Store, parse
from .tables import predictions as tables

PARTS = ("osic", "coverage", "speed")
_MOST_COUNT = 200
TOY = {
    "parts": ["coverage", "speed"], "kinds": ["binary"], "sizes": [3], "seeds": 1,
    "groups": 60, "speed_rows": 4_000,
}  # fmt: skip


def osic(shards: int, draws: int, kept: int) -> dict[str, Any]:
    """Compare predictions of all visits, and of a new patient, with full-data NUTS."""
    case = CASES["osic"]
    frame = case.frame()[["Patient", "Weeks", "FVC"]]
    codes, labels = pd.factorize(frame["Patient"], sort=True)
    weeks, fvc = frame["Weeks"].to_numpy(), frame["FVC"].to_numpy()
    sampler = MCMC(
        NUTS(case.model, target_accept_prob=0.9),
        num_warmup=1500,
        num_samples=draws // 2,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    arguments = {"patient": codes, "weeks": weeks, "fvc": fvc, "n_patient": len(labels)}
    sampler.run(jax.random.key(1), **arguments)
    found = {name: np.asarray(value, float) for name, value in sampler.get_samples().items()}
    new = pd.DataFrame({"Patient": "never seen", "Weeks": np.arange(0.0, 100.0, 10.0)})
    asked = pd.concat([frame, new], ignore_index=True)
    rng = np.random.default_rng(0)
    unseen = {
        name: rng.normal(found[f"mu_{name}"], found[f"sigma_{name}"])[:, None] for name in "ab"
    }
    a, b = (np.hstack([found[name], unseen[name]]) for name in "ab")
    code = np.append(codes, np.full(len(new), len(labels)))
    mean = a[:, code] + b[:, code] * asked["Weeks"].to_numpy()
    exact = {
        "expected": _of_mixture(mean, np.zeros(draws)),
        "predictive": _of_mixture(mean, found["sigma"]),
    }
    ddf = dd.from_pandas(frame, npartitions=4)
    options = {"by": "Patient", "columns": case.columns, "n_shards": shards, "progress": False}
    tree = quietly(ddf.consensus.fit(case.model, **options, compute=False))
    told: dict[str, Any] = {}
    for kind, right in exact.items():
        lazy = dd.from_pandas(asked, npartitions=3, sort=False).consensus.predict(
            tree, case.model, kind=kind, draws=kept or None
        )
        ours = lazy.compute()
        values = np.stack([ours[f"obs_{name}"] for name in ("mean", "sd", "q05", "q95")])
        off = np.abs(values - right) / right[1]
        off[1] = np.abs(values[1] / right[1] - 1)
        for who, rows in (("seen", ~ours["new_group"]), ("unseen", ours["new_group"])):
            told[f"{kind} {who}"] = off[:, rows.to_numpy()].max(axis=1).round(4).tolist()
    return told


def _of_mixture(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Mean, sd, 5% and 95% quantile of mixtures of normals over draws ``(S, R)``."""
    total = np.sqrt(mean.var(axis=0) + (sd**2).mean())
    found = [mean.mean(axis=0), total]
    for share in (0.05, 0.95):
        if not sd.any():
            found.append(np.quantile(mean, share, axis=0))
            continue
        low, high = mean.min(axis=0) - 5 * sd.max(), mean.max(axis=0) + 5 * sd.max()
        for _ in range(24):
            middle = (low + high) / 2
            below = scipy.special.ndtr((middle - mean) / sd[:, None]).mean(axis=0) < share
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        found.append((low + high) / 2)
    return np.stack(found)


def coverage(kind: str, size: int, seed: int, groups: int) -> dict[str, Any]:
    """Place one new row of each group, and of as many unseen ones, in its predictive distribution.

    Places are uniform where predictions are right; of whole numbers, a uniform number takes a place
    within the probability of the row. Counted are those in the middle 50% and 90%.
    """
    frame, b, _ = simulated(kind, groups, size, seed)
    ddf = dd.from_pandas(frame, npartitions=4)

    def model(group, y=None, *, n_group):
        simulated_model(group, y, n_group=n_group, kind=kind)

    options = {"by": "group", "n_shards": 4, "seed": seed, "progress": False, "compute": False}
    tree = quietly(ddf.consensus.fit(model, **options))
    rng = np.random.default_rng([seed, size, KINDS.index(kind), 1])
    mu, tau = shared_of(kind, size, seed)
    b = np.append(b, rng.normal(mu, tau, groups))
    asked = dd.from_pandas(pd.DataFrame({"group": np.arange(2 * groups)}), npartitions=2)
    told: dict[str, Any] = {"groups": groups, "good": bool(tree.attrs["verdict_good"])}
    if kind == "gaussian":
        shares = np.array([0.05, 0.25, 0.75, 0.95])
        names = [f"q{100 * share:02.0f}" for share in shares]
        ours = asked.consensus.predict(tree, model, statistics=names, check_verdict=False).compute()
        limits = ours[[f"obs_{name}" for name in names]].to_numpy()
        below = (rng.normal(b, 1.0)[:, None] > limits).sum(axis=1)
        held = {"50%": below == 2, "90%": (below > 0) & (below < 4)}
    else:
        most = 1 if kind == "binary" else _MOST_COUNT
        names = [f"p{value}" for value in range(most + 1)]
        ours = asked.consensus.predict(tree, model, statistics=names, check_verdict=False).compute()
        probability = ours[[f"obs_{name}" for name in names]].to_numpy()
        means = scipy.special.expit(b) if kind == "binary" else np.exp(b)
        y = rng.binomial(1, means) if kind == "binary" else rng.poisson(means)
        at = np.minimum(y, most)[:, None]
        upto = np.take_along_axis(np.cumsum(probability, axis=1), at, axis=1)[:, 0]
        own = np.take_along_axis(probability, at, axis=1)[:, 0]
        place = np.where(y > most, 1.0, upto - own * rng.random(2 * groups))
        held = {"50%": abs(place - 0.5) < 0.25, "90%": abs(place - 0.5) < 0.45}
    new = ours["new_group"].to_numpy()
    assert new.sum() == groups
    for who, rows in (("seen", ~new), ("unseen", new)):
        told[who] = {share: int(inside[rows].sum()) for share, inside in held.items()}
    return told


def speed(n_rows: int) -> dict[str, Any]:
    """Predict rows of random intercepts, some statistics at a time: rows a second."""
    rng = np.random.default_rng(0)
    n_groups = n_rows // 10
    b, group = rng.normal(size=n_groups), rng.integers(0, n_groups, n_rows)
    x = rng.normal(size=n_rows)
    frame = pd.DataFrame({"group": group, "x": x, "y": b[group] + x + rng.normal(size=n_rows)})
    ddf = dd.from_pandas(frame, npartitions=8)
    tree = quietly(ddf.consensus.fit(_sloped, by="group", progress=False, compute=False))
    told = {}
    for kind in ("expected", "predictive"):
        for statistics in (["mean"], ["mean", "sd"], ["mean", "sd", "q05", "q95"]):
            lazy = ddf.consensus.predict(tree, _sloped, kind=kind, statistics=statistics)
            seconds = []
            for _ in range(3):  # the first compiles
                began = time.perf_counter()
                assert lazy.map_partitions(len).compute().sum() == n_rows
                seconds.append(time.perf_counter() - began)
            told[f"{kind}: {', '.join(statistics)}"] = round(n_rows / min(seconds[1:]))
    return {"rows": n_rows, "groups": n_groups, "rows_a_second": told}


def _sloped(group, x, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(b[group] + slope * x, sigma), obs=y)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 3, 30], help="rows a group")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=600)
    parser.add_argument("--speed-rows", type=int, default=1_000_000)
    args = parse(parser, argv, TOY)
    store = Store(args, "predictions")
    for part in () if args.table else args.parts:
        if part == "osic":
            for draws in (0, 512):
                store.measure({"part": part, "draws": draws}, osic, 5, 10_000, draws)
        elif part == "coverage":
            for kind in args.kinds:
                for size in args.sizes:
                    for seed in range(args.seeds):
                        key = {"part": part, "kind": kind, "size": size, "seed": seed}
                        store.measure(key, coverage, kind, size, seed, args.groups)
        else:
            store.measure({"part": part, "rows": args.speed_rows}, speed, args.speed_rows)
    print(*tables.tables(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
