"""The gossip machine: news is pushed over a mesh of links, and tables are compared with one peer after another.

A record that is news here is pushed over the links of the mesh (`overlay`), not to where it came from. A card that says what
the one before said, issued anew so that it does not expire, or no more than where its node is now, can wait: it is announced at
the next heartbeat and asked for by who lacks it. What was news is announced to some peers outside the mesh. Now and then, and
first of all when a connection begins, two nodes compare what they hold: one hash, the hashes of buckets where it differs, the
entries of buckets that differ. Each asks for what it lacks, so what comes by comparison was asked for, and only what comes
unasked counts against a peer's budget. In a mesh of which a node holds a part (`horizon`) that is what concerns both ends.

A record is checked from cheap to dear: known already, other network, other time, refused before, budget, and the signature
last. Only verified records are passed on, so a bad signature is the fault of the peer that sent it, and that peer is dropped.
What a peer passes on in good faith (a record that just expired, a payload of a later version) is refused without blame.

Source: gossipsub v1.1 and v1.2 (libp2p/specs): mesh, lazy push, IDONTWANT; Demers et al., "Epidemic algorithms
for replicated database maintenance" (PODC 1987): anti-entropy.
Spec: docs/spec/04-gossip.md.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from itertools import zip_longest
from typing import assert_never

from protocol.budget import Budget, Verdict
from protocol.coordinates import Coordinate
from protocol.encoding import Luck
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.gossip.beats import encode_beat
from protocol.gossip.comparison import differing, newer, summary, wanted
from protocol.gossip.conversation import Conversation
from protocol.gossip.events import (
    STALE_CODES,
    BeatHeard,
    Equivocated,
    GossipConfig,
    Grafted,
    LinkKept,
    Misbehaved,
    Output,
    OwnRecordHeard,
    Pruned,
    RecordAccepted,
    RecordEvicted,
    RecordExpired,
    RecordRefused,
    Send,
)
from protocol.gossip.horizon import Horizon, View
from protocol.gossip.messages import (
    BeatTold,
    Digest,
    DontWant,
    Entries,
    Graft,
    Keep,
    Prune,
    Records,
    ScopeTold,
    Seek,
    Want,
    answer_messages,
    encode_message,
    stamped_messages,
)
from protocol.gossip.overlay import Overlay
from protocol.gossip.reader import GossipReader
from protocol.gossip.score import PeerScores
from protocol.gossip.spreading import Spreading
from protocol.gossip.wants import Refused, Wants
from protocol.identity import PeerId
from protocol.load import Beat
from protocol.records import Record, RecordHeader, RecordKind
from protocol.scope import Scope
from protocol.table import Accepted, Equivocation, Full, PeerTable, RecordKey, Stale, record_key
from protocol.timers import sooner


class Gossip:
    """Spreads records over connected peers. After every call, drain `next_output` until it returns None."""

    def __init__(self, config: GossipConfig, table: PeerTable, network_id: str, luck: Luck) -> None:
        """Make a machine without peers; records of `network_id` that it accepts go into `table`, the node's own."""
        self._config = config
        self._table = table
        self._network_id = network_id
        self._luck = luck
        self.reader = GossipReader()
        self.scores = PeerScores(config.scores)
        self.overlay = Overlay(config, luck, self.scores, table.has_card)
        self.horizon = Horizon(config.horizon, table, luck)
        self._shuffle_at = 0.0
        self._peers: dict[PeerId, Conversation] = {}
        self._order: list[PeerId] = []  # connected peers, sorted
        self._wants = Wants(config)
        self._refused = Refused(config.refused_max)
        self._spreading = Spreading(config, table.own, self._peers, self.overlay, self.horizon, self.scores, luck, self._send)
        self._greetings = Budget(config.greetings_per_s, config.greetings_burst, 0.0, 0.0)
        self._rounds = 0
        self._round_at: float | None = None
        self._heartbeat_at = self._expire_at = 0.0
        self.stale = dict.fromkeys(STALE_CODES, 0)  # records that were no news, by why; they are told to nobody
        self._outputs: deque[Output] = deque()
        self.outputs = self._outputs  # for who drains several machines at once

    def handle_connected(
        self, peer_id: PeerId, now: float, *, far: bool = True, dialled: bool = False, origin: bytes | None = None
    ) -> None:
        """Begin with a peer: compare what is held. A peer over the limit is left as it is.

        A peer that is connected already is told again, for its stream is a new one and what was said on the old one may be lost.

        Args:
            peer_id: who is connected.
            now: monotonic seconds.
            far: whether the peer was chosen at random, and not because it is near.
            dialled: whether this node has dialled it.
            origin: the address or prefix that it comes from; None where peers that share it are to be expected.
        """
        self._start_clock(now)
        known = self._peers.get(peer_id)
        if known is not None and not known.misbehaved:
            self.overlay.handle_dialled(peer_id, far=far, dialled=dialled)
            self._tell_scope(peer_id)
            self._greet(peer_id, now)
            if peer_id in self.overlay:
                self._send(peer_id, [encode_message(Graft())])
        if known is not None or peer_id == self._table.own or len(self._peers) >= self._config.peers_max:
            return
        self._peers[peer_id] = Conversation.begin(self._config, now)
        insort(self._order, peer_id)
        self.scores.handle_connected(peer_id, now, origin)
        if self._turned_away(peer_id, now):
            return
        self._tell_scope(peer_id)
        self._greet(peer_id, now)
        if self.overlay.handle_connected(peer_id, now, far=far, dialled=dialled):
            self._graft(peer_id, now)

    def handle_disconnected(self, peer_id: PeerId, now: float) -> None:
        """Forget a peer's connection; what it was asked for may be asked for elsewhere."""
        self._start_clock(now)
        if self._peers.pop(peer_id, None) is not None:
            self._order.remove(peer_id)
            self._wants.handle_disconnected(peer_id)
            if self.overlay.handle_disconnected(peer_id):
                self._let_go(peer_id, now)
            self.scores.handle_disconnected(peer_id, now)

    def handle_replaced(self, peer_id: PeerId, now: float) -> None:
        """Begin anew with a peer that is connected by another connection now."""
        far, dialled = self.overlay.is_far(peer_id), self.overlay.is_dialled(peer_id)
        origin = self.scores.origin_of(peer_id)
        self.handle_disconnected(peer_id, now)
        self.handle_connected(peer_id, now, far=far, dialled=dialled, origin=origin)

    def handle_silent(self, peer_id: PeerId, now: float) -> None:
        """Push no news to a connected peer that does not answer; another takes its place at the next heartbeat at the latest."""
        if peer_id in self._peers and self.overlay.handle_silent(peer_id):
            self._prune(peer_id, now)

    def handle_heard(self, peer_id: PeerId, now: float) -> None:
        """Compare tables with a peer that answers again: both may have missed much."""
        peer = self._peers.get(peer_id)
        if peer is not None and not peer.misbehaved:
            self.overlay.handle_heard(peer_id)
            self._greet(peer_id, now)

    def handle_clock_step(self, now: float) -> None:
        """Compare tables with everybody: what was too old or too new by the clock before may be good by this one."""
        self._expire_at = now
        for peer_id in self._order:
            if not self._peers[peer_id].misbehaved:
                self._greet(peer_id, now)

    def handle_moved(self, place: Coordinate) -> None:
        """Takes over where this node is."""
        self.horizon.handle_moved(place)

    @property
    def scope(self) -> Scope | None:
        """The part of the mesh of which this node holds all cards; None for everything."""
        return self.horizon.scope

    def beyond(self) -> list[PeerId]:
        """Those whose cards are held though they are beyond the scope, in the order of their ids."""
        return self.horizon.beyond()

    def seek(self, search: Seek | Want, peers: Iterable[PeerId], now: float) -> None:
        """Ask peers for cards beyond the scope, or for what they may lack; what comes is taken like all that was asked for."""
        count = search.count if isinstance(search, Seek) else len(search.keys)
        for peer_id in peers:
            peer = self._peers.get(peer_id)
            if peer is not None and not peer.misbehaved:
                peer.sought, peer.sought_until = count, now + self._config.want_timeout_s
                self._send(peer_id, [encode_message(search)])

    def in_mesh(self, peer_id: PeerId) -> bool:
        """Whether news is pushed over the link to the peer."""
        return peer_id in self.overlay

    def mesh(self) -> tuple[PeerId, ...]:
        """The peers to which news is pushed, in the order of their ids."""
        return tuple(self.overlay.members)

    def fed(self, now: float) -> list[PeerId]:
        """The connected peers that have received records which they lacked, so that they know others than this node."""
        until = now - self._config.fed_s
        return [peer_id for peer_id, peer in self._peers.items() if peer.fed_at is not None and peer.fed_at <= until]

    def tell_beat(self, beat: Beat, peers: Iterable[PeerId]) -> None:
        """Tell connected peers how this node is doing."""
        message = encode_message(BeatTold(encode_beat(beat)))
        for peer_id in peers:
            self._send(peer_id, [message])

    def tell_kept(self, peer_id: PeerId, now: float, *, keeps: bool, legs: int) -> None:
        """Tell a connected peer whether this node keeps the connection and hears its beats; `legs` of a probe it speaks."""
        self.overlay.handle_kept(peer_id, keeps=keeps)
        self._send(peer_id, [encode_message(Keep(keeps, legs))])
        self._make_good(now)

    def handle_message(self, peer_id: PeerId, payload: bytes, now: float, wall_s: float) -> None:
        """Take one message as it came from a connected peer.

        Args:
            peer_id: who sent it, as the connection proves.
            payload: the message, unframed.
            now: monotonic seconds.
            wall_s: wall-clock seconds.
        """
        peer = self._peers.get(peer_id)
        if peer is None or peer.misbehaved:
            return
        if not self._within(peer_id, peer.received, len(payload), now):
            return
        try:
            message = self.reader.message(payload)
            if isinstance(message, BeatTold):  # half of all messages
                self._handle_beat(peer_id, peer, message, now)
                return
            match message:
                case Records():
                    self._handle_records(peer_id, peer, message, now, wall_s)
                case Digest() | Entries() | Want():
                    if self._within(peer_id, peer.exchanges, 1, now):
                        self._handle_exchange(peer_id, peer, message, now)
                case DontWant(entries=entries):
                    if self._within(peer_id, peer.records, 1, now):
                        peer.note_has(entries, self._config.history_max)
                        self._spreading.handle_told(peer_id, entries, now)
                case Graft() | Prune() | Keep() | ScopeTold() | Seek():
                    cost = self._config.question_cost if isinstance(message, ScopeTold | Seek) else 1
                    if self._within(peer_id, peer.exchanges, cost, now):
                        self._handle_link(peer_id, peer, message, now)
                case None:
                    pass  # of a later version
                case _:
                    assert_never(message)
        except RemoteProtocolError as error:
            self._blame(peer_id, peer, error.code, now)
        self._spreading.push()

    def publish(self, record: Record, now: float) -> None:
        """Take this node's own newest record, as `seal` made it, and push it.

        Raises:
            LocalProtocolError: MALFORMED, when it is not this node's or not newer than the last one.
        """
        self._start_clock(now)
        if record.peer_id != self._table.own:
            raise LocalProtocolError(ErrorCode.MALFORMED, "only own records are published")
        outcome = self._table.offer(record, now, record.issued_s)
        if not isinstance(outcome, Accepted):
            raise LocalProtocolError(ErrorCode.MALFORMED, f"sequence number {record.sequence} is not newer than the last")
        if record.kind is RecordKind.CARD:
            key = record_key(record.peer_id, record.kind)
            for peer_id in self.horizon.unheard_by((peer_id, self._peers[peer_id].scope) for peer_id in self._order):
                self._send(peer_id, answer_messages([(key, record.sequence)]))
        self._spreading.publish(record, outcome, now)
        self._spreading.push()

    def next_timer(self) -> float | None:
        """When to call `handle_timer`, in monotonic seconds; None before the first call that told the time."""
        if self._round_at is None:
            return None
        held_until = self._spreading.audits.next_timer()
        return sooner(min(self._round_at, self._heartbeat_at), held_until) if self._peers else self._expire_at

    def handle_timer(self, now: float, wall_s: float) -> None:
        """Look after the mesh and announce what was news; drop what expired; compare tables with one peer at random."""
        if self._round_at is None:
            return
        self._spreading.release(now)
        self._spreading.push()
        if now >= self._heartbeat_at and self._peers:
            self._heartbeat_at = now + self._config.heartbeat_s
            self._heartbeat(now)
        if now >= self._expire_at:
            self._expire_at = now + self._config.expire_s
            self._outputs.extend(RecordExpired(record) for record in self._table.expire(wall_s))
        if now < self._round_at or not self._peers:
            return
        self._schedule_round(now)
        for peer_id in self._wants.handle_timer(now):
            self.scores.handle_broken(peer_id, now)
        partners = [peer_id for peer_id in self._order if not self._peers[peer_id].misbehaved]
        self._rounds += 1
        if self._rounds % 2:  # by turns anybody, and somebody whom this node chose: of whoever came here all may keep silent
            partners = [peer_id for peer_id in partners if self.overlay.is_chosen(peer_id)] or partners
        if partners and not self._spreading.renewals.leave_out_round(now):
            self._start_exchange(self._luck.choice(partners))

    def next_output(self) -> Output | None:
        """The next thing to do or that happened, None when there is none."""
        return self._outputs.popleft() if self._outputs else None

    # Records

    def _handle_records(self, peer_id: PeerId, peer: Conversation, message: Records, now: float, wall_s: float) -> None:
        for envelope, stamp in zip_longest(message.envelopes, message.stamps):
            if peer.misbehaved:
                return
            try:
                header = self.reader.peek(envelope, self._table.config.records)
            except RemoteProtocolError as error:
                if error.code is not ErrorCode.UNSUPPORTED:
                    raise
                if self._within(peer_id, peer.records, 1, now):
                    self._outputs.append(RecordRefused(peer_id, error.code))
                continue
            key = record_key(header.peer_id, header.kind)
            asked = self._wants.handle_came(key, peer_id, now)
            sought = not asked and peer.sought > 0 and now < peer.sought_until
            if sought:
                peer.sought -= 1
            if asked or sought:
                peer.received.give_back(len(envelope))
            if self._is_news(peer_id, key, header, envelope, now) and self._may_be_verified(
                peer_id, peer, header, envelope, asked or sought, now, wall_s
            ):
                self._verify(peer_id, envelope, stamp, asked, sought, now, wall_s)

    def _is_news(self, peer_id: PeerId, key: RecordKey, header: RecordHeader, envelope: bytes, now: float) -> bool:
        """Whether the header claims what is not known yet, or contradicts what is known under the same number."""
        code = self._table.staleness(key, header.sequence, envelope)
        if code is ErrorCode.REPLAYED:
            self._spreading.came_again(peer_id, key, header.sequence, now)
        if code is not None:
            self.stale[code] += 1
        return code is None

    def _may_be_verified(
        self, peer_id: PeerId, peer: Conversation, header: RecordHeader, envelope: bytes, asked: bool, now: float, wall_s: float
    ) -> bool:
        """The checks that cost little; what fails them is dealt with here."""
        try:
            self.reader.check(header, self._network_id, wall_s, self._table.config.records)
        except RemoteProtocolError as error:
            if error.code is ErrorCode.WRONG_NETWORK:
                raise
            self._outputs.append(RecordRefused(peer_id, error.code))
            return False
        if envelope in self._refused:
            return False
        return asked or self._within(peer_id, peer.records, 1, now)

    def _verify(
        self, peer_id: PeerId, envelope: bytes, stamp: bytes | None, asked: bool, sought: bool, now: float, wall_s: float
    ) -> None:
        try:
            record = self.reader.open(envelope, self._network_id, wall_s, self._table.config.records)
        except RemoteProtocolError as error:
            if error.code is not ErrorCode.NOT_ADMITTED:  # its author may be admitted by what comes later
                self._refused.add(envelope)
            if error.code is ErrorCode.BAD_SIGNATURE:
                raise
            self._outputs.append(RecordRefused(peer_id, error.code))
            return
        self._take(peer_id, self.reader.stamped(record, stamp), asked, sought, now, wall_s)

    def take(self, record: Record, from_peer: PeerId, now: float, wall_s: float) -> None:
        """Take a verified record that came by another way than gossip, if it is news that concerns this node, and spread it."""
        self._take(from_peer, record, False, False, now, wall_s)
        self._spreading.push()

    def _take(self, peer_id: PeerId, record: Record, asked: bool, sought: bool, now: float, wall_s: float) -> None:
        if record.peer_id == self._table.own:
            self._outputs.append(OwnRecordHeard(record.sequence))
            return
        if not (sought or self.horizon.takes(record, self._peers)):
            return
        outcome = self._table.offer(record, now, wall_s)
        match outcome:
            case Accepted(evicted=evicted):
                self._outputs.extend(RecordExpired(old) for old in evicted)
                self._outputs.append(RecordAccepted(record, peer_id, outcome.replaced))
                if not sought:
                    self._spreading.pass_on(record, peer_id, outcome, now, asked=asked)
                self.horizon.note(record, outcome.replaced)
                if self.horizon.is_overfull:
                    self._look(now)
            case Equivocation(kept=kept, offered=offered):
                self._refused.add(record.envelope)
                self._outputs.append(Equivocated(kept, offered))
            case Full():
                self._outputs.append(RecordRefused(peer_id, ErrorCode.OVERLOADED))
            case Stale(code=code):
                self.stale[code] += 1
            case _:
                assert_never(outcome)

    # The mesh

    def _heartbeat(self, now: float) -> None:
        """Ask for links or give some back, and announce what was news."""
        if self.horizon.is_due(now):
            self._look(now)
        if self.scope is not None and now >= self._shuffle_at:
            self._shuffle(now)
        change = self.overlay.heartbeat(now)
        for peer_id in change.grafted:
            self._graft(peer_id, now)
        for peer_id in change.pruned:
            self._prune(peer_id, now)
        for peer_id in self.scores.banned(now):
            self._turned_away(peer_id, now)
        self._spreading.announce(now)

    def _handle_link(
        self, peer_id: PeerId, peer: Conversation, message: Graft | Prune | Keep | ScopeTold | Seek, now: float
    ) -> None:
        match message:
            case Graft():
                known = peer_id in self.overlay
                if not self.overlay.handle_graft(peer_id, now):
                    self._send(peer_id, [encode_message(Prune())])
                elif not known:
                    self._take_up(peer_id, now)
            case Prune():
                if self.overlay.handle_prune(peer_id, now):
                    self._let_go(peer_id, now)
            case Keep(keeps=keeps, legs=legs):
                self.overlay.handle_keeping(peer_id, keeps=keeps)
                self._outputs.append(LinkKept(peer_id, keeps, legs))
            case ScopeTold(scope=scope):
                peer.scope, peer.view = scope, None
            case Seek():
                self._serve(peer_id, peer, self.horizon.found(message, peer.scope), now)
            case _:
                assert_never(message)

    def _handle_beat(self, peer_id: PeerId, peer: Conversation, message: BeatTold, now: float) -> None:
        if peer.beats.take(1, now) is not Verdict.GRANTED:
            self._outputs.append(RecordRefused(peer_id, ErrorCode.FLOODING))
            return
        self._outputs.append(BeatHeard(peer_id, self.reader.beat(message.payload)))

    def _graft(self, peer_id: PeerId, now: float) -> None:
        self._send(peer_id, [encode_message(Graft())])
        self._take_up(peer_id, now)

    def _prune(self, peer_id: PeerId, now: float) -> None:
        self._send(peer_id, [encode_message(Prune())])
        self._let_go(peer_id, now)

    def _make_good(self, now: float) -> None:
        """Ask for a link at once where too few are left to peers that this node chose."""
        for peer_id in self.overlay.make_good(now):
            self._graft(peer_id, now)

    def _take_up(self, peer_id: PeerId, now: float) -> None:
        self._spreading.audits.handle_grafted(peer_id, now)
        self._outputs.append(Grafted(peer_id))

    def _let_go(self, peer_id: PeerId, now: float) -> None:
        self._spreading.audits.handle_pruned(peer_id)
        self._outputs.append(Pruned(peer_id))
        self._make_good(now)

    def _turned_away(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer has behaved so badly that its connection is to be closed."""
        peer = self._peers[peer_id]
        if not peer.misbehaved and self.scores.is_banned(peer_id, now):
            self._cut_off(peer_id, peer, ErrorCode.FLOODING, now)
        return peer.misbehaved

    # The part of the mesh that is held

    def _look(self, now: float) -> None:
        """Fit the scope to what is known; where it is another now, all are told, and the mesh is compared with anew."""
        changed, dropped = self.horizon.look(self._peers, now)
        self._outputs.extend(RecordEvicted(record) for record in dropped)
        if changed:
            for peer_id in self._order:
                self._peers[peer_id].view = None
                self._send(peer_id, [encode_message(ScopeTold(self.scope))])
            for peer_id in self.overlay.members:
                self._greet(peer_id, now)

    def _shuffle(self, now: float) -> None:
        """Ask somebody for a few cards from beyond, every other time somebody who is there itself."""
        config = self._config.horizon
        self._shuffle_at = now + config.shuffle_s * self._luck.uniform(0.8, 1.2)
        asked = [peer_id for peer_id in self._order if not self._peers[peer_id].misbehaved]
        far = [peer_id for peer_id in self.beyond() if peer_id in self._peers]
        if asked:
            partner = self._luck.choice(far if far and self._luck.random() < 0.5 else asked)
            self.seek(Seek("", config.shuffle_count), [partner], now)

    def _tell_scope(self, peer_id: PeerId) -> None:
        if self.scope is not None:
            self._send(peer_id, [encode_message(ScopeTold(self.scope))])

    def _held(self, peer: Conversation) -> PeerTable | View:
        """What is compared with a peer: what concerns both ends."""
        if self.scope is None and peer.scope is None:
            return self._table
        if peer.view is None:
            peer.view = View(self.horizon, peer.scope)
        return peer.view

    # Digests

    def _greet(self, peer_id: PeerId, now: float) -> None:
        """Compare tables with a peer that is connected anew, unless many came at once: then the rounds see to it."""
        if self._greetings.take(1, now) is Verdict.GRANTED:
            self._start_exchange(peer_id)

    def _start_exchange(self, peer_id: PeerId) -> None:
        """Tell a peer the hash of everything that concerns both."""
        self._send(peer_id, [encode_message(Digest((self._held(self._peers[peer_id]).root_hash(),)))])

    def _handle_exchange(self, peer_id: PeerId, peer: Conversation, message: Digest | Entries | Want, now: float) -> None:
        match message:
            case Digest(hashes=(root,)):
                held = self._held(peer)
                if root != held.root_hash():
                    self._send(peer_id, summary(held, self._table.compared, self._config.direct_entries_max))
            case Digest(hashes=hashes):
                self._send(peer_id, differing(self._held(peer), hashes))
            case Entries() if self.scores.is_ignored(peer_id, now):
                pass
            case Entries(entries=entries, buckets=buckets):
                self._spreading.handle_told(peer_id, entries, now)
                if asked := self._wants.ask(peer_id, wanted(self._table, self.horizon.kept(entries), self._luck), now):
                    self._send(peer_id, [encode_message(Want(asked))])
                if buckets:
                    self._send(peer_id, newer(self._held(peer), self._table, message))
            case Want(keys=keys):
                held_records = map(self._table.record_of, dict.fromkeys(keys))
                self._serve(peer_id, peer, [record for record in held_records if record is not None], now)

    def _serve(self, peer_id: PeerId, peer: Conversation, records: Iterable[Record], now: float) -> None:
        """Send records that were asked for, as far as the peer's share goes; it may ask again for the rest."""
        served: list[tuple[bytes, bytes | None]] = []
        for record in records:
            if peer.served.take(len(record.envelope), now) is not Verdict.GRANTED:
                break
            served.append((record.envelope, record.stamp))
        if served and peer.fed_at is None:
            peer.fed_at = now
        self._send(peer_id, stamped_messages(served))

    # Helpers

    def _within(self, peer_id: PeerId, budget: Budget, amount: int, now: float) -> bool:
        """Whether a budget allows `amount`; blames the peer when it is far past it."""
        verdict = budget.take(amount, now)
        if verdict is Verdict.REFUSED:
            self._outputs.append(RecordRefused(peer_id, ErrorCode.FLOODING))
        elif verdict is Verdict.FLOODED:
            self._blame(peer_id, self._peers[peer_id], ErrorCode.FLOODING, now)
        return verdict is Verdict.GRANTED

    def _blame(self, peer_id: PeerId, peer: Conversation, code: ErrorCode, now: float) -> None:
        """Say once that a peer misbehaved; from then on it is neither heard nor told anything."""
        if not peer.misbehaved:
            self.scores.handle_invalid(peer_id, now)
            self._cut_off(peer_id, peer, code, now)

    def _cut_off(self, peer_id: PeerId, peer: Conversation, code: ErrorCode, now: float) -> None:
        peer.misbehaved = True
        self._outputs.append(Misbehaved(peer_id, code))
        if self.overlay.handle_silent(peer_id):
            self._let_go(peer_id, now)

    def _send(self, peer_id: PeerId, messages: Iterable[bytes]) -> None:
        if (peer := self._peers.get(peer_id)) is not None and not peer.misbehaved:
            self._outputs.extend(Send(peer_id, message) for message in messages)

    def _start_clock(self, now: float) -> None:
        if self._round_at is None:
            self._schedule_round(now)
            self._heartbeat_at = now + self._config.heartbeat_s * self._luck.uniform(0.5, 1.0)
            self._expire_at = now + self._config.expire_s

    def _schedule_round(self, now: float) -> None:
        share = self._luck.uniform(1.0 - self._config.round_jitter, 1.0 + self._config.round_jitter)
        self._round_at = now + self._config.round_s * share
