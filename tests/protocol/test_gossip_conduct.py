"""What comes of a peer's conduct in the gossip machine: who gets a link, who is heard, and who is turned away."""

from dataclasses import replace

import pytest
from gossip_nodes import CONFIG, Node, codes, drained, of, sealed, told
from record_strategies import CARD, IDENTITIES, WALL_S

from protocol.errors import ErrorCode
from protocol.gossip import Misbehaved, Pruned
from protocol.gossip.messages import Entries, Graft, Prune, Records, Want, encode_message
from protocol.records import RecordKind
from protocol.table import record_key

BAD, GOOD = IDENTITIES[1], IDENTITIES[2]
SIGNER = IDENTITIES[9]
KEY = record_key(SIGNER.peer_id, RecordKind.CARD)


def connected(count=8, dialled=0, **config):
    """A node to which peers are connected, the last of them dialled by itself."""
    node = Node(0, config=replace(CONFIG, **config))
    for number, identity in enumerate(IDENTITIES[1 : count + 1]):
        node.gossip.handle_connected(identity.peer_id, 0.0, far=False, dialled=number >= count - dialled)
    drained(node.gossip)
    return node


def news(sequence, now=0.0):
    """A message with a card that says something new each time."""
    card = replace(CARD, agent=f"agent {sequence}")
    return Records((sealed(SIGNER, card, sequence, WALL_S + now).envelope,))


def test_links_to_peers_that_the_node_dialled_are_asked_for_though_the_mesh_is_full():
    node = connected(8, dialled=2)
    dialled = {identity.peer_id for identity in IDENTITIES[7:9]}
    assert dialled.isdisjoint(node.gossip.mesh())
    outputs = node.beat_heart(1.0)
    assert {peer_id for peer_id, _ in told(outputs, Graft)} == dialled
    assert dialled <= set(node.gossip.mesh())
    assert len(node.gossip.mesh()) <= CONFIG.degree_max
    for identity in IDENTITIES[1:7]:  # whoever asks
        node.hear(identity, Graft(), 1.5)
    node.beat_heart(2.5)
    assert dialled <= set(node.gossip.mesh())


def test_peer_below_zero_loses_its_link_and_gets_none():
    node = connected(4)
    assert BAD.peer_id in node.gossip.mesh()
    for _ in range(4):
        node.gossip.scores.handle_left(BAD.peer_id, 0.5, brought=False)
    outputs = node.beat_heart(1.0)
    assert [peer_id for peer_id, _ in told(outputs, Prune)] == [BAD.peer_id]
    assert Pruned(BAD.peer_id) in outputs
    outputs = node.hear(BAD, Graft(), 20.0)
    assert [peer_id for peer_id, _ in told(outputs, Prune)] == [BAD.peer_id]
    node.hear(GOOD, Graft(), 20.0)
    assert GOOD.peer_id in node.gossip.mesh()


def test_link_asked_for_again_and_again_within_the_back_off_is_the_end_of_the_connection():
    node = connected(4)
    for _ in range(4):
        node.gossip.scores.handle_left(BAD.peer_id, 0.5, brought=False)
    node.beat_heart(1.0)
    for number in range(12):
        assert node.gossip.scores.score(BAD.peer_id, 1.0) <= 0.0
        node.hear(BAD, Graft(), 1.5 + 0.5 * number)
    outputs = node.beat_heart(8.5)
    assert of(outputs, Misbehaved) == [Misbehaved(BAD.peer_id, ErrorCode.FLOODING)]
    assert node.gossip.scores.is_banned(BAD.peer_id, 8.5)
    node.gossip.handle_disconnected(BAD.peer_id, 9.0)
    node.gossip.handle_connected(BAD.peer_id, 10.0)
    assert drained(node.gossip) == [Misbehaved(BAD.peer_id, ErrorCode.FLOODING)]  # and nothing is told to it
    node.gossip.handle_disconnected(BAD.peer_id, 10.0)
    node.gossip.handle_connected(BAD.peer_id, 3600.0)
    assert of(drained(node.gossip), Misbehaved) == []


def test_link_asked_for_after_the_back_off_costs_nothing():
    node = connected(12)
    for round_s in range(0, 120, 10):
        for identity in IDENTITIES[1:13]:
            node.hear(identity, Graft(), float(round_s) + 0.2)
        node.beat_heart(round_s + 5.0)
    assert all(node.gossip.scores.score(identity.peer_id, 120.0) == 0.0 for identity in IDENTITIES[1:13])


def test_record_that_is_announced_and_never_sent_is_a_broken_promise():
    node = connected(2)
    for number in range(8):
        entry = (record_key(IDENTITIES[10].peer_id, RecordKind.CARD), number + 1)
        node.hear(BAD, Entries((entry,)), 10.0 * number + 1.0)
        node.beat_heart(10.0 * number + 9.0)
    assert node.gossip.scores.score(BAD.peer_id, 80.0) < 0.0
    assert node.gossip.scores.score(GOOD.peer_id, 80.0) == 0.0


def test_what_a_peer_far_below_zero_announces_is_not_asked_for():
    node = connected(2)
    entries = Entries(((KEY, 1),))
    for _ in range(2):
        node.gossip.scores.handle_invalid(BAD.peer_id, 0.0)
    assert told(node.hear(BAD, entries), Want) == []
    assert told(node.hear(GOOD, entries), Want) == [(GOOD.peer_id, Want((KEY,)))]


def test_peer_that_is_blamed_three_times_is_not_let_in_again():
    node = connected(1)
    turned_away = []
    for number in range(5):
        node.gossip.handle_message(BAD.peer_id, b"\x00rubbish", number, WALL_S)
        turned_away.append(codes(drained(node.gossip)))
        node.gossip.handle_disconnected(BAD.peer_id, number)
        node.gossip.handle_connected(BAD.peer_id, number + 0.5)
    assert turned_away[:3] == [[ErrorCode.MALFORMED]] * 3
    assert codes(drained(node.gossip)) == [ErrorCode.FLOODING]


def test_own_news_goes_to_peers_that_the_node_dialled_and_others_are_left_to_the_mesh():
    node = connected(20, dialled=12)
    node.beat_heart(1.0)
    node.publish(CARD, 1.0)
    pushed = {peer_id for peer_id, _ in told(drained(node.gossip), Records)}
    mesh = set(node.gossip.mesh())
    dialled = {identity.peer_id for identity in IDENTITIES[9:21]}
    assert mesh <= pushed
    assert pushed - mesh <= dialled
    assert len(pushed - mesh) == CONFIG.own_news_max


@pytest.mark.parametrize("brings", [False, True])
def test_card_that_is_left_to_a_peer_is_pushed_to_it_when_it_does_not_come(brings):
    """From a peer from which something is missing already every card is held back."""
    node = connected(4)
    node.beat_heart(5.0)
    node.gossip.scores.handle_left(BAD.peer_id, 5.0, brought=False)
    outputs = node.hear(GOOD, news(1), 6.0)
    pushed = {peer_id for peer_id, _ in told(outputs, Records)}
    assert pushed == set(node.gossip.mesh()) - {BAD.peer_id, GOOD.peer_id}
    assert node.gossip.next_timer() <= 6.0 + CONFIG.audits.hold_s
    if brings:
        node.gossip.handle_message(BAD.peer_id, encode_message(news(1)), 6.2, WALL_S + 6.2)
    outputs = node.beat_heart(6.0 + CONFIG.audits.hold_s)
    assert [peer_id for peer_id, _ in told(outputs, Records)] == ([] if brings else [BAD.peer_id])
