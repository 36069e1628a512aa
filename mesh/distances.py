"""Questions about distances, answered from what the core knows: between two nodes, who is near one, where everybody is.

Nodes are named as people name them: by a whole peer id, by how one begins or ends, or by the owner where one node alone has it.

Spec: docs/gateway.md, section "Distances".
"""

import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from protocol.coordinates import Coordinate
from protocol.errors import LocalProtocolError
from protocol.estimate import Estimate, Source
from protocol.identity import PeerId, parse_peer_id, peer_id_text
from protocol.membership import Standing
from protocol.node import Node

NAME_CHARACTERS_MIN = 4
"""Fewest characters of a peer id that name it, a count: fewer are a slip of the finger."""

ID_CHARACTERS_MAX = 128
"""Most characters that are read as a whole peer id, a count: twice the longest spelling; reading takes time by the square."""

NAMED_MAX = 3
"""Peer ids that a message names where several are meant, a count: enough to see where they differ."""

WITHIN_S_MAX = 10.0
"""Longest limit in seconds: no round trip that is longer counts as one (`protocol.coordinates.RTT_S_MAX`)."""

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(us|µs|ms|s)", re.ASCII)

_UNIT_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
"""Seconds in one of each unit."""

Row = dict[str, object]


class UnknownPeerError(Exception):
    """No node has the name, or more than one; the text says what to do."""


def parse_duration(text: str) -> float:
    """Read a duration with its unit, such as `10ms`, `0.5s` or `250us`, as seconds.

    Raises:
        ValueError: it is none, or none that a round trip could have; the text says what to write.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        missing = " (the unit is missing)" if re.fullmatch(r"[0-9.]+", text.strip()) else ""
        raise ValueError(f"{text[:32]!r} is no duration{missing}; write a number with its unit, such as 10ms, 0.5s or 250us")
    seconds = float(match[1]) * _UNIT_S[match[2]]
    if not 0.0 < seconds <= WITHIN_S_MAX:
        raise ValueError(f"{text[:32]!r} is no distance; write more than 0 and at most {WITHIN_S_MAX:g}s, such as 10ms")
    return seconds


@dataclass(frozen=True, slots=True)
class Near:
    """Who is looked for round a node.

    Attributes:
        of: round whom; None for this node.
        within_s: the longest round trip in seconds.
        model: only who serves it; None for everybody.
        limit: how many at most.
    """

    of: str | None = None
    within_s: float = WITHIN_S_MAX
    model: str | None = None
    limit: int = 100


class Distances:
    """Answers questions about the nodes that this one knows, itself included."""

    def __init__(
        self, node: Node, now: Callable[[], float], own_models: Callable[[], Iterable[str]], owner: Callable[[PeerId], str]
    ) -> None:
        """Keeps nothing of its own.

        Args:
            node: the core.
            now: monotonic seconds.
            own_models: what this node serves.
            owner: whose a node is, empty where that is not known.
        """
        self._node = node
        self.now = now
        self._own_models = own_models
        self._owner = owner

    def distance(self, one: str, other: str | None) -> Row:
        """How far two nodes are from each other, this one and `one` where there is no `other`.

        Raises:
            UnknownPeerError: a name is nobody's, or not one node's alone.
        """
        start = self._node.peer_id if other is None else self.find(one)
        end = self.find(one if other is None else other)
        row: Row = {"from": peer_id_text(start), "to": peer_id_text(end)}
        return row | estimate_json(self._node.views.between(start, end, self.now())) | self._path(start, end)

    def near(self, wish: Near) -> Row:
        """Who is near a node, the nearest first, and of equally near ones the one with the smaller id.

        Raises:
            UnknownPeerError: `of` is nobody's name, or not one node's alone.
        """
        now, views = self.now(), self._node.views
        centre = self._node.peer_id if wish.of is None else self.find(wish.of)
        found: list[tuple[float, PeerId, Estimate]] = []
        asked = unknown = 0
        for peer_id in self.living(now):
            if peer_id == centre or (wish.model is not None and wish.model not in self._models(peer_id)):
                continue
            asked += 1
            estimate = views.between(centre, peer_id, now)
            unknown += estimate.source is Source.UNKNOWN
            if estimate.rtt_s <= wish.within_s:
                found.append((estimate.rtt_s, peer_id, estimate))
        found.sort(key=lambda entry: entry[:2])
        rows = [self._near_row(centre, peer_id, estimate, now) for _, peer_id, estimate in found[: wish.limit]]
        return {
            "of": peer_id_text(centre),
            "within_s": wish.within_s,
            "model": wish.model,
            "asked": asked,
            "unknown": unknown,
            "left_off": max(0, len(found) - wish.limit),
            "peers": rows,
        }

    def coordinates(self) -> list[Row]:
        """Where everybody is that says so, in the order of peer ids, this node included."""
        now, views, own = self.now(), self._node.views, self._node.peer_id
        rows: list[Row] = []
        for peer_id in sorted([own, *views.known()]):
            place = views.told_place(peer_id)
            if place is not None:
                standing = "self" if peer_id == own else str(self._node.membership.standing(peer_id, now)[0])
                rows.append(self._named(peer_id) | {"standing": standing} | place_json(place))
        return rows

    def find(self, name: str) -> PeerId:
        """The one node that is named.

        Args:
            name: a peer id, the beginning or the end of one, or an owner.

        Raises:
            UnknownPeerError: there is none, or more than one.
        """
        known = [self._node.peer_id, *self._node.views.known()]
        wanted = name.removeprefix("…")
        if len(wanted) <= ID_CHARACTERS_MAX:
            with suppress(LocalProtocolError):
                if (whole := parse_peer_id(wanted)) in known:
                    return whole
        found = [peer_id for peer_id in known if wanted and self._owner(peer_id) == wanted]
        if not found and len(wanted) < NAME_CHARACTERS_MIN:
            raise UnknownPeerError(f"{name!r} is too short for a peer id; give at least {NAME_CHARACTERS_MIN} characters of it")
        if not found:
            found = [peer_id for peer_id in known if (text := peer_id_text(peer_id)).endswith(wanted) or text.startswith(wanted)]
        if not found:
            raise UnknownPeerError(
                f"no node's id begins or ends with {wanted[:64]!r}, and no owner is called so; "
                "`isochrone peers` shows those that are known"
            )
        if len(found) > 1:
            named = ", ".join("…" + peer_id_text(peer_id)[-8:] for peer_id in found[:NAMED_MAX])
            more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
            raise UnknownPeerError(f"{wanted[:64]!r} names {len(found)} nodes ({named}{more}); give the end of one's id")
        return found[0]

    def living(self, now: float) -> list[PeerId]:
        """This node and everybody who is not gone."""
        standing, views = self._node.membership.standing, self._node.views
        return [self._node.peer_id, *(peer for peer in views.known() if standing(peer, now)[0] is not Standing.GONE)]

    def _models(self, peer_id: PeerId) -> list[str]:
        """What a node serves; nothing is read for it."""
        if peer_id == self._node.peer_id:
            return sorted(self._own_models())
        serving = (self._node.table.serving(peer_id) or (None, None))[0]
        return [] if serving is None else [offer.model for offer in serving.models]

    def about(self, peer_id: PeerId, now: float) -> Row:
        """A node as it is known here: who it is, how it stands, what it serves, and the path to it where that is measured."""
        standing = "self" if peer_id == self._node.peer_id else str(self._node.membership.standing(peer_id, now)[0])
        path = self._path(self._node.peer_id, peer_id)
        return self._named(peer_id) | path | {"standing": standing, "models": self._models(peer_id)}

    def _near_row(self, centre: PeerId, peer_id: PeerId, estimate: Estimate, now: float) -> Row:
        return self.about(peer_id, now) | estimate_json(estimate) | self._path(centre, peer_id)

    def _named(self, peer_id: PeerId) -> Row:
        row: Row = {"peer_id": peer_id_text(peer_id)}
        owner = self._owner(peer_id)
        return row | {"owner": owner} if owner else row

    def _path(self, one: PeerId, other: PeerId) -> Row:
        """What this node has measured of the path besides; of paths between others it has measured nothing."""
        now, own = self.now(), self._node.peer_id
        peer_id = other if one == own else one
        quality = self._node.probe.quality(peer_id, now) if own in (one, other) else None
        if quality is None:
            return {"jitter_s": None, "loss": None, "samples": 0, "measured_ago_s": None}
        return {
            "jitter_s": quality.jitter_s,
            "loss": quality.loss,
            "samples": quality.samples,
            "measured_ago_s": round(now - quality.measured_at, 3),
        }


def estimate_json(estimate: Estimate) -> Row:
    """An estimate as a JSON object; what is not known is null."""
    if estimate.source is Source.UNKNOWN:
        return {"rtt_s": None, "low_s": None, "high_s": None, "source": str(estimate.source)}
    return {
        "rtt_s": _microseconds(estimate.rtt_s),
        "low_s": _microseconds(estimate.low_s),
        "high_s": _microseconds(estimate.high_s),
        "source": str(estimate.source),
    }


def place_json(place: Coordinate) -> Row:
    """A coordinate as a JSON object, as `isochrone status` shows this node's own."""
    return {
        "vector_ms": [round(component * 1000, 3) for component in place.vector],
        "height_ms": round(place.height_s * 1000, 3),
        "error": round(place.error, 3),
    }


def _microseconds(seconds: float) -> float:
    assert math.isfinite(seconds), "what is not known has no figure"
    return round(seconds, 6)
