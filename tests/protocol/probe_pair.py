"""Two probe machines and the path between them."""

import heapq
import math
import random

from protocol.identity import PeerId
from protocol.probe import (
    KIND_ECHO,
    Output,
    Probe,
    ProbeConfig,
    SendDatagram,
)

CONFIG = ProbeConfig()
A, B = PeerId(b"node a"), PeerId(b"node b")


def drain(machine: Probe) -> list[Output]:
    outputs = []
    while (output := machine.next_output()) is not None:
        outputs.append(output)
    return outputs


def echo_of(probe: SendDatagram) -> bytes:
    return bytes([KIND_ECHO]) + probe.payload[1:]


class Pair:
    """Two nodes and the path between them; time jumps from one event to the next."""

    def __init__(self, rtt_s: float = 0.02, config: ProbeConfig = CONFIG, *, watched: bool = True) -> None:
        self.now = 100.0
        self.rtt_s = rtt_s
        self.cut = False
        self.loss = 0.0
        self.luck = random.Random(0)
        self.sent = 0
        self.nodes = {A: Probe(config, random.Random(1)), B: Probe(config, random.Random(2))}
        self.facts: dict[PeerId, list[tuple[float, Output]]] = {A: [], B: []}
        self._flying: list[tuple[float, int, PeerId, bytes]] = []
        for here, there in ((A, B), (B, A)):
            self.nodes[here].handle_connected(there, self.now)
            self.nodes[here].handle_watched(there, self.now, watched=watched)
            self.flush(here)

    def flush(self, here: PeerId) -> None:
        for output in drain(self.nodes[here]):
            if isinstance(output, SendDatagram):
                self.sent += 1
                lost = self.cut or self.luck.random() < self.loss
                if not lost:
                    heapq.heappush(self._flying, (self.now + self.rtt_s / 2, self.sent, output.peer, output.payload))
            else:
                self.facts[here].append((self.now, output))

    def run(self, until: float) -> None:
        while True:
            timers = {node: machine.next_timer() for node, machine in self.nodes.items()}
            due = min(timer for timer in timers.values() if timer is not None)
            arrives = self._flying[0][0] if self._flying else math.inf
            if min(due, arrives) > until:
                self.now = until
                return
            self.now = max(self.now, min(due, arrives))
            if arrives <= due:
                _, _, here, payload = heapq.heappop(self._flying)
                self.nodes[here].handle_datagram(A if here is B else B, payload, self.now, self.now)
            else:
                here = min(timers, key=lambda node: timers[node])
                self.nodes[here].handle_timer(self.now)
            self.flush(here)

    def facts_of(self, node: PeerId, kind: type) -> list[tuple[float, Output]]:
        return [(at, fact) for at, fact in self.facts[node] if isinstance(fact, kind)]
