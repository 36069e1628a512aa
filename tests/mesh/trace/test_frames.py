"""What frames say, of every protocol and of none, with and without what people said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.trace.frames import LISTED_MAX, describe, describe_datagram
from mesh.trace.lines import line_of
from protocol.coordinates import Coordinate
from protocol.errors import ErrorCode
from protocol.gossip.beats import encode_beat
from protocol.gossip.messages import (
    BeatTold,
    Digest,
    DontWant,
    Entries,
    Graft,
    Keep,
    Prune,
    Records,
    ScopeTold,
    Seek,
    Want,
    encode_message,
)
from protocol.identity import Identity, encode_public_key, peer_id_text
from protocol.inference import Accepted, Failed, Feature, Finished, InferenceRequest, JsonDelta, Tensor, TensorsReady, TextDelta
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, Identify, encode_identify
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.load import Beat, ModelLoad
from protocol.places import encode_place
from protocol.pubsub.messages import IHave, PubsubMessage, Rpc, Subscription, encode_rpc
from protocol.pubsub.messages import Prune as PubsubPrune
from protocol.records import Edges, seal
from protocol.scope import Scope
from protocol.sealing import (
    RELAY_PROTOCOL,
    SEALED_PROTOCOL,
    Begun,
    Chunk,
    Header,
    Refused,
    encode_answer_frame,
    encode_header,
)
from protocol.table import RecordKey
from protocol.wire.inference import PROTOCOL_ID, encode_reply, encode_request

GOSSIP = "/isochrone/gossip/3.0.0"
IDENTITY = Identity.from_seed(bytes(32))
SECRET = "the cat is called Schroedinger"
KEY = RecordKey(b"k" * 8)
ENVELOPE = seal(IDENTITY, "net", Edges(()), 7, 1000.0, 1500.0).envelope
LOAD = ModelLoad("tiny", 1, 2, 4, 0.5, 0.25)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (Records((ENVELOPE,)), {"type": "records", "count": 1}),
        (Digest((b"h" * 8,)), {"type": "digest", "count": 1, "hashes": [(b"h" * 8).hex()]}),
        (
            Entries(((KEY, 3),), (5,)),
            {"type": "entries", "count": 1, "buckets": 1, "entries": [{"key": KEY.hex(), "sequence": 3}]},
        ),
        (Want((KEY,)), {"type": "want", "count": 1, "keys": [KEY.hex()]}),
        (Graft(), {"type": "graft"}),
        (Prune(), {"type": "prune"}),
        (DontWant(((KEY, 3),)), {"type": "do not want", "count": 1}),
        (BeatTold(encode_beat(Beat(True, (LOAD,)))), {"type": "beat", "draining": True}),
        (Keep(True), {"type": "keep", "keeps": True}),
        (Keep(True, 3), {"type": "keep", "keeps": True, "legs": 3}),
        (ScopeTold(None), {"type": "scope", "everything": True}),
        (ScopeTold(Scope((0.001,) * 8, 0.02)), {"type": "scope", "middle_ms": [1.0] * 8, "radius_ms": 20.0}),
        (Seek("tiny", 4), {"type": "seek", "model": "tiny", "count": 4}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_message_of_gossip_is_told(message, told: dict) -> None:
    said = describe(GOSSIP, encode_message(message), by_opener=True, content=False)
    assert said.items() >= told.items()


def test_a_record_is_told_by_its_header() -> None:
    said = describe(GOSSIP, encode_message(Records((ENVELOPE, b"x" * 80))), by_opener=True, content=False)
    header, rubbish = said["records"]
    assert header == {
        "kind": "edges", "signer": peer_id_text(IDENTITY.peer_id), "sequence": 7, "expires_s": 1500.0, "bytes": len(ENVELOPE),
    }  # fmt: skip
    assert rubbish == {"bytes": 80, "undecodable": "MALFORMED"}


def test_a_beat_tells_its_loads() -> None:
    said = describe(GOSSIP, encode_message(BeatTold(encode_beat(Beat(False, (LOAD,))))), by_opener=True, content=False)
    assert said["loads"] == [{"model": "tiny", "running": 1, "waiting": 2, "slots": 4, "queue_s": 0.5, "service_s": 0.25}]


def test_long_lists_are_cut_and_counted() -> None:
    said = describe(GOSSIP, encode_message(Want((KEY,) * 100)), by_opener=True, content=False)
    assert said["count"] == 100
    assert len(said["keys"]) == LISTED_MAX


def tensor() -> Tensor:
    return Tensor("in", "u1", (len(SECRET),), memoryview(SECRET.encode()))


INFERENCES = [
    (
        "request",
        encode_request(InferenceRequest(bytes(16), Feature.CHAT, "tiny", json.dumps({"prompt": SECRET}).encode(), (tensor(),))),
    ),
    ("accepted", encode_reply(Accepted(0.5))),
    ("text", encode_reply(TextDelta(SECRET))),
    ("json", encode_reply(JsonDelta(json.dumps({"a": SECRET}).encode()))),
    ("tensors", encode_reply(TensorsReady((tensor(),)))),
    ("finished", encode_reply(Finished(("stop",)))),
    ("failed", encode_reply(Failed(ErrorCode.ENGINE_FAILED, f"cannot parse {SECRET}"))),
]
SAYING = {"request", "text", "json", "tensors", "failed"}


@pytest.mark.parametrize(("kind", "data"), INFERENCES, ids=[kind for kind, _ in INFERENCES])
def test_what_was_said_is_told_only_when_asked_for(kind: str, data: bytes) -> None:
    quiet = describe(PROTOCOL_ID, data, by_opener=kind == "request", content=False)
    assert quiet["type"] == kind
    assert SECRET not in json.dumps(quiet)
    full = describe(PROTOCOL_ID, data, by_opener=kind == "request", content=True)
    if kind in SAYING - {"tensors"}:
        assert SECRET in json.dumps(full)
    assert ("base64" in json.dumps(full)) == (kind in ("request", "tensors"))


def test_libp2p_s_protocols_are_told() -> None:
    assert describe(PING_PROTOCOL, bytes(32), by_opener=True, content=False) == {"type": "ping", "nonce": "00" * 8}
    said = Identify(public_key=encode_public_key(IDENTITY.public_key), protocols=(GOSSIP,), agent_version="x/1")
    told = describe(IDENTIFY_PROTOCOL, encode_identify(said), by_opener=False, content=False)
    assert (told["agent"], told["protocols"], told["signed_record"]) == ("x/1", [GOSSIP], False)


def test_probes_are_told() -> None:
    assert describe_datagram(b"\x01" + b"n" * 8) == {"type": "probe", "nonce": (b"n" * 8).hex()}
    place = Coordinate((0.001,) * 8, 0.002, 0.5)
    told = describe_datagram(b"\x02" + b"n" * 8 + encode_place(place))
    assert told["type"] == "echo"
    assert told["vector_ms"] == pytest.approx([1.0] * 8, abs=1e-3)
    three = describe_datagram(b"\x04" + b"n" * 8 + b"m" * 8)
    assert three == {"type": "echo of three legs", "nonce": (b"n" * 8).hex(), "own_nonce": (b"m" * 8).hex()}
    assert describe_datagram(b"\x05" + b"m" * 8)["type"] == "third leg"
    assert describe_datagram(b"\x06") == {"type": "unknown"}
    assert describe_datagram(b"")["code"] == "MALFORMED"


def test_what_breaks_a_rule_is_told_with_its_code() -> None:
    said = describe(GOSSIP, b"\xc1", by_opener=True, content=False)
    assert (said["type"], said["code"]) == ("undecodable", "MALFORMED")
    assert describe("/other/1.0.0", b"x", by_opener=True, content=False) == {"type": "unknown"}


@given(
    st.sampled_from([GOSSIP, PROTOCOL_ID, PING_PROTOCOL, IDENTIFY_PROTOCOL, "/x"]),
    st.binary(max_size=200),
    st.booleans(),
    st.booleans(),
)
def test_no_bytes_of_a_peer_break_a_trace(protocol_id: str, data: bytes, by_opener: bool, content: bool) -> None:
    told = describe(protocol_id, data, by_opener=by_opener, content=content)
    event = {"t_s": 0.5, "what": "frame", "sent": True, "stream": 4, "protocol": protocol_id, "bytes": len(data), "frame": told}
    line = line_of(json.loads(json.dumps(event)))
    assert line.plain.isprintable()
    json.dumps(describe_datagram(data))


def test_lines_read_well() -> None:
    frame = describe(GOSSIP, encode_message(BeatTold(encode_beat(Beat(False, (LOAD,))))), by_opener=True, content=False)
    event = {"t_s": 1.5, "what": "frame", "sent": False, "stream": 1, "protocol": GOSSIP, "bytes": 21, "frame": frame}
    assert line_of(event).plain == (
        "     1.500  ← gossip       1  beat  21 B  draining no"
        "  loads model tiny running 1 waiting 2 slots 4 queue 0.5 s service 0.25 s"
    )
    assert line_of({"what": "lost", "count": 3}).plain.startswith("3 events were lost")


def test_gossipsub_is_told_without_what_messages_hold():
    message = PubsubMessage(bytes(IDENTITY.peer_id), b"the data", bytes(8), "t", bytes(64))
    rpc = Rpc(
        subscriptions=(Subscription("t"),),
        messages=(message,),
        ihaves=(IHave("t", (b"1", b"2")),),
        iwants=(b"3",),
        grafts=("t",),
        prunes=(PubsubPrune("u", 60),),
        idontwants=(b"4",),
    )
    assert describe("/meshsub/1.1.0", encode_rpc(rpc), by_opener=True, content=False) == {
        "type": "rpc",
        "subscriptions": [{"topic": "t", "subscribes": True}],
        "messages": [{"topic": "t", "id": message.id.hex(), "bytes": 8}],
        "have": ["31", "32"],
        "want": ["33"],
        "do_not_want": ["34"],
        "graft": ["t"],
        "prune": ["u"],
    }
    assert describe("/meshsub/1.2.0", b"\xff", by_opener=True, content=False)["type"] == "undecodable"


def test_of_what_is_sealed_only_the_outside_is_told() -> None:
    peer = Identity.from_seed(bytes(32)).peer_id
    header = encode_header(Header(bytes(16), 1.0, 1, peer))
    frames = (
        (header, True, {"type": "relay header", "request_id": "00" * 16, "hop": 1, "far_end": peer_id_text(peer)}),
        (bytes(400), True, {"type": "sealed request"}),
        (encode_answer_frame(Begun(bytes(32))), False, {"type": "sealed answer"}),
        (encode_answer_frame(Chunk(3, True, bytes(40))), False, {"type": "sealed chunk", "number": 3, "final": True}),
        (encode_answer_frame(Refused(ErrorCode.RELAY_REFUSED)), False, {"type": "refused", "code": "RELAY_REFUSED"}),
    )
    for protocol_id in (RELAY_PROTOCOL, SEALED_PROTOCOL):
        for frame, by_opener, told in frames:
            assert describe(protocol_id, frame, by_opener=by_opener, content=True) == told
    assert describe(RELAY_PROTOCOL, b"x", by_opener=True, content=True)["type"] == "undecodable"
