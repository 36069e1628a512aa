"""Gossip machines with their tables, and a world of links on virtual time that joins them."""

import heapq
import random
from itertools import count

from record_strategies import CARD, IDENTITIES, LIFETIME_S, NETWORK, WALL_S

from protocol.gossip import (
    MESSAGE_BYTES_MAX,
    Equivocated,
    Gossip,
    GossipConfig,
    Misbehaved,
    RecordRefused,
    Send,
)
from protocol.gossip.messages import decode_message, encode_message
from protocol.identity import Identity
from protocol.records import kind_of, seal
from protocol.records.envelope import RECORD_DOMAIN
from protocol.table import PeerTable
from protocol.wire import PackingLimits, pack

CONFIG = GossipConfig()
WIDE = PackingLimits(size_bytes_max=1_000_000, depth_max=16, values_max=100_000)
NO_MESH = {"degree": 0, "degree_min": 0, "degree_max": 0, "degree_lazy": 0}
"""The settings of a node that pushes and announces nothing: what it hears it hears by comparison."""


def sealed(identity, payload=CARD, sequence=1, issued_s=WALL_S, network=NETWORK):
    return seal(identity, network, payload, sequence, issued_s, issued_s + LIFETIME_S[kind_of(payload)])


def signed_by_hand(kind, packed, identity=IDENTITIES[2]):
    """An envelope of any kind round any payload, good otherwise and valid for ten seconds."""
    issued_ms = int(WALL_S * 1000)
    signed = pack([NETWORK, kind, bytes(identity.peer_id), 1, issued_ms, issued_ms + 10_000, packed], WIDE)
    return identity.sign(RECORD_DOMAIN + signed) + signed


def crowd(number, start=1000):
    return [Identity.from_seed((start + index).to_bytes(32, "big")) for index in range(number)]


def drained(machine):
    outputs = []
    while (output := machine.next_output()) is not None:
        outputs.append(output)
    return outputs


def of(outputs, kind):
    return [output for output in outputs if isinstance(output, kind)]


def codes(outputs):
    return [output.code for output in of(outputs, (RecordRefused, Misbehaved))]


def told(outputs, kind=object):
    """Who is told which messages of a kind, in order."""
    messages = [(output.peer_id, decode_message(output.payload)) for output in of(outputs, Send)]
    return [(peer_id, message) for peer_id, message in messages if isinstance(message, kind)]


class Node:
    """One machine with its table, whose wall clock may be off."""

    def __init__(self, index, seed=0, config=CONFIG, table_config=None, clock_off_s=0.0):
        self.identity = IDENTITIES[index] if index < len(IDENTITIES) else Identity.from_seed(index.to_bytes(32, "big"))
        self.peer_id = self.identity.peer_id
        self.table = PeerTable(self.peer_id, table_config)
        self.gossip = Gossip(config, self.table, NETWORK, random.Random(f"{seed}/{index}"))
        self.sequence = 0
        self.clock_off_s = clock_off_s

    def publish(self, payload, now):
        self.sequence += 1
        self.gossip.publish(sealed(self.identity, payload, self.sequence, WALL_S + now + self.clock_off_s), now)

    def connect(self, *identities, now=0.0, far=True):
        """Connects peers that are not there, and returns what comes of it."""
        for identity in identities:
            self.gossip.handle_connected(identity.peer_id, now, far=far)
        return drained(self.gossip)

    def hear(self, identity, message, now=1.0):
        """Hears one message of a connected peer."""
        self.gossip.handle_message(identity.peer_id, encode_message(message), now, WALL_S + now)
        return drained(self.gossip)

    def beat_heart(self, now):
        """Lets the timers run until `now`, and returns what came of the last."""
        outputs = []
        while (due := self.gossip.next_timer()) is not None and due <= now:
            self.gossip.handle_timer(due, WALL_S + due)
            outputs += drained(self.gossip)
        return outputs


class World:
    """Machines joined by links with delay and loss, on virtual time. What goes one way over a link stays in order."""

    def __init__(self, nodes, seed=0, loss=0.0):
        self.nodes = {node.peer_id: node for node in nodes}
        self.luck = random.Random(f"world {seed}")
        self.loss = loss
        self.now = 0.0
        self.links = set()
        self.flying = []
        self.arrives = {}
        self.order = count()
        self.facts = []
        self.sent = 0

    def connect(self, one, other):
        self.links.add(frozenset((one.peer_id, other.peer_id)))
        for a, b in ((one, other), (other, one)):
            a.gossip.handle_connected(b.peer_id, self.now)
        self.drain(one, other)

    def disconnect(self, one, other):
        self.links.discard(frozenset((one.peer_id, other.peer_id)))
        for a, b in ((one, other), (other, one)):
            a.gossip.handle_disconnected(b.peer_id, self.now)
        self.drain(one, other)

    def publish(self, node, payload):
        node.publish(payload, self.now)
        self.drain(node)

    def drain(self, *touched):
        for node in touched:
            for output in drained(node.gossip):
                if isinstance(output, Send):
                    assert len(output.payload) <= MESSAGE_BYTES_MAX
                    self.sent += 1
                    if self.luck.random() >= self.loss:
                        way = (node.peer_id, output.peer_id)
                        at = self.arrives[way] = max(self.now + self.luck.uniform(0.001, 0.05), self.arrives.get(way, 0.0))
                        heapq.heappush(self.flying, (at, next(self.order), *way, output.payload))
                else:
                    self.facts.append((round(self.now, 6), node.peer_id, output))

    def run(self, until):
        while True:
            timers = [(at, peer_id) for peer_id, node in self.nodes.items() if (at := node.gossip.next_timer()) is not None]
            at = min([timer[0] for timer in timers] + [flight[0] for flight in self.flying[:1]], default=until)
            if at >= until:
                self.now = until
                return
            self.now = max(self.now, at)
            if self.flying and self.flying[0][0] == at:
                _, _, source, target, payload = heapq.heappop(self.flying)
                node = self.nodes[target]
                if frozenset((source, target)) in self.links:
                    node.gossip.handle_message(source, payload, at, WALL_S + at + node.clock_off_s)
            else:
                node = self.nodes[min(timers)[1]]
                node.gossip.handle_timer(self.now, WALL_S + self.now + node.clock_off_s)
            self.drain(node)

    def know_all(self, records):
        return all(node.table.compared == records for node in self.nodes.values())

    def accused(self):
        return [fact for fact in self.facts if isinstance(fact[2], Misbehaved | RecordRefused | Equivocated)]


def ring_with_chords(world, nodes, steps=(1, 3, 7)):
    for index, node in enumerate(nodes):
        for step in steps:
            other = nodes[(index + step) % len(nodes)]
            if frozenset((node.peer_id, other.peer_id)) not in world.links:
                world.connect(node, other)


def joined_world(size=20, loss=0.0, seed=0, **config):
    nodes = [Node(index, seed, config=GossipConfig(**config)) for index in range(size)]
    world = World(nodes, seed, loss)
    ring_with_chords(world, nodes)
    return world, nodes
