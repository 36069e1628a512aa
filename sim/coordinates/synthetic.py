"""Matrices by name, for users without data: `synthetic-N` and the series `volatile-N`.

A node stands in one of the large cities below, drawn by weight, some tens of kilometres from its middle, behind an access link
of a log-normal delay; every fifth is in a data centre and has hardly any. A round trip is the way of light in fibre along the
great circle, stretched as routes are, plus both access links, times a log-normal factor of the pair that no geometry explains.

A volatile series moves each pair's round trip over its slices: an autoregressive factor, shifts of the route that stay, and
spikes that do not.

Source: the stretch of routes: A. Singla, B. Chandrasekaran, P. B. Godfrey, B. Maggs, "The Internet at the Speed of Light",
HotNets 2014 (fibre paths are longer than great circles by half and more); the rest is supposed, and printed with every run.
"""

import re
from random import Random

import numpy as np
from numpy.typing import NDArray

from sim.coordinates.matrices import ENTRIES_MAX, NODES_MAX, NODES_MIN, MatrixError, RttMatrix, checked
from sim.luck import Streams

EARTH_KM = 6371.0
"""Kilometres. The mean radius of the Earth."""

FIBRE_RTT_S_PER_KM = 1e-5
"""Seconds per kilometre, there and back: light in fibre covers 200 km in a millisecond."""

STRETCH = 1.85
"""How much longer a route is than the great circle, unitless; chosen so that the median round trip is near 158 ms."""

ACCESS_S_MEDIAN = 0.004
"""Seconds. The median of the access links' share of a round trip: fibre and cable subscribers."""

ACCESS_SIGMA = 0.8
"""Spread of the logarithm of the access delay, unitless: one in ten has three times the median."""

CENTRE_SHARE = 0.2
"""Share of nodes in data centres."""

CENTRE_ACCESS_S = 0.0002
"""Seconds. What a data centre adds to a round trip."""

PAIR_SIGMA = 0.12
"""Spread of the logarithm of each pair's own factor, unitless."""

SCATTER_DEGREES = 0.3
"""Degrees round the middle of a city, about 33 km: a metropolitan area."""

VOLATILE_SLICES = 120
"""Slices of a volatile series, a count."""

VOLATILE_SIGMA = 0.25
"""Spread of the logarithm of the moving factor, unitless."""

VOLATILE_KEEPS = 0.8
"""Share of the moving factor's logarithm that the next slice keeps."""

SHIFT_SHARE = 0.01
"""Share of pairs whose route changes for good in a slice."""

SPIKE_SHARE = 0.02
"""Share of pairs that are several times as slow in one slice and then no more."""

CITIES = (
    "35.7,139.7 28.6,77.2 31.2,121.5 -23.5,-46.6 19.4,-99.1 30.0,31.2 19.1,72.9 39.9,116.4 34.7,135.5 40.7,-74.0 24.9,67.0 "
    "-34.6,-58.4 41.0,29.0 6.5,3.4 14.6,121.0 22.5,114.1 -22.9,-43.2 34.1,-118.2 55.8,37.6 48.9,2.3 -6.2,106.8 37.6,127.0 "
    "51.5,-0.1 41.9,-87.6 13.1,80.3 4.7,-74.1 -12.0,-77.0 13.8,100.5 12.97,77.6 40.4,-3.7 43.7,-79.4 -33.9,151.2 1.35,103.8 "
    "59.9,30.3 52.5,13.4 50.1,8.7 52.4,4.9 48.2,16.4 50.1,14.4 52.2,21.0 59.3,18.1 60.2,24.9 55.7,12.6 59.9,10.8 53.3,-6.3 "
    "45.5,9.2 41.9,12.5 38.7,-9.1 37.98,23.7 47.5,19.0 44.4,26.1 50.4,30.5 32.1,34.8 25.2,55.3 -26.2,28.0 -33.9,18.4 "
    "-1.3,36.8 37.8,-122.4 47.6,-122.3 39.0,-77.5 32.8,-96.8 33.7,-84.4 25.8,-80.2 45.5,-73.6 -33.4,-70.7 10.5,-66.9 "
    "25.0,121.5 21.0,105.8 -37.8,145.0 -36.8,174.8 46.2,6.1 49.6,6.1"
)
"""Latitude and longitude in degrees of 72 large cities and places with many data centres, all parts of the world."""


def named(text: str, seed: int) -> RttMatrix | None:
    """The matrix that `text` names, None where it names none.

    Args:
        text: `synthetic-N` or `volatile-N`.
        seed: what the places and the factors are drawn from; each seed is another matrix.

    Raises:
        MatrixError: N is too small or too large.
    """
    match = re.fullmatch(r"(synthetic|volatile)-(\d{1,6})", text)
    if match is None:
        return None
    kind, nodes = match[1], int(match[2])
    slices = VOLATILE_SLICES if kind == "volatile" else 1
    if not NODES_MIN <= nodes <= NODES_MAX or slices * nodes * nodes > ENTRIES_MAX:
        most = min(NODES_MAX, int((ENTRIES_MAX / slices) ** 0.5))
        raise MatrixError(f"{text}: from {NODES_MIN} to {most} nodes")
    streams = Streams(seed)
    steady = _steady(nodes, streams.of(f"{text} places"))
    luck = np.random.default_rng(streams.of(f"{text} factors").getrandbits(64))
    steady = steady * _symmetric(luck, nodes, PAIR_SIGMA)
    planes = steady[None] if kind == "synthetic" else _moving(steady, luck, slices)
    return checked(RttMatrix(text, planes.astype(np.float32), tuple(str(index) for index in range(nodes))))


def _steady(nodes: int, luck: Random) -> NDArray[np.float64]:
    """Round trips in seconds without any noise, shape (n, n)."""
    cities = [tuple(float(part) for part in city.split(",")) for city in CITIES.split()]
    places = np.empty((nodes, 2))
    access_s = np.empty(nodes)
    for index in range(nodes):
        latitude, longitude = cities[luck.randrange(len(cities))]
        places[index] = (latitude + luck.gauss(0.0, SCATTER_DEGREES), longitude + luck.gauss(0.0, SCATTER_DEGREES))
        home_s = ACCESS_S_MEDIAN * float(np.exp(luck.gauss(0.0, ACCESS_SIGMA)))
        access_s[index] = CENTRE_ACCESS_S if luck.random() < CENTRE_SHARE else home_s
    latitude_r, longitude_r = np.radians(places[:, 0]), np.radians(places[:, 1])
    flat = np.cos(latitude_r)
    points = np.stack([flat * np.cos(longitude_r), flat * np.sin(longitude_r), np.sin(latitude_r)], axis=1)
    chord = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * (points @ points.T)))
    great_circle_km = 2.0 * EARTH_KM * np.arcsin(np.minimum(1.0, chord / 2.0))
    return np.asarray(great_circle_km * FIBRE_RTT_S_PER_KM * STRETCH + access_s[:, None] + access_s[None, :])


def _symmetric(luck: np.random.Generator, nodes: int, sigma: float) -> NDArray[np.float64]:
    """A log-normal factor for each pair."""
    drawn = np.triu(luck.normal(0.0, sigma, (nodes, nodes)), 1)
    return np.asarray(np.exp(drawn + drawn.T))


def _moving(steady: NDArray[np.float64], luck: np.random.Generator, slices: int) -> NDArray[np.float32]:
    """The same matrix over time, shape (slices, n, n)."""
    nodes = len(steady)
    rows, columns = np.triu_indices(nodes, 1)
    state = luck.normal(0.0, VOLATILE_SIGMA, len(rows))
    level = np.zeros(len(rows))
    fresh = VOLATILE_SIGMA * float(np.sqrt(1.0 - VOLATILE_KEEPS**2))
    planes = np.zeros((slices, nodes, nodes), dtype=np.float32)
    for plane in planes:
        state = VOLATILE_KEEPS * state + luck.normal(0.0, fresh, len(rows))
        level = np.where(luck.random(len(rows)) < SHIFT_SHARE, luck.normal(0.0, 2.0 * VOLATILE_SIGMA, len(rows)), level)
        spikes = np.where(luck.random(len(rows)) < SPIKE_SHARE, luck.exponential(1.0, len(rows)), 0.0)
        plane[rows, columns] = plane[columns, rows] = steady[rows, columns] * np.exp(state + level + spikes)
    return planes
