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
from ..shard.predictive import Normals
from .frame import group_dim

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
            return Normals(*(values[places] for values in self.effects))
        return {
            name: np.take(values, places, axis=self.axes[name], mode="wrap")
            for name, values in self.effects.items()
        }

    def _index(self, forms: tuple[Form, ...]) -> pd.Index:
        if forms not in self._indices:
            values = [in_form(one, form) for one, form in zip(self.keys, forms, strict=True)]
            self._indices[forms] = _joined(values)
        return self._indices[forms]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indices": {}}

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.names, self.keys, self.effects)


def known_groups(
    local: xr.Dataset, level: int, effects: Effects, axes: dict[str, int]
) -> KnownGroups:
    """Read the keys of a tree's groups, those of the innermost `level` and of all around it."""
    of_groups = group_dim(local)
    named = [(str(n), c.to_numpy()) for n, c in local.coords.items() if c.dims == (of_groups,)]
    names = [name for name, _ in named[: level + 1]]
    keys = [read_keys(pd.Series(values)) for _, values in named[: level + 1]]
    return KnownGroups(names, keys, effects, axes)


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
