"""A world whose processes talk QUIC: every datagram of the real endpoints passes the network, where it may be late or broken.

Handshakes, acknowledgements, retransmissions, idle timeouts and crossing dials are those of production; a partition, a loss or a
flipped bit meets packets, not messages. All processes share one IP address, so the bounds per address are those of all.

What repeats from one seed: the outputs of the cores, what happens to connections, when each datagram leaves and arrives, and its
size. The content of the packets does not: key shares and signatures are drawn inside compiled code (sim/quic/steady.py).

Source: RFC 9000; what it stands for is mesh/transport and mesh/driver.py.
"""

from collections.abc import Callable, Sequence

from protocol import membership
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr
from protocol.quic import choose_engine
from protocol.quic.events import EndpointConfig
from protocol.quic.seam import Address
from sim.network import PACKET_OVERHEAD_BYTES, Delays, NetworkConfig
from sim.process import FIRST_PORT, Process
from sim.quic.shell import Shell
from sim.quic.steady import SteadyEngine, steady_entropy
from sim.world import World

UDP_OVERHEAD_BYTES = 28
"""Bytes that IPv4 (20) and UDP (8) put round a datagram."""

ENDPOINT = EndpointConfig(own_networks=("192.0.2.0/24",))
"""The endpoint's bounds; all processes share one network, which is not counted by prefix."""


class QuicWorld(World):
    """See the module's docstring."""

    def __init__(
        self,
        seed: int,
        delays: Delays | None = None,
        network: NetworkConfig | None = None,
        engines: Sequence[str] = (),
    ) -> None:
        """Makes an empty world.

        Args:
            seed: the one number that everything follows from.
            delays: of the paths; a line when None.
            network: uplinks and jitter.
            engines: names of QUIC engines that the processes take in turn; the preferred one when empty.

        Raises:
            LocalProtocolError: an engine is unknown or not installed.
        """
        super().__init__(seed, delays, network)
        self.endpoint_config = ENDPOINT
        self.shells: dict[int, Shell] = {}
        self.corruptions = []
        self.corrupted = 0
        self._engines = [SteadyEngine(engine) for engine in [choose_engine(name) for name in engines] or [choose_engine()]]

    def run(self, until: float) -> None:
        """See `World`."""
        with steady_entropy(self.streams.of("entropy of the QUIC libraries")):
            super().run(until)

    # Processes

    def start(self, process: Process) -> None:
        """See `World`."""
        engine = self._engines[process.index % len(self._engines)]
        self.shells[process.index] = Shell(self, process, engine, self.endpoint_config)
        super().start(process)

    def kill(self, process: Process, *, keeps_disk: bool = True) -> None:
        """See `World`."""
        super().kill(process, keeps_disk=keeps_disk)
        del self.shells[process.index]

    def leave(self, process: Process) -> None:
        """See `World`."""
        self.shells[process.index].transport.say_goodbye()
        self.kill(process)

    def hang_up(self, process: Process, peer_id: PeerId, code: ErrorCode) -> None:
        """See `World`."""
        self.shells[process.index].hang_up(peer_id, code)

    def _lose_connections(self, process: Process) -> None:
        """See `World`; whatever of the old connections still comes goes to the old address, where nobody is."""
        self.shells[process.index].lose_everything()

    def note_greeting(self, process: Process, peer_id: PeerId) -> None:
        """Notes that a process has heard a peer."""
        self._note_greeting(process, self.by_id[peer_id])

    def call_later(self, process: Process, life: int, delay_s: float, action: Callable[[], None]) -> None:
        """Lets something happen in a life of a process; what takes no time costs a slow process nothing."""
        enter = self.enter if delay_s > 0.0 else self._do
        self.at(self.now + delay_s, lambda: enter(process, life, action))

    # What the cores want

    def _send_datagram(self, process: Process, peer_id: PeerId, payload: bytes) -> None:
        self.shells[process.index].transport.send_datagram(peer_id, payload)

    def _send_message(self, process: Process, peer_id: PeerId, payload: bytes) -> None:
        self.shells[process.index].post(peer_id, payload)

    def _dial(
        self, process: Process, target: membership.Target, addresses: tuple[Multiaddr, ...], *, afresh: bool = False
    ) -> None:
        self.call_later(process, process.life, 0.0, lambda: self.shells[process.index].dial(target, addresses, afresh=afresh))

    # The network

    def transmit(self, process: Process, datagrams: list[tuple[bytes, Address]]) -> None:
        """Sends datagrams on their way."""
        source = (process.address.host, process.address.port)
        for data, address in datagrams:
            process.bytes_sent += len(data)
            other = self._process_at(address)
            if other is None:
                continue
            size_bytes = len(data) + UDP_OVERHEAD_BYTES - PACKET_OVERHEAD_BYTES
            for late_s in self.network.datagram(process.index, other.index, size_bytes, self.now):
                self._deliver(process, other, self._spoilt(data), source, late_s)

    def _process_at(self, address: Address) -> Process | None:
        index = address[1] - FIRST_PORT
        if not 0 <= index < len(self.processes):
            return None
        process = self.processes[index]
        return process if process.address.host == address[0] else None

    def _deliver(self, process: Process, other: Process, data: bytes, source: Address, late_s: float) -> None:
        def arrive() -> None:
            if self.network.clogs and self.network.hold(process.index, other.index, arrive, datagram=True):
                return
            arrived_at = self.now

            def take() -> None:
                self.shells[other.index].receive(data, source, arrived_at)

            self.enter(other, other.life, take)

        self.at(self.now + late_s, arrive)

    def _spoilt(self, data: bytes) -> bytes:
        """The datagram as it arrives; where it is corrupted, one bit of it differs."""
        for share in self.corruptions or ():
            luck = self.streams.of("corruption")
            if luck.random() < share:
                self.corrupted += 1
                where = int(luck.random() * len(data))
                return data[:where] + bytes([data[where] ^ 1 << luck.randrange(8)]) + data[where + 1 :]
        return data
