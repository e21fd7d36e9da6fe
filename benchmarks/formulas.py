"""Formulas beside Bambi: priors, and posteriors by its NUTS; and beside lme4 on its own data.

Bambi runs in an environment of its own, since it needs an older parser:

    python -m venv bambi && bambi/bin/pip install bambi
    bambi/bin/python benchmarks/formulas.py bambi          # writes results/formulas_bambi.json
    python -m benchmarks.formulas                           # fits by this package, beside it
    python -m benchmarks.formulas lme4                      # needs R with lme4, for its data

Both read the same formulas and the same rows, which are drawn here; sums of the rows tell whether
they are the same.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REFERENCE = Path(__file__).parent / "results" / "formulas_bambi.json"
DRAWS, TUNE, CHAINS = 1000, 1000, 4

# Case -> formula, family, Bambi's name for it, link.
CASES: dict[str, tuple[str, str, str, str]] = {
    "slopes": ("y ~ x + C(day) + (1 + x | store)", "gaussian", "gaussian", "identity"),
    "binary": ("bit ~ x + g + (1 | store)", "bernoulli", "bernoulli", "logit"),
    "counts": ("count ~ x + offset(log(z)) + (1 | store)", "negativebinomial",
               "negativebinomial", "log"),
    "trials": ("p(won, n) ~ x*g + (1 | store)", "binomial", "binomial", "logit"),
    "heavy": ("t ~ x + x:g + (1 | store)", "student", "t", "identity"),
    "grades": ("grade ~ x + (1 | store)", "ordered", "cumulative", "logit"),
    "shares": ("share ~ x + g", "beta", "beta", "logit"),
    "times": ("time ~ x + (1 | store)", "gamma", "gamma", "log"),
    "poisson": ("calls ~ scale(x) + C(day) + (1 | g:store)", "poisson", "poisson", "log"),
}  # fmt: skip


def rows(n: int = 600, stores: int = 40, seed: int = 0) -> pd.DataFrame:
    """Draw a table that has a response for each family."""
    rng = np.random.default_rng(seed)
    store = rng.integers(0, stores, n)
    x, z = rng.normal(2, 1.5, n), rng.gamma(4, 0.5, n)
    day = rng.integers(1, 4, n)
    g = np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    shift = 0.5 * (g == "b") - 0.3 * (day == 2)
    eta = 0.4 * (x - 2) + shift + rng.normal(0, 0.7, stores)[store]
    slope = rng.normal(0, 0.4, stores)[store]
    p = 1 / (1 + np.exp(-eta))
    noise = rng.logistic(0, 1, n)
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "day": day,
            "g": g,
            "store": store,
            "n": (n_trials := rng.integers(1, 9, n)),
            "y": 3 + eta + slope * x + rng.normal(0, 1, n),
            "bit": (rng.random(n) < p).astype(int),
            "won": rng.binomial(n_trials, p),
            "count": rng.negative_binomial(2, 2 / (2 + z * np.exp(eta))),
            "calls": rng.poisson(np.exp(0.5 * eta)),
            "t": eta + rng.standard_t(3, n),
            "grade": np.digitize(eta + noise, [-1.5, 0, 1.5]),
            "share": rng.beta(5 * p, 5 * (1 - p)),
            "time": rng.gamma(2, np.exp(eta) / 2),
        }
    )


# Bambi


def bambi_reference(names: list[str]) -> None:
    """Store Bambi's priors and the moments of its draws."""
    import bambi

    told = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
    table = rows()
    told["sum"] = float(table.select_dtypes("number").sum().sum())
    told["version"] = bambi.__version__
    for case in names or CASES:
        text, _, family, link = CASES[case]
        of_mean = "p" if family in ("bernoulli", "binomial", "cumulative") else "mu"
        data = table
        if family == "cumulative":
            data = table.assign(grade=pd.Categorical(table.grade, ordered=True))
        model = bambi.Model(text, data, family=family, link={of_mean: link})
        model.build()
        entry = told.setdefault(case, {"formula": text})
        entry["priors"] = _priors(model)
        if "priors" not in sys.argv:
            drawn = model.fit(draws=DRAWS, tune=TUNE, chains=CHAINS, random_seed=1, cores=2,
                              progressbar=False)  # fmt: skip
            entry["posterior"] = _moments(drawn)
        REFERENCE.write_text(json.dumps(told, indent=1))
        print(case, "done", flush=True)


def _priors(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, component in model.components.items():
        if hasattr(component, "terms"):
            for term in component.terms.values():
                if getattr(term, "prior", None) is not None:
                    found[term.name] = _plain(term.prior)
        else:
            found[name] = _plain(component.prior)
    return found


def _plain(prior: Any) -> Any:
    if hasattr(prior, "args"):
        args = {k: _plain(v) for k, v in prior.args.items() if not callable(v)}
        return [prior.name, {k: v for k, v in args.items() if k != "transform"}]
    return np.asarray(prior).tolist()


def _moments(drawn: Any) -> dict[str, Any]:
    import arviz_stats

    found = {}
    posterior = (
        drawn.posterior.to_dataset()
        if hasattr(drawn.posterior, "to_dataset")
        else (drawn.posterior)
    )
    ess = arviz_stats.ess(posterior)
    ess = ess.to_dataset() if hasattr(ess, "to_dataset") else ess
    for name, values in posterior.items():
        flat = values.stack(all=("chain", "draw"))
        found[str(name)] = {
            "mean": flat.mean("all").to_numpy().tolist(),
            "sd": flat.std("all").to_numpy().tolist(),
            "ess": ess[name].to_numpy().tolist(),
        }
    return found


# This package


def compare(names: list[str]) -> None:
    """Fit each case in two shards, and print how far means and sds are from Bambi's."""
    import dask.dataframe as dd

    import dask_consensus  # noqa: F401

    told = json.loads(REFERENCE.read_text())
    table = rows()
    assert np.isclose(told["sum"], table.select_dtypes("number").sum().sum()), "other rows"
    frame = dd.from_pandas(table, npartitions=3)
    print(
        "| case | formula | largest difference of a mean, sds | its noise | sd ratios | verdict |"
    )
    print("|---|---|---|---|---|---|")
    for case in names or CASES:
        if "posterior" not in told.get(case, {}):
            continue
        text, family, _, link = CASES[case]
        tree = frame.consensus.fit(
            text, family=family, link=link, n_shards=2, seed=1, num_samples=4000, progress=False
        )
        far, noise, ratios = differences(told[case]["posterior"], tree)
        good = "good" if int(tree.attrs["verdict_good"]) else "bad"
        print(
            f"| {case} | `{text}` | {far:.3f} | {noise:.3f} | "
            f"{min(ratios):.2f} - {max(ratios):.2f} | {good} |",
            flush=True,
        )


def differences(theirs: dict[str, Any], tree: Any) -> tuple[float, float, list[float]]:
    """Return the largest difference of a mean in sds, Bambi's error of it, and ratios of sds."""
    far, noise, ratios = 0.0, 0.0, []
    for name, values in pairs(theirs, tree).items():
        mean, sd = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
        their_sd, ess = np.ravel(theirs[name]["sd"]), np.ravel(theirs[name]["ess"])
        apart = np.abs(np.ravel(mean) - np.ravel(theirs[name]["mean"])) / their_sd
        if apart.max() > far:
            far, noise = float(apart.max()), float(1 / np.sqrt(ess[apart.argmax()]))
        ratios += (np.ravel(sd) / their_sd).tolist()
    return far, noise, ratios


def pairs(theirs: dict[str, Any], tree: Any) -> dict[str, np.ndarray]:
    """Return draws of this package under Bambi's names; those of groups' effects are left out."""
    posterior = tree["posterior"].to_dataset()
    labels = {str(v): i for i, v in enumerate(posterior.get("beta_dim_0", np.empty(0)).values)}
    found = {}
    for name, entry in theirs.items():
        if name in posterior:
            found[name] = posterior[name].to_numpy()
        elif name in labels or any(label.startswith(f"{name}[") for label in labels):
            count = np.size(entry["mean"])
            first = next(i for label, i in labels.items()
                         if label == name or label.startswith(f"{name}["))  # fmt: skip
            found[name] = posterior["beta"].to_numpy()[..., first : first + count]
            if not np.ndim(entry["mean"]):
                found[name] = found[name][..., 0]
    return found


# lme4

LME4 = Path(__file__).parent / "results" / "formulas_lme4.json"

# Name -> formula here, family, priors, R that fits it and prints estimates under the names here.
BY_LME4 = {
    "sleepstudy": (
        "Reaction ~ Days + (Days | Subject)",
        "gaussian",
        {"cor|Subject": "LKJ(1)"},
        "m <- lmer(Reaction ~ Days + (Days | Subject), sleepstudy)",
        {"Intercept": "fixef(m)[[1]]", "Days": "fixef(m)[[2]]",
         "1|Subject_sigma": "attr(VarCorr(m)$Subject, 'stddev')[[1]]",
         "Days|Subject_sigma": "attr(VarCorr(m)$Subject, 'stddev')[[2]]", "sigma": "sigma(m)"},
    ),
    "cbpp": (
        "p(incidence, size) ~ period + (1 | herd)",
        "binomial",
        {"period": "Normal(0, 10)"},  # by default 1, which draws the periods together
        "m <- glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), cbpp, binomial, "
        "nAGQ = 9)",
        {"Intercept": "fixef(m)[[1]]", "period[2]": "fixef(m)[[2]]", "period[3]": "fixef(m)[[3]]",
         "period[4]": "fixef(m)[[4]]", "1|herd_sigma": "attr(VarCorr(m)$herd, 'stddev')[[1]]"},
    ),
}  # fmt: skip


def beside_lme4(names: list[str]) -> None:
    """Fit lme4's own data by lme4 and here, and store and print both."""
    import dask.dataframe as dd

    import dask_consensus  # noqa: F401

    stored = json.loads(LME4.read_text()) if LME4.exists() else {}
    for name in names or BY_LME4:
        text, family, priors, fitted, estimates = BY_LME4[name]
        table = pd.read_csv(io.StringIO(_by_r(f"write.csv({name}, row.names = FALSE)")))
        if name == "cbpp":
            table = table.astype({"period": "category"})
        told = ", ".join(f"format({code}, digits = 10)" for code in estimates.values())
        theirs = _by_r(f"{fitted}; cat(c({told}))").split()
        tree = dd.from_pandas(table, npartitions=4).consensus.fit(
            text, family=family, priors=priors, n_shards=4, seed=1, progress=False
        )
        posterior = tree["posterior"].to_dataset()
        good = bool(int(tree.attrs["verdict_good"]))
        print(f"{name}: {text}; {'good' if good else tree.attrs['verdict']}")
        entry: dict[str, Any] = {"formula": text, "rows": len(table), "good": good}
        for key, value in zip(estimates, map(float, theirs), strict=True):
            draws = posterior[key] if key in posterior else posterior["beta"].sel(beta_dim_0=key)
            mean, sd = float(draws.mean()), float(draws.std())
            entry[key] = {"lme4": value, "mean": mean, "sd": sd}
            print(f"  {key:22} lme4 {value:9.4f}  here {mean:9.4f} (sd {sd:.4f})", flush=True)
        entry["version"] = _by_r("cat(format(packageVersion('lme4')))")
        stored[name] = entry
        LME4.write_text(json.dumps(stored, indent=1) + "\n")


def _by_r(code: str) -> str:
    out = subprocess.run(
        ["Rscript", "-e", f"suppressMessages(library(lme4)); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return out.stdout


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument in CASES]
    if "bambi" in sys.argv:
        bambi_reference(given)
    elif "lme4" in sys.argv:
        beside_lme4([argument for argument in sys.argv if argument in BY_LME4])
    else:
        compare(given)
