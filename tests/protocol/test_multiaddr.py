"""Addresses in both forms."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.identity import Identity, PeerId, peer_id_text
from protocol.multiaddr import MULTIADDR_BYTES_MAX, MULTIADDR_CHARACTERS_MAX, Multiaddr, parse_multiaddr

PEER_ID = Identity.from_seed(bytes(range(32))).peer_id
PEER_TEXT = peer_id_text(PEER_ID)


def outcome(call, *args):
    """Return what the call returns, or the code of its declared error."""
    try:
        return call(*args)
    except ProtocolError as fault:
        return fault.code


labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=6).map(".".join).filter(lambda name: not name.split(".")[-1].isdigit())
hosts = st.one_of(
    st.tuples(st.just("ip4"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("ip6"), st.ip_addresses(v=6).map(str)),
    st.tuples(st.sampled_from(["dns", "dns4", "dns6"]), names),
)
peer_ids = st.none() | st.binary(min_size=32, max_size=32).map(lambda seed: Identity.from_seed(seed).peer_id)
addresses = st.builds(
    lambda host, port, peer_id: Multiaddr(host[0], host[1], port, peer_id), hosts, st.integers(0, 65535), peer_ids
)


@given(addresses)
def test_text_and_bytes_round_trip(address: Multiaddr) -> None:
    assert parse_multiaddr(str(address)) == address
    assert Multiaddr.from_bytes(address.to_bytes()) == address


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("/ip4/127.0.0.1/udp/4001/quic-v1", "047f000001" + "91020fa1" + "cd03"),
        ("/ip6/2001:db8::1/udp/443/quic-v1", "29" + "20010db8" + "00" * 11 + "01" + "910201bb" + "cd03"),
        ("/dns4/example.org/udp/1/quic-v1", "36" + "0b" + b"example.org".hex() + "91020001" + "cd03"),
        (f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{PEER_TEXT}", "047f00000191020fa1cd03" + "a50326" + PEER_ID.hex()),
    ],
)
def test_binary_form_is_libp2ps(text: str, encoded: str) -> None:
    assert parse_multiaddr(text).to_bytes().hex() == encoded


def test_equal_addresses_are_equal_values() -> None:
    assert Multiaddr("ip6", "2001:DB8:0::0001", 1) == Multiaddr("ip6", "2001:db8::1", 1)
    assert Multiaddr("ip6", "::ffff:c000:207", 1).host == "::ffff:192.0.2.7"
    assert Multiaddr("dns", "Example.ORG", 1) == Multiaddr("dns", "example.org", 1)
    assert parse_multiaddr("/ip4/192.0.2.7/udp/4001/quic-v1/") == parse_multiaddr("/ip4/192.0.2.7/udp/4001/quic-v1")


def test_peer_and_port_are_exchanged_without_touching_the_rest() -> None:
    address = parse_multiaddr("/ip4/192.0.2.7/udp/0/quic-v1")
    assert str(address.with_peer(PEER_ID).with_port(9)) == f"/ip4/192.0.2.7/udp/9/quic-v1/p2p/{PEER_TEXT}"
    assert address.with_peer(PEER_ID).with_peer(None) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "starts with a slash"),
        ("192.0.2.7:4001", "starts with a slash, as /ip4/192.0.2.7/udp/4001/quic-v1"),
        ("/", "write /ip4"),
        ("/ip4", "incomplete; write /ip4/HOST/udp/PORT/quic-v1"),
        ("/ip4/192.0.2.7/udp/4001", "incomplete; write /ip4/HOST/udp/PORT/quic-v1"),
        ("/ip4/192.0.2.7/tcp/4001", "write /udp/PORT/quic-v1"),
        ("/ip4/192.0.2.7/tcp/4001/p2p/x", "write /udp/PORT/quic-v1"),
        ("/ip4/192.0.2.7/tcp", "write /udp/PORT/quic-v1"),
        ("/ip4/192.0.2.7/udp", "incomplete"),
        ("/ip4/192.0.2.7/udp/4001/quic", "write /quic-v1"),
        ("/ip4/192.0.2.7/udp/4001/quic-v1/webtransport", "only /p2p/PEER_ID"),
        (f"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER_TEXT}/p2p-circuit", "only /p2p/PEER_ID"),
        ("/ip4/192.0.2.7/udp/4001/quic-v1/p2p", "only /p2p/PEER_ID"),
        ("/ip4/192.0.2.7/udp/4001/quic-v1/p2p/nobody", "is not a peer id"),
        ("/ip4/192.0.2.7/udp/4001/quic-v1/ipfs/x", "only /p2p/PEER_ID"),
        ("/dnsaddr/example.org/udp/1/quic-v1", "write /dns/NAME"),
        ("/ip4/192.0.2.256/udp/1/quic-v1", "not an IPv4 address"),
        ("/ip4/192.0.2.07/udp/1/quic-v1", "not an IPv4 address"),
        ("/ip6/2001:db8::g/udp/1/quic-v1", "not an IPv6 address"),
        ("/ip6/fe80::1%eth0/udp/1/quic-v1", "names a zone"),
        ("/dns/192.0.2.7/udp/1/quic-v1", "write an IP address as /ip4"),
        ("/dns/-a.example/udp/1/quic-v1", "not a DNS name"),
        ("/dns//udp/1/quic-v1", "not a DNS name"),
        ("/dns/a..b/udp/1/quic-v1", "not a DNS name"),
        ("/dns/example.org./udp/1/quic-v1", "not a DNS name"),
        ("/dns/" + "a" * 64 + "/udp/1/quic-v1", "not a DNS name"),
        ("/dns/" + "a." * 127 + "/udp/1/quic-v1", "at most 253"),
        ("/ip4/192.0.2.7/udp/65536/quic-v1", "within 0 to 65535"),
        ("/ip4/192.0.2.7/udp/-1/quic-v1", "not a port"),
        ("/ip4/192.0.2.7/udp/+1/quic-v1", "not a port"),
        ("/ip4/192.0.2.7/udp/01/quic-v1", "not a port"),
        ("/ip4/192.0.2.7/udp/\u0661/quic-v1", "not a port"),
        ("/ip4/192.0.2.7/udp//quic-v1", "not a port"),
        ("/" + "a" * MULTIADDR_CHARACTERS_MAX, "limit is 512"),
    ],
)
def test_text_that_is_no_address_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(LocalProtocolError, match=hint.replace(".", r"\.")):
        parse_multiaddr(text)


@given(st.text(max_size=60) | st.text(alphabet="/ip46dnsu.qv1-:0", max_size=60))
def test_any_text_raises_nothing_else(text: str) -> None:
    address = outcome(parse_multiaddr, text)
    assert address is ErrorCode.MALFORMED or Multiaddr.from_bytes(address.to_bytes()) == address


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "047f0000",
        "047f000001",
        "047f00000191020f",
        "047f00000191020fa1",
        "047f00000191020fa1cc03",
        "047f00000106 0fa1",
        "047f00000191020fa1cd0304",
        "047f00000191020fa1cd03a503",
        "047f00000191020fa1cd03a5032d" + "00" * 45,
        "047f00000191020fa1cd03a5030300010a04",
        "36ffffffffffffffff7f",
        "3603e2828291020001cd03",
        "3603612f6291020001cd03",
        "35033130 2e91020001cd03",
        "84007f00000191020fa1cd03",
    ],
)
def test_bytes_that_are_no_address_are_refused(encoded: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Multiaddr.from_bytes(bytes.fromhex(encoded))
    assert caught.value.code is ErrorCode.MALFORMED


@given(
    st.binary(max_size=60)
    | st.tuples(addresses, st.integers(0, 80), st.binary(max_size=3)).map(lambda t: t[0].to_bytes()[: t[1]] + t[2])
)
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    address = outcome(Multiaddr.from_bytes, data)
    assert address is ErrorCode.MALFORMED or parse_multiaddr(str(address)) == address


def test_longest_address_passes_and_longer_bytes_are_refused_unread() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    longest = Multiaddr("dns", name, 65535, PeerId(bytes((0, 42)) + bytes(42)))
    assert len(longest.to_bytes()) <= MULTIADDR_BYTES_MAX
    assert Multiaddr.from_bytes(longest.to_bytes()) == longest
    assert parse_multiaddr(str(longest)) == longest
    with pytest.raises(RemoteProtocolError) as caught:
        Multiaddr.from_bytes(bytes(MULTIADDR_BYTES_MAX + 1))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_parts_that_do_not_fit_are_a_local_fault() -> None:
    for protocol, host, port in (
        ("ip4", "::1", 1),
        ("ip6", "127.0.0.1", 1),
        ("dns", "a/b", 1),
        ("ip4", "127.0.0.1", 65536),
        ("ip4", "127.0.0.1", -1),
    ):
        with pytest.raises(LocalProtocolError):
            Multiaddr(protocol, host, port)


def test_addresses_hash_by_value() -> None:
    assert len({Multiaddr("ip6", str(ipaddress.IPv6Address(1)), 1), Multiaddr("ip6", "0::1", 1)}) == 1
