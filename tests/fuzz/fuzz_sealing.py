"""The harness of sealing: what a relay reads, sealed requests and answers, receipts.

Contents are tried as they came and, because nothing is looked at before a seal is opened or a signature found good, well sealed
and signed.
"""

import json
from pathlib import Path
from typing import Any

from fuzz_oracle import Harness, either

from protocol import receipts, sealing
from protocol.errors import RemoteProtocolError
from protocol.identity import Identity
from protocol.identity.hpke import SealingKey
from protocol.sealing.frames import decode_answer_frame, decode_header, unpadded

VECTORS = Path(__file__).resolve().parents[2] / "docs" / "spec" / "vectors" / "sealing.json"
REQUESTER, RELAY, EXECUTOR = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
KEY = SealingKey(bytes(range(32)))
ROUTE = sealing.Route(bytes(16), REQUESTER.peer_id, RELAY.peer_id, EXECUTOR.peer_id)


def _vectors() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(VECTORS.read_text())
    return told


def _frames(_state: None, data: bytes) -> object:
    results: list[object] = []
    for read in (decode_header, decode_answer_frame, unpadded):
        try:
            results.append(read(data))
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _request(_state: None, data: bytes) -> object:
    results: list[object] = []
    sealed, _ = sealing.seal_request(REQUESTER, ROUTE, data, KEY.public_key, bytes(32))
    for told in (data, sealed):
        try:
            results.append(sealing.open_request(KEY, ROUTE, told, bytes(32)))
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _answer(_state: None, data: bytes) -> object:
    """Frames of an answer, their lengths in two bytes before them, behind a beginning."""
    _, opener = sealing.seal_request(REQUESTER, ROUTE, b"asked", KEY.public_key, bytes(32))
    pieces: list[object] = [opener.receive(b"\x01" + bytes(32))]
    while len(data) > 2:
        length = int.from_bytes(data[:2], "big")
        pieces.append(opener.receive(data[2 : 2 + length]))
        data = data[2 + length :]
    opener.finish()
    return pieces


def _receipt(_state: None, data: bytes) -> object:
    try:
        return receipts.open_receipt(data)
    except RemoteProtocolError:
        return receipts.open_receipt(EXECUTOR.sign(receipts.DOMAIN + data) + data)


def _seeds_of_frames() -> list[bytes]:
    told = _vectors()
    found = [bytes.fromhex(row["bytes"]) for row in told["headers"] + told["invalid_headers"]]
    for row in told["sealed"]:
        found += [bytes.fromhex(frame) for frame in row["frames"]]
    return found


def _seeds_of_answers() -> list[bytes]:
    return [
        b"".join(len(frame).to_bytes(2, "big") + frame for frame in map(bytes.fromhex, row["frames"][1:]))
        for row in _vectors()["sealed"] + _vectors()["invalid_answers"]
    ]


def _seeds_of_receipts() -> list[bytes]:
    told = _vectors()
    signed = [bytes.fromhex(row["signed"]) for row in told["receipts"]]
    return signed + [one[64:] for one in signed] + [bytes.fromhex(row["bytes"]) for row in told["invalid_receipts"]]


_REMOTE = (RemoteProtocolError,)

HARNESS = either(
    "sealing",
    Harness(
        "frames",
        _frames,
        (),
        _seeds_of_frames,
        (
            "protocol.sealing.frames:decode_header",
            "protocol.sealing.frames:decode_answer_frame",
            "protocol.sealing.frames:unpadded",
        ),
    ),
    Harness(
        "request",
        _request,
        (),
        lambda: [bytes.fromhex(row["sealed"]) for row in _vectors()["sealed"]],
        ("protocol.sealing.request:open_request",),
    ),
    Harness("answer", _answer, _REMOTE, _seeds_of_answers, ("protocol.sealing.answer:AnswerOpener.receive",)),
    Harness("receipt", _receipt, _REMOTE, _seeds_of_receipts, ("protocol.receipts:open_receipt",)),
)
