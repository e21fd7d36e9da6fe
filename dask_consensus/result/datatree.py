"""The result: one :class:`xarray.DataTree`, readable by ArviZ and by whatever reads netCDF."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..combination.reports import Combined
from ..correction.draws import equal_weight_draws
from ..correction.importance import Correction, usable
from ..plan.plan import Plan
from ..shard.constrain import constrain
from .clock import Clock, _compiling
from .verdict import Verdict

if TYPE_CHECKING:
    from ..combination.reports import Round
    from ..correction.importance import Correction
    from ..model.model import ShardModel


def result(
    plan: Plan,
    combined: Combined,
    corrected: Correction | None,
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
    if corrected is not None:
        groups["correction"] = correction_dataset(model, corrected)
    if corrected is not None and usable(corrected):
        rng = np.random.default_rng([options.seed, 1])
        shape = (options.num_chains, options.num_samples)
        groups["uncorrected"] = groups["posterior"]
        groups["posterior"] = _posterior(plan, equal_weight_draws(corrected.estimate, shape, rng))
    # JSON has no infinity: an error of unknown size is null.
    sizes = [float(size) if np.isfinite(size) else None for size in verdict.error]
    accuracy = dict(zip(model.coordinate_names(), sizes, strict=True))
    return to_datatree(
        groups,
        {
            **asdict(options),
            "n_shards": plan.n_shards,
            "by": [str(key) for key in plan.bindings.layout.by],
            "sampling_time": clock.total(),
            "profile": clock.seconds | {"compile": _compiling(combined, corrected)},
            "verdict": verdict.text,
            "verdict_good": int(verdict.good),
            "accuracy": accuracy,
        },
    )


def _posterior(plan: Plan, draws: np.ndarray) -> xr.Dataset:
    example = plan.example
    values = constrain(plan.model, draws, example.arguments, example.rows, example.groups)
    labels = {c.argument: c.categories for c in plan.bindings.layout.columns if c.categories}
    return posterior_dataset(plan.model, values, labels)


_LIBRARIES = ("dask_consensus", "numpyro", "jax", "dask", "xarray", "numpy")


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
    """Diagnostics of every shard in every round, dims ``(round, shard)``."""
    per_shard = {
        "rows": "rows of the shard",
        "weight": "power of the prior that the shard took",
        "divergences": "diverging transitions after warm-up",
        "steps": "leapfrog steps a transition, on average",
        "step_size": "step size after warm-up",
        "accept_prob": "mean acceptance probability",
        "seconds": "wall time of sampling, compilation excluded (s)",
        "compile_seconds": "wall time of compiling, or of waiting for it (s)",
    }
    per_coordinate = {
        "mean": "mean of the unconstrained draws",
        "skew": "skewness of the unconstrained draws",
        "joint_skew": "mean of the standardised coordinate times the squared distance",
        "ess": "effective sample size",
        "r_hat": "split r_hat",
    }

    def table(name: str) -> np.ndarray:
        return np.array([[getattr(report, name) for report in one.reports] for one in rounds])

    dims = ("round", "shard")
    variables: dict[str, Any] = {
        name: (dims, table(name), {"long_name": text}) for name, text in per_shard.items()
    }
    for name, text in per_coordinate.items():
        variables[name] = ((*dims, "coordinate"), table(name), {"long_name": text})
    precision = table("precision")
    extra = ("coordinate", "coordinate_") if precision.ndim == 4 else ("coordinate",)
    text = "precision of the unconstrained draws, the anchor's included"
    variables["precision"] = ((*dims, *extra), precision, {"long_name": text})
    if model.levels:
        variables["groups"] = ((*dims, "level"), table("groups"), {"long_name": "groups"})
    names = model.coordinate_names()
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
        "strength": "precision of the anchor, in units of a site's",
        "movement": "largest change of a mean (posterior sds) or of a log sd",
        "noise": "Monte Carlo error that the movement is judged by (posterior sds)",
        "seconds": "wall time (s)",
    }
    variables: dict[str, Any] = {
        name: ("round", [getattr(one, name) for one in rounds], {"long_name": text})
        for name, text in per_round.items()
    }
    dims = ("round", "coordinate")
    means = np.array([one.mean for one in rounds])
    sds = np.array([np.sqrt(np.diag(one.covariance)) for one in rounds])
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
        "modes_not_found": "largest share of groups whose mode was not found",
        "coupling": "largest relative size of a shard's Hessian between groups",
        "seconds": "wall time (s)",
        "compile_seconds": "what of it the slowest shards spent compiling (s)",
    }
    per_coordinate = {
        "beyond": "log of how much larger a weight would be far out than any seen",
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
    variables["turn"] = ("point", correction.turn, {"long_name": "proposal of the point"})
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
