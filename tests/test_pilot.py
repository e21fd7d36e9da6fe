"""What the pilot's chains agree on: stuck chains, second modes, heights that are not known."""

import pickle

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from dask_consensus.combination import gaussian
from dask_consensus.combination.mode_search import FAR
from dask_consensus.combination.pilot import _chain, agree
from dask_consensus.combination.subposterior import SamplingFailed
from dask_consensus.shard.nuts import Draws, NutsSettings

from .test_marginal import data_of, read


def chain(mean, sd=1.0, n=100, seed=0, ess=100.0):
    """One chain of independent normal draws; a chain of sd 0 got stuck."""
    u = np.asarray(mean) + sd * np.random.default_rng(seed).normal(size=(1, n, len(mean)))
    d = len(mean)
    return Draws(u, np.full(d, ess), np.ones(d), 0, 7.0, 0.5, 0.8, 1.0, 0.0)


def pooled(chains):
    return np.concatenate([chain.u[0] for chain in chains])


def test_chains_that_agree_are_pooled():
    chains = [chain([1.0, -2.0], seed=seed) for seed in range(4)]
    guess = agree(chains, np.zeros(4))
    draws = pooled(chains)
    np.testing.assert_allclose(guess.mean, draws.mean(axis=0))
    # 400 effective draws; a millionth of each variance is added to the covariance.
    covariance = np.cov(draws.T)
    expected = (400 - 4) / 399 * np.linalg.inv(covariance + 1e-6 * np.diag(np.diag(covariance)))
    np.testing.assert_allclose(guess.shard_precision, expected, rtol=1e-10)
    assert guess.modes == 1
    assert not guess.informed


def test_a_stuck_chain_is_dropped():
    sound = [chain([0.0, 0.0], seed=seed) for seed in range(3)]
    stuck = chain([30.0, 0.0], sd=1e-3, seed=3)
    guess = agree([stuck, *sound], np.array([-500.0, -2.0, -1.0, -2.5]))
    np.testing.assert_allclose(guess.mean, pooled(sound).mean(axis=0))
    # Where it got stuck the density is e^500 times lower: no mode to tell of.
    assert guess.modes == 1


def test_a_chain_that_never_moved_is_near_those_whose_draws_reach_it():
    """Its own sd is zero; distances are in units of the wider of two chains."""
    moving = [chain([0.0], seed=seed) for seed in range(2)]
    still = chain([1.0], sd=0.0)
    guess = agree([still, *moving], np.array([-0.5, 0.0, 0.0]))
    np.testing.assert_allclose(guess.mean, pooled([still, *moving]).mean(axis=0))
    assert guess.modes == 1


def test_chains_that_all_stand_still_are_refused():
    with pytest.raises(ValueError, match="singular"):
        agree([chain([1.0, 2.0], sd=0.0)] * 2, np.zeros(2))


@pytest.mark.parametrize(("lower_by", "modes"), [(5.0, 2), (13.9, 2), (14.1, 1), (500.0, 1)])
def test_a_second_place_counts_if_it_is_comparable(lower_by, modes):
    """Up to 12 and the number of dimensions below the highest."""
    here, there = (chain([x, 0.0], seed=seed) for seed, x in enumerate((0.0, 20.0)))
    guess = agree([there, here, there], np.array([-lower_by, 0.0, -lower_by]))
    assert guess.modes == modes
    # The best place is described, though more chains are at the other one.
    np.testing.assert_allclose(guess.mean, here.u[0].mean(axis=0))


def test_three_places_are_three_modes_however_many_chains_are_there():
    places = (0.0, 20.0, 20.0, 40.0, 20.0, 40.0)
    chains = [chain([x], seed=seed) for seed, x in enumerate(places)]
    assert agree(chains, np.zeros(6)).modes == 3


@pytest.mark.parametrize(("factor", "modes"), [(0.9, 1), (1.1, 2)])
def test_places_are_apart_beyond_what_one_normal_reaches(factor, modes):
    one, other = (chain([x], seed=0) for x in (0.0, 1.0))
    sd = one.u[0].std()
    shifted = one._replace(u=one.u + factor * FAR * sd)
    assert agree([one, shifted], np.zeros(2)).modes == modes
    assert agree([one, other], np.zeros(2)).modes == 1


def test_without_heights_the_majority_wins():
    unknown = np.full(5, np.nan)
    many = [chain([0.0], seed=seed) for seed in range(3)]
    few = [chain([20.0], seed=seed) for seed in (3, 4)]
    guess = agree([few[0], *many, few[1]], unknown)
    np.testing.assert_allclose(guess.mean, pooled(many).mean(axis=0))
    # Two chains that agree with each other are a second mode, one alone got stuck.
    assert guess.modes == 2
    assert agree([few[0], *many], unknown[:4]).modes == 1


def test_a_chain_without_a_height_is_never_the_best_nor_a_mode():
    chains = [chain([x], seed=seed) for seed, x in enumerate((20.0, 0.0, 0.0))]
    guess = agree(chains, np.array([np.nan, -3.0, -2.0]))
    np.testing.assert_allclose(guess.mean, pooled(chains[1:]).mean(axis=0))
    assert guess.modes == 1


def test_too_few_effective_draws_still_give_an_anchor():
    """In 6 dimensions an unbiased precision needs more than 8; half as many again are assumed."""
    chains = [chain(np.zeros(6), n=20, ess=2.0, seed=seed) for seed in range(2)]
    guess = agree(chains, np.zeros(2))
    covariance = np.cov(pooled(chains).T)
    biased = gaussian.inverse(covariance + 1e-6 * np.diag(np.diag(covariance)))
    np.testing.assert_allclose(guess.shard_precision, (13 - 8) / 12 * biased, rtol=1e-10)
    assert np.linalg.eigvalsh(guess.shard_precision).min() > 0


def test_fewer_draws_than_dimensions_are_no_singular_anchor():
    guess = agree([chain(np.zeros(6), n=5, ess=5.0)], np.zeros(1))
    assert np.isfinite(guess.shard_precision).all()
    assert np.linalg.eigvalsh(guess.shard_precision).min() > 0


def test_a_shard_without_a_starting_point_is_named():
    """By an error that can travel: what sampling raises cannot be pickled."""

    def waits(delay):
        rate = numpyro.sample("rate", dist.Gamma(2, 2))
        with numpyro.plate("rows", len(delay)):
            numpyro.sample("obs", dist.Gamma(2.0, rate), obs=delay)

    model = read(waits, {"delay": np.ones(20)})
    data = data_of({"delay": np.where(np.arange(20) == 7, -1.0, 1.0)})
    with pytest.raises(SamplingFailed, match=r"shard 3 \(20 rows\): .*site 'obs' is not") as told:
        _chain(data, 3, model, NutsSettings(2, 4), (0, 0, 0))
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)
