"""The RDMA fabric between two guests: real nodes in both, tensors by the RDMA cable, and by QUIC's when that one is pulled."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from guests import CACHE, ROOT, Guest, Machine, booted, with_cable

from mesh.fabric.verbs.binding import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

LINK = """
    modprobe virtio_net; modprobe rdma_rxe; modprobe ib_uverbs
    on_cable() { basename "$(dirname "$(grep -l "52:54:00:00:0$1" /sys/class/net/*/address)")"; }
    quic=$(on_cable 0); rdma=$(on_cable 1)
    ip addr add "10.6.0.$1/24" dev "$quic"; ip link set "$quic" up
    ip addr add "10.9.0.$1/24" dev "$rdma"; ip link set "$rdma" mtu 9000 up
    rdma link add rxe type rxe netdev "$rdma"
    echo "$quic"
"""
PACKET_BYTES = 4096
"""Of a packet of RDMA on these cables."""


@contextmanager
def linked() -> Iterator[dict[str, Guest]]:
    """Two guests with two cables between them, one for QUIC and one that ends in an RDMA device."""
    with ExitStack() as stack:
        cable = Path(stack.enter_context(TemporaryDirectory(prefix="isochrone-cable-")))
        guests = {}
        for end, name in enumerate(("server", "asker")):
            machine = Machine(name=name, processors=1, memory="1G")
            for number in range(2):
                machine = with_cable(machine, cable, end, number)
            guests[name] = stack.enter_context(booted(machine))
        yield guests


def told(guest: Guest, *arguments: str, time_s_max: float):
    command = (sys.executable, "-u", str(ROOT / "tests/guest/inside_rdma_link.py"), *arguments)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(CACHE)}
    return guest.run(*command, time_s_max=time_s_max, **environment).told


def test_tensors_of_nodes_in_two_guests_go_by_rdma_until_the_cable_is_pulled(can_boot, capsys):
    load(CACHE / "isochrone")
    with linked() as guests:
        interfaces = {name: guest.shell(LINK, str(n)).output.split()[-1] for n, (name, guest) in enumerate(guests.items(), 1)}
        served = told(guests["server"], "serve", "10.6.0.1", time_s_max=500)
        *earlier, by_light = told(guests["asker"], "light", served["address"], interfaces["asker"], time_s_max=500)
        asked = told(guests["asker"], "ask", "10.6.0.2", served["address"], interfaces["asker"], time_s_max=1000)
        looked = told(guests["server"], "look", time_s_max=150)
    assert all(answer["equal"] for answer in earlier)
    size_bytes = 0
    for answer in (by_light, *asked["by_rdma"]):
        assert answer["equal"]
        assert answer["ways"] == ["rdma"], answer
        assert answer["sent_bytes"] < answer["size_bytes"] // 8, "the tensors went by the other cable"
        assert answer["counted"]["sent_pkts"] >= answer["size_bytes"] // PACKET_BYTES
        assert answer["counted"]["rcvd_pkts"] >= answer["size_bytes"] // PACKET_BYTES
        size_bytes += answer["size_bytes"]
    for name in ("sent_pkts", "rcvd_pkts"):  # as the device of the other guest has counted them
        assert looked["counted"][name] - served["counted"][name] >= size_bytes // PACKET_BYTES
    (figures,) = asked["open"]["open"].values()
    assert (figures["kind"], figures["written_bytes"]) == ("rdma", size_bytes - by_light["size_bytes"])
    assert figures["transfers_given"] == figures["transfers_taken"] == len(asked["by_rdma"])
    pulled = asked["pulled"]
    assert pulled["equal"]
    assert pulled["was_writing"]
    assert pulled["ways"][0].startswith("rdma, then the stream: "), pulled
    assert pulled["sent_bytes"] >= pulled["size_bytes"]
    assert asked["after"]["open"] == looked["fabrics"]["open"] == {}
    assert asked["after"]["fallbacks"]["count"] == 1
    with capsys.disabled():
        print(f"\nfrom the first error to the stream, emulated: {asked['after']['fallbacks']['longest_s']:.3f} s")
