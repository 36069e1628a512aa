"""What a map shows: the nodes, the nearest to the middle first, and what is known of the round trips between them.

It is read from the gateway's answer, and everything in it that peers chose (names, models) is text to be shown and no more.

Spec: docs/gateway.md, section "The map".
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mesh.nodefile import ClientError
from mesh.tables import short_id

NAME_CHARACTERS_MAX = 24
"""Characters of a node's name on the map, a count: more would cover its neighbours."""

VALUES_A_PAIR = 5
"""Numbers that tell one pair: the other node, the round trip, its two bounds, its source."""


@dataclass(frozen=True, slots=True)
class Place:
    """One node.

    Attributes:
        peer_id: as text.
        owner: whose it is, empty where that is not told.
        standing: what the asked node thinks of it.
        models: what it serves.
        vector_ms: where it says it is, empty where it does not.
        jitter_s: of the path from the asked node, None where that is not measured.
        loss: the same, 0 to 1.
        latitude: where its owner says it stands, degrees, None where not told.
        longitude: the same.
    """

    peer_id: str
    owner: str = ""
    standing: str = ""
    models: tuple[str, ...] = ()
    vector_ms: tuple[float, ...] = ()
    jitter_s: float | None = None
    loss: float | None = None
    latitude: float | None = None
    longitude: float | None = None

    @property
    def name(self) -> str:
        """What stands beside it on the map: the end of its id, behind its owner's name where one is told."""
        short = short_id(self.peer_id)
        return f"{self.owner[:NAME_CHARACTERS_MAX]} {short}" if self.owner else short


@dataclass(frozen=True, slots=True)
class Apart:
    """A round trip in milliseconds, its bounds, and what it rests on."""

    ms: float
    low_ms: float
    high_ms: float
    source: str


HERE = Apart(0.0, 0.0, 0.0, "self")
"""From a node to itself."""


@dataclass(frozen=True, slots=True)
class MapFacts:
    """Everything a map is drawn from.

    Attributes:
        places: the nodes; the first is the middle, the others follow by their distance from it.
        own: the node that was asked, as a number in `places`; None where it is not among them.
        apart: what is known of the pairs, by both numbers, the smaller first.
        left_off: nodes that are farther and not on the map.
        unknown: nodes of which nobody knows how far they are.
    """

    places: tuple[Place, ...]
    own: int | None
    apart: Mapping[tuple[int, int], Apart]
    left_off: int = 0
    unknown: int = 0

    def between(self, one: int, other: int) -> Apart | None:
        """What is known of a pair."""
        return HERE if one == other else self.apart.get((min(one, other), max(one, other)))

    def ms_from_middle(self) -> list[float]:
        """The round trips from the middle, in milliseconds."""
        return [apart.ms if (apart := self.between(0, number)) is not None else math.inf for number in range(len(self.places))]

    def located(self) -> "MapFacts":
        """The same with those nodes alone whose owners say where they stand."""
        kept = [number for number, place in enumerate(self.places) if place.latitude is not None]
        new = {old: number for number, old in enumerate(kept)}
        apart = {(new[a], new[b]): value for (a, b), value in self.apart.items() if a in new and b in new}
        own = None if self.own is None else new.get(self.own)
        left_off = self.left_off + len(self.places) - len(kept)
        return replace(self, places=tuple(self.places[number] for number in kept), own=own, apart=apart, left_off=left_off)


def read_facts(answer: Any) -> MapFacts:
    """Read the gateway's answer.

    Raises:
        ClientError: it is no map's.
    """
    try:
        places = tuple(_place(row) for row in answer["nodes"])
        unit_ms = float(answer["unit_s"]) * 1000.0
        sources = [str(source) for source in answer["sources"]]
        apart: dict[tuple[int, int], Apart] = {}
        for one, flat in enumerate(answer["pairs"]):
            for start in range(0, len(flat), VALUES_A_PAIR):
                other, ms, low_ms, high_ms, source = flat[start : start + VALUES_A_PAIR]
                figures = (_figure(ms) * unit_ms, _figure(low_ms) * unit_ms, _figure(high_ms) * unit_ms)
                apart[one, int(other)] = Apart(*figures, sources[source])
        _check(len(places), apart)
        own = answer["own"]
        return MapFacts(places, None if own is None else int(own), apart, int(answer["left_off"]), int(answer["unknown"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ClientError(f"the node's answer is no map ({error}); is it of another version?") from error


def _check(count: int, apart: Mapping[tuple[int, int], Apart]) -> None:
    """Refuse a map without a middle, or with pairs of nodes that are not on it."""
    if any(not 0 <= one < other < count for one, other in apart):
        raise ValueError("a pair is of no two nodes")
    if not count or any((0, number) not in apart for number in range(1, count)):
        raise ValueError("the middle is not known to everybody")


def _figure(value: object) -> float:
    """A number that a distance can be."""
    number = _number(value)
    if number is None or number < 0.0:
        raise ValueError(f"{value!r} is no distance")
    return number


def _place(row: Mapping[str, Any]) -> Place:
    vector = row.get("vector_ms") or ()
    return Place(
        peer_id=str(row["peer_id"]),
        owner=str(row.get("owner", "")),
        standing=str(row.get("standing", "")),
        models=tuple(str(model) for model in row.get("models") or ()),
        vector_ms=tuple(float(component) for component in vector),
        jitter_s=_number(row.get("jitter_s")),
        loss=_number(row.get("loss")),
        latitude=_number(row.get("latitude")),
        longitude=_number(row.get("longitude")),
    )


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r} is no number")
    return float(value)
