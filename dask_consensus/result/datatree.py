"""The result: one :class:`xarray.DataTree`, readable by ArviZ and by whatever reads netCDF."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from ..combination.reports import Combined, Round
from ..correction.draws import equal_weight_draws
from ..correction.importance import Correction, usable
from ..model.model import ShardModel
from ..plan.plan import Plan
from ..shard.constrain import constrain
from .clock import Clock, seconds_compiling
from .verdict import Verdict

_LIBRARIES = ("dask_consensus", "numpyro", "jax", "dask", "xarray", "numpy")


def result(
    plan: Plan,
    combined: Combined,
    correction: Correction | None,
    verdict: Verdict,
    clock: Clock,
) -> xr.DataTree:
    """Constrain the draws and label everything."""
    options, model = plan.options, plan.model
    groups = {
        "posterior": _posterior(plan, combined.draws),
        "shards": shards_dataset(model, combined.rounds),
        "rounds": rounds_dataset(model, combined.rounds),
    }
    if correction is not None:
        groups["correction"] = correction_dataset(model, correction)
    if correction is not None and usable(correction):
        rng = np.random.default_rng([options.seed, 1])
        shape = (options.num_chains, options.num_samples)
        groups["uncorrected"] = groups["posterior"]
        groups["posterior"] = _posterior(plan, equal_weight_draws(correction.estimate, shape, rng))
    # JSON has no infinity: an error of unknown size is null.
    sizes = [float(size) if np.isfinite(size) else None for size in verdict.error]
    return to_datatree(
        groups,
        {
            **asdict(options),
            "n_shards": plan.n_shards,
            "method_used": plan.method,
            "by": [str(key) for key in plan.bindings.layout.by],
            "sampling_time": clock.total(),
            "profile": clock.seconds | {"compile": seconds_compiling(combined, correction)},
            "verdict": verdict.text,
            "verdict_good": int(verdict.good),
            "verdict_reasons": verdict.reasons_as_json(),
            "accuracy": dict(zip(model.coordinate_names(), sizes, strict=True)),
        },
    )


def _posterior(plan: Plan, draws: np.ndarray) -> xr.Dataset:
    values = constrain(plan.model, draws, plan.example)
    labels = {c.argument: c.categories for c in plan.bindings.layout.columns if c.categories}
    return posterior_dataset(plan.model, values, labels)


def posterior_dataset(
    model: ShardModel,
    values: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[Any]],
) -> xr.Dataset:
    """Label constrained draws ``(chain, draw, *site shape)``.

    Parameters
    ----------
    model : ShardModel
    values : mapping
        Site -> draws.
    labels : mapping
        Plate -> labels of its entries, where they are known (a categorical column's categories).
    """
    plates = {**{site.name: site.dims for site in model.shared}, **model.deterministics}
    variables = {}
    coords: dict[str, Any] = {}
    for name, array in values.items():
        dims = []
        for axis, size in enumerate(array.shape[2:]):
            plate = plates[name][axis]
            dim = _name(plate or f"{name}_dim_{axis}")
            entries = labels.get(plate, ())
            coords[dim] = _storable_labels(entries) if len(entries) == size else np.arange(size)
            dims.append(dim)
        variables[_name(name)] = (("chain", "draw", *dims), array)
    chains, draws = next(iter(values.values())).shape[:2]
    coords |= {"chain": np.arange(chains), "draw": np.arange(draws)}
    return xr.Dataset(variables, coords)


def shards_dataset(model: ShardModel, rounds: Sequence[Round]) -> xr.Dataset:
    """Diagnostics of every shard in every round, dims ``(round, shard)``.

    What only sampling shows is there where shards were sampled; NaN in rounds that sampled none.
    """
    per_shard = {
        "rows": "rows of the shard",
        "weight": "power of the prior that the shard took",
        "seconds": "wall time of the work on the shard, compilation excluded (s)",
        "compile_seconds": "wall time of compiling, or of waiting for it (s)",
    }
    of_nuts = {
        "divergences": "diverging transitions after warm-up",
        "steps": "leapfrog steps a transition, on average",
        "step_size": "step size after warm-up",
        "accept_prob": "mean acceptance probability",
    }
    of_nuts_per_coordinate = {
        "skew": "skewness of the unconstrained draws",
        "joint_skew": "mean of the standardised coordinate times the squared distance",
        "ess": "effective sample size",
        "r_hat": "split r_hat",
    }
    dims = ("round", "shard")
    names = model.coordinate_names()

    def of_reports(name: str) -> np.ndarray:
        return np.array([[getattr(report, name) for report in this.reports] for this in rounds])

    def of_sampling(name: str, missing: Any) -> np.ndarray:
        return np.array(
            [
                [missing if r.nuts is None else getattr(r.nuts, name) for r in this.reports]
                for this in rounds
            ]
        )

    variables: dict[str, Any] = {
        name: (dims, of_reports(name), {"long_name": text}) for name, text in per_shard.items()
    }
    variables["mean"] = (
        (*dims, "coordinate"),
        of_reports("mean"),
        {"long_name": "mean of the shard's subposterior, unconstrained"},
    )
    if any(report.nuts is not None for this in rounds for report in this.reports):
        for name, text in of_nuts.items():
            variables[name] = (dims, of_sampling(name, np.nan), {"long_name": text})
        for name, text in of_nuts_per_coordinate.items():
            values = of_sampling(name, np.full(len(names), np.nan))
            variables[name] = ((*dims, "coordinate"), values, {"long_name": text})
    precision = of_reports("precision")
    extra = ("coordinate", "coordinate_") if precision.ndim == 4 else ("coordinate",)
    text = "precision of the shard's subposterior, the anchor's included"
    variables["precision"] = ((*dims, *extra), precision, {"long_name": text})
    if model.levels:
        variables["groups"] = ((*dims, "level"), of_reports("groups"), {"long_name": "groups"})
    coords: dict[str, Any] = {
        "round": np.arange(len(rounds)),
        "shard": np.arange(len(rounds[0].reports)),
        "coordinate": names,
    }
    if precision.ndim == 4:
        coords["coordinate_"] = names
    if model.levels:
        coords["level"] = [str(level) for level in model.levels]
    return xr.Dataset(variables, coords)


def rounds_dataset(model: ShardModel, rounds: Sequence[Round]) -> xr.Dataset:
    """Tabulate the combination after every round, dims ``(round, ...)``."""
    per_round = {
        "movement": "largest change of a mean (posterior sds) or of a log sd",
        "noise": "Monte Carlo error that the movement is judged by (posterior sds)",
        "seconds": "wall time (s)",
    }
    variables: dict[str, Any] = {
        name: ("round", [getattr(this, name) for this in rounds], {"long_name": text})
        for name, text in per_round.items()
    }
    strengths = [this.anchor.strength for this in rounds]
    text = "precision of the anchor, in units of a shard's own; 0 without an anchor"
    variables["strength"] = ("round", strengths, {"long_name": text})
    dims = ("round", "coordinate")
    means = np.array([this.mean for this in rounds])
    sds = np.array([np.sqrt(np.diag(this.covariance)) for this in rounds])
    variables["mean"] = (dims, means, {"long_name": "combined mean, unconstrained"})
    variables["sd"] = (dims, sds, {"long_name": "combined sd, unconstrained"})
    return xr.Dataset(
        variables, {"round": np.arange(len(rounds)), "coordinate": model.coordinate_names()}
    )


def correction_dataset(model: ShardModel, correction: Correction) -> xr.Dataset:
    """Weighted points of the full posterior, and how good they are."""
    scalars = {
        "k_hat": "Pareto shape of the weights' tail",
        "emulator_error": "error of the interpolated log density (sd); NaN without interpolation",
        "nodes": "quadrature nodes an axis (grid) or in all; 0 without local effects",
        "log_evidence": "log of the marginal likelihood",
        "log_evidence_error": "its Monte Carlo error",
        "modes_not_found": "share of groups whose mode was not found, averaged over the points",
        "coupling": "largest relative size of a shard's Hessian between groups",
        "seconds": "wall time (s)",
        "compile_seconds": "what of it the slowest shards spent compiling (s)",
    }
    per_coordinate = {
        "tail_log_ratio": "log of how much larger a weight would be far out than any seen",
        "integration_error": "change of the mean with the next number of nodes (posterior sds)",
    }
    of_estimate = {
        "mean": "mean of the full posterior",
        "error": "Monte Carlo error of the mean (posterior sds)",
        "sd_error": "relative Monte Carlo error of the sd",
    }
    estimate = correction.estimate
    variables: dict[str, Any] = {
        name: ((), getattr(correction, name), {"long_name": text}) for name, text in scalars.items()
    }
    variables["ess"] = ((), estimate.ess, {"long_name": "independent draws as good for the means"})
    for name, text in per_coordinate.items():
        variables[name] = ("coordinate", getattr(correction, name), {"long_name": text})
    for name, text in of_estimate.items():
        variables[name] = ("coordinate", getattr(estimate, name), {"long_name": text})
    sd = np.sqrt(np.diag(estimate.covariance))
    variables["sd"] = ("coordinate", sd, {"long_name": "sd of the full posterior"})
    dims = ("point", "coordinate")
    variables["points"] = (dims, correction.points, {"long_name": "unconstrained points"})
    variables["weights"] = ("point", correction.weights, {"long_name": "smoothed weights"})
    text = "iteration in which the point was drawn"
    variables["iteration"] = ("point", correction.iteration, {"long_name": text})
    return xr.Dataset(variables, {"coordinate": model.coordinate_names()})


def to_datatree(groups: Mapping[str, xr.Dataset], settings: Mapping[str, Any]) -> xr.DataTree:
    """Assemble the tree, with the same attributes on its root and on its posterior.

    Parameters
    ----------
    groups : mapping
        Group -> Dataset.
    settings : mapping
        Attributes; anything that netCDF cannot hold is written as JSON.
    """
    attributes = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "dask_consensus",
        "inference_library": "dask_consensus",
        "inference_library_version": version("dask_consensus"),
        "versions": json.dumps({name: version(name) for name in _LIBRARIES}),
        **{name: _storable(value) for name, value in settings.items()},
    }
    tree = xr.DataTree.from_dict(dict(groups))
    tree.attrs.update(attributes)
    tree["posterior"].attrs.update(attributes)
    return tree


def _name(site: str) -> str:
    """Name a variable or dimension after a site or plate; a slash would be a path in the tree."""
    name = site.replace("/", ".")
    return f"{name}_" if name in ("chain", "draw") else name


def _storable_labels(entries: Sequence[Any]) -> np.ndarray:
    """Turn labels that no file can hold (intervals, say) into text."""
    labels = np.asarray(entries)
    return (
        labels if labels.ndim == 1 and labels.dtype != object else np.array(list(map(str, entries)))
    )


def _storable(value: Any) -> Any:
    """Turn what netCDF has no attribute type for into text."""
    return (
        value
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        else (json.dumps(value))
    )
