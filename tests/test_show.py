"""What the plan prints is what the fit does: its numbers, and which options change nothing."""

from __future__ import annotations

import re
import warnings

import dask
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from dask_consensus.combination import subposterior
from dask_consensus.shard.nuts import sample_shards

from . import from_pandas
from .models import frame
from .test_fit import means

PATHS = {
    "anchored, corrected": {"method": "anchored"},
    "anchored, uncorrected": {"method": "anchored", "correct": False},
    "consensus, corrected": {"method": "consensus"},
    "consensus, uncorrected": {"method": "consensus", "correct": False},
    "all rows": {"method": "nuts", "n_shards": None},
}
# Small numbers stand for the defaults: those of the file would take minutes.
SMALL = {
    "consensus.num-warmup": 60,
    "consensus.num-samples": 140,
    "consensus.anchored.num-warmup": 40,
    "consensus.anchored.num-samples": 70,
    "consensus.anchored.rounds": 3,
    "consensus.anchored.rounds-corrected": 2,
    "consensus.correction.first-points": 64,
    "consensus.correction.later-points": 64,
    "consensus.correction.iterations": 1,
}


@pytest.fixture(scope="module")
def rows():
    return from_pandas(frame(((90,),), seed=1))


def fit(rows, **options):
    with (
        dask.config.set(SMALL | {"scheduler": "synchronous"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Not to be relied on", UserWarning)
        return rows.consensus.fit(means, progress=False, **{"n_shards": 3} | options)


def planned(rows, **options):
    with dask.config.set(SMALL):
        return rows.consensus.plan(means, **{"n_shards": 3} | options)


@pytest.fixture
def recorded(monkeypatch):
    """Settings and chains that reach the sampler, of each call.

    Each other number of draws would be compiled anew: those of a short chain are repeated.
    """
    calls = []

    def record(model, data, factors, settings, keys, **others):
        calls.append((settings, others["num_chains"], keys[0]))
        short = settings._replace(num_warmup=40, num_samples=70)
        again = np.arange(settings.num_samples) % short.num_samples
        sampled = sample_shards(model, data, factors, short, keys, **others)
        return [(draws._replace(u=draws.u[:, again]), ends) for draws, ends in sampled]

    monkeypatch.setattr(subposterior, "sample_shards", record)
    return calls


@pytest.mark.parametrize(
    "given",
    [{}, {"num_warmup": 70, "num_samples": 100, "rounds": 1}, {"num_samples": 220, "rounds": 4}],
    ids=["defaults", "fewer", "more"],
)
@pytest.mark.parametrize("path", PATHS)
def test_the_plan_prints_the_numbers_that_reach_the_sampler(rows, recorded, path, given):
    options = PATHS[path] | given
    shown = repr(planned(rows, **options))
    warmup, draws = map(int, re.search(r"(\d+) warm-up \+ (\d+) draws", shown).groups())
    chains = int(re.search(r"draws, (\d+) chain", shown).group(1))
    tree = fit(rows, **options)
    used = {(s.num_warmup, s.num_samples, n_chains) for s, n_chains, _ in recorded}
    assert used == {(warmup, draws, chains)}
    n_rounds = len({key[1] for *_, key in recorded})
    most = re.search(r"up to (\d+) rounds|one round", shown)
    # NUTS on all rows and one-shot methods have no rounds to tell of.
    assert n_rounds <= int((most and most.group(1)) or 1)
    if given.get("rounds") == 1 or not path.startswith("anchored"):
        assert n_rounds == 1
    result = re.search(r"result +(\d+) chains? of (\d+) (independent )?draws", shown)
    assert bool(result.group(3)) is ("points weighted" in shown)
    sizes = tree["posterior"].sizes
    assert (sizes["chain"], sizes["draw"]) == tuple(map(int, result.groups()[:2]))
    assert ("correction" in tree.children) is ("points weighted" in shown)


def test_rounds_go_on_to_the_number_printed_where_nothing_stands_still(rows, recorded, monkeypatch):
    from dask_consensus.combination import anchored

    monkeypatch.setattr(anchored, "_movement", lambda *_: np.inf)
    for correct, most in ((False, 3), ("auto", 2)):
        recorded.clear()
        options = {"method": "anchored", "correct": correct}
        assert f"up to {most} rounds" in repr(planned(rows, **options))
        fit(rows, **options)
        assert len({key[1] for *_, key in recorded}) == most


# Options without effect

OTHER = {
    "num_warmup": 45,
    "num_samples": 90,
    "num_chains": 2,
    "target_accept_prob": 0.9,
    "rounds": 1,
    "weights": "diagonal",
    "correct": False,
    "shards_per_task": 2,
    "seed": 1,
    "n_shards": 2,
    "rows_per_shard": 40,
}
ALL_PATHS = PATHS | {
    "laplace, corrected": {"method": "laplace"},
    "laplace, uncorrected": {"method": "laplace", "correct": False},
    "parametric, uncorrected": {"method": "parametric", "correct": False},
    "laplace, all rows, uncorrected": {"n_shards": 1, "correct": False},
}
# Which tasks there are is not seen in the draws; that is all these are for.
ONLY_TASKS = {"shards_per_task"}


QUICK_PATHS = {"laplace, uncorrected"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path in QUICK_PATHS else pytest.mark.slow)
        for path in ALL_PATHS
    ],
)
def test_an_option_is_noted_if_and_only_if_it_changes_nothing(rows, path):
    options = {"n_shards": 3} | ALL_PATHS[path]
    usual = fit(rows, **options)["posterior"]["mu"].to_numpy()
    wrong = {}
    for name, value in OTHER.items():
        if options.get(name) == value or (name == "n_shards" and options[name] in (1, None)):
            continue
        # The mode is that of all rows, however they are divided.
        if name == "n_shards" and path.startswith("laplace"):
            continue
        changed = options | {name: value}
        notes = planned(rows, **changed).notes()
        noted = any(note.startswith(f"{name} has no effect") for note in notes)
        expected = "same" if noted or name in ONLY_TASKS else "other"
        draws = fit(rows, **changed)["posterior"]["mu"].to_numpy()
        seen = "same" if np.array_equal(draws, usual) else "other"
        if seen != expected:
            wrong[name] = (f"noted: {noted}", f"draws: {seen}")
    assert wrong == {}


@pytest.mark.parametrize("method", ["auto", "anchored", "consensus", "parametric", "laplace"])
def test_a_method_that_combines_shards_samples_one_whole(rows, method):
    alone = planned(rows, n_shards=1, method=method)
    combining = method not in ("auto", "laplace")
    assert alone.method == ("nuts" if combining else "laplace")
    shown = "NUTS on all rows together, because one shard has no other to be combined with"
    assert (shown in repr(alone)) is combining
    assert not any("method" in note for note in planned(rows, method=method).notes())


def many_effects(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        effects = numpyro.sample("effects", dist.Normal(0, 1).expand([17]).to_event(1))
    numpyro.sample("obs", dist.Normal(mu + effects[county].sum(axis=1), 1.0), obs=y)


def test_a_model_that_cannot_be_corrected_is_sampled_alike_either_way():
    """`correct=False` asks for what happens anyway."""
    table = from_pandas(frame(((5, 4, 6), (5, 7), (3, 4))))
    made = table.consensus.plan(many_effects, by="county", n_shards=2, correct=False)
    assert made.uncorrected_because == "correct=False"
    auto = table.consensus.plan(many_effects, by="county", n_shards=2)
    assert auto.uncorrected_because == "17 local effects a group are more than 16"
    assert (auto.method, auto.one_shot_nuts) == (made.method, made.one_shot_nuts)
    assert auto.round_nuts(short=not auto.uncorrected_because) == made.round_nuts(
        short=not made.uncorrected_because
    )
