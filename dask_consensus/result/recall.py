"""What a tree remembers of its fit, so that its model can be evaluated elsewhere, months later."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..model.model import ShardModel
from ..model.remembered import meet_again, remember
from .names import variable_name

if TYPE_CHECKING:
    from ..plan.plan import Plan

UNCONSTRAINED = "unconstrained_posterior"


class Argument(NamedTuple):
    """How a column fed an argument of the model; see :class:`..frame.arrays.Column`."""

    name: str
    column: str
    kind: str
    level: int
    dtype: str
    categories: list[Any]  # numbers or text; others are written as text


class Recalled(NamedTuple):
    """A fit as its tree tells it."""

    model: ShardModel
    by: list[str]
    arguments: tuple[Argument, ...]
    draws: np.ndarray  # (chains, draws, d)

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype in which the model receives each argument that a column feeds."""
        return {argument.name: argument.dtype for argument in self.arguments}


def memory_of(plan: Plan) -> dict[str, Any]:
    """Say of a fit what :func:`recall` needs, in terms of JSON."""
    arguments = [
        Argument(
            column.argument,
            str(column.column),
            column.kind,
            column.level,
            str(plan.example.arguments[column.argument].dtype),
            [_plain(entry) for entry in column.categories],
        )._asdict()
        for column in plan.bindings.layout.columns
    ]
    return {**remember(plan.model), "arguments": arguments}


def unconstrained_dataset(model: ShardModel, draws: np.ndarray) -> xr.Dataset:
    """Lay out draws ``(chains, draws, d)`` site by site, before they are constrained."""
    variables, begin = {}, 0
    for site in model.shared:
        values = draws[..., begin : begin + site.size].reshape(
            *draws.shape[:2], *site.unconstrained
        )
        begin += site.size
        name = variable_name(site.name)
        dims = [f"{name}_unconstrained_dim_{axis}" for axis in range(len(site.unconstrained))]
        variables[name] = (("chain", "draw", *dims), values)
    coords = {"chain": np.arange(draws.shape[0]), "draw": np.arange(draws.shape[1])}
    return xr.Dataset(variables, coords)


def recall(tree: xr.DataTree, function: Callable[..., Any], *, check_verdict: bool) -> Recalled:
    """Read a fit back, and check that the model is its own.

    Raises
    ------
    ValueError
        If the tree is no fit's, or another model's, or its verdict is bad and that is not accepted.
    """
    told = tree.attrs.get("model")
    if told is None or UNCONSTRAINED not in tree.children:
        raise ValueError(
            "the tree does not say what was fitted: it must be what ddf.consensus.fit returned, "
            "as it was, or read again from netCDF or Zarr by xarray.open_datatree"
        )
    if check_verdict and not int(tree.attrs["verdict_good"]):
        raise ValueError(
            f"the fit is not to be relied on ({tree.attrs['verdict']}); pass check_verdict=False "
            "to use it all the same"
        )
    told = json.loads(told)
    arguments = tuple(Argument(**argument) for argument in told["arguments"])
    dtypes = {argument.name: argument.dtype for argument in arguments}
    model = meet_again(function, told, dtypes)
    posterior = tree[UNCONSTRAINED]
    parts = [posterior[variable_name(site.name)].to_numpy() for site in model.shared]
    flat = [part.reshape(*part.shape[:2], -1) for part in parts]
    return Recalled(model, told["levels"], arguments, np.concatenate(flat, axis=2))


def _plain(entry: Any) -> Any:
    """Turn a category into what JSON holds."""
    entry = entry.item() if isinstance(entry, np.generic) else entry
    return entry if isinstance(entry, bool | int | float | str) else str(entry)
