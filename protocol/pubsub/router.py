"""The gossipsub router: it spreads signed messages among peers that speak gossipsub, and knows nothing of what they say.

News of a topic is pushed over its mesh; the ids of the last heartbeats are told to some others, who ask for what they lack; own
messages go to all subscribers. Peers are scored by what they do, and a poor score costs a peer its links, then the gossip, then
its hearing. Every RPC is charged to its peer before the work it asks for is done.

A message that comes for the first time is checked for its signature here and judged by the owner, who is told of it by
`MessageCame` and answers by `handle_judged`; it is passed on when it was accepted.

Source: libp2p/specs pubsub/gossipsub v1.0, v1.1 and v1.2.
Spec: docs/spec/08-pubsub.md.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from protocol.budget import Budget, Verdict
from protocol.encoding import Luck
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.pubsub.config import (
    Judgement,
    MessageCame,
    Output,
    PeerSubscribed,
    PubsubConfig,
    PubsubMisbehaved,
    SendRpc,
    Version,
)
from protocol.pubsub.history import MessageCache, Promises, SeenCache
from protocol.pubsub.mesh import GraftAnswer, TopicMesh
from protocol.pubsub.messages import (
    IHave,
    Prune,
    PubsubMessage,
    Rpc,
    Subscription,
    bare_id,
    decode_rpc,
    encode_rpc,
    is_bare,
    whole_id,
)
from protocol.pubsub.score import PeerScores
from protocol.pubsub.signing import is_signed


@dataclass(slots=True)
class _Peer:
    """One connected peer: what it speaks and wants, and what it may still cost."""

    version: Version
    is_dialled: bool
    received: Budget
    messages: Budget
    control: Budget
    misbehaved: bool = False
    topics: dict[str, None] = field(default_factory=dict[str, None])
    ihaves: int = 0  # heard in this heartbeat
    ids_asked: int = 0
    idontwants: int = 0
    unwanted: dict[bytes, int] = field(default_factory=dict[bytes, int])  # heartbeats left, by id
    tells_bare_ids: bool = False  # its ids lack the header of the author's multihash, and it knows no others

    def called(self, name: bytes) -> bytes:
        """An id as this peer calls it."""
        return bare_id(name) if self.tells_bare_ids else name

    def heard(self, name: bytes) -> bytes:
        """The id that is meant by one that this peer tells."""
        self.tells_bare_ids = self.tells_bare_ids or is_bare(name)
        return whole_id(name)


class PubsubRouter:
    """The machine; see the module's docstring. After every call, drain `next_output` until it returns None."""

    def __init__(self, config: PubsubConfig, own: PeerId, luck: Luck) -> None:
        """Makes a router without peers and topics.

        Args:
            config: the bounds.
            own: this node, whose messages nobody else may bring.
            luck: who is chosen.
        """
        self._config = config
        self._own = own
        self._luck = luck
        self._peers: dict[PeerId, _Peer] = {}
        self._meshes: dict[str, TopicMesh] = {}
        self._fanout: dict[str, tuple[float, list[PeerId]]] = {}  # by topic: last used, and to whom
        self._cache = MessageCache(config.history_heartbeats, config.history_gossip, config.history_max)
        self._seen = SeenCache(config.seen_s, config.seen_max)
        self._promises = Promises(config.promise_s, luck)
        self._heartbeats = 0
        self._heartbeat_at: float | None = None  # None while there are no peers
        self.scores = PeerScores(config.score)
        self.outputs: deque[Output] = deque()

    def next_output(self) -> Output | None:
        """The next thing to do or that happened, None when there is none."""
        return self.outputs.popleft() if self.outputs else None

    def next_timer(self) -> float | None:
        """When to call `handle_timer`, in monotonic seconds; None while there are no peers."""
        return self._heartbeat_at

    # Connections and topics

    def __contains__(self, peer_id: PeerId) -> bool:
        """Whether a peer is connected and served."""
        return peer_id in self._peers

    def __len__(self) -> int:
        """How many peers are served."""
        return len(self._peers)

    def peers(self) -> tuple[PeerId, ...]:
        """The peers that are served, the longest connected first."""
        return tuple(self._peers)

    def mesh(self, topic: str) -> tuple[PeerId, ...]:
        """The peers in the mesh of a topic."""
        mesh = self._meshes.get(topic)
        return () if mesh is None else tuple(mesh.members)

    def subscribers(self, topic: str) -> tuple[PeerId, ...]:
        """The connected peers that subscribe to a topic."""
        return tuple(peer_id for peer_id, peer in self._peers.items() if topic in peer.topics and not peer.misbehaved)

    def handle_connected(self, peer_id: PeerId, version: Version, host: str | None, now: float, *, is_dialled: bool) -> bool:
        """Begin with a peer; whether there was room for it.

        Args:
            peer_id: who is connected.
            version: what it speaks.
            host: its IP address, None where there is none.
            now: monotonic seconds.
            is_dialled: whether this node opened the connection.
        """
        if peer_id in self._peers:
            return True
        if len(self._peers) >= self._config.peers_max or peer_id == self._own:
            return False
        config = self._config
        if not self._peers:  # nothing was looked after while there was nobody
            self.scores.decay(now)
            self._seen.expire(now)
        self._peers[peer_id] = _Peer(
            version,
            is_dialled,
            Budget(config.bytes_per_s, config.bytes_burst, config.bytes_debt_max, now),
            Budget(config.messages_per_s, config.messages_burst, config.messages_debt_max, now),
            Budget(config.control_per_s, config.control_burst, config.control_debt_max, now),
        )
        self.scores.handle_connected(peer_id, host)
        if self._heartbeat_at is None:
            self._heartbeat_at = now + config.heartbeat_s * self._luck.uniform(0.5, 1.0)
        self.greet(peer_id)
        return True

    def greet(self, peer_id: PeerId) -> None:
        """Tell a peer what is subscribed here, and which links to it are held; again where its stream is a new one."""
        if peer_id in self._peers and self._meshes:
            grafts = tuple(topic for topic, mesh in self._meshes.items() if peer_id in mesh.members)
            self._send(peer_id, Rpc(subscriptions=tuple(map(Subscription, self._meshes)), grafts=grafts))

    def handle_disconnected(self, peer_id: PeerId, now: float) -> None:
        """Forget a connection; what was done over it is not forgotten."""
        if self._peers.pop(peer_id, None) is None:
            return
        for mesh in self._meshes.values():
            mesh.drop(peer_id)
        self._promises.handle_disconnected(peer_id)
        self.scores.handle_disconnected(peer_id, now)
        if not self._peers:
            self._heartbeat_at = None
            self._cache.clear()

    def join(self, topic: str, now: float) -> None:
        """Subscribe to a topic."""
        if topic in self._meshes:
            return
        mesh = self._meshes[topic] = TopicMesh(self._config, self._luck, self.scores.score)
        self._fanout.pop(topic, None)
        for peer_id in self._peers:
            self._send(peer_id, Rpc(subscriptions=(Subscription(topic),)))
        for peer_id in mesh.join(self.subscribers(topic)):
            self._graft(peer_id, topic, now)

    def leave(self, topic: str) -> None:
        """Subscribe to a topic no more."""
        mesh = self._meshes.pop(topic, None)
        if mesh is None:
            return
        for peer_id in self._peers:
            self._send(peer_id, Rpc(subscriptions=(Subscription(topic, subscribes=False),)))
        for peer_id in mesh.members:
            self.scores.handle_pruned(peer_id, topic)
            self._send(peer_id, Rpc(prunes=(Prune(topic, round(self._config.unsubscribe_backoff_s)),)))

    # Messages

    def publish(self, message: PubsubMessage, now: float, *, own: bool) -> None:
        """Send a signed message into the topic, unless it was seen.

        Args:
            message: of this node, or of another whose message reached this node by other ways.
            now: monotonic seconds.
            own: whether it is this node's own word, which all subscribers are sent where `flood_publish` is set.
        """
        if not self._peers or message.id in self._seen:
            return
        self.scores.handle_ignored(self._seen.add(message.id, now), now)
        self._promises.kept(message.id)
        if own and self._config.flood_publish:
            least = self._config.score.publish_threshold
            targets = [peer_id for peer_id in self.subscribers(message.topic) if self.scores.score(peer_id) >= least]
        else:
            targets = self._targets(message.topic, now)
        self._push(message, targets, None)

    def send_to(self, peer_id: PeerId, message: PubsubMessage) -> None:
        """Send a message to one peer, whether or not it was seen here."""
        if peer_id in self._peers:
            self._send(peer_id, Rpc(messages=(message,)))

    def handle_rpc(self, peer_id: PeerId, payload: bytes, now: float) -> None:
        """Take one RPC as it came from a connected peer, without its length."""
        peer = self._heard(peer_id)
        if peer is None or not self._within(peer_id, peer, peer.received, len(payload), now):
            return
        if self.scores.score(peer_id) < self._config.score.graylist_threshold:
            return
        try:
            rpc = decode_rpc(payload)
        except RemoteProtocolError as error:
            self._blame(peer_id, peer, error.code)
            return
        if not self._within(peer_id, peer, peer.control, rpc.control_entries, now):
            return
        for subscription in rpc.subscriptions:
            self._handle_subscription(peer_id, peer, subscription)
        for message in rpc.messages:
            if not peer.misbehaved:
                self._handle_message(peer_id, peer, message, now)
        if peer.misbehaved:
            return
        self._handle_ihaves(peer_id, peer, rpc.ihaves, now)
        self._handle_iwants(peer_id, peer, rpc.iwants)
        self._handle_grafts(peer_id, peer, rpc.grafts, now)
        for prune in rpc.prunes:
            mesh = self._meshes.get(prune.topic)
            if mesh is not None and mesh.handle_prune(peer_id, prune.backoff_s, now):
                self.scores.handle_pruned(peer_id, prune.topic)
        for name in rpc.idontwants:
            if peer.idontwants < self._config.idontwant_ids_max:
                peer.idontwants += 1
                peer.unwanted[peer.heard(name)] = self._config.idontwant_heartbeats

    def handle_judged(self, peer_id: PeerId, message: PubsubMessage, judgement: Judgement, now: float) -> None:
        """Learn what the owner makes of a message, and pass it on if it may be.

        Args:
            peer_id: who brought it first.
            message: as `MessageCame` told it.
            judgement: what to do with it.
            now: monotonic seconds.
        """
        seen = self._seen.get(message.id)
        if seen is None:
            return  # forgotten already, for too many others came
        match judgement:
            case Judgement.ACCEPT:
                self.scores.handle_delivered(peer_id, message.topic, seen, now)
                self._push(message, self._targets(message.topic, now), peer_id)
            case Judgement.IGNORE:
                self.scores.handle_ignored(seen, now)
            case Judgement.REJECT:
                self.scores.handle_rejected(peer_id, message.topic, seen, now)
            case _:
                assert_never(judgement)

    def _handle_message(self, peer_id: PeerId, peer: _Peer, message: PubsubMessage, now: float) -> None:
        if message.topic not in self._meshes:
            return  # not subscribed
        name = message.id
        if (seen := self._seen.get(name)) is not None:
            self.scores.handle_duplicate(peer_id, message.topic, seen, now)
            return
        if message.is_later or not self._within(peer_id, peer, peer.messages, 1, now):
            return
        if not is_signed(message) or message.author == self._own:  # own ones not seen are older than this run's memory
            if message.author != self._own:
                self.scores.handle_invalid(peer_id, message.topic)
            return
        self._promises.kept(name)
        self._seen.add(name, now)
        if len(message.data) >= self._config.idontwant_bytes_min:
            for other in self._meshes[message.topic].members:
                if other != peer_id and self._peers[other].version is Version.V12:
                    self._send(other, Rpc(idontwants=(self._peers[other].called(name),)))
        self.outputs.append(MessageCame(peer_id, message))

    def _targets(self, topic: str, now: float) -> list[PeerId]:
        """To whom a message of a topic is pushed: its mesh, or a few subscribers where this node does not subscribe."""
        mesh = self._meshes.get(topic)
        if mesh is not None:
            return list(mesh.members)
        _, peers = self._fanout.get(topic, (now, []))
        self._fanout[topic] = (now, self._filled_fanout(topic, peers))
        return self._fanout[topic][1]

    def _filled_fanout(self, topic: str, peers: list[PeerId]) -> list[PeerId]:
        least = self._config.score.publish_threshold
        able = [peer_id for peer_id in self.subscribers(topic) if self.scores.score(peer_id) >= least]
        kept = [peer_id for peer_id in peers if peer_id in able]
        others = [peer_id for peer_id in able if peer_id not in kept]
        return kept + self._luck.sample(others, min(len(others), max(0, self._config.degree - len(kept))))

    def _push(self, message: PubsubMessage, targets: Iterable[PeerId], from_peer: PeerId | None) -> None:
        self._cache.put(message)
        payload = encode_rpc(Rpc(messages=(message,)))
        for peer_id in targets:
            peer = self._peers[peer_id]
            if peer_id in (from_peer, message.author) or peer.misbehaved or message.id in peer.unwanted:
                continue
            self.outputs.append(SendRpc(peer_id, payload))

    # Control

    def _handle_subscription(self, peer_id: PeerId, peer: _Peer, subscription: Subscription) -> None:
        topic = subscription.topic
        if subscription.subscribes:
            if topic in self._meshes:
                self._note_subscriber(peer_id, peer, topic)
            elif len(peer.topics) < self._config.topics_max:
                peer.topics[topic] = None
            return
        peer.topics.pop(topic, None)
        if topic in self._meshes and self._meshes[topic].drop(peer_id):
            self.scores.handle_pruned(peer_id, topic)

    def _note_subscriber(self, peer_id: PeerId, peer: _Peer, topic: str) -> None:
        """A peer wants the messages of a topic of this node."""
        if topic not in peer.topics:
            peer.topics[topic] = None
            self.outputs.append(PeerSubscribed(peer_id, topic))

    def _handle_ihaves(self, peer_id: PeerId, peer: _Peer, ihaves: Iterable[IHave], now: float) -> None:
        """Ask for what a peer has and this node lacks."""
        if self.scores.score(peer_id) < self._config.score.gossip_threshold:
            return
        wanted: dict[bytes, None] = {}
        for ihave in ihaves:
            peer.ihaves += 1
            if peer.ihaves > self._config.ihaves_max:
                break
            if ihave.topic in self._meshes:
                wanted.update((name, None) for name in map(peer.heard, ihave.ids) if name not in self._seen)
        asked = self._luck.sample(list(wanted), min(len(wanted), self._config.ids_asked_max - peer.ids_asked))
        if asked:
            peer.ids_asked += len(asked)
            self._promises.add(peer_id, asked, now)
            self._send(peer_id, Rpc(iwants=tuple(map(peer.called, asked))))

    def _handle_iwants(self, peer_id: PeerId, peer: _Peer, ids: Iterable[bytes]) -> None:
        """Send what a peer asks for, a few times at most."""
        if self.scores.score(peer_id) < self._config.score.gossip_threshold:
            return
        for name in dict.fromkeys(map(whole_id, ids)):
            if name not in peer.unwanted and (found := self._cache.asked_by(name, peer_id)) is not None:
                message, times = found
                if times <= self._config.retransmissions_max:
                    self._send(peer_id, Rpc(messages=(message,)))

    def _handle_grafts(self, peer_id: PeerId, peer: _Peer, topics: Iterable[str], now: float) -> None:
        for topic in dict.fromkeys(topics):
            mesh = self._meshes.get(topic)
            if mesh is None:
                continue  # no answer: others need not learn what is subscribed here
            match mesh.handle_graft(peer_id, now, is_dialled=peer.is_dialled):
                case GraftAnswer.TAKEN:
                    self._note_subscriber(peer_id, peer, topic)  # py-libp2p grafts before it says that it subscribes
                    self.scores.handle_grafted(peer_id, topic, now)
                    continue
                case GraftAnswer.HELD:
                    continue
                case GraftAnswer.TOO_SOON:
                    self.scores.penalise(peer_id, 1)
                case GraftAnswer.MUCH_TOO_SOON:
                    self.scores.penalise(peer_id, 2)
                case GraftAnswer.POOR_SCORE | GraftAnswer.FULL:
                    pass
            self._send(peer_id, Rpc(prunes=(Prune(topic, round(self._config.backoff_s)),)))

    # Time

    def handle_timer(self, now: float) -> None:
        """Look after scores, meshes and gossip, once a heartbeat."""
        if self._heartbeat_at is None or now < self._heartbeat_at:
            return
        self._heartbeat_at = now + self._config.heartbeat_s
        self._heartbeats += 1
        for peer_id, count in self._promises.broken(now).items():
            self.scores.penalise(peer_id, count)
        self.scores.decay(now)
        self._seen.expire(now)
        for peer in self._peers.values():
            peer.ihaves = peer.ids_asked = peer.idontwants = 0
            peer.unwanted = {name: left - 1 for name, left in peer.unwanted.items() if left > 1}
        betters = self._heartbeats % self._config.opportunistic_heartbeats == 0
        for topic, mesh in self._meshes.items():
            candidates = {peer_id: self._peers[peer_id].is_dialled for peer_id in self.subscribers(topic)}
            change = mesh.heartbeat(candidates, now, betters=betters)
            for peer_id in change.pruned:
                self.scores.handle_pruned(peer_id, topic)
                self._send(peer_id, Rpc(prunes=(Prune(topic, round(self._config.backoff_s)),)))
            for peer_id in change.grafted:
                self._graft(peer_id, topic, now)
            self._tell_ids(topic, mesh.members)
        for topic, (used_at, peers) in list(self._fanout.items()):
            if now >= used_at + self._config.fanout_s:
                del self._fanout[topic]
                continue
            self._fanout[topic] = (used_at, self._filled_fanout(topic, peers))
            self._tell_ids(topic, self._fanout[topic][1])
        self._cache.shift()

    def _tell_ids(self, topic: str, except_for: Iterable[PeerId]) -> None:
        """Tell some subscribers to whom messages are not pushed what was seen of late."""
        ids = self._cache.gossip_ids(topic)
        if not ids:
            return
        least, pushed = self._config.score.gossip_threshold, set(except_for)
        others = [peer_id for peer_id in self.subscribers(topic) if peer_id not in pushed and self.scores.score(peer_id) >= least]
        count = max(self._config.degree_lazy, int(self._config.gossip_factor * len(others)))
        for peer_id in self._luck.sample(others, min(count, len(others))):
            told = self._luck.sample(ids, min(len(ids), self._config.ids_told_max))
            self._send(peer_id, Rpc(ihaves=(IHave(topic, tuple(map(self._peers[peer_id].called, told))),)))

    # Helpers

    def _graft(self, peer_id: PeerId, topic: str, now: float) -> None:
        self.scores.handle_grafted(peer_id, topic, now)
        self._send(peer_id, Rpc(grafts=(topic,)))

    def _send(self, peer_id: PeerId, rpc: Rpc) -> None:
        if not self._peers[peer_id].misbehaved:
            self.outputs.append(SendRpc(peer_id, encode_rpc(rpc)))

    def _heard(self, peer_id: PeerId) -> _Peer | None:
        """A connected peer that is not to blame for anything."""
        peer = self._peers.get(peer_id)
        return None if peer is None or peer.misbehaved else peer

    def _within(self, peer_id: PeerId, peer: _Peer, budget: Budget, amount: int, now: float) -> bool:
        """Whether a budget allows `amount`; blames the peer when it is far past it."""
        verdict = budget.take(amount, now)
        if verdict is Verdict.FLOODED:
            self._blame(peer_id, peer, ErrorCode.FLOODING)
        return verdict is Verdict.GRANTED

    def _blame(self, peer_id: PeerId, peer: _Peer, code: ErrorCode) -> None:
        """Say once that a peer misbehaved; from then on it is neither heard nor told anything."""
        if peer.misbehaved:
            return
        peer.misbehaved = True
        self.outputs.append(PubsubMisbehaved(peer_id, code))
        for topic, mesh in self._meshes.items():
            if mesh.drop(peer_id):
                self.scores.handle_pruned(peer_id, topic)
