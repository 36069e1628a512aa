"""What peers may use of fabrics."""

from protocol.errors import ErrorCode
from protocol.fabric.peers import FabricPeers
from protocol.fabric.values import FabricConfig
from protocol.identity import PeerId

ONE, OTHER = PeerId(b"one"), PeerId(b"other")


def test_the_first_error_closes_a_fabric_for_a_while_and_each_further_one_for_longer():
    config = FabricConfig()
    peers = FabricPeers(config)
    assert peers.is_open(ONE, 0.0)
    assert peers.handle_error(ONE, "it tore", 0.0) == 30.0
    assert not peers.is_open(ONE, 29.9)
    assert peers.why_closed(ONE, 29.9) == "it tore"
    assert peers.charge_offer(ONE, 29.9) is ErrorCode.FABRIC_FAILED
    assert peers.is_open(OTHER, 1.0), "nobody else pays for it"
    assert peers.is_open(ONE, 30.0)
    assert peers.why_closed(ONE, 30.0) == ""
    assert peers.charge_offer(ONE, 30.0) is None
    assert [peers.handle_error(ONE, "", 30.0) for _ in range(6)] == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    peers.handle_success(ONE)
    assert peers.handle_error(ONE, "", 0.0) == 30.0


def test_errors_without_end_are_counted_to_an_end():
    peers = FabricPeers(FabricConfig())
    assert [peers.handle_error(ONE, "", 0.0) for _ in range(5000)][-1] == 600.0


def test_offers_are_charged_before_anything_is_done_for_them():
    config = FabricConfig(offers_per_s=1.0, offers_burst=2.0, offers_debt_max=1.0)
    peers = FabricPeers(config)
    assert [peers.charge_offer(ONE, 0.0) for _ in range(4)] == [None, None, ErrorCode.OVERLOADED, ErrorCode.FLOODING]
    assert peers.charge_offer(OTHER, 0.0) is None
    assert peers.charge_offer(ONE, 3.0) is None


def test_so_many_peers_are_remembered_and_who_was_used_the_longest_ago_is_forgotten():
    peers = FabricPeers(FabricConfig(peers_max=2))
    peers.handle_error(ONE, "", 0.0)
    peers.charge_offer(OTHER, 0.0)
    peers.charge_offer(ONE, 0.0)
    peers.charge_offer(PeerId(b"third"), 0.0)
    assert len(peers) == 2
    assert not peers.is_open(ONE, 1.0)
