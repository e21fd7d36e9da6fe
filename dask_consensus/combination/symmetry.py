"""Where else a posterior may be as high: mirror images of a point, and exchanged entries.

A likelihood that is even in some coordinates, or components that nothing tells apart, have modes
that no search need ever find, while each is an image of one that was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice

import numpy as np

from ..model.model import Latent
from .ascent import Array

_MOST = 100  # images of each kind
_TURNED = 2  # coordinates beside exchanged sites whose signs are tried


def images(u: Array, sites: Sequence[Latent]) -> Array:
    """Images of a point ``(d,)`` of the raveled sites: ``(n, d)``.

    Signs of one or two coordinates, or of a whole site, are changed; two entries along an axis of
    one length are exchanged in all sites that have it, and in each alone; and sites of one shape,
    a pair or two pairs of them, whether or not a coordinate of another changes its sign: of two
    components by names of their own, and the share of one.
    """
    places = _places(sites)
    changed = [_mirrored(u, where) for where in islice(_signs(places), _MOST)]
    changed += [_exchanged(u, group) for group in islice(_exchanges(places), _MOST)]
    for group, rest in islice(_sites_exchanged(places), _MOST):
        image = _exchanged(u, group)
        changed += [image, *(_mirrored(image, where) for where in rest)]
    return np.array(changed).reshape(-1, len(u))


def _places(sites: Sequence[Latent]) -> list[np.ndarray]:
    """Positions of each site's entries, in its own shape."""
    ends = np.cumsum([site.size for site in sites])
    return [
        np.arange(end - site.size, end).reshape(site.unconstrained)
        for site, end in zip(sites, ends, strict=True)
    ]


def _signs(places: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Coordinates that change their signs together."""
    d = sum(where.size for where in places)
    whole = (where.ravel() for where in places if where.size > 2)
    few = chain(combinations(range(d), 1), combinations(range(d), 2))
    return chain(whole, map(np.array, few))


def _exchanges(places: Sequence[np.ndarray]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Pairs of sets of coordinates that change places together."""
    lengths = {len(where) for where in places if where.ndim and len(where) > 1}
    for length in sorted(lengths):
        alike = [where for where in places if where.ndim and len(where) == length]
        groups = [alike, *([where] for where in alike)] if len(alike) > 1 else [alike]
        for i, j in combinations(range(length), 2):
            for group in groups:
                yield [(where[i].ravel(), where[j].ravel()) for where in group]


def _sites_exchanged(
    places: Sequence[np.ndarray],
) -> Iterator[tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]]:
    """Pairs of sites that change places together, and coordinates of others that may turn."""
    pairs = [
        (i, j)
        for i, j in combinations(range(len(places)), 2)
        if places[i].shape == places[j].shape and places[i].size
    ]
    single = sorted((pair,) for pair in pairs)
    double = (two for two in combinations(pairs, 2) if len({*two[0], *two[1]}) == 4)
    for chosen in chain(single, double):
        taken = {place for pair in chosen for place in pair}
        group = [(places[i].ravel(), places[j].ravel()) for i, j in chosen]
        rest = [p.ravel() for k, p in enumerate(places) if k not in taken and p.size == 1]
        yield group, rest[:_TURNED]


def _mirrored(u: Array, where: np.ndarray) -> Array:
    image = u.copy()
    image[where] *= -1
    return image


def _exchanged(u: Array, group: Sequence[tuple[np.ndarray, np.ndarray]]) -> Array:
    image = u.copy()
    for one, other in group:
        image[one], image[other] = u[other], u[one]
    return image
