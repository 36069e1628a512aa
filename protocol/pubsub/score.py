"""What a node thinks of its peers: the score of gossipsub v1.1, from P1 to P7.

The score is a weighted sum. On each topic: time in the mesh (P1), messages that came from the peer first (P2), too few copies
while in the mesh (P3, and P3b once the link is gone), invalid messages (P4). Over all: what the application says (P5), peers that
share an address (P6), misbehaviour such as broken promises and grafts that come too soon (P7). Counters decay; bad scores outlive
the connection.

Source: libp2p/specs pubsub/gossipsub/gossipsub-v1.1.md, section "Peer Scoring".
Spec: docs/spec/08-pubsub.md, section "Scores".
"""

import ipaddress
from dataclasses import dataclass, field

from protocol.identity import PeerId
from protocol.pubsub.config import ScoreConfig, TopicScoreConfig
from protocol.pubsub.history import DELIVERERS_MAX, Delivery, Seen


@dataclass(slots=True)
class _OnTopic:
    """The counters of one peer on one topic."""

    grafted_at: float | None = None  # while in the mesh
    mesh_s: float = 0.0
    is_active: bool = False  # long enough in the mesh for deficits to count
    first_deliveries: float = 0.0
    mesh_deliveries: float = 0.0
    mesh_failure: float = 0.0
    invalid: float = 0.0

    def leave_mesh(self, threshold: float) -> None:
        """Notes that the link is gone; what was owed is remembered."""
        if self.grafted_at is not None and self.is_active and self.mesh_deliveries < threshold:
            self.mesh_failure += (threshold - self.mesh_deliveries) ** 2
        self.grafted_at = None


@dataclass(slots=True)
class _Scored:
    """One peer; `forget_at` is None while it is connected."""

    host: str | None
    forget_at: float | None = None
    app: float = 0.0
    behaviour: float = 0.0
    topics: dict[str, _OnTopic] = field(default_factory=dict[str, _OnTopic])


class PeerScores:
    """The machine; see the module's docstring. Times are monotonic seconds."""

    def __init__(self, config: ScoreConfig) -> None:
        """Starts with no opinions."""
        self._config = config
        self._topics = dict(config.topics)
        self._peers: dict[PeerId, _Scored] = {}
        self._at: dict[str, int] = {}  # peers by address
        self._free = [ipaddress.ip_network(network) for network in config.colocation_free]

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._peers)

    def score(self, peer_id: PeerId) -> float:
        """The score of a peer; 0 for one that is not known."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return 0.0
        config = self._config
        score = sum(self._on_topic(on_topic, self._topics[topic]) for topic, on_topic in peer.topics.items())
        if config.topic_score_cap > 0.0:
            score = min(score, config.topic_score_cap)
        score += config.app_weight * peer.app
        surplus = 0 if peer.host is None else max(0, self._at[peer.host] - config.colocation_threshold)
        score += config.colocation_weight * surplus**2
        excess = max(0.0, peer.behaviour - config.behaviour_threshold)
        return score + config.behaviour_weight * excess**2

    @staticmethod
    def _on_topic(on_topic: _OnTopic, config: TopicScoreConfig) -> float:
        score = config.first_deliveries_weight * on_topic.first_deliveries
        if on_topic.grafted_at is not None:
            quanta = on_topic.mesh_s // config.time_in_mesh_quantum_s
            score += config.time_in_mesh_weight * min(quanta, config.time_in_mesh_cap)
        if on_topic.is_active:
            deficit = max(0.0, config.mesh_deliveries_threshold - on_topic.mesh_deliveries)
            score += config.mesh_deliveries_weight * deficit**2
        score += config.mesh_failure_weight * on_topic.mesh_failure
        score += config.invalid_weight * on_topic.invalid**2
        return config.weight * score

    def handle_connected(self, peer_id: PeerId, host: str | None) -> None:
        """Notes a connection; `host` is the peer's IP address, None where there is none."""
        peer = self._peers.pop(peer_id, None) or _Scored(None)
        self._peers[peer_id] = peer  # moved to the end: those that went first stand first
        peer.forget_at = None
        self._move(peer, None if host is None or self._is_free(host) else host)
        while len(self._peers) > self._config.retained_max:
            gone = next((known for known, other in self._peers.items() if other.forget_at is not None), None)
            if gone is None:
                return
            self._forget(gone)

    def handle_disconnected(self, peer_id: PeerId, now: float) -> None:
        """Notes the end of a connection: a good score is forgotten, another is kept for a while."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        if self.score(peer_id) > 0.0:
            self._forget(peer_id)
            return
        for topic, on_topic in peer.topics.items():
            on_topic.first_deliveries = 0.0
            on_topic.leave_mesh(self._topics[topic].mesh_deliveries_threshold)
        del self._peers[peer_id]
        self._peers[peer_id] = peer
        peer.forget_at = now + self._config.retain_s

    def handle_grafted(self, peer_id: PeerId, topic: str, now: float) -> None:
        """Notes that a link belongs to the mesh."""
        if (on_topic := self._counters(peer_id, topic)) is not None:
            on_topic.grafted_at, on_topic.mesh_s, on_topic.is_active = now, 0.0, False

    def handle_pruned(self, peer_id: PeerId, topic: str) -> None:
        """Notes that a link belongs to the mesh no more."""
        if (on_topic := self._counters(peer_id, topic)) is not None:
            on_topic.leave_mesh(self._topics[topic].mesh_deliveries_threshold)

    def handle_delivered(self, peer_id: PeerId, topic: str, seen: Seen, now: float) -> None:
        """Notes that a message that came from this peer first is valid."""
        seen.delivery, seen.judged_at = Delivery.VALID, now
        if (on_topic := self._counters(peer_id, topic)) is not None:
            cap = self._topics[topic].first_deliveries_cap
            on_topic.first_deliveries = min(cap, on_topic.first_deliveries + 1.0)
        for deliverer in dict.fromkeys((peer_id, *seen.peers)):
            self._count_in_mesh(deliverer, topic)
        seen.peers[peer_id] = None

    def handle_ignored(self, seen: Seen, now: float) -> None:
        """Notes that nothing is to be made of a message."""
        seen.delivery, seen.judged_at = Delivery.IGNORED, now
        seen.peers.clear()

    def handle_rejected(self, peer_id: PeerId, topic: str, seen: Seen, now: float) -> None:
        """Notes that a message is invalid: whoever has brought it so far should not have."""
        seen.delivery, seen.judged_at = Delivery.INVALID, now
        for deliverer in dict.fromkeys((peer_id, *seen.peers)):
            self.handle_invalid(deliverer, topic)
        seen.peers.clear()

    def handle_duplicate(self, peer_id: PeerId, topic: str, seen: Seen, now: float) -> None:
        """Notes a copy of a message that was seen."""
        if peer_id in seen.peers:
            return
        match seen.delivery:
            case Delivery.UNKNOWN | Delivery.VALID:
                if len(seen.peers) < DELIVERERS_MAX:
                    seen.peers[peer_id] = None
                config = self._topics.get(topic)
                in_time = config is not None and now - seen.judged_at <= config.mesh_deliveries_window_s
                if seen.delivery is Delivery.VALID and in_time:
                    self._count_in_mesh(peer_id, topic)
            case Delivery.INVALID:
                self.handle_invalid(peer_id, topic)
            case Delivery.IGNORED:
                pass

    def handle_invalid(self, peer_id: PeerId, topic: str) -> None:
        """Notes that a peer passed on what it should not have."""
        if (on_topic := self._counters(peer_id, topic)) is not None:
            on_topic.invalid += 1.0

    def penalise(self, peer_id: PeerId, count: int) -> None:
        """Notes misbehaviour."""
        if (peer := self._peers.get(peer_id)) is not None:
            peer.behaviour += count

    def set_app_score(self, peer_id: PeerId, score: float) -> None:
        """Takes over what the application thinks of a peer."""
        if (peer := self._peers.get(peer_id)) is not None:
            peer.app = score

    def decay(self, now: float) -> None:
        """Lets what was done count for less, and forgets who has been gone for long; call it every `decay_interval_s`."""
        config = self._config
        for peer_id, peer in list(self._peers.items()):
            if peer.forget_at is not None:
                if now >= peer.forget_at:
                    self._forget(peer_id)
                continue
            for topic, on_topic in peer.topics.items():
                self._decay_topic(on_topic, self._topics[topic], now)
            peer.behaviour = self._less(peer.behaviour, config.behaviour_decay)

    def _decay_topic(self, on_topic: _OnTopic, config: TopicScoreConfig, now: float) -> None:
        on_topic.first_deliveries = self._less(on_topic.first_deliveries, config.first_deliveries_decay)
        on_topic.mesh_deliveries = self._less(on_topic.mesh_deliveries, config.mesh_deliveries_decay)
        on_topic.mesh_failure = self._less(on_topic.mesh_failure, config.mesh_failure_decay)
        on_topic.invalid = self._less(on_topic.invalid, config.invalid_decay)
        if on_topic.grafted_at is not None:
            on_topic.mesh_s = now - on_topic.grafted_at
            on_topic.is_active = on_topic.is_active or on_topic.mesh_s > config.mesh_deliveries_activation_s

    def _less(self, counter: float, decay: float) -> float:
        left = counter * decay
        return left if left >= self._config.decay_to_zero else 0.0

    def _counters(self, peer_id: PeerId, topic: str) -> _OnTopic | None:
        peer = self._peers.get(peer_id)
        if peer is None or topic not in self._topics:
            return None
        return peer.topics.setdefault(topic, _OnTopic())

    def _count_in_mesh(self, peer_id: PeerId, topic: str) -> None:
        on_topic = self._counters(peer_id, topic)
        if on_topic is not None and on_topic.grafted_at is not None:
            on_topic.mesh_deliveries = min(self._topics[topic].mesh_deliveries_cap, on_topic.mesh_deliveries + 1.0)

    def _is_free(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        return any(address in network for network in self._free)

    def _move(self, peer: _Scored, host: str | None) -> None:
        if peer.host is not None:
            self._at[peer.host] -= 1
            if self._at[peer.host] == 0:
                del self._at[peer.host]
        if host is not None:
            self._at[host] = self._at.get(host, 0) + 1
        peer.host = host

    def _forget(self, peer_id: PeerId) -> None:
        self._move(self._peers.pop(peer_id), None)
