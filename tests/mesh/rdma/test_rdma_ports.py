"""Which ports and addresses are chosen, on trees of sysfs as devices make them; and what is said where there is none."""

import os
import random
from pathlib import Path

import pytest
import trio

from mesh.fabric.kinds import UNNAMED, Kinds, Wanted, find_kinds, parse_kinds
from mesh.fabric.rdma.opener import NO_DEVICE, RdmaOpener
from mesh.fabric.rdma.ports import RdmaPort, as_v6, has_devices, read_addresses, read_ports, told
from mesh.polling import SPIN_S_MAX, Polling
from protocol.fabric import Kind, Match, matches
from protocol.fabric.adverts import Advert
from protocol.fabric.rdma import same_subnet

SECRET = bytes(32)
V1, V2 = "IB/RoCE v1", "RoCE v2"
MAC_MADE = "fd00:0000:0000:0001:0202:c9ff:fe00:0001"
LINK_LOCAL = "fe80:0000:0000:0000:0202:c9ff:fe00:0001"


def mapped(last: str) -> str:
    return f"0000:0000:0000:0000:0000:ffff:{last}"


def gid_of(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def add_port(root: Path, device: str, gids, *, number=1, state="4: ACTIVE", rate="100 Gb/sec (4X EDR)", layer="Ethernet") -> None:
    """One port: `gids` are address, type and interface, in the order of the table."""
    folder = root / "sys/class/infiniband" / device / "ports" / str(number)
    for name, content in (("state", state), ("rate", rate), ("link_layer", layer)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + "\n")
    for index, (gid, kind, interface) in enumerate(gids):
        for name, content in (("gids", gid), ("gid_attrs/types", kind), ("gid_attrs/ndevs", interface)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / str(index)).write_text(content + "\n")


def test_of_a_port_the_first_routable_address_of_ipv4_is_chosen(tmp_path):
    table = [
        (LINK_LOCAL, V1, "eth0"),
        (LINK_LOCAL, V2, "eth0"),
        ("2001:0db8:0000:0000:0000:0000:0000:0007", V2, "eth0"),
        (mapped("0a09:0001"), V1, "eth0"),
        (mapped("0a09:0001"), V2, "eth0"),
        (mapped("0a09:0002"), V2, "eth0"),
    ]
    add_port(tmp_path, "mlx5_0", table)
    addresses = {
        "eth0": [as_v6("10.9.0.1", 24), as_v6("10.9.0.2", 24), as_v6("2001:db8::7", 64), as_v6("fe80::202:c9ff:fe00:1", 64)]
    }
    (port,) = read_ports(addresses, root=tmp_path).ports
    assert port == RdmaPort("mlx5_0", 1, gid_of(mapped("0a09:0001")), 4, 96 + 24, 100_000, "eth0")
    addresses["eth0"] = addresses["eth0"][2:]
    (port,) = read_ports(addresses, root=tmp_path).ports
    assert (port.gid_index, port.subnet_bits) == (2, 64)


def test_addresses_of_one_link_alone_are_no_subnet(tmp_path):
    add_port(tmp_path, "mlx5_0", [(LINK_LOCAL, V2, "eth0")])
    found = read_ports({"eth0": [as_v6("fe80::202:c9ff:fe00:1", 64)]}, root=tmp_path)
    assert found.ports == ()
    assert found.unusable == ("mlx5_0/1: it has no RoCE v2 address of IPv4 or of global IPv6",)


def test_an_address_that_the_interface_does_not_have_is_not_used(tmp_path):
    add_port(tmp_path, "mlx5_0", [(mapped("0a09:0001"), V2, "eth0")])
    assert read_ports({"eth1": [as_v6("10.9.0.1", 24)]}, root=tmp_path).ports == ()


def test_several_ports_stand_in_the_order_of_their_speed_and_may_be_limited(tmp_path):
    add_port(tmp_path, "a0", [(mapped("0a09:0001"), V2, "eth0")], rate="25 Gb/sec (1X EDR)")
    add_port(tmp_path, "b0", [(mapped("0a0a:0001"), V2, "eth1")], rate="200 Gb/sec (4X HDR)")
    add_port(tmp_path, "b0", [(mapped("0a0b:0001"), V2, "eth2")], number=2, rate="what nobody writes")
    add_port(tmp_path, "c0", [(mapped("0a0c:0001"), V2, "eth3")], state="1: DOWN")
    addresses = {f"eth{n}": [as_v6(f"10.{9 + n}.0.1", 24)] for n in range(4)}
    found = read_ports(addresses, root=tmp_path)
    assert [(port.device, port.number, port.speed_mbps) for port in found.ports] == [
        ("b0", 1, 200_000),
        ("a0", 1, 25_000),
        ("b0", 2, 0),
    ]
    assert found.unusable == ("c0/1: its link is down",)
    found = read_ports(addresses, ["a0", "z9"], root=tmp_path)
    assert [port.device for port in found.ports] == ["a0"]
    assert found.unusable == ("z9: there is no such RDMA device",)


def test_infiniband_is_told_by_its_subnet_alone(tmp_path):
    add_port(tmp_path, "ib0", [("fe80:0000:0000:0007:0002:c903:0000:1491", "IB", "")], layer="InfiniBand")
    (port,) = read_ports({}, root=tmp_path).ports
    assert port.subnet_bits == 64
    mine, other = told(port, SECRET), told(port, bytes(31) + b"\x01")
    assert mine.gid[:8] == port.gid[:8]
    assert mine.gid[8:] != port.gid[8:]
    assert mine.gid != other.gid  # another host with the same number, were there one, is another address
    match = matches(Advert(ports=(mine,)), Advert(ports=(other,)))
    assert [found.kind for found in match] == [Kind.RDMA]


def test_an_address_that_is_made_from_a_mac_address_is_not_told():
    port = RdmaPort("mlx5_0", 1, gid_of(MAC_MADE), 3, 64, 0, "eth0")
    shown = told(port, SECRET).gid
    assert b"\x02\x02\xc9" not in shown
    assert same_subnet(shown, port.gid, 64)
    plain = RdmaPort("mlx5_0", 1, gid_of(mapped("0a09:0001")), 3, 120, 0, "eth0")
    assert told(plain, SECRET).gid == plain.gid


def test_the_addresses_of_this_machine_are_read():
    pytest.importorskip("pyroute2")
    assert as_v6("127.0.0.1", 8) in read_addresses()["lo"]


async def test_a_host_without_devices_says_so(tmp_path):
    opener = RdmaOpener(SECRET, root=tmp_path)
    assert not has_devices(tmp_path)
    assert opener.absent == NO_DEVICE
    assert opener.advert() == Advert()


async def test_a_port_without_a_link_is_absent_with_the_reason(tmp_path):
    pytest.importorskip("pyroute2")
    add_port(tmp_path, "mlx5_0", [], state="1: DOWN")
    opener = RdmaOpener(SECRET, root=tmp_path)
    assert opener.absent == "its devices are being looked for"
    async with trio.open_nursery() as nursery:
        looked = trio.Event()
        nursery.start_soon(opener.run, looked.set)
        with trio.fail_after(20):
            await looked.wait()
        nursery.cancel_scope.cancel()
    assert opener.absent == "no RDMA port can be used: mlx5_0/1: its link is down"


def found(text: str) -> Kinds:
    return find_kinds(Wanted(parse_kinds(text), "test", "a node", os.urandom, random.Random(1)))


def test_rdma_is_used_where_it_was_named():
    assert Kind.RDMA not in parse_kinds("auto")
    assert parse_kinds("shm,rdma") == (Kind.SHM, Kind.RDMA)
    named = found("rdma")
    assert [opener.kind for opener in named.openers] == [Kind.RDMA]
    assert found("none").absent == ()
    unnamed = dict(found("auto").absent)
    assert unnamed.get(Kind.RDMA) == (UNNAMED if has_devices() else None)


def test_a_slow_port_costs_more_than_a_fast_one():
    opener = RdmaOpener(SECRET)
    fast, slow, unknown = (opener.way(Match(Kind.RDMA, speed_mbps=speed)) for speed in (100_000, 1_000, 0))
    assert fast.transfer_s(1 << 26) < unknown.transfer_s(1 << 26) < slow.transfer_s(1 << 26)


def test_one_looks_only_as_long_as_the_device_was_quick_and_never_longer():
    polling = Polling()
    assert polling.budget_s == 0.0
    for _ in range(60):
        polling.handle_wait(4e-6)
    assert 8e-6 <= polling.budget_s <= SPIN_S_MAX
    for waited_s in (3.0, -1.0, 0.5):
        polling.handle_wait(waited_s)
        assert 0.0 <= polling.budget_s <= SPIN_S_MAX
    assert polling.budget_s == 0.0
