"""One node's core, and what it is told of others: cards with places, and round trips that its probes take."""

import random
from collections.abc import Sequence

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.identity import Identity, PeerId
from protocol.inference import Feature
from protocol.multiaddr import parse_multiaddr
from protocol.node import Node, NodeConfig
from protocol.node.views import Nearest
from protocol.probe import KIND_ECHO, SendDatagram
from protocol.records import Card, Hardware, ModelOffer, Sequencer, seal

WALL_S = 1_700_000_000.0
ADDRESS = parse_multiaddr("/ip4/192.0.2.1/udp/1000/quic-v1")
HERE = Coordinate((0.0,) * DIMENSIONS, 0.0, 0.1)


def distant(seconds: float) -> Coordinate:
    return Coordinate((seconds, *(0.0,) * (DIMENSIONS - 1)), 0.0, 0.1)


class Knowing:
    """One node, and what it is told of others."""

    def __init__(self) -> None:
        self.node = Node(NodeConfig(), Identity.from_seed(bytes(32)), random.Random(1), Sequencer(0))
        self.count = 0

    def card(self, seconds: float | None, models: Sequence[str] = (), **hardware: object) -> PeerId:
        """The card of a new peer that says it is so far away, or nothing of where it is; `hardware` is told besides."""
        self.count += 1
        identity = Identity.from_seed(self.count.to_bytes(32, "big"))
        offers = tuple(ModelOffer(model, frozenset({Feature.CHAT})) for model in models)
        card = Card((), Hardware("cpu", 1, 1, 1, extra=hardware), offers, None if seconds is None else distant(seconds), "")
        record = seal(identity, self.node.config.network_id, card, 1, WALL_S, WALL_S + 600.0)
        self.node.table.offer(record, 0.0, WALL_S)
        self.node.membership.handle_card(identity.peer_id, (ADDRESS,), 0.0)
        return identity.peer_id

    def measure(self, peer_id: PeerId, rtt_s: float) -> None:
        """Lets a peer connect and its first probe come back after so long."""
        self.node.probe.handle_connected(peer_id, 0.0)
        while (output := self.node.probe.next_output()) is not None:
            if isinstance(output, SendDatagram):
                self.node.probe.handle_datagram(peer_id, bytes((KIND_ECHO,)) + output.payload[1:], rtt_s, rtt_s)

    def nearest(self, count: int) -> Nearest:
        return self.node.views.nearest(HERE, count, 1.0)
