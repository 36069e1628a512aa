"""A sybil: it stands where a core stands and speaks the wire of gossip and probes, and does no more than an attack needs.

It dials, asks each peer for a link of the mesh, says that it wants to keep the connection, answers probes, passes on what it is
not told to swallow, and asks for a link again when the back-off is over. It keeps no table, so that four thousand of them fit
beside a thousand whole cores. Where its connection is refused or closed it tries another target after a while.

It has no card, or it has one as a member has: signed, with the address at which it is, a model that it claims to serve, and a
place, which is that of one of those it is after. Such a card comes with the greeting, also of whoever dials the sybil.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import count
from random import Random

from protocol import gossip, membership, probe
from protocol.errors import ErrorCode
from protocol.gossip.messages import Graft, Keep, Prune, Records, encode_message, records_messages
from protocol.identity import Identity, PeerId
from protocol.multiaddr import Multiaddr
from protocol.node import NodeConfig, Output
from protocol.probe import KIND_ECHO, KIND_PROBE
from protocol.records import DEFAULT_RECORD_CONFIG, Card, Hardware, ModelOffer, RecordHeader, seal
from sim.crowd.attacks import Swallow
from sim.process import Process
from sim.reader import SharedReader

REGRAFT_S = (10.1, 25.0)
"""Seconds between a prune and the next graft, drawn evenly: the back-off is over, so that nothing is held against it."""

RETRY_S = (20.0, 40.0)
"""Seconds until a connection that was refused or closed is tried elsewhere."""

CARD_S = 7200.0
"""Seconds for which a card is valid: as the product's."""

_GREETING = (encode_message(Keep(keeps=True)), encode_message(Graft()))
_GRAFT = encode_message(Graft())
_ECHO = bytes((KIND_ECHO,))


class Crowd:
    """What all sybils of a run share.

    Attributes:
        has_cards: whether they have cards, as members have.
        attacking: whether they swallow now.
        dials: how many were begun.
        turned_away: how many connections were closed to them, at once or later.
        closed_for: these by the code.
        grafts: links asked for.
    """

    def __init__(self, swallow: Swallow, victim: PeerId | None, reader: SharedReader, *, has_cards: bool = False) -> None:
        """A crowd that behaves well so far."""
        self.has_cards = has_cards
        self.swallow = swallow
        self.victim = victim
        self.reader = reader
        self.attacking = False
        self.dials = self.failed = self.grafts = 0
        self.closed_for: dict[ErrorCode, int] = {}

    def swallows(self, header: RecordHeader, luck: Random) -> bool:
        """Whether a record is not passed on."""
        if not self.attacking:
            return False
        match self.swallow:
            case Swallow.EVERYTHING:
                return True
            case Swallow.HALF:
                return luck.random() < 0.5
            case Swallow.VICTIM:
                return header.peer_id == self.victim


class Sybil:
    """The actor; the names of its methods are those of a core, in whose place it stands."""

    def __init__(self, crowd: Crowd, identity: Identity, luck: Random, targets: list[Process], links: int, over_s: float) -> None:
        """It dials `links` of the targets within `over_s` seconds from its start."""
        self.peer_id = identity.peer_id
        self._identity = identity
        self._greeting: tuple[bytes, ...] = _GREETING
        self._crowd = crowd
        self._luck = luck
        self._targets = targets
        self._links = links
        self._over_s = over_s
        self._connected: dict[PeerId, bool] = {}  # whether news is passed on to it
        self._dialling: set[PeerId] = set()
        self._seen: set[bytes] = set()
        self._later: list[tuple[float, int, PeerId | None]] = []  # a dial of anybody, or a graft
        self._order = count()
        self._outputs: deque[Output] = deque()
        self.reader: object = None
        self.gossip = self.table = self.membership = self.probe = self

    # What the world asks of the machines of a core

    def use_packer(self, packer: object) -> None:
        """Keeps nothing."""

    def is_connected(self, peer_id: PeerId) -> bool:
        """Whether a connection is open."""
        return peer_id in self._connected

    def liveness(self, _peer_id: PeerId) -> probe.Liveness:
        """Doubts nobody."""
        return probe.Liveness.ALIVE

    # What happens

    def start(
        self, addresses: tuple[Multiaddr, ...], hardware: Hardware, offers: tuple[ModelOffer, ...], wall_s: float, now: float
    ) -> None:
        """Plans the dials, and makes the card."""
        if self._crowd.has_cards:
            near = self._luck.choice(self._targets)
            place = near.node.vivaldi.coordinate if near.running else None
            card = Card(addresses, hardware, offers, place, "isochrone/simulated")
            record = seal(self._identity, NodeConfig().network_id, card, 1, wall_s, wall_s + CARD_S)
            self._greeting = (*records_messages([record.envelope]), *_GREETING)
        for _ in range(self._links):
            heapq.heappush(self._later, (now + self._luck.uniform(0.0, self._over_s), next(self._order), None))

    def add_bootstrap(self, _addresses: Iterable[Multiaddr], _now: float) -> None:
        """Knows where everybody is."""

    def handle_wall_clock(self, _wall_s: float, _now: float) -> None:
        """Signs nothing."""

    def handle_connected(self, peer_id: PeerId, _now: float, _target: object = None, _origin: bytes | None = None) -> None:
        """Asks for a link at once."""
        self._dialling.discard(peer_id)
        if peer_id not in self._connected:
            self._connected[peer_id] = True
            self._crowd.grafts += 1
            self._outputs.extend(gossip.Send(peer_id, message) for message in self._greeting)

    def handle_reached(self, _peer_id: PeerId, _rtt_s: float, _now: float) -> None:
        """Asks nobody anything."""

    def handle_disconnected(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Tries elsewhere after a while."""
        self._dialling.discard(peer_id)
        self._connected.pop(peer_id, None)
        self._crowd.closed_for[code] = self._crowd.closed_for.get(code, 0) + 1
        heapq.heappush(self._later, (now + self._luck.uniform(*RETRY_S), next(self._order), None))

    def handle_replaced(self, peer_id: PeerId, now: float) -> None:
        """Greets again."""
        self._connected.pop(peer_id, None)
        self.handle_connected(peer_id, now)

    def handle_dial_failed(self, target: membership.Target, now: float) -> None:
        """Tries elsewhere after a while."""
        self._crowd.failed += 1
        if not isinstance(target, str):
            self._dialling.discard(target)
        heapq.heappush(self._later, (now + self._luck.uniform(*RETRY_S), next(self._order), None))

    def handle_datagram(self, peer_id: PeerId, payload: bytes, _received_at: float, _now: float) -> None:
        """Answers probes, so that nobody takes it for dead."""
        if payload[0] == KIND_PROBE:
            self._outputs.append(probe.SendDatagram(peer_id, _ECHO + payload[1:]))

    def handle_message(self, peer_id: PeerId, payload: bytes, now: float) -> None:
        """Passes records on, or swallows them; minds which links it has."""
        match self._crowd.reader.message(payload):
            case Records(envelopes=envelopes):
                self._pass_on(peer_id, envelopes)
            case Graft() if peer_id in self._connected:
                self._connected[peer_id] = True
            case Prune() if peer_id in self._connected:
                self._connected[peer_id] = False
                heapq.heappush(self._later, (now + self._luck.uniform(*REGRAFT_S), next(self._order), peer_id))
            case _:
                pass

    def next_timer(self) -> float:
        """When something is to be done."""
        return self._later[0][0] if self._later else float("inf")

    def handle_timer(self, now: float) -> None:
        """Dials, or asks for links again."""
        while self._later and self._later[0][0] <= now:
            _, _, peer_id = heapq.heappop(self._later)
            if peer_id is None:
                self._dial()
            elif self._connected.get(peer_id) is False:
                self._connected[peer_id] = True
                self._crowd.grafts += 1
                self._outputs.append(gossip.Send(peer_id, _GRAFT))

    def next_output(self) -> Output | None:
        """What it does next."""
        return self._outputs.popleft() if self._outputs else None

    def _dial(self) -> None:
        for _ in range(8):  # somebody to whom it has no connection, if that is found soon
            target = self._luck.choice(self._targets)
            if target.peer_id not in self._connected and target.peer_id not in self._dialling:
                self._dialling.add(target.peer_id)
                self._crowd.dials += 1
                self._outputs.append(membership.Connect(target.peer_id, (target.address,)))
                return

    def _pass_on(self, from_peer: PeerId, envelopes: tuple[bytes, ...]) -> None:
        passed: list[bytes] = []
        for envelope in envelopes:
            if envelope in self._seen:
                continue
            self._seen.add(envelope)
            header = self._crowd.reader.peek(envelope, DEFAULT_RECORD_CONFIG)
            if not self._crowd.swallows(header, self._luck):
                passed.append(envelope)
        if passed:
            messages = records_messages(passed)
            for peer_id, is_linked in self._connected.items():
                if is_linked and peer_id != from_peer:
                    self._outputs.extend(gossip.Send(peer_id, message) for message in messages)
