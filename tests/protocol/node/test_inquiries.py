"""Requests that wait until it is known who is nearest: whole cores on virtual time."""

from dataclasses import replace

import pytest
from world import ECHO, Member, World, request

from protocol.errors import ErrorCode
from protocol.forwarding import Ended, Forward, Outcome
from protocol.inference import InferenceRequest
from protocol.membership import Connect, MembershipConfig
from protocol.node import NodeConfig, Reranked
from protocol.node.inquiries import InquiryConfig
from protocol.probe import SendDatagram
from protocol.routing import RouteReport, RttSource
from protocol.shortlist import DIAL_ROUND_TRIPS

LARGE = NodeConfig(membership=replace(MembershipConfig(), small_mesh=0), ranking_min_s=1e6)
"""A node that knows many and is connected to few: here to a hub alone."""


HUB_S = 0.1
"""Seconds from the node that asks to the hub."""


class Star:
    """A node that asks, among peers that serve; all are connected to a hub alone, and know each other by their cards.

    So all that is known of a peer is how far it is from the hub: whether it is on this side of it or beyond, nobody can know.
    """

    def __init__(self, *places: float, seed: int = 1, config: NodeConfig = LARGE, formed_s: float = 20.0) -> None:
        self.world = world = World(seed)
        hub = world.add((HUB_S, 0.0), offers=(), config=LARGE)
        self.asker = world.add((0.0, 0.0), offers=(), bootstrap=[hub.address], config=config)
        self.serving = [world.add((place, 0.0), offers=(ECHO,), bootstrap=[hub.address], config=LARGE) for place in places]
        world.run(formed_s)
        assert [view.connected for view in self.asker.node.peers(world.now)].count(True) == 1
        assert len(self.asker.node.table.known()) == len(places) + 2
        self.told: list[tuple[float, object]] = []
        carry_out = world._carry_out

        def listen(member: Member, output: object) -> None:
            if member is self.asker and isinstance(output, Reranked | Forward | Ended | SendDatagram | Connect):
                self.told.append((world.now - self.asked_at, output))
            carry_out(member, output)

        world._carry_out = listen
        self.asked_at = world.now
        self.asker.dials.clear()

    def rtt_s(self, member: Member) -> float:
        """The true round trip to a member."""
        return self.world.rtt_s(self.asker, member)

    def ask(self, number: int = 1, **changes: object) -> InferenceRequest:
        """A client asks."""
        asked = replace(request(number), **changes)
        self.told.clear()
        self.asked_at = self.world.now
        node = self.asker.node
        assert node.submit(asked, node.rank(asked, self.world.now), None, self.world.now) is None
        self.world.settle(self.asker)
        return asked

    def pass_s(self, seconds: float) -> None:
        """Lets time pass."""
        self.world.run(self.world.now + seconds)

    def forwarded(self) -> list[tuple[float, Member]]:
        """When requests went out, and to whom."""
        return [(at, self.world.by_id[output.peer]) for at, output in self.told if isinstance(output, Forward)]

    def reports(self) -> list[RouteReport]:
        """By which reports those went out that waited."""
        return [output.report for _, output in self.told if isinstance(output, Reranked)]


def star(seed: int = 1, config: NodeConfig = LARGE) -> tuple[Star, Member, Member]:
    """One peer that serves on this side of the hub, and one as far beyond it."""
    found = Star(0.06, 0.14, seed=seed, config=config)
    return found, *found.serving


def test_the_truly_nearest_is_asked_though_estimates_cannot_tell() -> None:
    misled = 0
    for seed in range(4):
        asking, near, far = star(seed)
        before = asking.asker.node.rank(request(), asking.world.now)
        misled += before.chosen == far.peer_id
        asking.ask()
        asking.pass_s(1.0)
        assert asking.forwarded() == [(pytest.approx(asking.rtt_s(near)), near)]  # its handshake took no longer
        (report,) = asking.reports()
        assert report.chosen == near.peer_id
        assert report.probed == 2
        assert report.probing_s == pytest.approx(asking.rtt_s(near))
        assert report.candidates[0].rtt_source is RttSource.MEASURED
        assert report.candidates[0].predicted_s < before.candidates[0].predicted_s
    assert misled  # so the figures above are not those of luck


def test_what_was_measured_spares_the_next_request_its_wait() -> None:
    asking, near, _ = star()
    first = asking.ask()
    asking.pass_s(5.0)
    asking.asker.node.handle_cancelled(first, asking.world.now)
    asking.world.settle(asking.asker)
    asking.ask(2)
    assert asking.forwarded() == [(0.0, near)]
    assert [type(output) for _, output in asking.told] == [Forward]  # no datagram, no dial


def test_nothing_is_measured_where_nobody_can_be_sooner_than_the_best() -> None:
    asking = Star(0.02, 0.3)
    asking.asker.node.membership.handle_sought(asking.serving[0].peer_id, asking.world.now)
    asking.world.settle(asking.asker)
    asking.pass_s(2.0)
    report = asking.asker.node.rank(request(), asking.world.now)
    assert report.candidates[0].rtt_source is RttSource.MEASURED
    assert report.candidates[1].rtt_source is RttSource.COORDINATE
    asking.ask()
    assert [type(output) for _, output in asking.told] == [Forward]


def test_requests_of_one_moment_share_what_is_measured() -> None:
    asking, near, far = star()
    for number in range(1, 6):
        asking.ask(number)
    assert sorted(target for _, target in asking.asker.dials) == sorted([near.peer_id, far.peer_id])
    asking.told.clear()
    asking.pass_s(1.0)
    assert [at for at, _ in asking.forwarded()] == [pytest.approx(asking.rtt_s(near))] * 5
    assert asking.forwarded()[0][1] is near  # and then there is a queue at the nearest
    assert [report.probed for report in asking.reports()] == [2, 0, 0, 0, 0]
    assert len(asking.asker.dials) == 2


def test_those_as_near_share_the_requests_of_one_moment() -> None:
    asking = Star(0.06, 0.06, 0.06)
    for number in range(1, 31):
        asking.ask(number)
    asking.pass_s(1.0)
    given = [asking.asker.node.forwarding.in_flight(member.peer_id) for member in asking.serving]
    assert sum(given) == 30
    assert min(given) >= 8  # of ten: in flight is counted as each goes out


@pytest.mark.parametrize("seed", range(3))
def test_a_peer_that_never_answers_delays_by_the_bound_alone(seed: int) -> None:
    asking = Star(0.095, 0.105, seed=seed)
    near, far = asking.serving
    asking.world.kill(near)
    wanted = asking.asker.node.rank(request(), asking.world.now).shortlist
    asking.ask()
    asking.pass_s(1.0)
    ((at, member),) = asking.forwarded()
    assert member is far  # who has not answered is at least as far as it was waited for
    assert at == pytest.approx(asking.rtt_s(far))
    assert at <= wanted.wait_s
    asking.ask(2)
    assert [at for at, _ in asking.forwarded()] == [0.0]  # and nobody waits for it again


def test_nobody_waits_longer_than_the_bound_where_nobody_answers() -> None:
    asking, near, far = star()
    wanted = asking.asker.node.rank(request(), asking.world.now).shortlist
    for member in (near, far):
        asking.world.kill(member)
    asking.ask()
    asking.pass_s(1.0)
    assert [at for at, _ in asking.forwarded()] == [pytest.approx(wanted.wait_s)]
    (report,) = asking.reports()
    assert report.probed == 2
    waited = [candidate.rtt_s for candidate in report.candidates if candidate.qualified]
    assert min(waited) >= wanted.wait_s / DIAL_ROUND_TRIPS - 1e-9  # that far at least, whatever was thought before


def test_a_dial_that_fails_ends_the_wait_for_it() -> None:
    asking, near, far = star()
    for member in (near, far):
        asking.world.kill(member)
    asking.ask()
    asking.pass_s(0.01)
    for member, waiting in ((near, 1), (far, 0)):
        asking.asker.node.handle_dial_failed(member.peer_id, asking.world.now)
        assert asking.asker.node.inquiries.waiting == waiting
    assert asking.asker.node.next_output() is not None


def test_a_short_deadline_leaves_no_time_to_measure() -> None:
    asking, _, _ = star()
    asking.ask(deadline_s=1.0)
    assert [at for at, _ in asking.forwarded()] == [0.0]
    assert asking.asker.dials == []


def test_a_request_that_may_go_nowhere_measures_nobody() -> None:
    asking, _, _ = star()
    asking.ask(hops_left=0)
    assert asking.asker.dials == []
    assert asking.asker.node.inquiries.waiting == 0


def test_a_caller_that_leaves_while_its_request_waits_is_forgotten() -> None:
    asking, _, _ = star()
    hub = asking.world.members[0].peer_id
    node, asked = asking.asker.node, request(7)
    assert node.submit(asked, node.rank(asked, asking.world.now, hub), hub, asking.world.now) is None
    assert node.inquiries.waiting == 1
    assert hub in node.forwarding.busy()
    node.handle_cancelled(asked, asking.world.now)
    assert node.inquiries.waiting == 0
    assert hub not in node.forwarding.busy()
    asking.world.settle(asking.asker)
    asking.pass_s(1.0)
    assert asking.forwarded() == []


def test_a_request_keeps_its_deadline_and_goes_out_once() -> None:
    asking, near, _ = star()
    asking.ask(deadline_s=4.0)
    asking.pass_s(1.0)
    (sent,) = [output for _, output in asking.told if isinstance(output, Forward)]
    assert sent.deadline_s == pytest.approx(4.0 - asking.rtt_s(near))
    asking.pass_s(4.0)
    assert [output.outcome for _, output in asking.told if isinstance(output, Ended)] == [Outcome.EXPIRED]
    assert len(asking.reports()) == 1


def test_waiting_and_measuring_have_their_bounds() -> None:
    asking, _, _ = star(config=replace(LARGE, inquiries=InquiryConfig(waiting_max=2)))
    for number in range(1, 6):
        asking.ask(number)
        assert asking.asker.node.inquiries.waiting == min(number, 2)
        assert len(asking.forwarded()) == (number > 2)
    asking, _, _ = star(config=replace(LARGE, inquiries=InquiryConfig(probes_burst=1.0, probes_per_s=0.0)))
    asking.ask()
    assert len(asking.asker.dials) == 1
    asking.pass_s(1.0)
    assert asking.reports()[0].probed == 1


def test_a_connection_that_ended_counts_for_nobody() -> None:
    asking, near, _ = star()
    asking.ask()
    asking.pass_s(asking.rtt_s(near) + 0.001)  # its handshake is over, and it has said nothing yet
    asking.world.hang_up(asking.asker, near.peer_id, ErrorCode.SURPLUS)
    report = asking.asker.node.rank(request(2), asking.world.now)
    (told,) = [candidate for candidate in report.candidates if candidate.peer_id == near.peer_id]
    assert told.rtt_source is RttSource.COORDINATE


def test_a_place_that_nobody_has_worked_out_is_none() -> None:
    """Every node begins at the origin of the map: there it would be next to whoever has just begun too."""
    asking = Star(0.06, 0.14, formed_s=1.0)
    cards = [asking.asker.node.peer(member.peer_id, asking.world.now).card for member in asking.serving]
    assert [card.coordinate.error for card in cards] == [1.5, 1.5]
    report = asking.asker.node.rank(request(), asking.world.now)
    assert [c.rtt_source for c in report.candidates if c.qualified] == [RttSource.UNKNOWN] * 2
    asking.ask()
    asking.pass_s(1.0)
    assert [member for _, member in asking.forwarded()] == [asking.serving[0]]
