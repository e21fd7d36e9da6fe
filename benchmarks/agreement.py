"""Agreement of sharded fits with the full data's posterior, on all cases, by several methods.

- ``numpyro``: NumPyro's own ``consensus`` on constrained draws, the same ones as one-shot's;
- ``one-shot``: ``method="consensus", correct=False``, combined in unconstrained space;
- ``anchored`` and ``laplace``: uncorrected;
- ``corrected``: the package's defaults, Newton's method on all shards and the correction;

each with several seeds, held against the references that ``reference.py`` writes.

    python -m benchmarks.agreement                        # everything; hours on two cores
    python -m benchmarks.agreement --case osic --seeds 0
    python -m benchmarks.agreement --table                # print what there is
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import Any

import dask.dataframe as dd
import numpy as np
from numpyro.infer.hmc_util import consensus

from .cases import CASES, REFERENCES, Case, DataAbsent, read_reference
from .measure.clock import Clock
from .measure.draws import moments
from .measure.fits import quietly, record
from .measure.internals import ShardDraws
from .measure.machine import facts
from .measure.script import Store, parse
from .tables.agreement import tables

OPTIONS: dict[str, dict[str, Any]] = {
    "one-shot": {"method": "consensus", "correct": False},
    "anchored": {"method": "anchored", "correct": False},
    "laplace": {"method": "laplace", "correct": False},
    "corrected": {},
}
METHODS = ("numpyro", *OPTIONS)
TOY = {"case": ["variances-2"], "seeds": [0], "samples": 100}


def fit(case: Case, ddf: dd.DataFrame, key: dict[str, Any], samples: int | None) -> dict[str, Any]:
    """Fit a case by one method; NumPyro's consensus takes the draws of one-shot."""
    by_numpyro = key["method"] == "numpyro"
    options = {
        "by": case.by,
        "columns": case.columns,
        "n_shards": key["shards"],
        "seed": key["seed"],
    }
    options |= {"num_warmup": samples, "num_samples": samples, "progress": False}
    options |= OPTIONS["one-shot" if by_numpyro else key["method"]]
    lazy = ddf.consensus.fit(case.model, compute=False, **options)
    clock, draws = Clock(), ShardDraws()
    try:
        with draws:
            tree = quietly(lazy)
    except ValueError as error:
        return {"failed": str(error)}
    took = clock.read()
    if not by_numpyro:
        return {**record(tree), **took}
    # Its full weights do not work for a single parameter.
    shards = draws.constrained(lazy)
    combined = consensus(shards, diagonal=sum(np.size(v[0]) for v in shards[0].values()) == 1)
    sites = {name: np.asarray(value, np.float64)[None] for name, value in combined.items()}
    return {"constrained": moments(sites), **took}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--samples", type=int, help="of each chain, and warm-up; the package's")
    args = parse(parser, argv, TOY)
    folder = args.results / "references" if args.toy else REFERENCES
    references = {name: known for name in CASES if (known := read_reference(name, folder))}
    store = Store(args, "agreement")
    for case in () if args.table else map(CASES.get, args.case):
        try:
            case = case.at_toy_size() if args.toy else case
            ddf = dd.from_pandas(case.frame(), npartitions=8, sort=False)
        except DataAbsent as error:
            print(f"{case.name}: skipped, {error}")
            continue
        for shards, seed, method in product(case.shards, args.seeds, args.methods):
            key = {"case": case.name, "shards": shards, "seed": seed, "method": method}
            if store.get(key) is None:
                machine = facts()
                row = store.put(key, {**fit(case, ddf, key, args.samples), "machine": machine})
                print(*key.values(), row.get("failed") or row.get("verdict", ""), flush=True)
    print(*tables(store.rows(), references), sep="\n")


if __name__ == "__main__":
    main()
