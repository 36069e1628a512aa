"""What a peer may have locked in memory by RDMA, and what its offers may ask for; no device is needed for that."""

import threading

import pytest

from mesh.fabric.rdma.given import RdmaGiven, extent_of
from mesh.fabric.rdma.memory import STEP_BYTES, Locked, locked_class
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Kind, Place
from protocol.fabric.messages import Offer
from protocol.fabric.values import BYTES_MAX
from protocol.inference import Tensor


def offer(*places: tuple[int, int]) -> Offer:
    return Offer(0, Kind.RDMA, tuple(Place("x", "u1", (length,), offset, length) for offset, length in places))


def refused(call, *arguments) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        call(*arguments)
    return caught.value.code


def test_all_peers_together_lock_so_much_and_no_more():
    locked = Locked(1000)
    locked.take(600)
    assert refused(locked.take, 401) is ErrorCode.OVERLOADED
    locked.take(400)
    locked.give_back(600)
    locked.take(600)
    assert locked.n_bytes == 1000


def test_regions_that_are_registered_at_the_same_time_are_all_charged():
    locked = Locked(1000)
    outcomes: list[bool] = []

    def register() -> None:
        try:
            locked.take(1)
        except RemoteProtocolError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=lambda: [register() for _ in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count(True), locked.n_bytes) == (1000, 1000)


def test_a_region_is_at_most_four_times_as_large_and_large_ones_hardly_larger():
    for size in (1, 65536, 65537, 1 << 20, (1 << 26) - 1, 1 << 26, (1 << 26) + 1, 5 << 30):
        assert size <= locked_class(size)
        assert locked_class(size) < max(4 * size, 65537)
    assert locked_class(5 << 30) - (5 << 30) < STEP_BYTES


def test_an_offer_leases_what_its_tensors_take_and_nothing_more():
    assert extent_of(offer((0, 100), (128, 50))) == 178
    assert extent_of(offer()) == 1
    assert extent_of(offer((0, 0))) == 1
    assert refused(extent_of, offer((0, 100), (4096, 50))) is ErrorCode.OUT_OF_BOUNDS
    assert refused(extent_of, offer((BYTES_MAX - 1, 1))) is ErrorCode.OUT_OF_BOUNDS, "memory would be locked for one byte"


def test_what_the_fabric_does_not_carry_is_all_there_for_the_stream():
    tensors = (
        Tensor("a", "u1", (5,), memoryview(b"12345")),
        Tensor("b", "u1", (0,), memoryview(b"")),
        Tensor("c", "u1", (2,), memoryview(b"67")),
    )
    given = RdmaGiven(tensors, offer((0, 5), (64, 0), (64, 2)).places)
    assert b"".join(given.pieces(2)) == b"1234567"
    assert max(len(piece) for piece in given.pieces(2)) == 2
    assert (given.size_bytes, given.extent_bytes) == (7, 66)
    assert [(at, bytes(piece)) for at, piece in given.placed(2, lambda: True)] == [(0, b"12"), (2, b"34"), (4, b"5"), (64, b"67")]
