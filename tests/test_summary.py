"""A summary says what the tree says, as objects, as text and as a page that no name can break."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

import dask_consensus
from dask_consensus.plan.page import page, paragraph, section
from dask_consensus.plan.tables import Table
from dask_consensus.result.reasons import Reason
from dask_consensus.result.verdict import Verdict

ODD = "<script>alert('&')</script>"


class Markup(HTMLParser):
    """Collects the tags and the text of a page, and sees whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


@pytest.fixture
def tree() -> xr.DataTree:
    """What a fit leaves; the example of `summary` has a real one."""
    reasons = [
        {"code": "r-hat", "value": None, "threshold": 1.05, "where": "mu"}
        | {"problem": "chains disagree", "remedy": "sample longer"}
    ]
    draws = np.random.default_rng(0).normal(50, 3, (2, 200, 3))
    attributes = {
        "verdict": "Not to be relied on as the full model's posterior. " * 3,
        "verdict_good": 0,
        "verdict_reasons": json.dumps(reasons),
        "accuracy": json.dumps({"mu": None, "tau": None}),
        "profile": json.dumps({"plan": 0.5, "search": 61.25}),
        "forecast": json.dumps(
            {"seconds": {"search": [20, 40.04, 80]}, "memory": 700 * 2**20, "tasks": 120}
            | {"points": [0, 0]}
        ),
        "used": json.dumps({"tasks": 131, "memory": 650 * 2**20}),
        "by": json.dumps(["county"]),
        "created_at": "2026-01-01T00:00:00+00:00",
        "method_used": "consensus",
        "n_rows": 30,
        "n_shards": 2,
    }
    dims = ("chain", "draw")
    posterior = xr.Dataset({"mu": (dims, draws[..., 0]), "tau": (dims, draws[..., 1])})
    made = xr.DataTree.from_dict({"posterior": posterior, "shards": xr.Dataset()})
    made.attrs.update(attributes)
    return made


def test_attributes_as_objects(tree):
    told = dask_consensus.summary(tree)
    assert told.good is False
    assert told.verdict == tree.attrs["verdict"]
    assert told.profile == json.loads(tree.attrs["profile"])
    assert told.reasons == json.loads(tree.attrs["verdict_reasons"])
    assert told.accuracy.keys() == json.loads(tree.attrs["accuracy"]).keys()
    # What is null in JSON, an error of unknown size, is infinite.
    assert all(math.isinf(error) for error in told.accuracy.values())


def test_the_numbers_are_those_of_the_draws(tree):
    told = dask_consensus.summary(tree)
    rows = {row[0]: row[1:] for row in told.parameters}
    assert set(rows) == set(map(str, tree["posterior"].data_vars))
    for name, (mean, sd, low, high, error) in rows.items():
        draws = tree["posterior"][name].values
        shown = [float(text.replace(",", "")) for text in (mean, sd, low, high)]
        expected = draws.mean(), draws.std(ddof=1), *np.quantile(draws, [0.05, 0.95])
        np.testing.assert_allclose(shown, expected, rtol=1e-3)
        assert error == "unknown"


def test_forecast_and_truth_stand_side_by_side(tree):
    tables = {table.title: table.rows for table in dask_consensus.summary(tree).tables()}
    assert tables["time"] == [
        ["plan", "0.5", "-", "-", "-"],
        ["search", "61.2", "40.0", "20.0", "80.0"],
    ]
    assert tables["needs"] == [
        ["memory a worker", "650 MiB", "700 MiB"],
        ["tasks", "131", "120"],
    ]


def test_it_reads_as_text_and_survives_a_file(tree, tmp_path):
    tree.to_netcdf(tmp_path / "fit.nc")
    with xr.open_datatree(tmp_path / "fit.nc") as again:
        shown = repr(dask_consensus.summary(again))
    assert shown == repr(dask_consensus.summary(tree))
    for text in ("Not to be relied on", "rows", "30", "parameters", "time", "r-hat: "):
        assert text in shown
    assert max(map(len, shown.splitlines())) < 100


def test_of_many_parameters_the_first_are_listed():
    posterior = xr.Dataset(
        {
            "beta": (("chain", "draw", "item"), np.ones((1, 3, 500))),
            "mu": (("chain", "draw"), np.ones((1, 3))),
        },
        {"item": [f"item {ODD} {i}" for i in range(500)]},
    )
    attributes = {"verdict": "Good", "verdict_good": 1, "n_shards": 2, "method_used": "laplace"}
    attributes |= {"created_at": "2026-01-01T00:00:00", "by": json.dumps([ODD])}
    attributes["accuracy"] = json.dumps({"beta[3]": 0.012})
    made = xr.DataTree.from_dict({"posterior": posterior})
    made.attrs.update(attributes)
    told = dask_consensus.summary(made)
    assert told.parameters[3] == (f"beta[item {ODD} 3]", "1", "0", "1", "1", "0.012")
    assert told.parameters[-1][0] == "and 461 more"
    # Labels and columns come from users: they are no markup.
    shown = Markup(told._repr_html_())
    assert "script" not in shown.tags
    assert f"beta[item {ODD} 3]" in shown.text


def test_what_is_no_result_is_refused():
    with pytest.raises(ValueError, match=r"no result of .*: it has no verdict"):
        dask_consensus.summary(xr.DataTree.from_dict({"posterior": xr.Dataset()}))


def test_a_page_says_whether_it_is_good_in_words(tree):
    told = dask_consensus.summary(tree)
    bad, good = Markup(told._repr_html_()), Markup(replace(told, good=True)._repr_html_())
    assert bad.text[0] == "\u2717 not to be relied on"
    assert good.text[0] == "\u2713 good"
    assert "what speaks against it" in bad.text


def test_a_verdict_as_a_page():
    reason = Reason("k-hat", 0.9, 0.7, ODD, ODD, f"raise {ODD}")
    shown = Markup(Verdict(False, np.array([np.inf]), (reason,), ODD)._repr_html_())
    assert shown.text[:2] == ["\u2717 not to be relied on", ODD]
    assert f"k-hat: raise {ODD}" in shown.text
    assert "script" not in shown.tags


def test_nothing_that_is_put_on_a_page_is_markup():
    table = Table(ODD, (ODD, "n"), [[ODD, "1"], ["x", "-2"]])
    shown = Markup(page(ODD, [paragraph(ODD, "note"), section(ODD, ""), table.html()]))
    assert set(shown.tags) >= {"div", "style", "table", "details"}
    assert "script" not in shown.tags
    assert shown.text.count(ODD) == 6
    # Numbers stand to the right, also negative ones.
    assert '<td class="dc-number">-2</td>' in table.html()


def test_a_page_knows_its_ground_in_every_theme():
    """Colours of text come with those of the ground, for each way of saying that it is dark."""
    shown = page("", [])
    for theme in (
        "@media (prefers-color-scheme: dark) { .dask-consensus {",
        '[data-jp-theme-light="false"] .dask-consensus,',
        "body.vscode-dark .dask-consensus,",
        '[data-theme="dark"] .dask-consensus {',
    ):
        rest = shown.split(theme)[1]
        assert "--dc-ground: #111418" in rest.split("}")[0]
    # The light theme of high contrast bears the name of the dark one, too.
    assert "body.vscode-high-contrast-light .dask-consensus," in shown
    assert "body.vscode-high-contrast:not(.vscode-high-contrast-light) .dask-consensus," in shown
    # A light theme on a system that prefers dark stays light: it comes after.
    assert shown.index("prefers-color-scheme") < shown.index('[data-jp-theme-light="true"]')
