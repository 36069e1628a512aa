"""Ways round to peers that cannot be reached: whole cores on virtual time, of which two are always kept apart."""

from dataclasses import replace

import pytest
from world import ECHO, World, request

from protocol.announcer import AnnouncerConfig
from protocol.identity import SealingKey
from protocol.membership import UNREACHED, Standing
from protocol.node import NodeConfig
from protocol.node.config import RelayConfig
from protocol.records import Edge, Edges, RecordKind
from protocol.routing import RttSource

KEY = SealingKey(bytes([4]) * 32).public_key
CONFIG = NodeConfig(announcer=AnnouncerConfig(edges_interval_s=10.0))


class Apart(World):
    """A world in which the first member and the last never reach one another."""

    def _passes(self, one, other) -> bool:
        ends = {one.index, other.index}
        return ends != {0, len(self.members) - 1} and super()._passes(one, other)


def apart(*places: float, relays: tuple[bool, ...] | None = None, config: NodeConfig = CONFIG, until: float = 12.0) -> Apart:
    """Members on a line, each connected to all others but the first to the last, which alone serves."""
    world = Apart(3)
    last = len(places) - 1
    for index, place in enumerate(places):
        world.add((place, 0.0), offers=(ECHO,) if index == last else (), config=config)
    for index, member in enumerate(world.members):
        member.bootstrap = () if index == 1 else (world.members[1].address,)
        passes = relays[index] if relays is not None else True
        world.at(0.1, lambda m=member, p=passes: m.node.announcer.handle_sealing(KEY, relays=p))
    world.run(until)
    return world


def asked(world: Apart, **changes):
    asker, executor = world.members[0], world.members[-1]
    report = asker.node.rank(replace(request(), **changes), world.now)
    return next(candidate for candidate in report.candidates if candidate.peer_id == executor.peer_id)


def test_a_peer_that_cannot_be_reached_is_a_candidate_through_one_that_can() -> None:
    world = apart(0.0, 0.02, 0.05)
    asker, relay, executor = world.members
    assert asker.node.peer(executor.peer_id, world.now).why == UNREACHED
    candidate = asked(world)
    assert candidate.qualified
    assert candidate.via == relay.peer_id
    assert candidate.rtt_source is RttSource.MEASURED  # the relay has told its edges
    assert candidate.rtt_s == pytest.approx(world.rtt_s(asker, relay) + world.rtt_s(relay, executor), rel=0.05)


def test_without_edges_the_way_is_estimated_from_places() -> None:
    world = apart(
        0.0, 0.02, 0.05, config=replace(CONFIG, announcer=AnnouncerConfig(edges_first_s=1e5, edges_interval_s=1e6)), until=30.0
    )
    candidate = asked(world)
    assert candidate.qualified
    assert candidate.rtt_source is RttSource.COORDINATE
    assert candidate.rtt_s == pytest.approx(0.05, rel=0.5)


def test_the_shortest_way_is_taken_and_the_next_when_it_has_failed() -> None:
    world = apart(0.0, 0.02, 0.2, 0.05, until=25.0)
    asker, near, far, executor = world.members
    node = asker.node
    assert [way.relay for way in node.relays.ways(executor.peer_id, world.now)] == [near.peer_id, far.peer_id]
    node.relays.handle_failed(near.peer_id, executor.peer_id, world.now)
    assert asked(world).via == far.peer_id
    world.run(world.now + RelayConfig().failed_s + 1.0)
    assert asked(world).via == near.peer_id


def test_who_passes_nothing_on_is_no_way() -> None:
    world = apart(0.0, 0.02, 0.05, relays=(True, False, True))
    candidate = asked(world)
    assert not candidate.qualified
    assert candidate.reason == f"suspected: {UNREACHED}"


def test_a_request_that_came_from_a_peer_passes_no_other() -> None:
    world = apart(0.0, 0.02, 0.05)
    asker, relay, executor = world.members
    report = asker.node.rank(request(), world.now, from_peer=relay.peer_id)
    candidate = next(c for c in report.candidates if c.peer_id == executor.peer_id)
    assert not candidate.qualified
    assert executor.peer_id not in [c.peer_id for c in asker.node.rank(replace(request(), hops_left=0), world.now).candidates]


def test_a_peer_that_can_be_reached_is_asked_itself() -> None:
    world = apart(0.0, 0.02, 0.05, 0.03)
    asker = world.members[0]
    for member in world.members[1:3]:
        assert asker.node.membership.is_connected(member.peer_id)
    report = asker.node.rank(request(model="echo"), world.now)
    assert all(c.via is None for c in report.candidates if c.peer_id != world.members[-1].peer_id)


def test_a_dial_that_failed_for_a_request_is_remembered() -> None:
    world = apart(0.0, 0.02, 0.05)
    node, executor = world.members[0].node, world.members[-1].peer_id
    facts = next(facts for facts in node.facts(world.now) if facts.peer_id == executor)
    alive = replace(facts, standing=Standing.ALIVE, why="known by its card")
    assert not node.relays._is_wanted(alive, request(), world.now)
    node.relays.handle_unreached(executor, world.now)
    assert node.relays._is_wanted(alive, request(), world.now)
    assert not node.relays._is_wanted(alive, request(model="other"), world.now)
    assert not node.relays._is_wanted(alive, request(), world.now + RelayConfig().failed_s)


def test_what_is_remembered_is_bounded() -> None:
    config = replace(CONFIG, relays=RelayConfig(edges_max=3, failed_max=5))
    world = apart(0.0, 0.02, 0.05, config=config)
    relays, others = world.members[0].node.relays, [bytes([n]) for n in range(20)]
    for other in others:
        relays.handle_edges(other, Edges((Edge(other, 0.1, 0.0, 1),)), world.now)
        relays.handle_failed(other, other, world.now)
        relays.handle_unreached(other, world.now)
    assert len(relays._edges) == 3
    assert len(relays._failed) == len(relays._unreached) == 5


def test_edges_that_are_old_count_no_more() -> None:
    world = apart(0.0, 0.02, 0.05)
    node, relay, executor = world.members[0].node, world.members[1].peer_id, world.members[2].peer_id
    (way,) = node.relays.ways(executor, world.now)
    assert way.path.source is RttSource.MEASURED
    assert node.telling.store.told(relay, executor, world.now) is not None
    node.telling.store.remove(relay)
    (way,) = node.relays.ways(executor, world.now)
    assert way.path.source is not RttSource.MEASURED


def test_edges_in_the_form_of_an_earlier_version_tell_of_ways_until_they_are_old() -> None:
    config = replace(CONFIG, announcer=AnnouncerConfig(edges_first_s=1e5, edges_interval_s=1e6))
    world = apart(0.0, 0.02, 0.05, config=config, until=30.0)
    node, relay, executor = world.members[0].node, world.members[1].peer_id, world.members[2].peer_id
    node.relays.handle_edges(relay, Edges((Edge(executor, 0.01, 0.001, 9),)), world.now)
    (way,) = node.relays.ways(executor, world.now)
    assert way.path.source is RttSource.MEASURED
    told_at, edges = node.relays._edges[relay]
    node.relays._edges[relay] = (told_at - RelayConfig().edges_s, edges)
    (way,) = node.relays.ways(executor, world.now)
    assert way.path.source is not RttSource.MEASURED


def test_only_the_executors_own_newer_card_is_taken_with_a_refusal() -> None:
    world = apart(0.0, 0.02, 0.05)
    asker, relay, executor = world.members
    node, newer = asker.node, SealingKey(bytes([5]) * 32).public_key
    old = executor.node.table.get(executor.peer_id, RecordKind.CARD).envelope
    assert not node.relays.handle_card(old, executor.peer_id, relay.peer_id, world.now)
    world.cut_off(asker)
    for member in (relay, executor):
        member.node.announcer.handle_sealing(newer, relays=True)
    world.run(world.now + 3.0)
    card = executor.node.table.get(executor.peer_id, RecordKind.CARD).envelope
    assert card != old
    relays = relay.node.table.get(relay.peer_id, RecordKind.CARD).envelope
    for wrong in (b"", b"\xff" * 100, relays, card[:-1], card[:70] + bytes((card[70] ^ 1,)) + card[71:]):
        assert not node.relays.handle_card(wrong, executor.peer_id, relay.peer_id, world.now)
        assert node.relays.sealing_key(executor.peer_id) == node.relays.sealing_key(relay.peer_id) == KEY
    assert node.relays.handle_card(card, executor.peer_id, relay.peer_id, world.now)
    assert node.relays.sealing_key(executor.peer_id) == newer
