"""What a user would fit instead: lme4, glmmTMB and GPBoost beside a fit by this package.

The random intercept and slope, and binary rows with random intercepts, 10 rows a group. Rivals get
arrays in memory, and what they take to fit is timed, reading left out; they give a point estimate
and standard errors. This package gets Parquet files and two worker processes, is timed from the
call to the corrected posterior, and gives that. All use every core, as far as they can. A rival
that is not installed is left out, with a word (R: ``r-cran-lme4``, ``r-cran-glmmtmb``; PyPI:
``gpboost``).

    python -m benchmarks.rivals --rows 100000 1000000
    python -m benchmarks.rivals --table                          # print what there is
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .cases.sized import GROWING, ROWS_A_GROUP
from .measure.machine import peak_mib
from .measure.script import Store, parse
from .scale import fit, simulated
from .tables import cost

OURS = "this package"
TOY = {"rows": [400], "who": [OURS], "workers": 1}

# What R is asked, by package and model; the estimates are those of our sites' values.
_R = {
    ("lme4", "slopes"): """
        fit <- lme4::lmer(y ~ x + (x || group), rows, REML = FALSE)
        sds <- as.data.frame(lme4::VarCorr(fit))$sdcor; fixed <- lme4::fixef(fit)
        found <- c(mu_a = fixed[[1]], mu_b = fixed[[2]], sigma_a = sds[1], sigma_b = sds[2],
                   sigma = sds[3])""",
    ("lme4", "binary"): """
        fit <- lme4::glmer(y ~ x + (1 | group), rows, family = binomial)
        sds <- as.data.frame(lme4::VarCorr(fit))$sdcor; fixed <- lme4::fixef(fit)
        found <- c(alpha = fixed[[1]], beta = fixed[[2]], tau = sds[1])""",
    ("glmmTMB", "slopes"): """
        fit <- glmmTMB::glmmTMB(y ~ x + diag(x | group), rows)
        sds <- attr(glmmTMB::VarCorr(fit)$cond$group, "stddev"); fixed <- glmmTMB::fixef(fit)$cond
        found <- c(mu_a = fixed[[1]], mu_b = fixed[[2]], sigma_a = sds[[1]], sigma_b = sds[[2]],
                   sigma = glmmTMB::sigma(fit))""",
    ("glmmTMB", "binary"): """
        fit <- glmmTMB::glmmTMB(y ~ x + (1 | group), rows, family = binomial)
        sds <- attr(glmmTMB::VarCorr(fit)$cond$group, "stddev"); fixed <- glmmTMB::fixef(fit)$cond
        found <- c(alpha = fixed[[1]], beta = fixed[[2]], tau = sds[[1]])""",
}
_SCRIPT = """
n <- {n}
column <- function(name) readBin(file.path("{folder}", name), "double", n)
rows <- data.frame(group = factor(column("group")), x = column("x"), y = column("y"))
library({package})
seconds <- system.time({{{fit}}})[["elapsed"]]
peak <- grep("VmHWM", readLines("/proc/self/status"), value = TRUE)
cat(sprintf('{{"seconds": %.3f, "mib": %s, "version": "%s", "estimates": {{%s}}}}', seconds,
            as.numeric(gsub("[^0-9]", "", peak)) / 1024, packageVersion("{package}"),
            paste(sprintf('"%s": %.8f', names(found), found), collapse = ", ")))
"""


def rows_of(rows: int, seed: int, model: str) -> pd.DataFrame:
    """All rows that :func:`.scale.write` writes to files."""
    return pd.concat([frame for frame in simulated(rows, seed, model)], ignore_index=True)


def by_r(package: str, rows: int, seed: int, model: str) -> dict[str, Any]:
    """Fit by a package for R."""
    frame = rows_of(rows, seed, model)
    with tempfile.TemporaryDirectory() as folder:
        for name, column in frame.items():
            column.to_numpy(np.float64).tofile(Path(folder) / str(name))
        fit = _R[package, model]
        script = _SCRIPT.format(n=len(frame), folder=folder, package=package, fit=fit)
        del frame
        run = subprocess.run(
            ["Rscript", "--vanilla", "-e", script], capture_output=True, text=True, check=True
        )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def by_gpboost(rows: int, seed: int, model: str) -> dict[str, Any]:
    """Fit by GPBoost (Sigrist 2022, JMLR 23)."""
    import gpboost

    frame = rows_of(rows, seed, model)
    group, x, y = (frame[name].to_numpy() for name in ("group", "x", "y"))
    slope = {"group_rand_coef_data": x, "ind_effect_group_rand_coef": [1]}
    likelihood = "gaussian" if model == "slopes" else "bernoulli_logit"
    began = time.perf_counter()
    fitted = gpboost.GPModel(
        group_data=group, likelihood=likelihood, **(slope if model == "slopes" else {})
    )
    fitted.fit(y=y.astype(float), X=np.column_stack([np.ones(len(x)), x]))
    seconds = time.perf_counter() - began
    fixed = np.asarray(fitted.get_coef()).ravel()
    sds = np.sqrt(np.asarray(fitted.get_cov_pars()).ravel())
    if model == "slopes":
        names, values = ("mu_a", "mu_b", "sigma", "sigma_a", "sigma_b"), [*fixed[:2], *sds]
    else:
        names, values = ("alpha", "beta", "tau"), [*fixed[:2], *sds]
    estimates = dict(zip(names, map(float, values), strict=True))
    version = gpboost.__version__
    return {"seconds": seconds, "mib": peak_mib(), "version": version, "estimates": estimates}


def by_us(rows: int, workers: int, seed: int, here: bool, model: str) -> dict[str, Any]:
    """Fit by this package: a mean and an sd of each parameter, and the verdict."""
    row = fit(rows, (workers, 1), seed, here, model)
    return {
        "seconds": row["seconds"],
        "mib": sum(row["worker_mib"]) + row["client_mib"],
        "version": "",
        "estimates": {name: mean for name, (mean, _) in row["moments"].items()},
        "sds": {name: sd for name, (_, sd) in row["moments"].items()},
        "good": row["good"],
    }


def missing(who: str) -> str:
    """Why a rival cannot be asked; empty where it can."""
    if who == OURS:
        return ""
    if who == "GPBoost":
        return "" if importlib.util.find_spec("gpboost") else "the package gpboost is not installed"
    if not shutil.which("Rscript"):
        return "R is not installed"
    asked = ["Rscript", "--vanilla", "-e", f"packageVersion('{who}')"]
    there = subprocess.run(asked, capture_output=True, check=False).returncode == 0
    return "" if there else f"R's package {who} is not installed"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[10**5, 10**6])
    parser.add_argument("--model", nargs="+", default=list(GROWING), choices=list(GROWING))
    everyone = [OURS, "GPBoost", "lme4", "glmmTMB"]
    parser.add_argument("--who", nargs="+", default=everyone, choices=everyone)
    parser.add_argument("--workers", type=int, default=2, help="processes, of this package")
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser, argv, TOY)
    store = Store(args, "rivals")
    for who in () if args.table else args.who:
        if reason := missing(who):
            print(f"{who} is left out: {reason}\n")
            continue
        for model in args.model:
            for rows in args.rows:
                key = {"model": model, "rows": rows, "groups": rows // ROWS_A_GROUP, "who": who}
                key["seed"] = args.seed
                if who == OURS:
                    store.measure(key, by_us, rows, args.workers, args.seed, args.toy, model)
                elif who == "GPBoost":
                    store.measure(key, by_gpboost, rows, args.seed, model)
                else:
                    store.measure(key, by_r, who, rows, args.seed, model)
    truths = {model: truth for model, (_, _, truth) in GROWING.items()}
    print(*cost.rivals(store.rows(), truths, OURS), sep="\n")


if __name__ == "__main__":
    main()
