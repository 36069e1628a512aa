"""What the router is bounded by, what comes in, and what comes out of it.

Source: libp2p/specs pubsub/gossipsub v1.0 and v1.1, sections "Parameters" and "Overview of New Parameters".
Spec: docs/spec/08-pubsub.md, section "Parameters".
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.pubsub.messages import PubsubMessage


class Version(StrEnum):
    """The versions of the protocol by their ids, the newest first: the one to choose where a peer speaks several."""

    V12 = "/meshsub/1.2.0"
    V11 = "/meshsub/1.1.0"
    V10 = "/meshsub/1.0.0"


class Judgement(Enum):
    """What the application makes of a message: passed on, passed over, or held against whoever passed it on."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class TopicScoreConfig:
    """How much a peer's doings on one topic weigh; `decay` is what is left of a counter after one `decay_interval_s`.

    Attributes:
        weight: of the whole topic.
        time_in_mesh_weight: P1, for each quantum in the mesh up to the cap. A point after an hour: less than one first delivery.
        time_in_mesh_quantum_s: seconds.
        time_in_mesh_cap: quanta.
        first_deliveries_weight: P2, for each message that came from the peer first.
        first_deliveries_decay: half is left after ten minutes.
        first_deliveries_cap: messages.
        mesh_deliveries_weight: P3, for the square of what a peer in the mesh delivered too little. Zero, as in Filecoin: cards
            come when something changes, so that nobody can say how many are too few.
        mesh_deliveries_decay: as of first deliveries.
        mesh_deliveries_cap: messages.
        mesh_deliveries_threshold: messages below which there is a deficit.
        mesh_deliveries_window_s: a copy that comes so long after the first counts still.
        mesh_deliveries_activation_s: time in the mesh before deficits count.
        mesh_failure_weight: P3b, for deficits squared of links that were given back.
        mesh_failure_decay: as of first deliveries.
        invalid_weight: P4, for the square of invalid messages: with the thresholds below, two cost the peer the gossip, five the
            connection's use.
        invalid_decay: a hundredth is left after an hour.
    """

    weight: float = 1.0
    time_in_mesh_weight: float = 1.0 / 3600.0
    time_in_mesh_quantum_s: float = 1.0
    time_in_mesh_cap: float = 3600.0
    first_deliveries_weight: float = 1.0
    first_deliveries_decay: float = 0.5 ** (1.0 / 600.0)
    first_deliveries_cap: float = 100.0
    mesh_deliveries_weight: float = 0.0
    mesh_deliveries_decay: float = 0.5 ** (1.0 / 600.0)
    mesh_deliveries_cap: float = 100.0
    mesh_deliveries_threshold: float = 1.0
    mesh_deliveries_window_s: float = 0.01
    mesh_deliveries_activation_s: float = 60.0
    mesh_failure_weight: float = 0.0
    mesh_failure_decay: float = 0.5 ** (1.0 / 600.0)
    invalid_weight: float = -140.0
    invalid_decay: float = 0.01 ** (1.0 / 3600.0)


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """How peers are scored.

    Attributes:
        topics: by name; of other topics nothing counts.
        topic_score_cap: most that all topics together add; what a peer earns must not hide what it does wrong.
        app_weight: P5, of what the application says.
        colocation_weight: P6, for the square of the peers at one address beyond the threshold.
        colocation_threshold: peers that may share an address: a household, a small office.
        colocation_free: networks whose addresses do not count, as CIDR; on one machine all peers share the loopback.
        behaviour_weight: P7, for the square of the penalties beyond the threshold.
        behaviour_threshold: penalties that a peer may have for nothing (Filecoin's).
        behaviour_decay: a hundredth is left after an hour.
        decay_interval_s: seconds between two decays; gossipsub's.
        decay_to_zero: a counter below it is zero.
        retain_s: how long the score of a peer that is gone is kept, lest it comes back with a clean record.
        retained_max: peers remembered, connected or not; past it those that went first are forgotten.
        gossip_threshold: below it no gossip is told to a peer or heard from it (this and the next two are Filecoin's).
        publish_threshold: below it own messages are not sent to a peer.
        graylist_threshold: below it nothing of a peer is read.
        opportunistic_threshold: where the median of a mesh is below it, better peers are asked in.
    """

    topics: tuple[tuple[str, TopicScoreConfig], ...] = ()
    topic_score_cap: float = 100.0
    app_weight: float = 1.0
    colocation_weight: float = -100.0
    colocation_threshold: int = 5
    colocation_free: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    behaviour_weight: float = -10.0
    behaviour_threshold: float = 6.0
    behaviour_decay: float = 0.01 ** (1.0 / 3600.0)
    decay_interval_s: float = 1.0
    decay_to_zero: float = 0.01
    retain_s: float = 3600.0
    retained_max: int = 1024
    gossip_threshold: float = -500.0
    publish_threshold: float = -1000.0
    graylist_threshold: float = -2500.0
    opportunistic_threshold: float = 3.5


@dataclass(frozen=True, slots=True)
class PubsubConfig:
    """The bounds of the router. Names in brackets are those of the gossipsub specification; budgets are per connected peer.

    Attributes:
        degree: links of a topic's mesh that are wanted (D).
        degree_min: fewer make it ask for more (D_lo).
        degree_max: more make it give some back (D_hi).
        degree_score: of those kept then, the best by score (D_score).
        degree_out: links to peers that this node dialled (D_out): those who dial here cannot take the whole mesh.
        degree_lazy: least peers outside the mesh that are told what was seen (D_lazy).
        gossip_factor: share of the peers outside the mesh that are told.
        heartbeat_s: seconds between two looks at the meshes.
        opportunistic_heartbeats: heartbeats between two tries to better a mesh by peers of better score.
        opportunistic_peers: how many are asked then.
        history_heartbeats: heartbeats for which messages are kept for who asks (mcache_len).
        history_gossip: of these, those that are told of (mcache_gossip).
        history_max: messages kept.
        retransmissions_max: times that one peer is sent the same message because it asks.
        seen_s: seconds for which ids are remembered (seen_ttl).
        seen_max: ids remembered; past it the oldest go.
        backoff_s: seconds in which a link given back is not asked for (PruneBackoff).
        unsubscribe_backoff_s: the same after unsubscribing.
        backoff_max_s: longest such time that is believed when a peer tells it.
        backoff_slack_s: a link is asked for so much later, for clocks and heartbeats differ.
        graft_flood_s: a graft so soon after a prune costs twice.
        fanout_s: how long peers for a topic that is only published to are kept (fanout_ttl).
        flood_publish: own messages go to all subscribers, not to the mesh alone.
        ihaves_max: IHAVE messages of one peer heard in a heartbeat.
        ids_asked_max: ids asked of one peer in a heartbeat.
        ids_told_max: ids in one IHAVE of this node.
        promise_s: a message asked for comes within so long, or the peer is penalised (iwant_followup_time).
        idontwant_bytes_min: messages from so many bytes on are announced as received, so that copies are spared.
        idontwant_ids_max: ids of one peer heard in a heartbeat.
        idontwant_heartbeats: how long they are remembered.
        peers_max: peers that are served; more are left alone.
        topics_max: topics of one peer that are remembered, none of them needed but those of this node.
        bytes_per_s: bytes received.
        bytes_burst: how many at once.
        bytes_debt_max: how many more are ignored before the peer counts as flooding.
        messages_per_s: messages whose signatures are verified.
        messages_burst: how many at once: every card of a mesh of 1,000 nodes.
        messages_debt_max: how many more are ignored before the peer counts as flooding.
        control_per_s: subscriptions, control entries and ids.
        control_burst: how many at once: two heartbeats of the most that others tell.
        control_debt_max: how many more are ignored before the peer counts as flooding.
        score: how peers are scored.
    """

    degree: int = 6
    degree_min: int = 4
    degree_max: int = 12
    degree_score: int = 4
    degree_out: int = 2
    degree_lazy: int = 6
    gossip_factor: float = 0.25
    heartbeat_s: float = 1.0
    opportunistic_heartbeats: int = 60
    opportunistic_peers: int = 2
    history_heartbeats: int = 5
    history_gossip: int = 3
    history_max: int = 4096
    retransmissions_max: int = 3
    seen_s: float = 120.0
    seen_max: int = 16_384
    backoff_s: float = 60.0
    unsubscribe_backoff_s: float = 10.0
    backoff_max_s: float = 3600.0
    backoff_slack_s: float = 2.0
    graft_flood_s: float = 10.0
    fanout_s: float = 60.0
    flood_publish: bool = True
    ihaves_max: int = 10
    ids_asked_max: int = 5000
    ids_told_max: int = 5000
    promise_s: float = 3.0
    idontwant_bytes_min: int = 1024
    idontwant_ids_max: int = 1000
    idontwant_heartbeats: int = 3
    peers_max: int = 64
    topics_max: int = 256
    bytes_per_s: float = 262_144.0
    bytes_burst: int = 4_194_304
    bytes_debt_max: int = 4_194_304
    messages_per_s: float = 20.0
    messages_burst: int = 1000
    messages_debt_max: int = 400
    control_per_s: float = 2000.0
    control_burst: int = 10_000
    control_debt_max: int = 10_000
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True, slots=True)
class SendRpc:
    """Write one RPC on the stream to a peer; what is lost is told again by gossip."""

    peer_id: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class MessageCame:
    """A signed message of a topic that this node subscribes to has come for the first time: `handle_judged` is waited for."""

    peer_id: PeerId
    message: PubsubMessage


@dataclass(frozen=True, slots=True)
class PubsubMisbehaved:
    """The peer did what no honest peer does: close its connection with `code`. Nothing more is taken from it until then."""

    peer_id: PeerId
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class PeerSubscribed:
    """A peer wants the messages of a topic that this node subscribes to, and did not before."""

    peer_id: PeerId
    topic: str


Output = SendRpc | MessageCame | PubsubMisbehaved | PeerSubscribed
"""One thing to do, or one thing that happened."""
