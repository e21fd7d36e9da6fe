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

from ..cluster.used import used
from ..combination.reports import Combined, Guess, NutsDiagnostics, Round
from ..correction.assessment import usable
from ..correction.state import Correction, Known
from ..model.model import ShardModel
from ..plan.forecast import Forecast
from ..plan.plan import Plan
from ..shard.constrain import constrain
from .clock import Clock, seconds_compiling
from .names import axis_labels, coordinate_labels, variable_name
from .recall import SEEN, UNCONSTRAINED, memory_of, unconstrained_dataset
from .verdict import Verdict

_LIBRARIES = ("dask_consensus", "numpyro", "jax", "dask", "xarray", "numpy")


def result(
    plan: Plan,
    guess: Guess | None,
    combined: Combined,
    correction: Correction | None,
    draws: np.ndarray,
    local: Mapping[str, xr.Dataset],
    verdict: Verdict,
    clock: Clock,
    seen: np.ndarray | None = None,
    expected: Forecast | None = None,
) -> xr.DataTree:
    """Constrain the draws and label everything; root and posterior have the same attributes.

    `seen` are hashes of the groups' keys, by which they are known again.
    """
    options, model = plan.options, plan.model
    names = coordinate_labels(model, plan.labels)
    settings = asdict(options)
    thresholds = settings.pop("verdict")
    groups = {
        "posterior": _posterior(plan, draws),
        UNCONSTRAINED: unconstrained_dataset(model, draws),
        "shards": shards_dataset(model, combined.rounds, names),
        "rounds": rounds_dataset(combined.rounds, names),
    }
    if correction is not None:
        groups["correction"] = correction_dataset(correction, names)
        if usable(correction):
            groups["uncorrected"] = _posterior(plan, combined.draws)
    groups |= local
    if seen is not None:
        groups[SEEN] = seen_dataset(seen)
    # JSON has no infinity: an error of unknown size is null.
    sizes = [float(size) if np.isfinite(size) else None for size in verdict.error]
    attributes = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "dask_consensus",
        "creation_library_version": version("dask_consensus"),
        "creation_library_language": "Python",
        "inference_library": "dask_consensus",
        "inference_library_version": version("dask_consensus"),
        "versions": {name: version(name) for name in _LIBRARIES},
        **settings,
        "n_shards": plan.n_shards,
        "method_used": combined.method,
        "searches": _searches(guess),
        "by": [str(key) for key in plan.bindings.layout.by],
        "n_rows": plan.survey.rows,
        "n_groups": plan.survey.n_groups if plan.bindings.layout.by else 0,
        "n_updates": 0,
        "no_local_because": plan.no_local_because,
        "model": memory_of(plan),
        "sampling_time": clock.total(),
        "profile": clock.seconds | {"compile": seconds_compiling(combined, correction)},
        "forecast": {} if expected is None else expected.as_dict(),
        "used": used(),
        "verdict": verdict.text,
        "verdict_thresholds": thresholds,
        "verdict_good": int(verdict.good),
        "verdict_reasons": verdict.reasons_as_json(),
        "accuracy": dict(zip(names, sizes, strict=True)),
    }
    tree = xr.DataTree.from_dict(groups)
    for node in (tree, tree["posterior"]):
        node.attrs.update({name: _storable(value) for name, value in attributes.items()})
    return tree


def _searches(guess: Guess | None) -> dict[str, int]:
    """Count the searches for the mode, those that reached it, and the modes found, if any."""
    if guess is None or guess.approximation is None:
        return {}
    found = guess.approximation
    return {"searched": found.searched, "reached": found.reached, "modes": found.modes}


def _posterior(plan: Plan, draws: np.ndarray) -> xr.Dataset:
    values = constrain(plan.model, draws, plan.example)
    return posterior_dataset(plan.model, values, plan.labels)


def posterior_dataset(
    model: ShardModel, values: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[Any]]
) -> xr.Dataset:
    """Label constrained draws ``(chain, draw, *site shape)``; `labels` are those of arguments."""
    plates = {**{site.name: site.dims for site in model.shared}, **model.deterministics}
    variables = {}
    coords: dict[str, Any] = {}
    for name, array in values.items():
        dims = []
        for axis, size in enumerate(array.shape[2:]):
            plate = plates[name][axis]
            dim = variable_name(plate or f"{name}_dim_{axis}")
            entries = axis_labels(model, labels, name, axis)
            coords[dim] = np.arange(size) if entries is None else entries
            dims.append(dim)
        variables[variable_name(name)] = (("chain", "draw", *dims), array)
    chains, draws = next(iter(values.values())).shape[:2]
    coords |= {"chain": np.arange(chains), "draw": np.arange(draws)}
    return xr.Dataset(variables, coords)


def _variables(
    source: Any, dims: Sequence[str], long_names: Mapping[str, str]
) -> dict[str, tuple[Sequence[str], Any, dict[str, str]]]:
    """Make variables of fields of an object, or of all objects in a nested list.

    A variable has as many of the dims, from the first on, as the field's values have.
    """
    values = {name: _field(source, name) for name in long_names}
    return {
        name: (dims[: np.ndim(values[name])], values[name], {"long_name": text})
        for name, text in long_names.items()
    }


def _field(source: Any, name: str) -> Any:
    if isinstance(source, list):
        return np.array([_field(item, name) for item in source])
    return getattr(source, name)


def shards_dataset(model: ShardModel, rounds: Sequence[Round], names: Sequence[str]) -> xr.Dataset:
    """Diagnostics of every shard in every round, dims ``(round, shard)``; `names` of coordinates.

    What only sampling shows is there where shards were sampled; NaN in rounds that sampled none.
    """
    of_reports = {
        "rows": "rows of the shard",
        "weight": "power of the prior that the shard took",
        "seconds": "wall time of the work on the shard, compilation excluded (s)",
        "compile_seconds": "wall time of compiling, or of waiting for it (s)",
        "mean": "mean of the shard's subposterior, unconstrained",
    }
    of_nuts = {
        "divergences": "diverging transitions after warm-up",
        "steps": "leapfrog steps a transition, on average",
        "step_size": "step size after warm-up",
        "accept_prob": "mean acceptance probability",
        "skew": "skewness of the unconstrained draws",
        "joint_skew": "mean of the standardised coordinate times the squared distance",
        "ess": "effective sample size",
        "r_hat": "split r_hat",
    }
    precision = {"precision": "precision of the shard's subposterior, the anchor's included"}
    dims = ("round", "shard", "coordinate", "coordinate_")
    names, reports = list(names), [this.reports for this in rounds]
    variables = _variables(reports, dims, of_reports)
    if any(report.nuts is not None for this in reports for report in this):
        unsampled = NutsDiagnostics._make([np.full(len(names), np.nan)] * 4 + [np.nan] * 4)
        nuts = [[unsampled if r.nuts is None else r.nuts for r in this] for this in reports]
        variables |= _variables(nuts, dims, of_nuts)
    variables |= _variables(reports, dims, precision)
    coords: dict[str, Any] = {"round": np.arange(len(rounds)), "shard": np.arange(len(reports[0]))}
    coords["coordinate"] = names
    # Diagonal weights come with one precision a coordinate.
    if "coordinate_" in variables["precision"][0]:
        coords["coordinate_"] = names
    if model.levels:
        variables |= _variables(reports, ("round", "shard", "level"), {"groups": "groups"})
        coords["level"] = [str(level) for level in model.levels]
    return xr.Dataset(variables, coords)


def rounds_dataset(rounds: Sequence[Round], names: Sequence[str]) -> xr.Dataset:
    """Tabulate the combination after every round, dims ``(round, ...)``."""
    of_rounds = {
        "movement": "largest change of a mean (posterior sds) or of a log sd",
        "noise": "Monte Carlo error that the movement is judged by (posterior sds)",
        "seconds": "wall time (s)",
    }
    strength = "precision of the anchor, in units of a shard's own; 0 without an anchor"
    sds = [np.sqrt(np.diag(this.covariance)) for this in rounds]
    dims, rounds = ("round", "coordinate"), list(rounds)
    variables = {
        **_variables(rounds, dims, of_rounds),
        **_variables([this.anchor for this in rounds], dims, {"strength": strength}),
        **_variables(rounds, dims, {"mean": "combined mean, unconstrained"}),
        "sd": (dims, np.array(sds), {"long_name": "combined sd, unconstrained"}),
    }
    coords = {"round": np.arange(len(rounds)), "coordinate": list(names)}
    return xr.Dataset(variables, coords)


def correction_dataset(correction: Correction, names: Sequence[str]) -> xr.Dataset:
    """Weighted points of the full posterior, and how good they are."""
    scalars = {
        "k_hat": "Pareto shape of the weights' tail",
        "emulator_error": "error of the interpolated log density (sd); NaN without interpolation",
        "sampled_shards": "shards that were asked at the points; 0 where all were",
        "nodes": "quadrature nodes an axis (grid) or in all; 0 without local effects",
        "modes": "modes of a group's effects that nodes are placed around, at most",
        "log_evidence": "log of the marginal likelihood",
        "log_evidence_error": "its Monte Carlo error",
        "modes_not_found": "share of groups whose mode was not found, averaged over the points",
        "coupling": "largest relative size of a shard's Hessian between groups",
        "landmark_log_ratio": "log of how much larger a weight would be where searches ended than "
        "any seen; minus infinity where all ended at modes",
        "discrepancy": "sd of the log weights of the combination's own points",
        "seconds": "wall time (s)",
        "compile_seconds": "what of it the slowest shards spent compiling (s)",
    }
    per_coordinate = {
        "tail_log_ratio": "log of how much larger a weight would be far out than any seen",
        "integration_error": "change of the mean with other nodes or another rule (posterior sds)",
        "integration_sd_error": "change of the log sd, likewise",
        "sampling_error": "error of the mean by asking a sample of the shards, or an emulator of "
        "the rows of an earlier fit (posterior sds)",
        "sampling_sd_error": "error of the log sd, likewise",
    }
    of_estimate = {
        "mean": "mean of the full posterior",
        "error": "Monte Carlo error of the mean (posterior sds)",
        "sd_error": "relative Monte Carlo error of the sd",
    }
    of_points = {
        "points": "unconstrained points",
        "weights": "smoothed weights",
        "iteration": "iteration in which the point was drawn",
    }
    estimate, dims = correction.estimate, ("coordinate",)
    sd = np.sqrt(np.diag(estimate.covariance))
    variables = {
        **_variables(correction, dims, scalars),
        **_variables(estimate, dims, {"ess": "independent draws as good for the means"}),
        **_variables(correction, dims, per_coordinate),
        **_variables(estimate, dims, of_estimate),
        "sd": (dims, sd, {"long_name": "sd of the full posterior"}),
        **_variables(correction, ("point", "coordinate"), of_points),
    }
    if correction.known is not None:
        variables |= _known(correction.known)
    names = list(names)
    if correction.coordinates is not None:
        names = [names[i] for i in correction.coordinates]
    return xr.Dataset(variables, {"coordinate": names})


def _known(known: Known) -> dict[str, Any]:
    of_points = {
        "log_density": "log of the prior times the likelihood of all rows, at the points",
        "log_proposal": "log density of what the points were drawn from",
    }
    of_marks = {
        "marks": "unconstrained points far out along each coordinate, and where searches ended",
        "mark_log_density": "log of the prior times the likelihood of all rows there",
        "mark_log_proposal": "log density there of what the points were drawn from; far out "
        "in many dimensions, of the leading coordinate alone",
        "mark_leader": "number of the coordinate along which a mark is far out; -1: a search ended",
    }
    return {
        **_variables(known, ("point",), of_points),
        **_variables(known, ("mark", "coordinate"), of_marks),
    }


def seen_dataset(hashes: np.ndarray) -> xr.Dataset:
    """Tabulate by what the groups of a fit are known again."""
    text = "64-bit hash of the key of each outermost group, sorted"
    return xr.Dataset({"key_hash": ("group", hashes, {"long_name": text})})


def _storable(value: Any) -> Any:
    """Turn what netCDF has no attribute type for into JSON."""
    storable = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if storable else json.dumps(value)
