"""What a node takes from its machine."""

import sys

import pytest

from mesh.machine import read_path_bytes
from protocol.quic.seam import EngineConfig


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the MTU of a route")
@pytest.mark.parametrize("address", [("127.0.0.1", 4001), ("127.0.0.2", 4001), ("::1", 4001, 0, 0)])
def test_a_path_within_this_machine_carries_large_datagrams(address: tuple[str, int]) -> None:
    path_bytes = read_path_bytes(address)
    if not path_bytes:
        pytest.skip("no such address here")
    assert EngineConfig().near_datagram_bytes_max <= path_bytes <= 65_507


@pytest.mark.parametrize("address", [("198.51.100.1", 4001), ("2001:db8::1", 4001, 0, 0)])
def test_nothing_is_known_of_a_path_that_leads_out_of_this_machine(address: tuple[str, int]) -> None:
    assert read_path_bytes(address) == 0
