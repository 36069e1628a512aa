"""The tree of a machine with two NUMA nodes, a switch and an expander, as a real kernel shows it."""

import json
from dataclasses import replace

import pytest
from guests import Machine, booted

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

DEVICES = """
    -object memory-backend-ram,id=near,size=1G -object memory-backend-ram,id=far,size=1G
    -numa node,nodeid=0,cpus=0,memdev=near -numa node,nodeid=1,cpus=1,memdev=far -numa dist,src=0,dst=1,val=21
    -netdev hubport,id=first,hubid=0 -netdev hubport,id=second,hubid=0 -netdev hubport,id=third,hubid=0
    -device pxb-pcie,id=own,bus_nr=32,bus=pcie.0,numa_node=0
    -device pcie-root-port,id=port0,bus=own,chassis=1,slot=1,x-speed=8,x-width=4
    -device x3130-upstream,id=switch,bus=port0
    -device xio3130-downstream,id=below0,bus=switch,chassis=2,slot=0
    -device xio3130-downstream,id=below1,bus=switch,chassis=3,slot=1
    -device virtio-net-pci,netdev=first,bus=below0 -device virtio-net-pci,netdev=second,bus=below1
    -device pxb-pcie,id=expander,bus_nr=64,bus=pcie.0,numa_node=1
    -device pcie-root-port,id=away,bus=expander,chassis=4,slot=2,x-speed=16,x-width=16
    -device virtio-net-pci,netdev=third,bus=away
"""
"""Two network devices below a switch on the first node, one on the second."""


def test_tree_of_a_machine_with_two_nodes_and_a_switch(can_boot):
    with booted(replace(Machine(), devices=tuple(DEVICES.split()))) as guest:
        guest.shell("modprobe virtio_net; for name in /sys/class/net/e*; do ip link set ${name##*/} up; done")
        told = json.loads(guest.python("node.py", "hardware", "--json").output.splitlines()[-1])["buses"]
        picture = guest.python("node.py", "hardware", "--interval", "0").output
    functions = {function["address"]: function for function in told["functions"]}
    network = [functions[device["address"]] for device in told["devices"] if device["kind"] == "nic"]
    assert len(network) == 3
    first, second, third = sorted(network, key=lambda function: function["address"])
    assert first["above"][:2] == second["above"][:2]
    assert first["above"][2] != second["above"][2]
    assert first["root"] != third["root"]
    assert (first["numa_node"], third["numa_node"]) == (0, 1)
    slow = {"gts": 2.5, "lanes": 1}
    assert third["link"] == {"now": slow, "able": slow, "port": {"gts": 16.0, "lanes": 16}}
    assert functions[first["above"][1]]["link"]["port"] == {"gts": 8.0, "lanes": 4}
    assert first["narrowest"]["bytes_per_s"] == 0.25e9
    assert first["load"]["up_bytes_per_s"] >= 0.0
    assert told["numa_distances"] == {"0": [10, 21], "1": [21, 10]}
    assert told["warnings"] == []
    assert "switch shared by 2" in picture
    assert "NUMA distance" in picture
