"""How a key reads again, once it was brought to the form in which groups are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from .keys import FLOATS, INTEGERS, UNSIGNED, Form

_NUMBERS = {INTEGERS, UNSIGNED, FLOATS}


def readable(keys: np.ndarray, form: Form, kinds: Sequence[str], dtype: Any) -> np.ndarray:
    """Return keys of a form as the values that the column of the frame holds.

    They are of a dtype that files can hold: times without their zone, in UTC; periods, intervals,
    bytes and numbers of any length as text. `kinds` are those that the survey found, `dtype` is
    that of the column.

    Examples
    --------
    >>> readable(np.array([0, 1]), "int64", ("integers",), np.dtype(bool))
    array([False,  True])
    """
    kind = next(iter(kinds), "")
    if form in ("ns", "us"):
        return keys.view(f"{'m' if kind == 'durations' else 'M'}8[{form}]")
    if kind == "dates":
        # Python counts days from the first of the year 1.
        return (keys - 719_163).astype("M8[D]").astype("M8[s]")
    if kind.startswith("periods"):
        frequency = kind.removeprefix("periods (").removesuffix(")")
        periods = pd.PeriodIndex.from_ordinals(keys, freq=to_offset(frequency))
        return np.asarray(periods.astype(str), object)
    if kind in _NUMBERS:
        return _numbers(keys, dtype)
    texts = np.asarray(keys, object)
    if kind == "decimals":
        return np.array([_decimal(text) for text in texts], object)
    return texts


def _numbers(keys: np.ndarray, dtype: Any) -> np.ndarray:
    """Return numbers in the dtype of the column, where it holds them all."""
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    wanted = getattr(dtype, "numpy_dtype", dtype)
    if not isinstance(wanted, np.dtype) or wanted.kind not in "biuf":
        return keys
    cast = keys.astype(wanted)
    return cast if np.array_equal(cast.astype(keys.dtype), keys) else keys


def _decimal(text: str) -> str:
    """Write a fraction as the decimal that it came from."""
    whole = Fraction(text)
    digits = 0
    while (whole * 10**digits).denominator != 1:
        digits += 1
    return format(Decimal(int(whole * 10**digits)).scaleb(-digits), "f")
