"""Which options a fit has, which defaults, and what of them is refused.

Defaults lie in Dask's configuration, namespace ``consensus``. They are read once, when a fit is
made: a lazy fit runs under the settings of the place where it was made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

import dask.config
import yaml

Method = Literal["auto", "laplace", "anchored", "consensus", "parametric", "nuts"]
Correct = Literal["auto"] | bool
Weights = Literal["full", "diagonal"]
Local = Literal["summary", "draws"]

# Values of Dask's own configuration (files, environment, dask.config.set) win over these.
_FILE = yaml.safe_load(resources.files("dask_consensus").joinpath("consensus.yaml").read_text())
_DEFAULTS: dict[str, Any] = _FILE["consensus"]
dask.config.update_defaults(_FILE)


class FitOptions(TypedDict, total=False):
    """Keywords of `fit` and `plan`; None stands for the default.

    What each means is in the docstring of :meth:`~dask_consensus.accessor.ConsensusAccessor.fit`.
    """

    method: Method
    n_shards: int | None
    rows_per_shard: int | None
    num_warmup: int | None
    num_samples: int | None
    num_chains: int | None
    target_accept_prob: float | None
    rounds: int | None
    weights: Weights
    seed: int
    correct: Correct
    split_every: int | None
    resources: Mapping[str, float] | None
    shards_per_task: int | Literal["auto"]
    local: Local | None
    local_draws: int | None
    store: str | None


@dataclass(frozen=True)
class _Section:
    """A section of the configuration; field ``num_warmup`` is key ``num-warmup``."""

    @classmethod
    def configured(cls, section: str) -> Self:
        """Read the section, and refuse what is no number of the right kind."""
        numbers = {}
        for field in dataclasses.fields(cls):
            key = f"{section}.{_key(field.name)}"
            value = numbers[field.name] = dask.config.get(f"consensus.{key}")
            if field.type == "int":
                _check_whole(f"consensus.{key}", value, 1)
            else:
                _check_number(f"consensus.{key}", value)
        return cls(**numbers)


@dataclass(frozen=True)
class LaplaceOptions(_Section):
    """How the mode of the posterior is looked for."""

    searches: int
    steps: int


@dataclass(frozen=True)
class PilotOptions(_Section):
    """How one shard is sampled where no mode can be found."""

    num_chains: int
    num_warmup: int
    num_samples: int


@dataclass(frozen=True)
class AnchoredOptions(_Section):
    """How long anchored rounds are, and how many."""

    num_warmup: int
    num_samples: int
    rounds: int
    rounds_corrected: int


@dataclass(frozen=True)
class CorrectionOptions(_Section):
    """How many points the correction takes, and when they are enough."""

    first_points: int
    later_points: int
    iterations: int
    ess: float
    k_hat: float
    sd_error: float
    emulator_error: float
    sampled_shards: int
    sampled_rows: int
    sampling_error: float


@dataclass(frozen=True)
class LocalOptions(_Section):
    """Over how many draws group effects are summed up, and how many groups a client takes."""

    draws: int
    groups: int


@dataclass(frozen=True)
class VerdictOptions(_Section):
    """What the verdict calls good."""

    k_hat: float
    ess: float
    r_hat: float
    shard_ess: float
    divergences: float
    integration_error: float
    sd_error: float
    tail_log_ratio: float
    coupling: float
    modes_not_found: float
    approximate_error: float
    strange_shard: float


# The least that whole numbers may be.
_LEAST = dict.fromkeys(("n_shards", "rows_per_shard", "num_warmup", "num_chains", "rounds"), 1)
_LEAST |= {"shards_per_task": 1, "num_samples": 4, "split_every": 2, "seed": 0, "retries": 0}
_LEAST |= {"freed_memory": 0, "local_draws": 2, "cache_size": 1, "shard_chains": 1}


@dataclass(frozen=True)
class Options:
    """Everything a fit was asked for, defaults filled in: nothing is read later.

    Attributes
    ----------
    given : tuple of str
        Options to which the caller gave another value than the default.
    num_warmup, num_samples : int
        Of one-shot consensus and of NUTS on all rows; anchored rounds have their own.
    num_chains, shard_chains : int
        Of the result and of NUTS on all rows; and on each of several shards that are sampled.
    others
        As in `FitOptions`, and the sections of the configuration.

    Raises
    ------
    ValueError
        If an option is not among the allowed values or out of range.
    TypeError
        If an option is unknown, or a number of things is not a whole number.
    """

    given: tuple[str, ...]
    method: Method
    n_shards: int | None
    rows_per_shard: int
    num_warmup: int
    num_samples: int
    num_chains: int
    shard_chains: int
    target_accept_prob: float
    rounds: int | None
    weights: Weights
    seed: int
    correct: Correct
    split_every: int
    resources: Mapping[str, float] | None
    shards_per_task: int | Literal["auto"]
    local: Local | None
    local_draws: int | None
    store: str | None
    retries: int
    worker_timeout: float
    freed_memory: int
    cache: str
    cache_size: int
    forecast: bool
    laplace: LaplaceOptions
    pilot: PilotOptions
    anchored: AnchoredOptions
    correction: CorrectionOptions
    local_limits: LocalOptions
    verdict: VerdictOptions

    @classmethod
    def frozen(cls, **options: Unpack[FitOptions]) -> Options:
        """Fill in what was left out, and read everything else from Dask's configuration."""
        _check_known(options)
        _check_keys(dask.config.get("consensus"), _DEFAULTS | dict.fromkeys(map(_key, _UNSET)))
        values: dict[str, Any] = {**_UNSET, **options}
        _check_whole("seed", values["seed"], 0)  # before it is compared: a key of JAX cannot be
        if isinstance(values["store"], os.PathLike):
            values["store"] = os.fspath(values["store"])
        given = tuple(name for name, value in options.items() if value != _UNSET[name])
        local = LocalOptions.configured("local")
        for name, value in values.items():
            if value is None and name not in _MAY_BE_NONE:
                values[name] = dask.config.get(f"consensus.{_key(name)}", None)
        anchored = AnchoredOptions.configured("anchored")
        if "num_warmup" in given:
            anchored = dataclasses.replace(anchored, num_warmup=values["num_warmup"])
        shard_chains = dask.config.get("consensus.shard-chains")
        return cls(
            given=given,
            shard_chains=values["num_chains"] if "num_chains" in given else shard_chains,
            retries=dask.config.get("consensus.retries"),
            worker_timeout=dask.config.get("consensus.worker-timeout"),
            freed_memory=dask.config.get("consensus.freed-memory"),
            cache=dask.config.get("consensus.cache") or "",
            cache_size=dask.config.get("consensus.cache-size"),
            forecast=dask.config.get("consensus.forecast"),
            laplace=LaplaceOptions.configured("laplace"),
            pilot=PilotOptions.configured("pilot"),
            anchored=anchored,
            correction=CorrectionOptions.configured("correction"),
            local_limits=local,
            verdict=VerdictOptions.configured("verdict"),
            **values,
        )

    def __post_init__(self) -> None:
        _check_choice("method", self.method, get_args(Method))
        _check_choice("weights", self.weights, get_args(Weights))
        if self.local is not None:
            _check_choice("local", self.local, get_args(Local))
        if self.store is not None and not isinstance(self.store, str):
            raise TypeError(f"store must be a path or URL, as text, got {self.store!r}")
        if self.correct not in ("auto", True, False):
            raise ValueError(f"correct must be 'auto', True or False, got {self.correct!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            free = {
                "n_shards": None,
                "rounds": None,
                "local_draws": None,
                "shards_per_task": "auto",
            }
            if name not in free or value != free[name]:
                _check_whole(self._called(name), value, least)
        if self.method == "nuts" and (self.n_shards or 1) > 1:
            raise ValueError(
                f"method='nuts' samples all rows in one shard, got n_shards={self.n_shards}: leave "
                "n_shards out, or use method='anchored', which samples several shards"
            )
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, as JAX's are, got {self.seed!r}")
        _check_resources(self.resources)
        name = self._called("target_accept_prob")
        _check_number(name, self.target_accept_prob)
        if not 0 < self.target_accept_prob < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {self.target_accept_prob}")
        _check_number(self._called("worker_timeout"), self.worker_timeout)
        if not isinstance(self.forecast, bool):
            raise TypeError(f"consensus.forecast must be true or false, got {self.forecast!r}")
        if not isinstance(self.cache, str):
            raise TypeError(f"consensus.cache must be a folder's path, got {self.cache!r}")

    def _called(self, name: str) -> str:
        """Name an option as whoever set it knows it: as an argument, or as a configured key."""
        return name if name in self.given or name in _UNCONFIGURED else f"consensus.{_key(name)}"


_UNSET: dict[str, Any] = {name: None for name in FitOptions.__annotations__} | {
    "method": "auto",
    "weights": "full",
    "seed": 0,
    "correct": "auto",
    "shards_per_task": 1,
    "local": "summary",
}
_MAY_BE_NONE = ("local", "local_draws", "store")


# Of `fit`, beside its options.
_ARGUMENTS = ("by", "columns", "progress", "compute")
# What others call some of them.
_ELSEWHERE = (
    dict.fromkeys(("group", "groups", "groupby", "key", "keys", "on"), "by")
    | dict.fromkeys(("rng_key", "rng", "random_seed", "random_state"), "seed")
    | dict.fromkeys(("npartitions", "shards"), "n_shards")
    | dict.fromkeys(("tune", "warmup"), "num_warmup")
    | dict.fromkeys(("draws", "samples"), "num_samples")
    | dict.fromkeys(("mapping", "names"), "columns")
)
_UNCONFIGURED = [name for name, value in _UNSET.items() if value is not None]


def _key(name: str) -> str:
    return name.replace("_", "-")


def _check_known(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _UNSET:
            similar = difflib.get_close_matches(name, [*_UNSET, *_ARGUMENTS], n=1)
            meant = _ELSEWHERE.get(name) or (similar[0] if similar else "")
            hint = f"; did you mean {meant!r}?" if meant else "."
            raise TypeError(
                f"{name!r} is no option of a fit{hint} The options are {', '.join(_UNSET)}"
            )


def _check_keys(configured: Mapping[str, Any], known: Mapping[str, Any], section: str = "") -> None:
    """Refuse keys that nothing reads: misspelt ones would be without effect, in silence."""
    keys = {key.replace("_", "-"): value for key, value in configured.items()}
    for key, value in keys.items():
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean consensus.{section}{similar[0]}?" if similar else ""
            raise ValueError(f"consensus.{section}{key} in Dask's configuration is unknown{hint}")
        if isinstance(known[key], Mapping):
            if not isinstance(value, Mapping):
                raise ValueError(f"consensus.{section}{key} must be a section, got {value!r}")
            _check_keys(value, known[key], f"{section}{key}.")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{name} must be a number, at least 0, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")


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
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
