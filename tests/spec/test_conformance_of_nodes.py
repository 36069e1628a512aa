"""The conformance suite on nodes over real sockets: a sound node passes, and every wrong behaviour is caught by its name."""

import inference_faults
import mesh_faults
import pubsub_faults
import pytest
from subject_nodes import failures, subject_node, tried
from transport_faults import FAULTS

from mesh.conformance import peer, runner
from mesh.conformance.registry import CASES
from mesh.conformance.runner import Outcome, choose

assert inference_faults  # importing them registers their faults
assert mesh_faults
assert pubsub_faults

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(300)]


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
async def test_a_sound_node_passes(engine, tmp_path):
    async with subject_node(tmp_path, engine) as subject:
        results = await tried(subject, CASES)
    assert failures(results) == {}
    assert len(results) == len(CASES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_wrong_behaviour_is_caught(fault, tmp_path, monkeypatch):
    cases = choose(fault.sentences)
    assert cases
    monkeypatch.setattr(peer, "PATIENCE_S", 2.0)  # what does not come is not waited for as long as where all must come
    monkeypatch.setattr(runner, "CASE_S_MAX", 12.0)
    async with subject_node(tmp_path, "aioquic", lambda service: fault.spoil(service, monkeypatch)) as subject:
        results = await tried(subject, cases)
    failed = [result for result in results.values() if result.outcome is Outcome.FAIL]
    assert failed, {name: str(result.outcome) for name, result in results.items()}
    assert not [result for result in failed if "the case itself broke" in result.reason], failed
    told = {sentence for result in failed for sentence in result.case.sentences}
    assert told & set(fault.sentences)
