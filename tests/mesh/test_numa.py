"""Memory of a chosen NUMA node: what the system tells of them, and what it gives."""

import ctypes
import mmap
import platform
from pathlib import Path

import pytest

from mesh.config import ConfigError, resolve
from mesh.fabric.memory import address_of, make_region
from mesh.fabric.numa import NumaError, NumaNode, bind, check_node, find_nodes
from mesh.settingvalues import FABRIC_KINDS
from protocol.fabric import Kind

HERE = find_nodes()
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
_OF_ADDRESS, _NODE = 2, 1  # MPOL_F_ADDR, MPOL_F_NODE of linux/mempolicy.h

on_nodes = pytest.mark.skipif(not HERE, reason="this kernel tells of no NUMA nodes")


def node_of(address: int) -> int:
    """The node of the page at an address, as get_mempolicy(2) tells it."""
    found = ctypes.c_int(-1)
    number = _GET_MEMPOLICY[platform.machine()]
    call = ctypes.CDLL(None, use_errno=True).syscall
    assert call(number, ctypes.byref(found), None, 0, ctypes.c_void_p(address), _OF_ADDRESS | _NODE) == 0
    return found.value


def machine(root: Path) -> Path:
    """Two sockets, and CXL memory behind a bus as a third node."""
    (root / "has_memory").parent.mkdir(parents=True, exist_ok=True)
    (root / "has_memory").write_text("0-1,3\n")
    for number, cpus, kib in ((0, "0-31", 131072000), (1, "32-63", 131072000), (3, "", 262144000)):
        folder = root / f"node{number}"
        folder.mkdir()
        (folder / "cpulist").write_text(cpus + "\n")
        (folder / "meminfo").write_text(f"Node {number} MemTotal:       {kib} kB\nNode {number} MemFree: 1 kB\n")
    return root


def test_nodes_without_processors_are_told_from_others(tmp_path):
    nodes = find_nodes(machine(tmp_path / "node"))
    assert nodes == (
        NumaNode(0, 131072000 << 10, True),
        NumaNode(1, 131072000 << 10, True),
        NumaNode(3, 262144000 << 10, False),
    )
    assert check_node(3, tmp_path / "node") == nodes[2]
    with pytest.raises(NumaError, match=r"no memory of NUMA node 2; there is: .*node 3 without processors with 250.0 GiB"):
        check_node(2, tmp_path / "node")


@pytest.mark.parametrize("text", ["", "x", "0-", "-", "9999999999999999-9999999999999999999", "1-x,,2"])
def test_what_is_no_list_of_nodes_is_none(tmp_path, text):
    (tmp_path / "has_memory").write_text(text)
    assert len(find_nodes(tmp_path)) <= 1024
    assert find_nodes(tmp_path / "nowhere") == ()


@on_nodes
def test_pages_come_from_the_node_that_was_named():
    node = HERE[0].number
    memory = mmap.mmap(-1, 1 << 20)
    address = address_of(memoryview(memory))
    bind(address, 1 << 20, node)
    memory[0] = 1
    assert node_of(address) == node
    region = make_region(1 << 20, node)
    region.map[:4] = b"here"
    assert node_of(region.address) == node
    region.close()


@on_nodes
def test_a_node_that_is_not_there_is_an_error_that_says_so():
    missing = max(node.number for node in HERE) + 1
    with mmap.mmap(-1, 4096) as memory, pytest.raises(NumaError, match="no such node"):
        bind(address_of(memoryview(memory)), 4096, missing)
    with pytest.raises(OSError, match="no such node"):
        make_region(65536, missing)
    with pytest.raises(NumaError, match="from 0 to 1023"):
        bind(0, 4096, 1024)


@pytest.mark.parametrize("value", ["-1", "1024", "one", "1.0"])
def test_a_setting_that_is_no_node_is_refused(value):
    with pytest.raises(ConfigError, match="NUMA node"):
        resolve({"memory_node": value}, {"HOME": "/nonexistent"})
    assert resolve({"memory_node": "3"}, {"HOME": "/nonexistent"}).memory_node == 3


def test_a_pool_that_the_fabrics_leave_out_is_a_mistake():
    with pytest.raises(ConfigError, match="add cxl to it"):
        resolve({"cxl_pool": "/dev/shm/pool", "fabric": "shm"}, {"HOME": "/nonexistent"})
    named = {"cxl_pool": ["/dev/shm/pool", "/dev/dax0.0"], "fabric": "shm,cxl"}
    assert resolve(named, {"HOME": "/nonexistent"}).cxl_pools == (Path("/dev/shm/pool"), Path("/dev/dax0.0"))
    with pytest.raises(ConfigError, match="'nvlink' is none of them"):
        resolve({"fabric": "shm,nvlink"}, {"HOME": "/nonexistent"})


def test_the_configuration_knows_the_kinds_of_fabric_that_there_are():
    assert tuple(kind.name.lower() for kind in Kind) == FABRIC_KINDS
