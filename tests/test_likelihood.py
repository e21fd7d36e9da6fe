"""Which groups of which shards are looked at more closely, and what these speak for."""

from types import SimpleNamespace

import numpy as np
import pytest

from dask_consensus.correction import likelihood
from dask_consensus.correction.likelihood import LogPosterior, along_axes
from dask_consensus.shard.quadrature import Rule
from dask_consensus.shard.second_opinion import Opinions, n_points

SHARDS, UNITS = 10, 40  # units a shard


@pytest.fixture
def posterior(monkeypatch):
    """Ten shards; `modes` of a group of one of them, and by how much two rules differ there."""
    told = SimpleNamespace(modes=[1] * SHARDS, differs=[0.0] * SHARDS)

    def opinions(data, points, rule, size, effort):
        first = np.zeros(len(points))
        second = told.differs[data] * points[:, 0]
        return Opinions(first, second, np.zeros((len(points), UNITS)), first, UNITS)

    engine = SimpleNamespace(
        most_modes=lambda data, points: told.modes[data], opinions=opinions, value_nodes=(3, 5)
    )
    monkeypatch.setattr(likelihood, "engine_of", lambda model: engine)
    monkeypatch.setattr(likelihood, "on_worker", lambda execution, run, *given: run(*given))
    monkeypatch.setattr(likelihood, "compute", list)
    monkeypatch.setattr(likelihood, "few_units", lambda data, codes: data)
    monkeypatch.setattr(likelihood, "pieces_of", lambda data, codes, seed, rows: iter([data]))
    monkeypatch.setattr(likelihood, "unit_level", lambda model: 0)
    monkeypatch.setattr(likelihood, "_opinions_of_some", _without_size)
    size = SimpleNamespace(rows=400, groups=(UNITS,))
    shards = SimpleNamespace(
        n=SHARDS, data=list(range(SHARDS)), sizes=[size] * SHARDS, execution=None
    )
    model = SimpleNamespace(codes={}, x64=True)
    return told, LogPosterior(model, shards, None, np.zeros(1), Rule(3))


def _without_size(data, model, number, rows, points, rule, effort):
    return likelihood.engine_of(model).opinions(data, points, rule, None, effort)


@pytest.mark.parametrize("torn", [0, 4, 7])
def test_a_torn_group_is_found_in_any_shard(posterior, torn):
    told, there = posterior
    told.modes[torn] = 2
    most, pieces = there._most_modes(np.zeros((3, 1)))
    assert most == 2
    # Shards 0, 4 and 9 are looked at in any case.
    assert pieces == (((torn, 0),) if torn == 7 else ())


def test_where_all_are_torn_none_stands_out(posterior):
    told, there = posterior
    told.modes = [3] * SHARDS
    assert there._most_modes(np.zeros((3, 1))) == (3, ())


@pytest.mark.parametrize(("torn", "error"), [((), 0.0), (((7, 0),), 0.3)])
def test_a_torn_piece_speaks_for_itself(posterior, torn, error):
    told, there = posterior
    told.differs[7] = 0.3
    least, most = there._replace(torn=torn)._second_opinion(along_axes(np.zeros(1), np.eye(1)))
    np.testing.assert_allclose([least[0, 0], most[0, 0]], error, atol=1e-6)


def test_the_others_speak_for_all_the_rest(posterior):
    told, there = posterior
    told.differs = [0.3] * SHARDS
    for torn in ((), ((7, 0),)):
        least, _ = there._replace(torn=torn)._second_opinion(along_axes(np.zeros(1), np.eye(1)))
        np.testing.assert_allclose(least[0, 0], 0.3 * SHARDS, rtol=1e-6)


@pytest.mark.parametrize(("share", "modes_at", "nodes_at"), [(1.0, 13, 37), (0.01, 9, 13)])
def test_few_rows_are_asked_at_fewer_points(posterior, monkeypatch, share, modes_at, nodes_at):
    """What their integrals miss moves an answer of many others little."""
    _, there = posterior
    counted = []
    monkeypatch.setattr(
        LogPosterior, "_most_modes", lambda _, points: counted.append(len(points)) or (1, ())
    )

    def by_rules(_, rules, points, title):
        counted.append(len(points))
        one = SimpleNamespace(log_likelihood=np.zeros(len(points)), compile_seconds=0.0)
        return [one for _ in rules]

    monkeypatch.setattr(LogPosterior, "by_rules", by_rules)
    there.with_enough_nodes(np.zeros((256, 1)), np.eye(1), share)
    assert counted == [modes_at, nodes_at]


def test_a_second_opinion_takes_fewer_points_for_few_rows():
    rows, values = 1024, 21
    assert n_points(rows, values, 1.0) == 32
    assert n_points(rows, values, 4.0) == 128
    # As many as leave the noise in what they move: its variance goes with the share of the rows.
    assert n_points(rows, values, 0.25) == 8
    assert n_points(rows, values, 0.001) == 4
