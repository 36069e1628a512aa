"""Addresses of nodes as multiaddrs: a host, a UDP port, QUIC v1, and optionally the peer expected there.

Only `/ip4|ip6|dns|dns4|dns6/HOST/udp/PORT/quic-v1[/p2p/ID]` is an address of this mesh. Text is written by people, so what is
wrong with it is a `LocalProtocolError` that says what to write instead; bytes come from peers, so theirs is a
`RemoteProtocolError`. Values are normalised when they are made: equal addresses are equal values.

Source: multiformats/multiaddr and its protocols.csv; libp2p/specs addressing/README.md.
Spec: docs/spec/01-identity.md, section "Addresses".
"""

import re
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

from protocol.encoding import decode_uvarint, encode_uvarint
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import PeerId, parse_peer_id, peer_id_from_bytes, peer_id_text

HostProtocol = Literal["ip4", "ip6", "dns", "dns4", "dns6"]
"""How the host of an address is named: by IP address, or by a name looked up as either or as one family only."""

MULTIADDR_BYTES_MAX = 320
"""Longest multiaddr in bytes: a name of 253 bytes, a port, QUIC and a peer id of 44 bytes take 314."""

MULTIADDR_CHARACTERS_MAX = 512
"""Longest multiaddr text in characters: the longest that can be valid has 352; the rest is room for a message to quote."""

DNS_NAME_CHARACTERS_MAX = 253
"""Longest DNS name in characters without its final dot (RFC 1035 section 2.3.4)."""

PORT_MAX = 65535
"""Largest UDP port, unitless (RFC 768)."""

_CODES: dict[HostProtocol, int] = {"ip4": 4, "ip6": 41, "dns": 53, "dns4": 54, "dns6": 55}
"""Multicodec codes of the host protocols (multiaddr protocols.csv)."""

_HOST_PROTOCOLS: dict[int, HostProtocol] = {code: protocol for protocol, code in _CODES.items()}

_HOST_NAMES: dict[str, HostProtocol] = {protocol: protocol for protocol in _CODES}

_UDP = 273
"""Multicodec code of udp; two bytes of big-endian port follow."""

_P2P = 421
"""Multicodec code of p2p; a varint length and a peer id follow."""

_QUIC_V1 = 461
"""Multicodec code of quic-v1 (RFC 9000); nothing follows. 460 is the draft-29 that nobody should speak any more."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
"""One label of a DNS name: 1 to 63 letters, digits, hyphens or underscores, no hyphen at either end (RFC 1123 section 2.1)."""

_EXAMPLE = "/ip4/192.0.2.7/udp/4001/quic-v1"


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """Where a node can be dialled, or where it listens.

    Attributes:
        protocol: how `host` is to be read.
        host: an IP address in its canonical text, or a DNS name in lower case without a final dot.
        port: the UDP port, 0 to 65535; 0 only where the system is to choose one.
        peer_id: the peer expected there, None when anybody may answer.

    Raises:
        LocalProtocolError: MALFORMED, when the parts do not fit together.
    """

    protocol: HostProtocol
    host: str
    port: int
    peer_id: PeerId | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", _canonical_host(self.protocol, self.host))
        if not 0 <= self.port <= PORT_MAX:
            raise LocalProtocolError(ErrorCode.MALFORMED, f"port {self.port} is not within 0 to {PORT_MAX}")

    def __str__(self) -> str:
        address = f"/{self.protocol}/{self.host}/udp/{self.port}/quic-v1"
        return address if self.peer_id is None else f"{address}/p2p/{peer_id_text(self.peer_id)}"

    def with_peer(self, peer_id: PeerId | None) -> "Multiaddr":
        """Return the same address with another expectation of who answers there."""
        return replace(self, peer_id=peer_id)

    def with_port(self, port: int) -> "Multiaddr":
        """Return the same address with another UDP port."""
        return replace(self, port=port)

    def to_bytes(self) -> bytes:
        """Return the binary form."""
        encoded = encode_uvarint(_CODES[self.protocol]) + self._host_bytes()
        encoded += encode_uvarint(_UDP) + self.port.to_bytes(2, "big") + encode_uvarint(_QUIC_V1)
        if self.peer_id is not None:
            encoded += encode_uvarint(_P2P) + encode_uvarint(len(self.peer_id)) + self.peer_id
        return encoded

    @classmethod
    def from_bytes(cls, data: bytes) -> "Multiaddr":
        """Read the binary form, all of it.

        Raises:
            RemoteProtocolError: MALFORMED, for anything that is no address of this mesh; TOO_LARGE over the limit.
        """
        if len(data) > MULTIADDR_BYTES_MAX:
            detail = f"a multiaddr of {len(data)} bytes; the limit is {MULTIADDR_BYTES_MAX}"
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, detail)
        code, offset = decode_uvarint(data)
        protocol = _HOST_PROTOCOLS.get(code)
        if protocol is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a multiaddr starts with protocol {code}, which is no host")
        host, offset = _decode_host(protocol, data, offset)
        offset = _expect_code(data, offset, _UDP, "udp")
        port_bytes, offset = _take(data, offset, 2)
        offset = _expect_code(data, offset, _QUIC_V1, "quic-v1")
        peer_id: PeerId | None = None
        if offset < len(data):
            offset = _expect_code(data, offset, _P2P, "p2p")
            length, offset = decode_uvarint(data, offset)
            id_bytes, offset = _take(data, offset, length)
            peer_id = peer_id_from_bytes(id_bytes)
        if offset != len(data):
            raise RemoteProtocolError(ErrorCode.MALFORMED, "a multiaddr goes on after its peer id")
        try:
            return cls(protocol, host, int.from_bytes(port_bytes, "big"), peer_id)
        except LocalProtocolError as fault:
            raise RemoteProtocolError(fault.code, f"a multiaddr is wrong: {fault.detail}") from fault

    def _host_bytes(self) -> bytes:
        match self.protocol:
            case "ip4":
                return IPv4Address(self.host).packed
            case "ip6":
                return IPv6Address(self.host).packed
            case "dns" | "dns4" | "dns6":
                name = self.host.encode("ascii")
                return encode_uvarint(len(name)) + name


def parse_multiaddr(text: str) -> Multiaddr:
    """Read an address as a person writes it.

    Raises:
        LocalProtocolError: MALFORMED, saying what is wrong and what to write instead.
    """
    if len(text) > MULTIADDR_CHARACTERS_MAX:
        detail = f"an address of {len(text)} characters; the limit is {MULTIADDR_CHARACTERS_MAX}"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail)
    try:
        return _parse(text)
    except LocalProtocolError as fault:
        raise LocalProtocolError(fault.code, f"{text!r} is not an address of a node: {fault.detail}") from fault


def _parse(text: str) -> Multiaddr:
    if not text.startswith("/"):
        raise LocalProtocolError(ErrorCode.MALFORMED, f"an address starts with a slash, as {_EXAMPLE} does")
    parts = text[1:].removesuffix("/").split("/")
    protocol = _host_protocol(parts[0])
    if len(parts) < 5 and parts[2:3] in ([], ["udp"]):
        detail = f"it is incomplete; write /{protocol}/HOST/udp/PORT/quic-v1, for example {_EXAMPLE}"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail)
    if parts[2] != "udp":
        detail = f"/{parts[2]} is not supported; nodes speak QUIC: write /udp/PORT/quic-v1"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail)
    if parts[4] != "quic-v1":
        detail = f"/{parts[4]} is not supported; write /quic-v1 after the port"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail)
    address = Multiaddr(protocol, parts[1], _parse_port(parts[3]))
    rest = parts[5:]
    if not rest:
        return address
    if rest[0] != "p2p" or len(rest) != 2:
        detail = f"only /p2p/PEER_ID may follow /quic-v1, not /{'/'.join(rest)}"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail)
    return address.with_peer(parse_peer_id(rest[1]))


def _host_protocol(name: str) -> HostProtocol:
    protocol = _HOST_NAMES.get(name)
    if protocol is not None:
        return protocol
    hint = "write /dns/NAME/udp/PORT/quic-v1" if name == "dnsaddr" else "write /ip4, /ip6, /dns, /dns4 or /dns6 first"
    raise LocalProtocolError(ErrorCode.MALFORMED, f"/{name} is not supported; {hint}")


def _parse_port(text: str) -> int:
    canonical = text.isascii() and text.isdigit() and len(text) <= 5 and (text == "0" or text[0] != "0")
    if not canonical:
        raise LocalProtocolError(ErrorCode.MALFORMED, f"{text!r} is not a port; write a number within 0 to {PORT_MAX}")
    return int(text)


def _canonical_host(protocol: HostProtocol, host: str) -> str:
    match protocol:
        case "ip4":
            try:
                return str(IPv4Address(host))
            except AddressValueError as fault:
                raise LocalProtocolError(ErrorCode.MALFORMED, f"{host!r} is not an IPv4 address") from fault
        case "ip6":
            if "%" in host:
                raise LocalProtocolError(ErrorCode.MALFORMED, f"{host!r} names a zone; write the address without %")
            try:
                address = IPv6Address(host)
            except AddressValueError as fault:
                raise LocalProtocolError(ErrorCode.MALFORMED, f"{host!r} is not an IPv6 address") from fault
            # Python writes mapped IPv4 addresses in one way up to 3.12 and in another since; this is RFC 5952 section 5.
            return str(address) if address.ipv4_mapped is None else f"::ffff:{address.ipv4_mapped}"
        case "dns" | "dns4" | "dns6":
            return _canonical_name(host)


def _canonical_name(host: str) -> str:
    name = host.lower()
    if len(name) > DNS_NAME_CHARACTERS_MAX:
        raise LocalProtocolError(ErrorCode.MALFORMED, f"a DNS name has at most {DNS_NAME_CHARACTERS_MAX} characters")
    labels = name.split(".")
    if not all(_LABEL.match(label) for label in labels):
        raise LocalProtocolError(ErrorCode.MALFORMED, f"{host!r} is not a DNS name of letters, digits, hyphens and dots")
    if labels[-1].isdigit():
        raise LocalProtocolError(ErrorCode.MALFORMED, f"{host!r} is not a DNS name; write an IP address as /ip4 or /ip6")
    return name


def _decode_host(protocol: HostProtocol, data: bytes, offset: int) -> tuple[str, int]:
    match protocol:
        case "ip4":
            packed, offset = _take(data, offset, 4)
            return str(IPv4Address(packed)), offset
        case "ip6":
            packed, offset = _take(data, offset, 16)
            return str(IPv6Address(packed)), offset
        case "dns" | "dns4" | "dns6":
            length, offset = decode_uvarint(data, offset)
            name, offset = _take(data, offset, length)
            try:
                text = name.decode("ascii")
            except UnicodeDecodeError as fault:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "a multiaddr's DNS name is not ASCII") from fault
            return text, offset


def _expect_code(data: bytes, offset: int, expected: int, name: str) -> int:
    code, offset = decode_uvarint(data, offset)
    if code != expected:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a multiaddr has protocol {code} where {name} should stand")
    return offset


def _take(data: bytes, offset: int, length: int) -> tuple[bytes, int]:
    if offset + length > len(data):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a multiaddr ends too early")
    return bytes(data[offset : offset + length]), offset + length
