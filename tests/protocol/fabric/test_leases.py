"""Leases: one of a region at a time, inside its bounds, never of an epoch that is over."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.fabric.leases import LeaseBook, RegionTable
from protocol.fabric.values import REGION_MAX, FabricConfig, Lease, Rights

CONFIG = FabricConfig(regions_max=3, mapped_bytes_max=1000)


def lease(region: int = 0, epoch: int = 1, offset: int = 0, length: int = 10, rights: Rights = Rights.READ) -> Lease:
    return Lease(region, epoch, offset, length, rights, 1.0)


def code_of(kind, call) -> ErrorCode:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


# The owner's book


def test_a_region_has_one_lease_at_a_time_and_each_in_a_greater_epoch():
    book = LeaseBook(CONFIG)
    region = book.add(100)
    first = book.grant(region, 0, 100, Rights.READ, 1.0, 0.0)
    assert code_of(LocalProtocolError, lambda: book.grant(region, 0, 1, Rights.READ, 1.0, 0.0)) is ErrorCode.STALE_LEASE
    assert book.end(first)
    second = book.grant(region, 0, 100, Rights.READ, 1.0, 0.0)
    assert second.epoch > first.epoch
    assert not book.end(first), "the earlier one ends nothing"
    assert book.holds(second, 0.5)
    assert not book.holds(first, 0.5)


def test_books_that_follow_one_another_number_their_regions_on():
    numbers = count()
    books = [LeaseBook(CONFIG, numbers) for _ in range(2)]
    assert [book.add(100) for book in (*books, *books)] == [0, 1, 2, 3]


def test_there_are_no_more_regions_than_numbers():
    book = LeaseBook(CONFIG, count(REGION_MAX))
    assert book.add(100) == REGION_MAX
    assert code_of(LocalProtocolError, lambda: book.add(100)) is ErrorCode.TOO_LARGE


def test_an_owner_leases_nothing_outside_a_region():
    book = LeaseBook(CONFIG)
    region = book.add(100)
    for offset, length in ((-1, 1), (0, 101), (100, 1), (0, -1)):
        assert code_of(LocalProtocolError, lambda o=offset, n=length: book.grant(region, o, n, Rights.READ, 1.0, 0.0)) is (
            ErrorCode.OUT_OF_BOUNDS
        )
    both = Rights.READ | Rights.WRITE
    assert code_of(LocalProtocolError, lambda: book.grant(region, 0, 1, both, 1.0, 0.0)) is ErrorCode.OUT_OF_BOUNDS


def test_a_lease_that_nobody_gives_back_runs_out_and_its_region_is_retired():
    book = LeaseBook(CONFIG)
    region = book.add(100)
    held = book.grant(region, 0, 100, Rights.READ, 1.0, 10.0)
    ends_at = 10.0 + 1.0 + CONFIG.lease_grace_s
    assert book.next_timer() == ends_at
    assert book.expired(ends_at - 0.001) == []
    assert book.holds(held, ends_at - 0.001)
    assert book.expired(ends_at) == [region]
    assert not book.holds(held, ends_at)
    book.drop(region)
    assert book.add(100) != region, "its number does not come again"


def test_a_peer_is_shown_so_much_and_no_more():
    book = LeaseBook(CONFIG)
    assert [book.add(300) for _ in range(4)] == [0, 1, 2, None]
    book.drop(1)
    assert book.add(401) is None
    assert book.add(400) == 3


# The holder's table


def test_a_lease_of_a_region_that_was_not_shown_is_stale():
    table = RegionTable(CONFIG)
    assert code_of(RemoteProtocolError, lambda: table.take(lease(), Rights.READ)) is ErrorCode.STALE_LEASE


def test_an_epoch_is_taken_once():
    table = RegionTable(CONFIG)
    table.show(0, 100)
    table.take(lease(epoch=5), Rights.READ)
    for epoch in (5, 4, 0):
        stale = lease(epoch=epoch)
        assert code_of(RemoteProtocolError, lambda stale=stale: table.take(stale, Rights.READ)) is ErrorCode.STALE_LEASE
    table.take(lease(epoch=6), Rights.READ)


@pytest.mark.parametrize(
    "wrong",
    [lease(length=101), lease(offset=91), lease(offset=-1), lease(length=-1), lease(rights=Rights.WRITE)],
    ids=repr,
)
def test_a_lease_past_its_region_or_for_something_else_is_out_of_bounds(wrong):
    table = RegionTable(CONFIG)
    table.show(0, 100)
    assert code_of(RemoteProtocolError, lambda: table.take(wrong, Rights.READ)) is ErrorCode.OUT_OF_BOUNDS
    table.take(lease(), Rights.READ)  # what was refused has not cost the epoch


def test_a_user_maps_so_much_of_a_peer_and_no_more():
    table = RegionTable(CONFIG)
    table.show(0, 600)
    assert code_of(RemoteProtocolError, lambda: table.show(0, 1)) is ErrorCode.MALFORMED
    assert code_of(RemoteProtocolError, lambda: table.show(1, 401)) is ErrorCode.TOO_LARGE
    assert code_of(RemoteProtocolError, lambda: table.show(1, 0)) is ErrorCode.TOO_LARGE
    table.show(1, 200)
    table.show(2, 200)
    assert code_of(RemoteProtocolError, lambda: table.show(3, 1)) is ErrorCode.TOO_LARGE
    table.hide(0)
    table.show(3, 600)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(0, 2), st.integers(-5, 120), st.integers(-5, 120)),
        st.tuples(st.just("end"), st.integers(0, 20)),
        st.tuples(st.just("pass"), st.floats(0.0, 5.0)),
        st.tuples(st.just("replay"), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(STEPS)
def test_what_an_owner_gives_a_holder_can_take_once_and_nothing_else(steps):
    """A book and a table side by side: a fresh lease is always taken, an old one never, and no byte is outside its region."""
    sizes = (100, 64, 10)
    book, table = LeaseBook(CONFIG), RegionTable(CONFIG)
    for region, size in enumerate(sizes):
        assert book.add(size) == region
        table.show(region, size)
    now, given_out, taken = 0.0, [], {}
    for step in steps:
        match step:
            case ("grant", region, offset, length):
                try:
                    fresh = book.grant(region, offset, length, Rights.READ, 1.0, now)
                except LocalProtocolError:
                    continue
                assert 0 <= fresh.offset <= fresh.offset + fresh.length <= sizes[region]
                table.take(fresh, Rights.READ)
                assert fresh.epoch > taken.get(region, 0)
                taken[region] = fresh.epoch
                given_out.append(fresh)
            case ("end", which) if given_out:
                book.end(given_out[which % len(given_out)])
            case ("pass", lasts):
                now += lasts
                for region in book.expired(now):
                    assert not any(book.holds(old, now) for old in given_out if old.region == region)
            case ("replay", which) if given_out:
                old = given_out[which % len(given_out)]
                with pytest.raises(RemoteProtocolError):
                    table.take(old, Rights.READ)
