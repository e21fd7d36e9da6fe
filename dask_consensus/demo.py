"""Shards against the full fit, three ways: ``python -m dask_consensus.demo``.

The data are lung-function measurements, simulated unless a table is given; the model is the
random intercept and slope regression of NumPyro's tutorial on hierarchical models.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import dask.dataframe as dd
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size

from . import plots
from .simulate import lung_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from jax import Array


COLUMNS = {"patient": "Patient", "weeks": "Weeks", "fvc": "FVC"}
REFERENCE_CHAINS = 4


def model(patient: Array, weeks: Array, fvc: Array | None = None, *, n_patient: int) -> None:
    """Regress FVC on weeks, with an intercept and a slope of each patient's own."""
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 500.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(100.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 3.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
    with numpyro.plate("patient", n_patient):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("visit", len(weeks)):
        numpyro.sample("obs", dist.Normal(a[patient] + b[patient] * weeks, sigma), obs=fvc)


def read(csv: Path | None, seed: int) -> dd.DataFrame:
    """Read the table, or simulate one if `csv` is None; ValueError if it lacks a column."""
    if csv is None:
        return dd.from_pandas(lung_function(seed=seed), npartitions=4)
    ddf = dd.read_csv(csv)
    missing = ", ".join(column for column in COLUMNS.values() if column not in ddf.columns)
    if missing:
        raise ValueError(f"{csv} has no column {missing}; it has {', '.join(ddf.columns)}")
    return ddf


def table(trees: Mapping[str, xr.DataTree]) -> str:
    """Set the means and standard deviations of several posteriors side by side.

    Parameters
    ----------
    trees : mapping of str to xarray.DataTree
        Results of fits by name. The first one is the reference.

    Returns
    -------
    str
        A line a parameter; a last one says how exact the reference's own means are.
    """
    rows = plots.parameters(trees)
    reference, *others = trees
    width = max(len("parameter"), *map(len, rows))
    methods = f"{'':{width}}{reference:>18}" + "".join(f"{name:>22}{'':11}" for name in others)
    heads = f"{'parameter':{width}}{'mean':>10}{'sd':>8}"
    heads += f"{'mean':>11}{'sd':>8}{'off by':>8}{'ratio':>6}" * len(others)
    lines = [methods.rstrip(), heads, "-" * len(heads)]
    for label, draws in rows.items():
        moments = {name: (chains.mean(), chains.std(ddof=1)) for name, chains in draws.items()}
        mean, sd = moments[reference]
        # Never fewer than two digits of a standard deviation, however small it is.
        digits = max(2, 1 - math.floor(math.log10(sd)))
        line = f"{label:{width}}{mean:10.{digits}f}{sd:8.{digits}f}"
        for name in others:
            m, s = moments[name]
            line += f"{m:11.{digits}f}{s:8.{digits}f}{(m - mean) / sd:+8.2f}{s / sd:6.2f}"
        lines.append(line)
    ess = min(float(effective_sample_size(draws[reference])) for draws in rows.values())
    lines += [
        f"off by: mean less that of {reference}, in sds of {reference}; ratio: sd over its sd",
        f"Monte Carlo error of the means of {reference}: up to {1 / math.sqrt(ess):.2f} sd",
    ]
    return "\n".join(lines)


def write_figure(trees: Mapping[str, xr.DataTree], path: Path) -> str:
    """Draw the posteriors into a PNG; say to the user where it is, or what to install."""
    try:
        figure = plots.compare(trees)
    except ImportError as error:
        return f"No figure: {error}"
    figure.savefig(path, format="png")
    return f"Figure written to {path.resolve()}"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, that of the process unless given."""
    parser = argparse.ArgumentParser(
        prog="python -m dask_consensus.demo",
        description="Fit lung-function data whole and in shards: one shot, anchored, corrected.",
    )
    add, default, png = parser.add_argument, "default %(default)s", Path("dask_consensus_demo.png")
    columns = "table with columns Patient, Weeks, FVC (default: simulated)"
    draws, figure = f"draws of each chain, {default}", f"where to write the figure, {default}"
    add("--csv", type=_readable, metavar="FILE", help=columns)
    add("--shards", type=_at_least(1), default=5, metavar="K", help=default)
    add("--samples", type=_at_least(100), default=1000, metavar="N", help=draws)
    add("--seed", type=int, default=0, metavar="S", help=default)
    add("--png", type=_writable, default=png, metavar="PATH", help=figure)
    return parser.parse_args(argv)


def _readable(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"no such file: {text}")
    return Path(text)


def _writable(text: str) -> Path:
    # Said now rather than after the minutes that sampling takes.
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"no such directory: {Path(text).parent}")
    return Path(text)


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {text}")
        return int(text)

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration, and return its exit status."""
    args = arguments(argv)
    start = time.perf_counter()
    try:
        ddf = read(args.csv, args.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    groups = {"by": "Patient", "columns": COLUMNS}
    print(ddf.consensus.plan(model, **groups, n_shards=args.shards, local=None), "\n")

    settings = {**groups, "num_samples": args.samples, "seed": args.seed, "local": None}
    fit = functools.partial(ddf.consensus.fit, model, **settings)
    with warnings.catch_warnings():
        # Uncorrected on purpose: the table shows how far they are off.
        warnings.filterwarnings("ignore", "Not to be relied on")
        # The yardstick must not be the noisier one: its group variances mix slowly.
        trees = {
            "full": fit(method="nuts", num_chains=REFERENCE_CHAINS),
            "consensus": fit(n_shards=args.shards, method="consensus", correct=False),
            "anchored": fit(n_shards=args.shards, method="anchored", correct=False),
        }
    trees["corrected"] = fit(n_shards=args.shards)
    print(table(trees), "\n")
    print(textwrap.fill(trees["corrected"].attrs["verdict"], 96), "\n")
    print(write_figure(trees, args.png))
    print(f"Elapsed: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
