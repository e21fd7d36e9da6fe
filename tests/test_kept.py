"""Effects of old groups beside those of new ones."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dask_consensus.local.kept import with_kept

STATISTICS = ["mean", "sd", "q05", "q50", "q95"]


def found(groups, value):
    """A summary of one effect a group, and its normal distribution given two shared parameters."""
    n = len(groups)
    local = xr.Dataset(
        {
            "alpha": (("statistic", "group"), np.full((5, n), value)),
            "alpha_shrinkage": ("group", np.full(n, 0.2)),
            "rows": ("group", np.full(n, 5)),
        },
        {"statistic": STATISTICS, "group": groups},
        {"draws": 12},
    )
    given = xr.Dataset(
        {
            "mean": (("group", "effect"), np.full((n, 1), value)),
            "slope": (("group", "effect", "shared"), np.tile([0.5, -1.0], (n, 1, 1))),
            "widening": (("group", "effect", "shared"), np.tile([0.0, 0.1], (n, 1, 1))),
            "covariance": (("group", "effect", "effect_"), np.full((n, 1, 1), 4.0)),
        }
    )
    return {"local": local, "local/given_shared": given}


def test_groups_found_again_replace_what_they_were_and_others_move():
    tree = xr.DataTree.from_dict(found(["a", "b", "d"], 1.0))
    for number, groups in ((1, ["c", "b"]), (2, ["e"])):
        kept = with_kept(tree, found(groups, 1.0 + number), np.array([0.1, 0.2]), number)
        tree = xr.DataTree.from_dict(kept)
    local, given = tree["local"], tree["local/given_shared"]
    assert local["group"].to_numpy().tolist() == list("abcde")
    assert local["update"].to_numpy().tolist() == [0, 1, 1, 0, 2]
    assert local["alpha"].sel(statistic="mean").to_numpy().tolist() == [1.0, 2.0, 2.0, 1.0, 3.0]
    assert "0 for the first" in local.attrs["holds"]
    # By slope times movement, once for each update since; sds by their own change, twice that of
    # the logarithm for a variance.
    np.testing.assert_allclose(
        given["mean"].to_numpy()[:, 0], [1 - 0.3, 2 - 0.15, 2 - 0.15, 1 - 0.3, 3.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        given["covariance"].to_numpy()[:, 0, 0],
        4 * np.exp(2 * 0.02 * np.array([2, 1, 1, 2, 0])),
        rtol=1e-3,  # what is added to an exponent is led to a bound
    )


def test_effects_of_some_groups_do_not_pass_for_those_of_all():
    tree = xr.DataTree.from_dict(found(["a"], 1.0))
    assert with_kept(tree, {}, np.zeros(2), 1) == {}
    assert with_kept(xr.DataTree(), found(["b"], 2.0), np.zeros(2), 1) == {}


def test_draws_are_those_of_one_posterior():
    tree = xr.DataTree.from_dict(found(["a"], 1.0))
    drawn = xr.Dataset(
        {"alpha": (("chain", "draw", "group"), np.zeros((1, 3, 1)))}, {"group": ["b"]}
    )
    kept = with_kept(tree, {"local": drawn}, np.zeros(2), 1)
    assert kept["local"]["group"].to_numpy().tolist() == ["b"]
    assert "of others none" in kept["local"].attrs["holds"]
