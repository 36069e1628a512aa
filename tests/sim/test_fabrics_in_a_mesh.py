"""Fabrics in a mesh: nodes of one host and one rack share them, tensors take them, and the checks see what breaks."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.fabric import transfer
from protocol.fabric.transfer import Action, Giver, Gives
from sim.fabric import nodes
from sim.fabric.hardware import Hardware
from sim.fabric.poolsessions import CxlSession
from sim.fabric.sessions import GpuSession, ShmSession
from sim.faults.fabrics import KINDS
from sim.run import Run, Settings

ROOT = Path(__file__).parents[2]


def run_of(faults: str, seed: int = 2, n_nodes: int = 6, duration_s: float = 10.0) -> Run:
    return Run(Settings(nodes=n_nodes, duration_s=duration_s, seed=seed, faults=faults, delays="line", requests_per_s=15.0))


def failure_of(faults: str, seeds=range(1, 6)) -> str:
    """What the checks say first."""
    return next((failure for seed in seeds if (failure := run_of(faults, seed).simulate().failure)), "")


def test_tensors_take_the_fabrics_that_two_cards_have_in_common_and_each_of_them() -> None:
    run = run_of("none", n_nodes=9, duration_s=12.0)
    result = run.simulate()
    assert (result.failure, result.by_stream) == ("", 0)
    assert result.by_fabric > 80
    assert set(run.callers.fabrics.kinds_open()) == {"shm", "cxl", "rdma", "gpu"}
    told = [node for node in run.callers.fabrics.nodes.values() if node.member is not None]
    slots = {(id(node.pool), node.member.owner.slot) for node in told}
    assert len(slots) == len(told) > 2
    for index, node in run.callers.fabrics.nodes.items():
        racks = {run.world.by_id[peer].index // nodes.RACK_PROCESSES for peer, _ in node.sessions}
        assert racks <= {index // nodes.RACK_PROCESSES}


@pytest.mark.parametrize("fault", KINDS)
def test_a_request_is_answered_and_nothing_is_kept_whatever_its_fabric_does(fault) -> None:
    assert failure_of(fault, (1,)) == ""


def test_fabrics_fall_back_and_break_among_all_other_faults() -> None:
    results = [run_of(faults, seed).simulate() for seed, faults in enumerate(("all", "honest", ",".join(KINDS)))]
    assert [result.failure for result in results] == [""] * 3
    assert sum(result.by_fabric for result in results) > 60
    assert sum(result.by_stream for result in results) > 5


def test_a_run_says_the_same_under_every_hash_seed(tmp_path) -> None:
    told = []
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "sim", "--nodes", "6", "--for", "8", "--seed", "3", "--requests", "20", "--json"]
        command += ["--faults", ",".join(KINDS), "--delays", "line", "--output", str(tmp_path)]
        done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout)
        assert result["by_fabric"] > 20
        told.append((result["digest"], result["by_fabric"], result["by_stream"], result["answered"]))
    assert told[0] == told[1]


# Planted bugs


def no_bytes_after_a_refusal(monkeypatch) -> None:
    monkeypatch.setitem(transfer.GIVING, (Giver.OFFERED, Gives.REFUSED), (Giver.STREAMED, (Action.REUSE,)))


def half_a_second_of_patience(monkeypatch) -> None:
    monkeypatch.setattr(nodes, "CONFIG", replace(nodes.CONFIG, take_s=0.5))


def memory_of_whoever_had_it(monkeypatch) -> None:
    """Memory that was allocated for one peer is given to another."""
    allocate = Hardware.allocate

    def any_memory(self, peer, size_bytes):
        fitting = [segment for segment in self.segments if len(segment.data) >= size_bytes and segment.bound is None]
        return fitting[0] if fitting else allocate(self, peer, size_bytes)

    monkeypatch.setattr(Hardware, "allocate", any_memory)


def leases_that_nobody_gives_back(monkeypatch) -> None:
    """A receiver does not say that it is done, and the giver does not look at the time."""
    monkeypatch.setattr(ShmSession, "let_go", lambda self, lease: self.views.pop((lease.region, lease.epoch), None))
    monkeypatch.setattr(ShmSession, "tick", lambda self: None)
    monkeypatch.setitem(transfer.GIVING, (Giver.TAKEN, Gives.RELEASED), (Giver.OVER, ()))


def holds_that_stay(monkeypatch) -> None:
    monkeypatch.setattr(CxlSession, "let_go", lambda self, lease: None)


def regions_freed_at_once(monkeypatch) -> None:
    """Memory of a GPU goes back to the driver while the other side has it open."""
    close = GpuSession.close

    def closed(self, why):
        for own in self.own.values() if not self.closed else ():
            self.device.free(self.hardware, own.token)
        self.own.clear()
        close(self, why)

    monkeypatch.setattr(GpuSession, "close", closed)


PLANTED = {
    no_bytes_after_a_refusal: ("fabric-fails,fabric-stalls", "I11"),
    half_a_second_of_patience: ("fabric-stalls", "I11"),
    memory_of_whoever_had_it: ("none", "I12"),
    leases_that_nobody_gives_back: ("none", "I12"),
    holds_that_stay: ("none", "I12"),
    regions_freed_at_once: ("fabric-closes", "I12"),
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant, monkeypatch) -> None:
    faults, invariant = PLANTED[plant]
    plant(monkeypatch)
    assert failure_of(faults).startswith(invariant)
