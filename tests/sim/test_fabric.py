"""Fabrics that fail, stall, corrupt and revoke at every step; and cores with a planted bug, which the checks catch."""

import json

import pytest

from protocol.errors import ProtocolError
from protocol.fabric import transfer
from protocol.fabric.leases import RegionTable
from protocol.fabric.transfer import Action, Giver, Gives, Receiver, Takes
from sim.fabric import FabricSettings, run_fabric
from sim.fabric.command import main
from sim.fabric.ends import FALL_BACK_S, Fates

SEEDS = range(60)


def test_every_request_is_answered_whatever_the_fabric_does() -> None:
    results = [run_fabric(FabricSettings(seed)) for seed in SEEDS]
    assert [(result.seed, result.failure) for result in results if result.failure] == []
    assert all(result.answered == result.requests == 40 for result in results)
    assert max(result.longest_fall_back_s for result in results) <= FALL_BACK_S
    # and all of it has happened
    for what in ("by_fabric", "by_stream", "errors", "voided", "corrupted", "turned_away"):
        assert sum(getattr(result, what) for result in results) > 50, what


def test_a_sound_fabric_carries_everything() -> None:
    result = run_fabric(FabricSettings(5, requests=7, fates=Fates(lease_s=60.0), corrupt_share=0.0, delay_s=0.001))
    assert (result.failure, result.by_stream, result.errors) == ("", 0, 0)
    assert result.by_fabric == 2 * result.requests


@pytest.mark.parametrize("fates", [Fates(fail=1.0), Fates(stall=1.0), Fates(revoke=1.0)], ids=["fails", "stalls", "is revoked"])
def test_a_fabric_that_always_breaks_costs_no_answer(fates) -> None:
    for seed in range(10):
        result = run_fabric(FabricSettings(seed, fates=fates, corrupt_share=0.0))
        assert result.failure == ""
        assert result.answered == result.requests


def test_a_seed_says_the_same_twice() -> None:
    assert run_fabric(FabricSettings(3)) == run_fabric(FabricSettings(3))


PLANTED = {
    "a region is used again while its reader may look": (
        transfer.GIVING,
        (Giver.OFFERED, Gives.LATE),
        (Giver.DOUBTED, (Action.REUSE, Action.STREAM)),
    ),
    "what a peer can still write to is read": (
        transfer.TAKING,
        (Receiver.GRANTED, Takes.PLACED),
        (Receiver.CHECKING, (Action.CHECK,)),
    ),
    "a refusal brings no bytes": (transfer.GIVING, (Giver.OFFERED, Gives.REFUSED), (Giver.STREAMED, (Action.REUSE,))),
    "a late writer brings no bytes": (transfer.GIVING, (Giver.WRITING, Gives.LATE), (Giver.STREAMED, (Action.REUSE,))),
    "what was taken back is counted on": (
        transfer.TAKING,
        (Receiver.TAKEN, Takes.REVOKED),
        (Receiver.FROM_STREAM, (Action.LET_GO, Action.SAY_REFUSED)),
    ),
    "a lease outlives a failure": (
        transfer.TAKING,
        (Receiver.GRANTED, Takes.STREAMED),
        (Receiver.WAITING, (Action.LET_GO, Action.COLLECT, Action.COLLECT)),
    ),
}
EQUIVALENT = {"a lease outlives a failure"}
"""Letting go ends a lease too: nothing is to be seen, and the checks must not cry."""


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checks_catch_a_planted_bug(planted, monkeypatch) -> None:
    table, key, row = PLANTED[planted]
    monkeypatch.setitem(table, key, row)
    found = ""
    for seed in SEEDS:
        try:
            found = run_fabric(FabricSettings(seed)).failure
        except ProtocolError as crash:  # a core that blames the other end is caught, too
            found = repr(crash)
        if found:
            break
    assert bool(found) is (planted not in EQUIVALENT)


def test_the_checks_catch_a_table_of_regions_without_epochs(monkeypatch) -> None:
    monkeypatch.setattr(RegionTable, "take", lambda self, lease, rights: None)
    found = [run_fabric(FabricSettings(seed)).failure for seed in range(10)]
    assert any("a second time" in failure for failure in found)


def test_the_command_prints_a_table_or_json_and_says_when_a_promise_broke(capsys, monkeypatch) -> None:
    assert main(["--seeds", "3", "--requests", "10"]) == 0
    assert "held" in capsys.readouterr().out
    assert main(["--seed", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 40
    table, key, row = PLANTED["a refusal brings no bytes"]
    monkeypatch.setitem(table, key, row)
    assert main(["--seeds", "10"]) == 1
    assert "were not answered" in capsys.readouterr().out.replace("\n", " ")


def test_a_refusal_that_is_slower_than_the_end_of_its_lease_brings_the_bytes_all_the_same() -> None:
    """Found by seed 330: the giver had forgotten the transfer with its lease."""
    assert run_fabric(FabricSettings(330)).failure == ""
