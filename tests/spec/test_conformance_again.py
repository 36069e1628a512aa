"""The conformance suite on nodes that hold much already: of runs before, and of the mesh that they belong to."""

from contextlib import AsyncExitStack

import pytest
import trio
from subject_nodes import failures, subject_node, tried

from mesh.conformance.peer import Subject
from mesh.conformance.registry import CASES
from mesh.conformance.runner import Outcome, look

RUNS = 3
"""Runs in a row, a count: what the first leaves behind lives for two minutes, and meets the other two."""

MEMBERS = 5
"""Nodes of the mesh, a count: as many as make the one that is tried have links enough without the suite's."""

OTHERS_FIRST = {"a_new_stream_repeats_the_graft", "digests_come_at_the_beginning_and_at_intervals"}
"""What a node may do with other members in place of the suite's peers, at its choice."""

OF_PRIVATE_NODES = {case.name for case in CASES if all(name.startswith("ISO-ADM") for name in case.sentences)}
"""What is tried on nodes of private networks alone (test_conformance_private.py)."""

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(400)]


async def test_a_node_passes_again_and_again(tmp_path):
    skipped = []
    async with subject_node(tmp_path) as subject:
        for _ in range(RUNS):
            results = await tried(Subject(subject.address), CASES)
            assert failures(results) == {}
            skipped.append({name for name, result in results.items() if result.outcome is Outcome.NOT_APPLICABLE})
    assert skipped[0] | OTHERS_FIRST == skipped[-1] | OTHERS_FIRST, "a later run tries less"


async def test_a_member_of_a_mesh_passes(tmp_path):
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(subject_node(tmp_path / "node0"))
        for number in range(1, MEMBERS):
            member = subject_node(tmp_path / f"node{number}", bootstrap=(first.address,))
            subject = await stack.enter_async_context(member)
        with trio.fail_after(20):
            while subject.n_others < MEMBERS - 1:
                await trio.sleep(0.1)  # what is waited for tells nobody
                await look(subject)
        results = await tried(Subject(subject.address), CASES)
    assert failures(results) == {}
    skipped = {name for name, result in results.items() if result.outcome is Outcome.NOT_APPLICABLE and not result.case.slow}
    assert skipped <= OTHERS_FIRST | OF_PRIVATE_NODES
