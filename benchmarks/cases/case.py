"""A case: a model, its rows, how many shards, where a full fit may begin."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpyro
import pandas as pd
from numpyro.infer.reparam import LocScaleReparam


class DataAbsent(Exception):
    """The data of a case cannot be had here; the message says what to do."""


class Problem(NamedTuple):
    """What NUTS on all rows is given: a model, its arguments, constrained values to start from."""

    model: Callable[..., None]
    data: dict[str, np.ndarray]
    start: Mapping[str, Any]
    shared: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A model, as a user would write it, and its data."""

    name: str
    model: Callable[..., None]
    frame: Callable[[], pd.DataFrame]  # raises DataAbsent
    shards: tuple[int, ...] = (8,)
    start: Mapping[str, Any] = field(default_factory=dict)  # of a full fit, shared site -> value
    by: str | list[str] | None = None  # a list: nested, outermost first
    columns: Mapping[str, str] = field(default_factory=dict)  # argument -> column, if not the same
    fails: str = ""  # why shards cannot be trusted here; empty for a case that must succeed
    # Local site -> how centred the full fit takes it, 0 to 1; 1, as written, if absent.
    centred: Mapping[str, float] = field(default_factory=dict)
    variance: float | None = None  # known error variance, where the posterior is integrated
    full: bool = True  # False: the posterior has no mean, or modes that a full fit does not cross
    toy: Callable[[], pd.DataFrame] | None = None  # a few of the rows, for tests

    def at_toy_size(self) -> Case:
        """Take the few rows of the toy size, in two shards."""
        if self.toy is None:
            raise DataAbsent("it has no toy size")
        return replace(self, frame=self.toy, shards=(2,))

    def arguments(self, frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Everything the model takes for the full data: arrays, and numbers of groups."""
        arrays, counts = {}, {}
        by = self.by if isinstance(self.by, list) else [self.by]
        for name in inspect.signature(self.model).parameters:
            column = self.columns.get(name, name)
            if column in by:
                # A group of an inner level is known by its keys of all levels outside.
                keys = frame[by[: by.index(column) + 1]]
                codes = keys.groupby(list(keys), sort=True).ngroup().to_numpy()
                arrays[name], counts[f"n_{name}"] = codes.astype(np.int32), int(codes.max()) + 1
            elif column in frame:
                arrays[name] = frame[column].to_numpy()
        return arrays, counts

    def problem(self, frame: pd.DataFrame) -> Problem:
        """The full fit, its local sites as centred as suits the data."""
        arrays, counts = self.arguments(frame)
        config = {site: LocScaleReparam(share) for site, share in self.centred.items()}
        model = numpyro.handlers.reparam(self.model, config=config) if config else self.model
        return Problem(functools.partial(model, **counts), arrays, self.start, tuple(self.start))


CASES: dict[str, Case] = {}


def case(name: str, **fields: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a case of the model that follows; fields are those of :class:`Case`."""

    def register(model: Callable[..., None]) -> Callable[..., None]:
        CASES[name] = Case(name, model, **fields)
        return model

    return register


def takes(names: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a model of ``**columns`` the signature of one that names them."""

    def decorate(model: Callable[..., None]) -> Callable[..., None]:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, kind) for name in names]
        model.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return model

    return decorate


def sizes_of_groups(rng: np.random.Generator, groups: int, rows: int) -> np.ndarray:
    """Sizes of unequal groups, at least 2 each, that add up to `rows`."""
    shares = rng.dirichlet(np.full(groups, 3.0))
    return 2 + rng.multinomial(rows - 2 * groups, shares)
