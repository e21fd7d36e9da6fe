"""Each group left out, from the likelihoods of groups whose effects are integrated out.

The density of a group given the shared parameters is what the correction evaluates, shard by shard;
at draws of the posterior it is all that importance sampling (:mod:`.psis`) needs to say what the
density would be without the group. Effects of the group itself do not enter: nothing is known of
them without its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import scipy.sparse

from ..cluster.client import working
from ..cluster.freed import freed_memory_kept
from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.placement import Execution
from ..cluster.shards import Shards, persist
from ..cluster.shuffle_logs import usual_shuffles_unlogged
from ..cluster.tasks import broadcast, compute
from ..config import Options
from ..frame.arrays import Column
from ..frame.assign import shards as rows_to_shards
from ..frame.unchanged import unchanged
from ..model.model import ShardModel
from ..plan.plan import Plan, make_plan
from ..result.recall import Recalled, check_same_data
from ..shard.effects import unit_level
from ..shard.engine import engine_of
from ..shard.predictive import row_sites
from ..shard.quadrature import Rule
from ..shard.subsets import few_units, some_groups
from ..shard_data import ROWS, ShardData
from ..warned import warn
from .few_draws import representative
from .groups import Groups, groups_at
from .psis import Left, leave_out
from .rows import columns_fed, key_columns
from .surfaces import surfaces_of

_CODES = "left out"  # an argument that no model has: codes of the groups that are left out
_SHARDS = 3  # that tell how integrals are to be taken, of a few groups
_PROBE = 8  # at so many draws
_OF_ERROR = 0.05  # of its standard error, that an elpd may be off by the rule of integration
_OF_GROUP = 0.02  # nats that a group may be off by it


class LeftGroups(NamedTuple):
    """What is said of groups left out, in the order of shards."""

    groups: Groups
    rows: np.ndarray  # (groups,)
    left: Left
    draws: int


def groups_left_out(
    frame: dd.DataFrame,
    function: Callable[..., Any],
    recalled: Recalled,
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable],
    draws: int,
) -> LeftGroups:
    """Send rows to shards anew, and leave out each group of the level that carries effects.

    Where no level does, these are the groups of the innermost key.
    """
    keys = _keys(frame, recalled, by, columns)
    row_sites(recalled.model, recalled.dtypes)
    because = engine_of(recalled.model).obstacle
    if because:
        raise ValueError(f"no group can be left out: {because}")
    fed = columns_fed(frame, recalled, columns, set(recalled.dtypes))
    options = Options.frozen()
    with (
        working(options.worker_timeout),
        freed_memory_kept(options.freed_memory),
        usual_shuffles_unlogged(),
    ):
        plan = make_plan(frame, function, by=keys, columns=fed, options=options)
        check_same_data(recalled, plan, same_keys=by is None)
        level = _level(plan)
        shards = _sharded(frame, plan, level)
        (groups,) = groups_at(plan, shards, [level], set(Left._fields))
        u = representative(recalled.draws, max(draws, 4 * plan.model.dim))
        question = _Question(plan.model, level, u, u.mean(axis=0), Rule(0))
        question = question._replace(rule=_rule(question, shards, groups.n))
        reports = map_reduce(
            each(_left_out),
            shards,
            [()] * shards.n,
            [broadcast(question)],
            lambda _: None,
            title="groups left out",
        ).reports
    left, rows, lost = zip(*reports, strict=True)
    share = sum(lost) / len(lost)
    if share > options.verdict.modes_not_found:
        warn(
            f"the mode of {share:.1%} of the effects was not found, so that what is said of their "
            "groups, left out, may be wrong",
        )
    joined = Left(*map(np.concatenate, zip(*left, strict=True)))
    return LeftGroups(groups, np.concatenate(rows), joined, len(u))


def _keys(
    frame: dd.DataFrame,
    recalled: Recalled,
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable],
) -> list[Hashable]:
    """Find the key columns of the groups to leave out."""
    model = recalled.model
    if by is not None:
        given = list(by) if isinstance(by, list | tuple) else [by]
        sees_groups = model.codes or any(site.level != ROWS for site in model.local)
        if sees_groups and [str(key) for key in given] != recalled.by:
            raise ValueError(
                f"by={by!r}, but the model sees the groups of {', '.join(recalled.by)}, by which "
                "it was fitted: leave by= out"
            )
        return given
    if not recalled.by:
        raise ValueError(
            "unit='group', but the fit had no groups: pass by=, the columns that tell them"
        )
    return list(key_columns(frame, recalled, columns))


def _level(plan: Plan) -> int:
    """Level of the groups that are left out."""
    level = unit_level(plan.model) if plan.model.local else ROWS
    return len(plan.bindings.layout.by) - 1 if level == ROWS else level


def _sharded(frame: dd.DataFrame, plan: Plan, level: int) -> Shards:
    """Send rows to shards, with codes of the groups beside what the model receives."""
    options, layout = plan.options, plan.bindings.layout
    codes = Column(_CODES, layout.by[level], "group", level)
    wider = layout._replace(columns=(*layout.columns, codes))
    unpadded = rows_to_shards(frame, wider, plan.assignment)
    execution = Execution(options.split_every, options.retries)
    return persist(unpadded, execution, unchanged(plan.survey, layout), keep_labels=True)


class _Question(NamedTuple):
    """What shards are asked."""

    model: ShardModel
    level: int  # of the groups that are left out
    points: np.ndarray  # (S, d)
    center: np.ndarray  # (d,)
    rule: Rule


def _rule(question: _Question, shards: Shards, n_groups: int) -> Rule:
    """Take as few nodes as agree with the next number of them, on a few groups."""
    engine = engine_of(question.model)
    ladder = engine.value_nodes
    if len(ladder) == 1:
        return Rule(ladder[0])
    chosen = np.linspace(0, shards.n - 1, _SHARDS).round().astype(int)
    some = [shards.data[k] for k in sorted(set(chosen.tolist()))]
    which = np.linspace(0, len(question.points) - 1, _PROBE).round().astype(int)
    question = question._replace(points=question.points[which])

    def ask(function: Callable[..., Any], question: _Question) -> list[Any]:
        return compute([on_worker(shards.execution, function, data, question) for data in some])

    n_modes = max(ask(_most_modes, question))
    rules = [Rule(n_nodes, n_modes) for n_nodes in ladder]
    by_rule = (np.concatenate(ask(_of_few, question._replace(rule=rule)), axis=1) for rule in rules)
    for rule, (here, finer) in zip(rules, pairwise(by_rule), strict=False):
        away = np.mean(finer - here, axis=0)
        standard_error = np.std(np.mean(finer, axis=0)) / np.sqrt(n_groups)
        if abs(away.mean()) < _OF_ERROR * standard_error and np.abs(away).max() < _OF_GROUP:
            return rule
    warn(
        f"the log likelihood of a group differs by up to {np.abs(away).max():.2g} nats between the "
        f"two finest rules by which its effects are integrated out, and that of all by "
        f"{abs(away.sum()) * n_groups / len(away):.2g}: elpd may be off by as much",
    )
    return rules[-1]


def _most_modes(data: ShardData, question: _Question) -> int:
    """Most modes of a group, of some of a shard's; runs on a worker."""
    part, _ = _apart(_few(data, question))
    return engine_of(question.model).most_modes(part, question.points)


def _of_few(data: ShardData, question: _Question) -> np.ndarray:
    """Log likelihoods of some of a shard's groups; runs on a worker."""
    return _likelihoods(_few(data, question), question)[0]


def _few(data: ShardData, question: _Question) -> ShardData:
    return few_units(data, {**question.model.codes, _CODES: question.level})


def _left_out(data: ShardData, question: _Question) -> Answer:
    """Leave out the groups of a shard, one at a time; runs on a worker."""
    values, lost = _at_all_draws(data, question)
    left = leave_out(values)
    _, codes = _apart(data)
    rows = np.bincount(codes[np.asarray(data.rows)], minlength=len(left.elpd))
    return Answer(None, (left, rows, lost))


def _at_all_draws(data: ShardData, question: _Question) -> tuple[np.ndarray, float]:
    """Log likelihoods ``(S, groups)``, from those at few draws where these say enough.

    And the share of units whose mode was not found, at the draws that were asked for all.
    """
    points = question.points
    surfaces = surfaces_of(points)
    if surfaces is None:
        return _likelihoods(data, question)
    few, lost = _likelihoods(data, question._replace(points=points[surfaces.asked]))
    values, sound = surfaces.filled(few)
    if not sound.all():
        others = question._replace(points=points[surfaces.rest])
        codes = {**question.model.codes, _CODES: question.level}
        alone = some_groups(data, codes, _CODES, np.flatnonzero(~sound))
        values[np.ix_(surfaces.rest, ~sound)], _ = _likelihoods(alone, others)
    return values, lost


def _likelihoods(data: ShardData, question: _Question) -> tuple[np.ndarray, float]:
    """Log likelihoods ``(points, groups)`` of the real groups; the share of modes not found."""
    model, level, points, center, rule = question
    data, codes = _apart(data)
    real = int(np.sum(data.groups[level]))
    apart = not model.local or unit_level(model) == ROWS
    shape = (len(codes), len(data.groups[level]))
    members = scipy.sparse.csr_array(
        (np.ones(len(codes)), codes, np.arange(len(codes) + 1)), shape=shape
    )
    parts, lost = [], []
    for values in engine_of(model).unit_values(data, points, center, rule):
        whole = values.units @ members + values.groups[level] if apart else values.units
        parts.append(whole[:, :real])
        lost.append(values.modes_not_found)
    units = int(np.sum(data.mask(unit_level(model)))) if model.local else 1
    return np.concatenate(parts), float(np.concatenate(lost).mean()) / units


def _apart(data: ShardData) -> tuple[ShardData, np.ndarray]:
    """Take the codes of groups out of what the model receives."""
    arguments = dict(data.arguments)
    codes = np.asarray(arguments.pop(_CODES))
    return data._replace(arguments=arguments), codes
