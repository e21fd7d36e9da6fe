"""What is left out, rows and groups: against ArviZ on NUTS, against refits, and how fast.

- ``models``: three lines for the lung function of 176 patients (OSIC), left out by visits and by
  patients: ``az.loo`` on draws of NumPyro's NUTS on all rows, of patients on densities in closed
  form; and what ``az.compare`` ranks first.
- ``refits``: the density of a patient under NUTS on all others.
- ``speed``: seconds for binary rows with random intercepts, ten a group.

    python -m benchmarks.loo models refits speed
    python -m benchmarks.loo --table
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import arviz as az
import dask.dataframe as dd
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import scipy.special
import scipy.stats
from numpyro.infer import MCMC, NUTS, log_likelihood

from dask_consensus import demo
from dask_consensus.simulate import lung_function

from .cases import CASES
from .cases.sized import ROWS_A_GROUP, simulate_binary
from .cases.sound import logistic_intercepts
from .measure.fits import in_memory, quietly
from .measure.script import Store, parse
from .tables import loo as tables

PARTS = ("models", "refits", "speed")
TOY = {"parts": ["speed"], "source": "simulated", "draws": 200, "patients": 1, "rows": [3_000]}


def intercepts(patient, weeks, fvc=None, *, n_patient):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 500.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(100.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
    with numpyro.plate("patient", n_patient):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
    with numpyro.plate("visit", len(weeks)):
        numpyro.sample("obs", dist.Normal(a[patient] + mu_b * weeks, sigma), obs=fvc)


def line(weeks, fvc=None):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 500.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
    with numpyro.plate("visit", len(weeks)):
        numpyro.sample("obs", dist.Normal(mu_a + mu_b * weeks, sigma), obs=fvc)


MODELS: dict[str, Callable[..., Any]] = {
    "intercepts and slopes": demo.model,
    "intercepts": intercepts,
    "one line": line,
}


def models(source: str, draws: int) -> dict[str, Any]:
    """Leave out visits and patients of three models, by NUTS on all rows and by fits of shards."""
    frame = _frame(source)
    told: dict[str, Any] = {}
    theirs: dict[str, dict[str, Any]] = {"rows": {}, "groups": {}}
    ours: dict[str, dict[str, Any]] = {"rows": {}, "groups": {}}
    for name, model in MODELS.items():
        found = _sampled(model, frame, draws)
        columns = {k: v for k, v in demo.COLUMNS.items() if k != "patient" or model is not line}
        few = _thinned(found, draws)
        of_rows = log_likelihood(model, few, **_arguments(model, frame))["obs"]
        likely = {"rows": np.asarray(of_rows, np.float64), "groups": _of_patients(few, frame)}
        for unit, values in likely.items():
            theirs[unit][name] = _by_arviz(values)
        ddf = dd.from_pandas(frame, npartitions=4)
        options: dict[str, Any] = {"by": "Patient", "columns": columns, "n_shards": 5}
        options |= {"progress": False, "compute": False}
        tree = quietly(ddf.consensus.fit(model, **options))
        drawn = quietly(ddf.consensus.fit(model, **options, local="draws", local_draws=1000))
        ask = ddf.consensus.loo
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours["rows"][name] = ask(tree, model, check_verdict=False)
            of_draws = ask(drawn, model, check_verdict=False)
            ours["groups"][name] = ask(tree, model, unit="group", check_verdict=False)
        off = np.abs(
            ours["groups"][name]["loo_i"].to_numpy() - theirs["groups"][name]["loo_i"].to_numpy()
        )
        told[name] = {
            "good": bool(tree.attrs["verdict_good"]),
            "rows": {
                f"NUTS, {draws:,} draws": _numbers(theirs["rows"][name]),
                f"NUTS, {draws // 4:,} draws": _at_fewer(likely["rows"]),
                "summary": _numbers(ours["rows"][name]),
                "draws": _numbers(of_draws),
            },
            "groups": {
                f"NUTS, {draws:,} draws": _numbers(theirs["groups"][name]),
                f"NUTS, {draws // 4:,} draws": _at_fewer(likely["groups"]),
                "marginal": _numbers(ours["groups"][name]),
            },
            "group off": [float(np.median(off)), float(off.max())],
            "log evidence": float(tree["correction"]["log_evidence"]),
        }
    told["ranks"] = {
        unit: {"NUTS": _ranked(theirs[unit]), "shards": _ranked(ours[unit])} for unit in ours
    }
    return told


def refits(source: str, draws: int, patients: int) -> dict[str, Any]:
    """Predict some patients from all others: those hardest to leave out, and some at random."""
    frame, model = _frame(source), demo.model
    ddf = dd.from_pandas(frame, npartitions=4)
    options: dict[str, Any] = {"by": "Patient", "columns": demo.COLUMNS, "n_shards": 5}
    tree = quietly(ddf.consensus.fit(model, **options, progress=False, compute=False))
    ours = ddf.consensus.pointwise(tree, model, unit="group", check_verdict=False).compute()
    ours = ours.set_index("Patient")
    hardest = ours["pareto_k"].nlargest(patients).index
    others = ours.drop(hardest).sample(patients, random_state=0).index
    told = []
    for who in [*hardest, *others]:
        out = frame["Patient"] == who
        found = _thinned(_sampled(model, frame[~out], draws), draws)
        density = _of_patients(found, frame[out])[:, 0]
        exact = scipy.special.logsumexp(density) - np.log(len(density))
        error = np.exp(density - density.max())
        told.append(
            {
                "exact": float(exact),
                "error": float(error.std() / error.mean() / np.sqrt(len(density))),
                **{name: float(ours.loc[who, name]) for name in ("elpd", "lpd", "pareto_k")},
            }
        )
    return {"patients": told}


def speed(rows: int) -> dict[str, Any]:
    """Leave out binary rows, and their groups."""
    sizes = np.full(rows // ROWS_A_GROUP, ROWS_A_GROUP)
    frame, _ = simulate_binary(np.random.default_rng(0), sizes)
    ddf = in_memory(frame.astype({"x": np.float32}), 8)
    began = time.perf_counter()
    tree = quietly(
        ddf.consensus.fit(logistic_intercepts, by="group", progress=False, compute=False)
    )
    told: dict[str, Any] = {"fit": time.perf_counter() - began}
    for unit in ("group", "row"):
        began = time.perf_counter()
        found = ddf.consensus.loo(tree, logistic_intercepts, unit=unit, check_verdict=False)
        told[unit] = time.perf_counter() - began
        told[f"{unit} elpd"] = _numbers(found)
    return told


def _frame(source: str) -> pd.DataFrame:
    frame = CASES["osic"].frame() if source == "osic" else lung_function(seed=0)
    frame = frame[["Patient", "Weeks", "FVC"]].astype({"Weeks": float, "FVC": float})
    return frame.sort_values("Patient", kind="stable", ignore_index=True)


def _arguments(model: Callable[..., Any], frame: pd.DataFrame) -> dict[str, Any]:
    told = {"weeks": frame["Weeks"].to_numpy(), "fvc": frame["FVC"].to_numpy()}
    if model is line:
        return told
    codes, labels = pd.factorize(frame["Patient"], sort=True)
    return {**told, "patient": codes, "n_patient": len(labels)}


def _sampled(
    model: Callable[..., Any], frame: pd.DataFrame, draws: int
) -> dict[str, dict[str, np.ndarray]]:
    """Sample all rows; draws of two chains, one after the other.

    From anywhere, chains of centred effects stay for thousands of draws where a sd is near zero.
    """
    of_patients = frame.groupby("Patient", sort=True)["FVC"].mean().to_numpy()
    begin = {"mu_a": 2660.0, "mu_b": -3.2, "sigma_a": 650.0, "sigma_b": 3.5, "sigma": 200.0}
    effects = {"a": of_patients, "b": np.full(len(of_patients), -3.2)}
    start = numpyro.infer.init_to_value(values=begin | effects)
    sampler = MCMC(
        NUTS(model, target_accept_prob=0.9, init_strategy=start),
        num_warmup=min(1500, draws),
        num_samples=2 * draws,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    sampler.run(jax.random.key(1), **_arguments(model, frame))
    shared = [k for k in sampler.get_samples() if k not in effects]
    chains = sampler.get_samples(group_by_chain=True)
    worst = max(float(numpyro.diagnostics.split_gelman_rubin(chains[name])) for name in shared)
    if worst > 1.05 and draws >= 1000:
        raise RuntimeError(f"chains of all rows do not agree: r_hat {worst:.2f}")
    return {name: np.asarray(value, float) for name, value in sampler.get_samples().items()}


def _thinned(found: Mapping[str, np.ndarray], draws: int) -> dict[str, np.ndarray]:
    """Take so many draws, evenly spaced."""
    n = len(next(iter(found.values())))
    which = np.linspace(0, n - 1, draws).round().astype(int)
    return {name: value[which] for name, value in found.items()}


def _at_fewer(likelihood: np.ndarray, parts: int = 4) -> list[float]:
    """Take every fourth draw, four times: the mean of what is said, and the sd of the elpd."""
    found = np.array([_numbers(_by_arviz(likelihood[i::parts])) for i in range(parts)])
    return [*found.mean(axis=0).tolist(), float(found[:, 0].std(ddof=1))]


def _of_patients(found: Mapping[str, np.ndarray], frame: pd.DataFrame) -> np.ndarray:
    """Log density ``(draws, patients)`` of all visits of a patient, effects integrated out."""
    zero = np.zeros_like(found["mu_a"])
    sigma = found["sigma"]
    columns = []
    for _, rows in frame.groupby("Patient", sort=True):
        weeks, fvc = rows["Weeks"].to_numpy(), rows["FVC"].to_numpy()
        away = fvc - found["mu_a"][:, None] - found["mu_b"][:, None] * weeks
        design = np.stack([np.ones(len(weeks)), weeks])
        covariance = np.eye(len(weeks)) * sigma[:, None, None] ** 2
        for name, column in zip(("sigma_a", "sigma_b"), design, strict=True):
            spread = found.get(name, zero)[:, None, None] ** 2
            covariance = covariance + spread * np.multiply.outer(column, column)
        factor = np.linalg.cholesky(covariance)
        white = np.linalg.solve(factor, away[:, :, None])[:, :, 0]
        log_volume = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        constant = len(weeks) * np.log(2 * np.pi) / 2
        columns.append(-0.5 * (white**2).sum(axis=1) - log_volume - constant)
    return np.stack(columns, axis=1)


def _by_arviz(likelihood: np.ndarray) -> Any:
    """Leave out what has log likelihoods ``(draws, n)``, draws of two chains."""
    chains = likelihood.reshape(2, -1, likelihood.shape[1])
    posterior = {"first": chains[:, :, 0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = az.from_dict(posterior=posterior, log_likelihood={"obs": chains})
        return az.loo(data, pointwise=True, reff=1.0)


def _numbers(found: Any) -> list[float]:
    """Elpd, its standard error, p_loo, and the share of shapes that are too large."""
    share = np.mean(np.asarray(found["pareto_k"]) > 0.7)
    return [float(found["elpd_loo"]), float(found["se"]), float(found["p_loo"]), float(share)]


def _ranked(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Order models by ``az.compare``: differences to the first, and their standard errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = az.compare(dict(found))
    return {
        str(name): [float(row["elpd_diff"]), float(row["dse"])] for name, row in table.iterrows()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--source", choices=["osic", "simulated"], default="osic")
    parser.add_argument("--draws", type=int, default=4000, help="of NUTS that are compared")
    parser.add_argument("--patients", type=int, default=6, help="hardest, and as many at random")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    args = parse(parser, argv, TOY)
    store = Store(args, "loo")
    for part in () if args.table else args.parts:
        if part == "models":
            store.measure({"part": part, "source": args.source}, models, args.source, args.draws)
        elif part == "refits":
            key = {"part": part, "source": args.source}
            store.measure(key, refits, args.source, args.draws, args.patients)
        else:
            for rows in args.rows:
                store.measure({"part": part, "rows": rows}, speed, rows)
    print(*tables.tables(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
