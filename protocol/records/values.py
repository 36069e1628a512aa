"""The records nodes tell one another: card, edges and verdict, as values.

`extra` holds the fields of later versions: they are kept when a record is decoded and written again when a value is sealed.

Spec: docs/spec/03-records.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.coordinates import Coordinate
from protocol.identity import PeerId
from protocol.inference import Feature
from protocol.multiaddr import Multiaddr


class RecordKind(StrEnum):
    """The three records; they differ in how fast they change and whom they concern."""

    CARD = "card"
    EDGES = "edges"
    VERDICT = "verdict"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator as its driver describes it.

    `bus_mbps` is what the narrowest link between it and the processor carries in one direction, in Mbit/s, 0 when unknown;
    `numa_node` the node of processor and memory that it is at, None when unknown.
    """

    name: str
    memory_bytes: int
    bus_mbps: int = 0
    numa_node: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Nic:
    """One network interface; `speed_mbps` is 0 where the driver does not say, `bus_mbps` and `numa_node` are as a GPU's."""

    name: str
    speed_mbps: int
    mtu_bytes: int
    bus_mbps: int = 0
    numa_node: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a node runs on. `extra` holds fields of later versions, kept and passed on."""

    cpu_model: str
    cpu_count: int
    memory_bytes: int
    numa_nodes: int
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model a node serves.

    Attributes:
        model: its id, as clients name it.
        features: what it can be asked for.
        context_length: longest input in tokens; 0 where that has no meaning.
        precision: numeric format of the weights ("f32", "f16", "q4", ...), empty when unknown.
        memory_bytes: what it occupies; 0 when unknown.
        engine: the kind of engine behind it ("onnx", "openai", "echo").
        digest: SHA-256 of its weights as the engine tells it, empty when it does not.
    """

    model: str
    features: frozenset[Feature]
    context_length: int = 0
    precision: str = ""
    memory_bytes: int = 0
    engine: str = ""
    digest: bytes = b""
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Card:
    """Who a node is: changes rarely, reaches everyone.

    `incarnation` grows when the node starts and when it refutes that it is gone; what was said against an earlier one is void.
    `membership` is what the node shows of its network, unverified here; empty where it shows nothing.
    `seal_key` is what requests to it are sealed to, empty where it opens none; `relays`: whether it passes on those of others.
    `fabric` is its advert of fabrics (chapter 11), unread here; empty where it has none.
    """

    addresses: tuple[Multiaddr, ...]
    hardware: Hardware
    models: tuple[ModelOffer, ...]
    coordinate: Coordinate | None
    agent: str
    incarnation: int = 0
    membership: bytes = b""
    seal_key: bytes = b""
    relays: bool = False
    fabric: bytes = b""
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Edge:
    """A measured path: filtered round trip, its jitter (RFC 3550) and how many samples stand behind it, 65,535 for more."""

    peer_id: PeerId
    rtt_s: float
    jitter_s: float
    samples: int


@dataclass(frozen=True, slots=True)
class Edges:
    """The distances a node measured itself.

    `measured` holds them in the compact form (`measured`), which its neighbours lay beside what the other ends tell; `edges` is
    the form of version 0.1.0, for neighbours alone.
    """

    edges: tuple[Edge, ...] = ()
    measured: bytes = b""
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Accusation:
    """One peer that does not answer: `subject` is the first 8 bytes of its card's key, `incarnation` the one that fell silent."""

    subject: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The peers that a node watched and found silent, all of them; the newest verdict of a node replaces its earlier ones."""

    accused: tuple[Accusation, ...]
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


Payload = Card | Edges | Verdict


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What an envelope says about itself before anybody has checked its signature; times are wall-clock seconds since 1970."""

    network_id: str
    kind: RecordKind
    peer_id: PeerId
    sequence: int
    issued_s: float
    expires_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """A verified record together with its envelope, byte for byte as it was received.

    `issued_s` and `expires_s` are wall-clock seconds since 1970. `stamp` is the signature that the author made for those who
    read the record elsewhere (chapter 8): it travels beside the envelope, unverified, and is no part of what the record says.
    """

    kind: RecordKind
    peer_id: PeerId
    sequence: int
    issued_s: float
    expires_s: float
    payload: Payload
    envelope: bytes
    stamp: bytes | None = field(default=None, compare=False)
