"""The harness of fabrics: adverts, messages about transfers, and how a fabric is opened."""

import json
from pathlib import Path
from typing import Any

from fuzz_oracle import Harness, either

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
)
