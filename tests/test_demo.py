from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from dask_consensus import demo, plots
from dask_consensus.simulate import Truth, lung_function

# --- the simulator ---


def lines(visits: pd.DataFrame) -> pd.DataFrame:
    """Least-squares intercept and slope of every patient."""
    fits = {
        patient: np.polyfit(rows["Weeks"], rows["FVC"], 1)[::-1]
        for patient, rows in visits.groupby("Patient")
    }
    return pd.DataFrame(fits, index=["intercept", "slope"]).T


def test_shape_of_the_study():
    visits = lung_function()
    assert list(visits.columns) == [
        "Patient", "Weeks", "FVC", "Percent", "Age", "Sex", "SmokingStatus",
    ]  # fmt: skip
    assert visits["Patient"].nunique() == 176
    # 8.8 visits a patient with a standard deviation of 0.65, so 1,549 +- 9 rows.
    assert abs(len(visits) - 1_549) < 4 * 9
    assert visits.groupby("Patient").size().between(6, 10).all()
    assert visits["Weeks"].between(-6, 140).all()
    assert set(visits["Sex"]) == {"Male", "Female"}
    assert visits["SmokingStatus"].nunique() == 3


def test_types_are_those_of_a_read_csv():
    types = lung_function(3).dtypes
    assert all(pd.api.types.is_integer_dtype(types[name]) for name in ("Weeks", "FVC", "Age"))
    text = ("Patient", "Sex", "SmokingStatus")
    assert all(pd.api.types.is_string_dtype(types[name]) for name in text)
    assert pd.api.types.is_float_dtype(types["Percent"])


def test_visits_are_ordered_and_covariates_constant_within_a_patient():
    visits = lung_function(50, seed=3)
    patients = visits.groupby("Patient", sort=False)
    assert visits["Patient"].is_monotonic_increasing
    assert all(weeks.is_monotonic_increasing and weeks.is_unique for _, weeks in patients["Weeks"])
    assert (patients[["Age", "Sex", "SmokingStatus"]].nunique() == 1).all(axis=None)


def test_the_seed_decides():
    pd.testing.assert_frame_equal(lung_function(20, seed=1), lung_function(20, seed=1))
    assert not lung_function(20, seed=1).equals(lung_function(20, seed=2))


def test_truth_is_what_the_table_is_drawn_from():
    truth = Truth(mu_a=1_000.0, sigma_a=50.0, mu_b=10.0, sigma_b=0.5, sigma=5.0)
    n = 2_000
    found = lines(lung_function(n, seed=1, truth=truth))
    # Four standard errors of a mean over patients, and of a standard deviation; noise of 5 mL
    # widens the spread of the lines by less than that.
    assert abs(found["intercept"].mean() - truth.mu_a) < 4 * truth.sigma_a / np.sqrt(n)
    assert abs(found["slope"].mean() - truth.mu_b) < 4 * truth.sigma_b / np.sqrt(n)
    assert found["intercept"].std() == pytest.approx(truth.sigma_a, rel=4 / np.sqrt(2 * n))
    assert found["slope"].std() == pytest.approx(truth.sigma_b, rel=4 / np.sqrt(2 * n))


def test_no_patients_is_an_error():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        lung_function(0)


# --- results to compare, without a fit ---


def tree(shift: float = 0.0, scale: float = 1.0, **more: xr.DataArray) -> xr.DataTree:
    """A result whose draws of each parameter have exactly the mean and the sd asked for."""
    z = np.random.default_rng(0).standard_normal((2, 250))
    z = shift + scale * (z - z.mean()) / z.std(ddof=1)
    dims = ("chain", "draw")
    known = {"mu": (dims, 100 + 10 * z), "tau": (dims, 5 + z)}
    return xr.DataTree.from_dict({"posterior": xr.Dataset({**known, **more})})


def vector() -> xr.DataArray:
    draws = np.random.default_rng(1).standard_normal((2, 250, 3))
    draws[..., 2] = 0.0
    return xr.DataArray(
        draws, dims=("chain", "draw", "term"), coords={"term": ["age", "dose", "none"]}
    )


def test_parameters_keep_the_order_of_the_reference():
    trees = {"full": tree(), "consensus": tree(1.0)}
    laid_out = plots.parameters(trees)
    assert list(laid_out) == ["mu", "tau"]
    assert list(laid_out["mu"]) == ["full", "consensus"]
    np.testing.assert_array_equal(laid_out["mu"]["full"], trees["full"]["posterior"]["mu"])


def test_parameters_name_entries_by_label_and_drop_constant_ones():
    laid_out = plots.parameters({"full": tree(beta=vector())})
    assert list(laid_out) == ["mu", "tau", "beta[age]", "beta[dose]"]
    np.testing.assert_array_equal(laid_out["beta[dose]"]["full"], vector()[..., 1])


def test_parameters_that_one_result_lacks_are_left_out():
    assert list(plots.parameters({"full": tree(beta=vector()), "other": tree()})) == ["mu", "tau"]


def test_nothing_in_common_is_an_error():
    other = xr.DataTree.from_dict({"posterior": xr.Dataset({"x": (("chain", "draw"), [[1.0]])})})
    with pytest.raises(ValueError, match="posteriors of full, other have no varying parameter"):
        plots.parameters({"full": tree(), "other": other})
    with pytest.raises(ValueError, match="at least one result"):
        plots.parameters({})


# --- the table ---


def test_table_sets_results_side_by_side():
    lines = demo.table({"full": tree(), "consensus": tree(0.5, 2.0)}).splitlines()
    assert lines[0].split() == ["full", "consensus"]
    assert lines[1].split() == ["parameter", *("mean", "sd"), *("mean", "sd", "off", "by", "ratio")]
    assert lines[3].split() == ["mu", "100.00", "10.00", "105.00", "20.00", "+0.50", "2.00"]
    assert lines[4].split() == ["tau", "5.00", "1.00", "5.50", "2.00", "+0.50", "2.00"]
    # Independent draws, 500 of them.
    error = float(lines[-1].split()[-2])
    assert error == pytest.approx(1 / np.sqrt(500), abs=0.01)


def test_table_takes_any_number_of_results():
    trees = {name: tree() for name in ("full", "consensus", "anchored", "corrected")}
    head, names, rule, *_ = demo.table(trees).splitlines()
    assert head.split() == list(trees)
    assert names.count("ratio") == 3
    assert len(rule) == len(names)
    assert demo.table({"full": tree()}).splitlines()[0].split() == ["full"]


def test_table_keeps_two_digits_of_a_small_sd():
    small = xr.DataArray(1e-4 * tree()["posterior"]["tau"], dims=("chain", "draw"))
    row = demo.table({"full": tree(rate=small)}).splitlines()[5]
    assert row.split() == ["rate", "0.00050", "0.00010"]


# --- the figure ---


def test_figure_has_a_panel_for_each_parameter_and_a_line_for_each_result():
    pytest.importorskip("matplotlib")
    figure = plots.compare({"full": tree(beta=vector()), "consensus": tree(0.5, beta=vector())})
    panels = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in panels] == ["mu", "tau", "beta[age]", "beta[dose]"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "consensus"]


def test_figure_does_not_touch_the_global_state_of_pyplot(tmp_path):
    pytest.importorskip("matplotlib")
    before = "matplotlib.pyplot" in sys.modules
    plots.compare({"full": tree()}).savefig(tmp_path / "figure.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_figure_shows_no_density_outside_the_draws():
    pytest.importorskip("matplotlib")
    positive = abs(tree()["posterior"]["tau"] - 5.0)
    figure = plots.compare({"full": tree(), "half": tree(tau=positive)})
    curve = figure.axes[1].get_lines()[1]
    assert curve.get_xdata().min() >= 0


def test_too_many_results_for_one_figure_is_an_error():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="at most 5 results to draw, got 6"):
        plots.compare({str(i): tree() for i in range(6)})


def test_figure_is_written_and_its_place_told(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    assert str(path) in demo.write_figure({"full": tree()}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"dask_consensus\[plots\]"):
        plots.compare({"full": tree()})
    path = tmp_path / "figure.png"
    assert "dask_consensus[plots]" in demo.write_figure({"full": tree()}, path)
    assert not path.exists()


# --- the command line and the data ---


def test_defaults():
    args = demo.arguments([])
    assert (args.csv, args.shards, args.samples, args.seed) == (None, 5, 1000, 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--csv", "absent.csv"], "no such file: absent.csv"),
        (["--shards", "0"], "expected at least 1, got 0"),
        (["--shards", "many"], "expected at least 1, got many"),
        (["--samples", "10"], "expected at least 100, got 10"),
        (["--png", "absent/figure.png"], "no such directory: absent"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.arguments(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_data_are_simulated_unless_a_table_is_given(tmp_path):
    used = list(demo.COLUMNS.values())
    expected = lung_function(seed=4)[used].to_dict("list")
    assert demo.read(None, seed=4)[used].compute().to_dict("list") == expected

    path = tmp_path / "visits.csv"
    lung_function(seed=4).to_csv(path, index=False)
    assert demo.read(path, seed=0)[used].compute().to_dict("list") == expected


def test_a_table_without_the_columns_is_an_error_that_names_them(tmp_path):
    path = tmp_path / "visits.csv"
    lung_function(2).drop(columns="Weeks").to_csv(path, index=False)
    with pytest.raises(ValueError, match="no column Weeks; it has Patient, FVC"):
        demo.read(path, seed=0)
    with pytest.raises(SystemExit, match=r"error: .* no column Weeks"):
        demo.main(["--csv", str(path)])
