"""Which grouping factor is the key, which lie around it, and which are crossed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .design import joined_groups
from .statistics import MOST_LEVELS, Cell, Factor
from .terms import FormulaError


class Grouping(NamedTuple):
    """How the factors of a formula become keys and crossed factors.

    Attributes
    ----------
    by : tuple of str
        Key columns, outermost first.
    tiers : tuple of (factor, level)
        Factors whose groups are those of a level of `by`.
    crossed : tuple of factor
        The others.
    levels : tuple of tuple
        Of each crossed factor, in their order.
    told : str
        Why, in words; empty where there was no choice.
    """

    by: tuple[str, ...] = ()
    tiers: tuple[tuple[Cell, int], ...] = ()
    crossed: tuple[Cell, ...] = ()
    levels: tuple[tuple[object, ...], ...] = ()
    told: str = ""


def grouping_of(factors: Sequence[Cell], seen: Mapping[Cell, Factor]) -> Grouping:
    """Choose the key: the factor with the most groups, and those that it lies within.

    Raises
    ------
    FormulaError
        If another factor has more levels than crossed effects can have.
    """
    if not factors:
        return Grouping()
    counts = {factor: seen[factor].size if factor in seen else 0 for factor in factors}
    largest = max(factors, key=lambda factor: (counts[factor], len(factor)))
    chain = [largest]
    around = [f for f in factors if set(f) < set(largest)]
    for factor in sorted(around, key=lambda f: (-len(f), -counts[f])):
        if set(factor) < set(chain[0]):
            chain.insert(0, factor)
    by: list[str] = []
    tiers = []
    for factor in chain:
        by += [column for column in factor if column not in by]
        tiers.append((factor, len(by) - 1))
    crossed = tuple(factor for factor in factors if factor not in chain)
    levels = tuple(_levels(factor, seen[factor]) for factor in crossed)
    return Grouping(tuple(by), tuple(tiers), crossed, levels, _told(chain, crossed, counts))


def name_of(factor: Cell) -> str:
    """Name a factor as formulae does."""
    return ":".join(factor)


def _levels(factor: Cell, seen: Factor) -> tuple[object, ...]:
    if seen.groups is None:
        raise FormulaError(
            f"(... | {name_of(factor)}): about {seen.size:,} groups that are crossed with those "
            f"of the key, more than the {MOST_LEVELS:,} whose effects can be: join groups of few "
            "rows, or leave the smaller factor out"
        )
    if len(factor) > 1:
        return tuple(sorted(joined_groups(seen.groups)))
    values = [group[0] for group in seen.groups]
    return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))


def _told(chain: Sequence[Cell], crossed: Sequence[Cell], counts: Mapping[Cell, int]) -> str:
    key = name_of(chain[-1])
    parts = []
    if len(chain) > 1:
        parts.append(f"groups of {key} lie within those of {name_of(chain[0])}")
    for factor in crossed:
        parts.append(
            f"{name_of(factor)} ({counts[factor]:,} groups) is crossed with {key} "
            f"({counts[chain[-1]]:,}), which has the most groups and is the key"
        )
    return "; ".join(parts)
