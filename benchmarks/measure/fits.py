"""Fits by this package, and what is kept of them."""

from __future__ import annotations

import json
import traceback
import warnings
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr

import dask_consensus  # registers ddf.consensus

from ..cases.sized import sized_case
from .clock import Clock
from .draws import moments, table_of


def n_shards_of(rows: int) -> int:
    """Shards of 50,000 rows, at least four."""
    return max(4, -(-rows // 50_000))


def in_memory(frame: pd.DataFrame, npartitions: int) -> dd.DataFrame:
    """A Dask DataFrame that lies in memory."""
    return dd.from_pandas(frame, npartitions=npartitions, sort=False).persist()


def quietly(lazy: Any) -> xr.DataTree:
    """Run a fit whose verdict may be bad."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lazy.compute()


def on_purpose(error: Exception) -> bool:
    """Tell an error that the package raises from one that happens to it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    inside = Path(dask_consensus.__file__).parent in Path(frame.filename).parents
    return inside and (frame.line or "").startswith("raise")


def record(tree: xr.DataTree) -> dict[str, Any]:
    """Keep of a result what the tables need."""
    corrected = "correction" in tree.children
    group = tree["correction"] if corrected else tree["rounds"].isel(round=-1)
    posterior = {name: array.values for name, array in tree["posterior"].data_vars.items()}
    mean, sd, names = (group[name].values for name in ("mean", "sd", "coordinate"))
    row = {
        "constrained": moments(posterior),
        "unconstrained": table_of(mean, sd, names),
        "good": bool(tree.attrs["verdict_good"]),
        "verdict": tree.attrs["verdict"],
        "error": json.loads(tree.attrs["accuracy"]),
        "profile": json.loads(tree.attrs["profile"]),
    }
    if "steps" in tree["shards"]:  # where shards were sampled
        row["steps"] = float(tree["shards"]["steps"].isel(round=-1).mean())
        row["divergences"] = int(tree["shards"]["divergences"].sum())
    if corrected:
        row |= {f"correction_{name}": float(group[name]) for name in ("k_hat", "ess")}
        row["ess"] = effective(tree)
    return row


def effective(tree: xr.DataTree) -> float:
    """As many independent draws as would know the worst mean and the worst sd as well.

    The variance of a mean of n normal draws is 1 / n, of the log of their sd 1 / (2 n).
    """
    errors = tree["correction"]
    mean, sd = (errors[name].values for name in ("error", "sd_error"))
    return float(1 / max((mean**2).max(), 2 * (sd**2).max()))


def by_default(name: str, rows: int, seed: int) -> dict[str, Any]:
    """Fit a sized case with the package's defaults, on Dask's threads."""
    case = sized_case(name, rows)
    n_shards = n_shards_of(rows)
    ddf = in_memory(case.frame(), n_shards)
    clock = Clock()
    options = {"by": case.by, "n_shards": n_shards, "seed": seed, "progress": False}
    tree = quietly(ddf.consensus.fit(case.model, compute=False, **options))
    return {**clock.read(), **record(tree), "n_shards": n_shards}


def verdict_record(tree: xr.DataTree) -> dict[str, Any]:
    """Keep of a result what it gives as the posterior's moments, and what it says of itself."""
    used = (
        "uncorrected" in tree.children
    )  # a correction whose weights cannot be used changes nothing
    group = tree["correction"] if used else tree["rounds"].isel(round=-1)
    error = json.loads(tree.attrs["accuracy"])
    mean, sd, names = (group[name].values for name in ("mean", "sd", "coordinate"))
    sd_error = group["sd_error"].values if used else [None] * len(names)
    moments_of = {
        str(name): [float(m), float(s), error[str(name)], None if e is None else float(e)]
        for name, m, s, e in zip(names, mean, sd, sd_error, strict=True)
    }
    moments_of |= of_crossed_effects(tree, error, moments_of)
    reasons = json.loads(tree.attrs["verdict_reasons"])
    row = {
        "good": bool(tree.attrs["verdict_good"]),
        "reasons": [[reason["code"], reason["where"], reason["value"]] for reason in reasons],
        "verdict": tree.attrs["verdict"],
        "method": tree.attrs["method_used"],
        "corrected": used,
        "moments": moments_of,
    }
    if "correction" in tree.children:
        row |= {name: float(tree["correction"][name]) for name in ("k_hat", "ess")}
    return row


def of_crossed_effects(
    tree: xr.DataTree, error: dict[str, float | None], known: dict[str, Any]
) -> dict[str, list[float | None]]:
    """Moments of what is no coordinate of a correction: sites on the real line, by their draws."""
    found: dict[str, list[float | None]] = {}
    sites = {name.partition("[")[0] for name in error if name not in known}
    for site in sorted(sites):
        draws = tree["posterior"][site].values
        draws = draws.reshape(draws.shape[0] * draws.shape[1], -1)
        names = [name for name in error if name.partition("[")[0] == site]
        for name, values in zip(names, draws.T, strict=True):
            told = error[name]  # None where the size is not known
            estimate = None if told is None else float(np.hypot(told, len(values) ** -0.5))
            found[name] = [float(values.mean()), float(values.std()), estimate, estimate]
    return found
