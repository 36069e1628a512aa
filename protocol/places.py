"""A coordinate in 28 bytes, as echoes carry it.

Eight components as signed integers of 24 bits in units of 2 us, the height as an unsigned one in units of 1 us, and the error as
one byte in units of 1/160, all of them big-endian. 24 bits reach to 16.8 s, past the 10 s that a component may have; the units
are a fiftieth of a LAN's round trip and a sixth of the smallest error that counts.

Spec: docs/spec/05-coordinates.md, section "Probes".
"""

from protocol.coordinates import DIMENSIONS, RTT_S_MAX, Coordinate

PLACE_BYTES = 28
"""Length of an encoded place in bytes."""

ERROR_MAX = 1.5
"""Error of a fresh node and the largest that a place may have, unitless."""

_UNIT_S = 2e-6  # of components, in seconds: 24 bits with a sign reach to 16.8 s
_HEIGHT_UNIT_S = 1e-6  # in seconds: 24 bits without a sign reach to 16.8 s
_ERROR_UNIT = 1 / 160  # unitless: the largest error, 1.5, is 240 of it and fits a byte
_NUMBER_BYTES = 3  # of each component and of the height
_HEIGHT_AT = DIMENSIONS * _NUMBER_BYTES  # offset in bytes
_ERROR_AT = _HEIGHT_AT + _NUMBER_BYTES  # offset in bytes


def encode_place(place: Coordinate) -> bytes:
    """Encode a plausible coordinate; it is rounded to the units.

    Args:
        place: components within `RTT_S_MAX`, height from 0 to that, error from 0 to `ERROR_MAX`.
    """
    numbers = [round(part / _UNIT_S).to_bytes(_NUMBER_BYTES, "big", signed=True) for part in place.vector]
    height = round(place.height_s / _HEIGHT_UNIT_S).to_bytes(_NUMBER_BYTES, "big")
    return b"".join((*numbers, height, bytes((round(place.error / _ERROR_UNIT),))))


def decode_place(packed: bytes) -> Coordinate | None:
    """Decode a place that a peer told, `PLACE_BYTES` long; None where no place can be so."""
    vector = tuple(
        [
            int.from_bytes(packed[start : start + _NUMBER_BYTES], "big", signed=True) * _UNIT_S
            for start in range(0, _HEIGHT_AT, _NUMBER_BYTES)
        ]
    )
    height_s = int.from_bytes(packed[_HEIGHT_AT:_ERROR_AT], "big") * _HEIGHT_UNIT_S
    error = packed[_ERROR_AT] * _ERROR_UNIT
    if max(vector) > RTT_S_MAX or min(vector) < -RTT_S_MAX or height_s > RTT_S_MAX or error > ERROR_MAX:
        return None
    return Coordinate(vector, height_s, error)
