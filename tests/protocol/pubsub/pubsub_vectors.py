"""Makes docs/spec/vectors/pubsub.json: run it as a program after a change of the format that is meant.

The bytes depend on fixed seeds and times alone, so the file can be compared with what this makes.
"""

import json
from dataclasses import replace
from pathlib import Path

from protocol.coordinates import Coordinate
from protocol.identity import Identity, peer_id_text
from protocol.inference import Feature
from protocol.libp2p.protobuf import encode_bytes, encode_text, encode_uint
from protocol.multiaddr import Multiaddr
from protocol.node.strangers import cards_topic
from protocol.pubsub import sign_message
from protocol.pubsub.messages import IHave, Prune, Rpc, Subscription, encode_pubsub_message, encode_rpc
from protocol.pubsub.signing import signed_part
from protocol.records import Card, Hardware, ModelOffer, seal

FOLDER = Path(__file__).parents[3] / "docs" / "spec" / "vectors"
NETWORK = "test-network"
WALL_S = 1_780_000_000.0
ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in range(2))
CARD = Card(
    addresses=(Multiaddr("ip4", "192.0.2.7", 4001, ALICE.peer_id),),
    hardware=Hardware("some processor", 8, 2**35, 1),
    models=(ModelOffer("all-minilm-l6-v2", frozenset({Feature.EMBEDDINGS}), 256, "f32", 91_000_000, "onnx"),),
    coordinate=Coordinate((0.01,) * 8, 0.001, 0.2),
    agent="isochrone/0.1.0",
    incarnation=7,
)
TOPIC = cards_topic(NETWORK)
SEQUENCE = 7


def stamped_card():
    return seal(ALICE, NETWORK, CARD, SEQUENCE, WALL_S, WALL_S + 7200.0)


def message():
    return sign_message(ALICE, stamped_card().envelope, SEQUENCE, TOPIC)


def rpcs():
    name = message().id
    return [
        ("subscribe", Rpc(subscriptions=(Subscription(TOPIC),))),
        ("unsubscribe", Rpc(subscriptions=(Subscription(TOPIC, subscribes=False),))),
        ("a card", Rpc(messages=(message(),))),
        ("have", Rpc(ihaves=(IHave(TOPIC, (name,)),))),
        ("want", Rpc(iwants=(name,))),
        ("graft", Rpc(grafts=(TOPIC,))),
        ("prune with its backoff", Rpc(prunes=(Prune(TOPIC, 60),))),
        ("prune of v1.0", Rpc(prunes=(Prune(TOPIC),))),
        ("do not want", Rpc(idontwants=(name,))),
    ]


def invalid():
    return [
        ("a message without a topic", encode_bytes(2, encode_bytes(2, b"data")), "MALFORMED"),
        ("a control message that is a number", encode_uint(3, 1), "MALFORMED"),
        ("a message that goes past the end", b"\x12\x05abc", "MALFORMED"),
        ("a topic that is no text", encode_bytes(2, encode_bytes(4, b"\xff")), "MALFORMED"),
        ("a topic of 1,025 bytes", encode_bytes(3, encode_bytes(3, encode_text(1, "t" * 1025))), "TOO_LARGE"),
        ("an id of 257 bytes", encode_bytes(3, encode_bytes(2, encode_bytes(1, bytes(257)))), "TOO_LARGE"),
        ("2,049 subscriptions", encode_bytes(1, b"") * 2049, "TOO_LARGE"),
    ]


def judged():
    """Messages from a stranger and what is made of them, at the time of issue."""
    good = message()
    elsewhere = seal(ALICE, "elsewhere", CARD, SEQUENCE, WALL_S, WALL_S + 600.0)
    old = seal(ALICE, NETWORK, CARD, SEQUENCE, WALL_S - 7200.0, WALL_S - 3600.0)
    return [
        ("a card", good, "accept"),
        ("with the key beside", replace(good, key=b"\x08\x01\x12\x20" + ALICE.public_key), "accept"),
        ("another's key beside", replace(good, key=b"\x08\x01\x12\x20" + BOB.public_key), "reject"),
        ("unsigned", replace(good, signature=b""), "reject"),
        ("another number, signed", sign_message(ALICE, good.data, SEQUENCE + 1, TOPIC), "reject"),
        ("another's card, signed by the bringer", sign_message(BOB, good.data, SEQUENCE, TOPIC), "reject"),
        ("no envelope", sign_message(ALICE, b"hello", SEQUENCE, TOPIC), "reject"),
        ("a card of another network", sign_message(ALICE, elsewhere.envelope, SEQUENCE, TOPIC), "reject"),
        ("a card that has expired", sign_message(ALICE, old.envelope, SEQUENCE, TOPIC), "ignore"),
    ]


def pubsub_vectors():
    good = message()
    return {
        "comment": "Bytes are hexadecimal. See ../08-pubsub.md.",
        "network_id": NETWORK,
        "topic": TOPIC,
        "seed": ALICE.seed.hex(),
        "peer_id": peer_id_text(ALICE.peer_id),
        "wall_s": WALL_S,
        "stamped": {
            "envelope": good.data.hex(),
            "sequence": SEQUENCE,
            "seqno": good.seqno.hex(),
            "id": good.id.hex(),
            "signed": signed_part(good.author, good.data, good.seqno, good.topic).hex(),
            "stamp": good.signature.hex(),
            "message": encode_pubsub_message(good).hex(),
        },
        "rpcs": [{"name": name, "rpc": encode_rpc(rpc).hex()} for name, rpc in rpcs()],
        "invalid": [{"name": name, "code": code, "rpc": payload.hex()} for name, payload, code in invalid()],
        "judged": [{"name": name, "judgement": made, "message": encode_pubsub_message(it).hex()} for name, it, made in judged()],
    }


if __name__ == "__main__":
    (FOLDER / "pubsub.json").write_text(json.dumps(pubsub_vectors(), indent=1) + "\n")
