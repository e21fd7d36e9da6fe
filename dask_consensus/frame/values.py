"""Values of a column as the model receives them, whatever dtype a partition gives them in.

The dtype is that of the frame, not of a partition: one file of integers among files of floats must
not hand the model integers. A partition of another dtype is cast where nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

_EXACT = 2**53  # beyond it a float is no integer for certain


def missing(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return which values are missing, and which are NaN and yet pass for a value.

    Columns of Arrow and of pandas' nullable dtypes may hold NaN beside null: `dropna` leaves it.
    """
    dtype, null = values.dtype, values.isna().to_numpy(dtype=bool)
    if isinstance(dtype, pd.CategoricalDtype):
        categories = pd.Series(values.cat.categories)
        known = ~categories.isna().to_numpy(dtype=bool) & ~missing(categories)[1]
        return null, ~null & ~np.append(known, True)[values.cat.codes]
    if isinstance(dtype, pd.api.extensions.ExtensionDtype) and pd.api.types.is_float_dtype(dtype):
        return null, np.isnan(values.to_numpy(dtype=np.float64, na_value=0.0))
    return null, np.zeros(len(values), bool)


def integer_dtype(x64: bool) -> np.dtype:
    """Return the dtype of codes and integers."""
    return np.dtype(np.int64 if x64 else np.int32)


def number_dtype(values: pd.Series, x64: bool) -> np.dtype:
    """Return the dtype in which the model receives a column of values.

    Raises
    ------
    TypeError
        If the column is neither numeric nor boolean.
    """
    dtype, types = values.dtype, pd.api.types
    plain = not isinstance(dtype, pd.CategoricalDtype) and not types.is_complex_dtype(dtype)
    if plain and types.is_bool_dtype(dtype):
        return np.dtype(bool)
    if plain and types.is_integer_dtype(dtype):
        return integer_dtype(x64)
    if plain and types.is_numeric_dtype(dtype):
        return np.dtype(np.float64 if x64 else np.float32)
    raise TypeError(
        f"column {values.name!r} has dtype {dtype}; a model takes numbers and booleans. Convert it "
        "with `astype`, make it a categorical, or name it in `by`"
    )


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Return the dtype of a matrix of columns of these: floats if any is, else integers if any is.

    Examples
    --------
    >>> str(common_dtype([np.dtype("int32"), np.dtype(bool), np.dtype("float32")]))
    'float32'
    """
    return max(dtypes, key=lambda dtype: "bif".index(dtype.kind))


def exact_numbers(values: pd.Series) -> np.ndarray | None:
    """Return values without missing ones as bool, int64, uint64 or float64; None if no numbers."""
    dtype, types = values.dtype, pd.api.types
    if values.empty:  # whose dtype says nothing
        return np.empty(0, bool)
    if isinstance(dtype, pd.CategoricalDtype):
        numbers = exact_numbers(pd.Series(values.cat.categories))
        return None if numbers is None else numbers[values.cat.codes]
    if types.is_object_dtype(dtype) or (types.is_numeric_dtype(dtype) and "decimal" in str(dtype)):
        return _exact_objects(list(values))
    if types.is_bool_dtype(dtype):
        return values.to_numpy(dtype=bool)
    if types.is_complex_dtype(dtype) or not types.is_numeric_dtype(dtype):
        return None
    if types.is_integer_dtype(dtype):
        wide = types.is_unsigned_integer_dtype(dtype) and dtype.itemsize == 8
        return values.to_numpy(dtype=np.uint64 if wide else np.int64)
    return values.to_numpy(dtype=np.float64)


def cast(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast exact numbers to what the model receives."""
    if dtype.kind != "f":
        return numbers.astype(dtype)
    with np.errstate(over="ignore"):
        # -0.0 and 0.0 compare equal: kept apart, their order would be that of arrival.
        return numbers.astype(dtype) + dtype.type(0)


def unfit(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Tell which exact numbers lose something where integers or booleans are expected."""
    if dtype.kind == "b" and numbers.dtype.kind != "b":
        return (numbers != 0) & (numbers != 1)
    if dtype.kind == "i" and numbers.dtype.kind == "f":
        return np.isfinite(numbers) & (
            (numbers != np.floor(numbers)) | (np.abs(numbers) > _EXACT)
        )  # fmt: skip
    return np.zeros(len(numbers), bool)


def out_of_range(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Tell which exact numbers the dtype cannot hold."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.isinf(numbers.astype(dtype))
    if dtype.kind == "i" and numbers.dtype.kind != "b":
        limits = np.iinfo(dtype)
        return (numbers < limits.min) | (numbers > limits.max)
    return np.zeros(len(numbers), bool)


def category_codes(values: pd.Series, categories: tuple[Any, ...]) -> np.ndarray:
    """Return the position of each value in `categories`, -1 for one that is not there."""
    # A tuple of tuples would otherwise become a MultiIndex.
    known = pd.Index(categories, tupleize_cols=False)
    if is_dictionary(values.dtype):
        values = as_categorical(values)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return known.get_indexer(pd.Index(values))
    # Looking up the few categories beats looking up the rows; code -1 (missing) reads the last -1.
    return np.append(known.get_indexer(values.cat.categories), -1)[values.cat.codes]


def is_dictionary(dtype: Any) -> bool:
    """Tell whether a dtype is what Arrow has for categories."""
    return isinstance(dtype, pd.ArrowDtype) and str(dtype).startswith("dictionary")


def as_categorical(values: pd.Series) -> pd.Series:
    """Turn what Arrow has for categories into what pandas has."""
    if not is_dictionary(values.dtype):
        return values.astype("category")
    import pyarrow as pa

    chunks = pa.chunked_array(pa.array(values.array)).unify_dictionaries()
    return pd.Series(chunks.to_pandas(), index=values.index, name=values.name)


def _exact_objects(values: list[Any]) -> np.ndarray | None:
    """Return Python numbers as one array; None if there is anything else among them."""
    numbers = (bool, np.bool_, int, np.integer, float, np.floating, Decimal)
    if not all(isinstance(value, numbers) for value in values):
        return None
    if values and all(isinstance(value, bool | np.bool_) for value in values):
        return np.array(values, bool)
    whole = all(isinstance(value, bool | np.bool_ | int | np.integer) for value in values)
    if whole and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array(values, np.float64)
