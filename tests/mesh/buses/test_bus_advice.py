"""Warnings say what is wrong and what to do, and nothing where nothing is."""

from pathlib import Path

from bus_trees import GPU, NIC, PORT, BusTree, laptop, server, virtual_machine

from mesh.buses import NvmlGpu, read_buses, warnings

GPU_0 = [NvmlGpu(0, "NVIDIA L4", 24 << 30, "0000:01:00.0")]


def slot(root: Path, link: str, able: str, port: str) -> BusTree:
    tree = BusTree(root)
    tree.function("pci0000:00/0000:00:01.0", PORT, link, able=port)
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", GPU, link, able=able, driver="nvidia")
    return tree


def test_machines_without_faults_are_told_of_none(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path / "server")
    assert warnings(read_buses(tree.root, gpus)) == []
    assert warnings(read_buses(virtual_machine(tmp_path / "machine").root)) == []


def test_gpu_with_fewer_lanes_than_both_ends_could_is_put_in_again(tmp_path: Path) -> None:
    (said,) = warnings(read_buses(slot(tmp_path, "4x4", "4x16", "4x16").root, GPU_0))
    assert said.startswith("GPU 0 runs at PCIe 4.0 x4 of 4.0 x16: its slot could give x16. Put the card in again")


def test_gpu_in_a_narrow_slot_is_moved(tmp_path: Path) -> None:
    (said,) = warnings(read_buses(slot(tmp_path, "4x4", "4x16", "4x4").root, GPU_0))
    assert said == "GPU 0 runs at PCIe 4.0 x4 of 4.0 x16: its slot has x4. Move the card to a slot with x16."


def test_gpu_in_an_old_slot_is_told_so_even_while_it_idles(tmp_path: Path) -> None:
    (said,) = warnings(read_buses(slot(tmp_path, "1x16", "4x16", "3x16").root, GPU_0))
    assert said.startswith("GPU 0 runs at PCIe 3.0 x16 of 4.0 x16: the port above is older.")


def test_gpu_that_only_idles_is_no_fault(tmp_path: Path) -> None:
    assert warnings(read_buses(slot(tmp_path, "1x16", "4x16", "4x16").root, GPU_0)) == []


def test_laptop_is_told_of_the_lanes_that_its_slot_lacks(tmp_path: Path) -> None:
    (said,) = warnings(read_buses(laptop(tmp_path).root))
    assert said.startswith("GPU at 0000:01:00.0 runs at PCIe 4.0 x4 of 4.0 x8: its slot has x4.")


def test_gpus_behind_a_narrow_switch_are_told_which_and_with_whom_they_share_it(tmp_path: Path) -> None:
    tree = BusTree(tmp_path)
    tree.function("pci0000:00/0000:00:01.0", PORT, "3x4")
    tree.function("pci0000:00/0000:00:01.0/0000:02:00.0", PORT, "3x4")
    for number in (0, 1):
        port = f"pci0000:00/0000:00:01.0/0000:02:00.0/0000:03:0{number}.0"
        tree.function(port, PORT, "4x16")
        tree.function(f"{port}/0000:0{4 + number}:00.0", GPU, "4x16", driver="nvidia")
    gpus = [NvmlGpu(number, "NVIDIA A100", 0, f"0000:0{4 + number}:00.0") for number in (0, 1)]
    said = warnings(read_buses(tree.root, gpus))
    assert said[0].startswith(
        "GPU 0 has PCIe 4.0 x16, but the switch above it, 0000:02:00.0, has 3.0 x4: that is all there is for GPU 0 and GPU 1."
    )
    assert len(said) == 2


def test_network_device_is_told_only_where_the_link_carries_less_than_the_cable(tmp_path: Path) -> None:
    for link, n_said in (("3x4", 1), ("3x16", 0)):
        tree = BusTree(tmp_path / link)
        tree.function("pci0000:00/0000:00:01.0", PORT, link)
        tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", NIC, link, able="4x16")
        tree.network("pci0000:00/0000:00:01.0/0000:01:00.0", "eth0", 100_000, rdma="mlx5_0")
        said = warnings(read_buses(tree.root))
        assert len(said) == n_said, said
        if said:
            assert said[0].startswith("mlx5_0 and eth0: the cable carries 100 Gbit/s, but its slot gives PCIe 3.0 x4, 32 Gbit/s.")


def test_gpu_on_another_socket_than_every_network_device_is_told(tmp_path: Path) -> None:
    tree = BusTree(tmp_path)
    tree.numa("10 21", "21 10")
    tree.function("pci0000:00/0000:00:01.0", GPU, node=1, driver="nvidia")
    tree.function("pci0000:80/0000:80:01.0", NIC, node=0)
    tree.network("pci0000:80/0000:80:01.0", "eth0", rdma="mlx5_0")
    (said,) = warnings(read_buses(tree.root, [NvmlGpu(1, "NVIDIA H100", 0, "0000:00:01.0")]))
    assert said.startswith(
        "GPU 1 and mlx5_0 are on different sockets (NUMA nodes 1 and 0): tensors cross from one to the other. Run"
    )
    tree.function("pci0000:40/0000:40:01.0", NIC, node=1)
    tree.network("pci0000:40/0000:40:01.0", "eth1", rdma="mlx5_1")
    assert warnings(read_buses(tree.root)) == []
