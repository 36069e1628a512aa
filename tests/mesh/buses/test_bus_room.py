"""What is left of the buses to the GPUs."""

from pathlib import Path

import pytest
import trio
from bus_trees import GPU, PORT, BusTree, server, virtual_machine
from trio.testing import MockClock

from mesh.buses import Load, NvmlGpu, read_buses, room_mbps, watch_room
from mesh.buses.room import LOOK_S


def test_room_is_that_of_the_gpu_with_the_most_and_of_the_fullest_link_above_it(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus[:2])
    whole = room_mbps(buses, {})
    assert whole == pytest.approx(504_000, rel=0.001)
    half = Load(31.5e9, 0.0)
    assert room_mbps(buses, {gpus[0].address: half}) == whole
    assert room_mbps(buses, {gpu.address: half for gpu in gpus[:2]}) == pytest.approx(whole / 2, rel=0.001)
    assert room_mbps(buses, {"0000:17:00.0": Load(0.0, 47.25e9)}) == pytest.approx(whole / 4, rel=0.01)


def test_full_link_still_has_a_share_for_one_more(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus[:1])
    assert room_mbps(buses, {gpus[0].address: Load(70e9, 0.0)}) == pytest.approx(50_400, rel=0.001)


def test_nothing_is_told_where_a_link_is_not_known(tmp_path: Path) -> None:
    assert room_mbps(read_buses(virtual_machine(tmp_path / "machine").root), {}) == 0
    tree = BusTree(tmp_path / "server")
    for number, link in ((1, "4x16"), (2, "0x0")):
        tree.function(f"pci0000:00/0000:00:0{number}.0", PORT, link)
        tree.function(f"pci0000:00/0000:00:0{number}.0/0000:0{number}:00.0", GPU, link, driver="nvidia")
    gpus = [NvmlGpu(number, "NVIDIA L4", 0, f"0000:0{number + 1}:00.0") for number in (0, 1)]
    assert room_mbps(read_buses(tree.root, gpus[:1]), {}) > 0
    assert room_mbps(read_buses(tree.root, gpus), {}) == 0


async def test_watch_tells_again_and_again_what_is_left(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The network device below the switch of the GPU brings 189 Gbit/s, which the switch's link of 504 then lacks."""
    tree, gpus = server(tmp_path)
    told: list[int] = []
    has_three = trio.Event()

    def take(mbps: int) -> None:
        told.append(mbps)
        if len(told) == 3:
            has_three.set()

    async def receive() -> None:
        words = 0
        while True:
            await trio.sleep(LOOK_S / 10)
            words += int(LOOK_S / 10 * 23.6e9 / 4)
            tree.count_rdma("mlx5_0", 0, words)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(watch_room, take, tree.root, gpus[:1])
        await has_three.wait()
        nursery.cancel_scope.cancel()
    # The virtual clock goes on while a thread looks, so that more is counted than passed; a tenth is always left.
    assert 50_000 < told[2] < 420_000


@pytest.mark.skipif(room_mbps(read_buses(), {}) > 0, reason="this machine has a GPU")
async def test_watch_ends_at_once_where_there_is_nothing_to_watch() -> None:
    told: list[int] = []
    with trio.fail_after(60):
        await watch_room(told.append)
    assert told == []
