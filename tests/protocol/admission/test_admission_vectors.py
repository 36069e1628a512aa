"""The vectors of docs/spec chapter 9 against the code."""

import json

import pytest
from admission_vectors import FOLDER, encoded

from protocol.admission import (
    Admission,
    decode_join_answer,
    decode_join_request,
    decode_notice_frame,
    encode_guest,
    encode_join_answer,
    encode_join_request,
    network_id_of,
    parse_token,
)
from protocol.errors import RemoteProtocolError
from protocol.identity import Identity, parse_peer_id, peer_id_of, read_certificate

VECTORS = json.loads((FOLDER / "admission.json").read_text())


def code_of(call) -> str | None:
    try:
        call()
    except RemoteProtocolError as fault:
        return fault.code.name
    return None


def machine() -> Admission:
    return Admission(bytes.fromhex(VECTORS["network_key"]))


def named(vectors):
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def test_the_file_is_what_the_code_makes() -> None:
    assert (FOLDER / "admission.json").read_text() == encoded()


@pytest.mark.parametrize("vector", VECTORS["networks"])
def test_network_ids(vector) -> None:
    assert network_id_of(bytes.fromhex(vector["key"])) == vector["network_id"]


@pytest.mark.parametrize("vector", named(VECTORS["members"]))
def test_what_members_show(vector) -> None:
    proof, peer_id = bytes.fromhex(vector["shown"]), parse_peer_id(vector["peer_id"])
    assert code_of(lambda: machine().check(peer_id, proof, vector["wall_s"])) == vector["code"]


@pytest.mark.parametrize("vector", named(VECTORS["guests"]))
def test_what_guests_show(vector) -> None:
    guest = peer_id_of(Identity.from_seed(bytes(32)).public_key)
    proof, issuer = bytes.fromhex(vector["shown"]), parse_peer_id(VECTORS["issuer"])
    assert encode_guest(parse_token(vector["text"])) == proof
    assert code_of(lambda: machine().check_guest(issuer, guest, proof, vector["wall_s"])) == vector["code"]


def test_notices_in_their_order() -> None:
    admission = machine()
    for vector in VECTORS["notices"]:
        data, delegation = decode_notice_frame(bytes.fromhex(vector["frame"]))
        assert code_of(lambda d=data, p=delegation, v=vector: admission.take(d, p, v["wall_s"])) == vector["code"], vector["name"]
    for vector in VECTORS["after_notices"]:
        proof, peer_id = bytes.fromhex(vector["shown"]), parse_peer_id(vector["peer_id"])
        assert code_of(lambda q=peer_id, p=proof, v=vector: admission.check(q, p, v["wall_s"])) == vector["code"], vector["name"]


@pytest.mark.parametrize("vector", named(VECTORS["frames"]))
def test_frames_round_trip(vector) -> None:
    frame = bytes.fromhex(vector["frame"])
    if vector["name"] in ("join", "renew"):
        assert encode_join_request(decode_join_request(frame)) == frame
    else:
        assert encode_join_answer(decode_join_answer(frame)) == frame


def test_the_proof_stands_in_the_tls_certificate() -> None:
    vector = VECTORS["tls_certificate"]
    peer_id, proof = read_certificate(bytes.fromhex(vector["der"]), vector["wall_s"])
    assert proof.hex() == vector["shown"]
    machine().check(peer_id, proof, vector["wall_s"])
