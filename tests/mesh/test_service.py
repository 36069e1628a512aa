"""The service's small decisions."""

from mesh.service import can_bind, worth_telling
from protocol.multiaddr import parse_multiaddr

LOOPBACK, LOOPBACK6 = parse_multiaddr("/ip4/127.0.0.1/udp/4001/quic-v1"), parse_multiaddr("/ip6/::1/udp/4001/quic-v1")
LAN, NAME = parse_multiaddr("/ip4/192.0.2.7/udp/4001/quic-v1"), parse_multiaddr("/dns/node.example/udp/4001/quic-v1")


def test_loopback_is_told_only_where_there_is_no_other_address() -> None:
    assert worth_telling((LOOPBACK, LAN, LOOPBACK6, NAME)) == (LAN, NAME)
    assert worth_telling((LOOPBACK, LOOPBACK6)) == (LOOPBACK, LOOPBACK6)


def test_an_address_of_nobody_here_cannot_be_bound() -> None:
    assert can_bind(LOOPBACK.with_port(0))
    assert not can_bind(LAN.with_port(0))
