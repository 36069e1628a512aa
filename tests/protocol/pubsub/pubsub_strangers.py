"""A node of the mesh and strangers at it, without a transport: what the shell would carry is carried here."""

import random

from pubsub_world import rpcs_to

from protocol.identity import Identity
from protocol.node import Node, NodeConfig, RecordSealed, ReserveSequences
from protocol.node.strangers import StrangersConfig
from protocol.pubsub import SendRpc, Version
from protocol.pubsub.messages import Rpc, Subscription, encode_rpc
from protocol.records import Card, Hardware, Sequencer, seal

WALL_S = 1_800_000_000.0
NETWORK = "isochrone"
TOPIC = "isochrone/isochrone/cards"
STRANGERS = [Identity.from_seed((9000 + number).to_bytes(32, "big")) for number in range(80)]
MEMBERS = [Identity.from_seed((9900 + number).to_bytes(32, "big")) for number in range(30)]
HARDWARE = Hardware("virtual", 1, 8_000_000_000, 1)
CARD = Card((), HARDWARE, (), None, "test/1")


def card_of(identity, sequence=1, network=NETWORK, issued_s=WALL_S, lifetime_s=600.0, payload=CARD):
    return seal(identity, network, payload, sequence, issued_s, issued_s + lifetime_s)


class Host:
    """One node that runs, and what came out of it."""

    def __init__(self, number=0, strangers=None):
        self.identity = Identity.from_seed((9990 + number).to_bytes(32, "big"))
        config = NodeConfig(strangers=strangers or StrangersConfig())
        self.node = Node(config, self.identity, random.Random(number), Sequencer(1000))
        self.peer_id = self.identity.peer_id
        self.now = 1.0
        self.outputs = []
        self.node.start((), HARDWARE, (), WALL_S, self.now)
        self.drain()

    def drain(self):
        """What came out since the last time."""
        found = []
        while (output := self.node.next_output()) is not None:
            found.append(output)
            if isinstance(output, ReserveSequences):
                self.node.handle_reserved(output.upto, self.now)
        self.outputs += found
        return found

    def meet(self, identity, version=Version.V12, host=None, subscribes=True):
        """A stranger connects, and subscribes."""
        host = host or f"192.0.2.{STRANGERS.index(identity)}"
        served = self.node.strangers.handle_connected(identity.peer_id, version, host, self.now, is_dialled=False)
        found = self.drain()
        if served and subscribes:
            found += self.hear(identity, Rpc(subscriptions=(Subscription(TOPIC),)))
        return found

    def hear(self, identity, rpc):
        self.node.strangers.handle_rpc(identity.peer_id, encode_rpc(rpc), self.now)
        return self.drain()

    def pass_time(self, seconds):
        until, found = self.now + seconds, []
        while (due := self.node.next_timer()) <= until:
            self.now = max(self.now, due)
            self.node.handle_timer(self.now)
            found += self.drain()
        self.now = until
        return found

    def sealed(self):
        return [output.record for output in self.outputs if isinstance(output, RecordSealed)]

    def score(self, identity):
        return self.node.strangers.router.scores.score(identity.peer_id)


def messages_to(outputs, identity):
    return rpcs_to([output for output in outputs if isinstance(output, SendRpc)], identity.peer_id).messages
