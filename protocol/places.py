"""A coordinate in 28 bytes, as echoes carry it.

Eight components as signed integers of 24 bits in units of 2 us, the height as an unsigned one in units of 1 us, and the error as
one byte in units of 1/160, all of them big-endian. 24 bits reach to 16.8 s, past the 10 s that a component may have; the units
are a fiftieth of a LAN's round trip and a sixth of the smallest error that counts.

Spec: docs/spec/05-coordinates.md, section "Probes".
"""

import struct

from protocol.coordinates import DIMENSIONS, RTT_S_MAX, Coordinate

PLACE_BYTES = 28
"""Length of an encoded place in bytes."""

ERROR_MAX = 1.5
"""Error of a fresh node and the largest that a place may have, unitless."""

_UNIT_S = 2e-6  # of components, in seconds: 24 bits with a sign reach to 16.8 s
_HEIGHT_UNIT_S = 1e-6  # in seconds: 24 bits without a sign reach to 16.8 s
_ERROR_UNIT = 1 / 160  # unitless: the largest error, 1.5, is 240 of it and fits a byte
_PLACE = struct.Struct(">" + DIMENSIONS * "bH" + "BH" + "B")  # numbers of 24 bits as their upper 8 bits and their lower 16


def encode_place(place: Coordinate) -> bytes:
    """Encode a plausible coordinate; it is rounded to the units.

    Args:
        place: components within `RTT_S_MAX`, height from 0 to that, error from 0 to `ERROR_MAX`.
    """
    numbers: list[int] = []
    for part in place.vector:
        number = round(part / _UNIT_S)
        numbers += (number >> 16, number & 0xFFFF)
    height = round(place.height_s / _HEIGHT_UNIT_S)
    return _PLACE.pack(*numbers, height >> 16, height & 0xFFFF, round(place.error / _ERROR_UNIT))


def decode_place(packed: bytes) -> Coordinate | None:
    """Decode a place that a peer told, `PLACE_BYTES` long; None where no place can be so."""
    numbers: tuple[int, ...] = _PLACE.unpack(packed)
    vector = tuple([((numbers[at] << 16) + numbers[at + 1]) * _UNIT_S for at in range(0, 2 * DIMENSIONS, 2)])
    height_s = ((numbers[-3] << 16) + numbers[-2]) * _HEIGHT_UNIT_S
    error = numbers[-1] * _ERROR_UNIT
    if max(vector) > RTT_S_MAX or min(vector) < -RTT_S_MAX or height_s > RTT_S_MAX or error > ERROR_MAX:
        return None
    return Coordinate(vector, height_s, error)
