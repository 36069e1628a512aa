"""How a record spreads from here: pushed over the mesh as news, or announced where it can wait.

News goes over all links of the mesh but those over which it has come, whose peers said that they have it, or to whom it is left
to bring it (`audits`). This node's own news goes to some peers besides that it has chosen itself, so that nobody who has crept
into its mesh keeps it from being heard.

Source: gossipsub v1.1 and v1.2 (libp2p/specs): mesh, lazy push, flood publishing, IDONTWANT.
Spec: docs/spec/04-gossip.md, section "News".
"""

from collections.abc import Callable, Collection, Iterable

from protocol.budget import Budget, Verdict
from protocol.encoding import Luck
from protocol.gossip.audits import Audits
from protocol.gossip.conversation import Conversation
from protocol.gossip.events import GossipConfig
from protocol.gossip.horizon import Horizon
from protocol.gossip.messages import DontWant, answer_messages, encode_message
from protocol.gossip.news import News, Pushes, Renewal, Renewals, fresh_for
from protocol.gossip.overlay import Overlay
from protocol.gossip.score import PeerScores
from protocol.identity import PeerId
from protocol.records import Edges, Record, RecordKind
from protocol.table import COMPARED, Accepted, RecordKey, record_key

Say = Callable[[PeerId, Iterable[bytes]], None]
"""Sends messages to a peer."""


def is_spread_edges(record: Record) -> bool:
    """Whether a record is of edges that go farther than to neighbours: those in the compact form."""
    return isinstance(record.payload, Edges) and bool(record.payload.measured)


class Spreading:
    """The machine; what it pushes waits for `push`, so that what one call brings goes out together."""

    def __init__(
        self,
        config: GossipConfig,
        own: PeerId,
        peers: dict[PeerId, Conversation],
        overlay: Overlay,
        horizon: Horizon,
        scores: PeerScores,
        luck: Luck,
        say: Say,
    ) -> None:
        """Has nothing to say; `own` is this node."""
        self._config = config
        self._peers = peers
        self._overlay = overlay
        self._horizon = horizon
        self._scores = scores
        self._say = say
        self._pushes = Pushes()
        self._news = News(config.history_heartbeats, config.history_max)
        self._repeats = Budget(config.repeats_per_s, config.repeats_burst, 0.0, 0.0)
        self.renewals = Renewals(config)
        self.audits = Audits(config.audits, own, scores, luck)

    def publish(self, record: Record, outcome: Accepted, now: float) -> None:
        """Spreads this node's own record."""
        key = record_key(record.peer_id, record.kind)
        if outcome.can_wait or is_spread_edges(record):
            self.renewals.add(Renewal(key, record, outcome.replaced, set()), now)
            return
        self._tell(record, self._overlay.members, (), outcome.replaced)
        if record.kind in COMPARED:
            self._tell(record, self._overlay.chosen(self._config.own_news_max, now), (), outcome.replaced)

    def pass_on(self, record: Record, from_peer: PeerId, outcome: Accepted, now: float, *, asked: bool) -> None:
        """Spreads a record that was news here."""
        key = record_key(record.peer_id, record.kind)
        if is_spread_edges(record):
            before = outcome.replaced
            if before is None or record.issued_s - before.issued_s >= self._config.edges_apart_s:
                self.renewals.add(Renewal(key, record, before, {from_peer}), now)
            return
        if record.kind not in COMPARED:
            return
        if outcome.can_wait:
            self.renewals.add(Renewal(key, record, outcome.replaced, {from_peer}), now)
            return
        if asked and self._repeats.take(1, now) is not Verdict.GRANTED:
            return
        held_back: Collection[PeerId] = ()
        if not asked and record.kind is RecordKind.CARD:
            self._scores.handle_first(from_peer, now)
            had = [peer_id for peer_id in self._overlay.members if self._peers[peer_id].has.get(key, 0) >= record.sequence]
            held_back = self.audits.begin(key, record, (from_peer, *had), self._overlay.is_dialled, now)
        if len(record.envelope) >= self._config.dont_want_bytes_min:
            dont_want = encode_message(DontWant(((key, record.sequence),)))
            for peer_id in self._overlay.members:
                if peer_id != from_peer and peer_id not in held_back:
                    self._say(peer_id, [dont_want])
        self._tell(record, self._overlay.members, (from_peer, record.peer_id, *sorted(held_back)), outcome.replaced)

    def came_again(self, peer_id: PeerId, key: RecordKey, sequence: int, now: float) -> None:
        """Notes a copy of a record that is known."""
        self._news.came_again(key, sequence)
        self.audits.handle_brought(peer_id, key, sequence, now)

    def handle_told(self, peer_id: PeerId, entries: Iterable[tuple[RecordKey, int]], now: float) -> None:
        """Notes what a peer says that it has, who need not be told of it."""
        self.renewals.handle_told(peer_id, entries)
        self.audits.handle_told(peer_id, entries, now)

    def release(self, now: float) -> None:
        """Pushes what was held back and has not come."""
        for peer_id, record in self.audits.released(now):
            if peer_id in self._overlay:
                self._pushes.add(peer_id, record)

    def announce(self, now: float) -> None:
        """Tells of what was news lately, and of what could wait; done at each heartbeat."""
        self.audits.judge(now)
        if scarce := self._news.heartbeat(self._config.copies_enough):
            for peer_id in self._overlay.outside(self._config.degree_lazy, now):
                self._say(peer_id, answer_messages(self._horizon.concerning(self._peers[peer_id].scope, scarce)))
        if renewals := self.renewals.taken():
            for peer_id in self._overlay.members:
                fresh = fresh_for(peer_id, self._peers[peer_id], renewals, self._horizon)
                self._say(peer_id, answer_messages(fresh))

    def push(self) -> None:
        """Sends what is to be pushed."""
        for peer_id, messages in self._pushes.taken():
            self._say(peer_id, messages)

    def _tell(self, record: Record, peers: Iterable[PeerId], except_for: tuple[PeerId, ...], replaced: Record | None) -> None:
        """Has peers that it concerns told of a record when the present call ends, and others at the next heartbeats."""
        key = record_key(record.peer_id, record.kind)
        for peer_id in peers:
            peer = self._peers[peer_id]
            if peer_id in except_for or peer.misbehaved or peer.has.get(key, 0) >= record.sequence:
                continue
            if peer.scope is not None and record.kind in COMPARED and not self._horizon.concerns(peer.scope, record, replaced):
                continue
            self._pushes.add(peer_id, record)
        if record.kind in COMPARED:
            self._news.add(key, record.sequence)
