"""RDMA from and to memory of an emulated GPU, between two software devices of one guest.

Linux's software device takes no dma-bufs, which is what the fall to the host is tried with. For the rest a capability is put
before it (dmabuf_card.c): the bytes go by its packets from and to the pages of the emulated GPU all the same.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from guests import CACHE, ROOT, Machine, booted

sys.path.insert(0, str(ROOT / "tests/mesh/nodes"))

from emulated_gpu import build

from mesh.fabric.verbs.binding import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

REFUSED = ("RDMA: remote access error", "RDMA: remote invalid request error")
"""What the attacker's device says where the victim's has refused."""
WITH_CARD = (
    "on_the_device",
    "one_side_only",
    "nothing_written",
    "stale_key_on_device",
    "out_of_bounds_on_device",
    "a_lease_that_was_not_asked_for",
)
"""Works of inside_rdma_gpus.py for which cards take GPUs' memory."""


@pytest.fixture(scope="module")
def gpu() -> Path:
    built = build()
    assert built is not None
    return built


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    """What gives the software device its capability."""
    made = tmp_path_factory.mktemp("card") / "dmabuf_card.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["gcc", *flags, str(ROOT / "tests/guest/dmabuf_card.c"), "-o", str(made), "-libverbs", "-ldl"], check=True)
    return made


@pytest.fixture(scope="module")
def devices(_can_boot, gpu):
    """A guest with the devices rxa and rxb at the two ends of a cable."""
    load(CACHE / "isochrone")
    with booted(Machine()) as guest:
        guest.run("tests/guest/two_rdma_devices.sh")
        yield guest


def told(guest, gpu: Path, card: Path | None, program: str, *arguments: str, time_s_max: float = 800.0) -> dict:
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/mesh/nodes'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(CACHE),
        "LD_LIBRARY_PATH": str(gpu.parent),
        **({} if card is None else {"LD_PRELOAD": str(card)}),
    }
    command = (sys.executable, "-u", str(ROOT / "tests/guest" / program), *arguments)
    return guest.run(*command, time_s_max=time_s_max, **environment).told


@pytest.fixture(scope="module")
def with_card(devices, gpu, card):
    found = told(devices, gpu, card, "inside_rdma_gpus.py", *WITH_CARD)
    for name, outcome in found.items():
        assert "error" not in outcome, (name, outcome)
    return found


def test_where_the_card_takes_no_dma_buf_tensors_go_by_the_host_with_one_copy(devices, gpu):
    found = told(devices, gpu, None, "inside_rdma_gpus.py", "a_real_dma_buf", "by_the_host")
    assert found["a_real_dma_buf"] == {"is": "/dmabuf:"}
    by_host = found["by_the_host"]
    assert by_host["equal"] == [True] * 4
    assert by_host["copies"] == [2] * 4, "one for each of two tensors"
    assert by_host["tags"] == [32] * 4
    assert not any(by_host["on_device"])
    assert by_host["closed"] == [None, None], "that is no fault of the fabric"
    giver, taker = by_host["figures"]
    assert taker["cards"] == {"rxb and the GPU at 0000:1a:00.0": "not possible: " + refusal("rxb")}
    assert giver["cards"] == {}, "nobody has leased it memory of a device"


def test_what_a_card_does_not_take_is_told_of_the_machine(devices, gpu, card):
    tried = told(devices, gpu, None, "../../node.py", "hardware", "--json", "--interval", "0")["gpu_direct"]
    assert tried["absent"] == ""
    assert [(one["card"], one["gpu"], one["why"]) for one in tried["tried"]] == [
        (name, "0000:1a:00.0", refusal(name)) for name in ("rxa", "rxb")
    ]
    tried = told(devices, gpu, card, "../../node.py", "hardware", "--json", "--interval", "0")["gpu_direct"]
    assert [one["why"] for one in tried["tried"]] == ["", ""]


def refusal(card: str) -> str:
    return f"2097152 bytes cannot be registered with {card}: Operation not supported"


def test_tensors_go_from_one_gpu_s_memory_into_another_s_without_a_copy_on_the_host(with_card):
    found = with_card["on_the_device"]
    assert found["equal"] == [True] * 8
    assert found["copies"] == 0
    assert found["tags"] == [0] * 8
    assert all(found["on_device"])
    assert found["written"] >= 3 << 19, "by the card, and by nothing else"
    assert all(found["mixed"])
    assert found["kept"]
    assert found["flushes"] >= 8
    assert found["regions"] <= 5, "regions are used again"
    assert found["figures"]["cards"] == {"rxb and the GPU at 0000:1a:00.0": "used"}
    assert found["session"]["taken_on_device"] >= 6
    assert found["closed"] == [None, None]


def test_memory_of_a_gpu_is_given_back_when_nobody_looks_at_it_any_more(with_card):
    found = with_card["on_the_device"]
    assert found["kept_after_the_end"]
    assert found["held_bytes"] == [0, 0]


def test_where_one_side_cannot_there_is_one_copy(with_card):
    found = with_card["one_side_only"]
    assert found["giver"] == {"equal": True, "copies": 2, "on_device": [True, True], "tag": 0}
    assert found["receiver"] == {"equal": True, "copies": 2, "on_device": [False, False], "tag": 32}
    assert found["unwanted"] == {"equal": True, "copies": 2, "on_device": [False, False], "tag": 32}
    assert found["closed"] == [None, None]


def test_what_a_peer_has_not_written_shows_nothing_of_anybody(with_card):
    assert with_card["nothing_written"] == {"says": "Success", "zeros": True}


def test_a_key_to_memory_of_a_gpu_is_worth_nothing_afterwards(with_card):
    found = with_card["stale_key_on_device"]
    assert found["says"] in REFUSED
    assert not found["changed"]
    assert found["closed"] != "open"


@pytest.mark.parametrize("name", ["past", "read"])
def test_a_key_to_memory_of_a_gpu_is_for_writing_inside_it(with_card, name):
    assert with_card["out_of_bounds_on_device"][name]["says"] in REFUSED
    assert with_card["out_of_bounds_on_device"][name]["changed"] == 0


def test_no_tag_is_left_out_that_the_offer_has_not_left_out(with_card):
    assert with_card["a_lease_that_was_not_asked_for"] == {"code": "MALFORMED", "written": 0}


def test_tensors_on_gpus_of_two_nodes_go_by_rdma_from_device_to_device(devices, gpu, card):
    found = told(devices, gpu, card, "inside_gpu_nodes.py", time_s_max=1000)
    for answer in found["answers"]:
        assert answer["equal"], answer
        assert answer["way"] == "rdma"
        assert answer["on_device"]
        assert answer["copies"] == 0
        # Packets of 1024 bytes, each way once: nothing of it can have gone by QUIC.
        assert answer["counted"]["sent_pkts"] >= answer["size_bytes"] // 1024
        assert answer["counted"]["rcvd_pkts"] >= answer["size_bytes"] // 1024
    assert found["answerer"]["lay"] == ["device"] * len(found["answers"])
    assert found["answerer"]["host_copies"] == 0
    assert found["asker"]["fabrics"]["rdma"]["gpu_direct"]["cards"] == {"rxa and the GPU at 0000:1a:00.0": "used"}
