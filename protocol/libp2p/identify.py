"""What a peer says of itself on `/ipfs/id/1.0.0`: its key, its addresses, its protocols, and the address it sees us at.

The answering side writes one message with its length before it, or two when a signed record makes it long, and ends the stream.
The asking side merges messages until the stream ends: repeated fields add up, single ones replace. Everything in it is a claim,
except that key and signed record are held against the peer id that TLS has proven. On `/ipfs/id/push/1.0.0` a peer tells unasked
what has changed; `PeerDescription` keeps both together.

Source: libp2p/specs identify/README.md; go-libp2p p2p/protocol/identify.
Spec: docs/spec/01-identity.md, section "Identify".
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import PeerId, decode_public_key, peer_id_of
from protocol.libp2p import protobuf
from protocol.libp2p.envelope import PeerRecord, open_peer_record
from protocol.multiaddr import Multiaddr

IDENTIFY_PROTOCOL = "/ipfs/id/1.0.0"
"""Asked by the opener of the stream; the other side answers and ends it."""

IDENTIFY_PUSH_PROTOCOL = "/ipfs/id/push/1.0.0"
"""The opener of the stream sends news of itself; fields left out are unchanged."""

IDENTIFY_MESSAGE_BYTES_MAX = 8192
"""Largest identify message in bytes (go-libp2p p2p/protocol/identify, signedIDSize)."""

IDENTIFY_MESSAGES_MAX = 10
"""Most messages merged into one (go-libp2p p2p/protocol/identify, maxMessages)."""

LISTEN_ADDRESSES_MAX = 256
"""Most addresses of one peer after merging; more than any host has, and each costs memory."""

PROTOCOLS_MAX = 512
"""Most protocols of one peer after merging; a busy host speaks some dozens."""

_SPLIT_BYTES = 2048
"""Size in bytes from which the signed record travels in a message of its own, for peers with small limits (go-libp2p)."""

_FIELDS_MAX = LISTEN_ADDRESSES_MAX + PROTOCOLS_MAX + 32
"""Most fields of one message: every list full, the single fields, and some room."""

# Field numbers of Identify (libp2p/specs identify/README.md; 8 stands in all implementations, not in the text).
_PUBLIC_KEY, _LISTEN, _PROTOCOLS, _OBSERVED, _PROTOCOL_VERSION, _AGENT_VERSION, _SIGNED_RECORD = 1, 2, 3, 4, 5, 6, 8


@dataclass(frozen=True, slots=True)
class Identify:
    """One peer's description; None and the empty tuple stand for what was not said.

    Attributes:
        public_key: the libp2p PublicKey message.
        listen_addresses: binary multiaddrs of any transport, at most `LISTEN_ADDRESSES_MAX`.
        protocols: protocol ids, at most `PROTOCOLS_MAX`.
        observed_address: the binary multiaddr at which the writer sees the reader.
        protocol_version: the protocol of the peer's network; "/ipfs/0.1.0" or "ipfs/0.1.0" with most.
        agent_version: the program and its version.
        signed_peer_record: a sealed `PeerRecord`.
    """

    public_key: bytes | None = None
    listen_addresses: tuple[bytes, ...] = ()
    protocols: tuple[str, ...] = ()
    observed_address: bytes | None = None
    protocol_version: str | None = None
    agent_version: str | None = None
    signed_peer_record: bytes | None = None


class PeerDescription:
    """What is known of one peer: what it answered to identify, and what it pushed since.

    Attributes:
        said: everything it said, the newest of each; None before it said anything.
        record: its newest verified peer record, None while it sent none.
    """

    __slots__ = ("_peer_id", "record", "said")

    def __init__(self, peer_id: PeerId) -> None:
        self._peer_id = peer_id
        self.said: Identify | None = None
        self.record: PeerRecord | None = None

    def answered(self, answer: Identify) -> None:
        """Take an answer to identify: it replaces what was said before, except for a newer record.

        Raises:
            RemoteProtocolError: as `verify_identify`.
        """
        self.said = self._with_newest_record(answer)

    def pushed(self, news: Identify) -> None:
        """Take a push: each field that it says replaces the known one, lists as a whole; what it leaves out stays.

        Raises:
            RemoteProtocolError: as `verify_identify`.
        """
        news = self._with_newest_record(news)
        known = self.said or Identify()
        self.said = Identify(
            public_key=known.public_key if news.public_key is None else news.public_key,
            listen_addresses=news.listen_addresses or known.listen_addresses,
            protocols=news.protocols or known.protocols,
            observed_address=known.observed_address if news.observed_address is None else news.observed_address,
            protocol_version=known.protocol_version if news.protocol_version is None else news.protocol_version,
            agent_version=known.agent_version if news.agent_version is None else news.agent_version,
            signed_peer_record=news.signed_peer_record,
        )

    def _with_newest_record(self, said: Identify) -> Identify:
        """Verify what was said, and put the record that is held in the place of one that is missing or not newer."""
        record = verify_identify(said, self._peer_id)
        if record is not None and (self.record is None or record.sequence > self.record.sequence):
            self.record = record
            return said
        return replace(said, signed_peer_record=self.said.signed_peer_record if self.said is not None else None)


class IdentifyReader:
    """Merges the messages of one identify stream until it ends."""

    __slots__ = ("_decoder", "_identify", "_messages")

    def __init__(self) -> None:
        self._decoder = FrameDecoder(IDENTIFY_MESSAGE_BYTES_MAX)
        self._messages = 0
        self._identify = Identify()

    def receive_data(self, data: bytes) -> None:
        """Take bytes as they came from the stream.

        Raises:
            RemoteProtocolError: TOO_LARGE past a limit, MALFORMED for bytes that do not decode.
        """
        self._decoder.receive(data)
        while (frame := self._decoder.next_frame()) is not None:
            self._messages += 1
            if self._messages > IDENTIFY_MESSAGES_MAX:
                raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"more than {IDENTIFY_MESSAGES_MAX} identify messages")
            self._identify = merge_identify(self._identify, decode_identify(frame))

    def receive_eof(self) -> Identify:
        """Return what the peer said, now that the stream has ended.

        Raises:
            RemoteProtocolError: MALFORMED, when nothing was said or the last message is cut off.
        """
        self._decoder.finish()
        if self._messages == 0:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "the identify stream ended without a message")
        return self._identify


def encode_identify(identify: Identify) -> bytes:
    """Return the whole content of an identify stream.

    Raises:
        LocalProtocolError: TOO_LARGE, when the node has more addresses or protocols than a message may hold.
    """
    fields = [protobuf.encode_bytes(_LISTEN, address) for address in identify.listen_addresses]
    fields += [protobuf.encode_text(_PROTOCOLS, protocol) for protocol in identify.protocols]
    if identify.public_key is not None:
        fields.append(protobuf.encode_bytes(_PUBLIC_KEY, identify.public_key))
    if identify.observed_address is not None:
        fields.append(protobuf.encode_bytes(_OBSERVED, identify.observed_address))
    if identify.protocol_version is not None:
        fields.append(protobuf.encode_text(_PROTOCOL_VERSION, identify.protocol_version))
    if identify.agent_version is not None:
        fields.append(protobuf.encode_text(_AGENT_VERSION, identify.agent_version))
    message = b"".join(fields)
    record = b"" if identify.signed_peer_record is None else protobuf.encode_bytes(_SIGNED_RECORD, identify.signed_peer_record)
    parts = [message + record] if len(message) + len(record) <= _SPLIT_BYTES or not record else [message, record]
    counts = len(identify.listen_addresses) <= LISTEN_ADDRESSES_MAX and len(identify.protocols) <= PROTOCOLS_MAX
    if not counts or any(len(part) > IDENTIFY_MESSAGE_BYTES_MAX for part in parts):
        detail = (
            f"{len(identify.listen_addresses)} addresses and {len(identify.protocols)} protocols do not fit an identify message"
        )
        raise LocalProtocolError(ErrorCode.TOO_LARGE, detail)
    return b"".join(encode_frame(part) for part in parts)


def decode_identify(message: bytes) -> Identify:
    """Decode one message, at most `IDENTIFY_MESSAGE_BYTES_MAX` bytes, without its length.

    Raises:
        RemoteProtocolError: MALFORMED or TOO_LARGE.
    """
    single: dict[int, bytes] = {}
    listen_addresses: list[bytes] = []
    protocols: list[str] = []
    versions: dict[int, str] = {}
    for number, value in protobuf.read_fields(message, _FIELDS_MAX):
        if number == _LISTEN:
            listen_addresses.append(protobuf.as_bytes(value))
        elif number == _PROTOCOLS:
            protocols.append(protobuf.as_text(value))
        elif number in (_PROTOCOL_VERSION, _AGENT_VERSION):
            versions[number] = protobuf.as_text(value)
        elif number in (_PUBLIC_KEY, _OBSERVED, _SIGNED_RECORD):
            single[number] = protobuf.as_bytes(value)
    return Identify(
        public_key=single.get(_PUBLIC_KEY),
        listen_addresses=tuple(listen_addresses),
        protocols=tuple(protocols),
        observed_address=single.get(_OBSERVED),
        protocol_version=versions.get(_PROTOCOL_VERSION),
        agent_version=versions.get(_AGENT_VERSION),
        signed_peer_record=single.get(_SIGNED_RECORD),
    )


def merge_identify(first: Identify, second: Identify) -> Identify:
    """Add the later message to the earlier ones: lists are joined, single fields replaced where they were said again.

    Raises:
        RemoteProtocolError: TOO_LARGE, when a list grows past its limit.
    """
    listen_addresses = first.listen_addresses + second.listen_addresses
    protocols = first.protocols + second.protocols
    if len(listen_addresses) > LISTEN_ADDRESSES_MAX or len(protocols) > PROTOCOLS_MAX:
        detail = f"a peer claims {len(listen_addresses)} addresses and {len(protocols)} protocols"
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, detail)
    return Identify(
        public_key=first.public_key if second.public_key is None else second.public_key,
        listen_addresses=listen_addresses,
        protocols=protocols,
        observed_address=first.observed_address if second.observed_address is None else second.observed_address,
        protocol_version=first.protocol_version if second.protocol_version is None else second.protocol_version,
        agent_version=first.agent_version if second.agent_version is None else second.agent_version,
        signed_peer_record=first.signed_peer_record if second.signed_peer_record is None else second.signed_peer_record,
    )


def verify_identify(identify: Identify, peer_id: PeerId) -> PeerRecord | None:
    """Hold a description against the peer id that TLS has proven.

    Returns:
        The verified peer record, None when the peer sent none.

    Raises:
        RemoteProtocolError: WRONG_PEER, when key or record belong to another peer; BAD_SIGNATURE, MALFORMED, TOO_LARGE or
            UNSUPPORTED, when the record or the key does not verify.
    """
    if identify.public_key is not None and peer_id_of(decode_public_key(identify.public_key)) != peer_id:
        raise RemoteProtocolError(ErrorCode.WRONG_PEER, "a peer identifies itself with another key")
    if identify.signed_peer_record is None:
        return None
    record = open_peer_record(identify.signed_peer_record)
    if record.peer_id != peer_id:
        raise RemoteProtocolError(ErrorCode.WRONG_PEER, "a peer identifies itself with another peer's record")
    return record


def quic_addresses(addresses: Iterable[bytes]) -> tuple[Multiaddr, ...]:
    """Return those binary multiaddrs that are QUIC addresses of this mesh, in order; others serve other transports."""
    usable: list[Multiaddr] = []
    for address in addresses:
        try:
            usable.append(Multiaddr.from_bytes(address))
        except RemoteProtocolError:
            continue
    return tuple(usable)
