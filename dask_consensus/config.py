"""Defaults in Dask's configuration, namespace ``consensus``; checks of what the user passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

import dask.config
import yaml

Method = Literal["auto", "laplace", "anchored", "consensus", "parametric"]
Correct = Literal["auto"] | bool
Weights = Literal["full", "diagonal"]
# Values of Dask's own configuration (files, environment, dask.config.set) win over these.
dask.config.update_defaults(
    yaml.safe_load(resources.files("dask_consensus").joinpath("consensus.yaml").read_text())
)


def default(name: str) -> Any:
    """Read ``consensus.<name>`` from Dask's configuration."""
    return dask.config.get(f"consensus.{name}")


@dataclass(frozen=True)
class Options:
    """How to fit: what :meth:`~dask_consensus.accessor.ConsensusAccessor.fit` was asked for.

    Numbers left at None are read from Dask's configuration. The meaning of each is in the
    docstring of `fit`.

    Raises
    ------
    ValueError
        If an option is not among the allowed values or out of range.
    TypeError
        If a number of things is not a whole number.
    """

    method: Method
    n_shards: int | None
    rows_per_shard: int
    num_warmup: int
    num_samples: int
    num_chains: int
    target_accept_prob: float
    rounds: int | None
    weights: Weights
    seed: int
    correct: Correct
    split_every: int
    resources: Mapping[str, float] | None
    shards_per_task: int | Literal["auto"]

    @classmethod
    def filled(cls, **given: Any) -> Options:
        """Read what is None from Dask's configuration, where it has a default."""
        configured = {
            name: default(name.replace("_", "-"))
            for name in (
                "rows_per_shard",
                "num_warmup",
                "num_samples",
                "num_chains",
                "target_accept_prob",
                "split_every",
            )
            if given[name] is None
        }
        return cls(**{**given, **configured})

    def __post_init__(self) -> None:
        _check_choice("method", self.method, get_args(Method))
        _check_choice("weights", self.weights, get_args(Weights))
        if self.correct not in ("auto", True, False):
            raise ValueError(f"correct must be 'auto', True or False, got {self.correct!r}")
        for name, least in (
            ("n_shards", 1),
            ("rounds", 1),
            ("rows_per_shard", 1),
            ("num_warmup", 1),
            ("num_samples", 4),
            ("num_chains", 1),
            ("split_every", 2),
            ("shards_per_task", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if name == "shards_per_task" and value == "auto":
                continue
            if name not in ("n_shards", "rounds") or value is not None:
                _check_whole(name, value, least)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, as JAX's are, got {self.seed!r}")
        _check_resources(self.resources)
        if not 0 < float(self.target_accept_prob) < 1:
            raise ValueError(
                f"target_accept_prob must lie between 0 and 1, got {self.target_accept_prob}"
            )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_resources(resources: object) -> None:
    if resources is None:
        return
    if not isinstance(resources, Mapping):
        raise TypeError(f"resources must be a mapping such as {{'GPU': 1}}, got {resources!r}")
    for name, amount in resources.items():
        if not isinstance(name, str) or isinstance(amount, bool) or not amount > 0:
            raise ValueError(
                f"resources must map names to positive amounts, as {{'GPU': 1}} does, "
                f"got {name!r}: {amount!r}"
            )


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value.__index__() < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
