"""What a variable or dimension of the result is called, and the entries along it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..frame.key_kinds import read_keys
from ..frame.keys import common_form, conflicts, in_form
from ..frame.labels import readable
from ..model.model import ShardModel

_TIMES = ("times", "times with a zone", "dates", "durations")


def variable_name(site: str) -> str:
    """Name a variable or dimension after a site or plate; a slash would be a path in the tree."""
    name = site.replace("/", ".")
    return f"{name}_" if name in ("chain", "draw") else name


def named_columns(names: Sequence[Hashable]) -> str:
    """Name columns in an error: ``a column 'x'``, ``columns 'x' and 'y'``."""
    *first, last = [repr(name) for name in names]
    return f"columns {', '.join(first)} and {last}" if first else f"a column {last}"


def axis_labels(
    model: ShardModel, labels: Mapping[str, Sequence[Any]], site: str, axis: int
) -> np.ndarray | None:
    """Return the labels of the entries along an axis of a site, where it has any.

    `labels` are those that arguments have: their categories, or the columns of a matrix.
    """
    sources = model.labelled.get(site, ())
    entries = labels.get(sources[axis], ()) if axis < len(sources) else ()
    return storable_labels(entries) if len(entries) else None


def coordinate_labels(model: ShardModel, labels: Mapping[str, Sequence[Any]]) -> list[str]:
    """Name each of the ``d`` coordinates of ``u`` by the labels of its entry: ``beta[dose]``.

    Entries without labels have their numbers, as have those of vectors whose unconstrained form has
    another shape, and all of them where two labels read alike.
    """
    names = []
    for site in model.shared:
        alike = site.unconstrained == site.shape
        axes = range(len(site.unconstrained))
        entries = [axis_labels(model, labels, site.name, a) if alike else None for a in axes]
        for index in np.ndindex(site.unconstrained):
            at = [str(i if e is None else e[i]) for e, i in zip(entries, index, strict=True)]
            names.append(site.name + (f"[{', '.join(at)}]" if at else ""))
    return names if len(set(names)) == len(names) else model.coordinate_names()


def storable_labels(entries: Sequence[Any]) -> np.ndarray:
    """Turn labels that no file can hold (intervals, say) into text.

    Times, dates and durations are kept, those with a zone in UTC, as keys are.
    """
    labels = np.asarray(entries)
    if labels.ndim == 1 and labels.dtype != object:
        return labels
    keys = read_keys(pd.Series(list(entries), dtype=object))
    if keys.kinds and keys.kinds[0] in _TIMES and not conflicts(keys.kinds):
        form = common_form(keys.kinds)
        return readable(np.asarray(in_form(keys, form)), form, keys.kinds, None)
    return np.array(list(map(str, entries)))
