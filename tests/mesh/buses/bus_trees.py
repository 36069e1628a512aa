"""PCIe trees as the kernel shows them, made of files and links: a server of two sockets, a laptop, a virtual machine."""

from pathlib import Path

from mesh.buses import NvmlGpu

SPEEDS = {1: "2.5 GT/s PCIe", 2: "5.0 GT/s PCIe", 3: "8.0 GT/s PCIe", 4: "16.0 GT/s PCIe", 5: "32.0 GT/s PCIe", 0: "Unknown"}
PORT, GPU, NIC, VGA, NVME = 0x060400, 0x030200, 0x020000, 0x030000, 0x010802


class BusTree:
    """A root file system with `sys` alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys"
        (self.sys / "bus/pci/devices").mkdir(parents=True)

    def function(self, path: str, kind: int, link: str = "", able: str = "", node: int = -1, driver: str = "") -> Path:
        """Add a function by its way from the root complex; links are written `4x16`, generation and lanes, 0 for unknown."""
        folder = self.sys / "devices" / path
        folder.mkdir(parents=True)
        (folder / "class").write_text(f"0x{kind:06x}\n")
        (folder / "numa_node").write_text(f"{node}\n")
        for name, told in (("current", link), ("max", able or link)):
            if told:
                generation, lanes = told.split("x")
                (folder / f"{name}_link_speed").write_text(f"{SPEEDS[int(generation)]}\n")
                (folder / f"{name}_link_width").write_text(f"{lanes}\n")
        if driver:
            target = self.sys / "bus/pci/drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(target)
        (self.sys / "bus/pci/devices" / folder.name).symlink_to(folder)
        return folder

    def network(self, path: str, name: str, speed_mbps: int = 0, rdma: str = "", below: str = "") -> None:
        """Put an interface on a function, `below` a device of another bus, and an RDMA device on the same function."""
        function = self.sys / "devices" / path
        device = function / below if below else function
        folder = device / "net" / name
        (folder / "statistics").mkdir(parents=True)
        (folder / "device").symlink_to(device)
        if speed_mbps:
            (folder / "speed").write_text(f"{speed_mbps}\n")
        self._class("net", name, folder)
        self.count(name, 0, 0)
        if rdma:
            folder = function / "infiniband" / rdma
            (folder / "ports/1/counters").mkdir(parents=True)
            (folder / "device").symlink_to(function)
            self._class("infiniband", rdma, folder)
            self.count_rdma(rdma, 0, 0)

    def count(self, name: str, sent: int, received: int) -> None:
        """Set an interface's counters."""
        folder = self.sys / "class/net" / name / "statistics"
        _replace(folder / "tx_bytes", sent)
        _replace(folder / "rx_bytes", received)

    def count_rdma(self, name: str, sent_words: int, received_words: int) -> None:
        """Set an RDMA device's counters."""
        folder = self.sys / "class/infiniband" / name / "ports/1/counters"
        _replace(folder / "port_xmit_data", sent_words)
        _replace(folder / "port_rcv_data", received_words)

    def numa(self, *distances: str) -> None:
        """Say how far the NUMA nodes are."""
        for node, told in enumerate(distances):
            folder = self.sys / f"devices/system/node/node{node}"
            folder.mkdir(parents=True)
            (folder / "distance").write_text(f"{told}\n")

    def _class(self, group: str, name: str, folder: Path) -> None:
        target = self.sys / "class" / group
        target.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to(folder)


def _replace(path: Path, number: int) -> None:
    """Write a counter so that who reads it at the same time finds the old or the new one, as of a kernel."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(f"{number}\n")
    fresh.replace(path)


def server(root: Path) -> tuple[BusTree, list[NvmlGpu]]:
    """Two sockets; below each two switches, each with two GPUs and a network device of 400 Gbit/s."""
    tree, gpus = BusTree(root), []
    tree.numa("10 21", "21 10")
    for number, bus in enumerate((0x17, 0x3A, 0x97, 0xC9)):
        node = number // 2
        complex_ = f"pci0000:{bus - 1:02x}"
        port = f"{complex_}/0000:{bus - 1:02x}:01.0"
        tree.function(port, PORT, "5x16", node=node, driver="pcieport")
        switch = f"{port}/0000:{bus:02x}:00.0"
        tree.function(switch, PORT, "5x16", node=node, driver="pcieport")
        for slot in range(3):
            below = f"{switch}/0000:{bus + 1:02x}:{slot:02x}.0"
            tree.function(below, PORT, "5x16", node=node, driver="pcieport")
            path = f"{below}/0000:{bus + 2 + slot:02x}:00.0"
            if slot < 2:
                tree.function(path, GPU, "1x16", able="5x16", node=node, driver="nvidia")
                gpus.append(NvmlGpu(len(gpus), "NVIDIA H100", 80 << 30, path.rpartition("/")[2]))
            else:
                tree.function(path, NIC, "5x16", node=node, driver="mlx5_core")
                tree.network(path, f"eth{number}", 400_000, rdma=f"mlx5_{number}")
    return tree, gpus


def laptop(root: Path) -> BusTree:
    """Graphics in the processor, a GPU that has four lanes of the eight it could use, a disk, and a network device on USB."""
    tree = BusTree(root)
    tree.numa("10")
    tree.function("pci0000:00/0000:00:02.0", VGA, driver="i915")
    tree.function("pci0000:00/0000:00:01.0", PORT, "1x4", able="4x4")
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", VGA, "1x4", able="4x8", driver="amdgpu")
    tree.function("pci0000:00/0000:00:06.0", PORT, "4x4")
    disk = tree.function("pci0000:00/0000:00:06.0/0000:02:00.0", NVME, "4x4", driver="nvme")
    (disk / "nvme/nvme0").mkdir(parents=True)
    tree.function("pci0000:00/0000:00:14.0", 0x0C0330, driver="xhci_hcd")
    tree.network("pci0000:00/0000:00:14.0", "wwan0", below="usb1/1-1")
    return tree


def virtual_machine(root: Path) -> BusTree:
    """A machine without links: all functions are on the root complex itself."""
    tree = BusTree(root)
    tree.numa("10")
    tree.function("pci0000:00/0000:00:00.0", 0x060000)
    tree.function("pci0000:00/0000:00:03.0", NIC, driver="virtio-pci")
    tree.network("pci0000:00/0000:00:03.0", "eth0", below="virtio2")
    return tree
