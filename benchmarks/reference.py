"""References: the full data's posterior, by long NUTS or in closed form, as small JSON files.

Writes ``references/<case>.json``: of each scalar shared parameter, constrained and unconstrained,
mean, sd, effective sample size and r_hat; and what it took. NumPyro's NUTS runs on all rows, from
a good start, local sites centred as suits the data (which leaves the posterior of the shared sites
as it is), until every shared parameter has ``--ess`` effective draws, or time is up. The file says
``"complete"`` of 4,000 effective draws and an r_hat below 1.01. The package is not used.

    python -m benchmarks.reference --case osic lkj --again --minutes 15
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.stats import halfnorm

from .cases import CASES, REFERENCES, Case, DataAbsent, read_reference
from .measure.machine import facts
from .measure.posterior import Nuts
from .measure.script import parse

TOY = {"case": ["variances-2", "coupled"], "ess": 20, "chains": 1, "warmup": 50, "piece": 50}


def closed_form(case: Case) -> dict[str, Any]:
    """Moments of tau and its log where ``y ~ N(0, tau^2 + s^2)``, by the trapezoidal rule.

    On a density that is smooth and vanishes at both ends the rule's error falls faster than any
    power of its step.
    """
    y = case.frame()["y"].to_numpy()
    log_tau = np.linspace(-14.0, 4.0, 40_001)
    tau = np.exp(log_tau)
    variance = tau**2 + case.variance
    log_density = -0.5 * (len(y) * np.log(variance) + (y @ y) / variance)
    log_density += halfnorm.logpdf(tau, scale=5.0) + log_tau
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    row: dict[str, Any] = {"complete": True, "method": "numerical integration"}
    for space, values in (("unconstrained", log_tau), ("constrained", tau)):
        mean = weights @ values
        sd = np.sqrt(weights @ (values - mean) ** 2)
        row[space] = {"tau": {"mean": float(mean), "sd": float(sd), "mcse": 0.0}}
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--ess", type=float, default=10_000, help="stop at, default %(default)g")
    parser.add_argument("--minutes", type=float, default=15, help="to stop after")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=600, help="transitions")
    parser.add_argument("--piece", type=int, default=200, help="transitions between looks")
    parser.set_defaults(together=False)
    args = parse(parser, argv, TOY)
    folder = args.results / "references" if args.toy else REFERENCES
    for case in () if args.table else map(CASES.get, args.case):
        if not case.full or (read_reference(case.name, folder) and not args.again):
            continue
        try:
            case = case.at_toy_size() if args.toy else case
            with jax.enable_x64(True):
                row = closed_form(case) if case.variance else Nuts(case, args)(case)
        except DataAbsent as error:
            print(f"{case.name}: skipped, {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        content = {"case": case.name, **row, "machine": facts()}
        (folder / f"{case.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        complete = "complete" if row["complete"] else "NOT complete"
        print(f"{case.name}: ess {row.get('least_ess', np.inf):,.0f}, {complete}", flush=True)


if __name__ == "__main__":
    main()
