"""Routers joined by links on virtual time; each accepts what its judge says, everything by default."""

import heapq
import random
from itertools import count

from protocol.identity import Identity
from protocol.pubsub import (
    Judgement,
    PeerSubscribed,
    PubsubConfig,
    PubsubMisbehaved,
    PubsubRouter,
    ScoreConfig,
    TopicScoreConfig,
    Version,
)
from protocol.pubsub.config import MessageCame, SendRpc
from protocol.pubsub.messages import Rpc, decode_rpc, encode_rpc

TOPIC = "isochrone/test/cards"
SCORED = ScoreConfig(topics=((TOPIC, TopicScoreConfig()),))
CONFIG = PubsubConfig(score=SCORED)
IDENTITIES = [Identity.from_seed((7000 + number).to_bytes(32, "big")) for number in range(64)]


def drained(router):
    outputs = []
    while (output := router.next_output()) is not None:
        outputs.append(output)
    return outputs


def rpcs_to(outputs, peer_id):
    """All of what a peer is sent, as one RPC."""
    found = [decode_rpc(output.payload) for output in outputs if isinstance(output, SendRpc) and output.peer_id == peer_id]
    return Rpc(*(tuple(item for rpc in found for item in getattr(rpc, name)) for name in Rpc.__slots__))


class World:
    """Routers, links of random delay, and what everybody got."""

    def __init__(self, size, seed=0, config=CONFIG, loss=0.0, version=Version.V12):
        self.luck = random.Random(seed)
        self.now = 0.0
        self.loss = loss
        self.version = version
        self.routers = {}
        self.got = {}  # by peer: ids in the order in which they were accepted
        self.judge = lambda peer_id, message: Judgement.ACCEPT
        self.copies = 0
        self.links = set()
        self.misbehaved = []
        self._queue, self._order = [], count()
        for identity in IDENTITIES[:size]:
            router = self.routers[identity.peer_id] = PubsubRouter(config, identity.peer_id, random.Random(self.luck.random()))
            self.got[identity.peer_id] = []
            router.join(TOPIC, 0.0)
        self.peers = list(self.routers)

    def connect(self, one, other):
        if one == other or {(one, other), (other, one)} & self.links:
            return
        self.links.add((one, other))
        self.routers[one].handle_connected(other, self.version, None, self.now, is_dialled=True)
        self.routers[other].handle_connected(one, self.version, None, self.now, is_dialled=False)
        self.settle(one)
        self.settle(other)

    def disconnect(self, one, other):
        self.links -= {(one, other), (other, one)}
        for here, there in ((one, other), (other, one)):
            self.routers[here].handle_disconnected(there, self.now)
            self.settle(here)

    def connect_at_random(self, each):
        for one in self.peers:
            for other in self.luck.sample([peer for peer in self.peers if peer != one], each):
                self.connect(one, other)

    def publish(self, one, message, own=True):
        self.got[one].append(message.id)
        self.routers[one].publish(message, self.now, own=own)
        self.settle(one)

    def say(self, one, other, rpc):
        """Has one peer told something by another that its own router has not said."""
        self.routers[other].handle_rpc(one, encode_rpc(rpc), self.now)
        self.settle(other)

    def settle(self, peer_id):
        for output in drained(self.routers[peer_id]):
            match output:
                case SendRpc(other, payload):
                    self.copies += len(decode_rpc(payload).messages)
                    if self.luck.random() >= self.loss:
                        due = self.now + self.luck.uniform(0.001, 0.1)
                        heapq.heappush(self._queue, (due, next(self._order), peer_id, other, payload))
                case MessageCame(other, message):
                    judgement = self.judge(peer_id, message)
                    if judgement is Judgement.ACCEPT:
                        self.got[peer_id].append(message.id)
                    self.routers[peer_id].handle_judged(other, message, judgement, self.now)
                    self.settle(peer_id)
                case PubsubMisbehaved():
                    self.misbehaved.append(output)
                case PeerSubscribed(other, topic):
                    assert (topic, other in self.routers[peer_id].subscribers(TOPIC)) == (TOPIC, True)

    def run(self, seconds):
        until = self.now + seconds
        while True:
            timers = [(due, peer) for peer, router in self.routers.items() if (due := router.next_timer()) is not None]
            due_timer = min(timers, default=(until, None))
            due = min(due_timer[0], self._queue[0][0] if self._queue else until)
            if due >= until:
                self.now = until
                return
            self.now = due
            if self._queue and self._queue[0][0] <= due:
                _, _, one, other, payload = heapq.heappop(self._queue)
                if {(one, other), (other, one)} & self.links:
                    self.routers[other].handle_rpc(one, payload, self.now)
                    self.settle(other)
            else:
                self.routers[due_timer[1]].handle_timer(self.now)
                self.settle(due_timer[1])
