"""Processes of another version in the mesh: N-1, which lacks the newest messages, and N+1, which says more than this one knows.

Both mean well: they must be believed what this version understands, and nobody may blame them. Each is a restart with the same
key, as in a rolling upgrade, and ends with another one.
"""

from dataclasses import replace
from random import Random

from protocol import gossip, probe
from protocol.encoding import Luck
from protocol.errors import RemoteProtocolError
from protocol.gossip.messages import STAMPED_MAX
from protocol.identity import Identity, PeerId
from protocol.multiaddr import Multiaddr
from protocol.node import Node, NodeConfig, Output
from protocol.probe import KIND_ECHO
from protocol.records import Hardware, ModelOffer, Sequencer
from protocol.wire import PackingLimits, Plain, pack, unpack
from sim.process import MakeNode, Process
from sim.world import World

OLD_MESSAGE_TYPES_MAX = 4
"""Largest message type of version N-1: records, digest, entries and want."""

OLD_DATAGRAM_KIND_MAX = bytes((KIND_ECHO,))
"""Largest kind of datagram of version N-1: it has probes and echoes, and nothing of three legs."""

NEW_MESSAGE_TYPE = 100
"""A message type that only version N+1 knows."""

NEW_DATAGRAM = b"\x64" + bytes(20)
"""A datagram of a kind that only version N+1 knows."""

NEW_SHARE = 0.1
"""Share of the messages after which version N+1 says something new, unitless."""

_LIMITS = PackingLimits(size_bytes_max=2 * gossip.MESSAGE_BYTES_MAX, depth_max=8, values_max=10_000)


class OldNode(Node):
    """A core of version N-1: it neither knows nor sends the newest types of message."""

    def handle_message(self, peer_id: PeerId, payload: bytes, now: float) -> None:
        """Takes a message of a type it knows."""
        if _type_of(payload) <= OLD_MESSAGE_TYPES_MAX:
            super().handle_message(peer_id, payload, now)

    def handle_datagram(self, peer_id: PeerId, payload: bytes, received_at: float, now: float) -> None:
        """Takes a datagram of a kind it knows."""
        if payload[:1] <= OLD_DATAGRAM_KIND_MAX:
            super().handle_datagram(peer_id, payload, received_at, now)

    def next_output(self) -> Output | None:
        """The next thing to do that this version can do."""
        while (output := super().next_output()) is not None:
            if not isinstance(output, gossip.Send) or _type_of(output.payload) <= OLD_MESSAGE_TYPES_MAX:
                return output
        return None


class NewNode(Node):
    """A core of version N+1: its messages, cards and datagrams hold more, and some are of new types."""

    def __init__(self, config: NodeConfig, identity: Identity, luck: Luck, sequencer: Sequencer) -> None:
        super().__init__(config, identity, luck, sequencer)
        self._luck_of_new = luck
        self._new: list[Output] = []

    def start(
        self, addresses: tuple[Multiaddr, ...], hardware: Hardware, offers: tuple[ModelOffer, ...], wall_s: float, now: float
    ) -> None:
        """Begins with hardware and models of which more is said than this version reads."""
        newer = tuple(replace(offer, extra={"speculative": True}) for offer in offers)
        super().start(addresses, replace(hardware, extra={"npu": "one"}), newer, wall_s, now)

    def next_output(self) -> Output | None:
        """The next thing to do, with additions."""
        if self._new:
            return self._new.pop()
        output = super().next_output()
        new = self._luck_of_new.random() < NEW_SHARE
        match output:
            case gossip.Send(peer_id, payload):
                value = unpack(payload, _LIMITS)
                assert isinstance(value, list)
                if new:
                    self._new.append(gossip.Send(peer_id, pack([NEW_MESSAGE_TYPE, {"new": [1, 2]}, b"x"], _LIMITS)))
                whole = _whole(value)
                longer = payload if whole is None else pack([*whole, "new"], _LIMITS)
                return gossip.Send(peer_id, longer if len(longer) <= gossip.MESSAGE_BYTES_MAX else payload)
            case probe.SendDatagram(peer_id, _) if new:
                self._new.append(probe.SendDatagram(peer_id, NEW_DATAGRAM))
                return output
            case _:
                return output


class OtherVersion:
    """A process is restarted as another version, and as this one when the fault ends."""

    def __init__(self, process: Process, make_node: MakeNode, name: str) -> None:
        self.process = process
        self.make_node = make_node
        self.name = name

    def __str__(self) -> str:
        return f"n{self.process.index} of version {self.name}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        self._restart(world, self.make_node)

    def end(self, world: World) -> None:
        """See `Fault`."""
        self._restart(world, None)

    def _restart(self, world: World, make_node: MakeNode | None) -> None:
        self.process.make_node = make_node
        if self.process.running:
            world.kill(self.process)
            world.start(self.process)


def old_version(luck: Random, world: World) -> OtherVersion:
    """Version N-1 beside N."""
    return OtherVersion(luck.choice(world.processes), OldNode, "N-1")


def new_version(luck: Random, world: World) -> OtherVersion:
    """Version N+1 beside N."""
    return OtherVersion(luck.choice(world.processes), NewNode, "N+1")


def _whole(value: list[Plain]) -> list[Plain] | None:
    """A message with everything that this version knows of it, behind which there may be more; None where there is no room."""
    if len(value) == 2 and value[0] == 1 and isinstance(value[1], list):
        return [*value, [None] * len(value[1])] if len(value[1]) <= STAMPED_MAX else None  # the stamps of records
    return value


def _type_of(payload: bytes) -> int:
    """The type of a gossip message; what does not decode counts as known, for an older version to complain of."""
    try:
        value = unpack(payload, _LIMITS)
    except RemoteProtocolError:
        return 0
    return value[0] if isinstance(value, list) and value and isinstance(value[0], int) else 0
