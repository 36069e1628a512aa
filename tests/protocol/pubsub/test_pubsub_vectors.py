"""The vectors of docs/spec chapter 8 against the code."""

import json
import random

import pytest
from pubsub_vectors import FOLDER, pubsub_vectors

from protocol.errors import RemoteProtocolError
from protocol.identity import Identity, parse_peer_id, verify_signature
from protocol.node import Node, NodeConfig
from protocol.pubsub import Judgement, Version, is_signed
from protocol.pubsub.messages import Rpc, decode_pubsub_message, decode_rpc, encode_pubsub_message, encode_rpc
from protocol.records import Sequencer, open_record

VECTORS = json.loads((FOLDER / "pubsub.json").read_text())


def named(vectors):
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def test_the_stamped_card_is_as_specified():
    stamped = {name: bytes.fromhex(value) for name, value in VECTORS["stamped"].items() if name != "sequence"}
    author = Identity.from_seed(bytes.fromhex(VECTORS["seed"]))
    message = decode_pubsub_message(stamped["message"])
    assert author.peer_id == message.author == parse_peer_id(VECTORS["peer_id"])
    assert (message.data, message.seqno, message.id) == (stamped["envelope"], stamped["seqno"], stamped["id"])
    assert verify_signature(author.public_key, stamped["stamp"], stamped["signed"])
    assert author.sign(stamped["signed"]) == stamped["stamp"] == message.signature
    assert is_signed(message)
    record = open_record(message.data, VECTORS["network_id"], VECTORS["wall_s"])
    assert (record.peer_id, record.sequence) == (message.author, int.from_bytes(message.seqno, "big"))
    assert message.topic == VECTORS["topic"] == f"isochrone/{VECTORS['network_id']}/cards"


@pytest.mark.parametrize("vector", named(VECTORS["rpcs"]))
def test_a_valid_rpc_is_read_and_written_the_same(vector):
    payload = bytes.fromhex(vector["rpc"])
    rpc = decode_rpc(payload)
    assert rpc != Rpc()
    assert encode_rpc(rpc) == payload


@pytest.mark.parametrize("vector", named(VECTORS["invalid"]))
def test_an_invalid_rpc_is_refused_with_its_code(vector):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_rpc(bytes.fromhex(vector["rpc"]))
    assert caught.value.code.name == vector["code"]


@pytest.mark.parametrize("vector", named(VECTORS["judged"]))
def test_a_message_is_judged_as_specified(vector):
    node = Node(
        NodeConfig(network_id=VECTORS["network_id"]), Identity.from_seed(bytes(32)[:-1] + b"z"), random.Random(1), Sequencer(0)
    )
    node.handle_wall_clock(VECTORS["wall_s"], 0.0)
    stranger, message = parse_peer_id(VECTORS["peer_id"]), decode_pubsub_message(bytes.fromhex(vector["message"]))
    node.strangers.handle_connected(stranger, Version.V11, None, 0.0, is_dialled=False)
    node.strangers.handle_rpc(stranger, encode_rpc(Rpc(messages=(message,))), 0.0)
    score, is_taken = node.strangers.router.scores.score(stranger), len(node.table) == 1
    made = Judgement.ACCEPT if is_taken else Judgement.REJECT if score < 0.0 else Judgement.IGNORE
    assert made.value == vector["judgement"]
    assert encode_pubsub_message(message).hex() == vector["message"]


def test_the_file_is_what_the_code_makes():
    assert json.loads(json.dumps(pubsub_vectors())) == VECTORS
