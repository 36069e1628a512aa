"""Where ports and GPUs are, and what leads to them: over trees of files as the kernel writes them."""

from dataclasses import replace
from pathlib import Path

import pytest
from bus_trees import GPU, NIC, BusTree
from emulated_gpu import emulated

from mesh.fabric.rdma import places
from mesh.fabric.rdma.places import Places, find_places
from mesh.fabric.rdma.ports import RdmaPort


def port(device: str, speed_mbps: int) -> RdmaPort:
    return RdmaPort(device, 1, bytes(15) + b"\x01", 0, 64, speed_mbps, "eth0")


def tree(folder: Path) -> BusTree:
    """A card behind one lane of the first generation, one behind sixteen of the fourth with the GPU, one on the other socket."""
    made = BusTree(folder)
    for node, distances in ((0, "10 21"), (1, "21 10")):
        (folder / f"sys/devices/system/node/node{node}").mkdir(parents=True)
        (folder / f"sys/devices/system/node/node{node}/distance").write_text(distances)
    for path, kind, link, node in (
        ("pci0000:00/0000:00:01.0", 0x060400, "", 0),
        ("pci0000:00/0000:00:01.0/0000:02:00.0", NIC, "1x1", 0),
        ("pci0000:10/0000:10:01.0", 0x060400, "", 0),
        ("pci0000:10/0000:10:01.0/0000:11:00.0", 0x060400, "4x16", 0),
        ("pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:00.0", 0x060400, "", 0),
        ("pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:00.0/0000:13:00.0", NIC, "4x16", 0),
        ("pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:01.0", 0x060400, "", 0),
        ("pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:01.0/0000:1a:00.0", GPU, "4x16", 0),
        ("pci0000:80/0000:80:01.0", 0x060400, "", 1),
        ("pci0000:80/0000:80:01.0/0000:81:00.0", NIC, "4x16", 1),
    ):
        made.function(path, kind, link, node=node)
    made.network("pci0000:00/0000:00:01.0/0000:02:00.0", "eth0", rdma="narrow")
    made.network("pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:00.0/0000:13:00.0", "eth1", rdma="beside")
    made.network("pci0000:80/0000:80:01.0/0000:81:00.0", "eth2", rdma="away")
    return made


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    from mesh.buses import NvmlGpu

    monkeypatch.setattr(places, "list_gpus", lambda: (NvmlGpu(0, "a GPU", 0, "0000:1a:00.0"),))
    ports = (port("narrow", 200_000), port("beside", 100_000), port("away", 100_000), port("virtual", 40_000))
    return find_places(ports, emulated().devices, tree(tmp_path).root)


def test_a_port_is_no_faster_than_what_leads_to_it(found: Places) -> None:
    speeds = {one.device: one.speed_mbps for one in found.ports}
    assert speeds == {"beside": 100_000, "away": 100_000, "virtual": 40_000, "narrow": 2_000}
    assert [one.device for one in found.ports] == ["beside", "away", "virtual", "narrow"], "the fastest first"


def test_the_port_behind_the_switch_of_the_gpu_is_the_one_that_is_told(found: Places) -> None:
    (path,) = found.gpu_paths
    assert found.ports[path.port].device == "beside"
    assert path.closeness.name == "SWITCH"
    (device,) = emulated().devices
    assert found.place_of(device) == 0
    assert found.gpus["away"] == (device,)


def test_ports_have_the_numa_node_of_their_card(found: Places) -> None:
    assert found.nodes == {"narrow": 0, "beside": 0, "away": 1}
    assert found.ports_on(1) == {1}
    assert found.ports_on(0) == {0, 3}
    assert found.ports_on(None) == frozenset()


def test_a_port_that_does_not_say_how_fast_it_is_is_as_fast_as_its_link(tmp_path: Path) -> None:
    (one,) = find_places((replace(port("narrow", 0)),), (), tree(tmp_path).root).ports
    assert one.speed_mbps == 2_000
