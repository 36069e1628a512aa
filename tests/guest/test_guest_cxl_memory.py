"""Emulated CXL memory: two guests on one type-3 device share its bytes, and real nodes in them a pool."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from guests import Guest, Machine, booted, with_cable, with_cxl_memory

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

DEVICE = "/dev/dax0.0"
TENSOR_BYTES = 1280 << 10
"""More than the mebibyte from which on a fabric is used; what falls back to the stream takes an emulated processor long."""
CONNECT = """
    modprobe virtio_net; cable=$(basename /sys/bus/virtio/drivers/virtio_net/virtio*/net/*)
    ip addr add "10.6.0.$1/24" dev "$cable"; ip link set "$cable" up
"""
LENGTH = 4 << 20
PLACES = {"left": 16 << 20, "right": 64 << 20}
"""Where each guest writes."""


def digest(seed: str) -> str:
    return hashlib.sha256(random.Random(seed).randbytes(LENGTH)).hexdigest()


@contextmanager
def sharing(folder: Path) -> Iterator[tuple[dict[str, Guest], dict[str, ExitStack]]]:
    """Two guests with one device and a cable between them, and what ends each of them."""
    with ExitStack() as stack, TemporaryDirectory(prefix="isochrone-cable-") as cable:
        guests, ends = {}, {}
        for end, name in enumerate(PLACES):
            machine = with_cable(Machine(name=name, processors=1, memory="1G"), Path(cable), end)
            ends[name] = stack.enter_context(ExitStack())
            guests[name] = ends[name].enter_context(
                booted(with_cxl_memory(machine, folder / "memory", folder / f"labels-{name}"))
            )
        # Making the device ready writes into the memory, so that both do it before anybody uses it.
        for guest in guests.values():
            assert guest.run("tests/guest/cxl_memory.sh").output.splitlines()[-1] == DEVICE
        yield guests, ends


def test_two_guests_share_the_memory_of_one_device(can_boot, tmp_path):
    with sharing(tmp_path) as (guests, _):
        for name, place in PLACES.items():
            arguments = (DEVICE, str(place), str(LENGTH), name)
            told = guests[name].python("tests/guest/inside_dax.py", "write", *arguments).told
            assert told["sha256"] == digest(name)
        for name, other in (("left", "right"), ("right", "left")):
            arguments = (DEVICE, str(PLACES[other]), str(LENGTH), other)
            told = guests[name].python("tests/guest/inside_dax.py", "read", *arguments).told
            assert told["sha256"] == digest(other)
    written = (tmp_path / "memory").read_bytes()
    assert all(random.Random(name).randbytes(LENGTH) in written for name in PLACES), "the bytes went elsewhere than to the device"


def owners(guest: Guest) -> dict[str, dict]:
    """Who is in the pool, by slot."""
    told = json.loads(guest.python("node.py", "pool", "show", DEVICE, "--json").output.splitlines()[-1])
    return {owner["slot"]: owner for owner in told["owners"]}


def test_nodes_of_two_guests_pass_tensors_by_one_pool_and_one_outlives_the_other(can_boot, tmp_path):
    with sharing(tmp_path) as (guests, ends):
        left, right = guests["left"], guests["right"]
        for number, guest in enumerate((left, right), 1):
            guest.shell(CONNECT, str(number))
        left.python("node.py", "pool", "create", DEVICE)
        server = left.python("tests/guest/inside_pool.py", "serve", "left", "10.6.0.1", DEVICE, time_s_max=500).told
        asked = ("ask", "right", "10.6.0.2", DEVICE, server["address"], "tensor", str(TENSOR_BYTES))
        told = right.python("tests/guest/inside_pool.py", *asked, time_s_max=800).told
        assert told["is_same"], told
        assert told["ways"][-1] == "cxl", told
        assert told["sent_bytes"] < TENSOR_BYTES // 8, "the tensors went by the cable"
        assert random.Random("tensor").randbytes(TENSOR_BYTES) in (tmp_path / "memory").read_bytes()
        assert "flushed by" in told["fabrics"]["cxl"]["pools"][0]["memory"]
        before = owners(left)
        assert [owner["lives"] for owner in before.values()] == [True, True]
        ends["right"].close()  # as if its power had been cut
        left.python("tests/guest/inside_owners.py", DEVICE, "1", time_s_max=500)
        (alone,) = owners(left).values()
        assert alone["lives"]
        assert alone == before[alone["slot"]] | {name: alone[name] for name in ("claimed_bytes", "held_bytes", "regions")}
