"""Leave-one-out cross-validation of rows, where they lie.

Draws of the shared parameters and of the effects of each group give the log likelihood of each row;
the rest is importance sampling (:mod:`.psis`), row by row, so that nothing but two numbers a row
leaves a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from ..cluster.tasks import broadcast
from ..result.recall import recall
from ..shard.effects import unit_level
from ..shard.mixtures import RowSite
from ..shard.predictive import Design, log_likelihoods, row_sites
from .known import KnownGroups, effects_of
from .psis import good_k, leave_out
from .rows import RowReader, reader

DRAWS = 400
COLUMNS = ("elpd", "lpd", "pareto_k")


def pointwise(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any],
    *,
    columns: Mapping[str, Hashable] | None = None,
    draws: int = DRAWS,
    check_verdict: bool = True,
) -> dd.DataFrame:
    """Leave out each row of a frame; see :meth:`..accessor.ConsensusAccessor.pointwise`."""
    if draws < 50:
        raise ValueError(f"draws must be at least 50, to fit the tail of weights, not {draws}")
    recalled = recall(tree, model, check_verdict=check_verdict)
    sites = row_sites(recalled.model, recalled.dtypes)
    known, design = effects_of(tree, recalled, draws)
    level = None if known is None else unit_level(recalled.model)
    everything = {argument.name for argument in recalled.arguments}
    task = _Task(reader(frame, recalled, everything, columns or {}, level), sites)
    taken = [name for name in COLUMNS if name in frame.columns]
    if taken:
        raise ValueError(f"the frame has a column {taken[0]!r} already: drop or rename it first")
    added = {name: pd.Series(dtype=float) for name in COLUMNS}
    meta = pd.concat([frame._meta, pd.DataFrame(added, frame._meta.index)], axis=1)
    return frame.map_partitions(
        _left_out,
        broadcast(task),
        broadcast((known, design)),
        meta=meta,
        enforce_metadata=False,
        token=f"loo-{tokenize(task.reader.token, sites, design, known)}",
    )


def loo(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any],
    *,
    columns: Mapping[str, Hashable] | None = None,
    draws: int = DRAWS,
    check_verdict: bool = True,
) -> Any:
    """Estimate how well rows are predicted; see :meth:`..accessor.ConsensusAccessor.loo`."""
    lazy = pointwise(frame, tree, model, columns=columns, draws=draws, check_verdict=check_verdict)
    told = lazy[list(COLUMNS)].compute()
    n = len(told)
    if not n:
        raise ValueError("the frame has no rows to leave out")
    fitted = tree.attrs.get("n_rows")
    if fitted is not None and n != int(fitted):
        raise ValueError(
            f"the frame has {n:,} rows, and the fit was given {int(fitted):,}: only rows that it "
            "was given can be left out. Pass the frame that was fitted, or fit this one; for some "
            "of the rows that were fitted, pointwise() has what is added up here"
        )
    elpd, lpd, k = (told[name].to_numpy() for name in COLUMNS)
    limit = good_k(draws)
    index = {"row": np.arange(n)}
    told_of = {
        "elpd": float(elpd.sum()),
        "se": float(np.sqrt(n * elpd.var())),
        "p": float((lpd - elpd).sum()),
        "n_samples": draws,
        "n_data_points": n,
        "warning": bool((k > limit).any()),
        "elpd_i": xr.DataArray(elpd, index, ["row"], name="elpd_i"),
        "pareto_k": xr.DataArray(k, index, ["row"], name="pareto_k"),
        "scale": "log",
        "good_k": limit,
    }
    return _of_arviz(told_of)


def _of_arviz(told: dict[str, Any]) -> Any:
    """Make what ``az.compare`` of the ArviZ that is installed accepts.

    Raises
    ------
    ImportError
        If there is none.
    """
    try:
        from arviz_stats.utils import ELPDData
    except ImportError:  # without arviz-base, which ArviZ brings from version 1 on
        pass
    else:
        return ELPDData(kind="loo", **told)
    try:
        from arviz.stats.stats_utils import ELPDData as Before
    except ImportError as error:
        message = "loo gives what ArviZ compares models by: pip install arviz"
        raise ImportError(message, name="arviz") from error
    names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    renamed = {names.get(name, name): value for name, value in told.items()}
    renamed["loo_i"] = renamed["loo_i"].rename("loo_i")
    return Before(data=list(renamed.values()), index=list(renamed))


class _Task(NamedTuple):
    reader: RowReader
    sites: tuple[RowSite, ...]


def _left_out(
    partition: pd.DataFrame, task: _Task, given: tuple[KnownGroups | None, Design]
) -> pd.DataFrame:
    """Leave out the rows of a partition, one at a time; runs on a worker."""
    known, design = given
    values = np.empty((len(partition), len(COLUMNS)))
    if len(partition):
        blocks, new = task.reader.read(partition, known)
        if new.any():
            raise ValueError(
                f"{np.count_nonzero(new):,} rows of a partition are of groups that the fit has not "
                "seen: only rows that it was given can be left out"
            )
        for i, block in enumerate(blocks):
            named = (block.numbers, i)
            likely = log_likelihoods(task.reader.model, task.sites, design, block.rows, named)
            values[block.some] = np.column_stack(leave_out(likely))
    added = pd.DataFrame(values, partition.index, list(COLUMNS))
    return pd.concat([partition, added], axis=1)
