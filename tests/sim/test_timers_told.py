"""A core says when it is to be woken without asking all its machines each time; it must never say too late."""

import pytest

from protocol.node import Node
from sim.run import Run, Settings


@pytest.mark.parametrize(("faults", "requests_per_s", "seed"), [("none", 0.0, 1), ("all", 6.0, 2), ("all", 6.0, 3)])
def test_the_next_timer_is_what_all_machines_together_say(
    faults: str, requests_per_s: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    told = Node.next_timer

    def compared(node: Node) -> float:
        nonlocal looked
        looked += 1
        due, remembered = told(node), node._due
        node._due = None
        assert due == told(node), "something has moved a timer, and `_due` was not forgotten"
        node._due = remembered
        return due

    monkeypatch.setattr(Node, "next_timer", compared)
    result = Run(Settings(nodes=10, duration_s=20.0, seed=seed, faults=faults, requests_per_s=requests_per_s)).simulate()
    assert result.failure == ""
    assert looked > 5_000
