"""Edges: nine bytes each, counted where both ends tell them alike, never shortened, bounded, and fair to who shares a place."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.edges import EdgeConfig, EdgeDisputed, EdgeStore
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.records import (
    EDGE_BYTES,
    TAG_BYTES,
    Measured,
    Way,
    check_measured,
    decode_measured,
    edge_tag,
    encode_measured,
    find_measured,
    rtt_code,
    rtt_of,
)

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "coordinates.json").read_text())["edges"]
A, B, C, D, E = (PeerId(bytes([0, 36, number]) * 12) for number in range(1, 6))
COUNT_MAX = 128

edges = st.builds(
    Measured,
    tag=st.binary(min_size=TAG_BYTES, max_size=TAG_BYTES).filter(any),
    rtt_s=st.floats(1e-5, 10.0),
    age_s=st.floats(0.0, 5000.0),
    jitter_s=st.floats(0.0, 10.0),
    loss=st.floats(0.0, 1.0),
    way=st.sampled_from(Way),
)


def told(author: PeerId, rtts: dict[PeerId, float], **more: object) -> bytes:
    return encode_measured(Measured(edge_tag(author, other), rtt_s, **more) for other, rtt_s in rtts.items())


def refused(packed: bytes) -> ErrorCode | None:
    try:
        check_measured(packed, COUNT_MAX)
    except RemoteProtocolError as error:
        return error.code
    return None


# The form


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS])
def test_an_edge_is_read_and_written_as_specified(vector: dict) -> None:
    one, other = (PeerId(bytes.fromhex(end)) for end in vector["ends"])
    packed = bytes.fromhex(vector["edge"])
    (edge,) = decode_measured(packed)
    assert edge.tag == edge_tag(one, other) == edge_tag(other, one)
    assert edge.rtt_s == pytest.approx(vector["rtt_s"], rel=1e-9)
    assert (edge.age_s, edge.jitter_s, edge.loss, int(edge.way)) == (
        vector["age_s"], vector["jitter_s"], vector["loss"], vector["way"],
    )  # fmt: skip
    assert encode_measured([edge]) == packed


@given(st.lists(edges, max_size=COUNT_MAX, unique_by=lambda edge: edge.tag))
def test_edges_come_back_within_the_steps_of_the_form(told_edges: list[Measured]) -> None:
    packed = encode_measured(told_edges)
    assert refused(packed) is None
    assert len(packed) == EDGE_BYTES * len(told_edges)
    back = decode_measured(packed)
    assert encode_measured(back) == packed
    for before, after in zip(sorted(told_edges, key=lambda edge: edge.tag), back, strict=True):
        assert after.rtt_s == pytest.approx(before.rtt_s, rel=0.001)
        assert abs(after.age_s - min(before.age_s, 2040.0)) <= 4.0
        assert before.jitter_s <= after.jitter_s or after.jitter_s > 3.0
        assert before.loss <= after.loss
        assert find_measured(packed, before.tag) == after
    assert find_measured(packed, b"\xff" * TAG_BYTES) is None or any(edge.tag == b"\xff" * TAG_BYTES for edge in back)


@given(st.binary(max_size=EDGE_BYTES * (COUNT_MAX + 2)))
def test_any_bytes_are_edges_or_refused(packed: bytes) -> None:
    code = refused(packed)
    if code is not None:
        assert code in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)
        return
    for edge in decode_measured(packed):
        assert 1e-5 <= edge.rtt_s <= 10.0 + 1e-9
        assert math.isfinite(edge.age_s + edge.jitter_s + edge.loss)


@pytest.mark.parametrize("rtt_s", [1e-5, 1.23456e-5, 0.001, 0.0799, 1.0, 9.999, 10.0])
def test_a_round_trip_keeps_a_tenth_of_a_percent(rtt_s: float) -> None:
    assert rtt_of(rtt_code(rtt_s)) == pytest.approx(rtt_s, rel=0.001)
    assert rtt_code(rtt_of(rtt_code(rtt_s))) == rtt_code(rtt_s)


def test_what_is_out_of_range_is_told_as_the_nearest_that_is_not() -> None:
    assert (rtt_code(1e-9), rtt_code(11.0)) == (1, 65_535)


def test_bytes_out_of_order_of_no_length_and_without_a_round_trip_are_refused() -> None:
    two = told(A, {B: 0.01, C: 0.02})
    assert refused(two) is None
    assert refused(two[EDGE_BYTES:] + two[:EDGE_BYTES]) is ErrorCode.MALFORMED
    assert refused(two[:EDGE_BYTES] * 2) is ErrorCode.MALFORMED
    assert refused(two[:-1]) is ErrorCode.MALFORMED
    assert refused(two[:TAG_BYTES] + b"\0\0" + two[TAG_BYTES + 2 :]) is ErrorCode.MALFORMED
    many = encode_measured(Measured(number.to_bytes(TAG_BYTES, "big"), 0.01) for number in range(1, COUNT_MAX + 2))
    assert refused(many) is ErrorCode.TOO_LARGE


def test_of_edges_that_share_a_tag_none_is_told() -> None:
    tag = edge_tag(A, B)
    assert encode_measured([Measured(tag, 0.01), Measured(tag, 0.02)]) == b""


# The store


def test_an_edge_counts_where_both_ends_tell_it_and_is_as_long_as_the_longer() -> None:
    store = EdgeStore()
    assert store.handle_told(A, told(A, {B: 0.050, C: 0.010}), 0.0) == []
    assert store.pairs(0.0) == []
    assert store.taken_changes() == [A]
    assert store.handle_told(B, told(B, {A: 0.053}, age_s=8.0, jitter_s=0.001, loss=0.02, way=Way.IPV4), 10.0) == []
    assert store.taken_changes() == [B]
    assert store.taken_changes() == []
    ((one, other, rtt_s),) = store.pairs(10.0)
    assert (one, other) == (A, B)
    assert rtt_s == pytest.approx(0.053, rel=0.001)
    theirs = store.told(B, A, 12.0)
    assert theirs is not None
    assert (theirs.age_s, theirs.way) == (pytest.approx(8.0, abs=4.0), Way.IPV4)
    assert (theirs.jitter_s, theirs.loss) == (pytest.approx(0.0016), 0.05)
    assert store.edges_of(B, 12.0) == [(A, rtt_s)]
    assert (store.standing(A), store.standing(C)) == ((1, 0), (0, 0))


@given(
    mine=st.floats(1e-4, 5.0), theirs=st.floats(1e-4, 5.0), jitter_s=st.floats(0.0, 10.0), age_s=st.floats(0.0, 1000.0)
)  # fmt: skip
def test_nobody_shortens_an_edge(mine: float, theirs: float, jitter_s: float, age_s: float) -> None:
    """Whatever an end says of the edge, it counts for nothing or is at least as long as the honest end has measured it."""
    store = EdgeStore()
    store.handle_told(A, told(A, {B: mine}, jitter_s=0.001), 0.0)
    store.handle_told(B, told(B, {A: theirs}, jitter_s=jitter_s, age_s=age_s), 0.0)
    assert all(rtt_s >= mine * 0.999 for _, _, rtt_s in store.pairs(0.0))


def test_ends_that_disagree_are_told_of_once_and_until_they_agree() -> None:
    store = EdgeStore()
    store.handle_told(A, told(A, {B: 0.050}), 0.0)
    (dispute,) = store.handle_told(B, told(B, {A: 0.005}), 0.0)
    assert dispute == EdgeDisputed(A, B, pytest.approx(0.050, rel=0.001), pytest.approx(0.005, rel=0.001))
    assert store.pairs(0.0) == []
    assert store.disputed() == {A: 1, B: 1}
    assert store.handle_told(B, told(B, {A: 0.006}), 60.0) == []
    assert store.standing(B) == (0, 1)
    store.handle_told(B, told(B, {A: 0.051}), 120.0)
    assert store.disputed() == {}
    assert store.standing(B) == (1, 0)


def test_who_disagrees_with_many_is_seen() -> None:
    store, honest = EdgeStore(), (A, B, C, D)
    for peer in honest:
        store.handle_told(peer, told(peer, {other: 0.04 for other in (*honest, E) if other != peer}), 0.0)
    disputes = store.handle_told(E, told(E, dict.fromkeys(honest, 0.001)), 0.0)
    assert len(disputes) == 4
    assert store.disputed() == {A: 1, B: 1, C: 1, D: 1, E: 4}
    assert [store.standing(peer)[0] for peer in (*honest, E)] == [3, 3, 3, 3, 0]


def test_who_disputes_most_of_what_it_tells_has_no_edge_that_counts() -> None:
    honest = crowd(20)
    for n_lies, counts in ((7, True), (10, True), (11, False)):
        store = EdgeStore()
        for peer in honest:
            store.handle_told(peer, told(peer, {E: 0.04}), 0.0)
        store.handle_told(E, told(E, {peer: 0.001 if at < n_lies else 0.04 for at, peer in enumerate(honest)}), 0.0)
        assert len(store.pairs(0.0)) == len(store.edges_of(E, 0.0)) == (20 - n_lies if counts else 0)


def test_what_jitter_explains_is_no_dispute_and_what_it_does_not_is() -> None:
    for jitter_s, counts in ((0.0001, False), (0.01, True)):  # 15 ms apart, of which 10 are always explained
        store = EdgeStore()
        store.handle_told(A, told(A, {B: 0.020}, jitter_s=jitter_s), 0.0)
        disputes = store.handle_told(B, told(B, {A: 0.035}, jitter_s=jitter_s), 0.0)
        assert (len(store.pairs(0.0)), len(disputes)) == ((1, 0) if counts else (0, 1))


def test_a_boast_of_jitter_explains_no_more_than_the_shorter_end_over_again() -> None:
    store = EdgeStore()
    store.handle_told(A, told(A, {B: 0.020}), 0.0)
    assert store.handle_told(B, told(B, {A: 1.0}, jitter_s=10.0), 0.0)
    assert store.pairs(0.0) == []


def test_two_states_of_a_path_are_no_dispute() -> None:
    store = EdgeStore()
    store.handle_told(A, told(A, {B: 0.020}, age_s=400.0), 0.0)
    assert store.handle_told(B, told(B, {A: 0.200}), 0.0) == []
    assert (store.pairs(0.0), store.disputed()) == ([], {})


def test_two_ways_say_nothing_of_one_another() -> None:
    for ways, count in (((Way.IPV4, Way.IPV6), 0), ((Way.IPV4, Way.IPV4), 1), ((Way.UNKNOWN, Way.IPV6), 1)):
        store = EdgeStore()
        store.handle_told(A, told(A, {B: 0.020}, way=ways[0]), 0.0)
        assert store.handle_told(B, told(B, {A: 0.020}, way=ways[1]), 0.0) == []
        assert len(store.pairs(0.0)) == count
    store = EdgeStore()
    store.handle_told(A, told(A, {B: 0.020}, way=Way.IPV4), 0.0)
    assert store.handle_told(B, told(B, {A: 0.900}, way=Way.IPV6), 0.0) == []


def test_edges_told_of_others_count_for_nothing() -> None:
    """An edge is named by both ends; who tells of one that is not its own finds nobody who agrees."""
    store = EdgeStore()
    store.handle_told(A, told(A, {C: 0.050}), 0.0)
    store.handle_told(B, told(A, {C: 0.001}), 0.0)  # B says what A would say of C
    store.handle_told(C, told(C, {A: 0.050}), 0.0)
    assert [(one, other) for one, other, _ in store.pairs(0.0)] == [(A, C)]
    assert store.pairs(0.0)[0][2] == pytest.approx(0.05, rel=0.001)


def test_edges_are_forgotten_after_their_time_and_with_their_record() -> None:
    store = EdgeStore(EdgeConfig(lifetime_s=100.0))
    for peer, at in ((A, 0.0), (B, 50.0), (C, 60.0)):
        store.handle_told(peer, told(peer, {other: 0.02 for other in (A, B, C) if other != peer}), at)
    assert len(store.pairs(60.0)) == 3
    assert [(one, other) for one, other, _ in store.pairs(100.0)] == [(B, C)]
    store.remove(C)
    assert (store.pairs(100.0), len(store), B in store) == ([], 1, True)
    assert store.told(B, C, 100.0).rtt_s == pytest.approx(0.02, rel=0.001)
    assert store.told(B, C, 151.0) is None
    store.handle_told(C, told(C, {B: 0.02}), 10.0)  # it came late
    assert len(store.pairs(109.0)) == 1
    assert store.pairs(110.0) == []
    assert C not in store


def test_small_differences_agree_and_large_ones_are_disputed() -> None:
    for mine, theirs, counts in ((0.001, 0.0059, True), (0.001, 0.0075, False), (0.1, 0.149, True), (0.1, 0.2, False)):
        store = EdgeStore()
        store.handle_told(A, told(A, {B: mine}), 0.0)
        store.handle_told(B, told(B, {A: theirs}), 0.0)
        assert len(store.pairs(0.0)) == counts


def test_whose_edges_count_otherwise_is_told() -> None:
    """Also of who is believed no more because of what others tell, or again, and of who had to make room."""
    honest = crowd(12)
    store = EdgeStore(EdgeConfig(peers_max=13, disputed_min=2))
    store.handle_told(E, told(E, dict.fromkeys(honest, 0.2)), 0.0)
    for number, peer in enumerate(honest):
        store.handle_told(peer, told(peer, {E: 0.2 if number < 2 else 0.04}), 1.0 + number)
        changes = store.taken_changes()
        assert changes == ([E, peer] if number in (0, 4) else [peer])  # with the third that disputes it E agrees with fewer
    assert store.edges_of(E, 20.0) == []
    for peer in honest[2:6]:
        store.handle_told(peer, told(peer, {E: 0.2}), 20.0)
    assert store.taken_changes() == [honest[2], honest[3], honest[4], E, honest[5]]
    assert len(store.edges_of(E, 20.0)) == 6
    store.handle_told(A, b"", 21.0)
    assert store.taken_changes() == [E, A]
    assert E not in store
    for peer in crowd(60):
        store.handle_told(peer, b"", 22.0)
    assert len(store.taken_changes()) == 26


def test_a_crowd_that_tells_of_others_hides_no_edge() -> None:
    """Very many who tell of one and the same edge cost no more than a look at each, and who are its ends agree all the same."""
    store = EdgeStore(EdgeConfig(peers_max=300))
    store.handle_told(A, told(A, {B: 0.02}), 0.0)
    for peer in crowd(250):
        store.handle_told(peer, told(A, {B: 0.001}), 0.0)
    store.handle_told(B, told(B, {A: 0.02}), 0.0)
    assert [(one, other) for one, other, _ in store.pairs(0.0)] == [(A, B)]


def crowd(number: int) -> list[PeerId]:
    return [PeerId(b"\0\x24" + index.to_bytes(2, "big")) for index in range(number)]


def test_the_store_is_bounded_and_the_longest_untold_goes() -> None:
    store = EdgeStore(EdgeConfig(peers_max=8))
    for at, peer in enumerate(crowd(20)):
        store.handle_told(peer, told(peer, {A: 0.02}), float(at))
        assert len(store) <= 8
    assert [peer for peer in crowd(20) if peer in store] == crowd(20)[12:]


def test_of_one_peers_edges_only_so_many_are_kept() -> None:
    store = EdgeStore(EdgeConfig(edges_max=4))
    others = crowd(30)
    store.handle_told(A, told(A, dict.fromkeys(others, 0.02)), 0.0)
    assert sum(store.tells_of(A, other) for other in others) == 4


@pytest.mark.parametrize("group", ["owner", "origin"])
def test_a_crowd_of_one_place_or_owner_keeps_only_its_share_once_others_come(group: str) -> None:
    store = EdgeStore(EdgeConfig(peers_max=16, owner_share=0.25, origin_share=0.25))
    peers = crowd(200)
    for at, peer in enumerate(peers[:100]):
        store.handle_told(peer, b"", float(at), **{group: b"crowd"})
    assert len(store) == 16  # nobody else was there
    for at, peer in enumerate(peers[100:112]):
        store.handle_told(peer, b"", 100.0 + at, **{group: bytes([at])})
    assert sum(peer in store for peer in peers[:100]) == 4
    for at, peer in enumerate(peers[112:]):
        store.handle_told(peer, b"", 200.0 + at, **{group: b"crowd"})
    assert sum(peer in store for peer in peers[100:112]) == 12


def test_what_comes_out_does_not_hang_on_the_order_in_which_it_came() -> None:
    luck, peers = random.Random(4), crowd(12)
    records = {peer: told(peer, {other: 0.02 for other in peers if other != peer}) for peer in peers}
    seen = set()
    for _ in range(5):
        store, order = EdgeStore(), list(peers)
        luck.shuffle(order)
        for peer in order:
            store.handle_told(peer, records[peer], 0.0)
        seen.add(tuple(store.pairs(0.0)))
    assert len(seen) == 1
    assert len(next(iter(seen))) == 66


class AnyEdges(RuleBasedStateMachine):
    """What the columns say is what comes out of laying all records beside one another anew."""

    def __init__(self) -> None:
        super().__init__()
        self.config = EdgeConfig(peers_max=5, edges_max=4, lifetime_s=50.0)
        self.store = EdgeStore(self.config)
        self.now = 0.0
        self.peers = crowd(8)
        self.read: dict[PeerId, dict[PeerId, float]] = {}  # what somebody holds who reads what has changed alone

    @rule(
        data=st.data(),
        rtt_s=st.sampled_from([0.01, 0.011, 0.1]),
        owner=st.sampled_from([None, b"a", b"b"]),
        wait_s=st.floats(0.0, 20.0),
    )
    def tell(self, data: st.DataObject, rtt_s: float, owner: bytes | None, wait_s: float) -> None:
        self.now += wait_s
        peer = data.draw(st.sampled_from(self.peers))
        others = data.draw(st.lists(st.sampled_from(self.peers), max_size=6, unique=True))
        self.store.handle_told(peer, told(peer, {other: rtt_s for other in others if other != peer}), self.now, owner, owner)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.store.remove(data.draw(st.sampled_from(self.peers)))

    @invariant()
    def is_as_if_worked_out_anew(self) -> None:
        pairs = self.store.pairs(self.now)
        for peer in self.store.taken_changes():
            edges = dict(self.store.edges_of(peer, self.now))
            for other in {*self.read.get(peer, {}), *edges}:
                self.read.setdefault(other, {}).pop(peer, None)
                if other in edges:
                    self.read[other][peer] = edges[other]
            self.read[peer] = edges
        assert sorted((one, other, rtt_s) for one in self.read for other, rtt_s in self.read[one].items() if one < other) == pairs
        assert len(self.store) <= self.config.peers_max
        expected = []
        for one in self.peers:
            for other in self.peers:
                mine, theirs = self.store.told(one, other, self.now), self.store.told(other, one, self.now)
                if one < other and mine and theirs and abs(mine.rtt_s - theirs.rtt_s) < 0.01:
                    expected.append((one, other, max(mine.rtt_s, theirs.rtt_s)))
        assert pairs == sorted(expected)
        counts = {peer: self.store.standing(peer)[1] for peer in self.peers}
        assert sum(counts.values()) % 2 == 0


TestAnyEdges = AnyEdges.TestCase
TestAnyEdges.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
