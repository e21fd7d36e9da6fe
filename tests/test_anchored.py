"""Anchored rounds as a state: steps that can be repeated, stored and gone on from."""

import dask
import numpy as np
import pytest

from dask_consensus.combination import gaussian
from dask_consensus.combination.anchored import (
    AnchoredSettings,
    AnchoredState,
    _movement,
    anchored,
    done,
    init,
    step,
)
from dask_consensus.combination.reports import Anchor, FitSettings, Guess, Round
from dask_consensus.fit import shard_rows
from dask_consensus.shard.nuts import NutsSettings

from . import from_pandas, plan
from .models import ZOO, frame
from .test_fit import exact, means

N_SHARDS = 3


@pytest.fixture(scope="module", autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def table():
    return frame(((240,),), seed=1)


@pytest.fixture(scope="module")
def fitted(table):
    """A plan, shards in memory, and settings of three rounds from the closed form."""
    rows = from_pandas(table)
    made = plan(rows, means, method="anchored", n_shards=N_SHARDS)
    shards = shard_rows(rows, made, progress=False)
    mean, covariance = exact(means, table)
    guess = Guess(mean, np.linalg.inv(covariance) / N_SHARDS, informed=True, modes=1)
    nuts = NutsSettings(50, 200, adapt_mass=False)
    settings = AnchoredSettings(FitSettings(made.model, 1, False, 7), nuts, 3, guess)
    return shards, settings, mean, covariance


@pytest.fixture(scope="module")
def first(fitted):
    shards, settings, *_ = fitted
    return step(settings, shards, init(settings, shards))


def assert_same(state, other):
    """Everything but wall times, draws to the last bit."""
    np.testing.assert_array_equal(state.anchor.mean, other.anchor.mean)
    np.testing.assert_array_equal(state.anchor.precision, other.anchor.precision)
    np.testing.assert_array_equal(state.shard_precision, other.shard_precision)
    for part, same in zip(state.total, other.total, strict=True):
        np.testing.assert_array_equal(part, same)
    assert len(state.rounds) == len(other.rounds)
    for this, that in zip(state.rounds, other.rounds, strict=True):
        np.testing.assert_array_equal(this.mean, that.mean)
        np.testing.assert_array_equal(this.covariance, that.covariance)
        np.testing.assert_array_equal([this.movement, this.noise], [that.movement, that.noise])


# init


@pytest.mark.parametrize(
    ("informed", "strength"),
    # An informed anchor: 0.05 sqrt(shards times draws), but no more than the other shards know.
    [(True, 0.05 * np.sqrt(3 * 200)), (False, 1.0)],
)
def test_the_first_anchor_is_at_the_guess(fitted, informed, strength):
    shards, settings, *_ = fitted
    guess = settings.guess._replace(informed=informed)
    state = init(settings._replace(guess=guess), shards)
    assert state.anchor.strength == pytest.approx(strength)
    np.testing.assert_array_equal(state.anchor.mean, guess.mean)
    np.testing.assert_allclose(state.anchor.precision, strength * guess.shard_precision)
    assert (state.rounds, state.factors, state.total) == ((), (), None)
    assert state.starts == [None] * N_SHARDS


def test_an_anchor_is_never_stronger_than_all_other_shards(fitted):
    shards, settings, *_ = fitted
    many = settings._replace(nuts=settings.nuts._replace(num_samples=10**6))
    assert init(many, shards).anchor.strength == N_SHARDS - 1


# step


def test_a_step_from_the_same_state_is_the_same_step(fitted, first):
    shards, settings, *_ = fitted
    assert_same(step(settings, shards, init(settings, shards)), first)
    assert_same(step(settings, shards, first), step(settings, shards, first))


def test_a_step_leaves_its_state_as_it_was(fitted, first):
    shards, settings, *_ = fitted
    before = [np.copy(part) for part in (*first.anchor, first.shard_precision, *first.total)]
    step(settings, shards, first)
    after = [*first.anchor, first.shard_precision, *first.total]
    for part, same in zip(before, after, strict=True):
        np.testing.assert_array_equal(part, same)
    assert len(first.rounds) == len(first.factors) == 1


def test_one_round_from_the_answer_stays_there(fitted, first):
    """Anchors are taken out again: their precision is in no part of the answer."""
    *_, mean, covariance = fitted
    (this,) = first.rounds
    sd = np.sqrt(np.diag(covariance))
    # Four Monte Carlo errors of the mean, sqrt((1 + c) / ess); the precision, of three shards of
    # some `ess` draws each, errs by sqrt(2 (1 + c)^2 / (3 ess)), entry by entry in its own units.
    np.testing.assert_array_less(np.abs(this.mean - mean) / sd, 4 * this.noise)
    strength = this.anchor.strength
    ess = (1 + strength) / this.noise**2
    relative = 4 * (1 + strength) * np.sqrt(2 / (N_SHARDS * ess))
    precision = np.linalg.inv(this.covariance) * np.outer(sd, sd)
    np.testing.assert_allclose(precision, np.linalg.inv(covariance) * np.outer(sd, sd),
                               atol=relative)  # fmt: skip
    # Left in, the anchors would multiply the precision by 1 + c.
    assert relative < strength


def test_the_next_anchor_is_at_the_answer_so_far(fitted, first):
    this = first.rounds[0]
    np.testing.assert_array_equal(first.anchor.mean, this.mean)
    np.testing.assert_allclose(
        first.anchor.precision * N_SHARDS, first.anchor.strength * np.linalg.inv(this.covariance)
    )
    np.testing.assert_allclose(first.shard_precision * N_SHARDS, np.linalg.inv(this.covariance))


def test_rounds_have_randomness_of_their_own(fitted, first):
    shards, settings, *_ = fitted
    # The same state, but for the rounds that were counted before it.
    counted = settings._replace(guess=settings.guess._replace(rounds=first.rounds))
    state = init(settings, shards)
    again = step(counted, shards, state)
    assert not np.array_equal(again.total.draws, first.total.draws)


def test_shards_of_the_same_rows_have_draws_of_their_own(fitted):
    """What names the randomness is the shard, not its rows: else their errors would not average."""
    shards, settings, *_ = fitted
    same = shards._replace(data=[shards.data[0]] * N_SHARDS, sizes=[shards.sizes[0]] * N_SHARDS)
    state = step(settings, same, init(settings, same))
    means = np.array([report.mean for report in state.rounds[0].reports])
    assert len(np.unique(means[:, 0])) == N_SHARDS


def test_movement_is_in_sds_of_the_new_combination():
    covariance = np.diag([4.0, 1.0])
    before = state_of(np.nan).rounds[0]._replace(mean=np.array([1.0, 5.0]), covariance=covariance)
    moved = _movement(before, np.array([2.0, 5.0]), np.diag([16.0, 1.0]))
    # The mean by 1 of 4; the log sd by log 2.
    assert moved == pytest.approx(np.log(2))
    assert _movement(before, np.array([5.0, 5.0]), np.diag([9.0, 1.0])) == pytest.approx(4 / 3)
    assert _movement(before, before.mean, covariance) == 0


def test_rounds_average_what_they_found_if_the_first_anchor_knew_the_answer(fitted, first):
    shards, settings, *_ = fitted
    second = step(settings, shards, first)
    precision, shift = (np.mean([factor[i] for factor in second.factors], axis=0) for i in (0, 1))
    np.testing.assert_allclose(second.rounds[-1].mean, gaussian.solve(precision, shift))
    # A pilot knows one shard: its round is left out once there is another.
    naive = settings._replace(guess=settings.guess._replace(informed=False))
    second = step(naive, shards, first)
    np.testing.assert_allclose(second.rounds[-1].mean, gaussian.solve(*second.factors[-1]))


# done


def state_of(*moved):
    """A state after rounds that moved so far, each known to 0.1."""
    anchor = Anchor(np.zeros(2), np.eye(2), 1.0)
    rounds = tuple(Round([], np.zeros(2), np.eye(2), anchor, m, 0.1, 1.0) for m in moved)
    return AnchoredState(anchor, np.eye(2), rounds, (), None, [])


@pytest.mark.parametrize(
    ("moved", "most", "finished"),
    [
        ((), 1, False),
        ((np.nan,), 1, True),
        ((np.nan,), 2, False),  # one round has moved from nowhere
        ((np.nan, 0.09), 5, True),
        ((np.nan, 0.11), 5, False),
        ((np.nan, 0.11), 2, True),
        ((np.nan, 0.01, 0.11), 5, False),  # the last one counts
        ((np.nan, 0.5, 0.5, 0.5, 0.5), 5, True),
    ],
)
def test_rounds_end_when_they_stand_still_or_were_enough(moved, most, finished):
    settings = AnchoredSettings(None, None, most, None)
    assert done(settings, state_of(*moved)) is finished


# Going on


def test_a_run_goes_on_from_a_stored_state(fitted, first):
    shards, settings, *_ = fitted
    whole = anchored(settings, shards)
    state = first
    while not done(settings, state):
        state = step(settings, shards, state)
    last = state.rounds[-1]
    np.testing.assert_array_equal(last.mean, whole.mean)
    np.testing.assert_array_equal(last.covariance, whole.covariance)
    draws = gaussian.matched(gaussian.consensus_draws(state.total), last.mean, last.covariance)
    np.testing.assert_array_equal(draws, whole.draws)
    assert len(whole.rounds) == len(state.rounds) > 1


def test_local_sites_go_on_from_where_their_chains_ended():
    """What was sampled before is where the next round begins, shard by shard."""
    rows = from_pandas(frame(((12, 15, 9, 14, 10, 13),)))
    made = plan(rows, ZOO["intercepts"].model, by="county", method="anchored", n_shards=2)
    shards = shard_rows(rows, made, progress=False)
    guess = Guess(np.array([1.0, -0.5, 0.0]), np.eye(3) * 10, informed=False, modes=1)
    nuts = NutsSettings(200, 200)
    settings = AnchoredSettings(FitSettings(made.model, 1, True, 0), nuts, 2, guess)
    state = step(settings, shards, init(settings, shards))
    ends = dask.compute(*state.starts)
    assert [len(chains) for chains in ends] == [1, 1]
    for (end,), padded in zip(ends, shards.padded, strict=True):
        assert end.local["alpha"].shape == padded.groups
        assert np.isfinite(end.u).all()
    swapped = state._replace(starts=state.starts[::-1])
    straight, crossed = (step(settings, shards, s) for s in (state, swapped))
    assert not np.array_equal(straight.total.draws, crossed.total.draws)
