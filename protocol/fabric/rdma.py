"""What two nodes tell each other to connect their queue pairs, the keys of leases, and the tag of what was written.

All of it travels inside the QUIC session alone; on the network of the fabric nothing stands but packets of RDMA. A place to
connect to is 28 bytes of fixed layout: version, MTU, local id, number of the queue pair, number of its first packet, and
address. The key of a lease is 12 bytes: where the window begins, and its remote key; where it is memory of a device, a byte
more. The tag is BLAKE2b over the bytes of the tensors in order, under a key that both sides make from the secret of the opening.

Source: RFC 7693 (BLAKE2); InfiniBand Architecture Specification 1.4, volume 1, sections 9.7 and 10.6.
Spec: docs/spec/11-fabric.md, section "RDMA".
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.adverts import GID_BYTES
from protocol.fabric.messages import NONCE_BYTES, SECRET_BYTES
from protocol.fabric.values import BYTES_MAX, Lease, Rights

VERSION = 1
"""Of the layout of an end, unitless."""

NUMBER_MAX = 2**24 - 1
"""Largest number of a queue pair and of a packet: 24 bits (InfiniBand specification, 9.2)."""

MTU_MIN, MTU_MAX = 1, 5
"""MTUs as the InfiniBand specification numbers them (9.2.5.4): 256 to 4096 bytes."""

LEASES_KEPT_MAX = 256
"""Regions of a peer of which the greatest epoch is remembered, a count: four times as many as it may have at a time."""

_DOMAIN = b"isochrone-rdma-tag-v1:"
_END = struct.Struct(">BBHII16s")
_KEY = struct.Struct(">QI")
_ON_DEVICE = b"\x01"  # behind the key of a lease of memory of a device
_ADDRESS_MAX = 2**64 - 1  # largest address of a byte


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection: where packets go, and what number the first one has.

    Attributes:
        gid: the port's address.
        qpn: number of the queue pair, 24 bits.
        psn: number of the first packet from there, 24 bits.
        mtu: the largest packet, as numbered by the InfiniBand specification.
        lid: the port's local id, 0 on Ethernet.
    """

    gid: bytes
    qpn: int
    psn: int
    mtu: int
    lid: int = 0


def encode_end(end: End) -> bytes:
    """An end, as the place of a door or of an entrant."""
    return _END.pack(VERSION, end.mtu, end.lid, end.qpn, end.psn, end.gid)


def decode_end(data: bytes | memoryview) -> End:
    """Read the other end.

    Raises:
        RemoteProtocolError: UNSUPPORTED for another version, MALFORMED for what is no end.
    """
    if len(data) >= 1 and data[0] != VERSION:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"an end of RDMA in layout {data[0]}")
    if len(data) != _END.size:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"an end of RDMA of {len(data)} bytes")
    _, mtu, lid, qpn, psn, gid = _END.unpack(data)
    if not MTU_MIN <= mtu <= MTU_MAX or not 0 < qpn <= NUMBER_MAX or psn > NUMBER_MAX or not any(gid):
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"an end of RDMA with MTU {mtu}, queue pair {qpn} and packet {psn}")
    return End(gid, qpn, psn, mtu, lid)


ENTER, READY = b"enter", b"ready"
"""Words on the stream of the opening: an entrant's end, and that the door's queue pair is ready for it."""


def encode_enter(end: End) -> bytes:
    """What the opener says to a door: its own end."""
    return ENTER + encode_end(end)


def decode_enter(frame: bytes | memoryview) -> End:
    """Read what an opener says to a door.

    Raises:
        RemoteProtocolError: as `decode_end`.
    """
    if bytes(frame[: len(ENTER)]) != ENTER:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "something else than an entrant's end")
    return decode_end(frame[len(ENTER) :])


def check_ready(frame: bytes | memoryview) -> None:
    """Read what a door says when its queue pair is ready.

    Raises:
        RemoteProtocolError: MALFORMED, it is something else.
    """
    if bytes(frame[: len(READY)]) != READY:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "something else than that the door is ready")


def same_subnet(one: bytes, other: bytes, bits: int) -> bool:
    """Whether two addresses have the same leading bits, and are not the same."""
    shift = 8 * GID_BYTES - bits
    return one != other and int.from_bytes(one, "big") >> shift == int.from_bytes(other, "big") >> shift


def encode_key(address: int, remote_key: int, *, on_device: bool = False) -> bytes:
    """The key of a lease, of memory of the host or of a device."""
    return _KEY.pack(address, remote_key) + (_ON_DEVICE if on_device else b"")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a giver writes: an address of the receiver, the key that its card wants to see, and whether it is on a device."""

    address: int
    remote_key: int
    on_device: bool = False


class HeldLeases:
    """The leases that a giver was granted: each may be used once, and none that is older than another of its region."""

    def __init__(self) -> None:
        """Begins without any."""
        self._epochs: dict[int, int] = {}

    def take(self, lease: Lease, size_bytes: int, *, on_device: bool = False) -> Target:
        """Check a lease to write so many bytes to, and take its epoch.

        Args:
            lease: as the peer tells it.
            size_bytes: what is to be written.
            on_device: whether the offer has said that it may be memory of a device.

        Raises:
            RemoteProtocolError: STALE_LEASE for an epoch that is not greater, OUT_OF_BOUNDS where the tensors do not fit or it is
                not to write, MALFORMED for a key of another layout.
        """
        if lease.epoch <= self._epochs.get(lease.region, 0):
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"epoch {lease.epoch} after {self._epochs[lease.region]}")
        if lease.rights is not Rights.WRITE:
            raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"a lease for {lease.rights!r}")
        if not lease.covers(0, size_bytes) or lease.length > BYTES_MAX:
            raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"{size_bytes} bytes into a lease of {lease.length}")
        behind = lease.key[_KEY.size :]
        if len(lease.key) < _KEY.size or (behind and behind != _ON_DEVICE):
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a key of {len(lease.key)} bytes")
        if behind and not on_device:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "memory of a device is leased, which the offer did not ask for")
        address, remote_key = _KEY.unpack(lease.key[: _KEY.size])
        if address + lease.length > _ADDRESS_MAX:
            raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, "a lease past the end of all addresses")
        self._epochs.pop(lease.region, None)
        self._epochs[lease.region] = lease.epoch
        while len(self._epochs) > LEASES_KEPT_MAX:
            del self._epochs[next(iter(self._epochs))]
        return Target(address, remote_key, bool(behind))


def tag_key(secret: bytes, opener_nonce: bytes, door_nonce: bytes) -> bytes:
    """The key of the tags of one session, from what was said when it was opened."""
    assert len(secret) == SECRET_BYTES
    assert len(opener_nonce) == len(door_nonce) == NONCE_BYTES
    return hashlib.blake2b(_DOMAIN + opener_nonce + door_nonce, key=secret, digest_size=32).digest()


def keyed_tag(key: bytes, pieces: Iterable[memoryview]) -> bytes:
    """The tag of bytes that lie in pieces, one behind the other: 32 bytes. Takes a while for many."""
    digest = hashlib.blake2b(key=key, digest_size=32)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def compare_tags(expected: bytes, found: bytes) -> None:
    """See that what was written is what the giver says.

    Raises:
        RemoteProtocolError: CORRUPTED.
    """
    if not hmac.compare_digest(expected, found):
        raise RemoteProtocolError(ErrorCode.CORRUPTED, "what was written is not what the giver's tag says")
