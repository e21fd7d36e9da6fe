"""Groups that the fit has seen among those of some rows, and their effects.

Keys of the tree and of a partition meet in the form in which the fit told groups apart
(:mod:`..frame.keys`), whatever dtype either holds them in.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..frame.key_kinds import read_keys
from ..frame.keys import Form, Keys, common_form, conflicts, in_form
from ..frame.labels import readable
from ..result.names import variable_name
from ..result.recall import Recalled
from ..shard.at_draws import Design, Normals, make_design
from ..shard.effects import effects_per_unit
from ..shard.local_sites import returned
from ..shard.tiers import Tier
from .few_draws import representative
from .frame import dim_of, keys_of, why_none
from .summary import GIVEN_SHARED, given_node

_MORE = 6

Effects = Normals | dict[str, np.ndarray]


class KnownGroups:
    """The groups that a fit has seen, and their effects.

    Parameters
    ----------
    names : list
        Of the key columns, outermost first.
    keys : list of Keys
        Of all groups, for each key column down to theirs.
    effects : Normals or dict of arrays
        Those of the groups, in the same order; draws of local sites ``(S, ...)`` with the groups
        along an axis that `axes` names.
    """

    def __init__(
        self, names: Sequence[str], keys: Sequence[Keys], effects: Effects, axes: dict[str, int]
    ) -> None:
        self.names, self.keys, self.effects, self.axes = list(names), list(keys), effects, axes
        self._indices: dict[tuple[Form, ...], pd.Index] = {}

    def places(self, keys: Sequence[Keys], columns: Sequence[Hashable]) -> np.ndarray:
        """Return the place of each group among those known, -1 for those never seen.

        Raises
        ------
        ValueError
            If keys are of another kind than those of the fit.
        """
        forms = []
        for here, known, name in zip(keys, self.keys, columns, strict=True):
            kinds = [*dict.fromkeys([*known.kinds, *here.kinds])]
            if conflicts(kinds):
                raise ValueError(
                    f"key {name!r}: {' and '.join(here.kinds)} where the fit had "
                    f"{' and '.join(known.kinds)}, so that no group would be known: convert the "
                    "column to what it was"
                )
            forms.append(common_form(kinds))
        wanted = [in_form(one, form) for one, form in zip(keys, forms, strict=True)]
        return np.asarray(self._index(tuple(forms)).get_indexer(_joined(wanted)))

    def effects_at(self, places: np.ndarray) -> Effects:
        """Take the effects of groups by their places; those of groups never seen mean nothing."""
        if isinstance(self.effects, Normals):
            return Normals(*(part if part is None else part[places] for part in self.effects))
        return {
            name: np.take(values, places, axis=self.axes[name], mode="wrap")
            for name, values in self.effects.items()
        }

    def first(self, draws: int) -> KnownGroups:
        """Return the same groups with their first few draws, if their effects are draws."""
        if isinstance(self.effects, Normals):
            return self
        few = {name: values[:draws] for name, values in self.effects.items()}
        return KnownGroups(self.names, self.keys, few, self.axes)

    def _index(self, forms: tuple[Form, ...]) -> pd.Index:
        if forms not in self._indices:
            values = [in_form(one, form) for one, form in zip(self.keys, forms, strict=True)]
            self._indices[forms] = _joined(values)
        return self._indices[forms]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indices": {}}

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.names, self.keys, self.effects)


def _known_groups(
    local: xr.Dataset, tier: Tier, effects: Effects, axes: dict[str, int]
) -> KnownGroups:
    """Read the keys of a tree's groups, those of a level and of all around it."""
    of_groups = dim_of(local, variable_name(tier.sites[0].name))
    named = keys_of(local, of_groups)[: tier.level + 1]
    names = [name for name, _ in named]
    keys = [read_keys(pd.Series(values)) for _, values in named]
    return KnownGroups(names, keys, effects, axes)


def effects_of(
    tree: xr.DataTree, recalled: Recalled, draws: int
) -> tuple[tuple[KnownGroups, ...], Design]:
    """Take the effects of groups out of a tree, and choose the draws that they go with.

    These are `draws`, or more where there are many shared parameters and effects a group. There are
    groups of each level that has effects, the outermost first; none of rows.

    Raises
    ------
    ValueError
        If the model has effects of groups, and the tree none.
    """
    model = recalled.model
    d, q = model.dim, effects_per_unit(model) if model.local else 0
    wanted, levels = max(draws, 4 * (d + q)), returned(model)
    if not levels:
        return (), make_design(model, representative(recalled.draws, wanted))
    if "local" not in tree.children:
        raise ValueError(
            "the tree has no effects of groups, which predictions of their rows need: "
            f"{why_none(tree)}"
        )
    local = tree.children["local"]
    if GIVEN_SHARED in local.children:
        u = representative(recalled.draws, wanted)
        return _from_summary(local, levels), make_design(model, u)
    drawn = local.to_dataset()
    if "chain" not in drawn.sizes:
        raise ValueError(
            "the tree has a summary of the effects of groups, which does not say how they belong "
            "to the crossed effects: fit with local='draws' for predictions"
        )
    n = drawn.sizes["chain"] * drawn.sizes["draw"]
    which = np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(int))
    chain, draw = np.divmod(which, drawn.sizes["draw"])
    numbers = drawn["draw"].to_numpy()[draw]
    known = tuple(_from_draws(drawn, tier, chain, draw) for tier in levels)
    return known, make_design(model, recalled.draws[chain, numbers])


def _from_summary(local: xr.DataTree, levels: Sequence[Tier]) -> tuple[KnownGroups, ...]:
    """Read normal distributions of the effects of each level."""
    summary, given = local.to_dataset(), local.children[GIVEN_SHARED]
    if len(levels) == 1:
        return (_known_groups(summary, levels[0], _normals(given), {}),)
    nodes = [
        given.children[given_node(str(dim_of(summary, variable_name(tier.sites[0].name))))]
        for tier in levels
    ]
    return tuple(
        _known_groups(summary, tier, _normals(node), {})
        for tier, node in zip(levels, nodes, strict=True)
    )


def _from_draws(drawn: xr.Dataset, tier: Tier, chain: np.ndarray, draw: np.ndarray) -> KnownGroups:
    """Read draws of the effects of a level."""
    sites = {}
    at = {"chain": xr.DataArray(chain, dims="sample"), "draw": xr.DataArray(draw, dims="sample")}
    for site in tier.sites:
        array = drawn[variable_name(site.name)].isel(at)
        # Groups were set in front; the model has them along an axis of its own.
        sites[site.name] = np.moveaxis(array.to_numpy(), 1, site.axis + 1)
    return _known_groups(drawn, tier, sites, {s.name: s.axis + 1 for s in tier.sites})


def fewer(
    known: tuple[KnownGroups, ...], design: Design, recalled: Recalled, draws: int
) -> tuple[tuple[KnownGroups, ...], Design]:
    """Take fewer draws for what need not be exact, with the moments of all.

    Draws that a tree holds have only their own: several times as many are taken of these.
    """
    if all(isinstance(its.effects, Normals) for its in known):
        return known, make_design(recalled.model, representative(recalled.draws, draws))
    draws *= _MORE
    few = design._replace(u=design.u[:draws], normal=design.normal[:draws])
    return tuple(its.first(draws) for its in known), few


def _normals(given: xr.DataTree) -> Normals:
    covariance = given["covariance"].to_numpy().astype(np.float64)
    # What rounding took may leave a direction without variance.
    scale = np.einsum("gii->gi", covariance)
    tiny = 1e-10 * np.maximum(scale.max(axis=1), 1e-30)
    factor = np.linalg.cholesky(covariance + tiny[:, None, None] * np.eye(covariance.shape[1]))
    mean, slope, widening = (given[name].to_numpy() for name in ("mean", "slope", "widening"))
    changes = widening if widening.any() else None
    outer = given["outer"].to_numpy() if "outer" in given else None
    return Normals(mean, slope, changes, factor.astype(np.float32), outer)


def groups_here(
    rows: pd.DataFrame, by: Sequence[Hashable]
) -> tuple[list[np.ndarray], list[list[Keys]]]:
    """Code the groups of some rows on every level, and return their keys level by level."""
    codes: list[np.ndarray] = []
    keys: list[list[Keys]] = []
    readables: list[tuple[np.ndarray, np.ndarray]] = []
    for name in by:
        read = read_keys(rows[name])
        form = common_form(read.kinds)
        code, distinct = pd.factorize(in_form(read, form))
        values = readable(np.asarray(distinct), form, read.kinds, rows[name].dtype)
        readables.append((code, values))
        if codes:
            code, _ = pd.factorize(codes[-1] * np.int64(len(values)) + code)
        codes.append(code)
        first = np.full(code.max(initial=-1) + 1, -1)
        first[code[::-1]] = np.arange(len(code))[::-1]
        keys.append([read_keys(pd.Series(v[c[first]])) for c, v in readables])
    return codes, keys


def _joined(values: list[Any]) -> pd.Index:
    if len(values) == 1:
        return pd.Index(values[0])
    return pd.MultiIndex.from_arrays(values)
