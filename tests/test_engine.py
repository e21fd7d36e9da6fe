"""The seam for likelihoods: whoever stands in the engine's place is who is asked."""

from __future__ import annotations

from dataclasses import dataclass

import dask
import numpy as np
import pytest

from dask_consensus.combination import laplace, mode_search, pilot, ridges, subposterior
from dask_consensus.combination.reports import Anchor, FitSettings
from dask_consensus.correction import likelihood
from dask_consensus.correction.importance import correct
from dask_consensus.correction.likelihood import LogPosterior
from dask_consensus.correction.state import CorrectionSettings
from dask_consensus.fit import shard_rows
from dask_consensus.local import effects as local_effects
from dask_consensus.local import groups_left_out
from dask_consensus.local import summary as local_summary
from dask_consensus.plan import plan as plan_module
from dask_consensus.shard import engine as engine_module
from dask_consensus.shard.descent import Descents
from dask_consensus.shard.engine import AdaptiveQuadrature, NestedQuadrature, engine_of
from dask_consensus.shard.marginal import Modes, Values
from dask_consensus.shard.score import Expansion, Score
from dask_consensus.shard.second_opinion import Opinions

from . import from_pandas, plan
from .models import ZOO, frame, planned

PRECISION = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 5.0]])
MODE = np.array([0.4, -0.2, 0.1])


@dataclass
class Stub:
    """Says of every shard, whatever its data, that its likelihood is this Gaussian."""

    obstacle = ""
    value_nodes = (3, 7)
    gradient_nodes = search_nodes = (2, 4)
    questions: list

    def values(self, data, points, center, rule):
        self.questions.append(("values", rule.n_nodes))

        def height(u):
            return -0.5 * np.einsum("gi,ij,gj->g", u - MODE, PRECISION, u - MODE)

        at_center = height(center[None])
        return Values(height(points) - at_center, float(at_center[0]), np.zeros(len(points)), 1, 0)

    def gradient(self, data, points, weight, rule):
        self.questions.append(("gradient", rule.n_nodes))
        away = MODE - points
        return Score(-0.5 * np.einsum("gi,ij,gj->g", away, PRECISION, away), away @ PRECISION)

    def expansion(self, data, u, axes, weight, rule):
        self.questions.append(("expansion", rule.n_nodes))
        there = self.gradient(data, u[None], weight, rule)
        return Expansion(float(there.value[0]), there.gradient[0], PRECISION, np.zeros(3))

    def descents(self, data, starts, scale, most, n_nodes):
        self.questions.append(("descents", most))
        ended = np.where(most, MODE, starts)
        height = -0.5 * np.einsum("gi,ij,gj->g", ended - MODE, PRECISION, ended - MODE)
        return Descents(ended, height, np.ones_like(ended))

    def opinions(self, data, points, rule, size, effort):
        self.questions.append(("opinions", rule.n_nodes))
        first = self.values(data, points, points[0], rule).log_likelihood
        return Opinions(first, first, np.zeros((len(points), 1)), np.zeros(len(points)), 1)

    def most_modes(self, data, points):
        self.questions.append(("most modes", 0))
        return 1

    def modes(self, data, u):
        self.questions.append(("modes", 0))
        return Modes({}, {})


@pytest.fixture
def stub(monkeypatch):
    stub = Stub([])
    for module in (
        laplace,
        mode_search,
        pilot,
        ridges,
        subposterior,
        likelihood,
        local_effects,
        local_summary,
        groups_left_out,
        plan_module,
    ):
        monkeypatch.setattr(module, "engine_of", lambda model: stub)
    with dask.config.set(scheduler="synchronous"):
        yield stub


@pytest.fixture
def sharded(stub):
    rows = from_pandas(frame(((12, 15, 9, 14),)))
    made = plan(rows, ZOO["intercepts"].model, by="county", n_shards=3, correct="auto")
    return made, shard_rows(rows, made, progress=False)


def test_nobody_else_makes_an_engine():
    """Every module that asks, asks `engine_of`: the stub above is in all their places."""
    import dask_consensus.combination.methods
    import dask_consensus.fit
    import dask_consensus.local.groups_left_out
    import dask_consensus.update  # noqa: F401

    askers = {
        name
        for name, module in __import__("sys").modules.items()
        if name.startswith("dask_consensus.") and module is not engine_module
        if getattr(module, "engine_of", None) is engine_of
    }
    assert askers == {
        "dask_consensus.combination.crossed",
        "dask_consensus.combination.grown",
        "dask_consensus.combination.laplace",
        "dask_consensus.combination.methods",
        "dask_consensus.combination.mode_search",
        "dask_consensus.combination.ridges",
        "dask_consensus.combination.pilot",
        "dask_consensus.combination.subposterior",
        "dask_consensus.correction.likelihood",
        "dask_consensus.local.effects",
        "dask_consensus.local.groups_left_out",
        "dask_consensus.local.summary",
        "dask_consensus.plan.plan",
        "dask_consensus.plan.forecast",
        "dask_consensus.shard.probe",
    }


def test_laplace_finds_the_mode_that_the_engine_has(stub, sharded):
    made, shards = sharded
    settings = FitSettings(made.model, 1, False, 0)
    starts = np.zeros((4, 3)), np.random.default_rng(0).normal(size=(4, 3))
    approximation, _ = laplace.laplace(
        settings, shards, starts, made.options.laplace, corrected=False
    )
    # The engine says the same of each of three shards.
    np.testing.assert_allclose(approximation.mean, MODE, atol=1e-8)
    np.testing.assert_allclose(approximation.covariance, np.linalg.inv(3 * PRECISION), rtol=1e-8)
    assert approximation.modes == 1
    assert {n for question, n in stub.questions if question == "gradient"} <= {2, 4}
    assert {question for question, _ in stub.questions} == {
        "descents",
        "most modes",
        "gradient",
        "expansion",
    }


def test_the_correction_weights_by_what_the_engine_says(stub, sharded, monkeypatch):
    made, shards = sharded
    monkeypatch.setattr(likelihood, "log_prior", lambda model, data, u: np.zeros(len(u)))
    log_posterior = LogPosterior(made.model, shards, made.example, np.zeros(3))
    covariance = np.linalg.inv(3 * PRECISION)
    options = made.options
    settings = CorrectionSettings(
        MODE + 0.05, 1.2 * covariance, (), (), 0, options.correction, options.verdict
    )
    correction = correct(settings, log_posterior)
    sd = np.sqrt(np.diag(covariance))
    # 32,768 points of an emulator, exact but for points rounded to single precision.
    off = (correction.estimate.mean - MODE) / sd
    np.testing.assert_array_less(np.abs(off), 1 / np.sqrt(32_768))
    off = (correction.estimate.covariance - covariance) / np.outer(sd, sd)
    np.testing.assert_array_less(np.abs(off), 4 * np.sqrt(2 / 32_768))
    # The integral of exp(-x' 3 P x / 2) over x.
    evidence = 1.5 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(3 * PRECISION)[1]
    assert correction.log_evidence == pytest.approx(evidence, abs=4 / np.sqrt(32_768))
    # Equal values of both numbers of nodes: the fewer do, and there is no error of integration.
    assert correction.nodes == 3
    np.testing.assert_allclose(correction.integration_error, 0, atol=1e-10)
    assert set(stub.questions) == {("most modes", 0), ("opinions", 3), ("values", 3), ("values", 7)}


def test_chains_start_at_the_engines_modes_unless_it_has_none(stub):
    class Settings:
        fit = FitSettings(None, 2, False, 0)
        anchor = Anchor(MODE, PRECISION, 1.0)

    first, second = subposterior._starts(Settings, None)
    np.testing.assert_array_equal(first.u, MODE)
    assert first is second
    assert stub.questions == [("modes", 0)]
    stub.obstacle = "none of its modes can be had"
    assert subposterior._starts(Settings, None) is None


def test_an_obstacle_of_the_engine_is_why_nothing_is_corrected(stub, sharded):
    made, _ = sharded
    assert (made.method, made.uncorrected_because) == ("consensus", "")
    stub.obstacle = "the stub will not"
    assert made.uncorrected_because == "the stub will not"


@pytest.mark.parametrize(
    ("name", "obstacle", "value_nodes", "gradient_nodes"),
    [
        ("positive", "", (0,), (1,)),
        ("intercepts", "", (1, 5, 11, 21, 41), (2, 7, 15, 41)),
        ("correlated_effects", "", (1, 5, 9, 15), (2, 5, 9, 15)),
        ("nested", "", (1, 15, 28, 45, 105, 231, 861), (10, 27, 105, 615)),
    ],
)
def test_quadrature_says_what_it_can(name, obstacle, value_nodes, gradient_nodes):
    engine = engine_of(planned(name).model)
    assert isinstance(engine, NestedQuadrature if name == "nested" else AdaptiveQuadrature)
    assert obstacle in engine.obstacle
    assert bool(obstacle) is bool(engine.obstacle)
    if not obstacle:
        assert engine.value_nodes == value_nodes
        assert engine.gradient_nodes == gradient_nodes
