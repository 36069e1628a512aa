"""The roster: who is plain is kept packed, and nothing is lost by it."""

import pytest
from record_strategies import IDENTITIES

from protocol.membership.roster import Link, Roster
from protocol.multiaddr import Multiaddr

PEER, OTHER = IDENTITIES[1].peer_id, IDENTITIES[2].peer_id
ADDRESSES = (
    Multiaddr("ip4", "192.0.2.7", 4001, PEER),
    Multiaddr("ip6", "2001:db8::7", 4001),
    Multiaddr("dns", "node.example", 4001, OTHER),
)


def known(addresses=ADDRESSES):
    roster = Roster()
    peer = roster.add(PEER)
    peer.addresses, peer.has_card, peer.joined = addresses, True, True
    return roster, peer


def test_a_plain_peer_is_packed_and_spelled_out_again():
    roster, peer = known()
    assert not roster.is_plain(PEER)
    roster.put_away(PEER, peer)
    assert roster.is_plain(PEER)
    assert (len(roster), PEER in roster, list(roster), list(roster.away())) == (1, True, [PEER], [])
    again = roster.get(PEER)
    assert again == peer
    again.failures = 3
    assert roster[PEER].failures == 3
    assert not roster.is_plain(PEER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("addresses", ()),
        ("has_card", False),
        ("connected_at", 1.0),
        ("failures", 1),
        ("suspected_since", 1.0),
        ("doubted_since", 1.0),
        ("in_question", True),
        ("gone_because", "said goodbye"),
        ("link", Link.NEAR),
        ("kept_by_peer", True),
        ("shunned_until", 9.0),
        ("wanted", True),
        ("proven", True),
        ("joined", False),
    ],
)
def test_whoever_there_is_something_to_say_of_stays_as_it_is(name, value):
    roster, peer = known()
    setattr(peer, name, value)
    roster.put_away(PEER, peer)
    assert not roster.is_plain(PEER)
    assert getattr(roster[PEER], name) == value


def test_strangers_are_none_and_those_away_come_the_longest_known_first():
    roster, _ = known()
    assert roster.get(OTHER) is None
    assert not roster.is_plain(OTHER)
    roster.add(OTHER)
    assert list(roster.away()) == [OTHER]
    roster[PEER].joined = False
    assert list(roster.away()) == [PEER, OTHER]
    del roster[PEER]
    assert list(roster) == [OTHER]
