"""What a fit will cost, by its plan and by how fast its model is here.

Work is counted as the algorithm does it, in points at which a shard's density is asked for, and
multiplied by what a point takes (:mod:`..shard.probe`). How many steps a search takes, or a chain
its trees, nobody knows beforehand: every number of seconds is a range.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cluster.mapreduce import on_worker
from ..cluster.placement import Execution, capacity
from ..cluster.tasks import broadcast, compute
from ..correction.emulator import POINTS_A_TERM
from ..shard.engine import engine_of
from ..shard.probe import Rates, rates
from ..shard.starts import prior_points
from ..shard_data import Shard, ShardData, Size, pad, padded_sizes
from .page import page, paragraph
from .tables import Table

if TYPE_CHECKING:
    from ..cluster.shards import Shards
    from .plan import Plan

POINTS = 256
"""Points of the prior near its middle, of its draws, and of those beyond, to search from."""
_TWO = 2.0  # factor by which a phase may take longer or less long, unless more is known
_MIB = 2**20
# Read off the table of growth in the README: what a worker takes without rows, and with them,
# which lie there twice, before and after padding.
_WORKER, _COPIES = 600 * _MIB, 2
_SHUFFLED, _GATHERED = 3.7, 2.0  # times as long as counting the rows takes to send them


class Seconds(NamedTuple):
    """How long a phase may last: a range, and what is most likely."""

    least: float
    likely: float
    most: float


@dataclass(frozen=True, repr=False)
class Forecast:
    """What a fit may cost; prints as tables, and as a page in a notebook.

    Attributes
    ----------
    seconds : dict of str to Seconds
        Of each phase that is to come, in their order.
    memory : int
        Bytes that a worker needs, about; without a cluster, this process.
    tasks : int
        Of Dask, about.
    moved : int
        Bytes of rows that travel between workers, about.
    points : tuple of int
        Points at which the full posterior is evaluated: at least, and in a second iteration.
    at_once : int
        Shards that are worked on at once.
    rows : int
        Rows of the shard that was timed; 0 where none was.
    left_out : str
        What is in none of these numbers, and why.
    """

    seconds: dict[str, Seconds]
    memory: int
    tasks: int
    moved: int
    points: tuple[int, int]
    at_once: int
    rows: int
    left_out: str = ""

    @property
    def total(self) -> Seconds:
        """Of all phases together."""
        return Seconds(*(sum(part) for part in zip(*self.seconds.values(), strict=True)))

    @property
    def ahead(self) -> dict[str, float]:
        """Seconds that are likely of what comes once rows are in their shards."""
        return {phase: s.likely for phase, s in self.seconds.items() if phase != "shard"}

    def tables(self) -> list[Table]:
        """Lay it out."""
        seconds = list(self.seconds.items())
        if self.rows:
            seconds.append(("all", self.total))
        rows = [[phase, *map(_seconds, one)] for phase, one in seconds]
        least, second = self.points
        points = f"{least:,}, or {second:,} and more" if least else "none"
        about = "about" if self.rows else "at least"
        needs = [
            ["memory a worker", f"{about} {self.memory / _MIB:,.0f} MiB"],
            ["moved between workers", f"about {self.moved / _MIB:,.0f} MiB"],
            ["tasks", f"{about} {float(f'{self.tasks:.2g}'):,.0f}"],
            ["points", points],
            ["shards at once", str(self.at_once)],
        ]
        return [
            Table("forecast, seconds", ("phase", "at least", "likely", "at most"), rows),
            Table("forecast, needs", (), needs),
        ]

    def __repr__(self) -> str:
        told = [textwrap.fill(text, 96, subsequent_indent="  ") for text in self._about()]
        return "\n\n".join([*(table.text() for table in self.tables()), *told])

    def _repr_html_(self) -> str:
        parts = [table.html() for table in self.tables()]
        parts += [paragraph(text, "soft") for text in self._about()]
        likely = f"about {_seconds(self.total.likely)} seconds" if self.rows else "in part"
        return page(f"forecast: {likely}", parts)

    def _about(self) -> list[str]:
        """Say where the numbers come from, and what is not among them."""
        timed = f"from a few points on a shard of {self.rows:,} rows, timed here just now"
        left_out = f"not in these numbers: {self.left_out}" if self.left_out else ""
        return [text for text in (timed * bool(self.rows), left_out) if text]

    def as_dict(self) -> dict[str, Any]:
        """Put it in terms of JSON: of seconds the least, the likely and the most."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def forecast(plan: Plan, shards: Shards | None = None) -> Forecast:
    """Time the model on one shard, and say what a fit will cost.

    The shard is the one of median size, where there are shards already; else one is made up, of as
    many rows and groups, from the sample of rows that the plan was made with. Of a model with
    crossed effects nothing is timed: what they cost is not known beforehand.
    """
    workers, threads = capacity(plan.options.resources)
    if plan.model.crossed:
        return estimated(plan, Rates(0), workers, threads, sharded=shards is not None)
    execution = shards.execution if shards is not None else Execution()
    execution = execution._replace(resources=plan.options.resources)
    data = shards.data[shards.median()] if shards is not None else broadcast(made_up(plan))
    # Only what the fit will run: anything else would be compiled for nothing.
    gradient = _climbs(plan)
    values, nuts = not plan.uncorrected_because, _sampled_by(plan)
    u = np.zeros(plan.model.dim)
    if gradient or values:
        u = np.median(prior_points(plan.model, plan.example, plan.options.seed, POINTS)[0], axis=0)
    question = broadcast(plan.model), u, gradient, values, nuts
    asked = on_worker(execution, _rates, data, *question)
    (found,) = compute([asked], recorded=False)  # times are of this machine, now
    return estimated(plan, found, workers, threads, sharded=shards is not None)


def _rates(
    data: ShardData, model: Any, u: np.ndarray, gradient: bool, values: bool, nuts: Any
) -> Rates:
    """Time one shard; runs on a worker."""
    return rates(data, model, u, gradient=gradient, values=values, nuts=nuts)


def _climbs(plan: Plan) -> bool:
    """Tell whether the fit looks for a mode, effects integrated out."""
    wanted = plan.method in ("laplace", "anchored")
    return wanted and not engine_of(plan.model).obstacle


def sharding(plan: Plan) -> Seconds:
    """Say how long it may take to send the rows to their shards, by how long counting them took."""
    still = plan.assignment.kind in ("divisions", "whole")
    return _about(0.3 + (_GATHERED if still else _SHUFFLED) * plan.counting)


def estimated(
    plan: Plan, found: Rates, workers: int, threads: int, *, sharded: bool = False
) -> Forecast:
    """Multiply work by what it takes.

    Parameters
    ----------
    plan : Plan
    found : Rates
        Of a shard of median size; where `sharded`, a real one, so that code for it is compiled.
    workers, threads : int
        Of the cluster.
    sharded : bool
        Whether rows have reached their shards.
    """
    seconds = {"shard": sharding(plan)}
    at_once = min(threads, plan.n_shards)
    work = _Work(plan, found, plan.n_shards / at_once, at_once)
    # What is compiled by a probe on a real shard need not be compiled again.
    again = 0.0 if sharded else 1.0
    if not sharded and found.rows:
        seconds["check"] = work.check()
    seconds |= (
        {}
        if not found.rows
        else {
            "search": work.search(again),
            "rounds": work.rounds(again),
            "correction": work.correction(again),
            "local": work.local(),
        }
    )
    row = _row_bytes(plan)
    rows = plan.survey.rows
    return Forecast(
        seconds={phase: some for phase, some in seconds.items() if some.most > 0},
        memory=_WORKER + _COPIES * rows * row // workers + work.at_work(workers),
        tasks=_tasks(plan),
        moved=0 if plan.assignment.kind == "whole" else round(rows * row * (1 - 1 / workers)),
        points=work.points(),
        at_once=at_once,
        rows=found.rows,
        left_out=left_out(plan),
    )


def left_out(plan: Plan) -> str:
    """Say which work no forecast of a plan counts, and how to have it told; empty if all of it."""
    if plan.model.crossed:
        size = sum(one.size for one in plan.model.crossed)
        return (
            f"the seconds of the {size:,} crossed effects. At each of some hundred values of the "
            f"other {plan.model.dim_without_crossed} shared parameters their mode is found by "
            "Newton's method, in steps of which nobody knows the number beforehand, and each step "
            f"sends a matrix of {size**2 * 8 / _MIB:,.1f} MiB from every shard. A fit of a tenth "
            "of the rows tells."
        )
    if plan.uncorrected_because or plan.method not in ("laplace", "anchored"):
        return ""
    if plan.gives_up:
        return (
            "NUTS on all rows, which follows if the correction fails; "
            "plan(..., method='nuts').forecast() says how long that takes."
        )
    if plan.n_shards > 1 and plan.method == "laplace":
        return (
            "rounds of NUTS on the shards, which follow if the weights of the correction cannot be "
            "used; plan(..., method='anchored').forecast() says how long these take."
        )
    return ""


class _Work(NamedTuple):
    """What each phase asks of shards, and how long that takes."""

    plan: Plan
    found: Rates
    waves: float  # of shards, one after another
    at_once: int

    def check(self) -> Seconds:
        """Give time to densities of all rows, and to groups that depend on each other."""
        return _about(0.5 + 0.3 * self._compiling + self._value * self.waves)

    def search(self, again: float) -> Seconds:
        """Give time to searches, and to Newton steps on all shards; or to a pilot."""
        plan = self.plan
        if plan.method in ("consensus", "parametric", "nuts"):
            return Seconds(0, 0, 0)
        if engine_of(plan.model).obstacle:
            pilot = plan.options.pilot
            transitions = pilot.num_warmup + pilot.num_samples
            return self._chains(transitions * -(-pilot.num_chains // self.at_once), again)
        expansion = 2 * plan.model.dim + 1
        compiling = _SEARCH_BEGINS + (_SEARCH_COMPILES + again) * self._compiling

        def of(peaks: int, passes: float, compiling: float) -> float:
            polishing = -(-peaks // self.at_once) * (_CLIMB + 3 * expansion)
            return compiling + self._gradient * (polishing + passes * expansion * self.waves)

        return Seconds(of(1, 1.0, 0.0) / _TWO, of(6, 1.7, compiling), of(12, 5.0, compiling) * _TWO)

    def rounds(self, again: float) -> Seconds:
        """Give time to NUTS on shards, if any."""
        plan, chains = self.plan, self.plan.chains_sampled
        if plan.method == "laplace" and _climbs(plan):
            return Seconds(0, 0, 0)
        if plan.method in ("laplace", "anchored"):
            short = not plan.uncorrected_because
            nuts, rounds = plan.round_nuts(short=short), plan.most_rounds(short=short)
            transitions = rounds * (nuts.num_warmup + nuts.num_samples) * chains
            # Warm chains make shorter trees than one that begins anywhere.
            return self._chains(transitions * self.waves * _WARM, 1.0)
        nuts = plan.one_shot_nuts
        transitions = (nuts.num_warmup + nuts.num_samples) * chains
        return self._chains(transitions * self.waves, again)

    def correction(self, again: float) -> Seconds:
        """Give time to points of the posterior, and to what is looked at beside them."""
        plan = self.plan
        if plan.uncorrected_because:
            return Seconds(0, 0, 0)
        asked = min(self._sampled, plan.n_shards) / self.at_once
        d = plan.model.dim_without_crossed
        beside = 2 * (_PROBED + 2 * (4 * d + 1)) + 11 * d
        rim = 8 * self._gradient * self.waves if self._sampled < plan.n_shards else 0.0
        compiling = again * self.found.compile_value
        if plan.model.local:
            compiling += _CORRECTION_COMPILES * self._compiling

        def of(points: float, compiling: float) -> float:
            return compiling + rim + self._value * (points + beside) * asked

        # A second iteration, and finer nodes, which cost several times as much.
        first, second = self.points()
        likely = second if self._skewed_in_many() else first
        return Seconds(
            of(first, 0.0) / _TWO,
            of(likely, compiling),
            max(of(_FINER * first, compiling), of(second, compiling)) * _TWO,
        )

    def _skewed_in_many(self) -> bool:
        """Tell whether the first points are too few for the cubic terms that scales mostly need."""
        terms = math.comb(self.plan.model.dim_without_crossed + 3, 3)
        return bool(self.plan.model.local) and POINTS_A_TERM * terms > self.points()[0]

    def local(self) -> Seconds:
        """Give time to effects of groups, at some draws."""
        plan = self.plan
        if plan.no_local_because:
            return Seconds(0, 0, 0)
        # Where no values were timed: a tree of NUTS looks at rows about as often as a draw does.
        look = self._value or self.found.transition or 0.0
        looks = look * plan.local_draws * self.waves
        compiling = self._compiling or self.found.compile_nuts / 2
        return _about(_LOCAL_COMPILES * compiling + looks, 3.0)

    def points(self) -> tuple[int, int]:
        """Count points of the correction: of one iteration, and of two."""
        plan = self.plan
        if plan.uncorrected_because:
            return 0, 0
        options, d = plan.options.correction, plan.model.dim_without_crossed
        first = max(options.first_points, 10 * d)
        if self._sampled == plan.n_shards:
            return first, first + options.later_points
        few = min(max(64, 10 * d, 2 * (d + 1) * (d + 2)), first)
        return few, few + first

    def at_work(self, workers: int) -> int:
        """Count bytes that shards at work take beside their rows."""
        width = 8 if self.plan.model.double else 4
        return self.found.rows * width * _TEMPORARIES * max(self.at_once // workers, 1)

    @property
    def _gradient(self) -> float:
        return self.found.gradient or 0.0

    @property
    def _value(self) -> float:
        return self.found.value or 0.0

    @property
    def _compiling(self) -> float:
        return self.found.compile_gradient

    @property
    def _sampled(self) -> int:
        """Shards that the correction asks: some, where they speak for all."""
        plan, options = self.plan, self.plan.options.correction
        if plan.method not in ("laplace", "anchored"):
            return plan.n_shards
        enough = -(-options.sampled_rows * plan.n_shards // plan.survey.rows)
        few = max(options.sampled_shards, enough)
        return few if few <= plan.n_shards / 2 else plan.n_shards

    def _chains(self, transitions: float, again: float) -> Seconds:
        likely = transitions * (self.found.transition or 0.0)
        compiling = again * self.found.compile_nuts
        return Seconds(compiling + likely / 4, compiling + likely / 1.5, compiling + likely * 2)


# How often as long as a gradient's code all other code of a phase takes to compile; measured, as
# what else is here, on the models of benchmarks/forecast.py.
_SEARCH_COMPILES, _CORRECTION_COMPILES, _LOCAL_COMPILES = 2.2, 2.2, 1.0
_SEARCH_BEGINS = 1.8  # seconds, whatever the model
_CLIMB = 30  # gradients of a peak that is polished, beside expansions
_PROBED = 32  # points on which numbers of nodes are compared
_FINER = 3.0  # times as long, with more nodes
_WARM = 0.3  # length of a warm chain's trees, of those of a cold one
_TEMPORARIES = 60  # numbers a row


def _sampled_by(plan: Plan) -> Any:
    """How the longest chains on shards are sampled; None where none are."""
    if plan.method in ("laplace", "anchored"):
        if _climbs(plan) and plan.method == "laplace":
            return None
        if _climbs(plan):
            return plan.round_nuts(short=not plan.uncorrected_because)
        pilot = plan.options.pilot
        return plan.one_shot_nuts._replace(
            num_warmup=pilot.num_warmup, num_samples=pilot.num_samples
        )
    return plan.one_shot_nuts


def made_up(plan: Plan) -> ShardData:
    """Make a shard of median size up, its rows drawn from the sample that the plan was made with.

    Groups have as many rows as all have on average; of inner levels, whose groups nobody has
    counted, there are as many in each outer one as the sample shows.
    """
    assignment, example, model = plan.assignment, plan.example, plan.model
    sizes = _sizes(plan)
    median = sizes[int(np.argsort(assignment.rows, kind="stable")[(len(sizes) - 1) // 2])]
    rng = np.random.default_rng(0)
    rows = median.rows
    which = rng.integers(0, len(example.rows), rows)
    codes = _nested_codes(rows, median.groups)
    arguments = {
        name: codes[model.codes[name]] if name in model.codes else np.asarray(values)[which]
        for name, values in example.arguments.items()
    }
    shard = Shard(arguments, rows, median.groups, dict(model.codes))
    return pad(shard, padded_sizes(sizes)[sizes.index(median)])


def _nested_codes(rows: int, groups: tuple[int, ...]) -> list[np.ndarray]:
    """Deal rows to the groups of each level, every inner group within one of the outer ones."""
    codes: list[np.ndarray] = []
    for level, count in enumerate(groups):
        outer = codes[-1] if codes else np.zeros(rows, np.int32)
        each = count // groups[level - 1] if codes else count
        sizes = np.bincount(outer)
        place = np.arange(rows) - (np.cumsum(sizes) - sizes)[outer]
        codes.append((outer * each + place * each // sizes[outer]).astype(np.int32))
    return codes


def _sizes(plan: Plan) -> list[Size]:
    """Give sizes of all shards, those of inner levels as the example has them."""
    example, assignment = plan.example.size, plan.assignment
    sizes = []
    for rows, groups in zip(assignment.rows.tolist(), assignment.groups.tolist(), strict=True):
        counts = [groups] if example.groups else []
        for outer, inner in zip(example.groups, example.groups[1:], strict=False):
            counts.append(counts[-1] * max(1, min(math.ceil(inner / outer), rows // counts[-1])))
        sizes.append(Size(rows, tuple(counts)))
    return sizes


def _row_bytes(plan: Plan) -> int:
    """Bytes of a row of a shard: its values, its codes, and whether it is one."""
    values = map(np.asarray, plan.example.arguments.values())
    return 1 + sum(v.dtype.itemsize * math.prod(v.shape[1:]) for v in values)


def _tasks(plan: Plan) -> int:
    """Count tasks: those of partitions, those of shards, and passes over these."""
    partitions, n = len(plan.survey.partition_rows), plan.n_shards
    moved = partitions if plan.assignment.kind in ("divisions", "whole") else 2 * partitions + n
    kept = n * (3 if plan.no_local_because else 4)
    batches = -(-n // -(-n // 256))
    a_pass = 3 * batches + batches // 7 + 2
    passes = 1 + (not plan.uncorrected_because) * 4
    passes += 0 if plan.no_local_because else 1
    return partitions * 8 // 7 + moved + kept + passes * a_pass + 200


def _about(seconds: float, factor: float = _TWO) -> Seconds:
    return Seconds(seconds / factor, seconds, seconds * factor)


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
