"""Watchers: new cards on their way, what arrives by kind, and what every process holds of the others' standing."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import gossip
from protocol.gossip.messages import Records, decode_message
from protocol.membership import Standing
from protocol.node import Output
from protocol.records import Card, ModelOffer, Record, RecordKind, peek
from protocol.table import record_key
from sim.figures import Spread
from sim.network import PACKET_OVERHEAD_BYTES
from sim.process import Process
from sim.world import World

PACKET_PAYLOAD_BYTES = 1200
"""Bytes of one packet's payload: what QUIC sends before it knows the path better, RFC 9000 section 14."""

ENVELOPES_REMEMBERED_MAX = 50_000
"""Envelopes whose kind is remembered, a count: each is looked at once and not with every copy."""

BEGINNING_BYTES = 256
"""Bytes by which a message of records is remembered: its first envelope's header is shorter."""

LOAD_KINDS = frozenset({"beattold"})
"""Names of messages that tell the load of their sender."""

SEALED_WITHIN_S = 10.0
"""Seconds within which a core that got a new model has signed its new card; the shortest time between two cards is 2 s."""


class Markers:
    """Makes new cards and follows them."""

    def __init__(self, world: World) -> None:
        """Watches a world from now on."""
        self.world = world
        self.spread: Spread | None = None
        self.copies = 0
        self.mentions = 0  # messages that name the card and do not hold it: who has it, who wants it, who does not
        self._envelope = b""
        self._key = b""
        self._offer: ModelOffer | None = None
        self._made = 0
        world.watchers.append(self._watch)
        world.seal_watchers.append(self._sealed)
        world.arrival_watchers.append(self._arrived)

    def mark(self, process: Process) -> Spread:
        """Gives a process a new model, waits until its new card is signed, and follows that card from then on."""
        self._made += 1
        self.spread, self.copies, self.mentions = None, 0, 0
        self._offer = ModelOffer(f"marker {self._made}", frozenset(), engine="echo")
        process.offers = (*process.offers[:1], self._offer)
        process.node.handle_offers(process.offers, self.world.now)
        self.world.settle(process)
        self.world.run_until(lambda: self._offer is None, self.world.now + SEALED_WITHIN_S, 0.05)
        return self._followed()

    def _followed(self) -> Spread:
        assert self.spread is not None, "no new card within the time"
        return self.spread

    def _sealed(self, process: Process, record: Record) -> None:
        if isinstance(record.payload, Card) and self._offer is not None and self._offer in record.payload.models:
            self.spread = Spread(process.peer_id, record.sequence, self.world.now, len(self.world.processes))
            self._envelope, self._offer = record.envelope, None
            self._key = record_key(process.peer_id, RecordKind.CARD)

    def _watch(self, process: Process, output: Output) -> None:
        spread = self.spread
        if spread is None or not isinstance(output, gossip.RecordAccepted) or output.record.kind is not RecordKind.CARD:
            return
        record = output.record
        if record.peer_id == spread.peer_id and record.sequence >= spread.sequence and process.index not in spread.reached:
            spread.reached.add(process.index)
            spread.after_s.append(self.world.now - spread.began_at)

    def _arrived(self, _receiver: Process, _sender: Process, payload: bytes, datagram: bool) -> None:
        if self.spread is None or datagram:
            return
        if self._envelope in payload:
            self.copies += 1
        elif self._key in payload:
            self.mentions += 1


@dataclass
class Traffic:
    """Counts what enters the cores, by kind; `counting` switches it on.

    Attributes:
        messages: messages and datagrams, counts.
        payload_bytes: their bytes.
        packets: the packets they take.
    """

    world: World
    counting: bool = True
    messages: Counter[str] = field(default_factory=Counter[str])
    payload_bytes: Counter[str] = field(default_factory=Counter[str])
    packets: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self._kinds = Kinds()
        self.world.arrival_watchers.append(self._arrived)

    def clear(self) -> None:
        """Begins anew."""
        for counter in (self.messages, self.payload_bytes, self.packets):
            counter.clear()

    def _arrived(self, _receiver: Process, _sender: Process, payload: bytes, datagram: bool) -> None:
        if not self.counting:
            return
        kind = "probe" if datagram else self._kinds.of(payload)
        self.messages[kind] += 1
        self.payload_bytes[kind] += len(payload)
        self.packets[kind] += max(1, math.ceil(len(payload) / PACKET_PAYLOAD_BYTES))

    def wire_bytes(self, kind: str) -> int:
        """Bytes of a kind with what every packet carries round its payload."""
        return self.payload_bytes[kind] + self.packets[kind] * PACKET_OVERHEAD_BYTES


class Kinds:
    """Names the kinds of messages: by the class they decode to, records by what they carry first."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # by the number that a message begins with
        self._records: dict[bytes, str] = {}

    def of(self, payload: bytes) -> str:
        """The kind of one message, whose second byte is its type."""
        number = payload[1] if len(payload) > 1 else -1
        name = self._names.get(number)
        if name is None:
            message = decode_message(payload)
            name = self._names[number] = type(message).__name__.lower() if message is not None else f"type {number}"
        return self._of_records(payload) if name == "records" else name

    def _of_records(self, payload: bytes) -> str:
        """Most messages of records are one record, many times over."""
        begins = payload[:BEGINNING_BYTES]
        kind = self._records.get(begins)
        if kind is None:
            message = decode_message(payload)
            assert isinstance(message, Records)
            kind = f"records: {peek(message.envelopes[0]).kind}" if message.envelopes else "records: none"
            if len(self._records) >= ENVELOPES_REMEMBERED_MAX:
                self._records.clear()
            self._records[begins] = kind
        return kind


StandingChanged = Callable[[Process, Process, Standing], None]
"""Who hears that an observer holds a subject for something else than before."""


class Standings:
    """Follows what every process holds of every other, by the facts it tells and by looking at all now and then.

    Only living subjects of running observers are looked at: what a process held when it was killed is of no interest.
    """

    def __init__(self, world: World, changed: StandingChanged, sweep_s: float = 5.0) -> None:
        """Watches a world from now on.

        Args:
            world: whose.
            changed: hears of every change.
            sweep_s: seconds between two looks at all pairs, for changes that no fact tells.
        """
        self.world = world
        self._changed = changed
        self._sweep_s = sweep_s
        self._held: dict[tuple[int, int], Standing] = {}
        world.watchers.append(self._watch)
        self._sweep()

    def _watch(self, process: Process, output: Output) -> None:
        peer = getattr(output, "peer_id", None) or getattr(output, "peer", None)
        subject = self.world.by_id.get(peer) if peer is not None else None
        if subject is not None and subject is not process:
            self._look(process, subject)

    def _look(self, observer: Process, subject: Process) -> None:
        standing = observer.node.membership.standing(subject.peer_id, self.world.now)[0]
        before = self._held.get((observer.index, subject.index))
        if standing is not before:
            self._held[observer.index, subject.index] = standing
            if before is not None:  # the first look is no change
                self._changed(observer, subject, standing)

    def _sweep(self) -> None:
        for observer in self.world.processes:
            if observer.works:
                for subject in self.world.processes:
                    if subject is not observer and subject.running:
                        self._look(observer, subject)
        self.world.at(self.world.now + self._sweep_s, self._sweep)


@dataclass
class Beats:
    """When each process was last told the load of each other, as the time at which that word was sent."""

    world: World
    sent_at: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])

    def __post_init__(self) -> None:
        self._kinds = Kinds()
        self.world.arrival_watchers.append(self._arrived)

    def _arrived(self, receiver: Process, sender: Process, payload: bytes, datagram: bool) -> None:
        """What arrives was sent one trip ago."""
        if not datagram and self._kinds.of(payload) in LOAD_KINDS:
            trip_s = self.world.network.delays.one_way_s(sender.index, receiver.index)
            self.sent_at[receiver.index, sender.index] = self.world.now - trip_s
