"""The kernel's list of interfaces is read as other programs read it, and what is no list is an error."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.links import Link, parse, read_links

LOOPBACK_FLAG = 0x8


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body + bytes(-len(body) % 4)


def link(name: bytes, mtu: int, *more: bytes) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, 3, 0x1003, 0) + attribute(3, name + b"\0") + attribute(4, struct.pack("=I", mtu))
    return message(16, body + b"".join(more))


DONE = message(3, struct.pack("=i", 0))


def test_this_machine_has_the_interfaces_that_the_c_library_names() -> None:
    links = read_links()
    assert {found.name for found in links} == {name for _, name in socket.if_nameindex()}
    loopback = next(found for found in links if found.name == "lo")
    assert loopback.flags & LOOPBACK_FLAG
    assert loopback.mtu_bytes > 0


def test_list_is_read_over_several_answers() -> None:
    bridge = link(b"br0", 1500, attribute(18 | 1 << 15, attribute(1, b"bridge\0")))
    assert parse(link(b"eth0", 9000) + bridge) == (
        [Link("eth0", 0x1003, 1, 9000, is_virtual=False), Link("br0", 0x1003, 1, 1500, is_virtual=True)],
        False,
    )
    assert parse(DONE) == ([], True)


def test_refusal_is_told_by_its_number() -> None:
    with pytest.raises(OSError) as refused:
        parse(message(2, struct.pack("=i", -1)))
    assert refused.value.errno == 1


@given(
    st.binary(max_size=200)
    | st.binary(max_size=80).map(lambda body: message(16, body))
    | st.binary(max_size=40).map(lambda b: link(b, 1, b))
)
def test_any_bytes_are_a_list_or_an_error(data: bytes) -> None:
    try:
        links, is_done = parse(data)
    except OSError:
        return
    assert len(links) <= len(data) // 16
    assert is_done in (True, False)
