"""What gossip is bounded by, and what comes out of it."""

from dataclasses import dataclass, field

from protocol.errors import ErrorCode
from protocol.gossip.audits import AuditConfig
from protocol.gossip.horizon import HorizonConfig
from protocol.gossip.score import ScoreConfig
from protocol.identity import PeerId
from protocol.load import Beat
from protocol.records import Record

STALE_CODES: tuple[ErrorCode, ...] = (ErrorCode.REPLAYED, ErrorCode.OLD_SEQUENCE, ErrorCode.EXPIRED)
"""Why a record is no news. Records come by many ways and in any order, so these are counted, and nobody is told or blamed."""


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """The bounds of gossip. Budgets are per connected peer unless it says otherwise.

    Attributes:
        degree: links of the mesh that a node wants, gossipsub's D. News is pushed over them; each further link costs a copy of
            every record and gains little speed (docs/dissemination.md).
        degree_min: fewer make it ask for more at the next heartbeat, gossipsub's D_lo.
        degree_max: more make it give some back at the next heartbeat, gossipsub's D_hi. One more is taken from a peer that asks:
            a newcomer among peers that all have enough gets its links from those that they give back.
        degree_lazy: peers outside the mesh that are told at each heartbeat what was news; gossipsub's D_lazy is 6. Streams lose
            nothing here and tables are compared besides: more cost messages and heal nothing sooner (docs/dissemination.md).
        heartbeat_s: seconds between two looks at the mesh; gossipsub's.
        history_heartbeats: heartbeats for which what was news is told on outside the mesh; gossipsub's mcache_gossip is 3.
        copies_enough: what has come so often again is known all round, and is not announced: where the mesh is thin it is.
        degree_out: links that lead to peers which this node chose itself, where there are any, as gossipsub's D_out: whoever
            connects here cannot take these. One more than the two that are to be there at any time: one may go at any moment.
        displaced_max: links beyond one more than `degree_max` that are taken until the next heartbeat, from peers that are worth
            more than one of those held.
        opportunity_heartbeats: heartbeats between two looks whether half of the links bring next to nothing, or too few lead to
            peers chosen at random, and one more is to be tried: gossipsub's opportunistic grafting, which looks every 60 s.
        own_news_max: peers that this node chose, outside the mesh, to which its own news is pushed besides: gossipsub's flood
            publishing, bounded, for in a mesh of 100 it would cost a copy for each node.
        refused_backoff_s: seconds in which a peer that was refused a link is not to ask again: less than honest ones wait, for
            their clock starts when the refusal arrives.
        prune_backoff_s: seconds in which a peer that gave back a link is not asked for one again. gossipsub's 60 s would leave a
            small mesh torn for a minute.
        dont_want_bytes_min: records of at least so many bytes are announced as received, so that others do not send them again;
            for shorter ones the announcement costs as much as the copy.
        round_s: mean time between digest exchanges with one random peer, in seconds: a node that missed everything is whole again
            after a few.
        round_jitter: each round is so much shorter or longer at random, as a share of `round_s`, so that nodes fall out of step.
        in_motion_s: seconds for which a card that can wait is on its way after it came here: a hop a heartbeat, some five hops.
            Until then two tables differ in it, and comparing them costs two kilobytes of hashes.
        rounds_left_out_max: rounds in a row that are left out because of such cards. What was missed is made good in 12 s then.
        greetings_per_s: digest exchanges begun because a connection began or came back, all peers together; what is over it waits
            for the rounds.
        greetings_burst: how many at once.
        peers_max: connected peers gossiped with; more are ignored, and membership lets no more in.
        records_per_s: records verified that were not asked for; 20 a second keep a flooder below 0.4 % of a core.
        records_burst: how many such records may come at once: when a network of 1,000 nodes is cut or mended, as many verdicts
            come within a second over a handful of links.
        records_debt_max: how many more may be refused before the peer counts as flooding.
        exchanges_per_s: digests, entries and wants answered, of which an exchange takes three, and links asked for, given back
            and kept.
        exchanges_burst: how many may come at once.
        exchanges_debt_max: how many more may be ignored before the peer counts as flooding.
        bytes_per_s: bytes received, records that were asked for not counted.
        bytes_burst: how many may come at once.
        bytes_debt_max: how many more may be ignored before the peer counts as flooding.
        served_bytes_per_s: bytes of records sent because the peer asked for them.
        served_burst: how many at once: a whole table of 1,000 peers is about 3 MB.
        fed_s: seconds after which records that were sent because they were asked for have arrived: a long round trip and a loss.
        wants_max: records asked for and not come yet.
        want_timeout_s: for so long a record counts as asked for.
        want_again_s: when a peer has sent nothing of what it was asked for so long, another may be asked for it too. Where 30 %
            of all packets are lost a stream may stand still for seconds; a table that is on its way is not asked for twice.
        want_peers_max: peers that one record is asked of within `want_timeout_s`.
        repeats_per_s: of all peers together, records that came because they were asked for and are pushed on; so a newcomer's
            card spreads at once, and a node that fetches a whole table does not push it to everybody who has it.
        repeats_burst: how many at once.
        direct_entries_max: a table of at most so many records is told entry by entry, without comparing bucket hashes first: the
            hashes take as much room as 128 entries, and a round trip.
        refused_max: hashes of refused envelopes remembered, all peers together, so that no fault is verified twice.
        history_max: records remembered as news, and as not wanted by one peer.
        expire_s: seconds between two looks for records that have expired; their expiry is minutes away and has a minute's slack.
        beats_per_s: beats taken from one peer.
        beats_burst: how many at once.
        question_cost: exchanges that a scope or a search counts for: either has a whole table looked through.
        edges_apart_s: seconds by which edges of one node are to be issued apart to be announced on, a third of what honest ones
            wait at least: whoever tells them more often costs its neighbours, and nobody else.
        horizon: how much of a large mesh is held.
        scores: how much conduct weighs.
        audits: what is held back to see whether it comes.
    """

    degree: int = 4
    degree_min: int = 4
    degree_max: int = 5
    degree_lazy: int = 2
    heartbeat_s: float = 1.0
    history_heartbeats: int = 2
    copies_enough: int = 1
    degree_out: int = 3
    displaced_max: int = 3
    opportunity_heartbeats: int = 10
    own_news_max: int = 8
    refused_backoff_s: float = 9.0
    prune_backoff_s: float = 10.0
    dont_want_bytes_min: int = 1024
    round_s: float = 2.0
    round_jitter: float = 0.2
    in_motion_s: float = 5.0
    rounds_left_out_max: int = 5
    greetings_per_s: float = 2.0
    greetings_burst: int = 8
    peers_max: int = 256
    records_per_s: float = 20.0
    records_burst: int = 1000
    records_debt_max: int = 400
    exchanges_per_s: float = 5.0
    exchanges_burst: int = 30
    exchanges_debt_max: int = 120
    bytes_per_s: float = 262_144.0
    bytes_burst: int = 2_097_152
    bytes_debt_max: int = 2_097_152
    served_bytes_per_s: float = 1_048_576.0
    served_burst: int = 4_194_304
    fed_s: float = 0.5
    wants_max: int = 1024
    want_timeout_s: float = 5.0
    want_again_s: float = 0.5
    want_peers_max: int = 3
    repeats_per_s: float = 20.0
    repeats_burst: int = 64
    direct_entries_max: int = 128
    refused_max: int = 1024
    history_max: int = 4096
    expire_s: float = 10.0
    beats_per_s: float = 5.0
    beats_burst: int = 20
    question_cost: int = 5
    edges_apart_s: float = 20.0
    horizon: HorizonConfig = field(default_factory=HorizonConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    audits: AuditConfig = field(default_factory=AuditConfig)


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message on the gossip stream to a connected peer; when the stream is full it may be dropped, digests repair it."""

    peer_id: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class RecordAccepted:
    """A verified record is news and stands in the table, in place of `replaced`."""

    record: Record
    from_peer: PeerId
    replaced: Record | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RecordExpired:
    """A record has left the table, because it expired or had to make room."""

    record: Record


@dataclass(frozen=True, slots=True)
class RecordEvicted:
    """A record has left the table, because it is beyond what this node holds of the mesh; it may come back as it is."""

    record: Record


@dataclass(frozen=True, slots=True)
class RecordRefused:
    """A record was not taken and the peer who sent it is not to blame, or not yet: it may pass on what others signed.

    Codes: EXPIRED and NOT_YET_VALID (clocks differ), UNSUPPORTED (another version), MALFORMED and TOO_LARGE (the signer's doing),
    FLOODING (over the budget), OVERLOADED (the table is full).
    """

    peer_id: PeerId
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """The peer did what no honest peer does; close its connection with `code`. Nothing more is taken from it until then."""

    peer_id: PeerId
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class Equivocated:
    """A peer signed two records with one sequence number; both are proof."""

    kept: Record
    offered: Record


@dataclass(frozen=True, slots=True)
class OwnRecordHeard:
    """The mesh holds a record of this node that this node does not: give `sequence` to the sequencer and publish again."""

    sequence: int


@dataclass(frozen=True, slots=True)
class BeatHeard:
    """A connected peer has told how it is doing."""

    peer_id: PeerId
    beat: Beat


@dataclass(frozen=True, slots=True)
class LinkKept:
    """A connected peer has said whether it wants to keep the connection and hear this node's beats, and its `legs` of a probe."""

    peer_id: PeerId
    keeps: bool
    legs: int = 0


@dataclass(frozen=True, slots=True)
class Grafted:
    """The link to the peer belongs to the mesh now: news goes over it, and both ends watch one another closely."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class Pruned:
    """The link to the peer belongs to the mesh no more; it stays connected."""

    peer_id: PeerId


Output = (
    BeatHeard
    | LinkKept
    | Grafted
    | Pruned
    | Send
    | RecordAccepted
    | RecordExpired
    | RecordEvicted
    | RecordRefused
    | Misbehaved
    | Equivocated
    | OwnRecordHeard
)
"""One thing to do, or one thing that happened."""
