"""Delegations, certificates and invitations: round trips, limits, and bytes that nobody vouches for."""

from contextlib import suppress

import msgpack
import pytest
from admission_examples import (
    ADDRESS,
    ALICE,
    ALL_RIGHTS,
    BOB,
    DAY_S,
    ISSUER,
    NETWORK,
    OTHER_ROOT,
    ROOT,
    WALL_S,
    certificate,
    delegation,
    names,
    peers,
    shown,
    signed_token,
    times,
    token,
)
from hypothesis import given
from hypothesis import strategies as st

from protocol.admission import (
    Certificate,
    Delegation,
    delegation_text,
    encode_guest,
    encode_member,
    network_id_of,
    network_text,
    open_certificate,
    open_delegation,
    open_shown,
    open_token,
    parse_delegation,
    parse_network,
    parse_token,
    sign_certificate,
    sign_delegation,
    sign_token,
    token_text,
)
from protocol.admission.statements import CERTIFICATE_DOMAIN, DELEGATION_DOMAIN
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError


def code_of(call, *arguments) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        call(*arguments)
    return caught.value.code


def resigned(statement, signer, domain, changes) -> bytes:
    """A statement with a good signature over fields that are changed at some positions."""
    fields = msgpack.unpackb(statement[64:])
    for position, value in changes.items():
        fields[position : position + 1] = [value]
    signed = msgpack.packb(fields)
    return signer.sign(domain + signed) + signed


def test_a_network_id_is_short_text_that_follows_from_the_key() -> None:
    assert network_id_of(ROOT.public_key).startswith("net-")
    assert len(network_id_of(ROOT.public_key)) == 36
    assert network_id_of(ROOT.public_key) != network_id_of(OTHER_ROOT.public_key)


@given(peers, st.lists(names, max_size=8), times, st.integers(1, 1098 * DAY_S), st.integers(0, 2**63 - 1))
def test_delegations_round_trip(peer, owners, start_s, lasts_s, serial) -> None:
    value = Delegation(ROOT.public_key, peer.peer_id, ALL_RIGHTS, tuple(owners), start_s, start_s + lasts_s, serial)
    assert open_delegation(sign_delegation(ROOT, value)) == value


@given(peers, names, st.lists(names, max_size=8), times, st.integers(1, 30 * DAY_S), st.integers(0, 2**63 - 1))
def test_certificates_round_trip(peer, owner, roles, start_s, lasts_s, serial) -> None:
    value = Certificate(NETWORK, peer.peer_id, owner, tuple(roles), start_s // 2, start_s, start_s + lasts_s, serial)
    opened = open_certificate(sign_certificate(ISSUER, value), open_delegation(delegation()))
    assert opened == value


def test_a_certificate_is_refused_under_another_delegation_than_its_issuers() -> None:
    assert code_of(open_certificate, certificate(), open_delegation(delegation(issuer=BOB))) is ErrorCode.BAD_SIGNATURE
    foreign = open_delegation(delegation(OTHER_ROOT, ISSUER))
    assert code_of(open_certificate, certificate(), foreign) is ErrorCode.WRONG_NETWORK
    no_right = open_delegation(delegation(rights=("revoke",)))
    assert code_of(open_certificate, certificate(), no_right) is ErrorCode.NOT_ADMITTED
    other_owner = open_delegation(delegation(owners=("ben",)))
    assert code_of(open_certificate, certificate(), other_owner) is ErrorCode.NOT_ADMITTED


@pytest.mark.parametrize("position", [0, 63, 64, 80, -1])
def test_one_changed_bit_is_noticed(position) -> None:
    for statement, read in ((delegation(), open_delegation), (signed_token(), open_token)):
        broken = bytearray(statement)
        broken[position] ^= 1
        assert code_of(read, bytes(broken)) in (ErrorCode.BAD_SIGNATURE, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


def test_a_signature_for_one_purpose_serves_no_other() -> None:
    fields = msgpack.unpackb(delegation()[64:])
    signed = msgpack.packb(fields)
    assert code_of(open_delegation, ROOT.sign(CERTIFICATE_DOMAIN + signed) + signed) is ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({5: WALL_S + 1100 * DAY_S + 2000}, ErrorCode.MALFORMED),
        ({5: WALL_S - 2 * DAY_S}, ErrorCode.MALFORMED),
        ({2: ["admit"] * 9}, ErrorCode.TOO_LARGE),
        ({3: ["x" * 65]}, ErrorCode.TOO_LARGE),
        ({3: ["a\nb"]}, ErrorCode.MALFORMED),
        ({0: b"short"}, ErrorCode.MALFORMED),
        ({1: b"no peer"}, ErrorCode.MALFORMED),
        ({6: -1}, ErrorCode.MALFORMED),
        ({6: True}, ErrorCode.MALFORMED),
        ({7: [1]}, None),
        ({7: [1] * 70}, ErrorCode.TOO_LARGE),
    ],
)
def test_ranges_of_a_delegation(changes, code) -> None:
    statement = resigned(delegation(), ROOT, DELEGATION_DOMAIN, changes)
    if code is None:
        assert open_delegation(statement) == open_delegation(delegation())
    else:
        assert code_of(open_delegation, statement) is code


def test_a_certificate_lasts_thirty_days_and_no_second_more() -> None:
    certificate(start_s=WALL_S, admitted_s=WALL_S, end_s=WALL_S + 30 * DAY_S)
    with pytest.raises(LocalProtocolError):
        certificate(start_s=WALL_S, admitted_s=WALL_S, end_s=WALL_S + 30 * DAY_S + 1)
    with pytest.raises(LocalProtocolError):
        certificate(start_s=WALL_S, admitted_s=WALL_S + 1)


def test_more_unknown_elements_than_allowed_are_refused() -> None:
    fields = msgpack.unpackb(delegation()[64:])
    signed = msgpack.packb([*fields, *range(9)])
    assert code_of(open_delegation, ROOT.sign(DELEGATION_DOMAIN + signed) + signed) is ErrorCode.TOO_LARGE


def test_what_is_shown_is_a_certificate_or_an_invitation() -> None:
    member = open_shown(shown())
    assert (member.certificate, member.delegation, member.token) == (certificate(), delegation(), b"")
    assert open_shown(encode_guest(b"t")).token == b"t"
    assert code_of(open_shown, b"") is ErrorCode.NOT_ADMITTED
    assert code_of(open_shown, msgpack.packb([3, b"x"])) is ErrorCode.MALFORMED
    assert code_of(open_shown, msgpack.packb([True, b"x", b"y"])) is ErrorCode.MALFORMED
    assert code_of(open_shown, bytes(1601)) is ErrorCode.TOO_LARGE


@given(st.integers(1, 1000), names, st.lists(names, max_size=8), st.integers(0, 8), times)
def test_invitations_round_trip_as_bytes_and_text(uses, owner, roles, n_addresses, issued_s) -> None:
    value = token(uses=uses, owner=owner, issued_s=issued_s, expires_s=issued_s + DAY_S, addresses=(ADDRESS,) * n_addresses)
    data = sign_token(ISSUER, value)
    text = token_text(data)
    assert open_token(data) == value
    assert text.isalnum()
    assert text == text.lower()
    assert parse_token(text) == data
    assert parse_token(f"  {text[:40]}\n {text[40:].upper()} ") == data


@given(st.binary(min_size=1, max_size=768), st.binary(min_size=32, max_size=32), names)
def test_delegations_and_networks_round_trip_as_text(data, root, name) -> None:
    assert parse_delegation(delegation_text(data)) == data
    assert parse_network(network_text(root, name).upper()) == (root, name)


@pytest.mark.parametrize(
    ("parse", "prefix", "text"),
    [
        (parse_token, "isoinvite1", token_text(signed_token())),
        (parse_delegation, "isodelegation1", delegation_text(bytes(200))),
        (parse_network, "isonetwork1", network_text(bytes(32), "home")),
    ],
    ids=["invitation", "delegation", "network"],
)
def test_a_typing_error_is_told_as_such(parse, prefix, text) -> None:
    assert text.startswith(prefix)
    swapped = text[:30] + ("a" if text[30] != "a" else "b") + text[31:]
    for wrong in (
        text[:-1],
        swapped,
        text + "a",
        "hello",
        text.replace(prefix, prefix[:-1] + "2"),
        text[:20] + "!" + text[21:],
        "",
    ):
        with pytest.raises(LocalProtocolError) as caught:
            parse(wrong)
        assert "copy it again" in caught.value.detail


def test_an_invitation_is_signed_by_the_issuer_it_names() -> None:
    data = signed_token()
    assert code_of(open_token, ALICE.sign(b"isochrone-invite-v1:" + data[64:]) + data[64:]) is ErrorCode.BAD_SIGNATURE


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_raise_one_kind_of_error(data) -> None:
    for read in (open_delegation, open_token, open_shown):
        with suppress(RemoteProtocolError):
            read(data)


@given(
    st.lists(
        st.none() | st.integers(-5, 5) | st.binary(max_size=40) | st.text(max_size=5) | st.lists(st.text(max_size=3)), max_size=9
    )
)
def test_arbitrary_fields_raise_one_kind_of_error(fields) -> None:
    signed = msgpack.packb(fields)
    for read in (open_delegation, open_token):
        with pytest.raises(RemoteProtocolError):
            read(bytes(64) + signed)


@given(st.text(max_size=200))
def test_arbitrary_text_is_none_of_them(text) -> None:
    for parse, prefix in ((parse_token, "isoinvite1"), (parse_delegation, "isodelegation1"), (parse_network, "isonetwork1")):
        with pytest.raises(LocalProtocolError):
            parse(prefix + text)


def test_the_largest_statements_fit_what_is_shown() -> None:
    big = encode_member(bytes(768), bytes(768))
    assert len(big) <= 1600
