"""What a tree remembers of its fit, so that its model can be evaluated elsewhere, months later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..frame.contents import changed
from ..model.model import ShardModel
from ..model.remembered import example, meet_again, remember
from ..shard.additivity import example_entries
from ..shard_data import Contents, ShardData
from .categories import written
from .names import variable_name

if TYPE_CHECKING:
    from ..plan.plan import Plan

UNCONSTRAINED = "unconstrained_posterior"
SEEN = "group_keys"
_ALIKE = 1e-3  # relative to its size, by which a density may differ for being computed elsewhere
_AT = 0.3  # either side of which densities are remembered, in every shared coordinate


class Argument(NamedTuple):
    """How a column fed an argument of the model; see :class:`..frame.arrays.Column`.

    A matrix has one of these for each of its columns, one after the other.
    """

    name: str
    column: str
    kind: str
    level: int
    dtype: str
    categories: list[Any]  # as `.categories` writes them
    entry: int = -1
    item: int = -1


class Recalled(NamedTuple):
    """A fit as its tree tells it."""

    model: ShardModel
    by: list[str]
    arguments: tuple[Argument, ...]
    draws: np.ndarray  # (chains, draws, d)
    n_rows: int | None  # that were fitted; None in a tree of an older version
    contents: Contents | None  # what they held; likewise
    responses: tuple[str, ...] = ()  # arguments that are only observed

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype in which the model receives each argument that a column feeds.

        Of a matrix it is that of a row: three floats are ``(3,)float32``.
        """
        return _dtypes(self.arguments)

    @property
    def widths(self) -> dict[str, int]:
        """The numbers of columns of the arguments that receive matrices."""
        return dict(Counter(argument.name for argument in self.arguments if argument.entry >= 0))


def memory_of(plan: Plan) -> dict[str, Any]:
    """Say of a fit what :func:`recall` needs, in terms of JSON."""
    arguments = [argument._asdict() for argument in arguments_of(plan)]
    contents = plan.survey.contents._asdict()
    levels = range(len(plan.bindings.layout.by))
    return {
        **remember(plan.model),
        "arguments": arguments,
        "contents": contents,
        "responses": list(plan.bindings.layout.responses),
        "kinds": [[found.what for found in plan.survey.found[level]] for level in levels],
        "densities": densities(plan.model, _dtypes(arguments_of(plan))),
    }


def densities(model: ShardModel, dtypes: Mapping[str, str]) -> dict[str, list[float | None]]:
    """Sum each term of a model on made-up data, at two points: by what a density is known again.

    The data are ones, which few likelihoods refuse, in every group. Of a model that takes no such
    data nothing is known.
    """
    arguments, groups = example(model, dtypes)
    made = {
        name: np.arange(len(zeros), dtype=zeros.dtype) % groups[model.codes[name]]
        if name in model.codes
        else np.ones_like(zeros)
        for name, zeros in arguments.items()
    }
    rows = np.ones(len(next(iter(made.values()))), bool)
    data = ShardData(made, rows, tuple(np.ones(count, bool) for count in groups))
    points = np.array([[_AT], [-_AT]]) * np.ones(model.dim)
    try:
        there = example_entries(model, data, points)
    except (TypeError, ValueError, ZeroDivisionError):
        return {}
    sums = {term.name: [float(np.sum(at[term.name])) for at in there] for term in model.terms}
    return {
        name: [value if np.isfinite(value) else None for value in values]
        for name, values in sums.items()
    }


def other_densities(
    then: Mapping[str, list[float | None]], now: Mapping[str, list[float | None]]
) -> list[str]:
    """Name the terms of a model whose densities are others than they were."""
    return [name for name, sums in then.items() if _unlike(sums, now, name)]


def _unlike(
    then: Sequence[float | None], sums: Mapping[str, Sequence[float | None]], name: str
) -> bool:
    """Tell whether a term is another now; of what was no number nothing is said."""
    now = sums.get(name)
    if now is None:
        return False
    return any(
        (a is None) != (b is None)
        or (a is not None and b is not None and abs(a - b) > _ALIKE * max(abs(a), abs(b), 1.0))
        for a, b in zip(then, now, strict=True)
    )


def check_same_data(recalled: Recalled, plan: Plan, *, same_keys: bool) -> None:
    """Check that a frame for which a plan was made anew holds the rows that were fitted.

    Raises
    ------
    ValueError
        If it does not, saying what differs. Without `same_keys` values are not compared: what is
        summed up of a column depends on the keys.
    """
    here = arguments_of(plan)
    if len(recalled.arguments) != len(here):
        raise ValueError(
            f"{len(here)} columns feed the model, where {len(recalled.arguments)} did in the fit: "
            "lists of another length, or other columns in columns="
        )
    for then, now in zip(recalled.arguments, here, strict=True):
        for what in ("kind", "level", "dtype", "categories"):
            if getattr(then, what) != getattr(now, what):
                raise ValueError(
                    f"column {now.column!r} (argument {now.name!r}): {what} {getattr(now, what)!r},"
                    f" where the fit had {getattr(then, what)!r}; pass the frame that was fitted, "
                    "or fit this one"
                )
    check_number(recalled, plan.survey.rows)
    if same_keys:
        layout = plan.bindings.layout
        names = [*layout.by, *(column.label for column in layout.direct)]
        check_contents(recalled, plan.survey.contents, names)


def check_number(recalled: Recalled, rows: int, hint: str = "") -> None:
    """Check that so many rows were fitted.

    Raises
    ------
    ValueError
        If not, with a hint to what else can be done.
    """
    fitted = recalled.n_rows
    if fitted is not None and rows != fitted:
        raise ValueError(
            f"the frame has {rows:,} rows, and the fit was given {fitted:,}: only rows that it was "
            f"given can be left out. Pass the frame that was fitted, or fit this one{hint}"
        )


def check_contents(recalled: Recalled, contents: Contents, names: Sequence[Hashable]) -> None:
    """Check that rows hold what was fitted; `names` are of the keys, then of the columns.

    Raises
    ------
    ValueError
        If they do not, naming the columns that differ.
    """
    if recalled.contents is None:
        return
    others = changed(recalled.contents, contents)
    if any(others):
        which = ", ".join(repr(n) for n, other in zip(names, others, strict=True) if other)
        raise ValueError(
            f"the frame is not the one that was fitted: other values in {which}. Pass that one, or "
            "fit this one"
        )


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


def recall(
    tree: xr.DataTree,
    function: Callable[..., Any],
    *,
    check_verdict: bool,
    check_densities: bool = True,
) -> Recalled:
    """Read a fit back, and check that the model is its own, by its densities unless told not to.

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
    dtypes = _dtypes(arguments)
    model = meet_again(function, told, dtypes)
    then = told.get("densities", {}) if check_densities else {}
    now = densities(model, dtypes) if then else {}
    others = other_densities(then, now) if now else []
    if others:
        raise ValueError(
            "the model is not the one that was fitted: the density of "
            f"{', '.join(map(repr, others))} is another at the same values (another prior, another "
            "distribution of the rows, or another constant): pass that model, or fit this one"
        )
    posterior = tree[UNCONSTRAINED]
    parts = [posterior[variable_name(site.name)].to_numpy() for site in model.shared]
    flat = [part.reshape(*part.shape[:2], -1) for part in parts]
    fitted, held = tree.attrs.get("n_rows"), told.get("contents")
    return Recalled(
        model,
        told["levels"],
        arguments,
        # Laid out alike, whether in memory or from a file: sums are the same to the last bit.
        np.ascontiguousarray(np.concatenate(flat, axis=2)),
        None if fitted is None else int(fitted),
        None if held is None else _contents(held),
        tuple(told.get("responses", ())),
    )


def _dtypes(arguments: Sequence[Argument]) -> dict[str, str]:
    widths = Counter(argument.name for argument in arguments)
    return {
        name: dtype if entry < 0 else f"({widths[name]},){dtype}"
        for name, _, _, _, dtype, _, entry, _ in arguments
    }


def arguments_of(plan: Plan) -> list[Argument]:
    """Say how columns feed the arguments of a model."""
    return [
        Argument(
            column.argument,
            str(column.column),
            column.kind,
            column.level,
            str(plan.example.arguments[column.argument].dtype),
            [written(entry) for entry in column.categories],
            column.entry,
            column.item,
        )
        for column in plan.bindings.layout.columns
    ]


def _contents(held: Mapping[str, Any]) -> Contents:
    """Read what rows held from JSON, which has lists for tuples."""
    return Contents(tuple(held["checksums"]), tuple(map(tuple, held["sums"])))
