"""What gossip is bounded by, and what comes out of it."""

from dataclasses import dataclass

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.records import Record


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """The bounds of gossip. Budgets are per connected peer unless it says otherwise.

    Attributes:
        fanout: connected peers that a newly accepted record is pushed to. With 3, a rumour reaches about 94 % of a large mesh
            and all of a mesh of five; digests bring it to the rest.
        round_s: mean time between digest exchanges with one random peer, in seconds: a node that missed everything is whole again
            after a few.
        round_jitter: each round is so much shorter or longer at random, as a share of `round_s`, so that nodes fall out of step.
        peers_max: connected peers gossiped with; more are ignored.
        records_per_s: records verified that were not asked for; 20 a second keep a flooder below 0.4 % of a core.
        records_burst: how many such records may come at once.
        records_debt_max: how many more may be refused before the peer counts as flooding.
        exchanges_per_s: digests, entries and wants answered; an exchange takes three messages.
        exchanges_burst: how many may come at once.
        exchanges_debt_max: how many more may be ignored before the peer counts as flooding.
        bytes_per_s: bytes received, records that were asked for not counted.
        bytes_burst: how many may come at once.
        bytes_debt_max: how many more may be ignored before the peer counts as flooding.
        served_bytes_per_s: bytes of records sent because the peer asked for them.
        served_burst: how many at once: a whole table of 1,000 peers is about 3 MB.
        wants_max: records asked for and not come yet.
        want_timeout_s: after so long a record that was asked for may be asked for elsewhere.
        repeats_per_s: of all peers together, records that came because they were asked for and are pushed on; so a newcomer's
            card spreads at once, and a node that fetches a whole table does not push it to everybody who has it.
        repeats_burst: how many at once.
        direct_entries_max: a table of at most so many records is told entry by entry, without comparing hashes first: the
            hashes take as much room as 64 entries, and a round trip.
        refused_max: hashes of refused envelopes remembered, all peers together, so that no fault is verified twice.
    """

    fanout: int = 3
    round_s: float = 2.0
    round_jitter: float = 0.2
    peers_max: int = 256
    records_per_s: float = 20.0
    records_burst: int = 100
    records_debt_max: int = 400
    exchanges_per_s: float = 5.0
    exchanges_burst: int = 30
    exchanges_debt_max: int = 120
    bytes_per_s: float = 262_144.0
    bytes_burst: int = 2_097_152
    bytes_debt_max: int = 2_097_152
    served_bytes_per_s: float = 1_048_576.0
    served_burst: int = 4_194_304
    wants_max: int = 1024
    want_timeout_s: float = 5.0
    repeats_per_s: float = 20.0
    repeats_burst: int = 64
    direct_entries_max: int = 128
    refused_max: int = 1024


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message on the gossip stream to a connected peer; when the stream is full it may be dropped, digests repair it."""

    peer_id: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class RecordAccepted:
    """A verified record is news and stands in the table."""

    record: Record
    from_peer: PeerId


@dataclass(frozen=True, slots=True)
class RecordExpired:
    """A record has left the table, because it expired or had to make room."""

    record: Record


@dataclass(frozen=True, slots=True)
class RecordRefused:
    """A record was not taken and the peer who sent it is not to blame, or not yet: it may pass on what others signed.

    Codes: EXPIRED and NOT_YET_VALID (clocks differ), UNSUPPORTED (a later version), MALFORMED and TOO_LARGE (the signer's doing),
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


Output = Send | RecordAccepted | RecordExpired | RecordRefused | Misbehaved | Equivocated | OwnRecordHeard
"""One thing to do, or one thing that happened."""
