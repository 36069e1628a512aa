"""The picture for the terminal, the JSON for programs, and the command."""

import json
import re
import subprocess
import sys
from pathlib import Path

from bus_trees import laptop, server, virtual_machine
from rich.console import Console

from mesh.buses import Buses, Load, read_buses, warnings
from mesh.buses.picture import buses_json, closeness_table, tree_picture
from mesh.hardwarecommands import view
from protocol.records import Hardware

ROOT = Path(__file__).parents[3]


def drawn(*pictures: object) -> str:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115  # lives as long as the test
    for picture in pictures:
        console.print(picture)
    console.file.close()
    return console.export_text()


def test_server_is_drawn_switch_by_switch(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus)
    text = drawn(tree_picture(buses, {gpus[0].address: Load(31.5e9, 2e6)}))
    lines = text.splitlines()
    assert sum("switch shared by 4" in line for line in lines) == 4
    assert sum("root complex" in line for line in lines) == 4
    (first,) = [line for line in lines if "GPU 0" in line]
    assert re.search(
        r"[├└]── GPU 0 NVIDIA H100  0000:19:00.0  PCIe 5.0 x16 \(idle at 1.0 x16\)  63.0 GB/s  █{5}░{5}  ↓ 31.5 GB/s ↑ 2.0 MB/s",
        first,
    )
    assert "mlx5_0 eth0" in text
    assert "0000:18:00.0" not in text, "a downstream port says nothing that the device below it does not"


def test_how_near_is_a_table_of_gpus_and_network_devices(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    text = drawn(closeness_table(read_buses(tree.root, gpus)))
    row = next(line for line in text.splitlines() if "GPU 7" in line)
    assert re.findall(r"\w+", row) == ["GPU", "7", "sockets", "sockets", "node", "switch"]


def test_laptop_shows_of_what_its_card_could_be(tmp_path: Path) -> None:
    buses = read_buses(laptop(tmp_path).root)
    text = drawn(view(Hardware("Fast CPU", 8, 16 << 30, 1), buses, {}))
    assert "GPU amdgpu  0000:01:00.0  PCIe 4.0 x4 (idle at 1.0 x4)" in text
    assert "nvme0  0000:02:00.0  PCIe 4.0 x4" in text
    assert "! GPU at 0000:01:00.0 runs at PCIe 4.0 x4 of 4.0 x8" in text
    assert "Fast CPU, 8 cores, 16.0 GiB" in text


def test_machine_without_links_is_drawn_without_them(tmp_path: Path) -> None:
    buses = read_buses(virtual_machine(tmp_path).root)
    text = drawn(tree_picture(buses, {}))
    assert "eth0" in text
    assert "PCIe " not in text
    assert "no GPU, network device" in drawn(tree_picture(Buses(), {}))


def test_json_says_null_where_nothing_is_known(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus)
    told = json.loads(json.dumps(buses_json(buses, {gpus[0].address: Load(1.0, 2.0)}, warnings(buses))))
    functions = {row["address"]: row for row in told["functions"]}
    assert functions[gpus[0].address]["load"] == {"down_bytes_per_s": 1.0, "up_bytes_per_s": 2.0}
    assert functions[gpus[1].address]["load"] is None
    assert functions[gpus[0].address]["link"]["now"] == {"gts": 2.5, "lanes": 16}
    assert functions["0000:16:01.0"]["link"] is None
    assert {"gpu": gpus[0].address, "device": "mlx5_0", "closeness": "switch"} in told["closeness"]
    assert told["numa_distances"] == {"0": [10, 21], "1": [21, 10]}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "node.py"), "hardware", *arguments], capture_output=True, text=True, check=False
    )


def test_command_prints_this_machine() -> None:
    told = json.loads(run("--json", "--interval", "0.1").stdout)
    assert told["hardware"]["cpu_count"] >= 1
    assert {function["address"] for function in told["buses"]["functions"]} == set(read_buses().functions)
    assert "cores" in run("--interval", "0").stdout


def test_command_refuses_what_makes_no_sense() -> None:
    for arguments in (("--interval", "-1"), ("--watch", "--json"), ("--watch", "--interval", "0")):
        finished = run(*arguments)
        assert finished.returncode == 2, arguments
        assert finished.stderr.startswith("isochrone: ")
