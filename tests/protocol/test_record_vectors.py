"""The vectors of docs/spec chapters 3 and 4 against the code."""

import hashlib
import json

import pytest
from record_vectors import FOLDER, gossip_vectors, readable, records_vectors

from protocol.errors import RemoteProtocolError
from protocol.gossip.messages import decode_message, encode_message
from protocol.identity import parse_peer_id
from protocol.records import RecordKind, open_record
from protocol.table import COMPARED, bucket_of, record_key
from protocol.wire import PackingLimits, unpack

RECORDS = json.loads((FOLDER / "records.json").read_text())
GOSSIP = json.loads((FOLDER / "gossip.json").read_text())
WIDE = PackingLimits(size_bytes_max=10_000, depth_max=16, values_max=10_000)


def named(vectors):
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


@pytest.mark.parametrize("vector", named(RECORDS["valid"]))
def test_a_valid_record_opens(vector):
    envelope = bytes.fromhex(vector["envelope"])
    record = open_record(envelope, RECORDS["network_id"], vector["wall_s"])
    assert record.kind.value == vector["kind"]
    assert record.peer_id == parse_peer_id(vector["peer_id"])
    assert (record.sequence, record.issued_s, record.expires_s) == (vector["sequence"], vector["issued_s"], vector["expires_s"])
    assert readable(unpack(unpack(envelope[64:], WIDE)[6], WIDE)) == vector["payload"]


@pytest.mark.parametrize("vector", named(RECORDS["invalid"]))
def test_an_invalid_record_is_refused_with_its_code(vector):
    with pytest.raises(RemoteProtocolError) as caught:
        open_record(bytes.fromhex(vector["envelope"]), RECORDS["network_id"], vector["wall_s"])
    assert caught.value.code.name == vector["code"]


@pytest.mark.parametrize("vector", named(GOSSIP["valid"]))
def test_a_valid_message_is_read_and_written_the_same(vector):
    payload = bytes.fromhex(vector["message"])
    assert encode_message(decode_message(payload)) == payload


@pytest.mark.parametrize("vector", named(GOSSIP["invalid"]))
def test_an_invalid_message_is_refused_with_its_code(vector):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(bytes.fromhex(vector["message"]))
    assert caught.value.code.name == vector["code"]


@pytest.mark.parametrize("held", GOSSIP["held"])
def test_keys_and_buckets_are_as_specified(held):
    kind = RecordKind(held["kind"])
    key = record_key(parse_peer_id(GOSSIP["peer_id"]), kind)
    assert (key.hex(), bucket_of(key) if kind in COMPARED else None) == (held["key"], held["bucket"])


def test_root_hash_is_the_hash_of_all_bucket_hashes():
    hashes = bytes.fromhex("".join(GOSSIP["bucket_hashes"]))
    assert hashlib.sha256(hashes).digest()[:8].hex() == GOSSIP["root_hash"]
    assert len(hashes) == 256 * 8


def test_the_files_are_what_the_code_makes():
    assert json.loads(json.dumps(records_vectors())) == RECORDS
    assert json.loads(json.dumps(gossip_vectors())) == GOSSIP
