"""Hardware, read from a made-up file system and from this machine."""

from pathlib import Path

import pytest
import trio

from mesh.buses import NvmlGpu, read_buses
from mesh.buses.nvml import GPUS_MAX
from mesh.hardware import (
    NICS_MAX,
    Interface,
    cpu_model,
    memory_bytes,
    numa_nodes,
    read_hardware,
    speed_mbps,
    told_gpus,
    told_nics,
)
from protocol.records import Gpu, Hardware, Nic

X86 = "processor\t: 0\nmodel name\t: Fast  CPU @ 3 GHz\n\nprocessor\t: 1\nmodel name\t: Fast  CPU @ 3 GHz\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def interface_files(name: str, flags: str = "0x1003", speed: str = "", device: bool = True, kind: str = "1") -> dict[str, str]:
    folder = f"sys/class/net/{name}"
    files = {f"{folder}/flags": f"{flags}\n", f"{folder}/mtu": "9000\n", f"{folder}/type": f"{kind}\n"}
    if speed:
        files[f"{folder}/speed"] = f"{speed}\n"
    if device:
        files[f"{folder}/device/vendor"] = "0x15b3\n"
    return files


def test_machine_is_read_from_proc_and_sys(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": X86,
        "proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB\n",
        "sys/devices/system/node/has_memory": "0-1,4\n",
        **interface_files("eth0", speed="100000"),
        **interface_files("ib0", speed="400000", kind="32"),
        **interface_files("lo", flags="0x9", device=False, kind="772"),
        **interface_files("docker0", device=False),
        **interface_files("eth1", flags="0x1002", speed="10000"),
    }
    assert read_hardware(write(tmp_path, files)) == Hardware(
        "Fast CPU @ 3 GHz", 2, 16384 * 1024, 3, (), (Nic("eth0", 100000, 9000), Nic("ib0", 400000, 9000))
    )


def test_empty_machine_leaves_everything_out(tmp_path: Path) -> None:
    assert read_hardware(tmp_path) == Hardware("", 0, 0, 1)


def test_container_limit_lowers_the_memory(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal:       16384 kB\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert memory_bytes(tmp_path) == 16384 * 1024
    write(tmp_path, {"sys/fs/cgroup/memory.max": "1048576\n"})
    assert memory_bytes(tmp_path) == 1048576


def test_board_without_model_name_is_named_by_its_device_tree(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor : 0\nBogoMIPS : 1\n", "proc/device-tree/model": "Some Board 5\0"})
    assert cpu_model(tmp_path) == "Some Board 5"


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-7\n", 8), ("0,2-3\n", 3), ("", 1), ("rubbish", 1), ("0-\n", 1)])
def test_numa_nodes_are_counted(tmp_path: Path, text: str, count: int) -> None:
    assert numa_nodes(write(tmp_path, {"sys/devices/system/node/has_memory": text})) == count


@pytest.mark.parametrize(("text", "speed"), [("25000", 25000), ("-1", 0), ("4294967295", 0), ("0", 0), ("fast", 0), ("", 0)])
def test_speed_nobody_knows_is_zero(tmp_path: Path, text: str, speed: int) -> None:
    assert speed_mbps("eth0", write(tmp_path, {"sys/class/net/eth0/speed": text})) == speed


def test_container_with_virtual_interfaces_alone_tells_those(tmp_path: Path) -> None:
    only = [Interface("eth0", 1500, is_up=True, is_virtual=True), Interface("eth1", 1500, is_up=False, is_virtual=False)]
    assert told_nics(only, tmp_path) == (Nic("eth0", 0, 1500),)


def test_number_of_interfaces_is_bounded(tmp_path: Path) -> None:
    many = [Interface(f"eth{number}", 1500, is_up=True, is_virtual=False) for number in range(NICS_MAX + 5)]
    assert len(told_nics(many, tmp_path)) == NICS_MAX


async def test_this_machine_is_read_in_a_worker_thread() -> None:
    hardware = await trio.to_thread.run_sync(read_hardware)
    assert hardware.cpu_count >= 1
    assert hardware.memory_bytes > 1 << 27
    assert hardware.numa_nodes >= 1
    assert len(hardware.gpus) <= GPUS_MAX
    assert all(nic.name != "lo" and nic.mtu_bytes > 0 for nic in hardware.nics)


def test_gpus_and_interfaces_tell_the_bus_that_leads_to_them(tmp_path: Path) -> None:
    port = "sys/devices/pci0000:00/0000:00:01.0"
    files = {f"{port}/class": "0x060400", f"{port}/max_link_speed": "16.0 GT/s PCIe", f"{port}/max_link_width": "16"}
    for name, told in (
        ("class", "0x020000"),
        ("numa_node", "1"),
        ("current_link_speed", "8.0 GT/s PCIe"),
        ("current_link_width", "8"),
    ):
        files[f"{port}/0000:01:00.0/{name}"] = told
    write(tmp_path, files | interface_files("eth0", speed="100000", device=False))
    function = tmp_path / port / "0000:01:00.0"
    (tmp_path / "sys/class/net/eth0/device").symlink_to(function)
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    for folder in (tmp_path / port, function):
        (tmp_path / "sys/bus/pci/devices" / folder.name).symlink_to(folder)
    assert read_hardware(tmp_path).nics == (Nic("eth0", 100000, 9000, 63_015, 1),)
    gpus = [NvmlGpu(0, "NVIDIA  L4", 24 << 30, "0000:01:00.0"), NvmlGpu(1, "NVIDIA L4", 0, "")]
    assert told_gpus(gpus, read_buses(tmp_path, gpus)) == (
        Gpu("NVIDIA L4", 24 << 30, 126_031, 1),  # a GPU that runs slower than it could idles
        Gpu("NVIDIA L4", 0),
    )


@pytest.mark.gpu
def test_gpus_of_this_machine_have_names_and_memory() -> None:
    gpus = read_hardware().gpus
    assert gpus
    assert all(gpu.name and gpu.memory_bytes > 1 << 30 and gpu.bus_mbps > 0 for gpu in gpus)
