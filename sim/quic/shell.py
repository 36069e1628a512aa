"""One life of one process: its core over its transport, as the shell's driver runs it, on the world's time.

Source: mesh/driver.py, which this stands for.
Spec: docs/spec/04-gossip.md, section "Streams".
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol import membership
from protocol.errors import ErrorCode
from protocol.identity import PeerId, make_certificate, verify_certificate
from protocol.multiaddr import Multiaddr
from protocol.quic import QuicEngine
from protocol.quic.events import EndpointConfig
from protocol.quic.seam import Address
from protocol.shortlist import DIAL_ROUND_TRIPS
from sim.process import Process
from sim.quic.speech import Hearing, Speech
from sim.quic.transport import Connection, StreamUser, Transport

if TYPE_CHECKING:
    from sim.quic.world import QuicWorld

CERTIFICATE_ENTROPY_BYTES = 64
"""Entropy of a certificate's key in bytes, as in the shell."""

ARRIVAL_AGE_S_MAX = 1.0
"""Seconds for which the kernel's time of arrival is believed, as in the shell."""


class Shell:
    """See the module's docstring; `transport` tells it of peers, the world of what the core wants."""

    def __init__(self, world: "QuicWorld", process: Process, engine: QuicEngine, config: EndpointConfig) -> None:
        """Makes the shell of the life that is about to start."""
        self._world = world
        self._process = process
        self._life = process.life + 1
        self._speeches: dict[PeerId, Speech] = {}
        self._targets: dict[PeerId, list[membership.Target]] = {}
        self._is_cut_off = False
        luck = world.streams.of(f"certificate {process.index}, life {self._life}")
        entropy = luck.randbytes(CERTIFICATE_ENTROPY_BYTES)
        certificate = make_certificate(process.identity, entropy, world.wall_s(process))
        self.transport = Transport(
            self,
            engine,
            certificate,
            process.identity,
            lambda der: verify_certificate(der, world.wall_s(process)),
            config,
        )

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._world.now

    @property
    def waiting(self) -> int:
        """Messages that wait to be written to peers."""
        return sum(speech.waiting for speech in self._speeches.values())

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Calls `action` after a while, in this life of the process; what takes no time costs a slow process none either."""
        self._world.call_later(self._process, self._life, delay_s, action)

    def transmit(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Gives datagrams to the network."""
        if not self._is_cut_off:
            self._world.transmit(self._process, datagrams)

    # What the world wants

    def receive(self, data: bytes, address: Address, arrived_at: float) -> None:
        """Takes a datagram that reached the machine at `arrived_at`."""
        is_recent = self.now - arrived_at <= ARRIVAL_AGE_S_MAX
        self.transport.receive(data, address, arrived_at if is_recent else self.now)

    def dial(self, target: membership.Target, addresses: tuple[Multiaddr, ...], *, afresh: bool = False) -> None:
        """Tries the addresses in turn and tells the core how it went."""
        if not addresses:
            self._process.node.handle_dial_failed(target, self.now)
            self._world.settle(self._process)
            return

        def ended(peer_id: PeerId | None) -> None:
            if peer_id is None or peer_id not in self.transport.connections:
                self.dial(target, addresses[1:], afresh=afresh)
            else:
                if not was_connected:
                    self._process.node.handle_reached(peer_id, (self.now - began_at) / DIAL_ROUND_TRIPS, self.now)
                    self._world.settle(self._process)
                self._targets.setdefault(peer_id, []).append(target)
                self._attend(peer_id)

        began_at, was_connected = self.now, addresses[0].peer_id in self.transport.connections
        self.transport.dial(addresses[0], ended, afresh=afresh)

    def lose_everything(self) -> None:
        """Ends all connections without a word to the peers."""
        self._is_cut_off = True
        self.transport.lose_everything()
        self._is_cut_off = False

    def post(self, peer_id: PeerId, message: bytes) -> None:
        """Queues a gossip message for a connected peer."""
        speech = self._speeches.get(peer_id)
        if speech is not None:
            speech.post(message)

    def hang_up(self, peer_id: PeerId, code: ErrorCode) -> None:
        """Closes a connection."""
        self.transport.close(peer_id, code, code.name.lower())

    # What the transport tells

    def connected(self, connection: Connection) -> None:
        """Greets a new connection, whoever dialled it."""
        self._note(connection.peer_id, "is connected with")
        self._attend(connection.peer_id)

    def disconnected(self, peer_id: PeerId, code: ErrorCode) -> None:
        """Tells the core, and ends what was done for the peer."""
        self._note(peer_id, f"has lost ({code.name})")
        self._fall_silent(peer_id)
        self._process.node.handle_disconnected(peer_id, code, self.now)
        self._dials_failed(peer_id)
        self._world.settle(self._process)

    def replaced(self, connection: Connection) -> None:
        """Begins anew with a peer: it may be another run of it that knows nothing yet."""
        self._note(connection.peer_id, "has another connection with")
        self._fall_silent(connection.peer_id)
        self._process.heard[connection.peer_id] = self.now
        self._process.node.handle_replaced(connection.peer_id, self.now)
        self._attend(connection.peer_id)
        self._world.settle(self._process)

    def datagram(self, peer_id: PeerId, payload: bytes, received_at: float) -> None:
        """Hands a probe to the core."""
        self._process.node.handle_datagram(peer_id, payload, received_at, self.now)
        self._world.settle(self._process)

    def opened(self, connection: Connection, stream: int) -> StreamUser:
        """A peer opened a stream; all that is spoken here is gossip."""
        return Hearing(self, connection, stream)

    # What the streams tell

    def greeted(self, peer_id: PeerId) -> None:
        """Tells the core that the peer speaks the mesh's protocols, unless its connection is gone already."""
        if peer_id not in self.transport.connections:
            return
        if peer_id not in self._targets and self._process.node.membership.is_connected(peer_id):
            return
        self._world.note_greeting(self._process, peer_id)
        for target in self._targets.pop(peer_id, (None,)):
            self._process.node.handle_connected(peer_id, self.now, target)
        self._world.settle(self._process)

    def not_greeted(self, peer_id: PeerId) -> None:
        """The dials that led to this peer led to nobody who speaks gossip now."""
        self._dials_failed(peer_id)
        self._world.settle(self._process)

    def heard(self, peer_id: PeerId, message: bytes) -> None:
        """Hands a gossip message to the core."""
        if not self._process.node.membership.is_connected(peer_id):
            self.greeted(peer_id)
        self._process.node.handle_message(peer_id, message, self.now)
        self._world.settle(self._process)

    def faulted(self, peer_id: PeerId, code: ErrorCode) -> None:
        """The peer broke the framing of its stream."""
        self._note(peer_id, f"hangs up ({code.name}) on")
        self.hang_up(peer_id, code)

    # Helpers

    def _note(self, peer_id: PeerId, what: str) -> None:
        journal = self._world.journal
        journal.note(self.now, self._process.index, f"{what} {journal.names.get(peer_id, '?')}")

    def _attend(self, peer_id: PeerId) -> None:
        speech = self._speeches.get(peer_id)
        if speech is None or speech.over:
            self._speeches[peer_id] = Speech(self, peer_id)
        if self._process.node.membership.is_connected(peer_id):
            self.greeted(peer_id)

    def _fall_silent(self, peer_id: PeerId) -> None:
        speech = self._speeches.pop(peer_id, None)
        if speech is not None:
            speech.end()

    def _dials_failed(self, peer_id: PeerId) -> None:
        for target in self._targets.pop(peer_id, ()):
            self._process.node.handle_dial_failed(target, self.now)
