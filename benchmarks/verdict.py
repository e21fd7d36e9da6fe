"""The promise under test: the same answer as the full model, or a plain no.

Trials are models built to break it (``cases/hostile``) and models drawn at random
(``cases/drawn.py``), their rows drawn anew with every seed. Each is fitted by the package's
defaults and held against a reference that the package has no part in. No verdict may be good of a
mean that is off by more than a tenth of a posterior sd and three times its own estimate, nearly no
right answer may be refused, and the first reason of a refusal must be a true one.

    python -m benchmarks.verdict --reference                    # references that are not there yet
    python -m benchmarks.verdict --seeds 2 --shards 2           # the first seeds and shard counts
    python -m benchmarks.verdict --case mirror --seed 1 --n-shards 4 --again
    python -m benchmarks.verdict --random 40                    # so many models drawn at random
    python -m benchmarks.verdict --table --figure               # print what there is, and draw it
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import jax

from .cases import REFERENCES
from .cases.drawn import drawn_trial, number_of
from .cases.hostile import TRIALS, Trial
from .measure.clock import Clock
from .measure.fits import on_purpose, quietly, verdict_record
from .measure.internals import SamplingFailed
from .measure.machine import facts
from .measure.posterior import Nuts, posterior
from .measure.script import Store, parse
from .measure.watch import Answers, Watched
from .tables.verdict import calibration_figure, tables

TOY = {
    "case": ["spike-and-slab"],
    "seeds": 1,
    "shards": 1,
    "ess": 20,
    "chains": 2,
    "warmup": 50,
    "piece": 50,
}


def trial_of(name: str) -> Trial:
    """A trial by its name; ``random-7`` is the seventh drawn at random."""
    number = number_of(name)
    return TRIALS[name] if number is None else drawn_trial(number)


def fits(name: str) -> Answers:
    """What fits a trial, for seed and number of shards, by the package's defaults."""
    trial = trial_of(name)

    def fit(key: dict[str, Any]) -> dict[str, Any]:
        frame = trial.at(key["seed"]).frame()
        ddf = dd.from_pandas(frame, npartitions=4, sort=False)
        options = {"n_shards": key["shards"], "seed": key["seed"], "progress": False}
        clock = Clock()
        try:
            lazy = ddf.consensus.fit(
                trial.model, by=trial.by, columns=trial.columns, compute=False, **options
            )
            return {**verdict_record(quietly(lazy)), **clock.read()}
        except (ValueError, TypeError) as error:
            if not on_purpose(error):
                raise
            return {"failed": str(error), "code": code_of(error), **clock.read()}

    return fit


def code_of(error: Exception) -> str:
    """Name what an error that the package raises speaks of, as reasons are named."""
    if isinstance(error, SamplingFailed):
        return "shard-ess"
    return "precision" if "32-bit floats are too coarse" in str(error) else "error"


def references(name: str, args: argparse.Namespace) -> Answers:
    """What finds the posterior of a trial's rows, for a seed."""
    trial = trial_of(name)
    sampled = trial.exact is None and trial.grid is None and trial.summed is None
    with jax.enable_x64(True):
        nuts = Nuts(trial.at(0), args) if sampled else None

    def reference(key: dict[str, Any]) -> dict[str, Any]:
        with jax.enable_x64(True):
            clock = Clock()
            content = compact(posterior(trial.at(key["seed"]), nuts))
            return {**content, "seconds": round(clock.seconds, 1)}

    return reference


def compact(content: dict[str, Any]) -> dict[str, Any]:
    """Keep of a reference's content what a verdict is held against, in few bytes."""
    kept = ("method", "complete", "least_ess", "worst_r_hat", "divergences", "rule_error")
    moments = {
        name: [float(f"{row[field]:.13g}") for field in ("mean", "sd", "mcse", "sd_mcse")]
        for name, row in content["unconstrained"].items()
    }
    return {**{name: content[name] for name in kept if name in content}, "moments": moments}


class References:
    """References of all seeds of a trial, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, name: str) -> dict[str, Any]:
        """By seed, a string as JSON has it."""
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def put(self, name: str, seed: int, row: dict[str, Any]) -> None:
        """Add one, or put it in the place of an older one."""
        rows = self.of(name) | {str(seed): row}
        lines = (f" {json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows, key=int))
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def find_references(names: Sequence[str], args: argparse.Namespace, known: References) -> None:
    """Find what is not known yet, or everything `again`."""
    for name in names:
        with Watched(references, (name, args), 60 * args.minutes + 120, args.toy) as answer:
            for seed in seeds_of(name, args):
                if str(seed) in known.of(name) and not args.again:
                    continue
                row = answer({"seed": seed})
                if "failed" not in row:
                    known.put(name, seed, row)
                print(name, seed, row.get("failed") or _quality(row), flush=True)


def _quality(row: dict[str, Any]) -> str:
    text = f"{row['method']} in {row['seconds']} s" + ("" if row["complete"] else ", NOT complete")
    if row["method"] == "NUTS":
        text += f", ess {row['least_ess']:,.0f}, r_hat {row['worst_r_hat']:.3f}"
    return text


def seeds_of(name: str, args: argparse.Namespace) -> Sequence[int]:
    """Of a model drawn at random there is one, since shapes and model are drawn too."""
    if number_of(name) is not None:
        return [0]
    return [args.seed] if args.seed is not None else range(args.seeds)


def find_verdicts(names: Sequence[str], args: argparse.Namespace, store: Store) -> None:
    """Fit every trial for every seed and number of shards, a row each."""
    for name in names:
        counts = [args.n_shards] if args.n_shards else trial_of(name).shards[: args.shards]
        with Watched(fits, (name,), args.timeout, args.toy) as answer:
            for shards, seed in product(counts, seeds_of(name, args)):
                key = {"case": name, "shards": shards, "seed": seed}
                if store.get(key) is None:
                    machine = facts()
                    row = store.put(key, {**answer(key), "machine": machine})
                    print(name, shards, seed, row.get("failed") or row["verdict"], flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--case", nargs="*", choices=list(TRIALS))
    add("--random", type=int, default=0, help="so many models drawn at random, and no others")
    add("--first", type=int, default=0, help="number of the first of them")
    add("--seeds", type=int, default=8, help="number of seeds")
    add("--seed", type=int, help="this one alone")
    add("--shards", type=int, default=3, help="how many of a trial's numbers of shards")
    add("--n-shards", type=int, help="this number alone")
    add("--timeout", type=float, default=240, help="seconds for one fit")
    add("--reference", action="store_true", help="find references; fit nothing")
    add("--ess", type=float, default=4_000, help="of a reference, to stop at")
    add("--minutes", type=float, default=3, help="of a reference, to stop after")
    add("--chains", type=int, default=8, help="of a reference")
    add("--warmup", type=int, default=500, help="of a reference")
    add("--piece", type=int, default=250, help="of a reference, transitions between looks")
    add("--figure", action="store_true", help="draw errors beside estimates, too")
    parser.set_defaults(together=True)
    args = parse(parser, argv, TOY)
    drawn = [f"random-{i}" for i in range(args.first, args.first + args.random)]
    names = drawn or args.case or list(TRIALS)
    known = References((args.results / "references" if args.toy else REFERENCES) / "verdict")
    store = Store(args, "verdict")
    if args.reference or args.toy:
        find_references(names, args, known)
    if not args.table and not args.reference:
        find_verdicts(names, args, store)
    rows = store.rows()
    truths = {row["case"]: trial_of(row["case"]) for row in rows}
    print(*tables(rows, {name: known.of(name) for name in truths}, truths), sep="\n")
    if args.figure:
        calibration_figure(rows, {name: known.of(name) for name in truths}, store.path)


if __name__ == "__main__":
    main()
