"""Agreement of sharded fits with the full data's posterior: the table that the README quotes.

Fits every case of ``cases.py`` with several seeds by four methods:

- ``numpyro``: NumPyro's own ``consensus`` on constrained draws, the same ones as one-shot's;
- ``one-shot``: ``method="consensus", correct=False``, combined in unconstrained space;
- ``anchored``: ``method="anchored", correct=False``;
- ``corrected``: the package's defaults, Newton's method on all shards and the correction;
- ``anchored, corrected``: ``method="anchored"``, the same correction after rounds of NUTS;

and holds means and sds of the shared parameters against the references that ``reference.py``
wrote. Results are appended to a JSON file, so that a run can be interrupted and resumed; what is
in the file is not run again. Some cases need data, see ``cases.py``.

    python benchmarks/agreement.py                        # everything; hours on two cores
    python benchmarks/agreement.py --case osic --seeds 0
    python benchmarks/agreement.py --table                # print what there is
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import reference
import xarray as xr
from cases import CASES, Case, DataAbsent, chosen
from dask.callbacks import Callback
from machine import load, print_rows, save
from numpyro.infer.hmc_util import consensus

import dask_consensus  # noqa: F401  registers ddf.consensus
from dask_consensus.combination import gaussian
from dask_consensus.fit import LazyFit
from dask_consensus.shard.constrain import constrain

OUT = Path(__file__).parent / "results" / "agreement.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "one-shot": {"method": "consensus", "correct": False},
    "anchored": {"method": "anchored", "correct": False},
    "laplace": {"method": "laplace", "correct": False},
    "anchored, corrected": {"method": "anchored"},
    "corrected": {},
}
METHODS = ("numpyro", *OPTIONS)
PARTITIONS = 8
ENOUGH = 2_000  # effective draws for which full NUTS is timed, where the corrected has more

Moments = dict[str, dict[str, float]]


# Runs


class Sites(Callback):
    """Keeps the contribution of every shard as the scheduler sees it."""

    def __init__(self) -> None:
        self.found: list[gaussian.GaussianFactor] = []
        super().__init__(posttask=self._keep)

    def _keep(self, key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, tuple) and result and isinstance(result[0], gaussian.GaussianFactor):
            self.found.append(result[0])

    def draws(self) -> list[np.ndarray]:
        """Unconstrained draws of every shard, ``(chains, draws, d)``."""
        return [gaussian.solve(site.precision, site.draws) for site in self.found]


@cache
def commit() -> str:
    """Name the code that is measured: the last commit that changed the package."""
    command = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%h", "--"]
    command.append("../dask_consensus")
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@cache
def rows_of(case: str) -> dd.DataFrame:
    """Rows of a case as a Dask DataFrame, kept for its next run."""
    return dd.from_pandas(CASES[case].frame(), npartitions=PARTITIONS, sort=False)


def lazy_fit(case: Case, n_shards: int, seed: int, method: str) -> LazyFit:
    """Set a fit up."""
    return rows_of(case.name).consensus.fit(
        case.model,
        by=case.by,
        columns=case.columns,
        n_shards=n_shards,
        seed=seed,
        progress=False,
        compute=False,
        **OPTIONS[method],
    )


def run(case: Case, n_shards: int, seed: int, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Fit a case by some methods; one-shot's draws serve NumPyro's consensus too."""
    for method in OPTIONS:
        both = method == "one-shot" and "numpyro" in methods
        if method not in methods and not both:
            continue
        lazy, sites = lazy_fit(case, n_shards, seed, method), Sites()
        named = {"case": case.name, "shards": n_shards, "seed": seed, "commit": commit()}
        began, spent = time.perf_counter(), time.process_time()
        try:
            with warnings.catch_warnings(), sites:
                warnings.simplefilter("ignore")
                tree = lazy.compute()
        except ValueError as error:
            for name in {method, *(["numpyro"] if both else [])} & set(methods):
                yield {**named, "method": name, "failed": str(error)}
            continue
        took = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - spent,
        }
        if method in methods:
            yield {**named, "method": method, **record(tree), **took}
        if both:
            # What it adds to the time is next to nothing.
            yield {**named, "method": "numpyro", **numpyro_consensus(lazy, sites), **took}


def record(tree: xr.DataTree) -> dict[str, Any]:
    """Keep of a result what the tables need."""
    corrected = "correction" in tree.children
    last = tree["rounds"].isel(round=-1)
    found = {
        "constrained": moments(
            {name: array.values for name, array in tree["posterior"].data_vars.items()}
        ),
        "unconstrained": _table(last["mean"].values, last["sd"].values, last.coordinate.values),
        "good": bool(tree.attrs["verdict_good"]),
        "verdict": tree.attrs["verdict"],
        "error": json.loads(tree.attrs["accuracy"]),
        "divergences": int(tree["shards"]["divergences"].sum()),
        "rounds": tree["rounds"].sizes["round"],
    }
    if corrected:
        made = tree["correction"]
        found["unconstrained"] = _table(
            made["mean"].values, made["sd"].values, made.coordinate.values
        )
        for name in ("k_hat", "ess", "nodes", "seconds", "emulator_error"):
            found[f"correction_{name}"] = float(made[name])
        found["correction_points"] = made.sizes["point"]
    return found


def numpyro_consensus(lazy: LazyFit, sites: Sites) -> dict[str, Any]:
    """Combine the constrained draws of all shards as NumPyro does."""
    plan = lazy.plan()
    example = plan.example
    names = [site.name for site in plan.model.shared]
    subposteriors = []
    for u in sites.draws():
        values = constrain(plan.model, u, example.arguments, example.rows, example.groups)
        subposteriors.append({name: np.concatenate(values[name]) for name in names})
    # Its full weights do not work for a single parameter.
    combined = consensus(subposteriors, diagonal=plan.model.dim == 1)
    draws = {name: np.asarray(value, np.float64)[None] for name, value in combined.items()}
    return {"constrained": moments(draws)}


def moments(draws: Mapping[str, np.ndarray]) -> Moments:
    """Mean and sd of every scalar of sites ``(chains, draws, ...)``."""
    flat = reference.flat(draws).reshape(-1, len(names := reference.scalar_names(draws)))
    return _table(flat.mean(axis=0), flat.std(axis=0, ddof=1), names)


def _table(means: np.ndarray, sds: np.ndarray, names: Sequence[str]) -> Moments:
    return {
        str(name): {"mean": float(mean), "sd": float(sd)}
        for name, mean, sd in zip(names, means, sds, strict=True)
    }


# Comparison with the reference


class Distance(NamedTuple):
    """How far a run is from its reference.

    Attributes
    ----------
    difference : float
        Largest difference of means, in posterior sds, over all shared scalars, constrained and
        unconstrained (NumPyro's consensus: constrained alone).
    where : str
        The scalar that has it.
    ratios : (float, float)
        Smallest and largest ratio of sds, likewise.
    true, estimated : float
        Largest difference of unconstrained means, and the largest that the verdict estimated, in
        posterior sds.
    known : float
        Monte Carlo error of the reference where that difference is, in posterior sds.
    within : (int, int)
        Parameters whose difference is within twice their own estimate and the reference's error
        together, and all of them.
    """

    difference: float
    where: str
    ratios: tuple[float, float]
    true: float
    estimated: float
    known: float
    within: tuple[int, int]

    @property
    def covered(self) -> bool:
        """Whether the largest difference is within twice the largest estimate.

        The reference errs too, independently: the two errors are added in squares.
        """
        return self.true <= 2 * float(np.hypot(self.estimated, self.known))


def distance(one: Mapping[str, Any], known: Mapping[str, Any]) -> Distance:
    """Hold a run against its reference."""
    away, ratios = {}, []
    for space in ("constrained", "unconstrained"):
        for name, row in known[space].items() if space in one else ():
            found = one[space][name]
            away[f"{name}{' (u)' * (space == 'unconstrained')}"] = (
                abs(found["mean"] - row["mean"]) / row["sd"]
            )
            ratios.append(found["sd"] / row["sd"])
    values = np.array(list(away.values()))
    worst = int(np.nanargmax(np.where(np.isfinite(values), values, np.inf)))
    true, estimated, mcse = errors(one, known)
    return Distance(
        difference=float(values[worst]),
        where=list(away)[worst],
        ratios=(float(np.min(ratios)), float(np.max(ratios))),
        true=float(true.max(initial=0.0)),
        known=float(mcse[true.argmax()]) if len(true) else 0.0,
        estimated=float(estimated.max(initial=0.0)),
        within=(int((true <= 2 * np.hypot(estimated, mcse)).sum()), len(true)),
    )


def errors(
    one: Mapping[str, Any], known: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of unconstrained means, the verdict's estimates, the reference's own errors."""
    if "error" not in one:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    rows = known["unconstrained"]
    true = [
        abs(one["unconstrained"][n]["mean"] - row["mean"]) / row["sd"] for n, row in rows.items()
    ]
    # An error of unknown size is null in JSON.
    estimated = [np.inf if one["error"][name] is None else one["error"][name] for name in rows]
    mcse = [row["mcse"] / row["sd"] for row in rows.values()]
    return np.array(true), np.array(estimated), np.array(mcse)


# Tables

HEAD = (
    "case", "shards", "method", "largest difference, sds (worst)", "on", "sd ratios",
    "k-hat", "called good", "estimated error", "wall s (worst)", "CPU s (worst)",
)  # fmt: skip


def print_tables(results: Sequence[Mapping[str, Any]]) -> None:
    """Print what the README quotes."""
    good = [one for one in results if not CASES[one["case"]].fails]
    bad = [one for one in results if CASES[one["case"]].fails]
    print_rows(HEAD, [line for block in _grouped(good) for line in block])
    print()
    for line in coverage(results):
        print(line)
    if bad:
        print("\nBuilt to fail, corrected unless it says otherwise:\n")
        print_rows(
            ("case", "built to fail by", "flagged", "largest difference, sds", "first reason"),
            [failure(list(runs)) for _, runs in groupby(_ordered(bad), lambda one: one["case"])],
        )


SUMMARY = (
    "case", "shards", "corrected: difference (worst)", "sd ratios", "k-hat", "s (with compiling)",
    "full NUTS, s", "laplace", "anchored", "one-shot", "NumPyro",
)  # fmt: skip
SUMMARISED = ("laplace", "anchored", "one-shot", "numpyro")


def print_summary(results: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each case that must succeed: the largest difference by each method."""
    good = [one for one in results if not CASES[one["case"]].fails]
    rows = []
    for (name, shards), runs in groupby(_ordered(good), lambda one: (one["case"], one["shards"])):
        runs = list(runs)
        known = reference.read(CASES[name])
        by_method = {m: [one for one in runs if one["method"] == m] for m in METHODS}
        if known is None or not by_method["corrected"]:
            continue
        ours = row(by_method["corrected"], known)
        full = full_nuts(by_method["corrected"], known)
        seconds = [one["seconds"] for one in by_method["corrected"]]
        rows.append(
            (
                name, str(shards), ours[3], ours[5], ours[6],
                f"{min(seconds):.0f} ({max(seconds):.0f})",
                full[0][-1] if full else "-",
                *(_difference(by_method[m], known) for m in SUMMARISED),
            )
        )  # fmt: skip
    print_rows(SUMMARY, rows)
    print()
    print("Differences: largest of any mean of a shared parameter, in posterior sds, median over")
    print("seeds (worst). Full NUTS: CPU seconds of one warmed-up chain to 2,000 effective draws,")
    print("or as many as the corrected has, if fewer.")


def _difference(runs: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> str:
    done = [distance(one, known).difference for one in runs if "failed" not in one]
    failed = f", {len(runs) - len(done)} of {len(runs)} failed" if len(done) < len(runs) else ""
    return f"{np.median(done):.2g} ({max(done):.2g}){failed}" if done else failed[2:] or "-"


def _ordered(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = list(CASES)
    return sorted(
        results,
        key=lambda one: (
            order.index(one["case"]), one["shards"], METHODS.index(one["method"]), one["seed"]
        ),
    )  # fmt: skip


def _grouped(results: Sequence[Mapping[str, Any]]) -> Iterator[list[Sequence[str]]]:
    """Rows of the main table, one block for each case and number of shards."""
    blocks = groupby(_ordered(results), lambda one: (one["case"], one["shards"]))
    for (name, _), runs in blocks:
        runs = list(runs)
        known = reference.read(CASES[name])
        lines = [row(list(same), known) for _, same in groupby(runs, lambda one: one["method"])]
        yield [*lines, *full_nuts(runs, known)]


def row(runs: Sequence[Mapping[str, Any]], known: Mapping[str, Any] | None) -> Sequence[str]:
    """One row of the main table: a case, a number of shards, a method, over seeds."""
    first = runs[0]
    label = (first["case"], str(first["shards"]), first["method"])
    failed = [one for one in runs if "failed" in one]
    done = [one for one in runs if "failed" not in one]
    if not done:
        return (*label, f"fails: {failed[0]['failed'][:60]}", *[""] * 7)
    times = [
        f"{np.median(seconds):.0f} ({max(seconds):.0f})"
        for seconds in ([one[clock] for one in done] for clock in ("seconds", "cpu_seconds"))
    ]
    judged = [one for one in done if "good" in one]
    called = f"{sum(one['good'] for one in judged)} of {len(judged)}" if judged else "-"
    hats = [one["correction_k_hat"] for one in done if "correction_k_hat" in one]
    hat = f"{max(hats):.2f}" if hats else "-"
    if known is None:
        return (*label, "no reference", "", "", hat, called, "", *times)
    distances = [distance(one, known) for one in done]
    differences = np.array([d.difference for d in distances])
    worst = distances[int(np.argmax(np.where(np.isfinite(differences), differences, np.inf)))]
    return (
        *label,
        f"{np.median(differences):.3g} ({worst.difference:.3g})",
        worst.where,
        f"{min(d.ratios[0] for d in distances):.2f} - {max(d.ratios[1] for d in distances):.2f}",
        hat,
        called,
        f"{np.median([d.estimated for d in distances]):.2g}" if judged else "-",
        *times,
    )


def full_nuts(
    runs: Sequence[Mapping[str, Any]], known: Mapping[str, Any] | None
) -> list[Sequence[str]]:
    """How long one warmed-up chain of NUTS on all rows takes to as many effective draws."""
    wanted = [one["correction_ess"] for one in runs if "correction_ess" in one]
    if known is None or "cpu_seconds" not in known or not wanted:
        return []
    ess = min(float(np.median(wanted)), ENOUGH)
    times = []
    for took in (known["seconds"], known["cpu_seconds"]):
        begun = took["compile"] + took["warmup"] / known["chains"]
        times.append(f"{begun + ess / known['least_ess'] * took['sampling']:.0f}")
    note = f"for {ess:,.0f} effective draws; the reference has "
    note += f"{known['least_ess']:,.0f}" + ("" if known["complete"] else ", incomplete")
    return [(runs[0]["case"], "1", "full NUTS", note, *[""] * 5, *times)]


def coverage(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How often the estimated error covered the true one, for each method and in all."""
    judged = []
    for one in results:
        known = reference.read(CASES[one["case"]])
        if known is not None and "error" in one:
            judged.append((one, distance(one, known)))
    for name, keep in _kinds().items():
        some = [d for one, d in judged if keep(one)]
        if some:
            within, parameters = np.sum([d.within for d in some], axis=0)
            covered = sum(d.covered for d in some)
            yield (
                "The difference from the reference was within twice the verdict's estimate and the "
                f"reference's error in {covered} of {len(some)} runs ({name}; parameter by "
                f"parameter {within} of {parameters})."
            )


def _kinds() -> dict[str, Callable[[Mapping[str, Any]], bool]]:
    each = {name: lambda one, name=name: one["method"] == name for name in OPTIONS}
    return {"all": lambda one: True, "those called good": lambda one: one["good"], **each}


def failure(runs: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """One row of the table of cases built to fail: the package's defaults, over seeds."""
    case = CASES[runs[0]["case"]]
    runs = [one for one in runs if one["method"] == "corrected"]
    flagged = [one for one in runs if not one.get("good", False)]
    known = reference.read(case)
    done = [one for one in runs if "failed" not in one]
    off = [distance(one, known).difference for one in done] if known else []
    verdict = (flagged or runs or [{}])[0]
    reason = verdict.get("failed") or verdict.get("verdict", "")
    start = reason.find("or more. ")
    return (
        case.name,
        case.fails,
        f"{len(flagged)} of {len(runs)}",
        f"{np.median(off):.2g} ({np.max(off):.2g})" if off else "no reference",
        reason[start + 9 if start >= 0 else 0 :].split("; ")[0][:160],
    )


# The command


def fill(args: argparse.Namespace) -> None:
    """Run whatever is asked for and not in the file yet."""
    for case in chosen(args.case):
        for n_shards in case.shards:
            for seed in args.seeds:
                there = {_key(one) for one in load(args.out)}
                keys = {method: (case.name, n_shards, method, seed) for method in args.methods}
                methods = [name for name, key in keys.items() if args.again or key not in there]
                try:
                    for one in run(case, n_shards, seed, methods) if methods else ():
                        others = [old for old in load(args.out) if _key(old) != _key(one)]
                        save(args.out, [*others, one])
                        print(brief(one), flush=True)
                except DataAbsent as error:
                    print(f"{case.name}: skipped, {error}")
        rows_of.cache_clear()


def brief(one: Mapping[str, Any]) -> str:
    """One line on a run, as it comes."""
    head = f"{one['case']}, {one['shards']} shards, {one['method']}, seed {one['seed']}: "
    if "failed" in one:
        return head + f"failed, {one['failed']}"
    known = reference.read(CASES[one["case"]])
    tail = f"{one['seconds']:.0f} s ({one['cpu_seconds']:.0f} s of CPU)"
    if "good" in one:
        tail += ", called good" if one["good"] else f", flagged: {one['verdict']}"
    if "correction_k_hat" in one:
        tail = f"k-hat {one['correction_k_hat']:.2f}, ess {one['correction_ess']:.0f}, {tail}"
    if known is None:
        return head + tail
    d = distance(one, known)
    return head + (
        f"off {d.difference:.3f} ({d.where}), sd ratios {d.ratios[0]:.3f} - {d.ratios[1]:.3f}, "
        f"true {d.true:.3f} of {d.estimated:.3f} estimated, {tail}"
    )


def _key(one: Mapping[str, Any]) -> tuple[str, int, str, int]:
    return one["case"], one["shards"], one["method"], one["seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--again", action="store_true", help="run what is in the file, too")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    parser.add_argument("--summary", action="store_true", help="likewise, a row for each case")
    args = parser.parse_args()
    if args.summary:
        print_summary(load(args.out))
        return
    if not args.table:
        fill(args)
    print_tables(load(args.out))


if __name__ == "__main__":
    main()
