"""Keys in one form, however a partition was read: what is equal is one group everywhere.

A dtype is an accident of a file. The same identifiers come as integers from one file and, after one
missing value, as floats from the next; as text, as categories, in other units of time. Keys are
therefore brought to one of a few *forms* that hash, sort and compare alike (`Form`), and each
partition says of which *kinds* its keys are. One kind is one group of values that may be equal: a
frame with keys of two kinds, or numbers that one form cannot tell apart, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

Form = Literal["int64", "uint64", "float64", "ns", "us", "text"]
"""What keys are brought to: numbers, whole nanoseconds or microseconds, or text."""

INTEGERS, UNSIGNED, FLOATS = "integers", "unsigned integers", "floats"
LARGE = "integers beyond 2**53"  # which a float cannot hold
WIDE, FINE = "times beyond the years 1677 to 2262", "times with nanoseconds"
_NUMBERS = {INTEGERS, UNSIGNED, FLOATS}
_MARKS = {LARGE, WIDE, FINE}  # not kinds: what may stand in the way of a common form
UNUSABLE = "values of type "

_DTYPES = {"ns": "int64", "us": "int64"}
_TEXT = "string[pyarrow]"
EXACT = 2**53


class Keys(NamedTuple):
    """Keys of some rows; they are ``distinct[codes]``, or ``distinct`` itself without codes."""

    kinds: tuple[str, ...]
    form: Form
    distinct: Any  # array of int64, uint64, float64 or text; microseconds for "us" and "ns"
    codes: np.ndarray | None = None
    rest: np.ndarray | None = None  # of distinct times, nanoseconds beyond the microsecond

    @property
    def rows(self) -> Any:
        """The keys row by row, in their own form."""
        return in_form(self, self.form)


def common_form(kinds: Iterable[str]) -> Form:
    """Return the form of the keys of all partitions, from the kinds found in any of them."""
    present = set(kinds)
    if present & _NUMBERS:
        if FLOATS in present:
            return "float64"
        return "int64" if INTEGERS in present else "uint64"
    if present & {"times", "times with a zone", "durations"}:
        return "us" if WIDE in present else "ns"
    if "dates" in present or any(kind.startswith("periods") for kind in present):
        return "int64"
    return "text"


def in_form(keys: Keys, form: Form) -> Any:
    """Return keys row by row as an array of a common form."""
    values = keys.distinct
    if not len(values):  # no keys at all may be of any dtype
        return pd.array([], dtype=_TEXT) if form == "text" else np.empty(0, _DTYPES.get(form, form))
    if form == "ns":
        values = values * 1000 + (0 if keys.rest is None else keys.rest)
    elif form == "text":
        values = pd.array(values, dtype=_TEXT)
    else:
        values = values.astype(_DTYPES.get(form, form))
    return values if keys.codes is None else values.take(keys.codes)


def hash_keys(keys: Keys) -> np.ndarray:
    """Return 64-bit hashes row by row: equal keys have equal ones, whatever their form."""
    if keys.form == "text":
        hashes = pd.util.hash_array(np.asarray(keys.distinct, dtype=object), categorize=False)
    elif keys.form in ("ns", "us"):
        hashes = mix(keys.distinct.view(np.uint64))
        if keys.rest is not None:
            hashes = np.where(keys.rest > 0, mix(hashes + keys.rest.astype(np.uint64)), hashes)
    else:
        hashes = mix(_bits(keys.distinct))
    return hashes if keys.codes is None else hashes[keys.codes]


def of_form(values: Any, form: Form) -> Keys:
    """Return keys that are in a form already, as `in_form` made them."""
    if form == "text":
        codes, distinct = pd.factorize(values)
        return Keys((), form, np.asarray(distinct, dtype=object), codes)
    values = np.asarray(values)
    if form == "ns":
        return Keys((), form, values // 1000, None, values % 1000)
    return Keys((), form, values)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each 64-bit number."""
    return pd.util.hash_array(numbers, categorize=False)


def conflicts(kinds: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the kinds that stand in each other's way, if all are found in one key column."""
    present = [kind for kind in kinds if kind not in _MARKS]
    found: list[tuple[str, ...]] = [(kind,) for kind in present if kind.startswith(UNUSABLE)]
    numbers = [kind for kind in present if kind in _NUMBERS]
    others = [kind for kind in present if kind not in _NUMBERS and not kind.startswith(UNUSABLE)]
    if len(others) + bool(numbers) > 1:
        found.append(tuple([*numbers, *others]))
    if len(numbers) > 1 and LARGE in kinds:
        found.append((*numbers, LARGE))
    if WIDE in kinds and FINE in kinds:
        found.append((WIDE, FINE))
    return found


def _bits(numbers: np.ndarray) -> np.ndarray:
    """Return 64 bits that equal numbers share, floats and integers alike."""
    if numbers.dtype.kind != "f":
        return numbers.view(np.uint64)
    whole = (numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**63)
    integers = np.where(whole, numbers, 0).astype(np.int64).view(np.uint64)
    return np.where(whole, integers, numbers.view(np.uint64))
