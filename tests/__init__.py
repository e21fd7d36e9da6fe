"""Helpers that more than one test file needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd

# One line to change when the defaults do.
QUICK: dict[str, Any] = {
    "method": "consensus",
    "correct": False,
    "local": None,
    "num_warmup": 300,
    "num_samples": 500,
    "num_chains": 1,
    "progress": False,
}

# What ArviZ calls the estimates of each unit, their sum and the effective number of parameters.
_BEFORE_1 = version("arviz").startswith("0.")
LOO_I, ELPD_LOO, P_LOO = ("loo_i", "elpd_loo", "p_loo") if _BEFORE_1 else ("elpd_i", "elpd", "p")

OSIC = "osic_pulmonary_fibrosis.csv"


def fit(frame: dd.DataFrame, model: Any, **options: Any) -> Any:
    """Fit, briefly unless told otherwise.

    One-shot combinations often get a bad verdict, rightly: what they are worth is tested here by
    other means.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not to be relied on", UserWarning)
        return frame.consensus.fit(model, **(QUICK | options))


def plan(frame: dd.DataFrame, model: Any, **options: Any) -> Any:
    options = {k: v for k, v in (QUICK | options).items() if k != "progress"}
    return frame.consensus.plan(model, **options)


def from_pandas(frame: pd.DataFrame, npartitions: int = 3) -> dd.DataFrame:
    return dd.from_pandas(frame, npartitions=npartitions, sort=False)


@contextmanager
def raise_if_dask_computes() -> Iterator[None]:
    """Raise if anything calls a scheduler."""

    def scheduler(*_: Any, **__: Any) -> None:
        raise RuntimeError("Dask computed something")

    with dask.config.set(scheduler=scheduler):
        yield


def data_file(name: str) -> Path | None:
    """A file of real data that the package may not redistribute, where there is a copy."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    path = Path(os.environ.get("DASK_CONSENSUS_DATA", default)) / name
    return path if path.is_file() else None
