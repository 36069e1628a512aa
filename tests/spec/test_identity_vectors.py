"""Every vector of docs/spec/vectors/identity.json, and the tables of the first two chapters."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from protocol.encoding import decode_uvarint, encode_uvarint
from protocol.errors import RETRYABLE, ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import (
    Identity,
    decode_public_key,
    encode_public_key,
    parse_peer_id,
    peer_id_from_bytes,
    peer_id_text,
    public_key_of,
    verify_certificate,
    verify_signature,
)
from protocol.libp2p.envelope import open_peer_record, seal_peer_record
from protocol.libp2p.identify import Identify, IdentifyReader, PeerDescription, encode_identify, verify_identify
from protocol.multiaddr import Multiaddr, parse_multiaddr

SPEC = Path(__file__).parents[2] / "docs" / "spec"
VECTORS = json.loads((SPEC / "vectors" / "identity.json").read_text())


def of(*keys: str) -> list:
    found = VECTORS
    for key in keys:
        found = found[key]
    assert found
    return found


@pytest.mark.parametrize("vector", of("uvarint", "valid"))
def test_varint(vector: dict) -> None:
    encoded = bytes.fromhex(vector["hex"])
    assert encode_uvarint(vector["value"]) == encoded
    assert decode_uvarint(encoded) == (vector["value"], len(encoded))


@pytest.mark.parametrize("vector", of("uvarint", "invalid"))
def test_invalid_varint(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_uvarint(bytes.fromhex(vector["hex"]))
    assert caught.value.code is ErrorCode.MALFORMED


@pytest.mark.parametrize("vector", of("identities"))
def test_identity(vector: dict) -> None:
    identity = Identity.from_seed(bytes.fromhex(vector["seed"]))
    assert identity.public_key.hex() == vector["public_key"]
    assert encode_public_key(identity.public_key).hex() == vector["public_key_message"]
    assert decode_public_key(bytes.fromhex(vector["public_key_message"])) == identity.public_key
    assert identity.peer_id.hex() == vector["peer_id"]
    assert peer_id_text(identity.peer_id) == vector["text"]
    assert parse_peer_id(vector["text"]) == parse_peer_id(vector["cid"]) == identity.peer_id
    assert public_key_of(identity.peer_id) == identity.public_key
    for signed in vector["signatures"]:
        message, signature = bytes.fromhex(signed["message"]), bytes.fromhex(signed["signature"])
        assert identity.sign(message) == signature
        assert verify_signature(identity.public_key, signature, message)
        assert not verify_signature(identity.public_key, signature, message + b"!")


@pytest.mark.parametrize("vector", of("keys"), ids=lambda vector: vector["type"])
def test_key_of_each_type_of_libp2p(vector: dict) -> None:
    """Ed25519 is an identity; the other types are named, passed on and refused."""
    message, peer_id = bytes.fromhex(vector["public_key_message"]), bytes.fromhex(vector["peer_id"])
    assert peer_id == (
        b"\x00" + bytes([len(message)]) + message if len(message) <= 42 else b"\x12\x20" + sha256(message).digest()
    )
    assert parse_peer_id(vector["text"]) == parse_peer_id(vector["cid"]) == peer_id_from_bytes(peer_id) == peer_id
    assert peer_id_text(parse_peer_id(vector["cid"])) == vector["text"]
    if vector["type"] == "Ed25519":
        identity = Identity.from_seed(bytes.fromhex(vector["private_key_message"])[4:36])
        assert encode_public_key(identity.public_key) == message
        assert identity.peer_id == peer_id
        return
    for refused in (lambda: decode_public_key(message), lambda: public_key_of(parse_peer_id(vector["text"]))):
        with pytest.raises(RemoteProtocolError) as caught:
            refused()
        assert caught.value.code is ErrorCode[vector["error"]]


@pytest.mark.parametrize("vector", of("other_peer_ids"))
def test_peer_id_without_an_ed25519_key(vector: dict) -> None:
    peer_id = parse_peer_id(vector["text"])
    assert peer_id.hex() == vector["peer_id"]
    assert parse_peer_id(vector["cid"]) == peer_id
    with pytest.raises(RemoteProtocolError) as caught:
        public_key_of(peer_id)
    assert caught.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("text", of("invalid_peer_id_texts"))
def test_invalid_peer_id_text(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        parse_peer_id(text)


@pytest.mark.parametrize("vector", of("multiaddrs"))
def test_multiaddr(vector: dict) -> None:
    address = parse_multiaddr(vector["text"])
    assert address.to_bytes().hex() == vector["hex"]
    assert str(Multiaddr.from_bytes(bytes.fromhex(vector["hex"]))) == vector["text"]


@pytest.mark.parametrize("text", of("invalid_multiaddr_texts"))
def test_invalid_multiaddr_text(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        parse_multiaddr(text)


@pytest.mark.parametrize("vector", of("invalid_multiaddr_bytes"), ids=lambda vector: vector["why"])
def test_invalid_multiaddr_bytes(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Multiaddr.from_bytes(bytes.fromhex(vector["hex"]))
    assert caught.value.code is ErrorCode.MALFORMED


@pytest.mark.parametrize("vector", of("certificates"), ids=lambda vector: vector["name"])
def test_certificate(vector: dict) -> None:
    der = bytes.fromhex(vector["der"])
    if "peer_id" in vector:
        assert peer_id_text(verify_certificate(der, vector["wall_s"])) == vector["peer_id"]
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            verify_certificate(der, vector["wall_s"])
        assert caught.value.code is ErrorCode[vector["error"]]
        assert vector.get("why", "") in caught.value.detail


@pytest.mark.parametrize("vector", [v for v in of("certificates") if "algorithm" in v], ids=lambda vector: vector["name"])
def test_self_signature_of_each_algorithm_is_verified(vector: dict) -> None:
    """The certificate as it stands gets past its own signature; with the signature's last bit changed it does not."""
    der = bytes.fromhex(vector["der"])
    with pytest.raises(RemoteProtocolError, match="it is not signed by its own key") as caught:
        verify_certificate(der[:-1] + bytes([der[-1] ^ 1]), vector["wall_s"])
    assert caught.value.code is ErrorCode.BAD_CERTIFICATE


def test_peer_record() -> None:
    vector = VECTORS["peer_record"]
    identity = Identity.from_seed(bytes.fromhex(vector["signer_seed"]))
    addresses = tuple(bytes.fromhex(address) for address in vector["addresses"])
    assert seal_peer_record(identity, vector["sequence"], addresses).hex() == vector["envelope"]
    record = open_peer_record(bytes.fromhex(vector["envelope"]))
    assert (record.peer_id, record.sequence, record.addresses) == (identity.peer_id, vector["sequence"], addresses)


@pytest.mark.parametrize("name", ["identify", "identify_with_path"])  # version 0.1.0's protocol version had no slash before it
def test_identify_stream(name: str) -> None:
    vector = VECTORS[name]
    reader = IdentifyReader()
    reader.receive_data(bytes.fromhex(vector["stream"]))
    identify = reader.receive_eof()
    assert identify == Identify(
        public_key=bytes.fromhex(vector["public_key"]),
        listen_addresses=tuple(bytes.fromhex(address) for address in vector["listen_addresses"]),
        protocols=tuple(vector["protocols"]),
        observed_address=bytes.fromhex(vector["observed_address"]),
        protocol_version=vector["protocol_version"],
        agent_version=vector["agent_version"],
        signed_peer_record=bytes.fromhex(vector["signed_peer_record"]),
    )
    assert encode_identify(identify).hex() == vector["stream"]
    assert verify_identify(identify, Identity.from_seed(bytes.fromhex(VECTORS["peer_record"]["signer_seed"])).peer_id) is not None


@pytest.mark.parametrize("vector", of("identify_push", "pushes"), ids=lambda vector: vector["name"])
def test_identify_push(vector: dict) -> None:
    streams = [bytes.fromhex(VECTORS["identify_with_path"]["stream"]), bytes.fromhex(vector["stream"])]
    description = PeerDescription(Identity.from_seed(bytes.fromhex(VECTORS["peer_record"]["signer_seed"])).peer_id)
    for take, stream in zip((description.answered, description.pushed), streams, strict=True):
        reader = IdentifyReader()
        reader.receive_data(stream)
        take(reader.receive_eof())
    known, said = vector["known"], description.said
    assert said is not None
    assert [address.hex() for address in said.listen_addresses] == known["listen_addresses"]
    assert list(said.protocols) == known["protocols"]
    for name in ("public_key", "observed_address", "signed_peer_record"):
        assert getattr(said, name).hex() == known[name]
    assert (said.protocol_version, said.agent_version) == (known["protocol_version"], known["agent_version"])
    assert description.record is not None
    assert description.record.sequence == vector["sequence"]


def test_table_of_error_codes_is_complete_and_says_which_may_be_retried() -> None:
    text = (SPEC / "00-conventions.md").read_text()
    rows = re.findall(r"^\| 0x([0-9A-F]+) \| `([A-Z_]+)` \| (yes|no) \|", text, flags=re.MULTILINE)
    assert [(name, int(code, 16), retry == "yes") for code, name, retry in rows] == [
        (code.name, code.value, code in RETRYABLE) for code in ErrorCode
    ]


@pytest.mark.parametrize("chapter", ["00-conventions.md", "01-identity.md"])
def test_every_must_sentence_has_an_id_and_ids_are_in_order(chapter: str) -> None:
    text = re.sub(r"```.*?```", "", (SPEC / chapter).read_text(), flags=re.DOTALL)
    ids = [int(number) for number in re.findall(r"^- \*\*ISO-[A-Z0-9]+-(\d{3})\*\*", text, flags=re.MULTILINE)]
    assert ids == list(range(1, len(ids) + 1))
    for paragraph in text.split("\n\n"):
        for item in re.split(r"\n(?=- )", paragraph):
            if re.search(r"\b(MUST|SHOULD)\b", item) and "BCP 14" not in item:
                assert re.match(r"\n?- \*\*ISO-", item), f"a rule without an id: {item}"
