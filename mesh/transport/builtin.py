"""The two protocols that every libp2p peer speaks: ping and identify, both ends.

Spec: docs/spec/02-transport.md, section "Ping"; docs/spec/01-identity.md, section "Identify".
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from mesh.transport.errors import StreamReset
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import encode_public_key
from protocol.libp2p.envelope import seal_peer_record
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, Identify, IdentifyReader, encode_identify, verify_identify
from protocol.libp2p.ping import PING_BYTES, PING_PROTOCOL, PingDialer, PingListener

if TYPE_CHECKING:
    from mesh.transport.connection import Connection
    from mesh.transport.stream import Stream
    from mesh.transport.transport import Transport

_T = TypeVar("_T")


async def ping(connection: "Connection", transport: "Transport") -> float:
    """Send one ping and return its round trip in seconds."""
    config = transport.config.ping
    dialer = PingDialer(config)
    with trio.move_on_after(config.timeout_s):
        async with connection.pinging, await connection.open_stream(PING_PROTOCOL) as stream:
            await stream.send_all(dialer.start(transport.entropy(PING_BYTES), transport.now()))
            while data := await stream.receive_some():
                rtt_s = _checked(stream, functools.partial(dialer.handle_data, data, transport.now()))
                if rtt_s is not None:
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass  # until the peer has ended its side too, the stream counts against its limit of ping streams
                    return rtt_s
            raise StreamReset(ErrorCode.MALFORMED, "the peer ended the stream before it echoed the ping")
    raise StreamReset(ErrorCode.IDLE, f"no echo within {config.timeout_s:g} s")


async def identify(connection: "Connection", transport: "Transport") -> Identify:
    """Ask a peer what it says of itself."""
    reader = IdentifyReader()
    with trio.move_on_after(transport.config.negotiation_timeout_s):
        async with await connection.open_stream(IDENTIFY_PROTOCOL) as stream:
            await stream.send_eof()
            while data := await stream.receive_some():
                _checked(stream, functools.partial(reader.receive_data, data))
            said = _checked(stream, reader.receive_eof)
            _checked(stream, functools.partial(verify_identify, said, connection.peer_id))
            return said
    raise StreamReset(ErrorCode.IDLE, f"no answer within {transport.config.negotiation_timeout_s:g} s")


async def serve_ping(stream: "Stream", transport: "Transport") -> None:
    """Echo until the peer ends the stream or is silent for too long."""
    listener = PingListener(transport.now(), transport.config.ping)
    while True:
        data = b""
        with trio.move_on_after(max(0.0, listener.next_timer() - transport.now())):
            data = await stream.receive_some()
            if not data:
                return
        listener.handle_timer(transport.now())
        echo = listener.handle_data(data, transport.now())
        if echo:
            await stream.send_all(echo)


async def serve_identify(stream: "Stream", transport: "Transport") -> None:
    """Say who this node is, where it listens, what it speaks, and where it sees the peer."""
    addresses = tuple(address.with_peer(None).to_bytes() for address in transport.addresses)
    said = Identify(
        public_key=encode_public_key(transport.identity.public_key),
        listen_addresses=addresses,
        protocols=transport.protocols,
        observed_address=stream.connection.remote.with_peer(None).to_bytes(),
        protocol_version=transport.config.protocol_version,
        agent_version=transport.config.agent,
        signed_peer_record=seal_peer_record(transport.identity, transport.record_sequence(), addresses),
    )
    await stream.send_all(encode_identify(said))


def _checked(stream: "Stream", decode: Callable[[], _T]) -> _T:
    """Decode what a peer sent; a fault of the peer resets the stream."""
    try:
        return decode()
    except RemoteProtocolError as fault:
        stream.reset(fault.code)
        raise StreamReset(fault.code, fault.detail) from fault
