"""What opens RDMA fabrics: the devices of this host, the ports told on the card, and how two queue pairs find each other.

The door tells its end (address, queue pair, first packet) inside the QUIC session, the opener answers with its own, both
connect, and the door says that it is ready. Each peer has a protection domain, a completion queue and a queue pair of its own.
Beside the sessions the devices are listened to: a queue pair that somebody has tried to misuse, or a port that has gone down,
closes its session at once; ports and addresses are looked at again then, and every few seconds.

Source: InfiniBand Architecture Specification 1.4, volume 1, section 11.6.3 (asynchronous events).
Spec: docs/spec/11-fabric.md, section "RDMA".
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any
from weakref import WeakSet

import trio

from mesh.fabric.base import Opening
from mesh.fabric.gpu import array_of
from mesh.fabric.gpu.driver import LIBRARY
from mesh.fabric.rdma.direct import Direct
from mesh.fabric.rdma.memory import Locked
from mesh.fabric.rdma.places import Places, find_places
from mesh.fabric.rdma.ports import RdmaPort, has_devices, read_addresses, read_ports, told
from mesh.fabric.rdma.session import RdmaSession
from mesh.fabric.rdma.wire import Wire
from mesh.fabric.verbs.binding import BindingAbsentError, load
from mesh.fabric.verbs.objects import Device, DeviceEvent, Path, PortState, VerbsError
from mesh.hardware import memory_bytes
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Advert, Kind, Link, Match, Way, order_pairs
from protocol.fabric.cost import APART_SETUP_S, COPY
from protocol.fabric.messages import NONCE_BYTES, SECRET_BYTES, Door, Hello, encode_opening
from protocol.fabric.rdma import READY, End, check_ready, decode_end, decode_enter, encode_end, encode_enter, same_subnet, tag_key
from protocol.inference import Tensor

LOOK_S = 10.0
"""How often ports and addresses are looked at when no device says anything, in seconds; reading them costs some milliseconds."""

SWEEP_S = 1.0
"""How often memory of GPUs is given back that nobody has any more, in seconds: the driver waits for the device then."""

SETUP_S = APART_SETUP_S + 0.002
"""What a transfer costs whatever its size, in seconds: one more round trip and wake-up than other fabrics take, for the lease
that the receiver grants first, put at 2 ms."""

TAG_S_PER_BYTE = 1e-9
"""What the receiver takes to compare the tag, in seconds per byte: BLAKE2b on one core of a plain server. The giver makes the
tag while the device writes."""

LOCKED_SHARE = 0.25
"""Share of this node's memory that all peers together may have locked, unitless: the engine needs the rest, and locked pages
are nobody else's."""

SHARE = 0.9
"""Share of a port's speed that is left for what is written, unitless: a packet of 1024 bytes has 82 more on Ethernet."""

SPEED_MBPS = 10_000
"""Speed that is reckoned with where neither port tells one, in Mbit/s."""

PAIR_EVENTS = frozenset((1, 2, 3, 7))
"""Events by which a device says that a queue pair is over: fatal, bad request, forbidden access (somebody has used a key that is
worth nothing, or stepped out of bounds), path lost. The numbers are the library's (ibv_get_async_event(3))."""

PORT_ERROR, DEVICE_FATAL = 10, 8
"""Events by which a device says that a port, or all of it, is gone; likewise."""


class RdmaOpener:
    """Opens RDMA fabrics."""

    def __init__(
        self,
        host_secret: bytes,
        only: Sequence[str] = (),
        root: FilePath = FilePath("/"),
        cache: FilePath | None = None,
        library: str = LIBRARY,
        memory_node: int | None = None,
    ) -> None:
        """Finds out whether there is anything to open; `run` does the rest.

        Args:
            host_secret: hides on the card what would name the hardware.
            only: the devices that may be used; empty for all.
            root: where `sys` is.
            cache: where the compiled binding is kept; None for the user's cache directory.
            library: of NVIDIA's driver.
            memory_node: the NUMA node from which memory is to be; None has it near the port.
        """
        self._secret, self._only, self._root, self._cache = host_secret, tuple(only), root, cache
        self._memory_node = memory_node
        self._locked = Locked(int(memory_bytes(root) * LOCKED_SHARE))
        self._binding: Any = None
        self._devices: dict[str, Device] = {}
        self._found: tuple[RdmaPort, ...] = ()
        self._places = Places()
        self._unusable: tuple[str, ...] = ()
        self.direct = Direct(library)
        self._absent = "its devices are being looked for" if has_devices(root) else NO_DEVICE
        self._sessions: WeakSet[RdmaSession] = WeakSet()
        self._again = trio.Event()

    @property
    def _ports(self) -> tuple[RdmaPort, ...]:
        return self._places.ports

    @property
    def kind(self) -> Kind:
        """RDMA."""
        return Kind.RDMA

    @property
    def keeps_stream(self) -> bool:
        """The end of the stream is the end of the session."""
        return True

    @property
    def absent(self) -> str:
        """Why there is none now; empty where there is."""
        return self._absent

    def advert(self) -> Advert:
        """The ports, and which of them is nearest to each GPU."""
        return Advert(ports=tuple(told(port, self._secret) for port in self._ports), gpu_paths=self._places.gpu_paths)

    def way(self, match: Match) -> Way:
        """What a transfer would cost over the slower of two ports."""
        speed_mbps = match.speed_mbps or SPEED_MBPS
        link = Link(0.0, speed_mbps * 1e6 / 8 * SHARE)
        return Way((COPY, link), setup_s=SETUP_S, per_byte_s=TAG_S_PER_BYTE)

    def order(self, found: tuple[Match, ...], other: Advert, tensors: Sequence[Tensor]) -> tuple[Match, ...]:
        """Pairs of ports for some tensors, the preferred first: near their GPU, or where the host's memory is."""
        array = next((array for tensor in tensors if (array := array_of(tensor)) is not None), None)
        gpu = None if array is None else self._places.place_of(array.device)
        return order_pairs(found, self.advert(), other, gpu, self._places.ports_on(self._memory_node))

    def figures(self) -> dict[str, object]:
        """The ports, and why others are not used."""
        return {
            "ports": [
                f"{port.device}/{port.number} {port.interface} {port.speed_mbps} Mbit/s".replace("  ", " ")
                for port in self._ports
            ],
            "unusable": list(self._unusable),
            "locked_bytes": self._locked.n_bytes,
            "locked_bytes_max": self._locked.bytes_max,
            "gpu_direct": self.direct.figures(),
        }

    # Opening

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> RdmaSession:
        """Connect to the queue pair that a peer has told.

        Raises:
            RemoteProtocolError: it is no place, or one in no subnet of this node.
            OSError: the device refuses.
        """
        theirs = decode_end(door.place)
        port = self._port_to(opening.match, theirs)
        session, own = await self._make(opening, port, tag_key(door.secret, own_nonce, door.nonce))
        try:
            await self._connect(session, port, own, theirs)
            await opening.control.send(encode_enter(own))
            check_ready(await opening.control.expect())
            await session.wire.greet()
        except BaseException:
            await _discard(session)
            raise
        return session

    async def admit(self, opening: Opening, hello: Hello) -> RdmaSession:
        """Tell a peer a queue pair, and connect to the one that it tells.

        Raises:
            RemoteProtocolError: the peer does not come, or is elsewhere.
            OSError: the device refuses.
        """
        if opening.match.own_port >= len(self._ports):
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the port has just gone")
        port = self._ports[opening.match.own_port]
        secret, nonce = opening.entropy(SECRET_BYTES), opening.entropy(NONCE_BYTES)
        session, own = await self._make(opening, port, tag_key(secret, hello.nonce, nonce))
        try:
            await opening.control.send(encode_opening(Door(Kind.RDMA, encode_end(own), secret, nonce)))
            theirs = decode_enter(await opening.control.expect())
            _check_subnet(port, theirs)
            await self._connect(session, port, own, theirs)
            opening.control.say(READY)
        except BaseException:
            await _discard(session)
            raise
        return session

    def _port_to(self, match: Match, theirs: End) -> RdmaPort:
        """The port of this node from which the other end is reached: the one of the match, if that still holds.

        Raises:
            RemoteProtocolError: there is none.
        """
        for port in (*self._ports[match.own_port : match.own_port + 1], *self._ports):
            if same_subnet(port.gid, theirs.gid, port.subnet_bits):
                return port
        raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer's RDMA address is in no subnet of this node")

    async def _make(self, opening: Opening, port: RdmaPort, key: bytes) -> tuple[RdmaSession, End]:
        device = self._devices[port.device]

        def make() -> tuple[Wire, PortState]:
            return Wire(device, port.number), device.port(port.number)

        wire, state = await trio.to_thread.run_sync(make)
        psn = int.from_bytes(opening.entropy(3), "big")
        node = self._places.nodes.get(port.device) if self._memory_node is None else self._memory_node
        title = "rdma" if len(self._ports) == 1 else f"rdma by {port.device}"
        session = RdmaSession(
            opening.peer, opening.config, self.way(opening.match), wire, opening.control, key, opening.entropy,
            device.has_windows, self._locked, opening.on_closed, self.direct, self._places.gpus.get(port.device, ()), node, title,
        )  # fmt: skip
        return session, End(port.gid, wire.pair.number, psn, state.mtu, state.lid)

    async def _connect(self, session: RdmaSession, port: RdmaPort, own: End, theirs: End) -> None:
        path = Path(theirs.gid, theirs.qpn, theirs.psn, min(own.mtu, theirs.mtu), theirs.lid, port.number, port.gid_index)
        await trio.to_thread.run_sync(session.wire.connect, path, own.psn)
        self._sessions.add(session)

    # Beside the sessions

    async def run(self, changed: Callable[[], None]) -> None:
        """Looks at devices, ports and addresses, and listens to the devices, until cancelled.

        Args:
            changed: is called when there are others.
        """
        async with trio.open_nursery() as nursery:
            if has_devices(self._root):
                await trio.to_thread.run_sync(self.direct.find)
            nursery.start_soon(self._sweep)
            while True:
                self._again = trio.Event()
                for device in await self._look(changed):
                    nursery.start_soon(self._hear, device)
                with trio.move_on_after(LOOK_S):
                    await self._again.wait()

    async def _look(self, changed: Callable[[], None]) -> list[Device]:
        """Look once; returns the devices that were not open before."""
        before = self._found, self._absent
        opened: list[Device] = []
        absent, ports = NO_DEVICE, tuple[RdmaPort, ...]()
        if has_devices(self._root):
            try:
                absent, ports = await trio.to_thread.run_sync(self._look_at_ports, opened)
            except BindingAbsentError as error:
                absent = str(error)
            except ImportError:
                absent = "the Python package pyroute2 is not installed (pip install 'isochrone[rdma]')"
            except OSError as error:
                absent = f"the addresses of this host cannot be read: {error.strerror}"
        if ports != self._found:
            self._places = await trio.to_thread.run_sync(find_places, ports, self.direct.devices, self._root)
        self._found, self._absent = ports, absent
        if before != (ports, absent):
            changed()
        return opened

    async def _sweep(self) -> None:
        """Gives memory of GPUs back that nobody has any more."""
        while self.direct.devices:
            await trio.sleep(SWEEP_S)
            await trio.to_thread.run_sync(self.direct.sweep)

    def _look_at_ports(self, opened: list[Device]) -> tuple[str, tuple[RdmaPort, ...]]:
        """Why there is none, and the ports that can be used; in a worker thread.

        Raises:
            BindingAbsentError: there is no binding.
            ImportError: pyroute2 is not installed.
            OSError: addresses cannot be read.
        """
        found = read_ports(read_addresses(), self._only, self._root)
        unusable, ports = list(found.unusable), []
        if found.ports and self._binding is None:
            self._binding = load(self._cache)
        for port in found.ports:
            if port.device not in self._devices:
                try:
                    self._devices[port.device] = device = Device(self._binding, port.device)
                except VerbsError as error:
                    unusable.append(str(error.strerror))
                    continue
                opened.append(device)
            ports.append(port)
        self._unusable = tuple(unusable)
        return "" if ports else f"no RDMA port can be used: {'; '.join(unusable) or 'there is none'}", tuple(ports)

    async def _hear(self, device: Device) -> None:
        with suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(device.event_fd)
                for event in device.events():
                    self._take_event(device, event)

    def _take_event(self, device: Device, event: DeviceEvent) -> None:
        for session in list(self._sessions):
            wire = session.wire
            if wire.device is not device:
                continue
            if event.type in PAIR_EVENTS and event.qpn == wire.pair.number:
                session.close(f"the RDMA device has stopped the queue pair (event {event.type})")
            elif event.type == DEVICE_FATAL or (event.type == PORT_ERROR and event.port == wire.port):
                session.close("the RDMA port has gone down")
        self._again.set()


NO_DEVICE = "this host has no RDMA device"
"""What is said where the kernel lists none."""


def _check_subnet(port: RdmaPort, theirs: End) -> None:
    if not same_subnet(port.gid, theirs.gid, port.subnet_bits):
        raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer's RDMA address is in another subnet")


async def _discard(session: RdmaSession) -> None:
    """Give back what was made for a session of which nothing came."""
    session.closed = True
    session.wire.fail("the fabric was not opened")
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(session.discard)
