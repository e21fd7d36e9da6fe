"""Warnings name the line of whoever called the package."""

import pytest

from dask_consensus import warned


@pytest.mark.parametrize("depth", [0, 3])
def test_a_warning_is_about_the_line_outside(depth):
    """As many calls within the package as there may be between."""
    within = {"__name__": "dask_consensus.somewhere", "warn": warned.warn}
    exec("def inner(depth):\n    inner(depth - 1) if depth else warn('odd')", within)
    with pytest.warns(UserWarning, match="odd") as caught:
        within["inner"](depth)
    assert caught[0].filename == __file__
