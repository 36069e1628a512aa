"""The PCIe tree, read from trees made of files and from this machine."""

from pathlib import Path

import pytest
from bus_trees import GPU, NIC, PORT, BusTree, laptop, server, virtual_machine

from mesh.buses import Buses, BusLink, DeviceKind, NvmlGpu, closeness, list_gpus, nearest_ports, read_buses
from mesh.buses.nvml import pci_address
from protocol.fabric import Closeness, GpuPath


def test_server_has_eight_gpus_and_four_network_devices_where_they_are(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus)
    assert [device.title for device in buses.of(DeviceKind.GPU)] == [f"GPU {n}" for n in range(8)]
    assert [device.name for device in buses.of(DeviceKind.RDMA)] == [f"mlx5_{n}" for n in range(4)]
    assert [device.name for device in buses.of(DeviceKind.NIC)] == [f"eth{n}" for n in range(4)]
    assert buses.distances == {0: (10, 21), 1: (21, 10)}
    gpu = buses.functions[gpus[5].address]
    assert (gpu.numa_node, gpu.root, gpu.driver) == (1, "pci0000:96", "nvidia")
    assert gpu.above == ("0000:96:01.0", "0000:97:00.0", "0000:98:01.0")
    assert buses.functions["0000:19:00.0"].now == BusLink(2.5, 16)


def test_how_near_gpus_are_to_network_devices_follows_the_tree(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus)
    ports = {device.name: device.address for device in buses.of(DeviceKind.RDMA)}
    near = [closeness(gpus[0].address, ports[f"mlx5_{n}"], buses) for n in range(4)]
    assert near == [Closeness.SWITCH, Closeness.NODE, Closeness.SYSTEM, Closeness.SYSTEM]
    assert closeness(gpus[7].address, ports["mlx5_3"], buses) is Closeness.SWITCH
    assert closeness(gpus[0].address, "0000:ff:00.0", buses) is None


def test_advert_tells_of_each_gpu_the_nearest_port(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus)
    paths = nearest_ports(["mlx5_3", "mlx5_0"], [*gpus, NvmlGpu(8, "lost", 0, "")], buses)
    assert paths[0] == GpuPath(0, 1, Closeness.SWITCH)
    assert paths[2] == GpuPath(2, 1, Closeness.NODE)
    assert paths[7] == GpuPath(7, 0, Closeness.SWITCH)
    assert len(paths) == 8
    assert nearest_ports(["rxe0"], gpus, buses) == ()


def test_two_slots_of_one_root_complex_are_nearer_than_two_complexes(tmp_path: Path) -> None:
    tree = BusTree(tmp_path)
    for port in (1, 2):
        tree.function(f"pci0000:00/0000:00:0{port}.0", PORT, "4x16")
        tree.function(f"pci0000:00/0000:00:0{port}.0/0000:0{port}:00.0", GPU if port == 1 else NIC, "4x16")
    assert closeness("0000:01:00.0", "0000:02:00.0", read_buses(tree.root)) is Closeness.ROOT


def test_node_that_the_kernel_does_not_know_makes_no_nearness(tmp_path: Path) -> None:
    tree = BusTree(tmp_path)
    tree.numa("10 21", "21 10")
    tree.function("pci0000:00/0000:00:01.0", GPU)
    tree.function("pci0000:40/0000:40:01.0", NIC, node=1)
    assert closeness("0000:00:01.0", "0000:40:01.0", read_buses(tree.root)) is None


def test_idle_gpu_counts_with_the_speed_that_both_ends_could(tmp_path: Path) -> None:
    buses = read_buses(laptop(tmp_path).root)
    assert buses.functions["0000:01:00.0"].now == BusLink(2.5, 4)
    assert buses.usable("0000:01:00.0") == BusLink(16.0, 4)
    assert buses.usable("0000:02:00.0") == BusLink(16.0, 4)


def test_network_device_that_runs_slowly_counts_as_it_runs(tmp_path: Path) -> None:
    tree = BusTree(tmp_path)
    tree.function("pci0000:00/0000:00:01.0", PORT, "1x8", able="4x8")
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", NIC, "1x8", able="4x8")
    assert read_buses(tree.root).usable("0000:01:00.0") == BusLink(2.5, 8)


def test_narrowest_link_may_be_that_of_a_switch(tmp_path: Path) -> None:
    tree = BusTree(tmp_path)
    tree.function("pci0000:00/0000:00:01.0", PORT, "3x4", able="3x4")
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", PORT, "3x4", able="4x16")
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0", PORT, "4x16")
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0", GPU, "4x16")
    assert read_buses(tree.root).narrowest("0000:03:00.0") == ("0000:01:00.0", BusLink(8.0, 4))


@pytest.mark.parametrize(
    ("link", "bytes_per_s"), [("1x1", 0.25e9), ("3x16", 15.75e9), ("4x16", 31.5e9), ("5x16", 63.0e9), ("0x16", 0.0)]
)
def test_bytes_of_a_link_are_those_of_its_generation(tmp_path: Path, link: str, bytes_per_s: float) -> None:
    tree = BusTree(tmp_path)
    tree.function("pci0000:00/0000:00:01.0", PORT, link)
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", NIC, link)
    now = read_buses(tree.root).functions["0000:01:00.0"].now
    assert now is not None
    assert now.bytes_per_s == pytest.approx(bytes_per_s, rel=0.001)


def test_laptop_shows_its_card_and_neither_screen_nor_usb_as_more_than_they_are(tmp_path: Path) -> None:
    buses = read_buses(laptop(tmp_path).root)
    assert [(device.kind, device.name, device.address) for device in buses.devices] == [
        (DeviceKind.GPU, "amdgpu", "0000:01:00.0"),
        (DeviceKind.DISK, "nvme0", "0000:02:00.0"),
        (DeviceKind.NIC, "wwan0", "0000:00:14.0"),
    ]


def test_virtual_machine_has_no_links_and_nothing_is_made_up(tmp_path: Path) -> None:
    buses = read_buses(virtual_machine(tmp_path).root)
    assert [device.name for device in buses.devices] == ["eth0"]
    assert buses.functions["0000:00:03.0"].now is None
    assert buses.narrowest("0000:00:03.0") is None


@pytest.mark.parametrize("text", ["", "Unknown\n", "255\n", "-3\n", "garbage\n", "999999999999\n"])
def test_numbers_that_make_no_sense_are_unknown(tmp_path: Path, text: str) -> None:
    tree = BusTree(tmp_path)
    tree.function("pci0000:00/0000:00:01.0", PORT, "4x16")
    folder = tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", NIC, "4x16")
    for name in ("class", "numa_node", "current_link_speed", "current_link_width", "max_link_speed", "max_link_width"):
        (folder / name).write_text(text)
    buses = read_buses(tree.root)
    assert buses.usable("0000:01:00.0") is None
    assert buses.functions["0000:01:00.0"].numa_node in (None, 255)


def test_machine_without_a_bus_has_none(tmp_path: Path) -> None:
    assert read_buses(tmp_path) == Buses()


def test_gpu_that_the_driver_lists_elsewhere_is_left_out(tmp_path: Path) -> None:
    assert read_buses(virtual_machine(tmp_path).root, [NvmlGpu(0, "lost", 0, "0000:99:00.0")]).of(DeviceKind.GPU) == ()


@pytest.mark.parametrize(
    ("told", "address"), [("00000000:3B:00.0", "0000:3b:00.0"), ("00010000:01:00.0", "10000:01:00.0"), ("", ""), ("x:1", "")]
)
def test_bus_ids_of_the_driver_are_those_of_the_kernel(told: str, address: str) -> None:
    assert pci_address(told) == address


def test_this_machine_is_read_as_it_is() -> None:
    buses = read_buses(gpus=list_gpus())
    listed = Path("/sys/bus/pci/devices")
    assert set(buses.functions) <= {path.name for path in listed.iterdir()} if listed.exists() else not buses.functions
    assert all(device.address in buses.functions for device in buses.devices)
    for function in buses.functions.values():
        assert all(bridge in buses.functions for bridge in function.above)


@pytest.mark.gpu
def test_gpus_of_this_machine_are_on_its_bus() -> None:
    gpus = list_gpus()
    assert gpus
    buses = read_buses(gpus=gpus)
    assert len(buses.of(DeviceKind.GPU)) >= len(gpus)
