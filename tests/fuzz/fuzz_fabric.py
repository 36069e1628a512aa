"""The harness of fabrics: adverts, messages about transfers, how one is opened, rings, packets, ends of RDMA, lines of pools."""

import json
import struct
from itertools import islice
from pathlib import Path
from typing import Any

from fuzz_oracle import Harness, either

from mesh.fabric.ring import Inbox, Outbox
from mesh.fabric.session import read_packet
from protocol.errors import RemoteProtocolError
from protocol.fabric import gpu
from protocol.fabric.adverts import decode_advert
from protocol.fabric.matching import matches
from protocol.fabric.messages import HEAD_BYTES, decode_hello, decode_message, decode_opening
from protocol.fabric.pools import (
    LINE_BYTES,
    Hidden,
    LeaseReleased,
    PoolFlags,
    RegionHead,
    SlotHead,
    SlotState,
    Token,
    decode_beat,
    decode_name,
    decode_place,
    decode_region,
    decode_slot,
    decode_superblock,
    decode_token,
    decode_word,
    encode_name,
    encode_region,
    encode_slot,
    encode_superblock,
    encode_token,
    encode_word,
    lay_out,
)
from protocol.fabric.rdma import End, HeldLeases, decode_end, decode_enter, encode_end, encode_enter, encode_key, same_subnet
from protocol.fabric.tags import check_tag, tag_of
from protocol.fabric.values import Lease, Rights

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


_POOL = lay_out(bytes(range(16)), PoolFlags.COHERENT, 64 << 20, 1 << 16)


def _pool(_state: None, data: bytes) -> object:
    """A line of a pool, as anybody who maps it may have written it, read in every place where a line stands; and its words."""
    line = data[:LINE_BYTES].ljust(LINE_BYTES, b"\0")
    results: list[object] = [decode_beat(line), decode_name(line)]
    for read in (
        lambda: decode_superblock(line, 64 << 20),
        lambda: decode_slot(line),
        lambda: decode_region(line),
        lambda: decode_place(data, _POOL),
        lambda: decode_token(data, _POOL),
        lambda: decode_word(data),
        lambda: check_tag([data[16:]], data[:16]),
    ):
        try:
            results.append(read())
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _rdma(_state: None, data: bytes) -> object:
    """Ends of queue pairs, and leases with keys, as a peer tells them."""
    held = HeldLeases()
    lease = Lease(len(data), 1, 0, 4096, Rights.WRITE, 1.0, data)
    readers = (
        lambda: decode_enter(data),
        lambda: held.take(lease, 4096, on_device=len(data) % 2 == 1),
        lambda: same_subnet(decode_end(data).gid, bytes(16), 120),
    )
    results: list[object] = []
    for read in readers:
        try:
            results.append(read())
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _pool_seeds() -> list[bytes]:
    return [
        encode_superblock(_POOL),
        encode_slot(SlotHead(SlotState.CLAIMED, 7, bytes(range(16)))),
        encode_region(RegionHead(1, 7, 3, 2, 1 << 20)),
        encode_name("a node"),
        encode_token(Token(_POOL.pool_id, 3, 7, bytes(16))),
        bytes.fromhex("0100000002000000"),
        encode_word(LeaseReleased(3, 2)),
        encode_word(Hidden(3)),
        tag_of([b"bytes"]) + b"bytes",
    ]


_END = End(bytes(10) + b"\xff\xff\x0a\x09\x00\x01", 17, 5, 3)


def _gpu_word(_state: None, data: bytes) -> object:
    return gpu.decode_word(data)


HARNESS = either(
    "fabric",
    Harness(
        "gpu-word",
        _gpu_word,
        _REMOTE,
        lambda: _bytes("gpu_words", "invalid_gpu_words", "later_gpu_words"),
        ("protocol.fabric.gpu:decode_word", "protocol.fabric.gpu:*"),
    ),
    Harness(
        "pool",
        _pool,
        (),
        _pool_seeds,
        (
            "protocol.fabric.pools:decode_superblock",
            "protocol.fabric.pools:decode_slot",
            "protocol.fabric.pools:decode_beat",
            "protocol.fabric.pools:decode_name",
            "protocol.fabric.pools:decode_region",
            "protocol.fabric.pools:decode_place",
            "protocol.fabric.pools:decode_token",
            "protocol.fabric.pools:decode_word",
            "protocol.fabric.pools:*",
        ),
    ),
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
    Harness(
        "rdma",
        _rdma,
        (),
        lambda: [
            encode_end(_END),
            encode_enter(_END),
            encode_key(4096, 1),
            encode_key(2**64 - 1, 1),
            encode_key(4096, 1, on_device=True),
            b"",
        ],
        (
            "protocol.fabric.rdma:HeldLeases.take",
            "protocol.fabric.rdma:decode_end",
            "protocol.fabric.rdma:decode_enter",
            "protocol.fabric.rdma:same_subnet",
        ),
    ),
)
