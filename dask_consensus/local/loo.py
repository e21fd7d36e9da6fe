"""Leave-one-out cross-validation, of rows or of groups: which of them, and what is added up.

How they are left out is in :mod:`.rows_left_out` and :mod:`.groups_left_out`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr

from ..result.recall import Recalled, recall
from .groups_left_out import LeftGroups, groups_left_out
from .psis import Left, good_k
from .rows_left_out import all_rows_left_out, rows_left_out
from .subsample import LEAST, Estimate

Unit = Literal["row", "group"]

_GROUPS = 250_000  # of a partition
_DRAWS, _MOST_DRAWS, _ROWS = 400, 4_000, 20_000_000  # rows times draws that cost next to nothing


def pointwise(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any],
    *,
    unit: Unit,
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable] | None,
    draws: int | None,
    check_verdict: bool,
) -> dd.DataFrame:
    """Leave out each row or group; see :meth:`..accessor.ConsensusAccessor.pointwise`."""
    recalled, draws = _asked(tree, model, unit, by, draws, check_verdict)
    if unit == "row":
        return rows_left_out(frame, tree, recalled, columns or {}, draws)
    groups = groups_left_out(frame, model, recalled, by, columns or {}, draws)
    table = _table(groups)
    return dd.from_pandas(table, npartitions=-(-len(table) // _GROUPS), sort=False)


def loo(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any],
    *,
    unit: Unit,
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable] | None,
    draws: int | None,
    subsample: int | None,
    check_verdict: bool,
) -> Any:
    """Estimate how well rows or groups are predicted; see `ConsensusAccessor.loo`."""
    _elpd_data()  # before anything is computed
    recalled, draws = _asked(tree, model, unit, by, draws, check_verdict)
    if unit == "group":
        if subsample is not None:
            raise ValueError("subsample= is for rows: all groups are left out with unit='group'")
        groups = groups_left_out(frame, model, recalled, by, columns or {}, draws)
        order = groups.groups.order()
        left = Left(*(part[order] for part in groups.left))
        coords = groups.groups.coords(order)
        return _added_up(left, groups.groups.dim, coords, groups.draws)
    if subsample is not None and subsample < LEAST:
        raise ValueError(f"subsample must be at least {LEAST} rows, not {subsample}")
    found, draws = all_rows_left_out(frame, tree, recalled, columns or {}, draws, subsample)
    if isinstance(found, Left):
        return _added_up(found, "row", {"row": np.arange(len(found.elpd))}, draws)
    return _estimated(found, recalled.n_rows, draws)


def _asked(
    tree: xr.DataTree,
    model: Callable[..., Any],
    unit: Unit,
    by: Hashable | Sequence[Hashable] | None,
    draws: int | None,
    check_verdict: bool,
) -> tuple[Recalled, int]:
    """Read the fit back, once it is known that what is asked can be; and say at how many draws."""
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be 'row' or 'group', not {unit!r}")
    if by is not None and unit == "row":
        raise ValueError("by= names the groups that are left out: pass unit='group' with it")
    if draws is not None and draws < 50:
        raise ValueError(f"draws must be at least 50, to fit the tail of weights, not {draws}")
    recalled = recall(tree, model, check_verdict=check_verdict)
    if draws is None:
        draws = max(_DRAWS, min(_MOST_DRAWS, _ROWS // max(recalled.n_rows or _ROWS, 1)))
    return recalled, draws


def _table(found: LeftGroups) -> pd.DataFrame:
    """Lay groups out as a table, in the order of their keys."""
    groups, order = found.groups, found.groups.order()
    table = {name: key[order] for name, key in groups.keys.items()}
    table |= {groups.rows: found.rows[order]}
    return pd.DataFrame(table | {n: v[order] for n, v in found.left._asdict().items()})


def _estimated(found: Estimate, n: int | None, draws: int) -> Any:
    """Tell what was estimated from some rows.

    ArviZ before 1 knows nothing of that: the rows' numbers are kept from its ``compare``, which
    would take them for those of all rows.
    """
    left, limit, index = found.left, good_k(draws), {"row": found.rows}
    told = {
        "elpd": found.elpd,
        "se": found.se,
        "p": found.p,
        "n_samples": draws,
        "n_data_points": n,
        "warning": bool((left.pareto_k > limit).any()),
        "pareto_k": xr.DataArray(left.pareto_k, index, ["row"], name="pareto_k"),
        "scale": "log",
        "good_k": limit,
        "subsampling_se": found.subsampling_se,
        "subsample_size": len(found.rows),
        "loo_subsample_observations": found.rows,
    }
    return _of_arviz(told)


def _added_up(left: Left, dim: str, coords: Mapping[str, Any], draws: int) -> Any:
    """Add up what was left out one at a time."""
    n, limit = len(left.elpd), good_k(draws)
    told = {
        "elpd": float(left.elpd.sum()),
        "se": float(np.sqrt(n * left.elpd.var())),
        "p": float((left.lpd - left.elpd).sum()),
        "n_samples": draws,
        "n_data_points": n,
        "warning": bool((left.pareto_k > limit).any()),
        "elpd_i": xr.DataArray(left.elpd, coords, [dim], name="elpd_i"),
        "pareto_k": xr.DataArray(left.pareto_k, coords, [dim], name="pareto_k"),
        "scale": "log",
        "good_k": limit,
    }
    return _of_arviz(told)


def _of_arviz(told: dict[str, Any]) -> Any:
    """Make what ``az.compare`` of the ArviZ that is installed accepts."""
    return _elpd_data()(told)


def _elpd_data() -> Callable[[dict[str, Any]], Any]:
    """Find what makes it, which differs from version to version of ArviZ.

    Raises
    ------
    ImportError
        If there is no ArviZ.
    """
    try:
        from arviz_stats import utils as since_1
    except ImportError:  # without arviz-base, which ArviZ brings from version 1 on
        pass
    else:
        if hasattr(since_1, "ELPDDataLOO"):  # arviz-stats 1.3, one class for each kind
            return functools.partial(_of_version_1_3, since_1)
        return lambda told: since_1.ELPDData(kind="loo", **told)
    try:
        from arviz.stats import stats_utils as before_1
    except ImportError as error:
        message = (
            "loo gives what ArviZ compares models by: pip install 'dask_consensus[plots]', or arviz"
        )
        raise ImportError(message, name="arviz") from error
    return functools.partial(_of_version_0, before_1)


def _of_version_1_3(utils: Any, told: dict[str, Any]) -> Any:
    if "subsampling_se" in told:
        # What was estimated of every row is kept from it; see `_estimated`.
        return utils.ELPDDataLOOSubsample(**told, elpd_loo_approx=None)
    return utils.ELPDDataLOO(**told)


def _of_version_0(stats_utils: Any, told: dict[str, Any]) -> Any:
    names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    renamed = {names.get(name, name): value for name, value in told.items()}
    if "loo_i" in renamed:
        renamed["loo_i"] = renamed["loo_i"].rename("loo_i")
    return stats_utils.ELPDData(data=list(renamed.values()), index=list(renamed))
