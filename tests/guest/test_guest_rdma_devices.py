"""RDMA devices in software, on Debian's kernel: between two devices of one guest, and between two guests."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from guests import Machine, booted, with_cable

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

BYTES = 2 * 200 * 65536
"""What a ping-pong carries: 200 messages of 65,536 bytes each way."""

ONE_DEVICE = """
    modprobe virtio_net; modprobe rdma_rxe; modprobe ib_uverbs
    cable=$(basename /sys/bus/virtio/drivers/virtio_net/virtio*/net/*)
    ip addr add "10.5.0.$1/24" dev "$cable"; ip link set "$cable" mtu 9000 up
    rdma link add rxe type rxe netdev "$cable"
"""

LISTEN = """
    ibv_rc_pingpong -d rxe -g 1 -m 4096 -n 50 -s 65536 >/tmp/pong 2>&1 &
    until [ -n "$(ss -Hltn 'sport = :18515')" ]; do sleep 0.2; done
"""


def counters(guest, device: str) -> dict[str, int]:
    told = guest.shell(f"cd /sys/class/infiniband/{device}/ports/1/hw_counters; grep . sent_pkts rcvd_pkts").output
    return {name: int(value) for name, _, value in (line.partition(":") for line in told.splitlines() if ":" in line)}


def test_messages_go_between_two_devices_of_one_guest(can_boot):
    with booted(Machine()) as guest:
        guest.run("tests/guest/two_rdma_devices.sh")
        before = int(guest.run("cat", "/sys/class/net/va/statistics/tx_bytes").output)
        output = guest.run("tests/guest/ping_pong.sh", time_s_max=500).output
        assert output.count("200 iters in") == 2, output
        after = int(guest.run("cat", "/sys/class/net/va/statistics/tx_bytes").output)
        assert after - before >= BYTES // 2
        for device in ("rxa", "rxb"):
            counted = counters(guest, device)
            assert counted["sent_pkts"] >= 200, (device, counted)
            assert counted["rcvd_pkts"] >= 200, (device, counted)


def test_messages_go_between_two_guests(can_boot):
    with ExitStack() as stack:
        cable = Path(stack.enter_context(TemporaryDirectory(prefix="isochrone-cable-")))
        machines = [Machine(name=name, processors=1, memory="1G") for name in ("left", "right")]
        guests = [stack.enter_context(booted(with_cable(machine, cable, end))) for end, machine in enumerate(machines)]
        for number, guest in enumerate(guests, 1):
            guest.shell(ONE_DEVICE, str(number))
        left, right = guests
        left.shell(LISTEN)
        output = right.shell("ibv_rc_pingpong -d rxe -g 1 -m 4096 -n 50 -s 65536 10.5.0.1", time_s_max=500).output
        assert "50 iters in" in output
        for guest in guests:
            assert counters(guest, "rxe")["rcvd_pkts"] >= 50 * 65536 // 4096
