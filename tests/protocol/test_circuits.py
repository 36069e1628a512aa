"""What passes through a relay, and when it passes no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.circuits import CircuitConfig, Circuits
from protocol.errors import ErrorCode
from protocol.identity import PeerId

OWN = PeerId(b"own")


def peer(number: int) -> PeerId:
    return PeerId(b"peer%d" % number)


def opened(circuits: Circuits, requester: int, executor: int, *, hop: int = 1, now: float = 0.0) -> ErrorCode | None:
    declined = circuits.open(peer(requester), peer(executor), hop, now)
    return None if declined is None else declined.code


def test_a_requester_has_its_share_and_others_have_theirs() -> None:
    circuits = Circuits(CircuitConfig(circuits_per_peer_max=16), OWN)
    assert [opened(circuits, 1, 100 + number) for number in range(17)] == [None] * 16 + [ErrorCode.RELAY_REFUSED]
    assert opened(circuits, 2, 100) is None
    circuits.close(peer(1), peer(100))
    assert opened(circuits, 1, 100) is None
    assert len(circuits) == 17


def test_so_has_an_executor() -> None:
    circuits = Circuits(CircuitConfig(circuits_per_peer_max=4), OWN)
    assert [opened(circuits, number, 100) for number in range(5)] == [None] * 4 + [ErrorCode.RELAY_REFUSED]
    assert opened(circuits, 5, 101) is None


def test_all_of_them_together_are_bounded() -> None:
    circuits = Circuits(CircuitConfig(circuits_max=10), OWN)
    assert [opened(circuits, number, 100 + number) for number in range(11)] == [None] * 10 + [ErrorCode.RELAY_REFUSED]


@pytest.mark.parametrize(("executor", "hop", "code"), [
    (1, 1, ErrorCode.RELAY_REFUSED), (100, 0, ErrorCode.HOPS_EXCEEDED), (100, 2, ErrorCode.HOPS_EXCEEDED),
])  # fmt: skip
def test_nothing_passes_twice_or_back(executor: int, hop: int, code: ErrorCode) -> None:
    assert opened(Circuits(CircuitConfig(), OWN), 1, executor, hop=hop) is code


def test_nothing_passes_to_the_relay_itself() -> None:
    declined = Circuits(CircuitConfig(), OWN).open(peer(1), OWN, 1, 0.0)
    assert declined is not None
    assert declined.code is ErrorCode.RELAY_REFUSED


def test_beginning_is_paid_for_also_where_it_is_refused() -> None:
    circuits = Circuits(CircuitConfig(rate_per_s=1.0, burst=3.0), OWN)
    assert [opened(circuits, 1, 100, hop=0) for _ in range(4)] == [ErrorCode.HOPS_EXCEEDED] * 3 + [ErrorCode.RELAY_REFUSED]
    assert opened(circuits, 2, 100) is None
    assert opened(circuits, 1, 100, now=1.5) is None


def test_rates_of_a_bounded_number_of_peers_are_remembered() -> None:
    circuits = Circuits(CircuitConfig(peers_max=8), OWN)
    for number in range(100):
        opened(circuits, number, 1000)
    assert len(circuits._budgets) == 8


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(4, 6), st.booleans()), max_size=60))
def test_the_books_are_right_whatever_comes(steps: list[tuple[int, int, bool]]) -> None:
    config = CircuitConfig(circuits_max=5, circuits_per_peer_max=3, burst=1e9)
    circuits = Circuits(config, OWN)
    under_way: list[tuple[int, int]] = []
    for requester, executor, closes in steps:
        if closes and under_way:
            asking, answering = under_way.pop(0)
            circuits.close(peer(asking), peer(answering))
        elif opened(circuits, requester, executor) is None:
            under_way.append((requester, executor))
        assert len(circuits) == len(under_way) <= config.circuits_max
        for number in range(7):
            assert sum(number in pair for pair in under_way) <= config.circuits_per_peer_max
    assert circuits._asking.total() == circuits._answering.total() == len(under_way)
