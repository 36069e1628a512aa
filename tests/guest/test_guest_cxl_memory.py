"""Emulated CXL memory: a type-3 device becomes a device-DAX, and two guests on one device read each other's bytes."""

import hashlib
import random
from contextlib import ExitStack

import pytest
from guests import Machine, booted, with_cxl_memory

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

LENGTH = 4 << 20
PLACES = {"left": 16 << 20, "right": 64 << 20}
"""Where each guest writes."""


def digest(seed: str) -> str:
    return hashlib.sha256(random.Random(seed).randbytes(LENGTH)).hexdigest()


def test_two_guests_share_the_memory_of_one_device(can_boot, tmp_path):
    with ExitStack() as stack:
        guests = {}
        for name in PLACES:
            machine = Machine(name=name, processors=1, memory="1G")
            guests[name] = stack.enter_context(booted(with_cxl_memory(machine, tmp_path / "memory", tmp_path / f"labels-{name}")))
        # Making the device ready writes into the memory, so that both do it before anybody uses it.
        devices = {name: guest.run("tests/guest/cxl_memory.sh").output.splitlines()[-1] for name, guest in guests.items()}
        for name, place in PLACES.items():
            arguments = (devices[name], str(place), str(LENGTH), name)
            told = guests[name].python("tests/guest/inside_dax.py", "write", *arguments).told
            assert told["sha256"] == digest(name)
        for name, other in (("left", "right"), ("right", "left")):
            arguments = (devices[name], str(PLACES[other]), str(LENGTH), other)
            told = guests[name].python("tests/guest/inside_dax.py", "read", *arguments).told
            assert told["sha256"] == digest(other)
    written = (tmp_path / "memory").read_bytes()
    assert all(random.Random(name).randbytes(LENGTH) in written for name in PLACES), "the bytes went elsewhere than to the device"
