"""A private network of cores: records of members alone are taken, and who is expelled is forgotten."""

import sys
from pathlib import Path

import pytest
from world import WALL_S, World

from protocol.admission import Admission
from protocol.coordinates import Coordinate
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import RecordRefused
from protocol.gossip.messages import records_messages
from protocol.identity import Identity
from protocol.multiaddr import Multiaddr
from protocol.node import AdmittedReader, NodeConfig, expel
from protocol.records import Card, Edges, Hardware, RecordKind, Verdict, peek, seal

sys.path.append(str(Path(__file__).parents[1] / "admission"))
from admission_examples import (
    CAROL,
    DAY_S,
    NETWORK,
    OTHER_ISSUER,
    OTHER_NETWORK,
    OTHER_ROOT,
    ROOT,
    certificate,
    delegation,
    federation,
    revocations,
    shown,
)

from protocol.admission import encode_member

CONFIG = NodeConfig(network_id=NETWORK)
NOW_S = int(WALL_S)
DAVE = Identity.from_seed(bytes([222]) * 32)
VALID = {"admitted_s": NOW_S - DAY_S, "start_s": NOW_S - DAY_S, "end_s": NOW_S + DAY_S}
UNDER = delegation(start_s=NOW_S - DAY_S, end_s=NOW_S + 2 * DAY_S)


def proof_of(peer, **changes):
    return shown(peer, UNDER, **{**VALID, **changes})


def other_proof(peer):
    under = delegation(OTHER_ROOT, OTHER_ISSUER, start_s=NOW_S - DAY_S, end_s=NOW_S + 2 * DAY_S)
    return encode_member(certificate(peer, OTHER_ISSUER, OTHER_NETWORK, **VALID), under)


def card(peer, membership, sequence=7, network=NETWORK, seal_key=b""):
    address = Multiaddr("ip4", "192.0.2.9", 4001)
    hardware, place = Hardware("cpu", 1, 1, 1), Coordinate((0.0,) * 8, 0.0, 1.5)
    payload = Card((address,), hardware, (), place, "t", 1, membership, seal_key=seal_key)
    return seal(peer, network, payload, sequence, WALL_S, WALL_S + 3600).envelope


@pytest.fixture
def node():
    """A core of the private network with one connected peer; `node.told(envelope)` has that peer tell it a record."""
    world = World(1)
    member = world.add((0.0, 0.0), config=CONFIG)
    world.run(0.05)
    core = member.node
    core.admission = Admission(ROOT.public_key)
    core.gossip.reader = AdmittedReader(core.admission)
    core.handle_connected(DAVE.peer_id, 0.1)

    def told(*envelopes):
        for message in records_messages(list(envelopes)):
            core.handle_message(DAVE.peer_id, message, 0.2)
        outputs = []
        while (output := core.next_output()) is not None:
            outputs.append(output)
        return outputs

    core.told = told
    return core


def refusals(outputs):
    return [output.code for output in outputs if isinstance(output, RecordRefused)]


def test_a_members_card_is_taken(node) -> None:
    assert refusals(node.told(card(CAROL, proof_of(CAROL)))) == []
    assert node.table.get(CAROL.peer_id, RecordKind.CARD) is not None


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        (b"", ErrorCode.NOT_ADMITTED),
        (proof_of(DAVE), ErrorCode.WRONG_KEY),
        (other_proof(CAROL), ErrorCode.WRONG_NETWORK),
        (proof_of(CAROL, end_s=NOW_S), ErrorCode.EXPIRED),
        (proof_of(CAROL, start_s=NOW_S + 300), ErrorCode.NOT_YET_VALID),
        (b"rubbish", ErrorCode.MALFORMED),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else "",
)
def test_other_cards_are_refused_and_change_nothing(node, proof, code) -> None:
    compared = node.table.root_hash()
    assert refusals(node.told(card(CAROL, proof))) == [code]
    assert node.table.get(CAROL.peer_id, RecordKind.CARD) is None
    assert node.table.root_hash() == compared
    assert CAROL.peer_id not in node.views.known()
    assert node.membership.is_connected(DAVE.peer_id)


def test_a_revoked_peers_card_is_refused_and_its_old_one_dropped(node) -> None:
    node.told(card(CAROL, proof_of(CAROL)))
    notice = revocations(CAROL, issued_s=NOW_S, under=UNDER)
    node.admission.take(notice.data, notice.delegation, WALL_S)
    expel(node, CAROL.peer_id, 0.3)
    assert node.table.get(CAROL.peer_id, RecordKind.CARD) is None
    assert CAROL.peer_id not in node.views.known()
    assert refusals(node.told(card(CAROL, proof_of(CAROL), sequence=8))) == [ErrorCode.REVOKED]
    assert node.table.get(CAROL.peer_id, RecordKind.CARD) is None


def test_other_kinds_are_taken_once_the_author_has_shown_its_proof(node) -> None:
    early = seal(CAROL, NETWORK, Verdict(()), 5, WALL_S, WALL_S + 300).envelope
    edges = seal(CAROL, NETWORK, Edges(()), 6, WALL_S, WALL_S + 300).envelope
    assert refusals(node.told(early, edges)) == [ErrorCode.NOT_ADMITTED, ErrorCode.NOT_ADMITTED]
    assert node.table.get(CAROL.peer_id, RecordKind.VERDICT) is None
    assert refusals(node.told(card(CAROL, proof_of(CAROL)), early, edges)) == []
    assert node.table.get(CAROL.peer_id, RecordKind.VERDICT) is not None
    assert node.table.get(CAROL.peer_id, RecordKind.EDGES) is not None


def test_records_of_a_federated_network_are_taken_under_its_own_id(node) -> None:
    reader, config = node.gossip.reader, node.config.table.records
    theirs = card(CAROL, other_proof(CAROL), network=OTHER_NETWORK)
    with pytest.raises(RemoteProtocolError) as caught:
        reader.check(peek(theirs), NETWORK, WALL_S, config)
    assert caught.value.code is ErrorCode.WRONG_NETWORK
    notice = federation(OTHER_ROOT, until_s=NOW_S + DAY_S)
    node.admission.take(notice.data, notice.delegation, WALL_S)
    assert refusals(node.told(theirs)) == []
    assert node.table.get(CAROL.peer_id, RecordKind.CARD) is not None
    ours = card(CAROL, other_proof(CAROL), sequence=8)
    assert refusals(node.told(ours)) == [ErrorCode.WRONG_NETWORK]
    unknown = card(CAROL, other_proof(CAROL), sequence=9, network="net-elsewhere")
    assert refusals(node.told(unknown)) == [ErrorCode.NOT_ADMITTED]


def test_a_newer_card_of_a_federated_peer_is_taken_with_a_refusal_to_open_a_seal(node) -> None:
    notice = federation(OTHER_ROOT, until_s=NOW_S + DAY_S)
    node.admission.take(notice.data, notice.delegation, WALL_S)
    newer = card(CAROL, other_proof(CAROL), network=OTHER_NETWORK, seal_key=bytes([9]) * 32)
    assert node.relays.handle_card(newer, CAROL.peer_id, DAVE.peer_id, 0.2)
    assert node.relays.sealing_key(CAROL.peer_id) == bytes([9]) * 32


def test_members_hear_of_one_another_and_of_nobody_else() -> None:
    world = World(3)
    members = [world.add((0.01 * number, 0.0), config=CONFIG) for number in range(3)]
    world.run(0.05)
    for member in members:
        member.node.gossip.reader = AdmittedReader(Admission(ROOT.public_key))
        member.node.announcer.handle_membership(proof_of(member.identity))
    outsider = members[2]
    outsider.node.announcer.handle_membership(b"")
    for one in members:
        one.node.add_bootstrap([other.address for other in members if other is not one], 0.05)
        world.settle(one)
    world.run(30.0)
    first, second = members[0].node, members[1].node
    assert second.peer_id in first.views.known()
    assert first.peer_id in second.views.known()
    assert outsider.peer_id not in first.table.known()
    assert outsider.peer_id not in second.table.known()
