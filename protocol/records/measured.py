"""Edges in nine bytes each: what a node measured, in a form that its neighbours can lay beside what the other ends measured.

An edge is named by a tag, five bytes of a hash over the peer ids of both its ends in their order. So both ends name it alike, and
whoever knows both ids finds it in the records of both without reading names; two edges of one node that share a tag would take
2**40 trials to make, for the loss of one edge. The round trip stands on a logarithmic scale from 10 us to 10 s in steps of a
fiftieth of a percent; its age when the record was issued, jitter, loss and which way it took share two bytes.

Tags stand in ascending order, so that no two in a record are the same and one is found by bisection.

Source: F. Dabek et al., "Vivaldi" (SIGCOMM 2004), for what round trips are told for; the form is this project's own.
Spec: docs/spec/03-records.md, section "Payloads".
"""

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId

EDGE_BYTES = 9
"""Bytes of one edge: 64 of them take 576."""

TAG_BYTES = 5
"""Bytes of a tag: among the 2**17 edges of 2,048 peers, two of one peer share one once in 2**26 records."""

_RTT_S_MIN = 1e-5
"""Shortest round trip that can be told, in seconds; shorter ones are told as this, for no path is."""

_RTT_S_MAX = 10.0
"""Longest, in seconds: no sample is longer (chapter 5)."""

_CODE_MAX = 65_535
"""Largest code of a round trip; 0 is none."""

_STEP = math.log(_RTT_S_MAX / _RTT_S_MIN) / (_CODE_MAX - 1)
"""Logarithm of the ratio of two neighbouring round trips, unitless: 0.021 %."""

_AGE_UNIT_S = 8.0
"""Unit of an age in seconds: one byte reaches to 34 minutes, past the 30 that a record is good for."""

_AGE_CODE_MAX = 255
"""Largest code of an age; it stands for so old or older."""

_JITTER_UNIT_S = 1e-4
"""Largest jitter of the first class in seconds; each further class has twice the one before."""

_JITTER_S = tuple(_JITTER_UNIT_S * 2.0**number for number in range(16))
"""Largest jitter of each class in seconds; the last stands for 3.3 s and more."""

_LOSS_MAX = (0.01, 0.05, 0.2, 1.0)
"""Largest share of lost nonces of each class, unitless: none to speak of, some, much, hardly usable."""

_EDGE = struct.Struct(">5sHBB")
_DOMAIN = b"isochrone-edge-v1:"


class Way(IntEnum):
    """Which way a measured path takes; both ends see the same. Two edges that differ in it say nothing of one another."""

    UNKNOWN = 0
    IPV4 = 1
    IPV6 = 2
    RELAYED = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """One edge as a record tells it.

    Attributes:
        tag: of the pair of peers.
        rtt_s: filtered round trip in seconds, 10 us to 10 s.
        age_s: seconds since the newest sample when the record was issued, 2,040 for so old or older.
        jitter_s: upper end of the class of its jitter, in seconds.
        loss: upper end of the class of its loss, 0 to 1.
        way: which way it takes.
    """

    tag: bytes
    rtt_s: float
    age_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    way: Way = Way.UNKNOWN


def edge_tag(one: PeerId, other: PeerId) -> bytes:
    """How both ends name the edge between them."""
    ends = one + b":" + other if one < other else other + b":" + one
    return hashlib.sha256(_DOMAIN + ends).digest()[:TAG_BYTES]


def rtt_code(rtt_s: float) -> int:
    """The code of a round trip, 1 to 65,535; what is out of range is told as the nearest that is not."""
    return 1 + round(math.log(min(max(rtt_s, _RTT_S_MIN), _RTT_S_MAX) / _RTT_S_MIN) / _STEP)


def rtt_of(code: int) -> float:
    """The round trip of a code in seconds."""
    return _RTT_S_MIN * math.exp((code - 1) * _STEP)


def encode_measured(edges: Iterable[Measured]) -> bytes:
    """Encode edges in the order of their tags; of several with one tag none is told, for nobody could say whose it is."""
    packed: dict[bytes, bytes | None] = {}
    for edge in edges:
        age = min(round(edge.age_s / _AGE_UNIT_S), _AGE_CODE_MAX)
        quality = _jitter_class(edge.jitter_s) << 4 | _loss_class(edge.loss) << 2 | edge.way
        entry = _EDGE.pack(edge.tag, rtt_code(edge.rtt_s), age, quality)
        packed[edge.tag] = None if edge.tag in packed else entry
    return b"".join(entry for _, entry in sorted(packed.items()) if entry is not None)


def decode_measured(packed: bytes) -> tuple[Measured, ...]:
    """Decode what `check_measured` has let pass."""
    return tuple(_measured(*_EDGE.unpack_from(packed, start)) for start in range(0, len(packed), EDGE_BYTES))


def check_measured(packed: bytes, count_max: int) -> None:
    """Check the edges of a record whose signature has been verified.

    Raises:
        RemoteProtocolError: TOO_LARGE for more than `count_max`; MALFORMED for a length that is no multiple of `EDGE_BYTES`, for
            tags that do not ascend, and for a round trip of none.
    """
    if len(packed) > EDGE_BYTES * count_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(packed)} bytes of edges, {count_max} edges are allowed")
    if len(packed) % EDGE_BYTES:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"{len(packed)} bytes are no edges of {EDGE_BYTES} bytes")
    before = b""
    for start in range(0, len(packed), EDGE_BYTES):
        tag, code = packed[start : start + TAG_BYTES], packed[start + TAG_BYTES : start + TAG_BYTES + 2]
        if tag <= before or code == b"\0\0":
            raise RemoteProtocolError(ErrorCode.MALFORMED, "edges out of order, or one without a round trip")
        before = tag


def find_measured(packed: bytes, tag: bytes) -> Measured | None:
    """The edge with a tag, in what `check_measured` has let pass."""
    at = position_of(packed, tag)
    return None if at is None else measured_at(packed, at)


def position_of(packed: bytes, tag: bytes) -> int | None:
    """The number of the edge with a tag, counted from 0; None where there is none."""
    low, high = 0, len(packed) // EDGE_BYTES
    while low < high:
        middle = (low + high) // 2
        if packed[EDGE_BYTES * middle : EDGE_BYTES * middle + TAG_BYTES] < tag:
            low = middle + 1
        else:
            high = middle
    return low if packed[EDGE_BYTES * low : EDGE_BYTES * low + TAG_BYTES] == tag else None


def measured_at(packed: bytes, number: int) -> Measured:
    """The edge of a number, counted from 0."""
    return _measured(*_EDGE.unpack_from(packed, EDGE_BYTES * number))


def _measured(tag: bytes, code: int, age: int, quality: int) -> Measured:
    return Measured(tag, rtt_of(code), age * _AGE_UNIT_S, _JITTER_S[quality >> 4], _LOSS_MAX[quality >> 2 & 3], Way(quality & 3))


def _jitter_class(jitter_s: float) -> int:
    return next((number for number, most_s in enumerate(_JITTER_S) if jitter_s <= most_s), len(_JITTER_S) - 1)


def _loss_class(loss: float) -> int:
    return next((number for number, most in enumerate(_LOSS_MAX) if loss <= most), len(_LOSS_MAX) - 1)
