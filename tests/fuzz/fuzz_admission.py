"""The harness of admission: what a stranger shows, invitations, certificates, delegations and notices.

Statements are tried as they came and, because a signature is looked at before the rest, with whatever content well signed.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzz_oracle import Harness, either

from protocol.admission import (
    decode_join_answer,
    decode_join_request,
    decode_notice_frame,
    delegation_text,
    network_text,
    open_certificate,
    open_delegation,
    open_notice,
    open_shown,
    open_token,
    parse_delegation,
    parse_network,
    parse_token,
    token_text,
)
from protocol.admission.config import NETWORK_LIMITS
from protocol.admission.notices import NOTICE_DOMAIN
from protocol.admission.statements import CERTIFICATE_DOMAIN, DELEGATION_DOMAIN
from protocol.admission.tokens import CHECKSUM_BYTES, NETWORK_PREFIX, TOKEN_DOMAIN
from protocol.encoding import encode_base32
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity
from protocol.wire import pack

VECTORS = Path(__file__).resolve().parents[2] / "docs" / "spec" / "vectors" / "admission.json"
SIGNATURE_BYTES = 64


def _vectors() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(VECTORS.read_text())
    return told


def _signers() -> list[Identity]:
    return [Identity.from_seed(bytes.fromhex(seed)) for name, seed in _vectors()["seeds"].items() if name in ("root", "issuer")]


def _frames() -> list[bytes]:
    told = _vectors()
    return [bytes.fromhex(row["frame"]) for row in told["frames"] + told["notices"]]


def _shown() -> list[bytes]:
    told = _vectors()
    return [bytes.fromhex(row["shown"]) for row in told["members"] + told["guests"]]


def _parts() -> list[tuple[bytes, bytes, bytes]]:
    """Certificate, delegation and token of what is shown in the vectors and can be read."""
    found = []
    for shown in _shown():
        try:
            parts = open_shown(shown)
        except RemoteProtocolError:
            continue
        found.append((parts.certificate, parts.delegation, parts.token))
    return found


def _notices() -> list[tuple[bytes, bytes]]:
    found = []
    for frame in [bytes.fromhex(row["frame"]) for row in _vectors()["notices"]]:
        try:
            found.append(decode_notice_frame(frame))
        except RemoteProtocolError:
            continue
    return found


_ROOT, _ISSUER = _signers()
_DELEGATION = next(open_delegation(delegation) for _, delegation, _ in _parts() if delegation)
_DELEGATED = next(delegation for _, delegation, _ in _parts() if delegation)


def _signed(signer: Identity, domain: bytes, content: bytes) -> bytes:
    return signer.sign(domain + content) + content


def _frame(_state: None, data: bytes) -> object:
    results: list[object] = []
    for read in (decode_join_request, decode_join_answer, decode_notice_frame, open_shown):
        try:
            results.append(read(data))
        except RemoteProtocolError as error:
            results.append(error)
    return results


def _content(read: Callable[[bytes], object], signer: Identity, domain: bytes) -> Callable[[None, bytes], object]:
    def run(_state: None, data: bytes) -> object:
        with suppress(RemoteProtocolError):
            read(data)
        return read(_signed(signer, domain, data))

    return run


def _text(_state: None, data: bytes) -> object:
    """One of the texts that people copy, as it came."""
    return _PARSERS[data[:1] or b"\x00"](data[1:].decode("utf-8", "replace")) if data[:1] in _PARSERS else None


def _network(_state: None, data: bytes) -> object:
    """The text of a network with whatever content, its checksum made right."""
    checked = data + hashlib.sha256(data).digest()[:CHECKSUM_BYTES]
    return parse_network(NETWORK_PREFIX + encode_base32(checked))


def _texts() -> list[bytes]:
    """Good texts of each kind, and wrong ones."""
    good = [(token_text, token) for _, _, token in _parts() if token][:1]
    good += [(delegation_text, delegation) for _, delegation, _ in _parts() if delegation][:1]
    texts = [make(data).encode() for make, data in good] + [network_text(_ROOT.public_key, "home").encode()]
    texts += [b"iso1abcdef", b"isochrone1" + b"a" * 300, b"isodelegation1" + b"a" * 40, b" ISONETWORK1 ab\n"]
    return [kind + text for kind in _PARSERS for text in texts]


_PARSERS: dict[bytes, Callable[[str], object]] = {b"\x00": parse_token, b"\x01": parse_delegation, b"\x02": parse_network}


def _unsigned(statements: list[bytes]) -> list[bytes]:
    return [statement[SIGNATURE_BYTES:] for statement in statements if statement]


_REMOTE = (RemoteProtocolError,)

HARNESS = either(
    "admission",
    Harness("frames", _frame, (), lambda: _frames() + _shown(), (
        "protocol.admission.messages:decode_join_request", "protocol.admission.messages:decode_join_answer",
        "protocol.admission.messages:decode_notice_frame", "protocol.admission.statements:open_shown",
    )),
    Harness("certificate", _content(lambda data: open_certificate(data, _DELEGATION), _ISSUER, CERTIFICATE_DOMAIN), _REMOTE,
            lambda: _unsigned([certificate for certificate, _, _ in _parts()]),
            ("protocol.admission.statements:open_certificate", "protocol.admission.reading:read")),
    Harness("delegation", _content(open_delegation, _ROOT, DELEGATION_DOMAIN), _REMOTE,
            lambda: _unsigned([delegation for _, delegation, _ in _parts()]), ("protocol.admission.statements:open_delegation",)),
    Harness("token", _content(open_token, _ISSUER, TOKEN_DOMAIN), _REMOTE, lambda: _unsigned([token for _, _, token in _parts()]),
            ("protocol.admission.tokens:open_token", "protocol.admission.tokens:*")),
    Harness("notice", _content(lambda data: open_notice(data, _DELEGATED), _ISSUER, NOTICE_DOMAIN), _REMOTE,
            lambda: _unsigned([data for data, _ in _notices()]), ("protocol.admission.notices:open_notice",)),
    Harness("text", _text, (LocalProtocolError,), _texts, ("protocol.admission.tokens:parse_network",)),
    Harness("network", _network, (LocalProtocolError,), lambda: [pack([_ROOT.public_key, name], NETWORK_LIMITS) for name in
            ("home", "", "a" * 65)] + [b"\xc1", pack([_ROOT.public_key], NETWORK_LIMITS)],
            ("protocol.admission.tokens:parse_network",)),
)  # fmt: skip
