"""Ends of queue pairs, leases to write to, and tags, as they come from a peer."""

import hashlib
import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Lease, Rights
from protocol.fabric.rdma import (
    LEASES_KEPT_MAX,
    NUMBER_MAX,
    READY,
    End,
    HeldLeases,
    Target,
    check_ready,
    compare_tags,
    decode_end,
    decode_enter,
    encode_end,
    encode_enter,
    encode_key,
    keyed_tag,
    same_subnet,
    tag_key,
)

GID = bytes(10) + b"\xff\xff\x0a\x09\x00\x01"
END = End(GID, 0x12, 0x345678, 3)
SECRET, NONCES = bytes(range(32)), (bytes(16), bytes(range(16)))

ends = st.builds(
    End,
    gid=st.binary(min_size=16, max_size=16).filter(any),
    qpn=st.integers(1, NUMBER_MAX),
    psn=st.integers(0, NUMBER_MAX),
    mtu=st.integers(1, 5),
    lid=st.integers(0, 2**16 - 1),
)


def refused(read, *arguments) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        read(*arguments)
    return caught.value.code


def leased(epoch: int = 1, region: int = 7, length: int = 4096, rights: Rights = Rights.WRITE, key: bytes | None = None) -> Lease:
    return Lease(region, epoch, 0, length, rights, 30.0, encode_key(0x7F0000001000, 0x800015A) if key is None else key)


@given(ends)
def test_an_end_is_read_as_it_was_told(end):
    assert decode_end(encode_end(end)) == end
    assert decode_enter(encode_enter(end)) == end
    assert len(encode_end(end)) == 28


@given(st.binary(max_size=64))
def test_what_is_no_end_is_refused_by_the_declared_error(data):
    for read in (decode_end, decode_enter, check_ready):
        with suppress(RemoteProtocolError):
            read(data)


def test_each_field_of_an_end_has_its_range():
    told = encode_end(END)
    assert refused(decode_end, b"\x02" + told[1:]) is ErrorCode.UNSUPPORTED
    assert refused(decode_end, told[:-1]) is ErrorCode.MALFORMED
    assert refused(decode_end, told + b"\0") is ErrorCode.MALFORMED
    for mtu in (0, 6):
        assert refused(decode_end, told[:1] + bytes([mtu]) + told[2:]) is ErrorCode.MALFORMED
    assert refused(decode_end, told[:4] + bytes(4) + told[8:]) is ErrorCode.MALFORMED  # queue pair 0 is the device's own
    assert refused(decode_end, told[:4] + b"\x01" + told[5:]) is ErrorCode.MALFORMED  # 25 bits
    assert refused(decode_end, told[:8] + b"\x01" + told[9:]) is ErrorCode.MALFORMED
    assert refused(decode_end, told[:12] + bytes(16)) is ErrorCode.MALFORMED
    assert refused(decode_enter, told) is ErrorCode.MALFORMED
    assert refused(check_ready, b"rea") is ErrorCode.MALFORMED
    check_ready(READY)


def test_a_subnet_is_shared_by_its_leading_bits_and_never_with_oneself():
    near, far = GID[:-1] + b"\x02", GID[:-2] + b"\x01\x02"
    assert same_subnet(GID, near, 120)
    assert not same_subnet(GID, far, 120)
    assert same_subnet(GID, far, 112)
    assert not same_subnet(GID, GID, 112)


def test_a_lease_is_used_once_and_none_after_a_later_one():
    held = HeldLeases()
    assert held.take(leased(2), 4096) == Target(0x7F0000001000, 0x800015A)
    assert refused(held.take, leased(2), 4096) is ErrorCode.STALE_LEASE
    assert refused(held.take, leased(1), 4096) is ErrorCode.STALE_LEASE
    held.take(leased(1, region=8), 4096)
    held.take(leased(3), 4096)


def test_a_lease_that_is_none_for_the_tensors_is_refused():
    held = HeldLeases()
    assert refused(held.take, leased(), 4097) is ErrorCode.OUT_OF_BOUNDS
    assert refused(held.take, leased(rights=Rights.READ), 1) is ErrorCode.OUT_OF_BOUNDS
    assert refused(held.take, leased(key=b""), 1) is ErrorCode.MALFORMED
    assert refused(held.take, leased(key=bytes(13)), 1) is ErrorCode.MALFORMED
    assert refused(held.take, leased(key=encode_key(2**64 - 4096, 1), length=4097), 1) is ErrorCode.OUT_OF_BOUNDS
    held.take(leased(), 1)  # nothing of that has used the epoch up


def test_a_lease_of_memory_of_a_device_is_one_for_an_offer_of_tensors_there_alone():
    held = HeldLeases()
    key = encode_key(0x7F0000200000, 0x800015A, on_device=True)
    assert len(key) == 13
    assert refused(held.take, leased(key=key), 4096) is ErrorCode.MALFORMED
    for other in (key[:-1] + b"\x00", key[:-1] + b"\x02", key + b"\x01"):
        with pytest.raises(RemoteProtocolError) as caught:
            held.take(leased(key=other), 4096, on_device=True)
        assert caught.value.code is ErrorCode.MALFORMED
    assert held.take(leased(key=key), 4096, on_device=True) == Target(0x7F0000200000, 0x800015A, on_device=True)
    assert held.take(leased(2), 4096, on_device=True) == Target(0x7F0000001000, 0x800015A), "the host's will do as well"


def test_so_many_regions_are_remembered_and_no_more():
    held = HeldLeases()
    for region in range(3 * LEASES_KEPT_MAX):
        held.take(leased(region=region), 1)
    assert len(held._epochs) == LEASES_KEPT_MAX
    assert refused(held.take, leased(region=3 * LEASES_KEPT_MAX - 1), 1) is ErrorCode.STALE_LEASE


def test_a_tag_is_of_the_bytes_and_of_the_session():
    key = tag_key(SECRET, *NONCES)
    data = os.urandom(1000)
    tag = keyed_tag(key, [memoryview(data)[:300], memoryview(data)[300:]])
    assert tag == hashlib.blake2b(data, key=key, digest_size=32).digest()
    compare_tags(tag, keyed_tag(key, [memoryview(data)]))
    assert refused(compare_tags, tag, keyed_tag(key, [memoryview(data[:-1])])) is ErrorCode.CORRUPTED
    for other in (tag_key(bytes(32), *NONCES), tag_key(SECRET, *NONCES[::-1])):
        assert keyed_tag(other, [memoryview(data)]) != tag
