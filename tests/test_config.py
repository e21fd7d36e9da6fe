"""Options: frozen once, refused by name, kept in the result."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict

import dask
import numpy as np
import pytest
import yaml

from dask_consensus.config import Options

from . import fit, from_pandas
from .models import frame
from .test_fit import means


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        *(("num_warm_up", "num_warmup"), ("n_shard", "n_shards"), ("methods", "method")),
        *(
            ("group", "by"),
            ("rng_key", "seed"),
            ("npartitions", "n_shards"),
            ("tune", "num_warmup"),
        ),
    ],
)
def test_an_unknown_option_is_told_what_it_may_have_meant(wrong, right):
    with pytest.raises(TypeError, match=f"'{wrong}' is no option of a fit; did you mean '{right}'"):
        Options.frozen(**{wrong: 1})


def test_an_option_like_no_other_is_told_which_there_are():
    with pytest.raises(TypeError, match=r"'zzz' is no option of a fit.*\bmethod, n_shards,"):
        Options.frozen(zzz=1)


@pytest.mark.parametrize("seed", ["key", "old key", "text"])
def test_a_seed_is_a_number(seed):
    import jax

    made = {"key": jax.random.key, "old key": jax.random.PRNGKey, "text": str}[seed](0)
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        Options.frozen(seed=made)


def test_a_store_may_be_a_path(tmp_path):
    assert Options.frozen(store=tmp_path).store == str(tmp_path)


def test_given_is_what_differs_from_a_default():
    assert Options.frozen().given == ()
    options = Options.frozen(num_warmup=None, seed=0, method="auto", rounds=3, correct=False)
    assert options.given == ("rounds", "correct")
    # The configured default itself, given by name, is the caller's choice all the same.
    assert Options.frozen(num_samples=1000).given == ("num_samples",)


def test_configuration_fills_what_was_not_given():
    with dask.config.set({"consensus.num-warmup": 77, "consensus.anchored.num-warmup": 33}):
        left_out, given = Options.frozen(), Options.frozen(num_warmup=55)
    assert (left_out.num_warmup, left_out.anchored.num_warmup) == (77, 33)
    # A keyword comes before both.
    assert (given.num_warmup, given.anchored.num_warmup) == (55, 55)


WHOLE = [
    "laplace.searches", "laplace.steps", "pilot.num-chains", "pilot.num-warmup",
    "pilot.num-samples", "anchored.num-warmup", "anchored.num-samples", "anchored.rounds",
    "anchored.rounds-corrected", "correction.first-points", "correction.later-points",
    "correction.iterations", "correction.sampled-shards", "correction.sampled-rows",
    "local.draws", "local.groups",
]  # fmt: skip
REAL = [
    "correction.ess", "correction.k-hat", "correction.sd-error", "correction.emulator-error",
    "correction.sampling-error",
    "verdict.k-hat", "verdict.ess", "verdict.r-hat", "verdict.shard-ess", "verdict.divergences",
    "verdict.integration-error", "verdict.sd-error", "verdict.tail-log-ratio", "verdict.coupling",
    "verdict.modes-not-found", "verdict.approximate-error", "verdict.strange-shard",
]  # fmt: skip


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [0, 2.5, "many", True, None])
def test_a_configured_number_of_things_is_refused_by_its_key(key, value):
    with (
        dask.config.set({f"consensus.{key}": value}),
        pytest.raises((TypeError, ValueError), match=f"consensus.{key} must be"),
    ):
        Options.frozen()


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("value", [-0.1, "much", True, None])
def test_a_configured_limit_is_refused_by_its_key(key, value):
    with (
        dask.config.set({f"consensus.{key}": value}),
        pytest.raises(ValueError, match=f"consensus.{key} must be a number, at least 0"),
    ):
        Options.frozen()


def test_every_key_of_a_section_is_among_those_that_are_refused():
    sections = dask.config.get("consensus")
    keys = [
        f"{section}.{key.replace('_', '-')}"
        for section, values in sections.items()
        if isinstance(values, dict)
        for key in values
    ]
    assert sorted(keys) == sorted(WHOLE + REAL)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows-per-shard", 0),
        ("num-warmup", "many"),
        ("num-samples", 3),
        ("num-chains", 1.5),
        ("shard-chains", 0),
        ("target-accept-prob", 1.5),
        ("split-every", 1),
        ("retries", -1),
        ("freed-memory", -1),
        ("cache", 7),
    ],
)
def test_a_configured_default_is_refused_by_its_name(key, value):
    with (
        dask.config.set({f"consensus.{key}": value}),
        pytest.raises((TypeError, ValueError), match=key.replace("-", "[-_]")),
    ):
        Options.frozen()


def test_a_lazy_fit_keeps_the_settings_of_the_place_where_it_was_made():
    rows = from_pandas(frame(((60,),)))
    inside = {
        "consensus.num-samples": 60,
        "consensus.num-chains": 3,
        "consensus.shard-chains": 2,
        "consensus.verdict.shard-ess": 0,
        "consensus.correction.iterations": 3,
    }
    options = {"n_shards": 2, "num_warmup": 30, "num_samples": None, "num_chains": None}
    with dask.config.set(inside):
        lazy = fit(rows, means, compute=False, **options)
    outside = {"consensus.num-samples": 55, "consensus.verdict.r-hat": 9}
    with dask.config.set(outside), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not to be relied on", UserWarning)
        tree = lazy.compute()
    assert tree["posterior"]["mu"].shape == (2, 60, 3)
    for node in (tree, tree["posterior"]):
        attributes = node.attrs
        assert (attributes["num_samples"], attributes["num_chains"]) == (60, 3)
        assert json.loads(attributes["correction"])["iterations"] == 3
        assert json.loads(attributes["given"]) == list(lazy.options.given)
        assert json.loads(attributes["anchored"])["num_warmup"] == 30
        assert json.loads(attributes["laplace"]) == asdict(lazy.options.laplace)


# The folder of compiled code

WHERE = """
import sys
import dask, dask.dataframe as dd, jax, numpy, pandas as pd
import numpyro, numpyro.distributions as dist
import dask_consensus
from dask_consensus.shard.target import log_prior
def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(mu, 1), obs=y)
if len(sys.argv) > 1:
    dask.config.set({"consensus.cache": sys.argv[1] if sys.argv[1] != "none" else ""})
rows = dd.from_pandas(pd.DataFrame({"y": [0.5, 1.5, 1.0, 1.0]}), npartitions=1)
plan = rows.consensus.plan(model, n_shards=1)
log_prior(plan.model, plan.example, numpy.zeros((1, 1)))  # the least that is compiled
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("by", ["environment", "key", "nothing"])
def test_the_cache_lies_where_it_was_said(tmp_path, by):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    env["HOME"] = str(tmp_path / "home")
    arguments = []
    if by == "environment":
        env["DASK_CONSENSUS__CACHE"] = str(tmp_path / "there")
    elif by == "key":
        # What is set in code wins over the environment.
        env["DASK_CONSENSUS__CACHE"] = str(tmp_path / "elsewhere")
        arguments = [str(tmp_path / "there")]
    else:
        env["DASK_CONSENSUS__CACHE"] = ""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WHERE, *arguments],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = run.stdout.strip()
    made = sorted(path.name for path in tmp_path.iterdir() if path.name != "home")
    if by == "nothing":
        assert folder == "None"
        assert made == []
    else:
        assert folder.startswith(str(tmp_path / "there"))
        assert made == ["there"]
    assert not (tmp_path / "home" / ".cache" / "dask_consensus").exists()


def test_the_package_and_its_configuration_name_the_same_defaults():
    """A default read by code that the file does not hold would fail at the first fit."""
    import dask_consensus

    path = os.path.join(os.path.dirname(dask_consensus.__file__), "consensus.yaml")
    with open(path) as lines:
        written = yaml.safe_load(lines)["consensus"]
    with dask.config.set({"consensus": written}):
        options = Options.frozen()
    for section in ("laplace", "pilot", "anchored", "correction", "verdict"):
        values = {key.replace("-", "_"): value for key, value in written[section].items()}
        assert asdict(getattr(options, section)) == values
    assert options.num_warmup == written["num-warmup"]
    assert options.target_accept_prob == written["target-accept-prob"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "correction.iteration",
            r"correction\.iteration .* unknown; did you mean consensus\.c",
        ),
        ("k-hat", r"consensus\.k-hat in Dask's configuration is unknown"),
        ("correction-turns", r"consensus\.correction-turns in Dask's configuration is unknown"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(key, message):
    with (
        dask.config.set({f"consensus.{key}": 3}),
        pytest.raises(ValueError, match=message),
    ):
        Options.frozen()


def test_a_section_is_no_number():
    with (
        dask.config.set({"consensus.correction": 3}),
        pytest.raises(ValueError, match=r"consensus\.correction must be a section, got 3"),
    ):
        Options.frozen()


@pytest.mark.parametrize("key", ["verdict.ess", "verdict.r-hat", "correction.k-hat"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_limit_that_nothing_crosses_is_refused(key, value):
    with (
        dask.config.set({f"consensus.{key}": value}),
        pytest.raises(ValueError, match=rf"consensus\.{key} must be finite"),
    ):
        Options.frozen()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("num-warmup", "many", TypeError),
        ("num-samples", 2, ValueError),
        ("target-accept-prob", "x", ValueError),
        ("target-accept-prob", None, ValueError),
        ("retries", -1, ValueError),
    ],
)
def test_a_configured_option_is_refused_by_its_key(key, value, error):
    with (
        dask.config.set({f"consensus.{key}": value}),
        pytest.raises(error, match=rf"consensus\.{key} must "),
    ):
        Options.frozen()


def test_options_without_a_default_may_be_configured():
    with dask.config.set({"consensus.n_shards": 4}):
        options = Options.frozen()
    assert (options.n_shards, options.given) == (4, ())
