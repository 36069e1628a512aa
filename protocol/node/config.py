"""What a core is told, what comes out of it, and how it shows its peers."""

from dataclasses import dataclass, field

from protocol import forwarding, gossip, membership, probe, suspicion
from protocol.announcer import AnnouncerConfig
from protocol.coordinates import CoordinateConfig
from protocol.distances import DistanceConfig
from protocol.edges import EdgeConfig, EdgeDisputed
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.forwarding import ForwardingConfig
from protocol.gossip import GossipConfig
from protocol.identity import PeerId
from protocol.load import Beat
from protocol.membership import MembershipConfig, Standing
from protocol.node.inquiries import InquiryConfig, Reranked
from protocol.node.ring import RingConfig
from protocol.node.searches import SearchConfig
from protocol.node.strangers import BridgeOutput, StrangersConfig
from protocol.probe import PathQuality, ProbeConfig
from protocol.records import Card, Record, Serving
from protocol.routing import RoutingConfig
from protocol.suspicion import SuspicionConfig
from protocol.table import TableConfig

FALLEN_SILENT = frozenset((ErrorCode.NO_ERROR, ErrorCode.INTERNAL, ErrorCode.IDLE, ErrorCode.GOODBYE))
"""Codes of connections that end because a peer has left or is not heard; others end a connection between peers that live."""


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """Bounds and times.

    Attributes:
        edges_max: peers whose edges are kept; those that told theirs the longest ago make room.
        edges_s: seconds that told edges count: as long as their records are good.
        failed_s: seconds that a way which failed is left out, and a peer that could not be dialled counts as unreachable.
        failed_max: ways and peers remembered so; the oldest make room.
        ways_max: ways that are offered for one peer.
    """

    edges_max: int = 256
    edges_s: float = 1800.0
    failed_s: float = 60.0
    failed_max: int = 1024
    ways_max: int = 3


@dataclass(frozen=True, slots=True)
class EligibleConfig:
    """Whom a request is ranked over; some ten microseconds for each.

    Attributes:
        everybody_max: in a mesh of so many cards, over everybody: as many as a report names.
        measured_max: in a larger one, over so many that are not connected and were measured, the nearest;
        near_max: and so many that say they are near;
        drawn_max: and so many of the others by lot.
        kept_s: seconds that these are kept: what gossip tells of who is not connected is older than that anyway.
        models_max: models for which they are kept; the one that was not asked for the longest makes room.
    """

    everybody_max: int = 64
    measured_max: int = 16
    near_max: int = 16
    drawn_max: int = 16
    kept_s: float = 0.5
    models_max: int = 64


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a core can be told; seconds unless the name says otherwise."""

    network_id: str = "isochrone"
    agent: str = "isochrone/0.1.0"
    verdict_lifetime_s: float = 240.0
    """A verdict is told anew every two minutes while it names somebody; whoever is named so long is forgotten anyway."""
    forgotten_s: float = 300.0
    """Records of a forgotten peer are refused for so long: by then all have forgotten it, except who was cut off with it."""
    reserve_retry_s: float = 1.0
    """A disk that refused to keep a reservation is asked again after this long; until then nothing is signed."""
    ranking_min_s: float = 5.0
    ranking_max_s: float = 60.0
    """The nearest peers are looked for anew after so long: often while coordinates settle, each time after twice as long."""
    announcer: AnnouncerConfig = field(default_factory=AnnouncerConfig)
    suspicion: SuspicionConfig = field(default_factory=SuspicionConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    gossip: GossipConfig = field(default_factory=GossipConfig)
    table: TableConfig = field(default_factory=TableConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    coordinates: CoordinateConfig = field(default_factory=CoordinateConfig)
    distances: DistanceConfig = field(default_factory=DistanceConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    eligible: EligibleConfig = field(default_factory=EligibleConfig)
    forwarding: ForwardingConfig = field(default_factory=ForwardingConfig)
    relays: RelayConfig = field(default_factory=RelayConfig)
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    ring: RingConfig = field(default_factory=RingConfig)
    searches: SearchConfig = field(default_factory=SearchConfig)
    inquiries: InquiryConfig = field(default_factory=InquiryConfig)
    strangers: StrangersConfig = field(default_factory=StrangersConfig)

    def __post_init__(self) -> None:
        heard = min(self.gossip.peers_max, self.probe.peers_max)
        if self.membership.open_max > heard:  # a peer past that would be connected and hear no news
            told = f"membership.open_max is {self.membership.open_max}, and gossip or probes talk with {heard} peers at most"
            raise LocalProtocolError(ErrorCode.TOO_LARGE, told)


@dataclass(frozen=True, slots=True)
class ReserveSequences:
    """Persist that sequence numbers below `upto` may have been used, then call `handle_reserved`."""

    upto: int


@dataclass(frozen=True, slots=True)
class RecordSealed:
    """This node has signed a record and is about to tell it."""

    record: Record


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What is asked of everybody, and known without reading a card.

    `serving` and the place come from the card, which a fresher beat of a connected peer overrules; a peer whose place is unknown
    has no `coordinate_rtt_s`, and counts for as uncertain as can be. `remembered` says that it is an own measurement, of before;
    `coordinate_low_s` is how short it may be where edges tell it, None where the error says that too.
    """

    peer_id: PeerId
    standing: Standing
    why: str
    connected: bool
    serving: Serving | None
    beat: Beat | None
    quality: PathQuality | None
    coordinate_rtt_s: float | None
    coordinate_error: float
    coordinate_low_s: float | None = None
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a node knows of one peer, for people and programs, its whole card included, which is read for it.

    `rtt_s` is the best estimate; `rtt_source` says whether it was measured, derived from coordinates, or is unknown.
    """

    peer_id: PeerId
    standing: Standing
    why: str
    connected: bool
    card: Card | None
    beat: Beat | None
    quality: PathQuality | None
    coordinate_rtt_s: float | None


MachineOutput = gossip.Output | membership.Output | probe.Output | suspicion.Output
"""What passes between the machines."""

Output = (
    MachineOutput | EdgeDisputed | forwarding.Output | BridgeOutput | RecordSealed | ReserveSequences | Reranked
)  # the commands and facts of every machine, as they are
