"""The load of links: counters that grow, stand still, and go backwards."""

from pathlib import Path

from bus_trees import server, virtual_machine

from mesh.buses import Load, measure, read_buses
from mesh.buses.load import rates, read_counters


def test_load_is_what_the_counters_grew_by_in_a_second(tmp_path: Path) -> None:
    tree = virtual_machine(tmp_path)
    buses = read_buses(tree.root)
    before = read_counters(buses, tree.root)
    tree.count("eth0", 3_000_000, 1_000_000)
    after = read_counters(buses, tree.root)
    assert rates(buses, before, after, 2.0) == {"0000:00:03.0": Load(1_500_000.0, 500_000.0)}


def test_rdma_counts_in_words_beside_the_interface_and_for_the_switch_above(tmp_path: Path) -> None:
    tree, gpus = server(tmp_path)
    buses = read_buses(tree.root, gpus)

    def traffic(_: float) -> None:
        tree.count("eth0", 0, 7_000)
        tree.count_rdma("mlx5_0", 1_000_000, 250_000)

    loads = measure(buses, 1e9, tree.root, traffic)  # so long that the clock's own seconds do not show
    expected = Load(4_000_000 / 1e9, 1_007_000 / 1e9)
    assert loads["0000:1b:00.0"] == expected
    assert loads["0000:17:00.0"] == expected
    assert loads["0000:3e:00.0"] == Load(0.0, 0.0)
    assert gpus[0].address not in loads


def test_counter_that_goes_backwards_says_nothing(tmp_path: Path) -> None:
    tree = virtual_machine(tmp_path)
    buses = read_buses(tree.root)
    tree.count("eth0", 100, 100)
    before = read_counters(buses, tree.root)
    tree.count("eth0", 200, 99)
    assert rates(buses, before, read_counters(buses, tree.root), 1.0) == {}


def test_interface_without_counters_is_left_out(tmp_path: Path) -> None:
    tree = virtual_machine(tmp_path)
    (tree.sys / "class/net/eth0/statistics/rx_bytes").write_text("many\n")
    assert read_counters(read_buses(tree.root), tree.root) == {}
