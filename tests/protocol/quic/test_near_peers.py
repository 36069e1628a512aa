"""Large datagrams between peers on one machine: who sends them, and what comes of a path that does not carry them."""

import pytest
from quic_pair import Pair

from protocol.conduct import Allowance
from protocol.quic.events import EndpointConfig

COMBOS = ["qq", "aq", "qa", "aa"]
NEAR_BYTES = EndpointConfig().engine.near_datagram_bytes_max
ETHERNET_BYTES = 1472
MIB = 1024 * 1024
FULL_BYTES = NEAR_BYTES - 64
"""What a full packet has at least: the library leaves so much room for other frames."""


def near(address):
    """What the kernel says of an address of this machine."""
    return 65_487


def both_ways(pair: Pair, n_bytes: int = MIB) -> int:
    """Transfer as much each way, see that it arrived, and return the largest datagram of the way with the smaller ones."""
    pair.connect()
    pair.sizes.clear()
    largest = []
    for sender, receiver in ((pair.dialler, pair.listener), (pair.listener, pair.dialler)):
        n_before = len(pair.sizes)
        stream = pair.open(sender)
        data = pair.luck.randbytes(n_bytes)
        pair.write(sender, stream, data, end=True)
        pair.run(30.0, until=lambda stream=stream, receiver=receiver: stream in receiver.ended)
        assert receiver.received[stream] == data
        largest.append(max(pair.sizes[n_before:]))
    return min(largest)


def test_a_megabyte_between_compiled_engines_of_one_machine_takes_few_datagrams() -> None:
    pair = Pair("qq", path_bytes=near)
    assert FULL_BYTES <= both_ways(pair) <= max(pair.sizes) <= NEAR_BYTES
    assert sum(size > NEAR_BYTES // 2 for size in pair.sizes) <= 2 * (MIB // NEAR_BYTES + 2)


@pytest.mark.parametrize("engines", COMBOS)
def test_no_large_datagram_goes_where_it_was_not_asked_for(engines: str) -> None:
    """Another machine is sent none, and neither is the engine that announces nothing and could not decrypt one."""
    far = Pair(engines)
    both_ways(far)
    assert max(far.sizes) <= ETHERNET_BYTES
    if engines != "qq":
        beside = Pair(engines, path_bytes=near)
        both_ways(beside)
        assert max(beside.sizes) <= ETHERNET_BYTES


def test_a_path_that_is_known_to_carry_less_is_sent_no_more() -> None:
    pair = Pair("qq", path_bytes=lambda address: NEAR_BYTES - 1)
    both_ways(pair)
    assert max(pair.sizes) <= ETHERNET_BYTES


def test_a_path_that_carries_no_large_datagram_is_found_in_the_handshake() -> None:
    """As where a program on this machine passes datagrams on to somewhere else."""
    pair = Pair("qq", path_bytes=near)
    pair.carries_bytes = ETHERNET_BYTES
    started = pair.now
    both_ways(pair)
    assert max(pair.sizes) <= ETHERNET_BYTES
    assert pair.now - started < 5.0


def test_a_listener_sends_no_large_datagram_before_it_has_seen_one() -> None:
    pair = Pair("qq", path_bytes=near)
    pair.dialler.endpoint._path_bytes = None  # a dialler that does not try
    both_ways(pair)
    assert max(pair.sizes) <= ETHERNET_BYTES


def test_a_retry_keeps_what_the_path_has_shown() -> None:
    config = EndpointConfig(unproven=Allowance(0.0, 0.0))
    pair = Pair("qq", path_bytes=near, config=config)
    assert FULL_BYTES <= both_ways(pair) <= NEAR_BYTES
    assert pair.listener.endpoint.counters.retries == 1


@pytest.mark.parametrize("engines", ["qq", "aa"])
def test_stream_bytes_that_wait_for_the_peer_are_known_to_wait(engines: str) -> None:
    pair = Pair(engines)
    pair.connect()
    stream = pair.open()
    endpoint = pair.dialler.endpoint
    endpoint.send(pair.dialler.established, stream, bytes(1000))
    pair.pump()
    endpoint.send(pair.dialler.established, stream, b"")
    assert not endpoint.has_unsent  # all is on its way, though nothing is acknowledged
    endpoint.send(pair.dialler.established, stream, bytes(256 * 1024))
    endpoint.flush(pair.now)
    endpoint.send(pair.dialler.established, stream, b"")
    assert endpoint.has_unsent  # the rest waits for the congestion window
    pair.run(5.0)
    endpoint.send(pair.dialler.established, stream, b"")
    assert not endpoint.has_unsent


def test_small_messages_wait_for_no_pace_that_is_meant_for_large_datagrams() -> None:
    """Each there and back takes what the path does, from the first on."""
    pair = Pair("qq", path_bytes=near)
    pair.connect()
    stream = pair.open()
    pair.run(1.0)
    for number in range(1, 21):
        began = pair.now
        for sender, receiver in ((pair.dialler, pair.listener), (pair.listener, pair.dialler)):
            pair.write(sender, stream, bytes(32))
            pair.run(1.0, until=lambda receiver=receiver, number=number: len(receiver.received.get(stream, b"")) >= 32 * number)
        assert pair.now - began < 2 * pair.delay_s + 0.003, number
        pair.run(0.002)
