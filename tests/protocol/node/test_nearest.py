"""Whom a node takes for its nearest peers: by measurement first, and by places where nothing was measured."""

import random

import pytest

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.identity import Identity, PeerId
from protocol.node import Node, NodeConfig
from protocol.node.views import ESTIMATE_MARGIN
from protocol.probe import KIND_ECHO, SendDatagram
from protocol.records import Card, Hardware, Sequencer, seal

WALL_S = 1_700_000_000.0
HERE = Coordinate((0.0,) * DIMENSIONS, 0.0, 0.1)


def distant(seconds: float) -> Coordinate:
    return Coordinate((seconds, *(0.0,) * (DIMENSIONS - 1)), 0.0, 0.1)


class Knowing:
    """One node, and what it is told of others."""

    def __init__(self) -> None:
        self.node = Node(NodeConfig(), Identity.from_seed(bytes(32)), random.Random(1), Sequencer(0))
        self.count = 0

    def card(self, seconds: float) -> PeerId:
        """The card of a new peer that says it is so far away."""
        self.count += 1
        identity = Identity.from_seed(self.count.to_bytes(32, "big"))
        card = Card((), Hardware("cpu", 1, 1, 1), (), distant(seconds), "")
        record = seal(identity, self.node.config.network_id, card, 1, WALL_S, WALL_S + 600.0)
        self.node.table.offer(record, 0.0, WALL_S)
        return identity.peer_id

    def measure(self, peer_id: PeerId, rtt_s: float) -> None:
        """Lets a peer connect and its first probe come back after so long."""
        self.node.probe.handle_connected(peer_id, 0.0)
        while (output := self.node.probe.next_output()) is not None:
            if isinstance(output, SendDatagram):
                self.node.probe.handle_datagram(peer_id, bytes((KIND_ECHO,)) + output.payload[1:], rtt_s, rtt_s)

    def nearest(self, count: int) -> list[PeerId]:
        return self.node.views.nearest(HERE, count, 1.0)[0]


def test_an_estimate_has_to_be_shorter_than_a_measurement_by_a_margin() -> None:
    knowing = Knowing()
    measured = [knowing.card(0.5) for _ in range(3)]
    for number, peer_id in enumerate(measured):
        knowing.measure(peer_id, 0.010 + number / 1000)
    hardly = knowing.card(0.0119 / 1.1)
    assert knowing.nearest(3) == measured  # the farthest of them 12 ms away
    clearly = knowing.card(0.009 / ESTIMATE_MARGIN)
    assert knowing.nearest(3) == [clearly, *measured[:2]]
    assert hardly not in knowing.nearest(4)


def test_who_was_measured_and_let_go_does_not_seem_near_again() -> None:
    knowing = Knowing()
    seeming, honest = knowing.card(0.001), knowing.card(0.020)
    assert knowing.nearest(1) == [seeming]
    knowing.measure(seeming, 0.040)
    assert knowing.nearest(1) == [honest]
    knowing.node.probe.handle_disconnected(seeming, 0.5)
    assert knowing.nearest(1) == [honest]


def test_the_farthest_of_the_nearest_says_who_is_as_near() -> None:
    knowing = Knowing()
    for number in range(3):
        knowing.measure(knowing.card(0.5), 0.010 + number / 100)
    assert knowing.node.views.nearest(HERE, 2, 1.0)[1] == pytest.approx(0.020)
    assert knowing.node.views.nearest(HERE, 4, 1.0)[1] == float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_are_those_of_the_shortest_measurements_and_estimates(seed: int) -> None:
    luck, knowing = random.Random(seed), Knowing()
    expected: dict[PeerId, float] = {}
    for _ in range(60):
        seconds = luck.uniform(0.1, 0.3)
        peer_id = knowing.card(seconds)
        expected[peer_id] = ESTIMATE_MARGIN * seconds
        if luck.random() < 0.4:
            expected[peer_id] = luck.uniform(0.001, 0.25)
            knowing.node.handle_connected(peer_id, 0.0)
            knowing.measure(peer_id, expected[peer_id])
            if luck.random() < 0.5:  # the echo has told another place
                knowing.node._places[peer_id] = distant(luck.uniform(0.001, 0.3))
    for count in (1, 10, 60):
        assert knowing.nearest(count) == sorted(expected, key=lambda peer_id: expected[peer_id])[:count]
