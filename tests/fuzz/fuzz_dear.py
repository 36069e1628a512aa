"""Inputs that are as dear as their length allows, by harness: what a decoder was slow or large with, or might have been.

They are made here and not kept as files, for most are one thing repeated until the input is full. Those marked as findings were
over the bounds of the oracle once; what was mended is in the commit that brought them.
"""

from fuzz_live import joined
from fuzz_oracle import INPUT_BYTES_MAX

FULL = INPUT_BYTES_MAX - 1


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    length, head = len(content), bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(0x80 | length & 0x7F)
        length >>= 7
    return bytes(head) + bytes([length]) + content


def _keys(count: int) -> bytes:
    return b"".join(b"\xa2" + bytes([65 + number // 64, 48 + number % 64]) + b"\x80" for number in range(count))


def _body(messages: bytes) -> bytes:
    return b'\x00{"model":"m","messages":[' + messages + b"]}"


EMPTY_FIELDS = b"\x18\x00"
"""A field that no message has, with nothing in it."""

DEAR: dict[str, list[bytes]] = {
    "encodings": [b"\x00" + bytes(65_000), b"\x02" + b"\x04" * 65_000, b"\x01" + b"1" * 60_000],
    "libp2p": [
        b"\x02\x00\x13/multistream/1.0.0\n" + b"\x01\n" * 30_000,
        b"\x00" + (b"\xc0\x0c" + b"\x50\x01" * 800) * 10,
        b"\x00\x80\x0c" + b"\x12\x00" * 256 + b"\x1a\x00" * 512,
    ],
    "msgpack": [
        b"\x00" + b"\xdc\x02\x40" * 1100,  # finding: room for 576 elements, a thousand levels deep
        b"\x01" + b"\xdc\x03\xff" * 1100,  # finding: the same with 1,023
        b"\x01" + b"\xdd\x00\x00\x03\xff" * 1100,
        (b"\x00" + (b"\xdc\x00\x7f" + (b"\xdc\x00\x7f" + b"\x90" * 127) * 127))[:FULL],
        b"\x00\xdc\x02\x40" + (b"\xdc\x02\x3f" + b"\x80" * 575) * 112,  # finding: 64,000 empty maps
        b"\x00" + (b"\xdc\x02\x40" + b"\x80" * 574) * 113,  # finding: the same, one inside the other
        b"\x00\xdf\x00\x00\x02\x00" + _keys(512),
        b"\x00\x92\x01\xc4\x08" + b"\xdc" * 8 + b"\xc5\xff\xf0" + b"\xdd" * 60_000,
    ],
    "gossip": [(b"\x00\x92\x01" + (b"\xdc\x02\x30" + (b"\xdc\x02\x30" + b"\x90" * 0x230) * 110))[:FULL]],
    "record": [b"\x01\xdf\x00\x00\x04\x00" + _keys(1024)],
    "pubsub": [
        EMPTY_FIELDS * 2048,
        field(3, field(1, EMPTY_FIELDS * 10_000) * 3)[:FULL],  # finding: fields inside fields, counted one by one
        field(3, field(1, b"\x12\x00" * 10_000)),  # finding: ten thousand empty ids, read twice
        (field(1, b"\x08\x01" * 15) * 2000)[:FULL],  # finding
        field(3, field(4, b"\x50\x01" * 250) * 100),  # finding
        field(3, field(4, b"\x58\x01" * 14) * 2000)[:FULL],  # finding
        field(3, field(1, field(2, b"x")) * 2000),
    ],
    "engine": [
        b"\x01\x02" + b"\n" * 65_000,  # finding: empty lines
        b"\x01\x02" + b"data:\n" * 10_000 + b"\n",
        b'\x00\x00{"a":[' + b"[]," * 21_000 + b"1]}",
        b'\x00\x01{"input":[' + b"[1]," * 16_000 + b"1]}",
        b'\x00\x01{"input":[' + b"1," * 32_000 + b"1]}",
    ],
    "gateway-body": [
        _body((b"[" * 60 + b"]" * 60 + b",") * 500 + b"1"),  # finding: thirty thousand arrays
        _body((b'{"a":' * 50 + b"1" + b"}" * 50 + b",") * 200 + b"1"),
        _body(b'{"role":"u"},' * 4900 + b'{"role":"user"}'),
        _body(b'{"role":"u","content":[' + b'{"type":"x"},' * 4500 + b'{"type":"text"}]}'),
        _body(b"[]," * 21_000 + b"1"),
        b'\x00{"a":[' + (b"9" * 4300 + b",") * 14 + b"1]}",
    ],
    "core": [
        b"\x00" + b"\x03\x92\x05\xc0" * 16_000,
        b"\x00" + bytes(65_000),
        b"\x00" + b"\x03\x92\x7f\xc0" * 16_000,
        b"\x01" + joined([b"\x01" + bytes(8)] * 60),
    ],
}
