"""Makes docs/spec/vectors/records.json and gossip.json: run it as a program after a change of the format that is meant.

The bytes depend on fixed seeds and times alone, so the files can be compared with what this makes.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import msgpack
from record_strategies import BEAT, CARD, EDGES, EXAMPLES, HARDWARE, IDENTITIES, LIFETIME_S, NETWORK, VERDICT, WALL_S

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
from protocol.identity import peer_id_text
from protocol.records import Gpu, Nic, Verdict, kind_of, seal
from protocol.scope import Scope
from protocol.table import COMPARED, PeerTable, RecordKey, bucket_of, record_key

FOLDER = Path(__file__).parents[2] / "docs" / "spec" / "vectors"
ALICE = IDENTITIES[0]
STAMP = bytes(range(64))
DOMAIN = b"isochrone-record-v1:"


BUSES = replace(
    HARDWARE,
    gpus=(Gpu("NVIDIA H200", 151_000_000_000, 504_123, 1), Gpu("NVIDIA L4", 24_000_000_000, 0, 0), Gpu("other", 0, 7877)),
    nics=(Nic("eth0", 100_000, 9000, 126_031, 0),),
)
"""GPUs of which both, one and the other are known."""


def sealed(payload, sequence=7, network=NETWORK, identity=ALICE):
    return seal(identity, network, payload, sequence, WALL_S, WALL_S + LIFETIME_S[kind_of(payload)])


def readable(value):
    """Plain values as JSON; bytes become text with a prefix."""
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return value


def signed_by_hand(changes, packed=None, payload=EDGES):
    """An envelope with a good signature over a header that is changed at some positions."""
    fields = msgpack.unpackb(sealed(payload).envelope[64:])
    for position, value in changes.items():
        fields[position] = value
    signed = msgpack.packb(fields) if packed is None else packed
    return ALICE.sign(DOMAIN + signed) + signed


def valid_records():
    plain = [(kind_of(payload).value, payload) for payload in EXAMPLES]
    told = [
        ("card of an earlier version, without an incarnation", replace(CARD, incarnation=0)),
        ("verdict that takes back all that was said", Verdict(())),
        ("card that tells of buses", replace(CARD, hardware=BUSES)),
    ]
    for name, payload in plain + told:
        record = sealed(payload)
        header = msgpack.unpackb(record.envelope[64:])
        yield {
            "name": name,
            "wall_s": WALL_S,
            "kind": record.kind.value,
            "peer_id": peer_id_text(record.peer_id),
            "sequence": record.sequence,
            "issued_s": record.issued_s,
            "expires_s": record.expires_s,
            "payload": readable(msgpack.unpackb(header[6])),
            "envelope": record.envelope.hex(),
        }


def invalid_records():
    good = sealed(EDGES).envelope
    twice = b"\x82\xa5edges\x90\xa5edges\x90"
    other = bytes(IDENTITIES[1].peer_id)
    cases = [
        ("forged: another peer's signature", IDENTITIES[1].sign(DOMAIN + good[64:]) + good[64:], WALL_S, "BAD_SIGNATURE"),
        ("signed without the domain", ALICE.sign(good[64:]) + good[64:], WALL_S, "BAD_SIGNATURE"),
        ("one bit of the payload flipped", good[:-1] + bytes([good[-1] ^ 1]), WALL_S, "BAD_SIGNATURE"),
        ("one byte left over", good + b"\x00", WALL_S, "MALFORMED"),
        ("cut off", good[:-1], WALL_S, "MALFORMED"),
        ("empty", b"", WALL_S, "MALFORMED"),
        ("another network", sealed(EDGES, network="elsewhere").envelope, WALL_S, "WRONG_NETWORK"),
        ("a minute after its expiry", good, WALL_S + 3660.0, "EXPIRED"),
        ("more than a minute before its issue", good, WALL_S - 60.001, "NOT_YET_VALID"),
        ("edges that live too long", signed_by_hand({5: int(WALL_S * 1000) + 3_600_001}), WALL_S, "MALFORMED"),
        ("an expiry that is the issue", signed_by_hand({5: int(WALL_S * 1000)}), WALL_S, "MALFORMED"),
        ("a kind of a later version", signed_by_hand({1: "route"}), WALL_S, "UNSUPPORTED"),
        ("a signed beat, a kind that is given up", beat_by_hand(), WALL_S, "UNSUPPORTED"),
        ("a peer id that is a hash", signed_by_hand({2: b"\x12\x20" + bytes(32)}), WALL_S, "UNSUPPORTED"),
        ("sequence number 0", signed_by_hand({3: 0}), WALL_S, "MALFORMED"),
        ("edges over 8,192 bytes", signed_by_hand({6: bytes(8192)}), WALL_S, "TOO_LARGE"),
        ("a field given twice", signed_by_hand({6: twice}), WALL_S, "MALFORMED"),
        ("a payload without edges", signed_by_hand({6: msgpack.packb({})}), WALL_S, "MALFORMED"),
        ("a round trip that is no number", edges_of([[other, math.nan, 0.0, 1]]), WALL_S, "MALFORMED"),
        ("a round trip below zero", edges_of([[other, -0.001, 0.0, 1]]), WALL_S, "MALFORMED"),
        ("an extension type", signed_by_hand({6: msgpack.packb(msgpack.ExtType(1, b"x"))}), WALL_S, "MALFORMED"),
        ("a verdict that lives too long", verdict_by_hand({5: int(WALL_S * 1000) + 600_001}), WALL_S, "MALFORMED"),
        ("a verdict over 4,096 bytes", verdict_by_hand({6: bytes(4096)}), WALL_S, "TOO_LARGE"),
        ("a verdict of 129 accusations", verdict_of([[bytes(8), 1]] * 129), WALL_S, "TOO_LARGE"),
        ("an accusation without an incarnation", verdict_of([[bytes(8)]]), WALL_S, "MALFORMED"),
        ("an accusation of a key of 7 bytes", verdict_of([[bytes(7), 1]]), WALL_S, "MALFORMED"),
        ("a negative incarnation", verdict_of([[bytes(8), -1]]), WALL_S, "MALFORMED"),
        ("a header that is a map", signed_by_hand({}, msgpack.packb({"network": NETWORK})), WALL_S, "MALFORMED"),
    ]
    for name, envelope, wall_s, code in cases:
        yield {"name": name, "wall_s": wall_s, "code": code, "envelope": envelope.hex()}


def edges_of(edges):
    return signed_by_hand({6: msgpack.packb({"edges": edges})})


def beat_by_hand():
    """What nodes signed before beats became messages of their own: valid, but for its kind."""
    payload = msgpack.packb({"draining": False, "loads": [["all-minilm-l6-v2", 1, 0, 4, 0.0, 0.004, 0.0]]})
    return signed_by_hand({1: "beat", 5: int(WALL_S * 1000) + 30_000, 6: payload})


def verdict_by_hand(changes):
    return signed_by_hand(changes, payload=VERDICT)


def verdict_of(accused):
    return verdict_by_hand({6: msgpack.packb({"accused": accused})})


def records_vectors():
    return {
        "comment": "Bytes are hexadecimal; inside payloads they are text with the prefix hex:. See ../03-records.md.",
        "network_id": NETWORK,
        "seed": ALICE.seed.hex(),
        "valid": list(valid_records()),
        "invalid": list(invalid_records()),
    }


def gossip_vectors():
    table = PeerTable(ALICE.peer_id)
    for payload in EXAMPLES:
        table.offer(sealed(payload), 0.0, WALL_S)
    held = [
        {
            "kind": record.kind.value,
            "key": (key := record_key(record.peer_id, record.kind)).hex(),
            "bucket": bucket_of(key) if record.kind in COMPARED else None,
            "sequence": record.sequence,
        }
        for record in table
    ]
    entries = tuple(table.digest())
    messages = [
        ("records", Records((sealed(CARD).envelope,))),
        ("records, the first with a stamp", Records((sealed(CARD).envelope, sealed(VERDICT).envelope), (STAMP, None))),
        ("digest of everything", Digest((table.root_hash(),))),
        ("digest of buckets", Digest(tuple(table.bucket_hashes()))),
        ("entries that ask for an answer", Entries(entries, (0, 1, 255))),
        ("entries in answer, or announced", Entries(entries)),
        ("want", Want(tuple(RecordKey(key) for key, _ in entries))),
        ("graft", Graft()),
        ("prune", Prune()),
        ("do not want", DontWant(entries)),
        ("beat", BeatTold(encode_beat(BEAT))),
        (
            "beat that tells what is left of a bus",
            BeatTold(encode_beat(replace(BEAT, bus_free_mbps=441_000))),
        ),
        ("keep", Keep(keeps=True)),
        ("do not keep", Keep(keeps=False)),
        ("keep, by one that speaks three legs of a probe", Keep(keeps=True, legs=3)),
        ("scope", ScopeTold(Scope(CARD.coordinate.vector, 0.05))),
        ("scope of everything", ScopeTold(None)),
        ("search for any cards", Seek("", 8)),
        ("search for cards with a model", Seek("all-minilm-l6-v2", 16)),
    ]
    invalid = [
        ("no type", [], "MALFORMED"),
        ("a record that is text", [1, ["x"]], "MALFORMED"),
        ("513 records", [1, [b""] * 513], "TOO_LARGE"),
        ("a stamp of 63 bytes", [1, [b""], [bytes(63)]], "MALFORMED"),
        ("fewer stamps than records", [1, [b"", b""], [bytes(64)]], "MALFORMED"),
        ("a digest of 255 buckets", [2, bytes(255 * 8)], "MALFORMED"),
        ("a digest of 257 buckets", [2, bytes(257 * 8)], "TOO_LARGE"),
        ("a digest of nothing", [2, b""], "MALFORMED"),
        ("entries without buckets", [3, b"", b""], "MALFORMED"),
        ("an entry with sequence number 0", [3, bytes(32), bytes(16)], "MALFORMED"),
        ("half an entry", [3, bytes(32), bytes(8)], "MALFORMED"),
        ("1,025 wants", [4, bytes(8 * 1025)], "TOO_LARGE"),
        ("no wants", [4, b""], "MALFORMED"),
        ("a graft alone", [5], "MALFORMED"),
        ("half an entry not wanted", [7, bytes(8)], "MALFORMED"),
        ("a beat that is a map", [8, {"draining": False}], "MALFORMED"),
        ("a keep that is a number", [9, 1], "MALFORMED"),
        ("a scope without a radius", [10, [0.0] * 8], "MALFORMED"),
        ("a scope of seven components", [10, [0.0] * 7, 0.05], "MALFORMED"),
        ("a scope farther than a round trip", [10, [61.0] + [0.0] * 7, 0.05], "MALFORMED"),
        ("a negative radius", [10, [0.0] * 8, -0.01], "MALFORMED"),
        ("a search for no cards", [11, "", 0], "MALFORMED"),
        ("a search for 17 cards", [11, "", 17], "TOO_LARGE"),
    ]
    return {
        "comment": "Bytes are hexadecimal. See ../04-gossip.md.",
        "peer_id": peer_id_text(ALICE.peer_id),
        "held": held,
        "root_hash": table.root_hash().hex(),
        "bucket_hashes": [hash_.hex() for hash_ in table.bucket_hashes()],
        "valid": [{"name": name, "message": encode_message(message).hex()} for name, message in messages],
        "invalid": [{"name": name, "code": code, "message": msgpack.packb(value).hex()} for name, value, code in invalid],
    }


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, vectors in (("records", records_vectors()), ("gossip", gossip_vectors())):
        (FOLDER / f"{name}.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
