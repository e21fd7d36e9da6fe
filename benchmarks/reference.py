"""References: the full data's posterior, by long NUTS or in closed form, as small JSON files.

Writes ``references/<case>.json``: of each scalar shared parameter, constrained and unconstrained,
mean, sd, effective sample size and r_hat; and what it took. NUTS runs on all rows, from a good
start, local sites centred as suits the data (which leaves the posterior of the shared sites as it
is), until every shared parameter has ``--ess`` effective draws and r_hat below 1.01, or time is
up, in which case the file says ``"complete": false``. It reads the model with NumPyro alone.

    python -m benchmarks.reference --case osic lkj --again --minutes 15
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import halfnorm

from .cases import CASES, REFERENCES, Case, DataAbsent, read_reference
from .measure.chains import Sampling, joined, nuts, side_by_side
from .measure.draws import summary
from .measure.machine import facts
from .measure.script import parse

R_HAT = 1.01
LEAST_ESS = 4_000
PHASES = ("compile", "warmup", "sampling")
SEED = 1_000_003  # far from the seeds of any fit that is compared with it
TOY = {"case": ["variances-2", "coupled"], "ess": 50, "minutes": 0.2, "warmup": 200}


def by_nuts(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Content of the file of a case that NUTS is run on."""
    options = {"warmup": args.warmup, "piece": 200, "x64": True, **case.full}
    sampling = Sampling(4, ess=args.ess, seconds=60 * args.minutes, seed=SEED, **options)
    chains = side_by_side(_chain, sampling, args.toy, case.name, args.toy)
    sites, rows, marks, constrained = zip(*chains, strict=True)
    row = joined(list(zip(sites, rows, strict=True)))
    n = row["draws"]
    together = {name: np.stack([c[name][:n] for c in constrained]) for name in constrained[0]}
    # Wall and processor seconds by phase, from the moments at which phases ended.
    ends = np.array([list(mark.values()) for mark in marks])
    wall, cpu = np.moveaxis(np.diff(ends, axis=1, prepend=0.0), -1, 0)
    least, worst = row["ess"], row["r_hat"]
    return {
        "complete": bool(least > LEAST_ESS and worst < R_HAT),
        "method": "NUTS",
        "unconstrained": row["unconstrained"],
        "constrained": summary(together),
        "least_ess": least,
        "worst_r_hat": worst,
        "draws": n,
        "divergences": sum(row["divergences"] for row in rows),
        "steps": row["steps"],
        "seconds": dict(zip(PHASES, wall.max(axis=0).tolist(), strict=True)),
        # Chains compile the same code.
        "cpu_seconds": dict(zip(PHASES, (cpu.sum(axis=0) / (4, 1, 1)).tolist(), strict=True)),
        **sampling._asdict(),
    }


def _chain(sampling: Sampling, number: int, name: str, toy: bool) -> Any:
    case = CASES[name].at_toy_size() if toy else CASES[name]
    chain = nuts(sampling, number, case.problem(case.frame()))
    return chain.sites, chain.row, dict(chain.marks), chain.constrain(chain.sites)


def closed_form(case: Case) -> dict[str, Any]:
    """Moments of tau and its log where ``y ~ N(0, tau^2 + s^2)``, by the trapezoidal rule.

    On a density that is smooth and vanishes at both ends the rule's error falls faster than any
    power of its step.
    """
    y = case.frame()["y"].to_numpy()
    log_tau = np.linspace(-14.0, 4.0, 40_001)
    tau = np.exp(log_tau)
    sd = np.sqrt(tau**2 + case.variance)
    log_density = -len(y) * np.log(sd) - 0.5 * (y @ y) / sd**2
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
    parser.add_argument("--warmup", type=int, default=600, help="transitions")
    args = parse(parser, argv, TOY)
    folder = args.results / "references" if args.toy else REFERENCES
    for case in () if args.table else map(CASES.get, args.case):
        if case.full is None or (read_reference(case.name, folder) and not args.again):
            continue
        try:
            case = case.at_toy_size() if args.toy else case
            row = by_nuts(case, args) if case.variance is None else closed_form(case)
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
