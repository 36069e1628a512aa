"""The harness of fabrics: adverts, messages about transfers, how a fabric is opened, rings and packets of the local socket."""

import json
import struct
from itertools import islice
from pathlib import Path
from typing import Any

from fuzz_oracle import Harness, either

from mesh.fabric.ring import Inbox, Outbox
from mesh.fabric.session import read_packet
from protocol.errors import RemoteProtocolError
from protocol.fabric.adverts import decode_advert
from protocol.fabric.matching import matches
from protocol.fabric.messages import HEAD_BYTES, decode_hello, decode_message, decode_opening

VECTORS = Path(__file__).resolve().parents[2] / "docs" / "spec" / "vectors" / "fabric.json"
_REMOTE = (RemoteProtocolError,)


def _bytes(*kinds: str) -> list[bytes]:
    told: dict[str, Any] = json.loads(VECTORS.read_text())
    return [bytes.fromhex(row["bytes"]) for kind in kinds for row in told[kind]]


def _message(_state: None, data: bytes) -> object:
    return decode_message(bytes(4) + b"ISIF" + data)


def _advert(_state: None, data: bytes) -> object:
    advert = decode_advert(data)
    return advert, matches(advert, advert)


def _opening(_state: None, data: bytes) -> object:
    results: list[object] = []
    for read in (decode_hello, decode_opening, decode_message):
        try:
            results.append(read(data))
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _ring(_state: None, data: bytes) -> object:
    """Both counters and the first entries of a ring, as whoever owns it has written them."""
    outbox = Outbox(-1)
    outbox.region.map[: len(data[:4096])] = data[:4096]
    inbox = Inbox(outbox.region.descriptor)
    outbox.region.close()
    results: list[object] = []
    for read in (lambda: inbox.acknowledged(5), lambda: [entry.word for entry in islice(inbox.entries(), 64)]):
        try:
            results.append(read())
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _packet(_state: None, data: bytes) -> object:
    return read_packet(data[1:], data[0] % 3 if data else 0)


HARNESS = either(
    "fabric",
    Harness(
        "message",
        _message,
        _REMOTE,
        lambda: [frame[HEAD_BYTES:] for frame in _bytes("messages", "invalid_messages", "later_messages")],
        ("protocol.fabric.messages:decode_message", "protocol.fabric.messages:*"),
    ),
    Harness(
        "opening",
        _opening,
        (),
        lambda: _bytes("hellos", "invalid_hellos", "openings", "invalid_openings"),
        ("protocol.fabric.messages:decode_hello", "protocol.fabric.messages:decode_opening"),
    ),
    Harness(
        "advert",
        _advert,
        _REMOTE,
        lambda: _bytes("adverts", "invalid_adverts"),
        ("protocol.fabric.adverts:decode_advert", "protocol.fabric.adverts:Port.subnet"),
    ),
    Harness(
        "ring",
        _ring,
        (),
        lambda: [bytes(16), struct.pack("<QQ", 3, 2) + bytes(112) + bytes(range(64)) * 3, b"\xff" * 16],
        ("mesh.fabric.ring:Inbox.acknowledged", "mesh.fabric.ring:Inbox.entries"),
    ),
    Harness(
        "packet",
        _packet,
        _REMOTE,
        lambda: [b"\x01" + struct.pack("<cIQ", b"S", 1, 4096), b"\x00" + struct.pack("<cIQ", b"H", 1, 0), b"\x02x"],
        ("mesh.fabric.session:read_packet",),
    ),
)
