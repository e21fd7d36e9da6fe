"""Whether the model is on workers what it is here."""

from __future__ import annotations

import numpy as np

from ..cluster.client import current_client
from ..cluster.mapreduce import on_worker
from ..cluster.placement import Execution
from ..cluster.tasks import broadcast, compute
from ..model.repeats import not_the_same
from ..shard.additivity import differing_terms, example_entries
from .plan import Plan

_ASKED = 4  # times that workers are asked; which ones, the scheduler decides


def check_on_workers(plan: Plan, execution: Execution, points: np.ndarray) -> None:
    """Refuse a model whose density on workers is not what it is here, at points ``(G, d)`` of u.

    What its code reads of its surroundings (the environment, files, the name of the machine) is
    the same each time in one process, and may be another on another machine.

    Raises
    ------
    ValueError
        If it differs by more than rounding.
    """
    if current_client() is None:
        return
    model, example = broadcast(plan.model), broadcast(plan.example)
    tasks = [on_worker(execution, example_entries, model, example, points) for _ in range(_ASKED)]
    there = compute(tasks)
    here = example_entries(plan.model, plan.example, points)
    differing = {
        name
        for answer in there
        for a, b in zip(here, answer, strict=True)
        for name in differing_terms(plan.model, a, b)
    }
    if differing:
        raise not_the_same(differing, "on a worker than here")
