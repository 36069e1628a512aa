"""When a node tells its card, its beats and its edges."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from protocol.announcer import Announcer, AnnouncerConfig
from protocol.coordinates import Coordinate
from protocol.inference import Feature
from protocol.load import Beat, ModelLoad
from protocol.multiaddr import parse_multiaddr
from protocol.records import Card, Hardware, ModelOffer

CONFIG = AnnouncerConfig()
HARDWARE = Hardware("virtual", 1, 8_000_000_000, 1)
ADDRESSES = (parse_multiaddr("/ip4/192.0.2.1/udp/1/quic-v1"),)
OFFER = ModelOffer("echo", frozenset({Feature.CHAT}), engine="echo")
LOAD = ModelLoad("echo", 0, 0, 10, 0.0, 1.0, 50.0)


def place(x_s: float, error: float = 0.1) -> Coordinate:
    return Coordinate((x_s, *([0.0] * 7)), 0.001, error)


@dataclass
class Telling:
    """An announcer, and everything it told, with the times."""

    announcer: Announcer = field(default_factory=lambda: Announcer(CONFIG, "test/1"))
    place: Coordinate = field(default_factory=lambda: place(0.0))
    now: float = 0.0
    sequence: int = 100
    cards: list[tuple[float, Card]] = field(default_factory=list)
    beats: list[tuple[float, Beat]] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)

    def start(self) -> "Telling":
        self.announcer.start(ADDRESSES, HARDWARE, (OFFER,))
        self.tell()
        return self

    def tell(self) -> None:
        """What the node does when something is due or has changed."""
        if (beat := self.announcer.beat(self.now)) is not None:
            self.beats.append((self.now, beat))
        self.sequence += 1
        if (card := self.announcer.card(self.place, self.sequence, self.now)) is not None:
            self.cards.append((self.now, card))
        if self.announcer.edges_due(self.now):
            self.edges.append(self.now)

    def run(self, until: float) -> None:
        while (due := self.announcer.next_due()) <= until:
            self.now = max(self.now, due)
            self.tell()
            assert self.announcer.next_due() > self.now
        self.now = until

    def move(self, to: Coordinate, typical_rtt_s: float = 0.0) -> None:
        self.place = to
        self.announcer.handle_moved(to, typical_rtt_s, self.now)


def gaps(told: list[tuple[float, object]]) -> list[float]:
    return [later - earlier for (earlier, _), (later, _) in pairwise(told)]


def test_nothing_is_told_before_the_start() -> None:
    telling = Telling()
    telling.announcer.handle_offers((OFFER,))
    telling.announcer.handle_load((LOAD,))
    telling.announcer.handle_moved(place(1.0), 0.1, 0.0)
    telling.run(1e6)
    telling.tell()
    assert telling.cards == telling.beats == telling.edges == []


def test_everything_is_told_at_the_start() -> None:
    telling = Telling().start()
    assert telling.cards == [(0.0, Card(ADDRESSES, HARDWARE, (OFFER,), telling.place, "test/1", 101))]
    assert telling.beats == [(0.0, Beat(draining=False, loads=()))]
    assert telling.edges == [0.0]


def test_card_that_does_not_change_is_renewed_at_half_its_lifetime_with_the_same_content() -> None:
    telling = Telling().start()
    telling.run(5 * 3600.0)
    assert gaps(telling.cards) == [CONFIG.card_lifetime_s / 2] * 5
    assert all(card == telling.cards[0][1] for _, card in telling.cards)  # the place and the incarnation too


def test_place_that_wanders_is_not_told_with_a_renewal_unless_it_is_news() -> None:
    """Otherwise every renewal would be news, and be pushed to everyone."""
    telling = Telling().start()
    telling.move(place(CONFIG.moved_s / 2))
    telling.run(CONFIG.card_lifetime_s)
    assert {card.coordinate for _, card in telling.cards} == {place(0.0)}
    assert len(telling.cards) == 3


def test_changed_offers_are_told_at_most_every_card_interval() -> None:
    telling = Telling().start()
    for step in range(100):
        telling.run(step * 0.1)
        telling.announcer.handle_offers((replace(OFFER, model=f"m{step}"),))
    telling.run(20.0)
    assert gaps(telling.cards) == pytest.approx([CONFIG.card_interval_s] * 5)
    assert telling.cards[-1][1].models == (replace(OFFER, model="m99"),)
    telling.announcer.handle_offers((replace(OFFER, model="m99"),))
    telling.run(100.0)
    assert len(telling.cards) == 6  # the same again is no change


def test_coordinate_that_goes_on_moving_is_told_ever_more_seldom() -> None:
    telling = Telling().start()
    for step in range(1, 12_000):
        telling.run(step * 1.0)
        telling.move(place(step * 0.01))
    waits = gaps(telling.cards)
    assert waits[:4] == pytest.approx([10.0, 40.0, 160.0, 640.0], abs=1.5)
    assert waits[4:] == pytest.approx([CONFIG.moves_wait_s_max] * len(waits[4:]), abs=1.5)
    assert len(waits) > 6


def test_change_of_another_kind_makes_the_coordinate_soon_told_again() -> None:
    telling = Telling().start()
    for step in range(1, 300):
        telling.run(step * 1.0)
        telling.move(place(step * 0.01))
    telling.announcer.handle_offers(())
    told = len(telling.cards)
    for step in range(300, 400):
        telling.run(step * 1.0)
        telling.move(place(step * 0.01))
    assert gaps(telling.cards[told:])[:2] == pytest.approx([10.0, 40.0], abs=1.5)


def test_small_moves_are_no_news() -> None:
    telling = Telling().start()
    telling.move(place(CONFIG.moved_s * 0.9))
    telling.move(place(0.009), typical_rtt_s=0.1)  # less than a tenth of what it is used for
    telling.move(place(0.0, error=0.1 + CONFIG.error_changed * 0.9))
    telling.run(1000.0)
    assert len(telling.cards) == 1
    telling.move(place(0.011), typical_rtt_s=0.1)
    telling.run(2000.0)
    assert len(telling.cards) == 2
    assert telling.cards[-1][1].coordinate == place(0.011)


def test_place_that_comes_back_before_it_is_told_is_no_news() -> None:
    telling = Telling().start()
    telling.run(1000.0)
    for turn in range(10):
        telling.move(place(0.1))
        telling.run(telling.now + CONFIG.moves_settle_s * 0.9)
        telling.move(place(0.001))
        telling.run(1000.0 + (turn + 1) * 100.0)
    assert len(telling.cards) == 1
    telling.move(place(0.1))
    telling.run(telling.now + CONFIG.moves_settle_s)
    assert telling.cards[-1] == (telling.now, replace(telling.cards[0][1], coordinate=place(0.1)))


def test_error_that_changed_much_is_news() -> None:
    telling = Telling(place=place(0.0, error=1.5)).start()
    telling.move(place(0.0, error=0.3))
    telling.run(20.0)
    assert [card.coordinate.error for _, card in telling.cards if card.coordinate is not None] == [1.5, 0.3]


def test_incarnation_grows_with_a_refutation_and_a_renewal_and_with_nothing_else() -> None:
    telling = Telling().start()
    first = telling.announcer.incarnation
    telling.run(5.0)
    telling.announcer.handle_offers(())
    telling.run(10.0)
    assert telling.announcer.incarnation == first
    for again in (telling.announcer.refute, telling.announcer.renew):
        before = telling.announcer.incarnation
        again()
        telling.run(telling.now + CONFIG.card_interval_s)
        assert telling.announcer.incarnation > before
        assert telling.cards[-1][1].incarnation == telling.announcer.incarnation == telling.sequence
        telling.run(telling.now + 10.0)


def test_refutation_does_not_wait_for_the_card_interval() -> None:
    telling = Telling().start()
    telling.run(0.5)
    telling.announcer.refute()
    assert telling.announcer.next_due() <= 0.5
    telling.tell()
    assert len(telling.cards) == 2
    telling.announcer.handle_offers(())
    telling.run(10.0)
    assert telling.cards[-1][0] == 0.5 + CONFIG.card_interval_s


def test_beat_is_told_when_the_load_changes_and_now_and_then_otherwise() -> None:
    telling = Telling().start()
    telling.run(200.0)
    assert set(gaps(telling.beats)) == {CONFIG.beat_floor_s}
    telling.run(telling.beats[-1][0] + 5.0)
    before = len(telling.beats)
    telling.announcer.handle_load((LOAD,))
    assert telling.announcer.next_due() <= telling.now
    for step in range(100):
        telling.announcer.handle_load((replace(LOAD, running=10, waiting=step),))
        telling.run(telling.now + 0.1)
    assert all(gap >= CONFIG.beat_interval_s for gap in gaps(telling.beats[before:]))
    assert len(telling.beats) - before == pytest.approx(10.0 / CONFIG.beat_interval_s, abs=1)


FULL = replace(LOAD, running=10, waiting=1)
"""Two requests more than there are free slots: a wait of a fifth of a service time."""


@pytest.mark.parametrize(
    ("told", "load", "is_news"),
    [
        (LOAD, replace(LOAD, running=9), False),  # a slot is free still: nobody waits
        (LOAD, replace(LOAD, running=10), False),  # the next one waits for a tenth of a service time
        (LOAD, replace(LOAD, running=10, waiting=2), True),
        (FULL, replace(FULL, waiting=3), False),
        (FULL, replace(FULL, waiting=4), True),
        (FULL, LOAD, False),
        (FULL, replace(FULL, queue_s=0.4), False),
        (FULL, replace(FULL, queue_s=0.5), True),  # what the engine says of its queue
        (LOAD, replace(LOAD, queue_s=0.5), False),  # which is empty
        (LOAD, replace(LOAD, slots=9), True),
        (LOAD, replace(LOAD, service_s=1.2), False),
        (LOAD, replace(LOAD, service_s=1.3), True),
        (replace(LOAD, service_s=0.0), replace(FULL, service_s=0.0, waiting=2), True),
        (LOAD, replace(LOAD, tokens_per_s=500.0), False),
        (LOAD, replace(LOAD, model="other"), True),
    ],
)
def test_load_is_news_when_the_wait_changed_enough_to_matter(told: ModelLoad, load: ModelLoad, is_news: bool) -> None:
    telling = Telling().start()
    telling.announcer.handle_load((told,))
    telling.run(5.0)
    before = len(telling.beats)
    telling.announcer.handle_load((load,))
    telling.run(10.0)
    assert len(telling.beats) - before == is_news
    telling.run(5.0 + CONFIG.beat_changed_s)
    assert telling.beats[-1][1].loads == (load,)  # what changed at all is told in the end


def test_load_that_creeps_is_told_by_what_was_told_last() -> None:
    telling = Telling().start()
    telling.announcer.handle_load((replace(LOAD, slots=100),))
    telling.run(5.0)
    before = len(telling.beats)
    for waiting in range(41):
        telling.announcer.handle_load((replace(LOAD, slots=100, running=100, waiting=waiting),))
        telling.run(telling.now + 0.6)
    assert 1 <= len(telling.beats) - before <= 2


def test_whole_beat_tells_the_load_as_it_is() -> None:
    telling = Telling().start()
    telling.announcer.handle_load((LOAD,))
    assert telling.announcer.whole_beat() == Beat(draining=False, loads=(LOAD,))


def test_bus_is_told_with_the_next_beat_and_hastens_none() -> None:
    telling = Telling().start()
    telling.announcer.handle_load((LOAD,))
    telling.run(100.0)
    n_beats = len(telling.beats)
    telling.announcer.handle_load((LOAD,), 441_000)
    telling.tell()
    assert len(telling.beats) == n_beats
    assert telling.announcer.whole_beat() == Beat(draining=False, loads=(LOAD,), bus_free_mbps=441_000)
    telling.run(telling.now + CONFIG.beat_floor_s)
    assert telling.beats[-1][1] == Beat(draining=False, loads=(LOAD,), bus_free_mbps=441_000)


def test_draining_is_told_at_once() -> None:
    telling = Telling().start()
    telling.run(0.1)
    telling.announcer.drain()
    telling.run(0.1)
    assert telling.beats[-1] == (0.1, Beat(draining=True, loads=()))
    assert telling.announcer.whole_beat().draining


def test_edges_are_told_seldom() -> None:
    telling = Telling().start()
    telling.run(4 * CONFIG.edges_interval_s)
    assert telling.edges == [CONFIG.edges_interval_s * turn for turn in range(5)]
