"""The link emulator over real UDP sockets; times are compared by order of magnitude and from below only."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mesh.testnet import link
from mesh.testnet.link import DATAGRAM_BYTES_MAX, IN_FLIGHT_MAX, Emulator, LinkSpec

Links = list[list[tuple[float, float, float]]]
RECEIVE_S_MAX = 10.0  # only a broken emulator needs it


def node_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    opened.settimeout(RECEIVE_S_MAX)
    return opened


class Mesh:
    """Nodes as bare sockets, with an emulator between them."""

    def __init__(self, links: Links, seed: int, in_flight_max: int) -> None:
        self.nodes = [node_socket() for _ in links]
        self.emulator = Emulator(
            LinkSpec([("127.0.0.1", 0)] * len(links), [node.getsockname() for node in self.nodes], links, seed), in_flight_max
        )
        self.announced = self.emulator.addresses

    def send(self, source: int, target: int, data: bytes) -> None:
        self.nodes[source].sendto(data, self.announced[target])

    def receive(self, target: int) -> tuple[bytes, object]:
        return self.nodes[target].recvfrom(65536)


@contextmanager
def mesh(links: Links, seed: int = 1, in_flight_max: int = IN_FLIGHT_MAX) -> Iterator[Mesh]:
    built = Mesh(links, seed, in_flight_max)
    stop, stopper = os.pipe()
    thread = threading.Thread(target=built.emulator.serve, args=(stop,))
    thread.start()
    try:
        yield built
    finally:
        os.close(stopper)
        thread.join()
        os.close(stop)
        built.emulator.close()
        for node in built.nodes:
            node.close()


def all_pairs(count: int, delay_s: float = 0.0, jitter_s: float = 0.0, loss: float = 0.0) -> Links:
    return [[(delay_s, jitter_s, loss)] * count for _ in range(count)]


def test_each_node_sees_the_others_at_their_announced_addresses() -> None:
    with mesh(all_pairs(3)) as net:
        for source in range(3):
            for target in range(3):
                net.send(source, target, bytes([source, target]))
                assert net.receive(target) == (bytes([source, target]), net.announced[source])


def test_answer_to_the_sender_comes_back_from_the_address_that_was_asked() -> None:
    with mesh(all_pairs(2)) as net:
        net.send(0, 1, b"ping")
        _, sender = net.receive(1)
        net.nodes[1].sendto(b"pong", sender)
        assert net.receive(0) == (b"pong", net.announced[1])


def test_nothing_arrives_before_its_delay_and_directions_differ() -> None:
    links = all_pairs(2)
    links[0][1] = (0.08, 0.0, 0.0)
    with mesh(links) as net:
        started = time.monotonic()
        net.send(0, 1, b"slow")
        net.receive(1)
        there_s = time.monotonic() - started
        assert there_s >= 0.0799
        started = time.monotonic()
        net.send(1, 0, b"fast")
        net.receive(0)
        # The way back has no delay; a machine would have to stall for the whole of it to fail here.
        assert time.monotonic() - started < RECEIVE_S_MAX


def test_near_path_overtakes_a_far_one() -> None:
    links = all_pairs(3)
    links[0][2] = (0.2, 0.0, 0.0)
    with mesh(links) as net:
        net.send(0, 2, b"far")
        net.send(1, 2, b"near")
        assert [net.receive(2)[0], net.receive(2)[0]] == [b"near", b"far"]


def test_path_keeps_its_order_under_jitter() -> None:
    with mesh(all_pairs(2, delay_s=0.01, jitter_s=0.01)) as net:
        for number in range(200):
            net.send(0, 1, number.to_bytes(2, "big"))
        assert [int.from_bytes(net.receive(1)[0], "big") for _ in range(200)] == list(range(200))


def test_share_of_losses_is_the_chosen_one() -> None:
    links = all_pairs(2)
    links[0][1] = (0.0, 0.0, 0.2)
    luck = random.Random(7)
    survivors = [number for number in range(3000) if luck.random() >= 0.2]
    assert 0.18 < 1 - len(survivors) / 3000 < 0.22
    with mesh(links, seed=7) as net:
        arrived = []
        for first in range(0, 3000, 100):  # few at a time, so that no socket's buffer overflows
            for number in range(first, first + 100):
                net.send(0, 1, number.to_bytes(2, "big"))
            expected = sum(first <= number < first + 100 for number in survivors)
            arrived += [int.from_bytes(net.receive(1)[0], "big") for _ in range(expected)]
        assert arrived == survivors
        assert net.emulator.counters.lost == 3000 - len(survivors)


def test_stranger_and_giant_are_dropped_and_counted() -> None:
    with mesh(all_pairs(2)) as net, node_socket() as stranger:
        stranger.sendto(b"hello", net.announced[1])
        net.send(0, 1, bytes(DATAGRAM_BYTES_MAX + 1))
        net.send(0, 1, bytes(DATAGRAM_BYTES_MAX))
        assert len(net.receive(1)[0]) == DATAGRAM_BYTES_MAX
        assert (net.emulator.counters.unknown, net.emulator.counters.dropped) == (1, 1)


def test_full_queue_drops_and_recovers() -> None:
    links = all_pairs(2)
    links[0][1] = (0.3, 0.0, 0.0)
    with mesh(links, in_flight_max=4) as net:
        for number in range(10):
            net.send(0, 1, bytes([number]))
        assert [net.receive(1)[0] for _ in range(4)] == [bytes([number]) for number in range(4)]
        net.send(1, 0, b"free again")
        assert net.receive(0)[0] == b"free again"
        assert net.emulator.counters.dropped == 6


def test_node_that_has_gone_disturbs_nobody() -> None:
    with mesh(all_pairs(3)) as net:
        net.nodes[1].close()
        for _ in range(20):
            net.send(0, 1, b"anyone?")
        net.send(0, 2, b"you")
        assert net.receive(2)[0] == b"you"


def test_taken_address_is_refused_and_leaves_no_socket_open() -> None:
    with node_socket() as taken, pytest.raises(OSError, match="in use"):
        Emulator(LinkSpec([("127.0.0.1", 0), taken.getsockname()], [("127.0.0.1", 1), ("127.0.0.1", 2)], all_pairs(2)))


def test_process_serves_until_its_stdin_ends_and_reports() -> None:
    with node_socket() as first, node_socket() as second, node_socket() as probe:
        spec = LinkSpec(
            [("127.0.0.1", 0), probe.getsockname()], [first.getsockname(), second.getsockname()], all_pairs(2, delay_s=0.001), 3
        )
        assert LinkSpec.from_json(spec.to_json()).links == spec.links
        probe.close()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", link.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(spec.to_json() + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == '{"ready": true}\n'
            first.sendto(b"through", spec.announced[1])
            assert second.recvfrom(100)[0] == b"through"
            process.stdin.close()
            report = process.stdout.read()
        assert process.returncode == 0
        assert '"forwarded": 1,' in report
