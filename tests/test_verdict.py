"""The verdict on diagnostics made by hand: what is flagged, by what name, and what is not."""

import dask
import numpy as np
import pytest

from dask_consensus.combination.ascent import Peak
from dask_consensus.combination.reports import (
    Anchor,
    Combined,
    LaplaceApproximation,
    NutsDiagnostics,
    Report,
    Round,
)
from dask_consensus.config import Options
from dask_consensus.correction.far import Beyond
from dask_consensus.correction.state import Correction
from dask_consensus.correction.weights import Estimate, Weighted
from dask_consensus.result.estimates import strange_shard
from dask_consensus.result.reasons import Earlier, Evidence
from dask_consensus.result.verdict import judge

NAMES = ["mu", "tau"]


def reports(n=12, seed=0, **changed):
    """Shards that agree but for chance; `changed` replaces fields of shard 3."""
    rng = np.random.default_rng(seed)
    nuts = NutsDiagnostics(
        skew=np.zeros(2),
        joint_skew=np.zeros(2),
        ess=np.full(2, 900.0),
        r_hat=np.ones(2),
        divergences=0,
        steps=7.0,
        step_size=0.5,
        accept_prob=0.8,
    )
    alike = [
        Report(
            rows=100,
            groups=(),
            weight=1 / n,
            mean=rng.normal(size=2) * np.sqrt(n),
            precision=np.eye(2) / n,
            seconds=1.0,
            compile_seconds=0.0,
            nuts=nuts,
        )
        for _ in range(n)
    ]
    of_nuts = {name: value for name, value in changed.items() if name in NutsDiagnostics._fields}
    others = {name: value for name, value in changed.items() if name not in of_nuts}
    alike[3] = alike[3]._replace(nuts=nuts._replace(**of_nuts), **others)
    return alike


def combined(reports, mean=(0.0, 0.0), movement=0.01):
    mean = np.array(mean)
    anchor = Anchor(mean, np.zeros((2, 2)), 0.0)
    last = Round(reports, mean, np.eye(2), anchor, movement, 0.05, 1.0)
    return Combined(np.zeros((1, 1000, 2)), mean, np.eye(2), [last], "anchored")


def correction(**changed):
    points = Weighted(np.zeros((3000, 2)), np.full(3000, 1 / 3000))
    estimate = Estimate(
        measure=points,
        population=points,
        mean=np.zeros(2),
        covariance=np.eye(2),
        error=np.full(2, 0.02),
        sd_error=np.full(2, 0.01),
        ess=2500.0,
        log_total=0.0,
        log_total_error=0.01,
    )
    own = {name: value for name, value in changed.items() if name in Estimate._fields}
    good = {
        "points": points.points,
        "weights": points.weights,
        "iteration": np.zeros(3000, int),
        "k_hat": 0.1,
        "estimate": estimate._replace(**own),
        "emulator_error": np.nan,
        "integration_error": np.zeros(2),
        "integration_sd_error": np.zeros(2),
        "sampling_error": np.zeros(2),
        "sampling_sd_error": np.zeros(2),
        "sampled_shards": 0,
        "nodes": 1,
        "modes": 1,
        "log_evidence": 0.0,
        "log_evidence_error": 0.01,
        "modes_not_found": 0.0,
        "coupling": 0.0,
        "tail_log_ratio": np.full(2, -5.0),
        "landmark_log_ratio": -np.inf,
        "discrepancy": 0.5,
        "seconds": 1.0,
        "compile_seconds": 0.0,
    }
    rest = {name: value for name, value in changed.items() if name not in own}
    return Correction(**(good | rest))


def verdict(combination, corrected=None, because="correct=False", **evidence):
    return judge(
        Evidence(
            names=NAMES,
            options=Options.frozen(),
            combined=combination,
            correction=corrected,
            uncorrected_because=because,
            **evidence,
        )
    )


LIMITS = {
    "k-hat": ({"k_hat": 0.65}, 0.6),
    "ess": ({"ess": 450.0}, 500),
    "sd-error": ({"sd_error": np.array([0.01, 0.04])}, 0.03),
    "integration-error": ({"integration_error": np.array([0.04, 0.0])}, 0.03),
    "tail-log-ratio": ({"tail_log_ratio": np.array([0.0, 1.5])}, 1),
    "coupling": ({"coupling": 0.015}, 0.01),
    "modes-not-found": ({"modes_not_found": 0.005}, 0.001),
    "r-hat": ({"r_hat": np.array([1.0, 1.03])}, 1.02),
    "shard-ess": ({"ess": np.array([60.0, 900.0])}, 70),
    "divergences": ({"divergences": 100}, 0.005),
    "strange-shard": ({"mean": np.array([0.0, 5.0 * np.sqrt(12)])}, 3),
    "approximate-error": ({}, 0.1),
}


@pytest.mark.parametrize("key", LIMITS)
def test_each_limit_is_the_configured_one(key):
    """What is good by the defaults is not by a stricter limit, and nothing else is said of it."""
    changed, strict = LIMITS[key]
    corrected = not {"r-hat", "shard-ess", "divergences", "approximate-error"} & {key}
    of_shards = key in ("r-hat", "shard-ess", "divergences", "strange-shard")
    approximation = LaplaceApproximation(np.array([0.2, 0.0]), np.eye(2), np.zeros(2), 1, [])

    def codes():
        judged = verdict(
            combined(reports(**changed) if of_shards else reports()),
            correction(**({} if of_shards else changed)) if corrected else None,
            approximation=None if corrected else approximation,
        )
        return [reason.code for reason in judged.reasons], judged.reasons

    assert codes()[0] == []
    with dask.config.set({f"consensus.verdict.{key}": strict}):
        names, reasons = codes()
    assert names == [{"integration-error": "integration", "tail-log-ratio": "tail"}.get(key, key)]
    assert reasons[0].threshold == pytest.approx(strict)


def test_good_diagnostics_are_good():
    found = verdict(combined(reports()), correction())
    assert found.good
    np.testing.assert_allclose(found.error, 0.02)
    assert found.text.startswith("Good: this is the full model's posterior")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"k_hat": 0.75}, "k-hat 0.75"),
        ({"ess": 300.0}, "3,000 weighted points are as good as 300 independent"),
        ({"sd_error": np.array([0.01, 0.2])}, "the sd of tau is known to 20% only"),
        ({"integration_error": np.array([0.3, 0.0])}, "0.3 posterior sds in the mean of mu"),
        ({"tail_log_ratio": np.array([0.0, 3.0])}, "mass far out on tau"),
        ({"coupling": 0.5}, "effects couple groups"),
        ({"modes_not_found": 0.2}, "the mode of 20.0% of the groups was not found"),
    ],
)
def test_each_trouble_of_a_correction_is_named(changed, reason):
    found = verdict(combined(reports()), correction(**changed))
    assert not found.good
    assert len(found.reasons) == 1
    assert reason in found.text
    assert found.text.endswith(f". See docs/verdict.md#{found.reasons[0].code}.")


def test_unusable_weights_leave_the_error_unknown():
    found = verdict(combined(reports()), correction(k_hat=3.0, ess=2.0))
    assert not found.good
    assert np.isinf(found.error).all()
    assert "may be off by an unknown amount" in found.text
    assert "as good as 2 independent draws, which are too poor to use: the posterior" in found.text
    # Where the mean of the weights does not settle, their effective size means nothing.
    found = verdict(combined(reports()), correction(k_hat=10.0, ess=1e9))
    assert "(k-hat 10.00), whose weights are too poor to use: the posterior" in found.text


def test_uncorrected_means_are_held_against_the_mode():
    approximation = LaplaceApproximation(
        np.array([0.3, 0.0]), np.eye(2), np.array([0.0, 0.04]), 1, []
    )
    found = verdict(combined(reports(), mean=(0.0, 0.03)), approximation=approximation)
    np.testing.assert_allclose(found.error, [0.3, 0.05])
    assert "the estimated error of mu is 0.3 posterior sds" in found.text


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"r_hat": np.array([1.0, 1.4])}, "shard 3 has r_hat 1.40 on tau"),
        ({"ess": np.array([20.0, 900.0])}, "shard 3 has 20 effective draws of mu"),
        ({"divergences": 400}, "400 divergences"),
    ],
)
def test_each_trouble_of_sampling_is_named(changed, reason):
    approximation = LaplaceApproximation(np.zeros(2), np.eye(2), np.zeros(2), 1, [])
    found = verdict(combined(reports(**changed)), approximation=approximation)
    assert not found.good
    assert reason in found.text


def test_mass_off_every_line_is_named():
    far = Beyond(np.array([0.02, 0.0]), np.array([0.0, 0.2]), 0)
    (reason,) = verdict(combined(reports()), correction(beyond=far)).reasons
    assert (reason.code, reason.value, reason.where) == ("tail", 0.2, "tau")
    assert "far out on mu" in reason.problem
    assert verdict(combined(reports()), correction(beyond=far._replace(sd=np.zeros(2)))).good


def test_an_integral_without_a_second_opinion_is_no_number():
    found = verdict(combined(reports()), correction(integration_error=np.array([np.inf, 0.0])))
    assert [reason.code for reason in found.reasons] == ["integration"]
    assert "one of two ways to integrate the local effects () gave no number" in found.text


def sampled(draws, **changed):
    """Chains on all rows."""
    nuts = reports()[0].nuts._replace(**changed)
    alone = reports()[0]._replace(weight=1.0, nuts=nuts)
    return combined([alone])._replace(draws=draws, method="nuts")


def two_modes(reached=3):
    """The highest mode at 0, and another at 5 that is nearly as high."""
    other = Peak(np.full(2, 5.0), np.eye(2), -1.0)
    zero = np.zeros(2)
    return LaplaceApproximation(
        zero, np.eye(2), zero, 2, [], reached=reached, searched=24, others=(other,)
    )


def test_chains_on_all_rows_must_have_been_at_every_mode():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4, 100, 2))
    both = one + 5.0 * (np.arange(100) % 2)[:, None]
    for draws, good in ((one, False), (both, True)):
        found = verdict(sampled(draws), approximation=two_modes(), modes=2)
        assert found.good is good
        assert [reason.code for reason in found.reasons] == ([] if good else ["modes"])
    # One that was not looked at on all shards may be anywhere; one of no mass is no matter.
    assert not verdict(sampled(both), approximation=two_modes(), modes=3).good
    low = two_modes()._replace(others=(Peak(np.full(2, 5.0), np.eye(2), -9.0),))
    assert verdict(sampled(one), approximation=low, modes=2).good


def test_modes_beside_the_highest_may_be_lone():
    found = two_modes(reached=20)._replace(lone=1, searched=72)
    near = correction(landmark_log_ratio=-3.0)
    reasons = verdict(combined(reports()), near, approximation=found, modes=2).reasons
    assert [reason.code for reason in reasons] == ["lone-mode"]
    assert "of 2 modes 1 were reached by one each of 72 searches" in reasons[0].problem
    few = found._replace(lone=0)
    assert verdict(combined(reports()), near, approximation=few, modes=2).good


def test_chains_that_come_to_a_lone_mode_are_as_many_searches():
    lone = two_modes(reached=1)._replace(others=())
    there = np.random.default_rng(0).normal(size=(4, 100, 2))
    elsewhere = there + 9.0 * (np.arange(4) == 3)[:, None, None]
    assert verdict(sampled(there), approximation=lone).good
    codes = [r.code for r in verdict(sampled(elsewhere), approximation=lone).reasons]
    assert codes == ["lone-mode"]


@pytest.mark.parametrize(("ess", "code"), [(30.0, "shard-ess"), (300.0, "ess"), (500.0, None)])
def test_chains_on_all_rows_are_held_to_what_points_are(ess, code):
    found = verdict(sampled(np.zeros((4, 100, 2)), ess=np.array([ess, 900.0])))
    assert [reason.code for reason in found.reasons] == ([code] if code else [])
    assert "4 chains (r_hat at most 1.00)" in found.text
    assert "shard 0" not in found.text


def test_modes_and_coupling_are_named():
    assert "2 separate modes" in verdict(combined(reports()), modes=2).text
    # The points of a correction reach both, or not where one would have weighed most.
    assert verdict(combined(reports()), correction(), modes=2).good
    missed = verdict(combined(reports()), correction(landmark_log_ratio=9.0))
    assert [(r.code, r.value, r.threshold) for r in missed.reasons] == [("modes", 9.0, 2.0)]
    assert "places that no point is near, where weights would be e^9 times as large" in missed.text
    ridge = LaplaceApproximation(np.zeros(2), np.eye(2), np.zeros(2), 1, [])
    ridge = ridge._replace(along=(Peak(np.ones(2), np.eye(2), 0.0),) * 7)
    (piece,) = verdict(combined(reports()), approximation=ridge).reasons
    assert (piece.code, piece.value, piece.threshold) == ("modes", 8, 1)
    assert "a curved ridge" in piece.problem
    found = verdict(combined(reports()), coupled=("obs",))
    assert "groups depend on each other through obs" in found.text
    assert np.isinf(found.error).all()


def test_coupled_groups_are_not_told_to_draw_more():
    """No number of draws or rounds uncouples them: advice that changes nothing is a defect."""
    judged = verdict(combined(reports()), coupled=("obs",), because="groups depend on each other")
    assert [reason.code for reason in judged.reasons] == ["coupled"]


@pytest.mark.parametrize("seed", range(20))
def test_shards_that_differ_by_chance_are_not_strange(seed):
    assert strange_shard(combined(reports(n=8, seed=seed)), 6.0) is None
    assert strange_shard(combined(reports(n=40, seed=seed)), 6.0) is None


@pytest.mark.parametrize("n", [5, 12, 40])
def test_a_shard_far_from_all_others_is_named_with_its_coordinate(n):
    far = reports(n, mean=np.array([0.0, 12.0 * np.sqrt(n)]))
    assert strange_shard(combined(far), 6.0)[:2] == (3, 1)
    assert "shard 3 disagrees with the others, most on tau" in verdict(combined(far)).text


# What must never be good


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"k_hat": np.nan}, "k-hat"),
        ({"ess": np.nan}, "ess"),
        ({"sd_error": np.array([0.01, np.nan])}, "sd-error"),
        ({"tail_log_ratio": np.array([np.nan, -5.0])}, "tail"),
        ({"integration_error": np.array([np.nan, 0.0])}, "integration"),
        ({"coupling": np.nan}, "coupling"),
        ({"modes_not_found": np.nan}, "modes-not-found"),
    ],
)
def test_what_is_not_a_number_is_not_good(changed, code):
    judged = verdict(combined(reports()), correction(**changed))
    assert [reason.code for reason in judged.reasons] == [code]


def test_an_error_that_is_not_a_number_is_unknown():
    judged = verdict(combined(reports()), correction(error=np.array([0.02, np.nan])))
    np.testing.assert_array_equal(judged.error, [0.02, np.inf])


def test_weights_that_cannot_be_used_are_not_good_whatever_the_threshold():
    """The posterior given is then the uncorrected one."""
    with dask.config.set({"consensus.verdict.ess": 0}):
        judged = verdict(combined(reports()), correction(ess=8.0))
    assert [reason.code for reason in judged.reasons] == ["ess"]
    assert np.isinf(judged.error).all()


def test_a_correction_is_advised_only_where_there_can_be_one():
    skewed = LaplaceApproximation(np.array([0.5, 0.0]), np.eye(2), np.zeros(2), 1, [])
    for correctable in (True, False):
        judged = verdict(combined(reports()), approximation=skewed, correctable=correctable)
        (reason,) = judged.reasons
        assert (reason.remedy == "leave correct at 'auto'") is correctable


def test_an_update_hands_on_what_was_uncertain():
    """Errors of the earlier fit are in the accuracy; a bad one stays bad, of unknown size."""
    carried = np.array([0.02, 0.2])
    earlier = Earlier(rows=1000, new_rows=10, number=2, carried=carried, codes=())
    good = verdict(combined(reports()), correction(), earlier=earlier)
    assert good.good
    assert "10 new rows were added to the posterior of 1,000 (update 2)" in good.text
    rough = correction(sampling_error=np.array([0.03, 0.0]))
    assert (
        "speaks for old rows adds 0.03 posterior sds"
        in verdict(combined(reports()), rough, earlier=earlier).text
    )
    alone = verdict(combined(reports()), because="correct=False", earlier=earlier)
    assert (alone.error >= carried).all()
    assert "not corrected, because correct=False" in alone.text
    bad = verdict(
        combined(reports()),
        correction(),
        earlier=earlier._replace(codes=("modes",)),
    )
    assert [reason.code for reason in bad.reasons] == ["earlier-fit"]
    assert np.isinf(bad.error).all()
    few = verdict(combined(reports()), correction(k_hat=0.9), earlier=earlier)
    assert "fit all rows together" in few.reasons[0].remedy
    assert "iterations" not in few.text
