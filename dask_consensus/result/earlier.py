"""A fit to which rows are to be added, as its tree tells it, and whether they may be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..combination import gaussian
from ..correction.reweighted import Before
from ..correction.state import Known
from ..frame.keys import conflicts
from ..model.model import ShardModel
from .batches import Batch, batches_of
from .recall import (
    SEEN,
    UNCONSTRAINED,
    Argument,
    Recalled,
    arguments_of,
    densities,
    other_densities,
    recall,
)

if TYPE_CHECKING:
    from ..plan.plan import Plan

_AGAIN = "fit all rows together"


class EarlierFit(NamedTuple):
    """A fit as its tree tells it, for rows to be added.

    Attributes
    ----------
    recalled : Recalled
    kinds : list of lists of str
        Of the keys of each level.
    densities : dict
        Sums of the terms of its model, as `recall.densities` made them.
    seen : (groups,) array or None
        Hashes of the outermost groups' keys, sorted; None where they were not kept.
    mean : (d,) array
    covariance : (d, d) array
        Of the posterior.
    error : (d,) array
        That the verdict stated of each mean, in sds; infinite where its size was unknown.
    before : Before or None
        The correction's points; None where there was none that could be used.
    n_rows, n_groups, n_updates : int
    good : bool
    codes : tuple of str
        Of the reasons against it.
    batches : list of Batch
        What was added so far, the fit itself first.
    """

    recalled: Recalled
    kinds: list[list[str]]
    densities: dict[str, list[float | None]]
    seen: np.ndarray | None
    mean: np.ndarray
    covariance: np.ndarray
    error: np.ndarray
    before: Before | None
    n_rows: int
    n_groups: int
    n_updates: int
    good: bool
    codes: tuple[str, ...]
    batches: list[Batch]

    @property
    def sd(self) -> np.ndarray:
        """Posterior sds, ``(d,)``."""
        return np.sqrt(np.diag(self.covariance))


def earlier_fit(tree: xr.DataTree, function: Callable[..., Any]) -> EarlierFit:
    """Read what a tree says, and meet its model again.

    Raises
    ------
    ValueError
        If the tree is no fit's, or of a version that did not keep what an update needs, or of
        another model.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            "update= takes what fit returned, a DataTree, or (tree, ddf_old) with the rows that it "
            f"was fitted to; got {type(tree).__name__}"
        )
    # A planned model can say more of what differs: see check_same_model.
    recalled = recall(tree, function, check_verdict=False, check_densities=False)
    told = json.loads(tree.attrs["model"])
    if "n_updates" not in tree.attrs or "densities" not in told or recalled.n_rows is None:
        raise ValueError(
            "update=: the tree was made by a version of dask_consensus that did not keep what an "
            f"update begins from; {_AGAIN}"
        )
    error = json.loads(tree.attrs["accuracy"]).values()  # in the order of the coordinates
    mean, covariance = gaussian.moments(recalled.draws)
    reasons = json.loads(tree.attrs["verdict_reasons"])
    return EarlierFit(
        recalled=recalled,
        kinds=told["kinds"],
        densities=told["densities"],
        seen=tree[SEEN]["key_hash"].to_numpy() if SEEN in tree.children else None,
        mean=mean,
        covariance=covariance,
        error=np.array([np.inf if size is None else size for size in error], np.float64),
        before=_before(tree),
        n_rows=recalled.n_rows,
        n_groups=int(tree.attrs["n_groups"]),
        n_updates=int(tree.attrs["n_updates"]),
        good=bool(int(tree.attrs["verdict_good"])),
        codes=tuple(dict.fromkeys(reason["code"] for reason in reasons)),
        batches=batches_of(tree, recalled),
    )


def name_of(tree: xr.DataTree) -> str:
    """Name a fit by what an update begins from."""
    sha = hashlib.sha256(str(tree.attrs["model"]).encode())
    arrays = dict(tree[UNCONSTRAINED].data_vars)
    if "correction" in tree.children:
        told = tree["correction"].data_vars
        arrays |= {name: told[name] for name in ("points", *Known._fields) if name in told}
    for name in sorted(map(str, arrays)):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(arrays[name].to_numpy()).tobytes())
    return sha.hexdigest()


def _before(tree: xr.DataTree) -> Before | None:
    """Read the correction, where its weights were used."""
    if "correction" not in tree.children or "uncorrected" not in tree.children:
        return None
    told = tree["correction"].to_dataset()
    values = {
        str(name): np.asarray(array.to_numpy(), order="C") for name, array in told.data_vars.items()
    }
    if any(name not in values for name in Known._fields):
        return None
    known = Known(**{name: values[name] for name in Known._fields})
    rest: dict[str, Any] = {
        name: values[name] if values[name].ndim else values[name].item()
        for name in Before._fields
        if name != "known"
    }
    return Before(known=known, **rest)


def check_same_model(earlier: EarlierFit, plan: Plan) -> None:
    """Check that new rows are of the model that was fitted, and reach it as the old ones did.

    Raises
    ------
    ValueError
        Saying what differs.
    """
    there, here = earlier.recalled, plan.model
    now_fed = arguments_of(plan)
    if len(there.arguments) != len(now_fed):
        raise ValueError(
            f"update=: {len(now_fed)} columns feed the model, where {len(there.arguments)} did in "
            "the earlier fit: lists of another length, or other columns in columns="
        )
    for then, now in zip(there.arguments, now_fed, strict=True):
        _check_argument(then, now)
    differing = _differences(there.model, here)
    if differing:
        raise ValueError(
            f"update=: the model is not the one that was fitted: {'; '.join(differing)}. Pass that "
            f"one, or {_AGAIN}"
        )
    now_sums = densities(here, there.dtypes)
    others = other_densities(earlier.densities, now_sums)
    if others:
        raise ValueError(
            "update=: the model is not the one that was fitted: the density of "
            f"{', '.join(map(repr, others))} is another at the same values (another prior, another "
            f"distribution of the rows, or another constant). Pass that model, or {_AGAIN}"
        )
    levels = plan.bindings.layout.by
    for name, then_kinds, found in zip(levels, earlier.kinds, plan.survey.found, strict=False):
        now_kinds = [one.what for one in found]
        if conflicts([*dict.fromkeys([*then_kinds, *now_kinds])]):
            raise ValueError(
                f"update=: key {name!r} holds {' and '.join(now_kinds)}, where the earlier fit had "
                f"{' and '.join(then_kinds)}, so that no group would be known again: convert the "
                "column to what it was"
            )


def _check_argument(then: Argument, now: Argument) -> None:
    for what in ("kind", "level", "dtype", "categories"):
        if getattr(then, what) != getattr(now, what):
            remedy = "give the column the categories of the fit" if what == "categories" else ""
            remedy = remedy or "convert the column to what it was"
            raise ValueError(
                f"update=: column {now.column!r} (argument {now.name!r}): {what} "
                f"{getattr(now, what)!r}, where the earlier fit had {getattr(then, what)!r}; "
                f"{remedy}, or {_AGAIN}"
            )


def _differences(then: ShardModel, now: ShardModel) -> list[str]:
    """Say in which sites and terms two models differ."""
    if then.x64 != now.x64:
        bits = {True: "64", False: "32"}
        return [f"it was fitted in {bits[then.x64]}-bit numbers, and JAX is set to {bits[now.x64]}"]
    words = []
    for what, of_then, of_now in (
        ("site", _named(then.latents), _named(now.latents)),
        ("term", _named(then.terms), _named(now.terms)),
    ):
        for name in sorted({*of_then, *of_now}):
            one, other = of_then.get(name), of_now.get(name)
            if one is None or other is None:
                words.append(f"{what} {name!r} is in {'this one' if one is None else 'that'} alone")
                continue
            fields = [
                f"{field} {other[field]!r}, {one[field]!r} in the fit"
                for field in one
                if field != "note" and one[field] != other[field]
            ]
            if fields:
                words.append(f"{what} {name!r} has {', '.join(fields)}")
    for what in ("codes", "counts", "constants"):
        if dict(getattr(then, what)) != dict(getattr(now, what)):
            words.append(f"{what} {getattr(now, what)}, {getattr(then, what)} in the fit")
    return words


def _named(entries: Sequence[Any]) -> Mapping[str, dict[str, Any]]:
    return {entry.name: entry._asdict() for entry in entries}
