"""The RDMA fabric between two software devices of one guest: nodes that use it, a cable that is pulled, and peers that attack."""

import sys

import pytest
from guests import CACHE, ROOT, Machine, booted

from mesh.fabric.verbs.binding import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

REFUSED = ("RDMA: remote access error", "RDMA: remote invalid request error")
"""What the attacker's device says where the victim's has refused: a key, or a kind of request that it was not allowed at all."""
OTHERS = (
    "transfers",
    "sound_write",
    "past_the_window",
    "exhaustion",
    "flood_of_words",
    "other_bytes",
    "never_written",
    "without_windows",
)
"""Works of inside_rdma_pair.py that are no attack with a key."""
ATTACKS = (
    "stale_key",
    "revoked",
    "wrong_epoch",
    "region_key",
    "out_of_bounds",
    "across_the_end",
    "read_out",
    "foreign_key",
)


@pytest.fixture(scope="module")
def devices(_can_boot):
    """A guest with the devices rxa and rxb at the two ends of a cable."""
    load(CACHE / "isochrone")
    with booted(Machine()) as guest:
        guest.run("tests/guest/two_rdma_devices.sh")
        yield guest


def told(guest, program: str, *arguments: str, time_s_max: float = 500.0) -> dict:
    command = (sys.executable, "-u", str(ROOT / "tests/guest" / program), *arguments)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(CACHE)}
    return guest.run(*command, time_s_max=time_s_max, **environment).told


@pytest.fixture(scope="module")
def everything(devices):
    """What each work has found, in a fabric of its own: one process, because to begin one takes an emulated processor long."""
    found = told(devices, "inside_rdma_pair.py", *OTHERS, *ATTACKS, "link_down", time_s_max=1000)
    for name, outcome in found.items():
        assert "error" not in outcome, (name, outcome)
    return found


def test_tensors_are_written_into_the_peers_memory_and_not_copied_there(everything):
    found = everything["transfers"]
    assert all(found["equal"])
    assert found["readonly"]
    assert found["lying"]
    assert found["lying_copied_bytes"] == 0
    assert found["regions"] <= 3, "regions are used again"
    assert found["closed"] == [None, None]
    assert found["figures"]["transfers_taken"] == len(found["equal"]) // 2 + 1


def test_what_an_attacker_may_write_it_can_write(everything):
    assert everything["sound_write"] == {"says": "Success", "changed": 4096, "closed": "open"}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_key_that_is_not_good_is_refused_by_the_device_and_nothing_changes(everything, name):
    assert everything[name]["says"] in REFUSED, everything[name]
    assert everything[name]["changed"] == 0


@pytest.mark.parametrize("name", ["stale_key", "revoked", "wrong_epoch", "region_key", "foreign_key"])
def test_the_first_attack_closes_the_attackers_fabric(everything, name):
    assert "stopped the queue pair" in everything[name]["closed"], everything[name]


def test_nothing_can_be_read_by_a_key_to_write(everything):
    assert everything["read_out"]["leaked"] == 0


def test_others_go_on_while_one_attacks(everything):
    assert everything["foreign_key"]["honest_goes_on"]


def test_an_epoch_that_is_over_is_refused_before_anything_is_written(everything):
    assert everything["wrong_epoch"]["giver"] == "STALE_LEASE"


def test_past_the_window_there_is_nothing_of_anybody_else(everything):
    """As of Linux 6.12 the software device holds a write against the region, not against the window inside it."""
    found = everything["past_the_window"]
    assert found["says"] in (*REFUSED, "Success")
    assert found["changed_in_lease"] == 0
    assert found["changed_in_other"] == 0


def test_a_peer_gets_so_much_and_no_more(everything):
    found = everything
    assert found["exhaustion"]["regions"] == "OVERLOADED"
    assert found["exhaustion"]["bytes"] == "OVERLOADED"
    assert found["exhaustion"]["leased_bytes"] <= 1 << 20
    assert found["exhaustion"]["goes_on"]
    assert found["exhaustion"]["given"], "what is too large is not given"
    assert found["flood_of_words"]["goes_on"]


def test_other_bytes_than_the_tag_says_do_not_count(everything):
    found = everything
    assert found["other_bytes"]["code"] == "CORRUPTED"
    assert found["never_written"]["code"] == "FABRIC_FAILED"


def test_a_device_without_windows_does_as_well(everything):
    found = everything["without_windows"]
    assert found["equal"] == [True, True]
    assert found["says"] in REFUSED
    assert found["changed"] == 0


def test_a_cable_that_is_pulled_closes_the_fabric_at_both_ends(everything):
    found = everything["link_down"]
    assert found["failed"]
    assert all(why not in ("open", "None", "") for why in found["closed"]), found


def test_tensors_of_two_nodes_go_by_rdma_until_the_cable_is_pulled(devices):
    found = told(devices, "inside_rdma_nodes.py", time_s_max=1000)
    for answer in found["by_rdma"]:
        assert answer["equal"]
        assert answer["ways"] == ["rdma"]
        # Packets of 1024 bytes, each way once: nothing of it can have gone by QUIC.
        assert answer["counted"]["sent_pkts"] >= answer["size_bytes"] // 1024
        assert answer["counted"]["rcvd_pkts"] >= answer["size_bytes"] // 1024
    pulled = found["pulled"]
    assert pulled["equal"]
    assert pulled["was_writing"]
    assert pulled["ways"][0].startswith("rdma, then the stream: "), pulled
    closed = found["closed"]
    assert closed["equal"]
    assert closed["ways"] == [""], "the fabric stays closed for a while"
    assert closed["counted"]["sent_pkts"] == 0
