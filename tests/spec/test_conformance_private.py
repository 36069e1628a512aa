"""The conformance suite on nodes of private networks: as a stranger, and as members by the network's key."""

import pytest
import trio
from subject_nodes import failures, subject_node, tried

from mesh.conformance.papers import Papers
from mesh.conformance.peer import Subject
from mesh.conformance.registry import CASES
from mesh.conformance.runner import Outcome, UnreachableError, look
from mesh.transport import Door
from protocol.identity import Identity

ROOT = Identity.from_seed(bytes([31]) * 32)
ADMISSION = [case for case in CASES if any(name.startswith("ISO-ADM") for name in case.sentences)]

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(300)]


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
async def test_a_stranger_sees_that_it_is_refused_and_how(engine, tmp_path):
    async with subject_node(tmp_path, engine, root=ROOT) as subject:
        results = await tried(subject, CASES)
    assert subject.is_closed
    assert failures(results) == {}
    passed = {name for name, result in results.items() if result.outcome is Outcome.PASS}
    assert passed == {case.name for case in CASES if case.uninvited}


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
async def test_a_member_tries_everything(engine, tmp_path):
    async with subject_node(tmp_path, engine, root=ROOT) as subject:
        results = await tried(Subject(subject.address, papers=Papers(ROOT)), CASES)
    assert failures(results) == {}
    skipped = {name for name, result in results.items() if result.outcome is Outcome.NOT_APPLICABLE and not result.case.slow}
    assert skipped == set()


async def test_papers_of_another_network_are_told_before_anything_is_tried(tmp_path):
    async with subject_node(tmp_path, root=ROOT) as subject:
        with pytest.raises(UnreachableError, match="whose key was given"):
            await look(Subject(subject.address, papers=Papers.of_nobody()))


def lets_everybody_in(service):
    shown = service._gate.membership.shown
    service.transport._entrance._door = Door(lambda: shown, lambda _peer, _proof: False)


def refuses_with_one_alert(service):
    check = service._gate.check

    def refuse(peer_id, proof):
        try:
            return check(peer_id, proof)
        except Exception as fault:
            raise type(fault)(0x4, "no") from fault

    shown = service._gate.membership.shown
    service.transport._entrance._door = Door(lambda: shown, refuse)


@pytest.mark.parametrize("spoil", [lets_everybody_in, refuses_with_one_alert])
async def test_a_node_that_lets_in_too_many_or_says_too_little_is_caught(spoil, tmp_path):
    async with subject_node(tmp_path, "aioquic", spoil, root=ROOT) as subject:
        with trio.fail_after(120):
            results = await tried(Subject(subject.address, papers=Papers(ROOT)), ADMISSION)
    failed = set(failures(results))
    assert {"who_shows_nothing_is_not_admitted", "members_of_other_networks_are_refused"} <= failed
    assert not [reason for reason in failures(results).values() if "broke" in reason]
