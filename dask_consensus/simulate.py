"""Simulated data in the shape of real studies, for demonstrations, tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Integers = npt.NDArray[np.int64]
# Weeks since the visit before: a few at first, then ever more. The tenth is a late extra one.
SCHEDULE = (0, 3, 2, 2, 2, 6, 12, 12, 16, 3)
# The share of patients who come to 6, 7, 8, 9 and all 10 of them.
ATTENDANCE = {6: 0.011, 7: 0.040, 8: 0.142, 9: 0.750, 10: 0.057}
SMOKING = ("Currently smokes", "Ex-smoker", "Never smoked")


class Truth(NamedTuple):
    """What a lung-function table is drawn from, in mL; defaults resemble pulmonary fibrosis.

    Mean and sd over patients of the volume at week 0 (`mu_a`, `sigma_a`) and of its weekly change
    (`mu_b`, `sigma_b`), and the sd of a single measurement (`sigma`).
    """

    mu_a: float = 2_800.0
    sigma_a: float = 800.0
    mu_b: float = -4.0
    sigma_b: float = 4.0
    sigma: float = 130.0


def lung_function(
    n_patients: int = 176, *, seed: int = 0, truth: Truth | None = None
) -> pd.DataFrame:
    """Simulate the repeated lung-function measurements of patients with pulmonary fibrosis.

    The table has the columns and the shape of the training table of the OSIC Pulmonary Fibrosis
    Progression challenge: forced vital capacity (FVC) at about nine visits a patient, over one
    to two years around a scan at week 0. Every number in it is drawn, none is copied.

    Each patient's FVC falls on a line of its own, ``a + b * weeks`` plus normal noise, with ``a``
    and ``b`` normal over patients: exactly the model of :mod:`dask_consensus.demo`, so that its
    posterior can be held against `truth`. A normal ``a`` allows an impossible volume once in a
    few thousand patients.

    Parameters
    ----------
    n_patients : int, default 176
        At least 1.
    seed : int, default 0
        The same seed gives the same table.
    truth : Truth, optional

    Returns
    -------
    pandas.DataFrame
        One row a visit, ordered by patient and week, with columns ``Patient`` (text), ``Weeks``
        (whole weeks since the scan), ``FVC`` (whole mL), ``Percent`` (of what is typical for a
        person like this), ``Age`` (years), ``Sex`` and ``SmokingStatus`` (text).

    Examples
    --------
    >>> from dask_consensus.simulate import lung_function
    >>> lung_function(3, seed=1)["Patient"].nunique()
    3
    """
    if n_patients < 1:
        raise ValueError(f"n_patients must be at least 1, got {n_patients}")
    truth, rng = truth or Truth(), np.random.default_rng(seed)
    patients = _patients(rng, n_patients, truth)
    patient, weeks = _visits(rng, n_patients)
    visits = patients.iloc[patient].reset_index(drop=True)
    line = visits["intercept"].to_numpy() + visits["slope"].to_numpy() * weeks
    fvc = np.rint(rng.normal(line, truth.sigma)).astype(np.int64)
    return visits.assign(Weeks=weeks, FVC=fvc, Percent=100 * fvc / visits["typical"])[
        ["Patient", "Weeks", "FVC", "Percent", "Age", "Sex", "SmokingStatus"]
    ]


def _patients(rng: np.random.Generator, n: int, truth: Truth) -> pd.DataFrame:
    """Draw one row a patient: a line, and covariates that go with its intercept."""
    z = rng.standard_normal(n)
    # The intercept is drawn first and the sex after it, so that intercepts stay normal over
    # patients although men have the larger lungs.
    male = 0.7 * z + 0.7 * rng.standard_normal(n) > -0.8
    typical = np.where(male, 3_800, 2_300) + 400 * (0.4 * z + 0.9 * rng.standard_normal(n))
    return pd.DataFrame(
        {
            "Patient": [f"SIM{number:07d}" for number in range(n)],
            "intercept": truth.mu_a + truth.sigma_a * z,
            "slope": rng.normal(truth.mu_b, truth.sigma_b, n),
            "typical": np.clip(typical, 1_500, 5_000),
            "Age": np.clip(np.rint(rng.normal(67, 7, n)), 49, 88).astype(np.int64),
            "Sex": np.where(male, "Male", "Female"),
            "SmokingStatus": np.where(
                male,
                rng.choice(SMOKING, n, p=(0.05, 0.76, 0.19)),
                rng.choice(SMOKING, n, p=(0.06, 0.32, 0.62)),
            ),
        }
    )


def _visits(rng: np.random.Generator, n: int) -> tuple[Integers, Integers]:
    """Draw when patients are seen: the patient's number and the week of every visit."""
    # Most enter soon after the scan, some more than a year later.
    entry = np.minimum(np.rint(rng.gamma(1.6, 12.0, n)) - 5, 75)
    gaps = np.array(SCHEDULE) + rng.integers(-1, 2, (n, len(SCHEDULE)))
    gaps[:, 0] = 0
    weeks = entry.astype(np.int64)[:, None] + gaps.cumsum(axis=1)
    attended = rng.choice(list(ATTENDANCE), n, p=list(ATTENDANCE.values()))
    seen = np.arange(len(SCHEDULE)) < attended[:, None]
    return np.nonzero(seen)[0], weeks[seen]
