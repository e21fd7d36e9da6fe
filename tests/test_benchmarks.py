"""Every script of the benchmarks at toy size, so that it cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from benchmarks import (
    agreement,
    calibration,
    effects,
    faults,
    forecast,
    gradient,
    loo,
    predictions,
    reference,
    rivals,
    sampling,
    scale,
    speed,
    updates,
    verdict,
)
from benchmarks.cases.drawn import LIKELIHOODS, drawn_trial
from benchmarks.cases.hostile import TRIALS
from benchmarks.measure import odd
from benchmarks.measure.posterior import posterior
from benchmarks.measure.ranks import uniformity
from benchmarks.measure.script import RESULTS
from benchmarks.measure.watch import Watched
from benchmarks.tables.verdict import judged

from .answers import slow_or_broken

pytestmark = [
    # A toy fit may be judged bad, and NumPyro, JAX and Dask warn of toy sizes.
    pytest.mark.filterwarnings("ignore"),
]


def rows_of(results: Path, name: str) -> list[dict]:
    rows = json.loads((results / f"{name}.json").read_text())
    assert all(row["machine"]["commit"] is not None for row in rows)
    return rows


def test_reference_and_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--toy", "--results", str(tmp_path), "--case", "variances-2"]
    methods = ["--methods", "numpyro", "anchored", "corrected"]
    reference.main(toy)
    agreement.main([*toy, *methods])
    rows = rows_of(tmp_path, "agreement")
    assert [row["method"] for row in rows] == methods[1:]
    assert all({"constrained", "seconds", "cpu_seconds"} <= set(row) for row in rows)
    # The closed form is met, whatever the number of rows.
    known = json.loads((tmp_path / "references" / "variances-2.json").read_text())
    tau, corrected = known["unconstrained"]["tau"], rows[-1]["unconstrained"]["tau"]
    assert abs(corrected["mean"] - tau["mean"]) < 0.1 * tau["sd"]
    # What is in the file is not run again, and what has no toy size is skipped.
    agreement.main([*toy, "osic", *methods])
    assert rows_of(tmp_path, "agreement") == rows
    printed = capsys.readouterr().out
    assert "osic: skipped, it has no toy size" in printed
    assert "| variances-2 | 2 |" in printed


@pytest.mark.slow
def test_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecast.main(["--toy", "--results", str(tmp_path), "--cpu"])
    planned, fitted = rows_of(tmp_path, "forecast")
    assert set(planned["forecast"]["seconds"]) > set(forecast.PHASES) - {"rounds"}
    assert fitted["used"]["tasks"] > 0
    printed = capsys.readouterr().out
    assert "| binary | 400 | 4 | search |" in printed
    assert "| binary | 400 | 4 | all, by the plan |" in printed


@pytest.mark.slow
def test_rivals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = ["--toy", "--results", str(tmp_path), "--model", "binary"]
    monkeypatch.setattr(rivals.shutil, "which", lambda _: None)
    rivals.main([*toy, "--who", rivals.OURS, "lme4"])
    (row,) = rows_of(tmp_path, "rivals")
    assert set(row["estimates"]) == set(row["sds"]) == {"alpha", "beta", "tau"}
    printed = capsys.readouterr().out
    assert "lme4 is left out: R is not installed" in printed
    assert "| binary | 400 | this package |" in printed


@pytest.mark.slow
def test_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with dask.config.set({"consensus.correction.sampled-rows": 1}):
        sampling.main(["--toy", "--results", str(tmp_path)])
    (row,) = rows_of(tmp_path, "sampling")
    assert row["all"] + len(row["asked"]) == 5
    assert all(asked <= 10 for asked in row["asked"])
    assert "| binary | 4,000 | 20 |" in capsys.readouterr().out


@pytest.mark.slow
def test_effects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    effects.main(["--toy", "--results", str(tmp_path)])
    covered, stored = rows_of(tmp_path, "effects")
    assert covered["groups"] == 60
    assert 30 < covered["held_summary"] <= 60
    assert stored["dims"] == {"chain": 1, "draw": 8, "group": 60}
    printed = capsys.readouterr().out
    assert "| binary | 3 | 60 |" in printed
    assert "| 600 | 60 | 2 | 8 |" in printed


@pytest.mark.slow
def test_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions.main(["--toy", "--results", str(tmp_path)])
    covered, fast = rows_of(tmp_path, "predictions")
    assert 40 < covered["seen"]["90%"] <= 60
    assert all(speed > 100 for speed in fast["rows_a_second"].values())
    printed = capsys.readouterr().out
    assert "| binary | 3 | 60 |" in printed
    assert "| 4,000 | expected: mean |" in printed


@pytest.mark.slow
def test_loo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loo.main(["--toy", "--results", str(tmp_path)])
    (row,) = rows_of(tmp_path, "loo")
    assert row["group elpd"][0] < row["row elpd"][0] < -1_500
    assert "| 3,000 |" in capsys.readouterr().out


@pytest.mark.slow
def test_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    updates.main(["--toy", "--results", str(tmp_path)])
    agreement_, work = rows_of(tmp_path, "updates")
    (last,) = agreement_["after"]
    assert last["good"]
    assert last["rows"] > 1_500
    assert last["in_errors"] < 4
    assert work["good"]
    assert "| binary | 5% | 10 |" in capsys.readouterr().out


def test_patients_have_a_closed_form() -> None:
    found = {"mu_a": [1.0, 2.0], "mu_b": [0.1, 0.2], "sigma_a": [2.0, 0.5], "sigma": [1.0, 0.3]}
    draws = {name: np.array(values) for name, values in found.items()}
    frame = pd.DataFrame({"Patient": list("aab"), "Weeks": [1.0, 3.0, 2.0], "FVC": [0.0, 2.0, 1.0]})
    likely = loo._of_patients({**draws, "sigma_b": np.array([0.3, 0.1])}, frame)
    assert likely.shape == (2, 2)
    covariance = [[4 + 0.09 + 1, 4 + 0.27], [4 + 0.27, 4 + 0.81 + 1]]
    wanted = scipy.stats.multivariate_normal.logpdf([0.0, 2.0], [1.1, 1.3], covariance)
    assert likely[0, 0] == pytest.approx(wanted)
    wanted = scipy.stats.norm.logpdf(1.0, 2.4, np.sqrt(0.25 + 0.09))
    assert loo._of_patients(draws, frame)[1, 1] == pytest.approx(wanted)


@pytest.mark.slow
def test_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--toy", "--results", str(tmp_path)]
    calibration.main(toy)
    rows = rows_of(tmp_path, "calibration")
    assert [row["simulation"] for row in rows] == [0, 1]
    for row in rows:
        assert {name: len(ranks) for name, ranks in row["ranks"].items()} == {
            "mu": 1, "beta": 1, "tau": 1, "a": 3, "log lik": 1
        }  # fmt: skip
        assert all(0 <= rank <= 19 for ranks in row["ranks"].values() for rank in ranks)
    # What is in the file is not fitted again, and the picture is drawn from it.
    calibration.main([*toy, "--picture", str(tmp_path / "ecdf.png")])
    assert rows_of(tmp_path, "calibration") == rows
    assert (tmp_path / "ecdf.png").is_file()
    printed = capsys.readouterr().out
    assert "| counts | 2 |" in printed
    assert "| counts | log lik | 2 |" in printed


@pytest.mark.parametrize("name", list(calibration.MODELS))
def test_simulations_of_a_model_differ_in_values_alone(name: str) -> None:
    simulation = calibration.MODELS[name]
    first, again, other = (
        calibration.simulated(simulation.model, 12, np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    for part, same, different in zip(first, again, other, strict=True):
        for site, value in part.items():
            np.testing.assert_array_equal(value, same[site])
            assert value.shape == different[site].shape
    assert not np.array_equal(first[0]["y"], other[0]["y"])
    assert np.array_equal(np.bincount(first[0]["group"]), [*range(3, 13), 3, 4])
    for site, at in [*simulation.shared.values(), *simulation.effects.values()]:
        assert first[1][site][(..., *at)].shape in ((), (12,))


def test_ranks_are_uniform_or_not() -> None:
    n, draws = 200, 199
    rng = np.random.default_rng(0)
    exact = [uniformity(ranks, draws) for ranks in rng.integers(0, draws + 1, (500, n))]
    # A share of 5% of 500 is known to 1%.
    assert abs(np.mean([test.inside for test in exact]) - 0.95) < 0.03
    assert all(test.inside == (test.ecdf > 0.05) for test in exact)
    assert np.abs(np.mean([test.shares for test in exact], axis=0) - [0.5, 0.9]).max() < 0.01
    # Draws half as wide as the posterior, and such that are half a sd too low.
    true, noise = rng.normal(size=(n, 1)), rng.normal(size=(n, draws))
    for wrong in (0.5 * noise, noise - 0.5):
        test = uniformity((wrong < true).sum(axis=1), draws)
        assert not test.inside
        assert test.chi2 < 1e-3


@pytest.mark.slow
def test_reference_by_nuts_and_a_case_built_to_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = ["--toy", "--results", str(tmp_path), "--case", "coupled"]
    reference.main(toy)
    known = json.loads((tmp_path / "references" / "coupled.json").read_text())
    assert set(known["unconstrained"]) == {"beta", "mu", "sigma", "tau"}
    assert known["cpu_seconds"].keys() == {"compile", "warmup", "sampling"}
    agreement.main([*toy, "--methods", "one-shot", "laplace", "corrected"])
    assert "| coupled | effects that couple groups | 1 of 1 |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hmcecs", "full", "loop", "svi"])
def test_speed(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed.main([part, "--toy", "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path, "speed")
    assert {row["part"] for row in rows} == {part}
    assert all({"who", "rows", "seconds", "compile_seconds"} <= set(row) for row in rows)
    assert all(row["ess"] > 0 for row in rows if part not in ("loop", "svi"))
    assert "| ours" in printed or "ours: s" in printed


@pytest.mark.slow
def test_all_ways_of_the_loop(tmp_path: Path) -> None:
    ways = speed.loop.WAYS
    speed.main(["loop", "--toy", "--results", str(tmp_path), "--ways", *ways])
    assert [row["who"] for row in rows_of(tmp_path, "speed")] == list(ways)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.distributed
def test_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--toy", "--results", str(tmp_path)]
    faults.main(toy)
    plain, killed, frames, models = rows_of(tmp_path, "faults")
    assert plain["repeated"] == 0
    assert killed["struck"]
    assert killed["finished"]
    assert killed["identical"]
    assert killed["repeated"] > 0
    for drawn in (frames, models):
        assert sum(drawn["outcomes"].values()) == 10
        assert drawn["wrong"] == []
    printed = capsys.readouterr().out
    assert "| SIGKILL, one of two workers | search | 1 | 1 | 1 |" in printed
    assert "| frames | 10 |" in printed
    # What is in the file is not tried again.
    faults.main(toy)
    assert rows_of(tmp_path, "faults") == [plain, killed, frames, models]


def test_frames_drawn_at_random_are_right_or_refused() -> None:
    row = odd.frames()({"first": 0, "count": 20})
    assert row["wrong"] == []
    assert row["outcomes"]["right"] > 5
    assert row["outcomes"]["refused"] > 5


def test_a_frame_that_is_cut_wrongly_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = odd.cut

    def mixed(*given, **named):
        made = real(*given, **named)
        for shard in made.shards:
            shard.arguments["x"] = shard.arguments["x"] + 1
        return made

    monkeypatch.setattr(odd, "cut", mixed)
    row = odd.frames()({"first": 0, "count": 20})
    assert row["outcomes"].get("right", 0) == 0
    assert "values are not what they were" in row["wrong"][0][2]


@pytest.mark.slow
@pytest.mark.distributed
def test_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--toy", "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [row["rows"] for row in rows_of(tmp_path, "scale")] == scale.TOY["rows"]
    assert len(rows_of(tmp_path, "cores")) == 3
    assert {row["way"] for row in rows_of(tmp_path, "reduction")} == set(scale.WAYS)
    assert "PJRT_NPROC=1" in printed


def test_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gradient.main(["--toy", "--results", str(tmp_path)])
    assert len(rows_of(tmp_path, "gradient")) == 4
    assert "the model's" in capsys.readouterr().out


def test_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--toy", "--results", str(tmp_path)]
    verdict.main(toy)
    (row,) = rows_of(tmp_path, "verdict")
    assert {"good", "reasons", "moments", "seconds"} <= set(row)
    (known,) = json.loads(
        (tmp_path / "references/verdict/spike-and-slab.json").read_text()
    ).values()
    assert known["complete"]
    assert set(known["moments"]) == set(row["moments"])
    printed = capsys.readouterr().out
    assert "| spike-and-slab | 1 |" in printed
    assert "no reference | 0 |" in printed
    # What is in the files is neither fitted nor sampled again, and the figure is drawn from it.
    verdict.main([*toy, "--figure"])
    assert rows_of(tmp_path, "verdict") == [row]
    assert (tmp_path / "verdict-calibration.png").is_file()


@pytest.mark.slow
def test_verdict_of_a_model_drawn_at_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict.main(["--toy", "--results", str(tmp_path), "--random", "1", "--first", "2"])
    assert [row["case"] for row in rows_of(tmp_path, "verdict")] == ["random-2"]
    assert "| random-2 | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(TRIALS))
def test_rows_of_a_trial_have_one_shape_and_follow_the_seed(name: str) -> None:
    first, again, other = (TRIALS[name].at(seed).frame() for seed in (0, 0, 1))
    assert first.equals(again)
    assert first.shape == other.shape
    assert not first.equals(other)


# Each was called good once, and was wrong.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shards", "seed"),
    [("needle", 4, 0), ("torn-group", 20, 1), ("durations", 4, 0), ("wild-effects", 4, 0)],
)
def test_a_trial_that_was_wrong_is_right_or_refused_for_a_true_reason(
    name: str, shards: int, seed: int
) -> None:
    trial = TRIALS[name]
    row = verdict.fits(name)({"seed": seed, "shards": shards})
    fit = judged(row, verdict.compact(posterior(trial.at(seed), None)), trial)
    assert fit.outcome in ("good", "refused"), (fit.first, fit.mean)


@pytest.mark.parametrize("number", range(2 * len(LIKELIHOODS)))
def test_models_drawn_at_random_are_numbered(number: int) -> None:
    trial = drawn_trial(number)
    frame = trial.frame()
    assert frame.equals(trial.at(0).frame())
    assert set(trial.arguments(frame)[0]) == set(frame.columns)


def test_an_answer_that_takes_too_long_stops_nothing() -> None:
    with Watched(slow_or_broken, (6,), 120.0) as answer:
        assert answer({"seconds": 0, "by": 2}) == {"value": 3}
        broken = answer({"seconds": 0, "by": 0})
        assert broken["code"] == "crash"
        assert "ZeroDivisionError" in broken["failed"]
        answer.seconds = 0.5
        assert answer({"seconds": 60, "by": 1})["failed"] == "no answer in 0.5 s"
        answer.seconds = 120.0
        assert answer({"seconds": 0, "by": 3}) == {"value": 2}


@pytest.mark.parametrize("script", [agreement, speed, scale, gradient, verdict, rivals])
def test_tables_print_from_the_stored_results(script, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--table"])
    assert capsys.readouterr().out.count("|---|") >= 3


def test_toy_never_writes_over_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--toy"])
    with pytest.raises(SystemExit):
        scale.main(["--toy", "--results", str(RESULTS)])
    assert "--results" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_runs_as_a_module_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "growth", "--rows", "4000"]
    subprocess.run([*command, "--results", str(tmp_path)], check=True, cwd=RESULTS.parents[1])
    (row,) = rows_of(tmp_path, "scale")
    assert row["tasks"] > 0
    assert len(row["worker_mib"]) == 2


@pytest.mark.slow
def test_chains_in_processes_of_their_own(tmp_path: Path) -> None:
    sizes = ["--size", "400", "--ess", "20", "--case", "slopes", "--full-warmup", "50"]
    command = [sys.executable, "-m", "benchmarks.speed", "full", *sizes]
    subprocess.run([*command, "--results", str(tmp_path)], check=True, cwd=RESULTS.parents[1])
    assert {row["who"] for row in rows_of(tmp_path, "speed")} == {"ours", "NUTS"}
