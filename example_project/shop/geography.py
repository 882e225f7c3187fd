"""Airports of the world, as the package ``airportsdata`` has them, and the distances between them."""

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import airportsdata

EARTH_RADIUS = 6371.0
"""Kilometres."""

Vector = tuple[float, float, float]


@functools.cache
def airports_by_country() -> dict[str, list[airportsdata.Airport]]:
    """Every airport that has an IATA code."""
    countries = defaultdict(list)
    for airport in airportsdata.load("IATA").values():
        countries[airport["country"]].append(airport)
    return dict(countries)


def hub(airports: Sequence[airportsdata.Airport]) -> airportsdata.Airport | None:
    """Where prints for a country go: the first airport in a city that a time zone is named after, if there is one."""
    named = (a for a in airports if a["city"] and a["city"] == a["tz"].rpartition("/")[2].replace("_", " "))
    return min(named, key=lambda a: a["iata"], default=None)


def vector(latitude: float, longitude: float) -> Vector:
    """A place as a point of the unit sphere."""
    north, east = math.radians(latitude), math.radians(longitude)
    return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)


def distance(a: Vector, b: Vector) -> float:
    """Great-circle distance in kilometres."""
    return EARTH_RADIUS * 2 * math.asin(min(math.dist(a, b) / 2, 1.0))


def longest_distance(places: Sequence[Vector]) -> float:
    """The greatest distance between any two: every pair is looked at, two million of them for the United States."""
    return distance(*max(combinations(places, 2), key=lambda pair: math.dist(*pair)))
