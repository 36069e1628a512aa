"""A fabric in which the giver writes, over memory of this process in the place of a network card.

It stands where RDMA stands: leases are granted, written to and taken back through `Card`, which refuses what was not leased and
does what a test says instead: it fails, is slow, or changes bytes.
"""

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import ClassVar

import trio

from mesh.fabric.base import Closed, Given, Opening
from mesh.fabric.control import Control
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Advert, FabricConfig, Kind, Lease, LeaseBook, Match, Place, Port, Rights, Way
from protocol.fabric.cost import COPY
from protocol.fabric.messages import NONCE_BYTES, SECRET_BYTES, Door, encode_opening
from protocol.identity import PeerId
from protocol.inference import Tensor

WAY = Way((COPY,), setup_s=0.001)


@dataclass
class Card:
    """What is leased in this process, by key; and what goes wrong."""

    memory: dict[bytes, bytearray] = field(default_factory=dict)
    keys: itertools.count = field(default_factory=itertools.count)
    fails: bool = False
    spoils: bool = False
    slow_s: float = 0.0  # of the next write
    n_written: int = 0
    n_withdrawn: int = 0
    knocked: list[tuple[int, int]] = field(default_factory=list)
    admitted: list[tuple[int, int]] = field(default_factory=list)

    async def write(self, key: bytes, pieces: list[tuple[int, bytes]]) -> None:
        slow_s, self.slow_s = self.slow_s, 0.0
        await trio.sleep(slow_s)
        if self.fails or key not in self.memory:
            raise OSError(5, "the card refuses")
        for offset, data in pieces:
            self.memory[key][offset : offset + len(data)] = data
        if self.spoils:
            self.memory[key][0] ^= 1
        self.n_written += 1


@dataclass(eq=False)
class Held:
    places: tuple
    tensors: tuple
    lease: ClassVar[None] = None
    on_device: ClassVar[bool] = False
    tag: bytes = b""
    held: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(place.length for place in self.places)

    def hold(self) -> None:
        self.held += 1

    def let_go(self) -> None:
        self.held -= 1

    def pieces(self, bytes_max: int):
        for tensor in self.tensors:
            for start in range(0, tensor.data.nbytes, bytes_max):
                yield tensor.data[start : start + bytes_max]


@dataclass(eq=False)
class MemorySession:
    peer: PeerId
    config: FabricConfig
    control: Control
    card: Card
    on_closed: Closed
    closed: bool = False
    kind: ClassVar[Kind] = Kind.RDMA
    way: ClassVar[Way] = WAY
    reads: ClassVar[None] = None
    title: ClassVar[str] = "rdma"
    takes_devices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.book = LeaseBook(self.config)
        self.given: list[Held] = []
        self.reused: list[Given] = []

    @property
    def writes(self) -> "MemorySession":
        return self

    def give(self, tensors, lifetime_s, now):
        places, at = [], 0
        for tensor in tensors:
            places.append(place_of(tensor, at))
            at += -(-tensor.data.nbytes // 64) * 64
        self.given.append(Held(tuple(places), tuple(tensors)))
        return self.given[-1]

    def reuse(self, given) -> None:
        self.reused.append(given)

    retire = reuse

    async def write(self, given: Held, lease: Lease) -> bytes:
        assert given.held
        pieces = [(place.offset, bytes(t.data)) for place, t in zip(given.places, given.tensors, strict=True)]
        await self.card.write(lease.key, pieces)
        return tag_of(t.data for t in given.tensors)

    async def grant(self, offer, lifetime_s, now) -> Lease:
        size = max((place.offset + place.length for place in offer.places), default=1)
        region = self.book.add(size)
        if region is None:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, "no room")
        key = next(self.card.keys).to_bytes(4, "big")
        self.card.memory[key] = bytearray(size)
        return self.book.grant(region, 0, size, Rights.WRITE, lifetime_s, now, key)

    async def check(self, offer, lease, tag) -> tuple[Tensor, ...]:
        await trio.lowlevel.checkpoint()
        memory = memoryview(self.take_back(lease)).toreadonly()
        views = [memory[place.offset : place.offset + place.length] for place in offer.places]
        if tag_of(views) != tag:
            raise RemoteProtocolError(ErrorCode.CORRUPTED, "other bytes than were given")
        return tuple(Tensor(p.name, p.dtype, p.shape, view) for p, view in zip(offer.places, views, strict=True))

    def take_back(self, lease) -> bytearray:
        if lease.key not in self.card.memory:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, "it was withdrawn")
        self.book.drop(lease.region)
        return self.card.memory.pop(lease.key)

    def withdraw(self, lease) -> None:
        if lease.key in self.card.memory:
            self.card.n_withdrawn += 1
            self.take_back(lease)

    def handle_timer(self, now) -> None:
        self.book.expired(now)

    def figures(self):
        return {"granted": len(self.book)}

    async def run(self) -> None:
        self.close(await self.control.run(lambda _frame: None))

    def close(self, why: str) -> None:
        if not self.closed:
            self.closed = True
            self.control.close(ErrorCode.FABRIC_FAILED if why else ErrorCode.NO_ERROR)
            self.on_closed(self, why)


@dataclass
class MemoryOpener:
    number: int
    card: Card
    ports: int = 1
    broken: frozenset[tuple[int, int]] = frozenset()  # pairs, from this side, over which nothing comes
    absent: str = ""
    kind: ClassVar[Kind] = Kind.RDMA
    keeps_stream: ClassVar[bool] = True
    turns: bool = False  # the slowest pair is the preferred

    def advert(self) -> Advert:
        gids = [bytes(14) + bytes([port, self.number]) for port in range(self.ports)]
        return Advert(ports=tuple(Port(gid, 120, 1000 - port) for port, gid in enumerate(gids)))

    def order(self, found, other: Advert, tensors):
        return tuple(reversed(found)) if self.turns else found

    def way(self, match: Match) -> Way:
        return WAY

    def figures(self):
        return {}

    async def run(self, changed) -> None:
        pass

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> MemorySession:
        await opening.control.send(b"here")
        assert await opening.control.expect() == b"in"
        pair = (opening.match.own_port, opening.match.their_port)
        self.card.knocked.append(pair)
        if pair in self.broken:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "nothing comes back")
        return MemorySession(opening.peer, opening.config, opening.control, self.card, opening.on_closed)

    async def admit(self, opening: Opening, hello) -> MemorySession:
        entropy = opening.entropy
        door = Door(self.kind, b"card", entropy(SECRET_BYTES), entropy(NONCE_BYTES))
        await opening.control.send(encode_opening(door))
        if await opening.control.expect() != b"here":
            raise RemoteProtocolError(ErrorCode.MALFORMED, "somebody else")
        opening.control.say(b"in")
        self.card.admitted.append((opening.match.own_port, opening.match.their_port))
        return MemorySession(opening.peer, opening.config, opening.control, self.card, opening.on_closed)


def place_of(tensor: Tensor, at: int) -> Place:
    return Place(tensor.name, tensor.dtype, tensor.shape, at, tensor.data.nbytes)


def tag_of(views) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for view in views:
        digest.update(view)
    return digest.digest()
