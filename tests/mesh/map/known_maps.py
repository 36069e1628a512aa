"""Facts of maps for tests: nodes in a plane, whose distances any honest map keeps."""

import math
import random
from collections.abc import Sequence

from mesh.map.facts import Apart, MapFacts, Place

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def peer(number: int) -> str:
    """A text that looks as a peer id does."""
    luck = random.Random(number)
    return "12D3KooW" + "".join(luck.choice(ALPHABET) for _ in range(44))


def planar(spots: Sequence[tuple[float, float]], *, vectors: bool = True, measured: int = 0, **named: object) -> MapFacts:
    """Nodes at places in a plane, in milliseconds; the first is the middle, the others are put in order.

    Args:
        spots: where they are.
        vectors: whether they tell coordinates.
        measured: how many of the nearest the middle has measured.
        named: fields of every place besides.
    """
    middle = spots[0]
    ordered = [middle, *sorted(spots[1:], key=lambda spot: math.dist(spot, middle))]
    places = tuple(
        Place(peer(number), standing="alive" if number else "self", vector_ms=(x, y, 0.0) if vectors else (), **named)
        for number, (x, y) in enumerate(ordered)
    )
    apart = {}
    for one, here in enumerate(ordered):
        for other in range(one + 1, len(ordered)):
            ms = math.dist(here, ordered[other])
            source = "measured" if one == 0 and other <= measured else "coordinate"
            apart[one, other] = Apart(ms, 0.8 * ms, 1.2 * ms, source)
    return MapFacts(places, 0, apart)


def scattered(count: int, seed: int = 1, **named: object) -> MapFacts:
    """Nodes anywhere within 100 ms, in clusters as sites make them."""
    luck = random.Random(seed)
    sites = [(luck.uniform(-100, 100), luck.uniform(-100, 100)) for _ in range(6)]
    spots = [(x + luck.gauss(0, 4), y + luck.gauss(0, 4)) for x, y in (luck.choice(sites) for _ in range(count))]
    return planar(spots, measured=min(count - 1, 64), **named)
